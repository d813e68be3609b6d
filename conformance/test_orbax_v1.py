"""The v1 API beside Orbax's own: the same calls have the same outcomes, and each loads what the other saved."""

from __future__ import annotations

import builtins
import gc
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as theirs
import pytest

from ocdbt_py.interop.orbax import v1 as ours

pytestmark = [
    pytest.mark.filterwarnings("ignore:Sharding info not provided"),
    pytest.mark.filterwarnings("ignore:No sharding was given"),
    pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning"),
    # What Orbax leaves behind of a load that failed is collected some time later.
    pytest.mark.filterwarnings("ignore:.*never awaited:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Collected here at the latest, and not during a test of somebody else's."""
    yield
    gc.collect()


SIDES = {"Orbax": theirs.v1, "ours": ours}
every_pair = pytest.mark.parametrize(("writer", "reader"), [(w, r) for w in SIDES for r in SIDES if w != r])


def trees() -> dict[str, Any]:
    return {
        "arrays": {"w": jnp.arange(6.0).reshape(2, 3), "b": np.arange(3), "h": jnp.ones(5, jnp.bfloat16)},
        "numbers": {"i": 3, "f": 1.5, "list": [1, (2.5,)], "s": "text", "n": None, "d": {}, "l": [], "t": ()},
        "narrow": {"x": np.array([1, 2], ml_dtypes.float8_e4m3fn), "y": np.array([1, -2], ml_dtypes.int4)},
        "deep": {"a": {"b": {"c.d": np.ones((2, 0 + 1)), "e/f": 1}}},
        "strings only": {"config": '{"class": "Functional"}'},
    }


def same(found: Any, wanted: Any) -> bool:
    """Values, types of leaves, and structure."""
    found_leaves, leaves = jax.tree.leaves(found), jax.tree.leaves(wanted)
    assert str(jax.tree.structure(found)) == str(jax.tree.structure(wanted))
    for value, other in zip(found_leaves, leaves, strict=True):
        assert isinstance(value, jax.Array) == isinstance(other, jax.Array)
        assert isinstance(value, np.ndarray) == isinstance(other, np.ndarray)
        if hasattr(other, "dtype"):
            assert value.dtype == other.dtype
            np.testing.assert_array_equal(np.asarray(value), np.asarray(other))
            assert getattr(value, "sharding", None) == getattr(other, "sharding", None)
        else:
            assert (type(value), value) == (type(other), other)
    return True


def attempt(call: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    try:
        return call(*arguments, **keywords)
    except Exception as error:
        return error


def assert_same_outcome(found: Any, wanted: Any, what: str) -> None:
    """The same value, or an error that whoever catches the other one catches too."""
    if isinstance(wanted, Exception):
        kind = next(each for each in type(wanted).__mro__ if vars(builtins).get(each.__name__) is each)
        assert isinstance(found, kind), f"{what}: {found!r}, not {wanted!r}"
    else:
        assert not isinstance(found, Exception), f"{what}: {found!r}, not {wanted!r}"
        if wanted is None or isinstance(wanted, bool | int | dict):
            assert same(found, wanted), what


# --- interchange


@every_pair
@pytest.mark.parametrize("name", trees())
@pytest.mark.parametrize("use_zarr3", [True, False], ids=["zarr3", "zarr2"])
def test_a_tree_that_either_saved_is_loaded_by_the_other(
    writer: str, reader: str, name: str, use_zarr3: bool, tmp_path: Path
) -> None:
    context = SIDES[writer].Context()
    context.array.saving.use_zarr3 = use_zarr3
    with context:
        SIDES[writer].save(tmp_path / "c", trees()[name], custom_metadata={"run": 1})
    assert same(SIDES[reader].load(tmp_path / "c"), SIDES[writer].load(tmp_path / "c"))
    assert same(SIDES[reader].load(tmp_path / "c", trees()[name]), trees()[name])
    found, wanted = (SIDES[side].metadata(tmp_path / "c") for side in (reader, writer))
    for each in ("custom_metadata", "init_timestamp_nsecs", "commit_timestamp_nsecs"):
        assert getattr(found, each) == getattr(wanted, each)
    assert str(jax.tree.structure(found.metadata)) == str(jax.tree.structure(wanted.metadata))
    for one, other in zip(jax.tree.leaves(found.metadata), jax.tree.leaves(wanted.metadata), strict=True):
        assert type(one).__name__ == type(other).__name__
        for each in ("shape", "dtype", "sharding"):
            assert getattr(one, each, None) == getattr(other, each, None)


@every_pair
def test_objects_that_either_saved_are_loaded_by_the_other(writer: str, reader: str, tmp_path: Path) -> None:
    SIDES[writer].save_checkpointables(tmp_path / "c", dict(trees()))
    found, wanted = (SIDES[side].load_checkpointables(tmp_path / "c") for side in (reader, writer))
    assert found.keys() == wanted.keys() == trees().keys()
    assert all(same(found[name], wanted[name]) for name in wanted)
    part = SIDES[reader].load_checkpointables(tmp_path / "c", {"numbers": None})
    assert part.keys() == {"numbers"}


@every_pair
def test_a_root_that_either_has_begun_is_gone_on_with_by_the_other(writer: str, reader: str, tmp_path: Path) -> None:
    def run(side: str, steps: range) -> None:
        policies = SIDES[side].training
        with policies.Checkpointer(
            tmp_path / "root",
            save_decision_policy=policies.save_decision_policies.FixedIntervalPolicy(2),
            preservation_policy=policies.preservation_policies.BestN(
                get_metric_fn=lambda metrics: metrics["loss"], reverse=True, n=2
            ),
            custom_metadata={"by": writer},
        ) as checkpointer:
            for step in steps:
                checkpointer.save(step, {"a": jnp.full(3, step)}, metrics={"loss": float(abs(step - 5))})

    run(writer, range(6))
    run(reader, range(6, 12))
    for side in SIDES.values():
        with side.training.Checkpointer(tmp_path / "root") as checkpointer:
            assert [known.step for known in checkpointer.checkpoints] == [4, 6]
            assert [known.metrics for known in checkpointer.checkpoints] == [{"loss": 1.0}, {"loss": 1.0}]
            assert same(checkpointer.load(), {"a": jnp.full(3, 6)})
            assert checkpointer.root_metadata().custom_metadata == {"by": writer}


# --- outcomes


def spec(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)  # type: ignore[no-untyped-call]


TREE: dict[str, Any] = {
    "a": jnp.arange(6.0).reshape(2, 3),
    "b": np.arange(3),
    "i": 3,
    "f": 1.5,
    "s": "hi",
    "l": [1, (2,)],
}

ABSTRACT: dict[str, Any] = {
    "nothing": None,
    "the tree": TREE,
    "other types": {**TREE, "a": spec(2, 3, dtype=jnp.bfloat16), "b": np.ndarray, "i": float, "f": int, "s": str},
    "an array for a number": {**TREE, "i": np.zeros(()), "f": spec()},
    "a missing leaf": {"a": spec(2, 3)},
    "an unknown leaf": {**TREE, "z": 1},
    "another shape": {**TREE, "a": spec(4, 3)},
    "placeholders": {**TREE, "a": ..., "b": ..., "l": [..., (...,)]},
    "a placeholder for a subtree": {**TREE, "l": ...},
    "other containers": {**TREE, "l": (1, [2])},
    "an object": {**TREE, "a": object()},
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("v1")
    theirs.v1.save(root / "v1", TREE)
    theirs.v1.save_checkpointables(root / "items", {"b": TREE, "a": TREE})
    theirs.PyTreeCheckpointer().save(root / "direct", TREE)
    with theirs.CheckpointManager(root / "managed") as manager:
        manager.save(1, args=theirs.args.StandardSave({"a": TREE["a"], "i": 3}))
    with theirs.CheckpointManager(root / "composite") as manager:
        manager.save(2, args=theirs.args.Composite(t=theirs.args.PyTreeSave(TREE), j=theirs.args.JsonSave({"x": [1]})))
    (root / "empty").mkdir()
    (root / "file").write_text("text")
    return root


OPTIONS = ["", "partial_load", "enable_padding_and_truncation"]
CASES = [(name, option) for name in ABSTRACT for option in OPTIONS]
CASES.remove(("placeholders", "partial_load"))  # Orbax asks whether ... is a class, and fails


@pytest.mark.parametrize(("name", "option"), CASES)
def test_loading_has_the_outcome_of_orbax(name: str, option: str, saved: Path) -> None:
    outcomes = []
    for side in SIDES.values():
        context = side.Context()
        context.pytree.loading.partial_load = option == "partial_load"
        context.array.loading.enable_padding_and_truncation = option == "enable_padding_and_truncation"
        with context:
            outcomes.append(attempt(side.load, saved / "v1", ABSTRACT[name]))
    assert_same_outcome(outcomes[1], outcomes[0], name)


PATHS = [
    "v1",
    "v1/state",
    "items",
    "direct",
    "managed",
    "managed/1",
    "managed/1/default",
    "composite/2",
    "absent",
]


@pytest.mark.parametrize("path", [*PATHS, "file"])
def test_every_kind_of_directory_has_the_outcomes_of_orbax(path: str, saved: Path) -> None:
    at = saved / path

    def outcomes(v1: Any) -> dict[str, Any]:
        return {
            "load": attempt(v1.load, at),
            **{f"load {name}": attempt(v1.load, at, checkpointable_name=name) for name in NAMES},
            "load_checkpointables": attempt(v1.load_checkpointables, at),
            "load_checkpointables j": attempt(v1.load_checkpointables, at, {"j": None}),
            "metadata": attempt(lambda: v1.metadata(at).metadata is not None),
            "checkpointables_metadata": attempt(lambda: sorted(v1.checkpointables_metadata(at).metadata)),
            "is_orbax_checkpoint": path == "file" or attempt(v1.is_orbax_checkpoint, at),
        }

    wanted, found = outcomes(theirs.v1), outcomes(ours)
    for what, each in wanted.items():
        assert_same_outcome(found[what], each, what)


def test_an_empty_directory_is_no_checkpoint_though_orbax_loads_nothing_from_it(saved: Path) -> None:
    assert theirs.v1.load_checkpointables(saved / "empty") == {}
    with pytest.raises(ours.errors.InvalidLayoutError):
        ours.load_checkpointables(saved / "empty")


NAMES = ["state", "t", "j", "a", "default", "metrics", "", None]


@pytest.mark.parametrize(
    "state", [{}, None, {"a": object()}, {"a": {1}}, {"a": None}, 3, jnp.ones(2), "text", {"a": b"bytes"}], ids=repr
)
def test_saving_has_the_outcome_of_orbax(state: Any, tmp_path: Path) -> None:
    wanted = attempt(theirs.v1.save, tmp_path / "theirs", state)
    found = attempt(ours.save, tmp_path / "ours", state)
    assert_same_outcome(found, wanted, repr(state))
    again = [attempt(side.save, tmp_path / name, TREE) for name, side in NAMED]
    assert_same_outcome(again[1], again[0], "again")


NAMED = [("theirs", theirs.v1), ("ours", ours)]


def test_every_public_name_of_orbax_is_here_or_known_to_be_missing() -> None:
    public = {name for name in dir(theirs.v1) if not name.startswith("_")}
    assert public - set(dir(ours)) == {"partial"}
    for module in ("training", "options", "handlers", "errors", "arrays", "tree", "path", "multihost"):
        names = {name for name in dir(getattr(theirs.v1, module)) if not name.startswith("_")}
        assert names - set(dir(getattr(ours, module))) <= {"pathways", "orbax"}, module


# --- deleting


@every_pair
def test_a_deletion_that_either_began_is_ended_by_the_other(
    writer: str, reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SIDES[writer].save_checkpointables(tmp_path / "c", {"a": TREE, "b": TREE})

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("the power is off")

    with monkeypatch.context() as patch:
        if writer == "ours":
            patch.setattr("ocdbt_py.interop.orbax.v1.deletion.retire", fail)
        else:
            patch.setattr("orbax.checkpoint.experimental.v1._src.deletion.path_utils.delete_path", fail)
        with pytest.raises(OSError, match="power"):
            SIDES[writer].delete(tmp_path / "c", checkpointable_name="a")
    for side in SIDES.values():
        with pytest.raises(RuntimeError):
            side.load_checkpointables(tmp_path / "c", {"a": None})
        assert side.load_checkpointables(tmp_path / "c").keys() == {"b"}
        with pytest.raises(RuntimeError):
            side.delete(tmp_path / "c", checkpointable_name="b")
    assert SIDES[reader].delete(tmp_path / "c", checkpointable_name="a")
    for side in SIDES.values():
        assert side.load_checkpointables(tmp_path / "c").keys() == {"b"}


# --- one sequence of calls after the other


class Run:
    """A checkpointer of either side, and the directory it works in."""

    def __init__(self, v1: Any, root: Path) -> None:
        self.v1, self.root = v1, root
        self.open()

    def open(self) -> None:
        training = self.v1.training
        keep = training.preservation_policies
        self.checkpointer = training.Checkpointer(
            self.root,
            save_decision_policy=training.save_decision_policies.AnySavePolicy(
                [
                    training.save_decision_policies.FixedIntervalPolicy(2),
                    training.save_decision_policies.SpecificStepsPolicy([5, 9]),
                ]
            ),
            preservation_policy=keep.AnyPreservationPolicy(
                [
                    keep.LatestN(2),
                    keep.EveryNSteps(6),
                    keep.BestN(get_metric_fn=lambda metrics: metrics["m"], n=1, keep_checkpoints_without_metrics=False),
                ]
            ),
        )

    def close(self) -> None:
        self.checkpointer.close()

    def do(self, what: str, step: int, metric: float | None) -> Any:
        state = {"step": step, "w": jnp.full(2, step)}
        metrics = None if metric is None else {"m": metric}
        found = self.checkpointer
        match what:
            case "save":
                return found.save(step, state, metrics=metrics)
            case "save async":
                response = found.save_async(step, state, metrics=metrics)
                return response is not None and response.result()
            case "force":
                return found.save_checkpointables(step, {"x": state, "y": {"s": "text"}}, metrics=metrics, force=True)
            case "overwrite":
                return found.save(step, state, metrics=metrics, overwrite=True, force=True)
            case "should save":
                return found.should_save(step)
            case "load":
                return found.load(step)
            case "load latest":
                return found.load_checkpointables()
            case "delete":
                return found.delete(step, missing_ok=metric is None)
            case "delete an object":
                return found.delete(step, checkpointable_name="x")
            case "reload":
                return found.reload()
            case "restart":
                self.close()
                return self.open()
        raise AssertionError(what)

    def state(self) -> dict[str, Any]:
        known = [(each.step, each.metrics) for each in self.checkpointer.checkpoints]
        steps = sorted(path for path in self.root.iterdir() if path.name.isdigit())
        items = {path.name: json.loads((path / "_CHECKPOINT_METADATA").read_text())["item_handlers"] for path in steps}
        directories = {path.name: sorted(each.name for each in path.iterdir()) for path in steps}
        latest = self.checkpointer.latest
        return {"known": known, "items": items, "files": directories, "latest": latest and latest.step}


WHAT = ["save"] * 6 + ["save async"] * 2 + ["force"] * 2 + ["overwrite", "should save", "load", "load latest"]
WHAT += ["delete", "delete an object", "reload", "restart"]


@pytest.mark.parametrize("seed", range(4))
def test_the_same_calls_of_a_checkpointer_have_the_same_outcomes_and_leave_the_same_steps(
    seed: int, tmp_path: Path
) -> None:
    draw = random.Random(seed)
    runs = [Run(theirs.v1, tmp_path / "theirs"), Run(ours, tmp_path / "ours")]
    step = 0
    for number in range(25):
        what = draw.choice(WHAT)
        step += draw.choice([0, 1, 1, 2])
        at = step if draw.random() < 0.7 else draw.randrange(step + 1)
        metric = draw.choice([None, draw.random()])
        wanted, found = (attempt(run.do, what, at, metric) for run in runs)
        assert_same_outcome(found, wanted, f"{number}: {what} {at}")
        assert runs[1].state() == runs[0].state(), f"{number}: {what} {at}"
    for run in runs:
        run.close()
