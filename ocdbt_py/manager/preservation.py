"""Which steps stay? Policies with the names, the arguments and the answers of Orbax's.

A policy is any object with ``should_preserve(checkpoints, *, context)``, which returns a bool for each. ``checkpoints``
are in the manager's order and have ``step``, ``time`` (UTC, of the commit where it is known) and ``metrics``. The
manager asks when a save begins, the new step included, and deletes what was given up once that save is final.

The answers are Orbax's also where they surprise: :class:`BestN` may give up the step that was just saved.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, runtime_checkable

from ocdbt_py.errors import InvalidArgumentError
from ocdbt_py.manager.save_decisions import PolicyCheckpointInfo

__all__ = [
    "AnyPreservationPolicy",
    "BestN",
    "CustomSteps",
    "EveryNSeconds",
    "EveryNSteps",
    "EveryNStepsClosest",
    "LatestDuration",
    "LatestN",
    "PreservationContext",
    "PreservationPolicy",
    "PreserveAll",
]


@dataclass(frozen=True, kw_only=True)
class PreservationContext:
    """What else the answer may depend on. ``now``: the time, in UTC, as the manager's clock has it."""

    now: datetime = field(default_factory=lambda: datetime.now(UTC))


@runtime_checkable
class PreservationPolicy(Protocol):
    """Decides which steps stay."""

    def should_preserve(
        self, checkpoints: Sequence[PolicyCheckpointInfo], *, context: PreservationContext
    ) -> Sequence[bool]: ...


@dataclass(frozen=True)
class PreserveAll:
    """All of them."""

    def should_preserve(
        self, checkpoints: Sequence[PolicyCheckpointInfo], *, context: PreservationContext
    ) -> Sequence[bool]:
        return [True] * len(checkpoints)


@dataclass(frozen=True)
class LatestN:
    """The last ``n``; None: all."""

    n: int | None = None

    def __post_init__(self) -> None:
        _check_number("n", self.n)

    def should_preserve(
        self, checkpoints: Sequence[PolicyCheckpointInfo], *, context: PreservationContext
    ) -> Sequence[bool]:
        count = len(checkpoints)
        return [self.n is None or i >= count - self.n for i in range(count)]


@dataclass(frozen=True)
class EveryNSteps:
    """Multiples of ``interval_steps``; with ``exact_interval=False`` the first, and each that is at least so many steps
    after the last that stays. Of those the last ``max_to_keep`` (None, and as in Orbax 0 too: all)."""

    interval_steps: int
    exact_interval: bool = True
    max_to_keep: int | None = None

    def __post_init__(self) -> None:
        _check_interval("interval_steps", self.interval_steps)
        _check_number("max_to_keep", self.max_to_keep)

    def should_preserve(
        self, checkpoints: Sequence[PolicyCheckpointInfo], *, context: PreservationContext
    ) -> Sequence[bool]:
        if self.exact_interval:
            stay = [info.step % self.interval_steps == 0 for info in checkpoints]
        else:
            stay = _spaced([info.step for info in checkpoints], self.interval_steps)
        return _last(stay, self.max_to_keep)


@dataclass(frozen=True)
class EveryNStepsClosest:
    """The step nearest to each multiple of ``interval_steps`` (the later of two), and always the last step. Of those
    the last ``max_to_keep`` (None, and as in Orbax 0 too: all)."""

    interval_steps: int
    max_to_keep: int | None = None

    def __post_init__(self) -> None:
        _check_interval("interval_steps", self.interval_steps)
        _check_number("max_to_keep", self.max_to_keep)

    def should_preserve(
        self, checkpoints: Sequence[PolicyCheckpointInfo], *, context: PreservationContext
    ) -> Sequence[bool]:
        nearest: dict[int, tuple[int, int]] = {}  # which multiple -> (how far away, position)
        for i, info in enumerate(checkpoints):
            multiple = round(info.step / self.interval_steps)
            away = abs(info.step - multiple * self.interval_steps)
            if multiple not in nearest or away <= nearest[multiple][0]:
                nearest[multiple] = away, i
        chosen = {i for _, i in nearest.values()} | {len(checkpoints) - 1}
        return _last([i in chosen for i in range(len(checkpoints))], self.max_to_keep)


