"""Saves under way, saves that fail, and runs that change from one library to the other: Orbax's manager and ours."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as orbax
import pytest
from absl import logging as absl_logging

import ocdbt_py.interop.orbax as ours
from conformance.orbax_managers import Clock, Raised, Run, one_clock, outcome

LIBRARIES = pytest.mark.parametrize("library", [orbax, ours], ids=["orbax", "ours"])


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> None:
    absl_logging.set_verbosity(absl_logging.FATAL)


@pytest.fixture
def clock() -> Iterator[Clock]:
    with one_clock() as clock:
        yield clock


def loss(metrics: Any) -> float:
    return float(metrics["loss"])


class Gate:
    """Holds every save right before its end, until opened."""

    def __init__(self) -> None:
        self._is_open = threading.Event()

    def wait(self) -> None:
        assert self._is_open.wait(60)

    def open(self) -> None:
        self._is_open.set()


def continuous(ocp: Any) -> dict[str, Any]:
    policies = ocp.checkpoint_managers.save_decision_policy
    return {"save_decision_policy": policies.ContinuousCheckpointingPolicy()}


def unwatched(ocp: Any) -> dict[str, Any]:
    return {**continuous(ocp), "enable_should_save_is_saving_in_progress_check": False}


@pytest.mark.parametrize(
    "settings",
    [
        lambda ocp: {"max_to_keep": 1},
        lambda ocp: {"max_to_keep": 1, "best_fn": loss},
        lambda ocp: {"max_to_keep": 0},
        continuous,
        unwatched,
    ],
    ids=["max_to_keep", "best_fn", "none is kept", "continuous", "without the check"],
)
def test_while_a_save_is_under_way_both_know_of_the_same_steps(
    settings: Callable[[Any], dict[str, Any]], tmp_path: Path, clock: Clock
) -> None:
    def seen_by(library: Any) -> list[Any]:
        gates = [Gate()]
        gates[0].open()
        directory = tmp_path / library.__name__
        directory.mkdir()
        waiting = library.options.AsyncOptions(post_finalization_callback=lambda: gates[-1].wait())
        run = Run(library, directory, lambda ocp: {**settings(ocp), "async_options": waiting})
        manager = run.manager
        for step, value in enumerate([0.3, 0.9, 0.5]):
            run.save(step, {}, metrics={"loss": value})
        gates.append(Gate())
        saved = manager.save(3, args=library.args.JsonSave({}), metrics={"loss": 0.4})
        seen = [
            saved,
            manager.is_saving_in_progress(),
            manager.all_steps(),
            manager.latest_step(),
            manager.best_step(),
            [manager.should_save(step) for step in (2, 3, 4)],
        ]
        gates[-1].open()
        manager.wait_until_finished()
        seen += [manager.is_saving_in_progress(), manager.all_steps(), manager.should_save(4), run.directories()]
        manager.close()
        return seen

    assert seen_by(orbax) == seen_by(ours)


def fail_saves(patch: pytest.MonkeyPatch) -> None:
    """Have every save of a JSON item fail in the background, in both libraries."""
    from orbax.checkpoint._src.handlers.json_checkpoint_handler import JsonCheckpointHandler

    from ocdbt_py.checkpoint import staging

    async def theirs(self: Any, value: Any, directory: Any) -> None:
        raise OSError("the disk is full")

    def mine(self: Any, *args: Any, **kwargs: Any) -> None:
        raise OSError("the disk is full")

    patch.setattr(JsonCheckpointHandler, "_save_fn", theirs)
    patch.setattr(staging._Renamed, "publish", mine)


@pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning")  # Orbax lets go of what it began
@pytest.mark.parametrize("told_by", ["wait_until_finished", "close", "the next save"])
def test_a_save_that_failed_deletes_nothing_and_is_told_once(told_by: str, tmp_path: Path, clock: Clock) -> None:
    def seen_by(library: Any) -> list[Any]:
        directory = tmp_path / library.__name__
        directory.mkdir()
        run = Run(library, directory, lambda ocp: {"max_to_keep": 2})
        for step in range(3):
            run.save(step, {})
        manager = run.manager
        with pytest.MonkeyPatch.context() as patch:
            fail_saves(patch)
            assert manager.save(3, args=library.args.JsonSave({}))
            ask = {
                "the next save": lambda: manager.save(4, args=library.args.JsonSave({})),
                "close": manager.close,
                "wait_until_finished": manager.wait_until_finished,
            }
            told = outcome(ask[told_by])
        assert isinstance(told, Raised)
        finished = [name for name in run.directories() if "tmp" not in name]
        seen = [told, finished, manager.latest_step(), 3 in manager.all_steps()]
        if told_by != "close":
            manager.wait_until_finished()
            manager.reload()
            seen += [manager.all_steps(), run.save(4, {}), manager.all_steps(), manager.is_saving_in_progress()]
            manager.close()
        return seen

    assert seen_by(orbax) == seen_by(ours)
    gc.collect()


def test_a_run_changes_from_one_library_to_the_other_and_back(tmp_path: Path, clock: Clock) -> None:
    """The retained steps are those of a run that stays with Orbax."""

    def settings(ocp: Any) -> dict[str, Any]:
        policies = ocp.checkpoint_managers.preservation_policy
        return {
            "best_fn": loss,
            "preservation_policy": policies.AnyPreservationPolicy(
                [
                    policies.LatestN(2),
                    policies.EveryNSeconds(100),
                    policies.BestN(get_metric_fn=loss, n=1, keep_checkpoints_without_metrics=False),
                ]
            ),
        }

    def tree(step: int) -> dict[str, Any]:
        return {"w": np.full((3, 4), step, np.float32), "layers": [np.arange(step + 1), {"b": 1.5}], "step": step}

    directories = {name: tmp_path / name for name in ("staying", "changing")}
    for directory in directories.values():
        directory.mkdir()
    rng = np.random.default_rng(6)
    step = 0
    for era in range(4):
        losses = rng.permutation(4) / 10
        start = clock.ns
        answers = []
        for name, library in (("staying", orbax), ("changing", orbax if era % 2 else ours)):
            clock.ns = start
            manager = library.CheckpointManager(
                directories[name], options=library.CheckpointManagerOptions(**settings(library))
            )
            for i, value in enumerate(losses):
                args = library.args.StandardSave(tree(step + i))
                assert manager.save(step + i, args=args, metrics={"loss": float(value)} if i != 2 else None)
                clock.advance(40)
            manager.wait_until_finished()
            restored = manager.restore(manager.best_step(), args=library.args.StandardRestore(tree(0)))
            answers.append(
                [
                    manager.all_steps(),
                    manager.latest_step(),
                    manager.best_step(),
                    [manager.metrics(each) for each in manager.all_steps()],
                    int(restored["w"][0, 0]),
                    restored["step"],
                ]
            )
            manager.close()
        assert answers[0] == answers[1], era
        step += len(losses)
    left = [sorted(path.name for path in directory.iterdir()) for directory in directories.values()]
    assert left[0] == left[1]


@LIBRARIES
def test_either_restores_without_arguments_what_the_other_saved(library: Any, tmp_path: Path) -> None:
    """A fresh manager that knows nothing of the items: the checkpoint says of which kind they are."""
    state = {"w": np.arange(6.0).reshape(2, 3), "n": 3}
    other = ours if library is orbax else orbax
    args = library.args
    with library.CheckpointManager(tmp_path) as manager:
        manager.save(
            1,
            args=args.Composite(
                state=args.StandardSave(state),
                tree=args.PyTreeSave({"name": "run", "none": None, "list": [1, 2.5]}),
                notes=args.JsonSave({"epoch": [1, 2]}),
                array=args.ArraySave(np.arange(5)),
                number=args.ArraySave(7),
                numpy_key=args.NumpyRandomKeySave(np.random.RandomState(5).get_state()),
                numpy_dict=args.NumpyRandomKeySave(np.random.RandomState(5).get_state(legacy=False)),
            ),
            custom_metadata={"lr": 0.1},
        )
    with other.CheckpointManager(tmp_path) as manager:
        found = manager.restore(1)
        metadata = manager.metadata(1)
    np.testing.assert_array_equal(found.state["w"], state["w"])
    assert found.state["n"] == 3
    assert found["tree"] == {"name": "run", "none": None, "list": [1, 2.5]}
    assert found.notes == {"epoch": [1, 2]}
    np.testing.assert_array_equal(found.array, np.arange(5))
    assert found.number == 7
    for key in (found.numpy_key, found.numpy_dict):
        generator = np.random.RandomState(0)
        generator.set_state(key)
        assert generator.randint(1 << 30) == np.random.RandomState(5).randint(1 << 30)
    assert metadata.custom_metadata == {"lr": 0.1}
    assert set(metadata.item_handlers) == set(found)


@pytest.mark.filterwarnings("ignore:Sharding info not provided:UserWarning", "ignore:No sharding was given:UserWarning")
@LIBRARIES
def test_either_restores_random_keys_that_the_other_saved(library: Any, tmp_path: Path) -> None:
    import jax

    other = ours if library is orbax else orbax
    args = library.args
    keys = {"typed": jax.random.key(3), "raw": jax.random.PRNGKey(4)}
    with library.CheckpointManager(tmp_path) as manager:
        manager.save(0, args=args.Composite(**{name: args.JaxRandomKeySave(key) for name, key in keys.items()}))
    with other.CheckpointManager(tmp_path) as manager:
        restore = {name: other.args.JaxRandomKeyRestore() for name in keys}
        found = manager.restore(0, args=other.args.Composite(**restore))
    for name, key in keys.items():
        assert found[name].dtype == key.dtype
        assert jax.random.bits(found[name]) == jax.random.bits(key)


@pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning")  # Orbax lets go of what it began
def test_the_rules_of_one_item_and_of_several_are_the_same(tmp_path: Path, clock: Clock) -> None:
    """Which kind a manager is, what it takes, and what it says of what it does not take."""

    def answers(ocp: Any) -> list[Any]:
        root = tmp_path / ocp.__name__
        args = ocp.args
        heard: list[Any] = []

        def hear(call: Callable[[], Any]) -> None:
            heard.append(outcome(call))

        def manager(name: str, **kwargs: Any) -> Any:
            return ocp.CheckpointManager(root / name, **kwargs)

        # a refused save may leave Orbax making a directory in the background: no step is refused and saved later
        one = manager("one", item_handlers=ocp.StandardCheckpointHandler())
        hear(lambda: one.restore(None))
        hear(lambda: one.restore(4))
        hear(lambda: one.save(0))
        hear(lambda: one.save(0, args={"w": 1}))
        hear(lambda: one.save(50, args.StandardSave({"w": 1})))
        hear(lambda: one.save(51, args=args.Composite(a=args.StandardSave({"w": 1}))))
        hear(lambda: one.save(52, args=args.JsonSave({"w": 1})))
        hear(lambda: one.save(53, args=args.StandardSave({"w": 1, "s": "text"})))
        hear(lambda: one.save(54, args=args.StandardSave(None)))
        hear(lambda: one.save(55, args=args.StandardSave(np.float32(3.0))))
        hear(lambda: one.save(0, args=args.StandardSave({"w": 1})))
        one.wait_until_finished()
        hear(lambda: one.save(1, {"w": 2}))
        one.wait_until_finished()
        hear(lambda: one.restore(1))
        hear(lambda: one.restore(1, {"w": 0}))
        hear(lambda: one.restore(0, args=args.Composite(default=args.StandardRestore())))
        hear(lambda: one.restore(0, args=args.StandardRestore({"w": 0, "extra": 0})))
        hear(lambda: one.restore(0, args=args.StandardRestore({"w": 0})))
        hear(lambda: one.restore(0, args=args.JsonRestore()))
        hear(lambda: one.restore(None, directory=root / "one"))
        hear(lambda: one.item_metadata(None))
        hear(lambda: one.item_metadata(9))
        hear(lambda: one.delete(9))
        one.close()

        several = manager("several", item_names=("a", "b"))
        hear(lambda: several.save(50, args=args.StandardSave({"w": 1})))
        hear(lambda: several.save(0, args=args.Composite(a=args.StandardSave({"w": 1}), b=args.JsonSave([1]))))
        several.wait_until_finished()
        hear(lambda: several.save(51, args=args.Composite(a=args.JsonSave([2]))))
        hear(lambda: several.save(52, args=args.Composite(c=args.JsonSave([2]))))
        hear(lambda: several.save(53, args=args.Composite(a=None)))
        hear(lambda: dict(several.restore(0)))
        hear(lambda: dict(several.restore(0, args=args.Composite(b=args.JsonRestore()))))
        hear(lambda: dict(several.restore(0, args=args.Composite(b=None))))
        hear(lambda: several.restore(0, args=args.Composite(d=args.JsonRestore())))
        hear(lambda: several.restore(0, args=args.JsonRestore()))
        several.close()

        again = manager("several")
        hear(lambda: dict(again.restore(0)))
        hear(lambda: again.restore(0, args=args.StandardRestore()))
        again.close()

        hear(lambda: manager("x", item_names=("a",), item_handlers=ocp.StandardCheckpointHandler()))
        registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
        registry.add("state", args.StandardSave)
        registry.add("state", args.StandardRestore)
        hear(lambda: registry.add("state", args.StandardSave))
        hear(lambda: registry.get("state", args.JsonSave))
        hear(lambda: manager("x", item_names=("a",), handler_registry=registry))
        hear(lambda: manager("x", options=ocp.CheckpointManagerOptions(best_mode="most")))
        hear(lambda: manager("x", options=ocp.CheckpointManagerOptions(max_to_keep=-1)))
        policy = ocp.checkpoint_managers.preservation_policy.LatestN(2)
        hear(lambda: manager("x", options=ocp.CheckpointManagerOptions(max_to_keep=1, preservation_policy=policy)))
        hear(lambda: manager("x", options=ocp.CheckpointManagerOptions(todelete_subdir="a", todelete_full_path="b")))
        registered = manager("registered", handler_registry=registry)
        hear(lambda: registered.save(0, args=args.Composite(state=args.StandardSave({"w": 1}))))
        registered.wait_until_finished()
        hear(lambda: dict(registered.restore(0)))
        hear(lambda: registered.restore(0, args=args.Composite(state=args.PyTreeRestore())))
        registered.close()

        old = manager("old", checkpointers={"a": ocp.Checkpointer(ocp.JsonCheckpointHandler())})
        hear(lambda: old.save(0, {"a": {"x": 1}}))
        old.wait_until_finished()
        hear(lambda: dict(old.restore(0, {"a": None})))
        hear(lambda: old.save(1, {"z": {"x": 1}}))
        old.close()
        plain = manager("plain", checkpointers=ocp.PyTreeCheckpointer())
        hear(lambda: plain.save(0, {"x": "text"}, save_kwargs={"save_args": None}))
        hear(lambda: plain.restore(0))
        plain.close()

        described = manager("described", metadata={"lang": "en"})
        hear(lambda: described.metadata().custom_metadata)
        described.close()
        described = manager("described", metadata={"lang": "fr"})
        hear(lambda: described.metadata().custom_metadata)
        described.close()
        return heard

    theirs, mine = answers(orbax), answers(ours)
    gc.collect()
    assert [(i, one, other) for i, (one, other) in enumerate(zip(theirs, mine, strict=True)) if one != other] == []
