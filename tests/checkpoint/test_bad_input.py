"""Damaged and hostile checkpoints in every layout: an error of ours that names the leaf and the file, nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ocdbt_py.checkpoint.checkpoint import Checkpoint
from ocdbt_py.checkpoint.restore import restore
from ocdbt_py.checkpoint.save import save
from ocdbt_py.database import open as open_database
from ocdbt_py.errors import CorruptDataError, InvalidArgumentError, OcdbtError, UncommittedError, UnsupportedError

LAYOUTS = ["zarr2", "zarr3", "directories", "directories of zarr3"]


class Stored:
    """A checkpoint whose values can be exchanged, whatever its layout."""

    def __init__(self, url: Path, layout: str) -> None:
        self.url = url
        self.zarr3 = layout.endswith("zarr3")
        self.document = "layer.long/zarr.json" if self.zarr3 else "layer.long/.zarray"
        self.chunk = "layer.long/c/0" if self.zarr3 else "layer.long/0"
        self._in_database = "directories" not in layout
        save(url, {"layer": {"long": np.arange(1000.0)}, "name": "x", "step": 1}, zarr_format=3 if self.zarr3 else 2)
        if not self._in_database:
            for key, value in open_database(url).items():
                path = url / key.decode()
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(value)
            (url / "manifest.ocdbt").unlink()
            shutil.rmtree(url / "d")
            metadata = json.loads((url / "_METADATA").read_bytes()) | {"use_ocdbt": False}
            (url / "_METADATA").write_text(json.dumps(metadata))

    def __getitem__(self, key: str) -> bytes:
        return open_database(self.url)[key] if self._in_database else (self.url / key).read_bytes()

    def __setitem__(self, key: str, value: bytes) -> None:
        if self._in_database:
            with open_database(self.url, "r+") as database:
                database[key] = value
        else:
            (self.url / key).write_bytes(value)

    def __delitem__(self, key: str) -> None:
        if self._in_database:
            with open_database(self.url, "r+") as database:
                del database[key]
        else:
            (self.url / key).unlink()

    def claim(self, **changes: Any) -> None:
        self[self.document] = json.dumps(json.loads(self[self.document]) | changes).encode()


@pytest.fixture(params=LAYOUTS)
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> Stored:
    return Stored(tmp_path / "c", request.param)


def cut_chunk(stored: Stored) -> None:
    stored[stored.chunk] = stored[stored.chunk][:-20]


def empty_chunk(stored: Stored) -> None:
    stored[stored.chunk] = b""


def remove_chunk(stored: Stored) -> None:
    del stored[stored.chunk]


def remove_document(stored: Stored) -> None:
    del stored[stored.document]


def deepen_document(stored: Stored) -> None:
    stored[stored.document] = b'{"a":' * 9000


def deepen_document_beyond_any_size(stored: Stored) -> None:
    stored[stored.document] = b"[" * 3_000_000


def name_a_codec_that_runs_code(stored: Stored) -> None:
    if stored.zarr3:
        stored.claim(codecs=[{"name": "pickle", "configuration": {}}])
    else:
        stored.claim(compressor={"id": "pickle"})


def say_objects(stored: Stored) -> None:
    stored.claim(**{"data_type": "object"} if stored.zarr3 else {"dtype": "|O"})


def claim_more_than_there_is(stored: Stored) -> None:
    stored.claim(shape=[3000])


def claim_another_type(stored: Stored) -> None:
    stored.claim(**{"data_type": "float32"} if stored.zarr3 else {"dtype": "<f4"})


def claim_an_exabyte(stored: Stored) -> None:
    stored.claim(shape=[2**60])
    del stored[stored.chunk]


DOCUMENT, CHUNK = "document", "chunk"

DAMAGE: list[tuple[Callable[[Stored], None], type[OcdbtError], str]] = [
    (cut_chunk, CorruptDataError, CHUNK),
    (empty_chunk, CorruptDataError, CHUNK),
    (remove_chunk, CorruptDataError, CHUNK),
    (remove_document, CorruptDataError, DOCUMENT),
    (deepen_document, CorruptDataError, DOCUMENT),
    (deepen_document_beyond_any_size, CorruptDataError, DOCUMENT),
    (name_a_codec_that_runs_code, UnsupportedError, DOCUMENT),
    (say_objects, UnsupportedError, DOCUMENT),
    (claim_more_than_there_is, CorruptDataError, "layer.long/c/1|layer.long/1"),
    (claim_another_type, CorruptDataError, CHUNK),
    (claim_an_exabyte, CorruptDataError, CHUNK),
]


@pytest.mark.parametrize(("damage", "kind", "where"), DAMAGE, ids=lambda value: getattr(value, "__name__", ""))
def test_every_damage_is_named_by_leaf_and_file(
    damage: Callable[[Stored], None], kind: type[OcdbtError], where: str, stored: Stored
) -> None:
    damage(stored)
    names = {DOCUMENT: stored.document, CHUNK: stored.chunk}.get(where, where).split("|")
    ways: list[Callable[[], Any]] = [
        lambda: restore(stored.url),
        lambda: restore(stored.url, mmap=True),
        lambda: restore(stored.url, {"layer": {"long": np.zeros(1000)}, "name": "", "step": 0}, strict=False),
        lambda: Checkpoint(stored.url)["layer.long"].read(),
    ]
    for read in ways:
        with pytest.raises(kind) as caught:
            read()
        assert any(name in str(caught.value) for name in names), caught.value
    assert restore(stored.url, select="name") == {"name": "x"}


@pytest.mark.parametrize("lost", ["removed", "cut"])
def test_a_data_file_that_is_gone_or_cut_is_named_with_a_leaf_in_it(lost: str, tmp_path: Path) -> None:
    save(tmp_path / "c", {f"x{i}": np.arange(1000.0) + i for i in range(5)}, compression=None)
    with open_database(tmp_path / "c", "r+") as database:
        database["zzz"] = b""  # moves the tree into another file than the values
        places = {i: database.stat(f"x{i}/0").location for i in range(5)}
    last = places[4]
    assert last is not None
    file = tmp_path / "c" / last.file
    if lost == "removed":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: last.offset + 10])
    for mmap in (False, True):
        with pytest.raises(CorruptDataError) as caught:
            restore(tmp_path / "c", mmap=mmap)
        assert last.file in str(caught.value)
        assert "x4" in str(caught.value) or lost == "removed"
        assert "/0'" in str(caught.value)
    with pytest.raises(CorruptDataError, match="x4/0"), open_database(tmp_path / "c") as database:
        database.read("x4/0", start=-1)


def test_leaves_that_would_share_a_name_are_refused_both_ways(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"'a\.b'.*\('a', 'b'\).*\('a\.b',\)"):
        save(tmp_path / "c", {"a.b": np.arange(3), "a": {"b": np.arange(3)}})
    assert not any(tmp_path.iterdir())
    save(tmp_path / "c", {"a": {"b": np.arange(3)}})
    document = json.loads((tmp_path / "c" / "_METADATA").read_bytes())
    entry = document["tree_metadata"]["('a', 'b')"]
    document["tree_metadata"]["again"] = entry | {"key_metadata": [{"key": "a.b", "key_type": 2}]}
    (tmp_path / "c" / "_METADATA").write_text(json.dumps(document))
    with pytest.raises(CorruptDataError, match=r"_METADATA.*'a\.b'"):
        restore(tmp_path / "c")


@pytest.mark.parametrize("array", [np.array([object()]), np.array(["a"]), np.zeros(2, "f4,i4"), np.zeros(1, "M8[s]")])
def test_arrays_that_no_format_has_are_refused_by_leaf_before_anything_is_written(array: Any, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"'layer\.odd'"):
        save(tmp_path / "c", {"layer": {"odd": array, "fine": np.zeros(3)}})
    assert not any(tmp_path.iterdir())


def test_a_checkpoint_being_written_is_told_whatever_its_release_calls_it(tmp_path: Path) -> None:
    for suffix in ("", "-17", "-1795228850528580558"):
        final = tmp_path / f"c{suffix}"
        save(final, {"x": 1})
        unfinished = final.rename(tmp_path / f"{final.name}.orbax-checkpoint-tmp{suffix}")
        for asked in (final, unfinished):
            with pytest.raises(UncommittedError) as caught:
                restore(asked)
            assert str(unfinished) in str(caught.value)
        assert restore(unfinished, allow_uncommitted=True) == {"x": 1}
