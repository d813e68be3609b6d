"""Our drop-in ``CheckpointManager`` against Orbax's: the same random life of a run leaves the same steps and answers.

Each setting is lived through a few times by both managers at once, under one clock: saves with and without metrics,
forced ones and repeated ones, time that passes, deletions, directories that come and go behind the manager's back,
reloads, restarts. After each thing done, everything that can be asked must have one answer.
"""

from __future__ import annotations

import datetime
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import orbax.checkpoint as orbax
import pytest
from absl import logging as absl_logging

import ocdbt_py.interop.orbax as ours
from conformance.orbax_managers import Clock, Raised, Run, one_clock, outcome

LIVES = 1
"""More of them, for a night."""

Options = Callable[[Any], dict[str, Any]]


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> None:
    absl_logging.set_verbosity(absl_logging.ERROR)


@pytest.fixture
def clock() -> Iterator[Clock]:
    with one_clock() as clock:
        yield clock


def loss(metrics: Any) -> float:
    return float(metrics["loss"])


@dataclass(frozen=True)
class OddSteps:
    """A policy of a user's own; no class of either library is behind it."""

    def should_save(self, step: Any, previous_steps: Any, *, context: Any) -> bool:
        return step.step % 2 == 1 and len(previous_steps) < 6


@dataclass(frozen=True)
class LastAndPrimes:
    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
        return [info.step in (2, 3, 5, 7, 11, 13) or info is checkpoints[-1] for info in checkpoints]


def keep(name: str, *args: Any, **kwargs: Any) -> Options:
    return lambda ocp: {
        "preservation_policy": getattr(ocp.checkpoint_managers.preservation_policy, name)(*args, **kwargs)
    }


def decide(name: str, *args: Any, **kwargs: Any) -> Options:
    return lambda ocp: {
        "save_decision_policy": getattr(ocp.checkpoint_managers.save_decision_policy, name)(*args, **kwargs)
    }


def both(*parts: Options) -> Options:
    return lambda ocp: {name: value for part in parts for name, value in part(ocp).items()}


def options(**given: Any) -> Options:
    return lambda ocp: dict(given)


def any_kept(ocp: Any) -> dict[str, Any]:
    policies = ocp.checkpoint_managers.preservation_policy
    return {
        "preservation_policy": policies.AnyPreservationPolicy(
            [policies.LatestN(2), policies.EveryNSeconds(180), policies.BestN(get_metric_fn=loss, n=1)]
        )
    }


def any_saved(ocp: Any) -> dict[str, Any]:
    policies = ocp.checkpoint_managers.save_decision_policy
    return {
        "save_decision_policy": policies.AnySavePolicy(
            [policies.FixedIntervalPolicy(4), policies.SpecificStepsPolicy([3, 7]), policies.InitialSavePolicy()]
        )
    }


