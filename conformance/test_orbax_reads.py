"""Checkpoints that Orbax wrote, of every kind the corpus has, restored leaf for leaf and bit for bit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from conformance.corpus import OrbaxCase, orbax_cases
from ocdbt_py.checkpoint.checkpoint import Checkpoint
from ocdbt_py.checkpoint.restore import restore
from ocdbt_py.errors import UncommittedError

ITEMS = [(case, item) for case in orbax_cases() for item in case.expected["items"]]


def title(value: Any) -> str:
    return value["dir"] if isinstance(value, dict) else str(value)


items = pytest.mark.parametrize(("case", "item"), ITEMS, ids=title)


def expected_leaf(case: OrbaxCase, leaf: dict[str, Any]) -> Any:
    match leaf["stored"]:
        case "string":
            return leaf["value"]
        case "None" | "NamedTuple":
            return None
        case "Dict":
            return {}
        case "List":
            return []
        case "Tuple":
            return ()
    array = np.asarray(case.arrays[leaf["npz"]])
    if leaf["npz_as"] == "int8 values":
        array = array.astype(getattr(ml_dtypes, leaf["dtype"]))
    elif leaf["npz_as"] != "self":
        array = array.view(np.dtype(getattr(ml_dtypes, leaf["dtype"])))
    array = array.reshape(leaf["shape"])
    kinds_are_recorded = case.expected["versions"]["orbax"] != "0.3.5"
    return array.item() if leaf["stored"] == "scalar" and kinds_are_recorded else array


def expected_tree(case: OrbaxCase, item: dict[str, Any]) -> Any:
    """The nested tree of an item, built step by step."""

    def build(leaves: list[tuple[list[list[Any]], Any]]) -> Any:
        if len(leaves) == 1 and not leaves[0][0]:
            return leaves[0][1]
        children: dict[Any, list[tuple[list[list[Any]], Any]]] = {}
        for path, value in leaves:
            children.setdefault(path[0][1], []).append((path[1:], value))
        if leaves[0][0][0][0] == "i":
            return [build(children[index]) for index in range(len(children))]
        return {name: build(below) for name, below in children.items()}

    return build([(leaf["path"], expected_leaf(case, leaf)) for leaf in item["leaves"]])


def assert_same(found: Any, expected: Any, where: str = "") -> None:
    assert type(found) is type(expected), where
    if isinstance(expected, dict):
        assert sorted(found) == sorted(expected), where
        for name in expected:
            assert_same(found[name], expected[name], f"{where}.{name}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for index, pair in enumerate(zip(found, expected, strict=True)):
            assert_same(*pair, f"{where}.{index}")
    elif isinstance(expected, np.ndarray):
        assert_same_array(found, expected, where)
    else:
        assert repr(found) == repr(expected), where


def assert_same_array(found: NDArray[Any], expected: NDArray[Any], where: str) -> None:
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape), where
    assert found.tobytes() == expected.tobytes(), where
    assert found.flags.writeable, where


def test_the_corpus_is_all_there() -> None:
    assert len(ITEMS) > 50


@pytest.mark.parametrize("mode", ["blocked", "jax"])
def test_the_whole_corpus_is_restored_without_jax_and_with_it(mode: str) -> None:
    command = [sys.executable, "-m", "conformance.read_corpus", mode]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{len(ITEMS)} items, {sum(len(item['leaves']) for _, item in ITEMS)} leaves\n"


@items
def test_an_item_is_restored_leaf_for_leaf_and_bit_for_bit(case: OrbaxCase, item: dict[str, Any]) -> None:
    assert_same(restore(case.checkpoint / item["dir"]), expected_tree(case, item))


@items
def test_an_item_is_restored_the_same_through_memory_maps(case: OrbaxCase, item: dict[str, Any]) -> None:
    assert_same(restore(case.checkpoint / item["dir"], mmap=True), expected_tree(case, item))


@items
def test_a_lazy_checkpoint_gives_the_same_leaves_by_name(case: OrbaxCase, item: dict[str, Any]) -> None:
    checkpoint = Checkpoint(case.checkpoint / item["dir"])
    leaves = {".".join(str(step) for _, step in leaf["path"]): leaf for leaf in item["leaves"]}
    assert sorted(checkpoint) == sorted(leaves)
    for name, leaf in leaves.items():
        found, expected = checkpoint[name], expected_leaf(case, leaf)
        assert_same(found.read() if isinstance(expected, np.ndarray) else found, expected, name)


@pytest.mark.parametrize(
    ("name", "step", "item"),
    [("multiprocess2", "5", "default"), ("nnx_manager_metrics", "300", "default"), ("v0_9_1_manager", "20", "default")],
)
def test_a_step_with_one_pytree_is_restored_as_that_tree(name: str, step: str, item: str) -> None:
    (case,) = (case for case in orbax_cases() if case.name == name)
    (record,) = (record for record in case.expected["items"] if record["dir"] == f"{step}/{item}")
    expected = expected_tree(case, record)
    assert_same(restore(case.checkpoint / step), expected)
    assert_same(restore(case.checkpoint / step, item=item), expected)


def test_a_step_with_several_items_is_restored_as_a_dict_of_them() -> None:
    (case,) = (case for case in orbax_cases() if case.name == "manager_composite")
    found = restore(case.checkpoint / "2")
    assert sorted(found) == ["cfg", "extra", "state"]
    assert found["cfg"] == case.expected["json_items"]["2/cfg/metadata"]
    for record in case.expected["items"]:
        step, _, item = record["dir"].partition("/")
        if step == "2":
            assert_same(found[item], expected_tree(case, record))
    checkpoint = Checkpoint(case.checkpoint / "2")
    assert checkpoint.item_names() == ["cfg", "extra", "state"]
    assert checkpoint.custom_metadata == {"tag": "step2"}
    assert checkpoint.item("cfg") == found["cfg"]
    assert_same(checkpoint.item("state").names(), Checkpoint(case.checkpoint / "2/state").names())


@pytest.mark.parametrize("name", ["keras_callback", "v1_checkpointables", "v1_save"])
def test_other_writers_items_are_told_by_what_they_hold(name: str) -> None:
    (case,) = (case for case in orbax_cases() if case.name == name)
    step = "1/" if name == "keras_callback" else ""
    trees = {
        record["dir"].removeprefix(step): expected_tree(case, record)
        for record in case.expected["items"]
        if record["dir"].startswith(step)
    }
    found = restore(case.checkpoint / step)
    assert_same(found, trees if len(trees) > 1 else next(iter(trees.values())))
    assert Checkpoint(case.checkpoint / step).item_names() == sorted(trees)


@pytest.mark.parametrize("case", [case for case in orbax_cases() if case.expected["steps"]], ids=str)
def test_a_root_of_steps_is_refused_with_the_steps(case: OrbaxCase) -> None:
    with pytest.raises(ValueError, match="holds several") as caught:
        restore(case.checkpoint)
    directories = sorted(path.name for path in Path(case.checkpoint).iterdir() if path.name[-1].isdigit())
    assert all(name in str(caught.value) for name in directories)


def test_a_temporary_directory_is_not_finished(tmp_path: Path) -> None:
    (case,) = (case for case in orbax_cases() if case.name == "std_basic")
    unfinished = tmp_path / "7.orbax-checkpoint-tmp"
    unfinished.symlink_to(case.checkpoint)
    with pytest.raises(UncommittedError):
        restore(unfinished)
    assert_same(restore(unfinished, allow_uncommitted=True), expected_tree(case, case.expected["items"][0]))
