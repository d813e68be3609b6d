"""Checkpoints with a directory for each array: what is asked of the storage, and names that would lead elsewhere."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ocdbt_py.array.codecs import Compressor
from ocdbt_py.array.spec import ArraySpec
from ocdbt_py.array.write import encode_array
from ocdbt_py.backends import LocalStorage, MemoryStorage
from ocdbt_py.checkpoint.checkpoint import Checkpoint
from ocdbt_py.checkpoint.directories import Directory
from ocdbt_py.checkpoint.flatten import flatten
from ocdbt_py.checkpoint.metadata import LeafRecord, ValueType
from ocdbt_py.checkpoint.names import leaf_name
from ocdbt_py.checkpoint.restore import restore, restore_place
from ocdbt_py.errors import CorruptDataError, OcdbtError, UnsupportedError
from ocdbt_py.storage.location import Place
from ocdbt_py.storage.protocol import Capabilities, Listed
from ocdbt_py.testing.faulty import FaultyStorage
from tests.checkpoint.places import Bucket, NewPlace
from tests.checkpoint.whole_texts import encode_tree_metadata


class Unlistable(FaultyStorage):
    """As plain HTTP."""

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(ranges=True)

    def list(self, prefix: str, *, deep: bool = False) -> Iterator[Listed]:
        raise AssertionError("this storage cannot list")


def write(place: Place, tree: Any, *, compressor: Compressor | None = None, rows: int | None = None) -> None:
    """A tree of arrays as Orbax's ``use_ocdbt=False`` lays it down, in chunks of so many rows."""
    flat = flatten(tree)
    for path, array in zip(flat.paths, flat.leaves, strict=True):
        chunks = array.shape if rows is None else (rows, *array.shape[1:])
        spec = ArraySpec(array.shape, chunks, array.dtype, compressor=compressor)
        for key, value in encode_array(leaf_name(path), array, spec):
            place.storage.put(f"{place.path}/{key.decode()}", [value])
    document = json.loads(encode_tree_metadata([LeafRecord(path, ValueType.NUMPY_ARRAY) for path in flat.paths]))
    place.storage.write(f"{place.path}/_METADATA", [json.dumps(document | {"use_ocdbt": False}).encode()])
    place.storage.write(f"{place.path}/commit_success.txt", [b""])


def leaves(count: int) -> dict[str, Any]:
    return {f"leaf_{i:04}": np.arange(i, i + 100.0) for i in range(count)}


@pytest.fixture
def bucket() -> Bucket:
    return Bucket(MemoryStorage())


def test_all_leaves_take_two_listings_one_document_and_one_chunk_request(bucket: Bucket, new_place: NewPlace) -> None:
    place = new_place(bucket)
    write(place, leaves(500))
    bucket.operations.clear()
    np.testing.assert_equal(restore_place(place), leaves(500))
    # what is there, and how long each file is; _METADATA; documents; chunks
    assert bucket.operations == {"list": 2, "read": 1, "read_many": 1, "read_many_into": 1}


def test_one_leaf_of_many_costs_a_listing_of_its_own_directory(bucket: Bucket, new_place: NewPlace) -> None:
    place = new_place(bucket)
    write(place, leaves(500), rows=10)
    checkpoint = Checkpoint._reopen(place, None, False)
    bucket.operations.clear()
    bucket.bytes_read.clear()
    assert checkpoint["leaf_0123"][15:17].tolist() == [138.0, 139.0]
    assert bucket.operations == {"list": 1, "read_many": 1, "read_many_into": 1}
    assert sum(count for path, count in bucket.bytes_read.items() if not path.endswith(".zarray")) == 16
    assert checkpoint["leaf_0123"][99] == 222.0
    assert bucket.operations["list"] == 1


def test_a_storage_that_cannot_list_is_asked_for_each_file(new_place: NewPlace) -> None:
    inner = MemoryStorage()
    place = new_place(inner)
    tree = {"small": np.arange(3), "large": np.arange(9000.0), "one": np.array(7)}
    write(place, tree)
    storage = Unlistable(inner)
    np.testing.assert_equal(restore_place(replace(place, storage=storage)), tree)
    place.storage.delete(f"{place.path}/large/0")
    with pytest.raises(CorruptDataError, match=r"'large'.*b'large/0' is missing"):
        restore_place(replace(place, storage=storage))
    with pytest.raises(UnsupportedError, match="cannot list"):
        list(Directory(replace(place, storage=storage)))


