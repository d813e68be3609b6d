"""Our policies beside Orbax's, and one run that both managers save in turn.

``test_orbax_manager*.py`` compare the managers call by call; this is about policies by themselves, and directories.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import pytest
from orbax.checkpoint.checkpoint_managers import preservation_policy as theirs_kept
from orbax.checkpoint.checkpoint_managers import save_decision_policy as theirs_saved

from conformance.servers.server import Server
from ocdbt_py import policies as ours
from ocdbt_py.checkpoint.restore import restore
from ocdbt_py.manager.listing import SavedStep
from ocdbt_py.manager.manager import CheckpointManager
from ocdbt_py.manager.options import CheckpointManagerOptions
from ocdbt_py.manager.watching import checkpoints_iterator, wait_for_new_checkpoint

START = datetime(2026, 1, 1, tzinfo=UTC)


def loss_of(metrics: Any) -> float:
    return float(metrics["loss"])


def random_steps(chance: random.Random) -> list[SavedStep]:
    """As a manager may have them: mostly ascending, some without metrics, losses that are equal."""
    steps = sorted(chance.sample(range(60), chance.randint(0, 12)))
    if len(steps) > 2 and chance.random() < 0.3:
        steps.append(steps.pop(chance.randrange(len(steps))))
    now, infos = START, []
    for step in steps:
        now += timedelta(seconds=chance.choice([0, 1, 10, 100, 180, 0.5]))
        infos.append(SavedStep(step, now, chance.choice([None, {"loss": chance.randint(0, 4)}])))
    return infos


def number(chance: random.Random) -> int | None:
    return chance.choice([None, 0, 1, 2, 3, 7])


def preservation(chance: random.Random, module: Any) -> Any:
    """One policy, of the module that is asked for; with the same chance they are the same."""
    kind = chance.randrange(9)
    if kind == 0:
        return module.PreserveAll()
    if kind == 1:
        return module.LatestN(number(chance))
    if kind == 2:
        return module.EveryNSeconds(chance.choice([0, 1, 100, 180]))
    if kind == 3:
        return module.EveryNSteps(chance.randint(1, 12), chance.random() < 0.5, number(chance))
    if kind == 4:
        return module.EveryNStepsClosest(chance.randint(1, 12), number(chance))
    if kind == 5:
        return module.CustomSteps(steps=[chance.randrange(60) for _ in range(20)])
    if kind == 6:
        reverse, with_others = chance.random() < 0.5, chance.random() < 0.5
        return module.BestN(
            get_metric_fn=loss_of, reverse=reverse, n=number(chance), keep_checkpoints_without_metrics=with_others
        )
    if kind == 7:
        return module.LatestDuration(timedelta(days=chance.choice([1, 100_000])))
    return module.AnyPreservationPolicy([preservation(chance, module) for _ in range(chance.randint(1, 3))])


def decision(chance: random.Random, module: Any) -> Any:
    kind = chance.randrange(5)
    if kind == 0:
        return module.FixedIntervalPolicy(chance.randint(1, 9))
    if kind == 1:
        return module.SpecificStepsPolicy({chance.randrange(60) for _ in range(20)})
    if kind == 2:
        return module.PreemptionCheckpointingPolicy()
    if kind == 3:
        return module.InitialSavePolicy()
    return module.AnySavePolicy([decision(chance, module) for _ in range(chance.randint(0, 3))])


def test_every_preservation_policy_answers_as_orbax_s() -> None:
    for seed in range(3000):
        infos = random_steps(random.Random(seed))
        mine, its = (preservation(random.Random(seed), module) for module in (ours, theirs_kept))
        answer = mine.should_preserve(infos, context=ours.PreservationContext())
        expected = its.should_preserve(infos, context=theirs_kept.PreservationContext())
        assert (list(answer), mine) == (list(expected), mine)


def test_every_save_decision_policy_answers_as_orbax_s() -> None:
    for seed in range(3000):
        chance = random.Random(seed)
        infos = random_steps(chance)
        asked = SavedStep(chance.randrange(60), START + timedelta(seconds=chance.randrange(500)))
        state = {"is_saving_in_progress": chance.random() < 0.5, "reached_preemption": chance.random() < 0.5}
        mine, its = (decision(random.Random(seed), module) for module in (ours, theirs_saved))
        answer = mine.should_save(asked, infos, context=ours.DecisionContext(**state))
        context = theirs_saved.DecisionContext(multiprocessing_options=ocp.options.MultiprocessingOptions(), **state)
        assert (answer, mine) == (its.should_save(asked, infos, context=context), mine)


def test_continuous_saving_answers_as_orbax_s() -> None:
    for seed in range(60):  # Orbax's asks its coordination service each time
        chance = random.Random(seed)
        infos = random_steps(chance)
        asked = SavedStep(70 + seed, START + timedelta(seconds=chance.randrange(900)))
        state = {"is_saving_in_progress": chance.random() < 0.3, "reached_preemption": False}
        least = chance.choice([None, 0, 10, 180])
        mine = ours.ContinuousCheckpointingPolicy(minimum_interval_secs=least)
        its = theirs_saved.ContinuousCheckpointingPolicy(minimum_interval_secs=least)
        context = theirs_saved.DecisionContext(multiprocessing_options=ocp.options.MultiprocessingOptions(), **state)
        answer = mine.should_save(asked, infos, context=ours.DecisionContext(**state))
        assert answer == its.should_save(asked, infos, context=context)


# --- one run, saved by both


Manager = Callable[..., Any]


class Ours:
    def __init__(self, path: Path, **options: Any) -> None:
        self.manager = CheckpointManager(path, CheckpointManagerOptions(**options))

    def save(self, step: int, loss: float | None) -> bool:
        return self.manager.save(step, tree_of(step), metrics=None if loss is None else {"loss": loss})

    def restore(self, step: int) -> Any:
        return self.manager.restore(step, item="default")


class Theirs:
    def __init__(self, path: Path, **options: Any) -> None:
        self.manager = ocp.CheckpointManager(path, options=ocp.CheckpointManagerOptions(**options))

    def save(self, step: int, loss: float | None) -> bool:
        metrics = None if loss is None else {"loss": loss}
        return bool(self.manager.save(step, args=ocp.args.PyTreeSave(tree_of(step)), metrics=metrics))

    def restore(self, step: int) -> Any:
        return self.manager.restore(step, args=ocp.args.PyTreeRestore())


def tree_of(step: int) -> dict[str, Any]:
    return {"w": np.full((4, 3), step, np.float32), "deep": {"b": np.arange(step + 1)}, "step": step}


def kept_by(options: dict[str, Any], saved: Sequence[tuple[int, float | None]]) -> list[int]:
    """What is to stay, by Orbax's rule, had all of it been saved by one manager."""
    infos: list[SavedStep] = []
    for step, loss in saved:
        infos.append(SavedStep(step, START, None if loss is None else {"loss": loss}))
        rule = CheckpointManagerOptions(**options).preservation_rule
        stays = rule.should_preserve(infos, context=ours.PreservationContext())
        infos = [info for info, each in zip(infos, stays, strict=True) if each]
    return [info.step for info in infos]


