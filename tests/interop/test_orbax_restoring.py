"""Restores with Orbax's names, without JAX in play and on any storage; against Orbax: ``conformance``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from ocdbt_py.checkpoint.opening import resolve_checkpoint
from ocdbt_py.checkpoint.save import save
from ocdbt_py.errors import (
    CorruptDataError,
    InvalidArgumentError,
    InvalidTypeError,
    PathNotFoundError,
    StructureError,
)
from ocdbt_py.interop.orbax.args import PyTreeRestore, StandardRestore
from ocdbt_py.interop.orbax.metadata import TreeMetadata, item_metadata
from ocdbt_py.interop.orbax.metadata.sharding import sharding_metadata
from ocdbt_py.interop.orbax.restore_args import ArrayRestoreArgs, RestoreArgs, SingleReplicaArrayRestoreArgs
from ocdbt_py.interop.orbax.restoring import restore_item

ROOT = Path(__file__).parent.parent.parent
URLS = ["memory://orbax-restoring/c", "local"]


def tree() -> dict[str, Any]:
    return {
        "w": np.arange(6.0).reshape(2, 3),
        "half": np.arange(3).astype(ml_dtypes.bfloat16),
        "layers": [{"k": np.ones(2, "int8")}, {"k": np.zeros(2, "int8")}],
        "step": 7,
        "rate": 0.25,
        "name": "run",
        "none": None,
        "empty": {},
    }


@pytest.fixture(params=URLS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    url = str(tmp_path / "c") if request.param == "local" else request.param
    save(url, tree(), overwrite=True)
    return resolve_checkpoint(url, None, None)


def same(found: Any, expected: Any) -> bool:
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same(found[key], expected[key]) for key in expected)
    if isinstance(expected, list | tuple):
        return len(found) == len(expected) and all(map(same, found, expected))
    if isinstance(expected, np.ndarray):
        return type(found) is np.ndarray and found.dtype == expected.dtype and np.array_equal(found, expected)
    return type(found) is type(expected) and bool(found == expected)


def test_a_tree_comes_back_as_it_was_saved(place: Any) -> None:
    assert same(restore_item(place, PyTreeRestore()), tree())
    assert same(restore_item(place, StandardRestore()), tree())


def test_a_standard_target_says_of_which_dtype_and_kind_a_leaf_is(place: Any) -> None:
    target = {
        "w": np.zeros((2, 3), "float32"),
        "half": np.zeros(3),
        "layers": ({"k": np.zeros(2)}, {"k": np.zeros(2)}),
        "step": 0.0,
        "rate": np.zeros(()),
        "name": None,
        "none": None,
        "empty": {},
    }
    found = restore_item(place, StandardRestore(target))
    assert found["w"].dtype == np.float32
    assert found["half"].dtype == np.float64
    assert type(found["layers"]) is tuple
    assert same(found["layers"][0]["k"], np.ones(2))
    assert same([found["step"], found["rate"]], [7.0, np.array(0.25)])
    assert found["name"] is None


def test_restore_args_say_it_leaf_by_leaf(place: Any) -> None:
    part = {"w": 0, "step": 0, "name": 0}
    wanted = {"w": RestoreArgs(np.ndarray, np.int32), "step": RestoreArgs(float), "name": RestoreArgs()}
    found = restore_item(place, PyTreeRestore(part, restore_args=wanted, partial_restore=True))
    assert same(found, {"w": np.arange(6, dtype="int32").reshape(2, 3), "step": 7.0, "name": "run"})


def test_every_difference_is_told_in_one_error_with_the_name_that_was_meant(place: Any) -> None:
    target = {**tree(), "stepp": 1, "layers": [{"k": 0}]}
    del target["step"]
    with pytest.raises(StructureError) as caught:
        restore_item(place, PyTreeRestore(target))
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("The structures of the target and the checkpoint differ in 3 leaves:")
    assert [line.split() for line in lines[1:4]] == [
        ["stepp", "in", "the", "target,", "not", "in", "the", "checkpoint;", "nearest", "name:", "step"],
        ["layers.1.k", "in", "the", "checkpoint,", "not", "in", "the", "target"],
        ["step", "in", "the", "checkpoint,", "not", "in", "the", "target"],
    ]
    assert "partial_restore=True" in lines[4]
    assert place.url in str(caught.value)


def test_what_is_not_stored_stays_as_in_a_target_for_a_part(place: Any) -> None:
    found = restore_item(place, PyTreeRestore({"rate": 0, "new": {"x": 5}}, partial_restore=True))
    assert same(found, {"rate": 0.25, "new": {"x": 5}})


def test_only_keys_of_dicts_can_be_left_out_of_a_part(place: Any) -> None:
    with pytest.raises(StructureError, match="layers has 1 elements in the target, and 2 in the checkpoint"):
        restore_item(place, PyTreeRestore({"layers": [{"k": 0}]}, partial_restore=True))
    with pytest.raises(InvalidTypeError, match="layers is a leaf in the target, and a list in the checkpoint"):
        restore_item(place, PyTreeRestore({"layers": 0}, partial_restore=True))


def test_leaves_that_are_skipped_are_not_read(tmp_path: Path) -> None:
    place = resolve_checkpoint(tmp_path / "c", None, None)
    save(tmp_path / "c", {"large": np.arange(100_000.0), "small": 1})
    largest = max((file for file in tmp_path.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    with largest.open("r+b") as file:
        file.write(bytes(100))  # the chunk of the large array is no zstd any more
    with pytest.raises(CorruptDataError):
        restore_item(place, PyTreeRestore())
    assert restore_item(place, PyTreeRestore({"large": ..., "small": 0})) == {"large": ..., "small": 1}


def test_a_string_is_no_array(place: Any) -> None:
    with pytest.raises(StructureError, match="'name' was saved as string, and cannot come back as a NumPy array"):
        restore_item(place, PyTreeRestore({"name": 0}, {"name": RestoreArgs(np.ndarray)}, partial_restore=True))
    with pytest.raises(InvalidTypeError, match="'name' of the target is of the type str"):
        restore_item(place, StandardRestore({"name": ""}))


def test_an_array_is_no_number(place: Any) -> None:
    with pytest.raises(StructureError, match=r"'w' is an array of the shape \(2, 3\), and no number"):
        restore_item(place, StandardRestore({**tree(), "w": 1.0, "name": None}))


def test_a_type_that_leaves_never_have_is_refused(place: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="restore_type=<class 'complex'> is no type"):
        restore_item(place, PyTreeRestore({"w": 0}, {"w": RestoreArgs(complex)}, partial_restore=True))


def test_where_there_is_no_tree_the_items_are_named(tmp_path: Path) -> None:
    save(tmp_path / "step" / "state", {"a": 1})
    (tmp_path / "step" / "_CHECKPOINT_METADATA").write_text("{}")
    with pytest.raises(PathNotFoundError, match="it has the items state"):
        restore_item(resolve_checkpoint(tmp_path / "step", None, None), PyTreeRestore())
    with pytest.raises(PathNotFoundError, match="empty or not there"):
        restore_item(resolve_checkpoint(tmp_path / "none", None, None), PyTreeRestore())


def test_the_shapes_of_restore_args_must_agree() -> None:
    assert ArrayRestoreArgs(shape=(3,)).global_shape == (3,)
    with pytest.raises(InvalidArgumentError, match="give one of them"):
        ArrayRestoreArgs(shape=(3,), global_shape=(4,))
    with pytest.warns(DeprecationWarning, match="does nothing"):
        SingleReplicaArrayRestoreArgs(single_replica_sharding=object())


def test_the_description_of_a_tree(place: Any) -> None:
    found = item_metadata(place)
    assert isinstance(found, TreeMetadata)
    assert list(found) == sorted(tree())
    assert (found["w"].shape, found["w"].dtype, found["w"].storage.chunk_shape) == ((2, 3), np.float64, (2, 3))
    assert found["half"].dtype == ml_dtypes.bfloat16
    assert (found["layers"][1]["k"].name, str(found["w"].directory)) == ("layers.1.k", place.url)
    assert (type(found["step"]).__name__, type(found["name"]).__name__) == ("ScalarMetadata", "StringMetadata")
    assert found.get("none", 1) is None
    assert found.get("absent", 1) == 1
    assert (found["empty"], len(found), "w" in found) == ({}, 8, True)


def test_a_description_is_a_target(place: Any) -> None:
    assert same(restore_item(place, PyTreeRestore(item_metadata(place))), tree())


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("_sharding", '{"dw==": "{}"}'),
        ("_sharding", '{"dw==": "[]"}'),
        ("_sharding", '{"dw==": "{\\"sharding_type\\": \\"NamedSharding\\", \\"shape\\": [\\"x\\"]}"}'),
        ("_METADATA", None),
    ],
)
def test_small_files_that_make_no_sense(tmp_path: Path, file: str, text: str | None) -> None:
    save(tmp_path / "c", {"w": np.ones(2)})
    metadata = json.loads((tmp_path / "c" / "_METADATA").read_text())
    entry = metadata["tree_metadata"]["('w',)"]["value_metadata"]
    entry["value_type"] = "jax.Array"
    if text is None:
        entry["write_shape"] = "all of it"
    (tmp_path / "c" / "_METADATA").write_text(json.dumps(metadata))
    if text is not None:
        (tmp_path / "c" / file).write_text(text)
    with pytest.raises((CorruptDataError, InvalidArgumentError)) as caught:
        item_metadata(resolve_checkpoint(tmp_path / "c", None, None))
    assert file in str(caught.value)


@pytest.mark.parametrize(
    "described",
    [
        {"shape": [1], "axis_names": ["x", "y"], "partition_spec": []},
        {"shape": [1], "axis_names": ["x"], "partition_spec": ["z"]},
        {"shape": [9, 9], "axis_names": ["x", "y"], "partition_spec": []},
        {"shape": [1], "axis_names": ["x"], "partition_spec": [], "device_mesh": {"mesh": [{"id": 10_000}]}},
    ],
)
def test_a_recorded_sharding_that_cannot_be_made(described: dict[str, Any]) -> None:
    pytest.importorskip("jax", reason="shardings are JAX's")
    with pytest.raises(InvalidArgumentError, match="target"):
        sharding_metadata({"sharding_type": "NamedSharding", **described}).to_jax_sharding()


def test_a_recorded_key_that_jax_does_not_know(tmp_path: Path) -> None:
    pytest.importorskip("jax", reason="random keys are JAX's")
    save(tmp_path / "c", {"w": np.arange(2, dtype="uint32")})
    metadata = json.loads((tmp_path / "c" / "_METADATA").read_text())
    metadata["tree_metadata"]["('w',)"]["value_metadata"]["value_type"] = "jax.Array"
    (tmp_path / "c" / "_METADATA").write_text(json.dumps(metadata))
    sharding = {"sharding_type": "SingleDeviceSharding", "device_str": "cpu:0"}
    (tmp_path / "c" / "_sharding").write_text(json.dumps({"dw==": json.dumps(sharding)}))
    record = {"param_name": "w", "write_shape": [2], "chunk_shape": [2], "ext_metadata": {"random_key_impl": "dice"}}
    (tmp_path / "c" / "array_metadatas").mkdir()
    (tmp_path / "c" / "array_metadatas" / "process_0").write_text(
        json.dumps({"array_metadatas": [{"array_metadata": record}]})
    )
    with pytest.raises(InvalidArgumentError, match="'w' was a random key of the generator 'dice'"):
        restore_item(resolve_checkpoint(tmp_path / "c", None, None), StandardRestore())


def test_without_jax_its_arrays_are_numpys(tmp_path: Path) -> None:
    save(tmp_path / "c", {"w": np.arange(4.0), "n": np.ones(2)})
    metadata = json.loads((tmp_path / "c" / "_METADATA").read_text())
    metadata["tree_metadata"]["('w',)"]["value_metadata"]["value_type"] = "jax.Array"
    (tmp_path / "c" / "_METADATA").write_text(json.dumps(metadata))
    (tmp_path / "c" / "_sharding").write_text(
        json.dumps({"dw==": '{"sharding_type": "SingleDeviceSharding", "device_str": "cpu:0"}'})
    )
    script = """
import sys
for name in ("jax", "jaxlib", "tensorstore", "orbax", "etils"):
    sys.modules[name] = None
import numpy as np
from ocdbt_py.checkpoint.opening import resolve_checkpoint
from ocdbt_py.interop.orbax import args, arrays, checkpoint_utils, metadata, msgpack_utils, path, restoring
from ocdbt_py.interop.orbax import transform_utils, tree, type_handlers, utils
from ocdbt_py.interop.orbax.restore_args import ArrayRestoreArgs, RestoreArgs
place = resolve_checkpoint(sys.argv[1], None, None)
for found in (
    restoring.restore_item(place, args.PyTreeRestore()),
    restoring.restore_item(place, args.StandardRestore()),
    restoring.restore_item(place, args.PyTreeRestore(restore_args={"w": ArrayRestoreArgs(), "n": RestoreArgs()})),
):
    assert type(found["w"]) is np.ndarray and found["w"].tolist() == [0, 1, 2, 3], found
assert metadata.item_metadata(place)["w"].sharding.device_str == "cpu:0"
"""
    path = os.pathsep.join([str(ROOT), str(ROOT / "backends"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "c")],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
