from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from ocdbt_py.backends import MemoryStorage
from ocdbt_py.checkpoint.checkpoint import Checkpoint
from ocdbt_py.checkpoint.restore import restore
from ocdbt_py.checkpoint.save import save
from ocdbt_py.database import open as open_database
from ocdbt_py.errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    InvalidTypeError,
    OcdbtError,
    UnsupportedError,
)
from ocdbt_py.testing.faulty import FaultyStorage
from tests.checkpoint.places import NewPlace, save_at


class Pair(NamedTuple):
    first: Any
    second: Any


@dataclass
class Layer:
    weight: Any


def test_a_tree_is_saved_and_restored(tmp_path: Path) -> None:
    tree = {
        "array": np.arange(6.0).reshape(2, 3),
        "pair": Pair(np.array([1, 2], np.int8), (1, -0.0)),
        "layer": Layer(True),
        "text": "x",
        "none": None,
        "empty": [{}, [], ()],
    }
    save(tmp_path / "c", tree)
    found = restore(tmp_path / "c")
    np.testing.assert_equal(
        found,
        {
            "array": np.arange(6.0).reshape(2, 3),
            "pair": {"first": np.array([1, 2], np.int8), "second": [1, -0.0]},
            "layer": {"weight": True},
            "text": "x",
            "none": None,
            "empty": [{}, [], ()],
        },
    )
    assert str(found["pair"]["second"][1]) == "-0.0"


def test_keys_that_are_no_strings_come_back_as_strings(tmp_path: Path) -> None:
    save(tmp_path / "c", {2: 1, 10: [2]})
    assert restore(tmp_path / "c") == {"10": [2], "2": 1}


def test_nan_payloads_and_negative_zeros_survive(tmp_path: Path) -> None:
    bits = np.array([0x7FF8000000000123, 0xFFF0000000000001, 0x8000000000000000], np.uint64)
    save(tmp_path / "c", {"x": bits.view(np.float64), "y": float(bits.view(np.float64)[2])})
    found = restore(tmp_path / "c")
    assert found["x"].view(np.uint64).tolist() == bits.tolist()
    assert str(found["y"]) == "-0.0"


