"""Our ``Checkpointer`` classes against Orbax's: the same calls, the same answers, and each restores the other's."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as orbax
import pytest
from absl import logging as absl_logging

import ocdbt_py.interop.orbax as ours
from conformance.orbax_managers import outcome

PAIRS = pytest.mark.parametrize(("writer", "reader"), [(orbax, ours), (ours, orbax)], ids=["orbax→ours", "ours→orbax"])


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> None:
    absl_logging.set_verbosity(absl_logging.FATAL)


def state() -> dict[str, Any]:
    return {"w": np.arange(12, dtype=np.float32).reshape(3, 4), "opt": [np.ones(2), {"lr": 0.5}], "step": 7}


def assert_same(found: Any, wanted: Any) -> None:
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for key in wanted:
            assert_same(found[key], wanted[key])
    elif isinstance(wanted, list):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            assert_same(one, other)
    elif isinstance(wanted, np.ndarray):
        np.testing.assert_array_equal(found, wanted)
        assert found.dtype == wanted.dtype
    else:
        assert found == wanted
        assert type(found) is type(wanted)


@PAIRS
def test_each_kind_of_checkpointer_restores_what_the_other_library_s_saved(
    writer: Any, reader: Any, tmp_path: Path
) -> None:
    with writer.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "standard", state(), custom_metadata={"lr": 1})
    with reader.StandardCheckpointer() as checkpointer:
        assert_same(checkpointer.restore(tmp_path / "standard"), state())
        target = {"w": np.zeros((3, 4), np.float64), "opt": [np.zeros(2), {"lr": 0.0}], "step": 0}
        found = checkpointer.restore(tmp_path / "standard", target)
        assert_same(found, {**state(), "w": state()["w"].astype(np.float64)})
        metadata = checkpointer.metadata(tmp_path / "standard")
        assert metadata.custom_metadata == {"lr": 1}
        assert metadata.item_metadata["w"].shape == (3, 4)
        assert metadata.item_handlers.endswith("StandardCheckpointHandler")

    tree = {**state(), "name": "run", "nothing": None, "empty": {}}
    for kwargs in ({}, {"use_zarr3": True}, {"use_compression": False}):
        name = f"pytree {kwargs}"
        with writer.PyTreeCheckpointer(**kwargs) as checkpointer:
            checkpointer.save(tmp_path / name, tree)
        with reader.PyTreeCheckpointer() as checkpointer:
            assert_same(checkpointer.restore(tmp_path / name), tree)

    with writer.AsyncCheckpointer(writer.ArrayCheckpointHandler()) as checkpointer:
        checkpointer.save(tmp_path / "array", args=writer.args.ArraySave(np.arange(5)))
    with reader.Checkpointer(reader.ArrayCheckpointHandler()) as checkpointer:
        assert_same(checkpointer.restore(tmp_path / "array"), np.arange(5))

    with writer.Checkpointer(writer.JsonCheckpointHandler("facts")) as checkpointer:
        checkpointer.save(tmp_path / "json", {"a": [1]})
    with reader.Checkpointer(reader.JsonCheckpointHandler("facts")) as checkpointer:
        assert checkpointer.restore(tmp_path / "json") == {"a": [1]}

    with writer.Checkpointer(writer.CompositeCheckpointHandler()) as checkpointer:
        items = writer.args.Composite(state=writer.args.StandardSave(state()), notes=writer.args.JsonSave({"x": 1}))
        checkpointer.save(tmp_path / "several", items)
    with reader.Checkpointer(reader.CompositeCheckpointHandler()) as checkpointer:
        found = checkpointer.restore(tmp_path / "several")
        assert found.notes == {"x": 1}
        assert_same(found.state, state())


@pytest.mark.filterwarnings("ignore:.*[Ss]harding:UserWarning")
@PAIRS
def test_jax_arrays_come_back_as_such_and_others_as_numpy_s(writer: Any, reader: Any, tmp_path: Path) -> None:
    import jax
    import jax.numpy as jnp

    tree: dict[str, Any] = {"j": jnp.arange(6, dtype=jnp.bfloat16), "n": np.arange(3), "key": jax.random.key(1)}
    with writer.CheckpointManager(tmp_path) as manager:
        manager.save(0, args=writer.args.StandardSave(tree))
    with reader.CheckpointManager(tmp_path) as manager:
        for args in (None, reader.args.StandardRestore(), reader.args.StandardRestore(tree)):
            found = manager.restore(0, args=args)
            assert [isinstance(found[name], jax.Array) for name in ("j", "n", "key")] == [True, False, True]
            assert (found["j"] == tree["j"]).all()
            assert found["j"].dtype == jnp.bfloat16
            assert jax.random.bits(found["key"]) == jax.random.bits(tree["key"])
        described = manager.item_metadata(0)
        assert described["j"].sharding.to_jax_sharding() == tree["j"].sharding


def test_save_args_store_the_same_values(tmp_path: Path) -> None:
    tree = {"a": np.arange(64, dtype=np.float64), "b": [1, np.ones(4)]}
    found = []
    for writer, reader in ((orbax, ours), (ours, orbax), (ours, ours)):
        save_args = {
            "a": writer.SaveArgs(chunk_byte_size=128),
            "b": [writer.SaveArgs(), writer.SaveArgs(dtype=np.dtype(np.float16))],
        }
        path = tmp_path / f"{writer.__name__}{reader.__name__}"
        writer.PyTreeCheckpointer().save(path, tree, save_args=save_args)
        found.append(reader.PyTreeCheckpointer().restore(path))
    for each in found:
        assert_same(each, {"a": tree["a"], "b": [1, np.ones(4, np.float16)]})


@pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning")  # Orbax lets go of what it began
def test_what_goes_wrong_goes_wrong_alike(tmp_path: Path) -> None:
    def answers(ocp: Any) -> list[Any]:
        root = tmp_path / ocp.__name__
        root.mkdir()
        heard: list[Any] = []

        def hear(call: Callable[[], Any]) -> None:
            heard.append(outcome(call))

        with ocp.StandardCheckpointer() as checkpointer:
            hear(lambda: checkpointer.restore(root / "nothing"))
            hear(lambda: checkpointer.save(root / "a", {"x": 1}))
            hear(lambda: checkpointer.wait_until_finished())
            hear(lambda: checkpointer.save(root / "a", {"x": 2}))
            hear(lambda: checkpointer.save(root / "a", {"x": 3}, force=True))
            hear(lambda: checkpointer.wait_until_finished())
            hear(lambda: checkpointer.restore(root / "a"))
            hear(lambda: checkpointer.restore(root / "a", {"y": 1}))
            hear(lambda: checkpointer.save(root / "b", None))
            hear(lambda: checkpointer.save(root / "c", 3))
            hear(lambda: checkpointer.save(root / "d", {"s": "text"}))
            hear(lambda: checkpointer.check_for_errors())
        with ocp.PyTreeCheckpointer() as checkpointer:
            hear(lambda: checkpointer.save(root / "e", {}))
            hear(lambda: checkpointer.restore(root / "a"))
            hear(lambda: checkpointer.restore(root / "a", item={"x": 0}))
            hear(lambda: checkpointer.restore(root / "a", args=ocp.args.PyTreeRestore({"x": 0})))
            (root / "f.orbax-checkpoint-tmp").mkdir()
            hear(lambda: checkpointer.restore(root / "f.orbax-checkpoint-tmp"))
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
            hear(lambda: checkpointer.save(root / "g", args=ocp.args.JsonSave({"a": 1})))
            hear(lambda: checkpointer.restore(root / "g", args=ocp.args.JsonRestore()))
            hear(lambda: checkpointer.restore(root / "a"))
            hear(lambda: checkpointer.metadata(root / "g").item_metadata)
        with ocp.Checkpointer(ocp.ArrayCheckpointHandler()) as checkpointer:
            hear(lambda: checkpointer.save(root / "h", "text"))
            hear(lambda: checkpointer.save(root / "i", 2.5))
            hear(lambda: checkpointer.restore(root / "i"))
        return heard

    theirs, mine = answers(orbax), answers(ours)
    gc.collect()
    assert [(i, one, other) for i, (one, other) in enumerate(zip(theirs, mine, strict=True)) if one != other] == []