def test_a_directory_is_a_mapping_and_pickles(place: Place) -> None:
    write(place, {"a/b": {"w": np.arange(3, dtype=np.int8)}, "z": np.arange(2, dtype=np.int8)})
    directory: Directory = pickle.loads(pickle.dumps(Directory(place)))
    keys = [b"_METADATA", b"a/b.w/.zarray", b"a/b.w/0", b"commit_success.txt", b"z/.zarray", b"z/0"]
    assert list(directory) == keys
    assert len(directory) == 6
    assert list(directory.items(prefix="a/b.w/0")) == [(b"a/b.w/0", b"\0\1\2")]
    assert [entry.key for entry in directory.scan(b"b", b"z/.zarray\0")] == [b"commit_success.txt", b"z/.zarray"]
    assert directory.read_many([(b"z/0", 1, 2), b"z/1"], None) == [b"\1", None]


@pytest.mark.parametrize("storage", [LocalStorage, MemoryStorage])
@pytest.mark.parametrize("name", ["..", "../other", "/other", "a/../../other", "a\0b"])
def test_no_name_leads_out_of_the_directory(name: str, storage: Callable[[], Any], tmp_path: Path) -> None:
    base = str(tmp_path)
    store = storage()
    place = Place(store, f"{base}/c", f"{base}/c")
    write(place, {"inside": np.arange(3)})
    for outside in ("other/.zarray", ".zarray"):  # what a reader that follows the name would find
        store.put(f"{base}/{outside}", [b"{}"])
    document = json.loads(store.read(f"{base}/c/_METADATA").data)
    document["tree_metadata"]["('inside',)"]["key_metadata"][0]["key"] = name
    store.write(f"{base}/c/_METADATA", [json.dumps(document).encode()])
    watched = FaultyStorage(store)
    with pytest.raises(CorruptDataError, match="leads out of the checkpoint's directory"):
        restore_place(replace(place, storage=watched))
    assert all(path.startswith(f"{base}/c/") for path in watched.bytes_read)
    store.delete(f"{base}/")


def damage_document(**changes: Any) -> Callable[[Path], object]:
    def damage(leaf: Path) -> None:
        document = json.loads((leaf / ".zarray").read_bytes())
        (leaf / ".zarray").write_text(json.dumps(document | changes))

    return damage


DAMAGE: dict[str, Callable[[Path], object]] = {
    "missing chunk": lambda leaf: (leaf / "1").unlink(),
    "truncated chunk": lambda leaf: (leaf / "1").write_bytes((leaf / "1").read_bytes()[:9]),
    "empty chunk": lambda leaf: (leaf / "1").write_bytes(b""),
    "no document": lambda leaf: (leaf / ".zarray").unlink(),
    "deep document": lambda leaf: (leaf / ".zarray").write_bytes(b"[" * 60_000),
    "huge document": lambda leaf: (leaf / ".zarray").write_bytes(b" " * 10**7),
    "more elements": damage_document(shape=[41]),
    "another rank": damage_document(shape=[40, 1]),
    "2^60 elements": damage_document(shape=[2**60]),
    "2^60 elements in one chunk": damage_document(shape=[2**60], chunks=[2**60]),
    "codec pickle": damage_document(compressor={"id": "pickle"}),
    "object arrays": damage_document(dtype="|O"),
    "a filter": damage_document(filters=[{"id": "pickle"}]),
    "another codec": damage_document(compressor={"id": "zlib", "level": 1}),
}


@pytest.mark.parametrize("compressor", [None, Compressor("zstd", 1)], ids=str)
@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_told_with_leaf_and_file(name: str, compressor: Compressor | None, tmp_path: Path) -> None:
    place = Place(LocalStorage(), str(tmp_path), str(tmp_path))
    write(place, {"good": np.arange(40.0), "bad": np.arange(40.0)}, compressor=compressor, rows=10)
    DAMAGE[name](tmp_path / "bad")
    for mmap in (False, True):
        with pytest.raises((CorruptDataError, UnsupportedError), match="bad") as caught:
            restore(tmp_path, mmap=mmap)
        assert isinstance(caught.value, OcdbtError)
    assert restore(tmp_path, select="good")["good"].tolist() == list(range(40))


def test_arrays_without_any_metadata_are_a_flat_dict_of_names(tmp_path: Path) -> None:
    place = Place(LocalStorage(), str(tmp_path), str(tmp_path))
    write(place, {"a": {"b": np.arange(3)}, "c": np.arange(2)})
    (tmp_path / "_METADATA").unlink()
    np.testing.assert_equal(restore(tmp_path), {"a.b": np.arange(3), "c": np.arange(2)})
    assert sorted(Checkpoint(tmp_path)) == ["a.b", "c"]
