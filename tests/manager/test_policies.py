"""The policies by themselves; ``conformance/test_manager_native.py`` asks Orbax's the same questions."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import ocdbt_py.policies
from ocdbt_py.errors import InvalidArgumentError
from ocdbt_py.manager.listing import SavedStep
from ocdbt_py.policies import (
    AnyPreservationPolicy,
    AnySavePolicy,
    BestN,
    ContinuousCheckpointingPolicy,
    CustomSteps,
    DecisionContext,
    EveryNSeconds,
    EveryNSteps,
    EveryNStepsClosest,
    FixedIntervalPolicy,
    InitialSavePolicy,
    LatestDuration,
    LatestN,
    PreemptionCheckpointingPolicy,
    PreservationContext,
    PreservationPolicy,
    PreserveAll,
    SaveDecisionPolicy,
    SpecificStepsPolicy,
)

START = datetime(2026, 1, 1, tzinfo=UTC)


def at(step: int, seconds: float = 0, loss: float | None = None) -> SavedStep:
    return SavedStep(step, START + timedelta(seconds=seconds), None if loss is None else {"loss": loss})


def loss_of(metrics: Any) -> float:
    return float(metrics["loss"])


def kept(policy: PreservationPolicy, infos: Sequence[SavedStep], now: float = 0) -> list[int]:
    context = PreservationContext(now=START + timedelta(seconds=now))
    answer = policy.should_preserve(infos, context=context)
    return [info.step for info, stays in zip(infos, answer, strict=True) if stays]


def saves(policy: SaveDecisionPolicy, info: SavedStep, *before: SavedStep, **context: bool) -> bool:
    made = DecisionContext(
        is_saving_in_progress=context.get("saving", False), reached_preemption=context.get("ending", False)
    )
    return policy.should_save(info, list(before), context=made)


STEPS = [at(step) for step in (0, 3, 4, 9, 10, 11, 20)]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (PreserveAll(), [0, 3, 4, 9, 10, 11, 20]),
        (LatestN(), [0, 3, 4, 9, 10, 11, 20]),
        (LatestN(2), [11, 20]),
        (LatestN(0), []),
        (LatestN(99), [0, 3, 4, 9, 10, 11, 20]),
        (EveryNSteps(10), [0, 10, 20]),
        (EveryNSteps(4, exact_interval=False), [0, 4, 9, 20]),
        (EveryNSteps(10, max_to_keep=2), [10, 20]),
        (EveryNSteps(10, max_to_keep=0), [0, 10, 20]),
        (EveryNStepsClosest(5), [0, 4, 10, 20]),
        (EveryNStepsClosest(10, max_to_keep=2), [10, 20]),
        (EveryNStepsClosest(7), [0, 9, 11, 20]),
        (CustomSteps([4, 20, 99]), [4, 20]),
        (CustomSteps(steps={3}), [3]),
        (AnyPreservationPolicy([LatestN(1), CustomSteps([3])]), [3, 20]),
    ],
    ids=repr,
)
def test_what_stays_by_step(policy: PreservationPolicy, expected: list[int]) -> None:
    assert kept(policy, STEPS) == expected


def test_every_n_seconds_counts_from_the_last_that_stays() -> None:
    infos = [at(i, seconds) for i, seconds in enumerate([0, 100, 170, 180, 350, 360.5, 540])]
    assert kept(EveryNSeconds(180), infos) == [0, 3, 5]
    assert kept(EveryNSeconds(0), infos) == [*range(7)]
    assert kept(EveryNSeconds(180), []) == []


def test_the_latest_duration_keeps_all_from_the_first_that_is_young_enough() -> None:
    infos = [at(0, 0), at(1, 100), at(2, 40), at(3, 120)]
    assert kept(LatestDuration(timedelta(seconds=60)), infos, now=150) == [1, 2, 3]
    assert kept(LatestDuration(timedelta(seconds=60)), infos, now=999) == []


MEASURED = [at(0, loss=3), at(1), at(2, loss=1), at(3, loss=2), at(4, loss=2), at(5)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"n": 2}, [0, 1, 4, 5]),
        ({"n": 2, "reverse": True}, [1, 2, 4, 5]),
        ({"n": 2, "keep_checkpoints_without_metrics": False}, [0, 4]),
        ({"n": 6, "keep_checkpoints_without_metrics": False}, [0, 1, 2, 3, 4, 5]),
        ({"n": 0}, []),
        ({}, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_the_best_stay_and_of_equals_the_later(options: dict[str, Any], expected: list[int]) -> None:
    assert kept(BestN(get_metric_fn=loss_of, **options), MEASURED) == expected


def test_when_a_step_is_saved() -> None:
    assert [step for step in range(7) if saves(FixedIntervalPolicy(3), at(step))] == [0, 3, 6]
    assert [step for step in range(7) if saves(SpecificStepsPolicy({1, 5}), at(step))] == [1, 5]
    assert saves(InitialSavePolicy(), at(7))
    assert not saves(InitialSavePolicy(), at(7), at(6))
    assert saves(PreemptionCheckpointingPolicy(), at(7), ending=True)
    assert not saves(PreemptionCheckpointingPolicy(), at(7))
    both = AnySavePolicy([FixedIntervalPolicy(3), SpecificStepsPolicy([4])])
    assert [step for step in range(7) if saves(both, at(step))] == [0, 3, 4, 6]
    assert not saves(AnySavePolicy([]), at(0))


def test_continuous_saving_waits_for_the_save_under_way_and_for_the_interval() -> None:
    policy = ContinuousCheckpointingPolicy(minimum_interval_secs=30)
    assert saves(policy, at(1))
    assert not saves(policy, at(1), saving=True)
    assert not saves(policy, at(2, 29.9), at(0, 0))
    assert saves(policy, at(2, 30), at(0, 0))
    assert saves(policy, at(3, 40), at(0, 30), at(1, 0))  # the latest counts, whatever its time
    assert saves(ContinuousCheckpointingPolicy(), at(2), at(1))
    assert not saves(ContinuousCheckpointingPolicy(), at(2), at(1), saving=True)


@pytest.mark.parametrize(
    "make",
    [
        lambda: FixedIntervalPolicy(0),
        lambda: LatestN(-1),
        lambda: EveryNSteps(0),
        lambda: EveryNSteps(1, max_to_keep=-1),
        lambda: EveryNStepsClosest(0),
        lambda: EveryNSeconds(-1),
        lambda: BestN(get_metric_fn=loss_of, n=-1),
        lambda: AnyPreservationPolicy([]),
    ],
)
def test_policies_that_cannot_be_meant_are_refused_when_they_are_made(make: Any) -> None:
    with pytest.raises(InvalidArgumentError):
        make()


def test_every_policy_is_in_the_public_module() -> None:
    for name in ocdbt_py.policies.__all__:
        assert getattr(ocdbt_py.policies, name).__doc__