@dataclass(frozen=True)
class EveryNSeconds:
    """The first, and each whose time is at least ``interval_secs`` after that of the last that stays."""

    interval_secs: float

    def __post_init__(self) -> None:
        if self.interval_secs < 0:
            raise InvalidArgumentError(f"interval_secs is a number of seconds, not {self.interval_secs!r}")

    def should_preserve(
        self, checkpoints: Sequence[PolicyCheckpointInfo], *, context: PreservationContext
    ) -> Sequence[bool]:
        return _spaced([info.time for info in checkpoints], timedelta(seconds=self.interval_secs))


@dataclass(frozen=True)
class CustomSteps:
    """The steps that are listed."""

    steps: Collection[int]

    def should_preserve(
        self, checkpoints: Sequence[PolicyCheckpointInfo], *, context: PreservationContext
    ) -> Sequence[bool]:
        listed = set(self.steps)
        return [info.step in listed for info in checkpoints]


@dataclass(frozen=True, kw_only=True)
class BestN:
    """The ``n`` whose metrics ``get_metric_fn`` puts highest (``reverse=True``: lowest); of equals the later.

    None, or no more than ``n`` there: all. Steps without metrics stay beside them, unless
    ``keep_checkpoints_without_metrics`` is false.
    """

    get_metric_fn: Callable[[Any], float]
    reverse: bool = False
    n: int | None = None
    keep_checkpoints_without_metrics: bool = True

    def __post_init__(self) -> None:
        _check_number("n", self.n)

    def should_preserve(
        self, checkpoints: Sequence[PolicyCheckpointInfo], *, context: PreservationContext
    ) -> Sequence[bool]:
        if self.n is None or len(checkpoints) <= self.n:
            return [True] * len(checkpoints)
        if self.n == 0:
            return [False] * len(checkpoints)
        measured = [i for i, info in enumerate(checkpoints) if info.metrics is not None]
        ranked = sorted(measured, key=lambda i: self.get_metric_fn(checkpoints[i].metrics), reverse=self.reverse)
        best = set(ranked[-self.n :])
        return [
            self.keep_checkpoints_without_metrics if info.metrics is None else i in best
            for i, info in enumerate(checkpoints)
        ]


@dataclass(frozen=True)
class LatestDuration:
    """All from the first that is no older than ``duration``."""

    duration: timedelta

    def should_preserve(
        self, checkpoints: Sequence[PolicyCheckpointInfo], *, context: PreservationContext
    ) -> Sequence[bool]:
        oldest = getattr(context, "now", None) or datetime.now(UTC)
        stay = False
        answers = []
        for info in checkpoints:
            stay = stay or oldest - info.time <= self.duration
            answers.append(stay)
        return answers


@dataclass(frozen=True)
class AnyPreservationPolicy:
    """What any of the policies keeps."""

    policies: Sequence[PreservationPolicy]

    def __post_init__(self) -> None:
        if not self.policies:
            raise InvalidArgumentError("AnyPreservationPolicy of no policies would keep nothing; PreserveAll keeps all")

    def should_preserve(
        self, checkpoints: Sequence[PolicyCheckpointInfo], *, context: PreservationContext
    ) -> Sequence[bool]:
        answers = [policy.should_preserve(checkpoints, context=context) for policy in self.policies]
        return [any(each) for each in zip(*answers, strict=True)]


def _spaced(values: Sequence[Any], interval: Any) -> list[bool]:
    """The first, and each that is at least so far after the last that was taken."""
    taken: list[bool] = []
    last: Any = None
    for value in values:
        taken.append(last is None or value - last >= interval)
        last = value if taken[-1] else last
    return taken


def _last(stay: list[bool], count: int | None) -> list[bool]:
    """Of those that stay, the last so many; None and 0: all."""
    positions = [i for i, each in enumerate(stay) if each]
    if not count:
        return stay
    kept = set(positions[-count:])
    return [i in kept for i in range(len(stay))]


def _check_number(name: str, value: int | None) -> None:
    if value is not None and value < 0:
        raise InvalidArgumentError(f"{name} is a number of checkpoints, or None for all, not {value!r}")


def _check_interval(name: str, value: int) -> None:
    if value < 1:
        raise InvalidArgumentError(f"{name} is a positive number of steps, not {value!r}")