SETTINGS: dict[str, Options] = {
    "defaults": options(),
    "max_to_keep": options(max_to_keep=3),
    "max_to_keep=0": options(max_to_keep=0),
    "save_interval_steps": options(save_interval_steps=3, max_to_keep=2),
    "save_on_steps": options(save_interval_steps=5, save_on_steps={3, 4, 11}),
    "keep_period": options(max_to_keep=1, keep_period=4),
    "keep_time_interval": options(max_to_keep=1, keep_time_interval=datetime.timedelta(seconds=200)),
    "best_fn max": options(max_to_keep=2, best_fn=loss),
    "best_fn min": options(max_to_keep=2, best_fn=loss, best_mode="min"),
    "best_fn without max_to_keep": options(best_fn=loss, best_mode="min"),
    "best_fn, metricless go": options(max_to_keep=2, best_fn=loss, keep_checkpoints_without_metrics=False),
    "best_fn and keep_period": options(max_to_keep=1, best_fn=loss, keep_period=3),
    "prevent_write_metrics": options(max_to_keep=2, best_fn=loss, prevent_write_metrics=True),
    "step_prefix": options(step_prefix="step_", max_to_keep=3),
    "step_format_fixed_length": options(step_prefix="ckpt", step_format_fixed_length=1, max_to_keep=3),
    "fixed length of 6": options(step_format_fixed_length=6),
    "should_save_fn": options(should_save_fn=lambda step, latest: latest is None or step >= latest + 2),
    "todelete_subdir": options(max_to_keep=2, todelete_subdir="trash"),
    "enable_background_delete": options(max_to_keep=2),
    "synchronous": options(max_to_keep=2, enable_async_checkpointing=False),
    "lightweight_initialize": options(max_to_keep=3, lightweight_initialize=True),
    "cleanup_tmp_directories": options(max_to_keep=3, cleanup_tmp_directories=True),
    "FixedIntervalPolicy": decide("FixedIntervalPolicy", 3),
    "SpecificStepsPolicy": decide("SpecificStepsPolicy", [1, 2, 9]),
    "ContinuousCheckpointingPolicy": decide("ContinuousCheckpointingPolicy"),
    "continuous, minimum interval": decide("ContinuousCheckpointingPolicy", minimum_interval_secs=90),
    "InitialSavePolicy": decide("InitialSavePolicy"),
    "PreemptionCheckpointingPolicy": decide("PreemptionCheckpointingPolicy"),
    "AnySavePolicy": any_saved,
    "a policy of one's own": options(save_decision_policy=OddSteps(), preservation_policy=LastAndPrimes()),
    "LatestN": keep("LatestN", 2),
    "LatestN of all": keep("LatestN"),
    "EveryNSteps": keep("EveryNSteps", 3),
    "EveryNSteps, inexact": keep("EveryNSteps", 3, exact_interval=False),
    "EveryNSteps, at most": keep("EveryNSteps", 2, max_to_keep=2),
    "EveryNStepsClosest": keep("EveryNStepsClosest", 4, 2),
    "EveryNSeconds": keep("EveryNSeconds", 180),
    "CustomSteps": keep("CustomSteps", steps=[2, 3, 8]),
    "BestN": keep("BestN", get_metric_fn=loss, n=2),
    "BestN reversed": keep("BestN", get_metric_fn=loss, n=2, reverse=True, keep_checkpoints_without_metrics=False),
    "BestN and best_fn": both(options(best_fn=loss), keep("BestN", get_metric_fn=loss, n=3)),
    "LatestDuration": keep("LatestDuration", datetime.timedelta(seconds=250)),
    "PreserveAll": keep("PreserveAll"),
    "AnyPreservationPolicy": any_kept,
}


