"""Checkpoints of several items: what is in them, and what cannot be."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ocdbt_py.backends import MemoryStorage
from ocdbt_py.checkpoint.async_saving import begin_save
from ocdbt_py.checkpoint.checkpoint import Checkpoint
from ocdbt_py.checkpoint.contents import Contents, Item, Tree, direct, json_item, pytree_item
from ocdbt_py.checkpoint.encoding import Encoding
from ocdbt_py.checkpoint.layout import child, is_finished, read_file
from ocdbt_py.checkpoint.layout import identify as identified
from ocdbt_py.checkpoint.metadata import CHECKPOINT_METADATA, COMMIT_MARKER, METADATA
from ocdbt_py.checkpoint.restore import restore_place
from ocdbt_py.checkpoint.save import BegunSave
from ocdbt_py.errors import (
    InvalidArgumentError,
    InvalidTypeError,
    PathNotFoundError,
    StorageError,
    UnsupportedError,
)
from ocdbt_py.storage.location import Place
from ocdbt_py.testing.faulty import FaultyStorage
from tests.checkpoint.places import Bucket, NewPlace

TREE = {"w": np.arange(600.0), "name": "n"}


def test_a_step_records_its_items_and_their_handlers(place: Place) -> None:
    items = {"state": pytree_item(TREE), "note": json_item({"x": [1, None]}), "empty": pytree_item({"a": None})}
    BegunSave(place, Contents(items, {"lang": "en"}, {"beside": b""})).write()
    recorded = json.loads(read_file(place, CHECKPOINT_METADATA) or b"")
    assert list(recorded["item_handlers"]) == ["state", "note", "empty"]
    assert recorded["item_handlers"]["note"].endswith(".JsonCheckpointHandler")
    assert recorded["custom_metadata"] == {"lang": "en"}
    assert recorded["commit_timestamp_nsecs"] > recorded["init_timestamp_nsecs"]
    assert read_file(place, "beside") == b""
    for item in ("state", "note", "empty"):
        assert read_file(child(place, item), COMMIT_MARKER) is not None
    assert Checkpoint._reopen(place, None, False).item_names() == ["empty", "note", "state"]
    np.testing.assert_equal(restore_place(place, item="state"), TREE)
    assert restore_place(place, item="note") == {"x": [1, None]}
    assert restore_place(place, item="empty") == {"a": None}


def test_an_item_has_metadata_of_its_own(place: Place) -> None:
    BegunSave(place, Contents({"a": pytree_item(TREE, custom_metadata={"k": 1}), "b": pytree_item(TREE)})).write()
    said = {name: json.loads(read_file(child(place, name), METADATA) or b"")["custom_metadata"] for name in "ab"}
    assert said == {"a": {"k": 1}, "b": None}


def test_items_are_stored_as_each_says(place: Place) -> None:
    trees = {"two": Tree(TREE, Encoding(None)), "three/deep": Tree(TREE, Encoding(None, zarr_format=3))}
    BegunSave(place, Contents({"both": Item(None, trees)})).write()
    said = {name: json.loads(read_file(place, f"both/{name}/{METADATA}") or b"")["use_zarr3"] for name in trees}
    assert said == {"two": False, "three/deep": True}
    np.testing.assert_equal(restore_place(child(place, "both/three/deep")), TREE)


@pytest.mark.parametrize("kind", [FaultyStorage, Bucket])
def test_an_item_counts_as_finished_when_its_step_does(kind: type[FaultyStorage], new_place: NewPlace) -> None:
    place = new_place(kind(MemoryStorage()))
    BegunSave(place, Contents({"state": pytree_item(TREE)})).write()
    assert is_finished(identified(child(place, "state")))


@pytest.mark.parametrize("kind", [FaultyStorage, Bucket])
def test_when_one_item_cannot_be_written_nothing_is_left_of_the_others(
    kind: type[FaultyStorage], new_place: NewPlace
) -> None:
    items = {name: pytree_item({"w": np.arange(5000.0)}, Encoding(None)) for name in "abc"}
    at = 0
    while True:
        at += 1
        storage = kind(MemoryStorage(), at=at, fault="fail")
        place = new_place(storage)
        try:
            BegunSave(place, Contents(items)).write()
        except StorageError:
            assert [item.path for item in place.storage.list(place.path)] == []
            continue
        break
    assert at > 12


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "a\0", "x.orbax-checkpoint-tmp", "beside"])
def test_an_item_is_named_as_one_directory(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="name of an item"):
        Contents({"fine": json_item(1), name: json_item(1)}, files={"beside": b""})


def test_a_checkpoint_has_an_item() -> None:
    with pytest.raises(InvalidArgumentError, match="at least one"):
        Contents({})


def test_json_takes_what_json_can_hold() -> None:
    with pytest.raises(InvalidTypeError, match="JSON"):
        json_item({"x": object()})


def test_a_leaf_that_cannot_be_saved_is_told_before_anything_is_written(place: Place) -> None:
    items = {"good": pytree_item(TREE), "bad": pytree_item({"x": object()})}
    with pytest.raises(UnsupportedError):
        begin_save(place, Contents(items))
    with pytest.raises(PathNotFoundError):
        restore_place(place)


def test_what_is_to_follow_a_save_is_done_once_the_checkpoint_is_seen(place: Place) -> None:
    found = []
    begin_save(place, direct(TREE, Encoding(None)), then=lambda: found.append(restore_place(place))).result(60)
    np.testing.assert_equal(found, [TREE])


def test_a_save_fails_with_what_was_to_follow_it(place: Place) -> None:
    def then() -> None:
        raise StorageError("Nothing can be deleted")

    with pytest.raises(StorageError, match="Nothing can be deleted"):
        begin_save(place, direct(TREE, Encoding(None)), then=then).result(60)
    np.testing.assert_equal(restore_place(place), TREE)


def test_what_is_to_follow_a_save_is_not_done_if_it_failed(new_place: NewPlace) -> None:
    done = []
    place = new_place(FaultyStorage(MemoryStorage(), at=1, fault="fail"))
    handle = begin_save(place, direct(TREE, Encoding(None)), then=lambda: done.append(1))
    with pytest.raises(StorageError):
        handle.result(60)
    assert not done
