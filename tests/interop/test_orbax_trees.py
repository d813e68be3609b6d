"""Trees by path, transformations, msgpack, names of steps and waiting for them, with Orbax's names and without JAX."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ocdbt_py.checkpoint.opening import resolve_checkpoint
from ocdbt_py.checkpoint.save import save
from ocdbt_py.errors import (
    CorruptDataError,
    InvalidArgumentError,
    InvalidTypeError,
    KeyNotFoundError,
    NotFoundError,
    StructureError,
    UnsupportedError,
)
from ocdbt_py.interop.orbax import msgpack_utils, type_handlers, utils
from ocdbt_py.interop.orbax.checkpoint_utils import (
    checkpoints_iterator,
    construct_restore_args,
    wait_for_new_checkpoint,
)
from ocdbt_py.interop.orbax.metadata import get_step_metadata, root_metadata, step_metadata
from ocdbt_py.interop.orbax.path import step
from ocdbt_py.interop.orbax.transform_utils import RestoreTransform, Transform, apply_transformations, merge_trees
from ocdbt_py.interop.orbax.tree import deserialize_tree, from_flat_dict, serialize_tree, to_flat_dict

Point = namedtuple("Point", "x y")
TREE = {"a": [1, (2, Point(3, None))], "b": {}, "c": {4: 5}}


class Clock:
    """Time that passes only when somebody sleeps; then something may happen."""

    def __init__(self, *events: Any) -> None:
        self.now = 1000.0
        self.events = list(events)

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float, /) -> None:
        self.now += seconds
        if self.events:
            self.events.pop(0)()


def test_a_tree_by_path_and_back() -> None:
    flat = to_flat_dict(TREE)
    assert flat == {("a", "0"): 1, ("a", "1", "0"): 2, ("a", "1", "1", "x"): 3, ("c", "4"): 5}
    assert to_flat_dict(TREE, sep="/", keep_empty_nodes=True)["b"] == {}
    assert from_flat_dict(flat, target=TREE) == TREE
    assert from_flat_dict(to_flat_dict(TREE, sep="."), sep=".")["c"] == {"4": 5}
    emptied = dict(flat)
    assert from_flat_dict(emptied, target=TREE, inplace=True) == TREE
    assert not emptied


def test_the_stored_form_of_a_tree() -> None:
    stored = serialize_tree(TREE, keep_empty_nodes=True)
    assert stored == {"a": [1, [2, {"x": 3, "y": None}]], "b": {}, "c": {"4": 5}}
    assert deserialize_tree(stored, TREE) == TREE


def test_trees_that_do_not_fit() -> None:
    with pytest.raises(KeyNotFoundError, match="'b'"):
        from_flat_dict({("a",): 1}, target={"a": 0, "b": 0})
    with pytest.raises(KeyNotFoundError, match=r"a\.x"):
        deserialize_tree({"a": {"y": 1}}, {"a": {"x": 0}})
    with pytest.raises(InvalidArgumentError, match="without leaves"):
        serialize_tree({"a": {}})
    with pytest.raises(InvalidArgumentError, match="keep_empty_nodes=True"):
        serialize_tree([None, 1])
    with pytest.raises(InvalidTypeError, match="inplace=True"):
        from_flat_dict([], inplace=True)  # type: ignore[arg-type]


def test_transformations_have_one_source() -> None:
    with pytest.raises(AssertionError, match="one source"):
        Transform(original_key="a", multi_value_fn=lambda key, tree: 1)
    with pytest.raises(InvalidArgumentError, match="give that, too"):
        RestoreTransform(original_key="a", multi_value_fn_input_args={})


def test_leaves_are_renamed_and_computed() -> None:
    old = {"a": 1, "b": {"c": 5, "d": [0, 1]}}
    how = {r"x/(\w)": Transform(original_key=r"b/\1"), "sum": Transform(multi_value_fn=lambda key, t: t["a"] + 1)}
    assert apply_transformations(old, how, {"x": {"c": 0}, "sum": 0, "a": 0}) == {"x": {"c": 5}, "sum": 2, "a": 1}
    with pytest.raises(StructureError, match="'gone'"):
        apply_transformations(old, {"a": Transform(original_key="gone")}, {"a": 0})
    assert merge_trees({"a": 1, "b": {"c": 2}}, {"b": {"c": 3}}) == {"a": 1, "b": {"c": 3}}


def test_msgpack_there_and_back() -> None:
    value: dict[str, Any] = {
        "a": np.arange(6).reshape(2, 3),
        "n": [1, -1, 300, -(2**40)],
        "t": (1, None, True),
        "x": "y" * 300,
    }
    value |= {"c": 3 + 4j, "s": np.float32(2), "raw": b"\x00" * 70_000, "e": np.zeros((0, 3))}
    found = msgpack_utils.msgpack_restore(msgpack_utils.msgpack_serialize(value))
    assert list(found) == sorted(value)
    for name in ("a", "e"):
        assert np.array_equal(found.pop(name), value[name])
    assert found == {name: value[name] for name in found}


def test_large_arrays_are_stored_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(msgpack_utils, "MAX_CHUNK_SIZE", 64)
    value = {"a": np.arange(100).reshape(4, 25)}
    data = msgpack_utils.msgpack_serialize(value)
    assert b"__msgpack_chunked_array__" in data
    assert np.array_equal(msgpack_utils.msgpack_restore(data)["a"], value["a"])


def test_what_msgpack_does_not_hold() -> None:
    for value in (object(), np.array([None]), {"a": {1, 2}}):
        with pytest.raises(InvalidTypeError):
            msgpack_utils.msgpack_serialize(value)
    with pytest.raises(InvalidArgumentError, match="64 bits"):
        msgpack_utils.msgpack_serialize(2**64)
    for data in (b"", b"\xc1", msgpack_utils.msgpack_serialize({"__msgpack_chunked_array__": True})):
        with pytest.raises(CorruptDataError):
            msgpack_utils.msgpack_restore(data)


def test_restore_args_from_examples() -> None:
    found = construct_restore_args({"n": np.zeros(2, "int8"), "i": 1, "f": True, "s": "", "none": None, "p": ...})
    kinds = {name: args and args.restore_type for name, args in found.items()}
    assert kinds == {"n": np.ndarray, "i": int, "f": bool, "s": str, "none": None, "p": type(...)}
    assert found["n"].dtype == np.int8
    with pytest.raises(InvalidTypeError, match="not object"):
        construct_restore_args([object()])
    with pytest.raises(StructureError, match="nothing for the leaf 'b'"):
        construct_restore_args({"a": 1, "b": 2}, {"a": None})


def test_handlers_of_types_are_fixed() -> None:
    with pytest.raises(UnsupportedError, match="object"):
        type_handlers.register_type_handler(int, object(), override=True)


def test_one_replica_may_be_asked_to_read_for_all() -> None:
    jax = pytest.importorskip("jax", reason="replicas are JAX's")
    handler = type_handlers.SingleReplicaArrayHandler(replica_axis_index=0)
    type_handlers.register_type_handler(jax.Array, handler, override=True)
    with pytest.raises(InvalidArgumentError, match="override=True"):
        type_handlers.register_type_handler(jax.Array, handler)


def test_placeholders_of_old_files() -> None:
    assert utils.leaf_is_placeholder(utils.leaf_placeholder("a.b"))
    assert utils.all_leaves_are_placeholders({"a": "PLACEHOLDER://a", "b": {}})
    assert not utils.all_leaves_are_placeholders({"a": "PLACEHOLDER://a", "b": 1})


def test_steps_of_any_storage_are_found() -> None:
    for name in ("run_3", "run_12", "7", "run_x"):
        save(f"memory://orbax-steps/{name}", {"a": 1}, overwrite=True)
    names = step.standard_name_format(step_prefix="run")
    found = sorted(names.find_all("memory://orbax-steps"), key=lambda each: each.step)
    assert [(each.step, each.path) for each in found] == [
        (3, "memory://orbax-steps/run_3"),
        (12, "memory://orbax-steps/run_12"),
    ]
    assert found[0].commit_timestamp.year > 2000
    latest = step.latest_step_metadata("memory://orbax-steps", names)
    assert latest is not None
    assert latest.step == 12
    with pytest.raises(NotFoundError, match="no finished step 7, called run_7"):
        names.find_step("memory://orbax-steps", 7)
    assert sorted(step.checkpoint_steps("memory://orbax-steps")) == [3, 7, 12]


def test_new_steps_come_as_they_are_saved(tmp_path: Path) -> None:
    clock = Clock(lambda: save(tmp_path / "2", {"a": 2}), lambda: None, lambda: save(tmp_path / "5", {"a": 5}))
    found = []
    for number in checkpoints_iterator(tmp_path, seconds_to_sleep=10, timeout=35, clock=clock):
        found.append((number, clock.now))
        assert sorted(path.name for path in (tmp_path / "_SNAPSHOTS").iterdir()) == [str(number)]
    assert found == [(2, 1010.0), (5, 1030.0)]
    assert clock.now == 1060.0
    assert not list((tmp_path / "_SNAPSHOTS").iterdir())


def test_the_time_between_two_steps_has_a_least(tmp_path: Path) -> None:
    save(tmp_path / "1", {"a": 1})
    clock = Clock(lambda: save(tmp_path / "2", {"a": 2}))
    steps = checkpoints_iterator(tmp_path, min_interval_secs=100, timeout=0, seconds_to_sleep=1, clock=clock)
    assert [(number, clock.now) for number in steps] == [(1, 1000.0), (2, 1100.0)]


def test_waiting_ends_when_the_time_is_up(tmp_path: Path) -> None:
    clock = Clock()
    save(tmp_path / "ckpt_4", {"a": 1})
    with wait_for_new_checkpoint(tmp_path, until_step=5, timeout=3, step_prefix="ckpt", clock=clock) as number:
        assert (number, clock.now) == (-1, 1003.0)
    with wait_for_new_checkpoint(tmp_path, until_step=4, timeout=3, step_prefix="ckpt", clock=clock) as number:
        assert number == 4


def test_what_is_known_of_a_step_and_of_a_root(tmp_path: Path) -> None:
    save(tmp_path / "3", {"a": 1}, custom_metadata={"by": "us"})
    place = resolve_checkpoint(tmp_path / "3", None, None)
    found = get_step_metadata(tmp_path / "3")
    assert found == step_metadata(place)
    assert found.custom_metadata == {"by": "us"}
    assert found.commit_timestamp_nsecs is not None
    assert step_metadata(place, metrics={"loss": 1.0}).metrics == {"loss": 1.0}
    root = resolve_checkpoint(tmp_path, None, None)
    assert root_metadata(root).custom_metadata == {}
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "_ROOT_METADATA").write_text('{"internal_metadata": {}, "custom_metadata": {"n": 1}}')
    assert root_metadata(root).custom_metadata == {"n": 1}
    with pytest.raises(InvalidArgumentError, match="no _CHECKPOINT_METADATA"):
        get_step_metadata(tmp_path)


@pytest.mark.parametrize(
    "text", ['{"item_handlers": 3}', "[]", '{"metrics": "x"}', '{"own": 1, "custom_metadata": {"a": 1}}']
)
def test_a_step_whose_metadata_makes_no_sense(tmp_path: Path, text: str) -> None:
    (tmp_path / "_CHECKPOINT_METADATA").write_text(text)
    with pytest.raises(InvalidArgumentError):
        get_step_metadata(tmp_path)


def test_metadata_that_is_no_json_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / "_CHECKPOINT_METADATA").write_text("{")
    assert get_step_metadata(tmp_path).item_handlers is None