class Pair:
    """Orbax's run and ours, and what is done to both."""

    def __init__(self, directory: Path, settings: Options, clock: Clock, random: random.Random) -> None:
        self.clock = clock
        self.random = random
        self.step = 0
        self.log: list[str] = []
        self.runs: list[Run] = []
        for name, library in (("orbax", orbax), ("ours", ours)):
            (directory / name).mkdir(parents=True)
            self.runs.append(Run(library, directory / name, settings))

    def do(self, what: str, act: Callable[[Run], Any]) -> Any:
        self.log.append(what)
        theirs, mine = (outcome(partial(act, run)) for run in self.runs)
        assert theirs == mine, f"{what}: Orbax {theirs!r}, ours {mine!r}\n" + "\n".join(self.log)
        return theirs

    def live(self, events: Sequence[tuple[Callable[[Pair], None], int]], count: int) -> None:
        self.compare()
        for event in self.random.choices([event for event, _ in events], [weight for _, weight in events], k=count):
            event(self)
            self.compare()

    def close(self) -> None:
        for run in self.runs:
            run.manager.close()

    def compare(self) -> None:
        theirs, mine = (run.state() for run in self.runs)
        assert theirs == mine, "\n".join(self.log)

    # --- things that happen in the life of a run

    def time_passes(self) -> None:
        self.clock.advance(self.random.choice([1, 30, 70, 100, 150]))

    def save(self) -> None:
        self.step += self.random.choice([1, 1, 1, 2])
        self._save(self.step, {})

    def save_with_metrics(self) -> None:
        self.step += 1
        self._save(self.step, {"metrics": {"loss": self.random.choice([0.1, 0.2, 0.3, 0.4, 0.5])}})

    def save_again_or_earlier(self) -> None:
        step = self.random.randrange(self.step + 1)
        if (self.runs[0].directory / "trash").exists():
            step = self.step  # Orbax cannot move a step there that was moved there before
        self._save(step, {"force": self.random.random() < 0.7})

    def save_by_force(self) -> None:
        self.step += 1
        self._save(self.step, {"force": True, "custom_metadata": {"by": "force"}})

    def _save(self, step: int, how: dict[str, Any]) -> None:
        value = {"step": step, "at": self.clock.ns}
        saved = self.do(f"save {step} {how}", lambda run: run.save(step, value, **how))
        if isinstance(saved, Raised):
            # Orbax stays "saving" for ever after a step that exists; a manager that does not is what anybody expects
            self.restart()

    def delete(self) -> None:
        step = self._some_step()
        self.do(f"delete {step}", lambda run: run.manager.delete(step))

    def reload(self) -> None:
        self.do("reload", lambda run: run.manager.reload())

    def restart(self) -> None:
        self.do("restart", lambda run: run.reopen())

    def restore(self) -> None:
        step = self.random.choice([None, self._some_step()])
        self.do(f"restore {step}", lambda run: run.restore(step))

    def metrics(self) -> None:
        step = self._some_step()
        self.do(f"metrics {step}", lambda run: run.manager.metrics(step))

    def metadata(self) -> None:
        step = self._some_step()

        def look(run: Run) -> Any:
            found = run.manager.metadata(step)
            return found.item_handlers, found.metrics, found.custom_metadata, found.commit_timestamp_nsecs

        self.do(f"metadata {step}", look)

    def somebody_removes_a_step(self) -> None:
        names = sorted(set(self.runs[0].directories()) - {"metadata", "trash"})
        if names:
            name = self.random.choice(names)
            self.do(f"remove {name}", lambda run: run.remove(name))
            self.reload()

    def somebody_leaves_something(self) -> None:
        name = self.random.choice([f"{self.step + 1}.orbax-checkpoint-tmp", "notes", "0008", "step_x", "metadata"])
        self.do(f"mkdir {name}", lambda run: (run.directory / name).mkdir(exist_ok=True))
        self.reload()

    def _some_step(self) -> int:
        steps = self.runs[0].manager.all_steps()
        step: int = self.random.choice([*steps, self.step + 7])
        return step


EVENTS = [
    (Pair.save, 8),
    (Pair.save_with_metrics, 8),
    (Pair.time_passes, 8),
    (Pair.save_again_or_earlier, 2),
    (Pair.save_by_force, 2),
    (Pair.delete, 2),
    (Pair.reload, 1),
    (Pair.restart, 2),
    (Pair.restore, 2),
    (Pair.metrics, 1),
    (Pair.metadata, 1),
    (Pair.somebody_removes_a_step, 1),
    (Pair.somebody_leaves_something, 1),
]


@pytest.mark.parametrize("name", SETTINGS)
def test_the_same_life_leaves_the_same_steps_and_answers(name: str, tmp_path: Path, clock: Clock) -> None:
    for seed in range(LIVES):
        pair = Pair(tmp_path / str(seed), SETTINGS[name], clock, random.Random(f"{name} {seed}"))
        pair.live(EVENTS, 36)
        pair.close()


def test_a_read_only_manager_changes_nothing_and_answers_as_orbax_does(tmp_path: Path, clock: Clock) -> None:
    pair = Pair(tmp_path, options(best_fn=loss), clock, random.Random(0))
    pair.live([(Pair.save_with_metrics, 1), (Pair.time_passes, 1)], 10)
    pair.close()
    directories = pair.runs[0].directories()
    for run in pair.runs:
        run.settings = options(read_only=True, max_to_keep=1, best_fn=loss)
        run.open()
    # forced, Orbax would write even so
    forced = (Pair.save_by_force, Pair.save_again_or_earlier, Pair.somebody_removes_a_step)
    pair.live([(event, weight) for event, weight in EVENTS if event not in forced], 30)
    assert set(directories) <= set(pair.runs[1].directories())
    assert pair.runs[1].manager.save(99, args=ours.args.JsonSave({}), force=True) is False
    pair.close()