@pytest.mark.parametrize(
    "options",
    [
        {"max_to_keep": 2},
        {"max_to_keep": 1, "keep_period": 3, "step_prefix": "ckpt", "step_format_fixed_length": 5},
        {"max_to_keep": 2, "best_fn": loss_of, "best_mode": "min"},
    ],
    ids=["latest", "period and names", "best"],
)
@pytest.mark.parametrize("first", [Ours, Theirs])
def test_each_goes_on_where_the_other_stopped(first: type[Ours] | type[Theirs], options: Any, tmp_path: Path) -> None:
    sides = [first, Theirs if first is Ours else Ours]
    losses = [3.0, 1.0, 4.0, None, 5.0, 0.5, 2.0, 6.0]
    saved: list[tuple[int, float | None]] = []
    for step, loss in enumerate(losses):
        if step % 2 == 0:
            side = sides[step // 2 % 2](tmp_path, **options)
            expected = kept_by(options, saved)
            manager = side.manager
            assert list(manager.all_steps()) == expected
            assert manager.latest_step() == (expected[-1] if expected else None)
            if "best_fn" in options and saved:
                among = [(value, -at) for at, value in saved if value is not None and at in expected]
                assert manager.best_step() == -min(among)[1]
            for at in expected:
                np.testing.assert_equal(side.restore(at), tree_of(at))
        assert side.save(step, loss)
        saved.append((step, loss))
        if step % 2:
            side.manager.close()
    assert list(Ours(tmp_path, **options).manager.all_steps()) == kept_by(options, saved)
    assert sorted(path.name for path in tmp_path.iterdir() if "orbax" in path.name) == []


def test_times_metadata_and_what_is_left_behind_are_understood_by_both(tmp_path: Path) -> None:
    before = datetime.now(UTC)
    with CheckpointManager(tmp_path, metadata={"run": 1}) as mine:
        for step in (1, 2, 3):
            mine.save(step, tree_of(step), custom_metadata={"note": step})
    left = ["2.orbax-checkpoint-tmp-deleted", "4.orbax-checkpoint-tmp", "5.orbax-checkpoint-tmp-1234"]
    for name in left:
        (tmp_path / name / "default").mkdir(parents=True)
    its = ocp.CheckpointManager(tmp_path)
    assert list(its.all_steps()) == [1, 2, 3]
    assert its.metadata().custom_metadata == {"run": 1}
    assert its.metadata(2).custom_metadata == {"note": 2}
    with ocp.CheckpointManager(
        tmp_path, options=ocp.CheckpointManagerOptions(cleanup_tmp_directories=True), metadata={"run": 2}
    ) as its:
        its.save(6, args=ocp.args.StandardSave(tree_of(6)), custom_metadata={"note": 6})
    assert not [path for path in tmp_path.iterdir() if path.name in left]
    for name in left:
        (tmp_path / name / "default").mkdir(parents=True)
    mine = CheckpointManager(tmp_path, CheckpointManagerOptions(cleanup_tmp_directories=True), metadata={"run": 3})
    assert not [path for path in tmp_path.iterdir() if path.name in left]
    assert (mine.all_steps(), mine.metadata) == ([1, 2, 3, 6], {"run": 1})
    assert mine.info(6).custom_metadata == {"note": 6}
    assert before <= mine.info(1).time <= mine.info(6).time <= datetime.now(UTC)
    np.testing.assert_equal(mine.restore(), tree_of(6))


# --- on other storages


@pytest.mark.parametrize("name", ["seaweedfs", "gcs_server", "azurite", "sftp_server"])
def test_a_run_on_a_server_goes_on_and_is_watched(name: str, request: pytest.FixtureRequest) -> None:
    server: Server = request.getfixturevalue(name)
    url, storage = server.url("run"), dict(server.storage_options)
    options = CheckpointManagerOptions(max_to_keep=2, best_fn=loss_of, cleanup_tmp_directories=True)
    for start in (0, 3):
        with CheckpointManager(url, options, metadata={"run": start}, storage_options=storage) as manager:
            assert manager.latest_step() == (start - 1 if start else None)
            for step in range(start, start + 3):
                assert manager.save(step, tree_of(step), metrics={"loss": step})
    with CheckpointManager(url, CheckpointManagerOptions(read_only=True), storage_options=storage) as manager:
        assert (manager.all_steps(), manager.latest_step()) == ([4, 5], 5)
        assert (manager.metrics(4), manager.metadata) == ({"loss": 4}, {"run": 0})
        np.testing.assert_equal(manager.restore(4, item="default"), tree_of(4))
    found = checkpoints_iterator(url, timeout=0, seconds_to_sleep=0, storage_options=storage)
    assert next(found) == 5
    with wait_for_new_checkpoint(url, until_step=5, snapshots=True, storage_options=storage) as watched:
        copy = f"{url}/_SNAPSHOTS/{watched}"
        np.testing.assert_equal(restore(copy, item="default", storage_options=storage), tree_of(5))
    with CheckpointManager(url, options, storage_options=storage) as manager:
        manager.delete(5)
        manager.delete(4)
        assert manager.latest_step() is None
