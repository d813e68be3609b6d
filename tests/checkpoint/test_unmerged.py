"""Databases of several processes, read as one."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from ocdbt_py.checkpoint.checkpoint import Checkpoint
from ocdbt_py.checkpoint.restore import restore
from ocdbt_py.checkpoint.save import save
from ocdbt_py.checkpoint.unmerged import Unmerged
from ocdbt_py.checkpoint.views import Overlay
from ocdbt_py.database import open as open_database
from ocdbt_py.errors import CorruptDataError, UncommittedError
from ocdbt_py.storage.location import Place, resolve


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Three parts, of which one was never begun."""
    for name, values in (("0", {"a": b"old", "b": b"0" * 5000}), ("1", {"a": b"new", "c": b"1" * 5000})):
        with open_database(tmp_path / f"ocdbt.process_{name}", "x") as database:
            database.update(values)
    (tmp_path / "ocdbt.process_2").mkdir()
    return resolve(tmp_path)


def unmerged(place: Place) -> Unmerged:
    return Unmerged(place, [f"ocdbt.process_{i}" for i in range(3)])


def test_keys_of_all_parts_are_there_and_of_equal_ones_the_last_counts(place: Place) -> None:
    view = pickle.loads(pickle.dumps(unmerged(place)))
    assert dict(view.items()) == {b"a": b"new", b"b": b"0" * 5000, b"c": b"1" * 5000}
    assert view.read_many(["c", ("b", 4990, None), "d"], None) == [b"1" * 5000, b"0" * 10, None]
    assert [entry.key for entry in view.scan("b", "c")] == [b"b"]
    assert len(view) == 3
    location = view.stat("c").location
    assert location is not None
    assert location.file.startswith("ocdbt.process_1/d/")


def test_values_in_memory_stand_before_those_below(place: Place) -> None:
    view = Overlay(place, {b"b": memoryview(b"mine"), b"d": b"more"}, unmerged(place))
    assert list(view.items()) == [(b"a", b"new"), (b"b", b"mine"), (b"c", b"1" * 5000), (b"d", b"more")]
    assert view.read_many(["d", "c", "e"], None) == [b"more", b"1" * 5000, None]
    alone = Overlay(place, {b"b": b"mine"}, None)
    assert list(alone.items()) == [(b"b", b"mine")]
    assert alone.get("a") is None


def test_an_interrupted_save_is_read_only_when_allowed_and_lists_what_is_missing(tmp_path: Path) -> None:
    save(tmp_path / "c", {"w": np.arange(2000.0).reshape(2, 1000), "n": 3, "s": "text"}, chunk_bytes=8000)
    unfinished = tmp_path / "7.orbax-checkpoint-tmp"
    (unfinished / "default").mkdir(parents=True)
    (tmp_path / "c").rename(unfinished / "default/ocdbt.process_0")
    for name in ("_METADATA", "_strings.json"):
        (unfinished / "default/ocdbt.process_0" / name).rename(unfinished / "default" / name)
    with pytest.raises(UncommittedError):
        restore(unfinished / "default")
    found = restore(unfinished / "default", allow_uncommitted=True)
    np.testing.assert_equal(found, {"n": 3, "s": "text", "w": np.arange(2000.0).reshape(2, 1000)})
    checkpoint = Checkpoint(unfinished / "default", allow_uncommitted=True)
    assert checkpoint["w"][1, 5] == 1005
    # older releases leave out chunks of zeros; here it may as well be one that another process never wrote
    metadata = unfinished / "default/_METADATA"
    metadata.write_text(metadata.read_text().replace('fill_value": true', 'fill_value": false'))
    with open_database(unfinished / "default/ocdbt.process_0", "r+") as database:
        del database["w/0.1"]
    with pytest.raises(CorruptDataError, match=r"'w': chunk b'w/0\.1' is missing"):
        restore(unfinished / "default", allow_uncommitted=True)
