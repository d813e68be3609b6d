"""When to save and what to keep: every policy, by its name in Orbax, and the contexts that one's own are given.

    CheckpointManagerOptions(
        save_decision_policy=ContinuousCheckpointingPolicy(minimum_interval_secs=30),
        preservation_policy=AnyPreservationPolicy([LatestN(3), EveryNSeconds(180)]),
    )

One's own: any object with ``should_save`` or ``should_preserve`` (:mod:`ocdbt_py.manager.save_decisions`,
:mod:`ocdbt_py.manager.preservation`).
"""

from __future__ import annotations

from ocdbt_py.manager.preservation import (
    AnyPreservationPolicy,
    BestN,
    CustomSteps,
    EveryNSeconds,
    EveryNSteps,
    EveryNStepsClosest,
    LatestDuration,
    LatestN,
    PreservationContext,
    PreservationPolicy,
    PreserveAll,
)
from ocdbt_py.manager.save_decisions import (
    AnySavePolicy,
    ContinuousCheckpointingPolicy,
    DecisionContext,
    FixedIntervalPolicy,
    InitialSavePolicy,
    PolicyCheckpointInfo,
    PreemptionCheckpointingPolicy,
    SaveDecisionPolicy,
    SpecificStepsPolicy,
)

__all__ = [
    "AnyPreservationPolicy",
    "AnySavePolicy",
    "BestN",
    "ContinuousCheckpointingPolicy",
    "CustomSteps",
    "DecisionContext",
    "EveryNSeconds",
    "EveryNSteps",
    "EveryNStepsClosest",
    "FixedIntervalPolicy",
    "InitialSavePolicy",
    "LatestDuration",
    "LatestN",
    "PolicyCheckpointInfo",
    "PreemptionCheckpointingPolicy",
    "PreservationContext",
    "PreservationPolicy",
    "PreserveAll",
    "SaveDecisionPolicy",
    "SpecificStepsPolicy",
]
