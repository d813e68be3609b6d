"""Checkpoints whose arrays are stored as zarr v3."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ocdbt_py.array.codecs import Compressor
from ocdbt_py.array.sharding import Sharding
from ocdbt_py.array.spec import ArraySpec
from ocdbt_py.array.write import encode_array
from ocdbt_py.checkpoint.checkpoint import Checkpoint, Fetch
from ocdbt_py.checkpoint.encoding import Encoding
from ocdbt_py.checkpoint.restore import restore
from ocdbt_py.checkpoint.save import save
from ocdbt_py.database import open as open_database
from ocdbt_py.errors import CorruptDataError, InvalidArgumentError

RANDOM = np.random.default_rng(0)
TREE: dict[str, Any] = {
    "w": RANDOM.normal(size=(300, 40)),
    "zeros": np.zeros((200, 100), np.float32),
    "small": np.arange(3),
    "flag": np.array([True, False]),
    "number": 5,
    "text": "x",
}


@pytest.fixture
def url(tmp_path: Path) -> Path:
    save(tmp_path / "checkpoint", TREE, zarr_format=3)
    return tmp_path / "checkpoint"


def assert_same(found: Any) -> None:
    assert found.keys() == TREE.keys()
    for name, value in TREE.items():
        assert np.array_equal(found[name], value), name
        assert type(found[name]) is type(value)


def test_every_array_is_one_shard_of_one_chunk(url: Path) -> None:
    database = open_database(url)
    assert sorted(key.decode() for key in database) == sorted(
        f"{name}/{file}"
        for name, value in TREE.items()
        if name != "text"
        for file in ("zarr.json", "/".join(["c", *"0" * np.ndim(value)]))
    )
    assert json.loads((url / "_METADATA").read_bytes())["use_zarr3"] is True
    assert len(database[b"w/c/0/0"]) == TREE["w"].nbytes + 20
    assert database[b"w/c/0/0"][:-20] == TREE["w"].tobytes()


def test_zarr_v2_stays_the_default_and_there_are_no_others(tmp_path: Path) -> None:
    save(tmp_path / "c", {"x": np.arange(3)})
    assert list(open_database(tmp_path / "c")) == [b"x/.zarray", b"x/0"]
    for other in (1, 4, "3", 3.0, True, None):
        with pytest.raises(InvalidArgumentError, match="zarr_format is 2 or 3"):
            save(tmp_path / "d", {"x": 1}, zarr_format=other)  # type: ignore[arg-type]
    assert not (tmp_path / "d").exists()


def test_zstd_has_the_level_that_orbax_has_for_each_format() -> None:
    zeros = np.zeros(10_000)
    for compression in ("auto", "zstd"):
        assert Encoding(compression, zarr_format=2).spec(zeros).compressor == Compressor("zstd", 1)
        assert Encoding(compression, zarr_format=3).spec(zeros).compressor == Compressor("zstd", 3)
    assert Encoding("zstd:7", zarr_format=3).spec(zeros).compressor == Compressor("zstd", 7)


@pytest.mark.parametrize("compression", ["auto", "zstd", None])
@pytest.mark.parametrize("chunk_bytes", [None, 5000])
@pytest.mark.parametrize("mmap", [False, True])
def test_it_is_restored_as_saved(tmp_path: Path, compression: Any, chunk_bytes: int | None, mmap: bool) -> None:
    save(tmp_path / "c", TREE, zarr_format=3, compression=compression, chunk_bytes=chunk_bytes)
    assert_same(restore(tmp_path / "c", mmap=mmap))


def test_raw_arrays_are_mapped_where_they_lie_in_their_shards(url: Path) -> None:
    mapped = restore(url, mmap=True)
    assert not mapped["w"].flags.owndata
    mapped["w"][:] = 0  # a copy of its own
    assert_same(restore(url))
    assert restore(url)["w"].base.nbytes <= mapped["w"].nbytes + 64  # nothing of the shard around it


def test_explain_tells_that_the_index_is_fetched_first(url: Path) -> None:
    checkpoint = Checkpoint(url)
    (whole,) = checkpoint.explain("w")
    assert (whole.key, whole.length) == (b"w/c/0/0", 96_020)
    index, rows = checkpoint.explain("w", slice(10, 12))
    assert index == Fetch(b"w/c/0/0", whole.file, whole.offset + 96_000, 20)
    assert rows == Fetch(b"w/c/0/0", whole.file, whole.offset + 3200, 640)
    assert np.array_equal(checkpoint["w"][10:12], TREE["w"][10:12])


def test_damage_to_an_index_is_found_and_named(url: Path) -> None:
    (fetch,) = Checkpoint(url).explain("w")
    assert fetch.file is not None
    data = bytearray((url / fetch.file).read_bytes())
    data[fetch.offset + fetch.length - 1] ^= 1
    (url / fetch.file).write_bytes(data)
    for mmap in (False, True):
        with pytest.raises(CorruptDataError, match=r"'w'.*CRC-32C"):
            restore(url, mmap=mmap)
    assert np.array_equal(restore(url, select="small")["small"], TREE["small"])


def test_a_database_may_hold_arrays_of_both_formats_and_groups(tmp_path: Path) -> None:
    arrays = {"a": np.arange(6.0), "g/b": np.arange(8, dtype=np.int16), "old": np.ones((2, 2))}
    specs = {
        "a": Encoding(None, zarr_format=3).spec(arrays["a"]),
        "g/b": ArraySpec(
            *((8,), (2,), np.dtype("i2"), "C", 0, Compressor("zstd", 1), ".", ">", 3, "v2"),
            sharding=Sharding((4,), index_at_start=True),
        ),
        "old": Encoding(None).spec(arrays["old"]),
    }
    database = open_database(tmp_path / "bare", "x")
    for name, array in arrays.items():
        database.update({key: bytes(value) for key, value in encode_array(name, array, specs[name])})
    group = b'{"zarr_format":3,"node_type":"group"}'
    database.update({b"zarr.json": group, b"g/zarr.json": group})
    found = restore(tmp_path / "bare")
    assert found.keys() == arrays.keys()
    assert all(np.array_equal(found[name], array) for name, array in arrays.items())
    assert np.array_equal(Checkpoint(tmp_path / "bare")["g/b"][3:7:2], arrays["g/b"][3:7:2])


def test_a_chunk_that_is_missing_is_named(url: Path) -> None:
    database = open_database(url, "r+")
    del database[b"small/c/0"]
    with pytest.raises(CorruptDataError, match="'small'") as caught:
        restore(url)
    assert caught.value.kind == "missing-chunk"
    assert caught.value.url is not None
