"""A save that goes wrong at any step leaves a whole checkpoint or none, and never loses the one it was to replace."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest

from ocdbt_py.backends import MemoryStorage
from ocdbt_py.checkpoint.checksums import CHECKSUMS
from ocdbt_py.checkpoint.contents import Contents, Item, Tree, json_item, pytree_item
from ocdbt_py.checkpoint.encoding import Encoding
from ocdbt_py.checkpoint.layout import child, identify, read_file, replaced_path, temporary_path
from ocdbt_py.checkpoint.metadata import CHECKPOINT_METADATA, COMMIT_MARKER, STRINGS
from ocdbt_py.checkpoint.restore import restore_place
from ocdbt_py.checkpoint.save import BegunSave
from ocdbt_py.errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    NotFoundError,
    StorageError,
    UncommittedError,
    UnsupportedError,
)
from ocdbt_py.storage.location import Place
from ocdbt_py.storage.protocol import Capabilities
from ocdbt_py.testing.faulty import Crash, FaultyStorage
from tests.checkpoint.places import Bucket, NewPlace, save_at

OLD = {"x": np.arange(2000.0), "old": "text", "z": {}}
NEW = {"w": np.arange(2500.0), "x": np.arange(3000.0) + 1, "y": [1, 2.5], "z": None}
Outcome = Literal["old", "new", "none", "unfinished"]
STORAGES = pytest.mark.parametrize("kind", [FaultyStorage, Bucket])
LAYOUTS = pytest.mark.parametrize("layout", ["direct", "items"])
FAULTS = pytest.mark.parametrize("fault", ["crash", "fail", "ambiguous", "conflict"])


def store(place: Place, tree: Any, layout: str = "direct", *, overwrite: bool = False) -> None:
    if layout == "direct":
        save_at(place, tree, overwrite=overwrite)
        return
    items = {"tree": pytree_item(tree, Encoding(None)), "note": json_item("old" in tree)}
    if "old" in tree:
        items["gone"] = Item(None, {"below": Tree(OLD, Encoding(None))})
    BegunSave(place, Contents(items), overwrite=overwrite).write()


def outcome(place: Place, layout: str = "direct") -> Outcome:
    """What a reader finds; anything but one of the two trees, whole, fails."""
    try:
        tree = restore_place(place, item=None if layout == "direct" else "tree")
    except UncommittedError:
        return "unfinished"
    except NotFoundError:
        return "none"
    name: Outcome = "old" if "old" in tree else "new"
    np.testing.assert_equal(tree, OLD if name == "old" else NEW)
    if layout == "items":
        assert restore_place(place, item="note") is (name == "old")
        assert set(identify(place).items) == {"tree", "note"} | ({"gone"} if name == "old" else set())
        place = child(place, "tree")
    assert (read_file(place, STRINGS) is None) == (name == "new")  # which would be the other checkpoint's
    return name


def files_beside(place: Place) -> list[str]:
    """Everything below the directory above, but what lies in the checkpoint itself."""
    above = place.path.rpartition("/")[0] + "/"
    return [item.path for item in place.storage.list(above, deep=True) if not item.path.startswith(place.path + "/")]


def faulty_saves(kind: type[FaultyStorage], fault: Any, layout: str, new_place: NewPlace, *, overwrite: bool) -> Any:
    """For each step of a save: (number, the faulty storage, a place of it where the save went wrong)."""
    at = 0
    while True:
        at += 1
        storage = kind(MemoryStorage())
        place = new_place(storage)
        if overwrite:
            store(place, OLD, layout)
        storage.steps, storage.at, storage.fault = 0, at, fault
        raised = False
        try:
            store(place, NEW, layout, overwrite=overwrite)
        except (Crash, StorageError):
            raised = True
        if storage.steps < at:
            break
        yield raised, storage, replace(place, storage=kind(storage.inner))
    assert at > 7


@STORAGES
@LAYOUTS
@FAULTS
def test_a_first_save_that_goes_wrong_leaves_all_or_nothing(
    kind: type[FaultyStorage], layout: str, fault: Any, new_place: NewPlace
) -> None:
    seen = set()
    for raised, storage, place in faulty_saves(kind, fault, layout, new_place, overwrite=False):
        storage.lose_unsynced()
        found = outcome(place, layout)
        seen.add(found)
        assert raised or found == "new"
        if fault == "fail":
            assert raised
            assert found == "none"
            assert [item.path for item in place.storage.list(place.path)] == []
        store(place, NEW, layout, overwrite=(found != "none" and kind is Bucket) or found == "new")
        assert outcome(place, layout) == "new"
        assert files_beside(place) == []
    assert "old" not in seen


@STORAGES
@LAYOUTS
@FAULTS
def test_an_overwrite_that_goes_wrong_never_loses_the_old_checkpoint_before_the_new_is_complete(
    kind: type[FaultyStorage], layout: str, fault: Any, new_place: NewPlace
) -> None:
    seen = set()
    for raised, storage, place in faulty_saves(kind, fault, layout, new_place, overwrite=True):
        storage.lose_unsynced()
        found = outcome(place, layout)
        seen.add(found)
        if found == "unfinished" and kind is FaultyStorage:
            with pytest.raises(UncommittedError, match=r"old one is whole: rename .*-replaced"):
                restore_place(place)
            beside = replace(place, path=replaced_path(place.path))
            item = None if layout == "direct" else "tree"
            np.testing.assert_equal(restore_place(beside, item=item, allow_uncommitted=True), OLD)
        assert found != "none"
        assert found == "new" or raised
        if fault == "fail":
            assert found in ("old", "new") or kind is Bucket
            assert files_beside(place) == [] or found == "new"
        store(place, NEW, layout, overwrite=True)
        assert outcome(place, layout) == "new"
        assert files_beside(place) == []
    assert {"old", "new"} <= seen


@STORAGES
def test_after_an_overwrite_nothing_of_the_old_checkpoint_is_left(
    kind: type[FaultyStorage], new_place: NewPlace
) -> None:
    place = new_place(kind(MemoryStorage()))
    store(place, OLD)
    before = {item.path for item in place.storage.list(place.path + "/", deep=True)}
    store(place, NEW, overwrite=True)
    after = {item.path for item in place.storage.list(place.path + "/", deep=True)}
    names = {path.removeprefix(place.path + "/") for path in after}
    data = {name for name in names if name.startswith("d/")}
    assert names - data == {"manifest.ocdbt", CHECKSUMS, "_METADATA", CHECKPOINT_METADATA, COMMIT_MARKER}
    assert len(data) == (2 if kind is Bucket else 1)  # in a bucket the values, and the tree
    assert not {place.path + "/" + name for name in data} & before
    assert files_beside(place) == []


def test_an_interrupted_replacement_is_undone_by_the_next_save_without_overwrite(new_place: NewPlace) -> None:
    place = new_place()
    store(place, OLD)
    place.storage.rename(place.path, replaced_path(place.path))
    with pytest.raises(AlreadyExistsError):
        store(place, NEW)
    assert outcome(place) == "old"
    assert files_beside(place) == []


@STORAGES
def test_something_that_is_there_already_is_never_touched(kind: type[FaultyStorage], new_place: NewPlace) -> None:
    for name, overwrite in [("notes.txt", False), ("notes.txt", True), ("manifest.ocdbt", True), ("sub/file", True)]:
        place = new_place(kind(MemoryStorage()))
        place.storage.write(f"{place.path}/{name}", [b"mine"])
        with pytest.raises(AlreadyExistsError, match="checkpoints only" if overwrite else "exists already"):
            store(place, NEW, overwrite=overwrite)
        assert [item.path for item in place.storage.list(place.path, deep=True)] == [f"{place.path}/{name}"]
        assert files_beside(place) == []


@STORAGES
@pytest.mark.parametrize("files", [["checkpoint", "model.ckpt-7"], ["a/_METADATA", "b/_METADATA"], ["1/_METADATA"]])
def test_what_only_looks_like_a_checkpoint_is_not_overwritten(
    kind: type[FaultyStorage], files: list[str], new_place: NewPlace
) -> None:
    place = new_place(kind(MemoryStorage()))
    for file in files:
        place.storage.write(f"{place.path}/{file}", [b"{}"])
    with pytest.raises(AlreadyExistsError, match="checkpoints only"):
        store(place, NEW, overwrite=True)
    assert len(list(place.storage.list(place.path + "/", deep=True))) == len(files)


def test_the_old_checkpoint_of_an_interrupted_replacement_is_kept_while_it_is_the_only_one(new_place: NewPlace) -> None:
    place = new_place()
    store(place, OLD)
    beside = replace(place, path=replaced_path(place.path))
    place.storage.rename(place.path, beside.path)
    place.storage.write(f"{place.path}/notes.txt", [b"mine"])
    with pytest.raises(AlreadyExistsError, match="checkpoints only"):
        store(place, NEW, overwrite=True)
    np.testing.assert_equal(restore_place(beside, allow_uncommitted=True), OLD)


@STORAGES
def test_a_root_of_steps_is_not_overwritten(kind: type[FaultyStorage], new_place: NewPlace) -> None:
    place = new_place(kind(MemoryStorage()))
    store(child(place, "1"), OLD)
    with pytest.raises(AlreadyExistsError, match="a root of steps"):
        store(place, NEW, overwrite=True)
    assert outcome(child(place, "1")) == "old"


@STORAGES
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_in_the_place_is_refused(kind: type[FaultyStorage], overwrite: bool, new_place: NewPlace) -> None:
    place = new_place(kind(MemoryStorage()))
    place.storage.write(place.path, [b"mine"])
    with pytest.raises(AlreadyExistsError, match="is a file"):
        store(place, NEW, overwrite=overwrite)
    assert files_beside(place) == [place.path]


def test_a_name_of_unfinished_checkpoints_is_refused(new_place: NewPlace) -> None:
    place = new_place()
    with pytest.raises(InvalidArgumentError, match="unfinished"):
        store(replace(place, path=temporary_path(place.path)), NEW)


@pytest.mark.parametrize("lacking", ["writable", "list"])
def test_a_storage_that_cannot_is_refused(lacking: str, new_place: NewPlace) -> None:
    class Lacking(FaultyStorage):
        @property
        def capabilities(self) -> Capabilities:
            lacks: dict[str, Any] = {lacking: False}
            return replace(self.inner.capabilities, **lacks)

    place = new_place(Lacking(MemoryStorage()))
    with pytest.raises(UnsupportedError):
        store(place, NEW)
    assert files_beside(place) == []


def test_where_nothing_is_renamed_the_marker_is_the_last_file_and_says_finished(new_place: NewPlace) -> None:
    class Watched(Bucket):
        def __init__(self) -> None:
            super().__init__(MemoryStorage())
            self.written: list[str] = []

        def write(self, path: str, *rest: Any) -> Any:
            self.written.append(path.rpartition("/")[2])
            return super().write(path, *rest)

    storage = Watched()
    place = new_place(storage)
    store(place, NEW)
    assert storage.written[0] == CHECKPOINT_METADATA
    assert storage.written[-2:] == [CHECKPOINT_METADATA, COMMIT_MARKER]
    place.storage.delete(f"{place.path}/{COMMIT_MARKER}")
    assert outcome(place) == "new"  # as after a copy that left the marker out: the commit time says so too
    place.storage.delete(f"{place.path}/{CHECKPOINT_METADATA}")
    assert outcome(place) == "unfinished"
    place.storage.write(f"{place.path.rpartition('/')[0]}/{COMMIT_MARKER}", [b"its step's"])
    assert outcome(place) == "new"


def test_an_error_of_the_caller_s_own_leaves_nothing_behind(new_place: NewPlace) -> None:
    class Stop(BaseException):
        pass

    class Progress:
        def set_size(self, size: int) -> None:
            assert size == sum(np.asarray(leaf).nbytes for leaf in (NEW["w"], NEW["x"], 1, 2.5))

        def relative_update(self, count: int) -> None:
            raise Stop

    for kind in (FaultyStorage, Bucket):
        place = new_place(kind(MemoryStorage()))
        with suppress(Stop):
            save_at(place, NEW, progress=Progress())
        assert outcome(place) == "none"
        assert [item.path for item in place.storage.list(place.path)] == []


def test_a_save_that_fails_where_nothing_is_renamed_removes_only_what_it_wrote(new_place: NewPlace) -> None:
    class Interrupted:
        def __init__(self, place: Place) -> None:
            self.place = place

        def set_size(self, size: int) -> None:
            self.place.storage.put(f"{self.place.path}/d/theirs", [b"of another save"])

        def relative_update(self, count: int) -> None:
            raise InterruptedError

    for overwrite in (False, True):
        place = new_place(Bucket(MemoryStorage()))
        if overwrite:
            store(place, OLD)
        before = {item.path for item in place.storage.list(place.path, deep=True)}
        with suppress(InterruptedError):
            save_at(place, NEW, overwrite=overwrite, progress=Interrupted(place))
        after = {item.path for item in place.storage.list(place.path, deep=True)}
        assert after == {*before, f"{place.path}/d/theirs"}


def test_of_two_first_saves_to_a_bucket_at_once_one_is_refused_and_the_other_not_disturbed(new_place: NewPlace) -> None:
    class Overtaken(Bucket):
        def write(self, path: str, *rest: Any) -> Any:
            if not self.steps:
                self.steps = 1
                store(replace(place, storage=Bucket(self.inner)), OLD)
            return super().write(path, *rest)

    place = new_place(Overtaken(MemoryStorage()))
    with pytest.raises(AlreadyExistsError, match="in the same moment"):
        store(place, NEW)
    assert outcome(place) == "old"


def test_an_item_that_is_being_replaced_in_a_finished_step_is_unfinished(new_place: NewPlace) -> None:
    found = set()
    for _, storage, step in faulty_saves(Bucket, "crash", "direct", new_place, overwrite=False):
        inner = Bucket(storage.inner)
        item = replace(step, path=f"{step.path}-step/default", storage=inner)
        store(item, OLD)
        inner.delete(f"{item.path}/{COMMIT_MARKER}")
        inner.write(f"{step.path}-step/{COMMIT_MARKER}", [b"finished"])
        assert outcome(item) == "old"
        with suppress(Crash):
            store(replace(item, storage=Bucket(storage.inner, at=storage.at)), NEW, overwrite=True)
        found.add(outcome(item))
    assert found == {"old", "unfinished"}


def test_where_nothing_is_renamed_old_data_goes_after_the_new_marker_is_there(new_place: NewPlace) -> None:
    storage = Bucket(MemoryStorage())
    place = new_place(storage)
    store(place, OLD)
    (old,) = (item.path for item in storage.list(f"{place.path}/d/"))
    states = []

    class Watched(Bucket):
        def delete(self, path: str) -> None:
            if path == old:
                states.append(outcome(replace(place, storage=storage)))
            super().delete(path)

    store(replace(place, storage=Watched(storage.inner)), NEW, overwrite=True)
    assert states == ["new"]
    assert not list(storage.list(old))
