"""What Orbax wrote in other shapes than its default: a directory for each array, old releases, parts, other items.

The corpus has the common ones (``test_orbax_reads.py``); here Orbax writes what is hard about each, and is asked again
where we read something that it reads too.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from orbax.checkpoint import msgpack_utils

from conformance.corpus import orbax_cases
from conformance.servers.server import Server
from conformance.test_orbax_reads import assert_same, expected_tree
from ocdbt_py.checkpoint.checkpoint import Checkpoint
from ocdbt_py.checkpoint.restore import restore
from ocdbt_py.errors import CorruptDataError, UncommittedError
from ocdbt_py.storage.location import resolve

pytestmark = [
    pytest.mark.filterwarnings("ignore:Sharding info not provided"),
    pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning"),
]

HOSTILE = [
    "", " ", "..", "../up", "/root", "a/b/c", "a\nb", 'quo"te', "it's", "100%", "%2F", "é☃\U0001f600", "x" * 300,
    ".zarray", "zarr.json", "#?&", "c", "d/0", "[*]", "$HOME", "_METADATA", "C:\\x",
]  # fmt: skip
AS_FILES = [" ", "a/b/c", "a/b/d", "a\nb", 'quo"te', "it's", "100%", "%2F", "é☃\U0001f600", "x" * 250, "#?&", "~", "-"]


def arrays(names: list[str]) -> dict[str, Any]:
    return {name: np.arange(i, i + 6, dtype=np.float32).reshape(2, 3) for i, name in enumerate(names)}


def save(path: Path, tree: Any, **options: Any) -> None:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)) as checkpointer:
        checkpointer.save(path, args=ocp.args.PyTreeSave(tree))


def orbax_restore(path: Path) -> Any:
    return ocp.PyTreeCheckpointer().restore(path)


def deep(depth: int) -> Any:
    tree: Any = np.arange(3)
    for level in range(depth):
        tree = [tree] if level % 3 == 0 else {"down": tree, "beside": level} if level % 3 == 1 else {"": tree}
    return tree


TREES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "hostile names": (lambda: arrays(HOSTILE), {}),
    "hostile names in zarr v3": (lambda: arrays(HOSTILE), {"use_zarr3": True}),
    "names as directories": (lambda: arrays(AS_FILES), {"use_ocdbt": False}),
    "names as directories in zarr v3": (lambda: arrays(AS_FILES), {"use_ocdbt": False, "use_zarr3": True}),
    "a tree that is one array": (lambda: np.arange(4), {"use_ocdbt": False}),
    "a depth of 120": (lambda: deep(120), {}),
    "3000 leaves": (lambda: {f"layer_{i}": {"w": np.full(3, i), "n": i} for i in range(1500)}, {}),
}


@pytest.mark.parametrize("name", TREES)
def test_a_tree_that_orbax_saved_is_restored(name: str, tmp_path: Path) -> None:
    make, options = TREES[name]
    tree = make()
    save(tmp_path / "c", tree, **options)
    assert_same(restore(tmp_path / "c"), tree)
    assert_same(restore(tmp_path / "c", mmap=True), tree)


def test_leaves_in_directories_are_sliced_and_explained(tmp_path: Path) -> None:
    save(tmp_path / "c", {"layer/0": {"w": np.arange(4000.0).reshape(40, 100)}}, use_ocdbt=False)
    document = tmp_path / "c/layer/0.w/.zarray"
    document.write_text(json.dumps(json.loads(document.read_bytes()) | {"compressor": None, "chunks": [10, 100]}))
    for i in range(4):
        (tmp_path / f"c/layer/0.w/{i}.0").write_bytes(np.arange(i * 1000.0, i * 1000 + 1000).tobytes())
    checkpoint = Checkpoint(tmp_path / "c")
    (name,) = checkpoint
    np.testing.assert_equal(checkpoint[name][12, 5:8], np.arange(1205.0, 1208.0))
    assert checkpoint.explain(name, np.s_[12, 5:8]) == [(b"layer/0.w/1.0", "layer/0.w/1.0", 1640, 24)]
    np.testing.assert_equal(restore(tmp_path / "c", mmap=True), {"layer/0": {"w": np.arange(4000.0).reshape(40, 100)}})


def test_leaves_in_directories_are_read_over_http_and_from_a_bucket(http_server: Server, moto: Server) -> None:
    names = [name for name in AS_FILES if "\n" not in name]  # the S3 of the tests mistakes one for another file
    tree = {**arrays(names), "large": np.arange(5000.0), "nested": [np.array(7)]}
    url = http_server.url("directories")
    save(http_server.local(url), tree, use_ocdbt=False)
    assert_same(restore(url), tree)
    assert Checkpoint(url)["a/b/c"][1, 1:].tolist() == tree["a/b/c"][1, 1:].tolist()
    options = dict(moto.storage_options)
    bucket = resolve(moto.url("directories"), storage_options=options)
    for file in http_server.local(url).rglob("*"):
        if file.is_file():
            bucket.storage.put(f"{bucket.path}/{file.relative_to(http_server.local(url))}", [file.read_bytes()])
    assert_same(restore(bucket.url, storage_options=options), tree)


# --- old releases


def placeholders(tree: Any, path: tuple[str, ...] = ()) -> Any:
    if isinstance(tree, dict) and tree:
        return {name: placeholders(child, (*path, name)) for name, child in tree.items()}
    if isinstance(tree, list) and tree:
        return [placeholders(child, (*path, str(i))) for i, child in enumerate(tree)]
    return f"PLACEHOLDER://{'.'.join(path)}" if isinstance(tree, np.ndarray) else tree


STORED = {"params": {"w": np.arange(12, dtype=np.float32).reshape(3, 4), "b": [np.arange(3), np.ones(2, np.int8)]}}
INLINE = {
    "array": np.arange(6, dtype=np.int16).reshape(3, 2),
    "bf16": np.arange(4, dtype=ml_dtypes.bfloat16),
    "flag": np.array([True, False]),
    "rank 0": np.array(7, np.uint8),
    "empty": np.zeros((0, 3), np.float32),
    "text": "héllo",
    "numbers": [1, -1, 2**63, -(2**63), 0.5, True, 1 + 2j, np.float32(0.1)],
    "nothing": [None, {}, []],
}


def numbers_of_python(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.item() if isinstance(leaf, np.number) else leaf, tree)


@pytest.mark.parametrize("use_ocdbt", [False, True])
def test_an_aggregate_file_stands_for_the_metadata_of_old_releases(use_ocdbt: bool, tmp_path: Path) -> None:
    tree = STORED | INLINE
    save(tmp_path / "c", STORED, use_ocdbt=use_ocdbt)
    (tmp_path / "c/checkpoint").write_bytes(msgpack_utils.msgpack_serialize(placeholders(STORED) | INLINE))
    (tmp_path / "c/_METADATA").unlink()
    found = restore(tmp_path / "c")
    assert_same(found, numbers_of_python(tree))
    jax.tree.map(np.testing.assert_array_equal, found, numbers_of_python(orbax_restore(tmp_path / "c")))
    checkpoint = Checkpoint(tmp_path / "c")
    assert checkpoint["text"] == "héllo"
    assert checkpoint["array"][1:].tolist() == [[2, 3], [4, 5]]
    assert checkpoint.explain("array") == [(b"array/0.0", None, 0, 12)]
    assert restore(tmp_path / "c", select="params.b.1") == {"params": {"b": [..., pytest.approx(np.ones(2))]}}


@pytest.mark.parametrize("use_zarr3", [False, True])
def test_values_in_the_aggregate_file_win_over_the_metadata_beside_it(use_zarr3: bool, tmp_path: Path) -> None:
    tree = STORED | {"step": np.array(3), "name": np.array(4)}
    save(tmp_path / "c", tree, use_zarr3=use_zarr3)
    inline = {"step": 5, "name": "text"}
    (tmp_path / "c/checkpoint").write_bytes(msgpack_utils.msgpack_serialize(placeholders(STORED) | inline))
    found = restore(tmp_path / "c")
    assert_same(found, STORED | inline)
    theirs = orbax_restore(tmp_path / "c")
    assert (theirs["step"], theirs["name"]) == (5, "text")


# --- parts that were never merged


@pytest.mark.parametrize(("name", "item"), [("multiprocess2", "5/default"), ("multiprocess4_zarr3", ".")])
def test_what_processes_wrote_and_nobody_merged_is_read_as_one(name: str, item: str, tmp_path: Path) -> None:
    (case,) = (case for case in orbax_cases() if case.name == name)
    (record,) = (record for record in case.expected["items"] if record["dir"] == item)
    shutil.copytree(case.checkpoint / item, tmp_path / "c")
    (tmp_path / "c/manifest.ocdbt").unlink()
    shutil.rmtree(tmp_path / "c/d")
    expected = expected_tree(case, record)
    assert_same(restore(tmp_path / "c"), expected)
    assert_same(restore(tmp_path / "c", mmap=True), expected)
    (tmp_path / "c/_METADATA").unlink()
    with pytest.raises(UncommittedError, match=r"never merged.*allow_uncommitted=True"):
        restore(tmp_path / "c")
    flat = restore(tmp_path / "c", allow_uncommitted=True)
    leaves = {".".join(str(step) for _, step in leaf["path"]): leaf for leaf in record["leaves"]}
    assert set(flat) == {name for name, leaf in leaves.items() if "npz" in leaf}
    shutil.rmtree(tmp_path / "c/ocdbt.process_1")
    with pytest.raises(CorruptDataError, match=r"chunk b'.*' is missing"):
        restore(tmp_path / "c", allow_uncommitted=True)


# --- items of other kinds


def test_random_keys_arrays_and_json_are_items_like_others(tmp_path: Path) -> None:
    typed, state = jax.random.key(7), np.random.get_state()
    keys = {"typed": typed, "raw": jax.random.PRNGKey(3)}
    with ocp.CheckpointManager(tmp_path) as manager:
        items = {name: ocp.args.JaxRandomKeySave(key) for name, key in keys.items()}
        items["numpy"] = ocp.args.NumpyRandomKeySave(state)
        items["newer"] = ocp.args.NumpyRandomKeySave(np.random.get_state(legacy=False))
        items["config"] = ocp.args.JsonSave({"a": [1, None]})
        items["array"] = ocp.args.ArraySave(np.arange(3))
        items["more"] = ocp.args.PyTreeSave({"x": np.arange(2)})
        manager.save(1, args=ocp.args.Composite(**items))
    found = restore(tmp_path / "1")
    assert sorted(found) == ["array", "config", "more", "newer", "numpy", "raw", "typed"]
    assert_same(found["typed"], np.asarray(jax.random.key_data(typed)))
    assert_same(found["raw"], np.asarray(keys["raw"]))
    assert found["config"] == {"a": [1, None]}
    assert_same(found["array"], {"checkpoint": np.arange(3)})
    assert isinstance(found["numpy"], tuple)
    np.testing.assert_equal(found["numpy"], state)
    np.testing.assert_equal(found["newer"], np.random.get_state(legacy=False))
    np.random.set_state(found["numpy"])
    assert restore(tmp_path / "1", jax.random.key(0), item="typed") == typed
    assert_same(restore(tmp_path / "1/typed"), found["typed"])
    np.testing.assert_equal(restore(tmp_path / "1", found["numpy"], item="numpy"), state)
    checkpoint = Checkpoint(tmp_path / "1")
    assert checkpoint.item("typed").names() == ["checkpoint"]
    assert checkpoint.item("numpy")["0"] == "MT19937"
