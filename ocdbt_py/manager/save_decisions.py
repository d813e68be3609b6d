"""Is this step saved? Policies with the names, the arguments and the answers of Orbax's.

A policy is any object with ``should_save(step_info, previous_steps, *, context)``. ``step_info`` and each of the
``previous_steps`` (in the manager's order) have ``step``, ``time`` (UTC) and ``metrics``. The manager asks only about
steps later than its latest.

Where several processes save, process 0 asks its policy and tells the others: so a policy may go by the clock, or by
whether a save is under way, without asking anybody itself.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol, runtime_checkable

from ocdbt_py.errors import InvalidArgumentError

__all__ = [
    "AnySavePolicy",
    "ContinuousCheckpointingPolicy",
    "DecisionContext",
    "FixedIntervalPolicy",
    "InitialSavePolicy",
    "PolicyCheckpointInfo",
    "PreemptionCheckpointingPolicy",
    "SaveDecisionPolicy",
    "ShouldSaveFunction",
    "SpecificStepsPolicy",
]


class PolicyCheckpointInfo(Protocol):
    """What a policy learns of a step."""

    @property
    def step(self) -> int: ...

    @property
    def time(self) -> datetime:
        """When it was saved; of the step in question: now."""

    @property
    def metrics(self) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class DecisionContext:
    """What else a decision may depend on. ``multiprocessing_options``: the options' own, where they have any."""

    is_saving_in_progress: bool
    reached_preemption: bool
    multiprocessing_options: Any = None


@runtime_checkable
class SaveDecisionPolicy(Protocol):
    """Decides whether a step is saved."""

    def should_save(
        self, step: PolicyCheckpointInfo, previous_steps: Sequence[PolicyCheckpointInfo], *, context: DecisionContext
    ) -> bool: ...


@dataclass(frozen=True)
class FixedIntervalPolicy:
    """Every multiple of ``interval``."""

    interval: int

    def __post_init__(self) -> None:
        if self.interval < 1:
            raise InvalidArgumentError(f"interval is a positive number of steps, not {self.interval!r}")

    def should_save(
        self, step: PolicyCheckpointInfo, previous_steps: Sequence[PolicyCheckpointInfo], *, context: DecisionContext
    ) -> bool:
        return step.step % self.interval == 0


@dataclass(frozen=True)
class SpecificStepsPolicy:
    """The steps that ``steps`` contains."""

    steps: Container[int]

    def should_save(
        self, step: PolicyCheckpointInfo, previous_steps: Sequence[PolicyCheckpointInfo], *, context: DecisionContext
    ) -> bool:
        return step.step in self.steps


@dataclass(frozen=True, kw_only=True)
class ContinuousCheckpointingPolicy:
    """Whenever no save is under way, and at least ``minimum_interval_secs`` after the time of the latest step.

    So saving never makes training wait for the save before, and the interval follows from how long saves take.
    """

    minimum_interval_secs: float | None = None

    def should_save(
        self, step: PolicyCheckpointInfo, previous_steps: Sequence[PolicyCheckpointInfo], *, context: DecisionContext
    ) -> bool:
        if context.is_saving_in_progress:
            return False
        if self.minimum_interval_secs is None or not previous_steps:
            return True
        return step.time - previous_steps[-1].time >= timedelta(seconds=self.minimum_interval_secs)


@dataclass(frozen=True)
class PreemptionCheckpointingPolicy:
    """When the job is about to be ended: somebody called ``request_save()``, or JAX's preemption service says so."""

    def should_save(
        self, step: PolicyCheckpointInfo, previous_steps: Sequence[PolicyCheckpointInfo], *, context: DecisionContext
    ) -> bool:
        return context.reached_preemption


@dataclass(frozen=True)
class InitialSavePolicy:
    """While nothing has been saved yet."""

    def should_save(
        self, step: PolicyCheckpointInfo, previous_steps: Sequence[PolicyCheckpointInfo], *, context: DecisionContext
    ) -> bool:
        return not previous_steps


@dataclass(frozen=True)
class AnySavePolicy:
    """When any of the policies says so; they are asked in order, until one does."""

    policies: Sequence[SaveDecisionPolicy]

    def should_save(
        self, step: PolicyCheckpointInfo, previous_steps: Sequence[PolicyCheckpointInfo], *, context: DecisionContext
    ) -> bool:
        return any(policy.should_save(step, previous_steps, context=context) for policy in self.policies)


@dataclass(frozen=True)
class ShouldSaveFunction:
    """What the option ``should_save_fn`` stands for: a function of the step and the latest one, or None."""

    function: Callable[[int, int | None], bool]

    def should_save(
        self, step: PolicyCheckpointInfo, previous_steps: Sequence[PolicyCheckpointInfo], *, context: DecisionContext
    ) -> bool:
        return bool(self.function(step.step, previous_steps[-1].step if previous_steps else None))