@pytest.mark.parametrize("compression", ["auto", None])
@pytest.mark.parametrize("dtype", [">f4", ">i8", ">c16", ">u2"])
def test_arrays_of_another_byte_order_keep_their_numbers(compression: str | None, dtype: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(4).integers(0, 255, 64 << 10, np.uint8)
    tree = {
        "long": noise.astype(dtype),
        "short": noise[:6].astype(dtype).reshape(2, 3),
        "none": noise[:0].astype(dtype),
    }
    save(tmp_path / "c", tree, compression=compression)
    np.testing.assert_equal(restore(tmp_path / "c", verify=True), tree)


def test_every_kind_of_url_names_a_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for url, options in [
        ("relative/c", {}),
        (f"file://{tmp_path}/b", {}),
        (tmp_path / "a", {}),
        ("memory://save/every-kind", {}),
        ("/save/other", {"fs": memory}),
    ]:
        save(url, {"x": 1}, **options)
        assert restore(url, **options) == {"x": 1}
        assert dict(Checkpoint(url, **options)) == {"x": 1}
    assert (tmp_path / "relative/c/_METADATA").exists()


def test_the_database_is_as_orbax_makes_it(tmp_path: Path) -> None:
    save(tmp_path / "c", {"small": np.arange(32.0), "large": np.arange(33.0)}, compression=None)
    database = open_database(tmp_path / "c")
    assert [version.generation for version in database.versions()] == [1]
    config = database.config
    assert (config.max_inline_value_bytes, config.max_decoded_node_bytes) == (1024, 100_000_000)
    assert (config.manifest_kind, config.compression, config.version_tree_arity_log2) == ("single", "zstd", 4)
    assert list(database) == [b"large/.zarray", b"large/0", b"small/.zarray", b"small/0"]
    assert database.stat(b"small/0").location is None
    assert database.stat(b"large/0").location is not None
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == [
        "_CHECKPOINT_METADATA",
        "_METADATA",
        "commit_success.txt",
        "d",
        "manifest.ocdbt",
        "ocdbt_checksums",
    ]


def test_long_values_begin_on_multiples_of_64_bytes(tmp_path: Path) -> None:
    save(tmp_path / "c", {f"x{i}": np.zeros(2000 + i, np.int8) for i in range(9)}, compression=None)
    entries = list(open_database(tmp_path / "c").scan())
    offsets = [entry.location.offset for entry in entries if entry.location]
    assert len(offsets) == 9
    assert all(offset % 64 == 0 for offset in offsets)


def test_a_tree_without_arrays_has_no_database(tmp_path: Path) -> None:
    save(tmp_path / "c", {"text": "x", "none": None})
    assert not (tmp_path / "c/manifest.ocdbt").exists()
    assert restore(tmp_path / "c") == {"text": "x", "none": None}


def test_custom_metadata_and_commit_text_are_written(tmp_path: Path) -> None:
    save(tmp_path / "c", {"x": 1}, custom_metadata={"a": [1, None]})
    document = json.loads((tmp_path / "c/_CHECKPOINT_METADATA").read_bytes())
    assert document["custom_metadata"] == {"a": [1, None]}
    assert 0 < document["init_timestamp_nsecs"] <= document["commit_timestamp_nsecs"]
    assert (tmp_path / "c/commit_success.txt").read_text().endswith(str(tmp_path / "c"))


def test_progress_is_told_of_the_bytes_of_arrays(tmp_path: Path) -> None:
    class Progress:
        size = done = 0

        def set_size(self, size: int) -> None:
            self.size = size

        def relative_update(self, count: int) -> None:
            self.done += count

    saving, restoring = Progress(), Progress()
    save(tmp_path / "c", {"x": np.zeros(100), "y": 1, "z": "text"}, progress=saving)
    restore(tmp_path / "c", progress=restoring)
    assert (saving.size, saving.done) == (808, 808) == (restoring.size, restoring.done)


def test_what_the_caller_does_with_the_tree_later_changes_nothing(tmp_path: Path) -> None:
    array = np.arange(5000.0)
    save(tmp_path / "c", {"x": array}, compression=None)
    array[:] = 0
    assert restore(tmp_path / "c")["x"].tolist() == list(range(5000))


def test_an_existing_checkpoint_is_kept_unless_overwrite_is_given(tmp_path: Path) -> None:
    save(tmp_path / "c", {"x": 1, "text": "old"})
    with pytest.raises(AlreadyExistsError, match="overwrite=True"):
        save(tmp_path / "c", {"x": 2})
    assert restore(tmp_path / "c") == {"x": 1, "text": "old"}
    save(tmp_path / "c", {"x": 2}, overwrite=True)
    assert restore(tmp_path / "c") == {"x": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_an_empty_directory_is_a_place_to_save(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    save(tmp_path / "c", {"x": 1})
    assert restore(tmp_path / "c") == {"x": 1}


BAD = [
    ({"a.b": 0, "a": {"b": 1}}, {}, InvalidArgumentError),
    ({"a": 0, "a/0": 1}, {}, InvalidArgumentError),
    ({"a": "text", "a/b": "text"}, {}, InvalidArgumentError),
    ({"a~": "text"}, {}, UnsupportedError),
    ({"a" * 70_000: 1}, {}, InvalidArgumentError),
    ({"a": {1, 2}}, {}, UnsupportedError),
    ({"a": 1 << 64}, {}, InvalidArgumentError),
    ({"a": np.array(["x"])}, {}, UnsupportedError),
    ({"a": np.zeros((1,) * 33)}, {}, InvalidArgumentError),
    ({1: 0, "a": 0}, {}, InvalidTypeError),
    ({}, {}, UnsupportedError),
    ([], {}, UnsupportedError),
    (None, {}, UnsupportedError),
    ({"a": 1}, {"compression": "lz4"}, InvalidArgumentError),
    ({"a": np.zeros(2)}, {"chunk_bytes": 3}, InvalidArgumentError),
    ({"a": 1}, {"custom_metadata": {"x": object()}}, InvalidTypeError),
]


@pytest.mark.parametrize(("tree", "options", "error"), BAD, ids=range(len(BAD)))
def test_what_cannot_be_saved_is_refused_before_anything_is_written(
    tree: Any, options: dict[str, Any], error: type[OcdbtError], tmp_path: Path
) -> None:
    with pytest.raises(error):
        save(tmp_path / "c", tree, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["{}/c|ocdbt:@v3", "{}/c|ocdbt:prefix/"])
def test_a_url_of_a_version_or_prefix_is_no_checkpoint(url: str, tmp_path: Path) -> None:
    for call in (lambda place: save(place, {"x": 1}), restore, Checkpoint):
        with pytest.raises(InvalidArgumentError, match="ocdbt:"):
            call(url.format(tmp_path))


def test_a_deep_tree_and_a_wide_one_are_saved(tmp_path: Path) -> None:
    deep: Any = np.arange(3)
    for level in range(120):
        deep = [deep] if level % 3 else {f"level{level}": deep}
    tree = {"deep": deep, "wide": {f"w{i}": np.full(2, i) for i in range(3000)}}
    save(tmp_path / "c", tree, durable=False)
    np.testing.assert_equal(restore(tmp_path / "c"), tree)
    np.testing.assert_equal(restore(tmp_path / "c", tree), tree)


def test_the_number_of_storage_operations_does_not_grow_with_the_leaves(new_place: NewPlace) -> None:
    counts = []
    for leaves in (10, 1000):
        storage = FaultyStorage(MemoryStorage())
        save_at(new_place(storage), {f"x{i}": np.zeros(300) for i in range(leaves)})
        counts.append(storage.operations)
    assert counts[0] == counts[1]


def test_chunks_and_compression_are_as_asked(tmp_path: Path) -> None:
    tree = {"x": np.zeros((64, 96), np.float32), "y": np.zeros(4)}
    save(tmp_path / "c", tree, compression="zstd:5", chunk_bytes=1024)
    checkpoint = Checkpoint(tmp_path / "c")
    assert checkpoint["x"].chunks == (16, 16)
    assert checkpoint["x"].spec.compressor.level == 5
    assert checkpoint["y"].chunks == (4,)
    np.testing.assert_equal(restore(tmp_path / "c"), tree)
