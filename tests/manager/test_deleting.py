"""A deletion that stops anywhere leaves a whole step, or none."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest

from ocdbt_py.backends import MemoryStorage
from ocdbt_py.checkpoint.layout import child
from ocdbt_py.checkpoint.restore import restore_place
from ocdbt_py.errors import NotFoundError, StorageError
from ocdbt_py.manager.deleting import DELETED, clean, retire
from ocdbt_py.manager.options import CheckpointManagerOptions
from ocdbt_py.manager.root import Root
from ocdbt_py.manager.step_names import StepNames
from ocdbt_py.storage.location import Place
from ocdbt_py.testing.faulty import Crash, Fault, FaultyStorage
from tests.checkpoint.places import Bucket
from tests.manager.roots import STORAGES, NewPlace, leftovers, put, storage_of, tree_of, whole


class OneByOne(Bucket):
    """Directories are only names: their files go one after the other, in an order that nobody promises."""

    backwards = False

    def delete(self, path: str) -> None:
        if path.endswith("/"):
            for item in sorted((each.path for each in self.list(path, deep=True)), reverse=self.backwards):
                super().delete(item)
        else:
            super().delete(path)


class Backwards(OneByOne):
    backwards = True


def items_that_open(place: Place) -> list[str]:
    """Places in a step that somebody could restore by themselves; what opens must be whole."""
    found = []
    for name in ("1", "1/default", f"1{DELETED}/default"):
        try:
            tree = restore_place(child(place, name))
        except NotFoundError:
            continue
        np.testing.assert_equal(tree, tree_of(1))
        found.append(name)
    return found


@pytest.mark.parametrize("kind", [FaultyStorage, OneByOne, Backwards])
@pytest.mark.parametrize("fault", ["crash", "fail", "ambiguous"])
def test_wherever_a_deletion_stops_nothing_opens_that_is_not_whole(
    kind: type[FaultyStorage], fault: Fault, new_place: NewPlace
) -> None:
    seen = set()
    at = 0
    while True:
        at += 1
        storage = kind(MemoryStorage())
        place = new_place(storage)
        put(Root(place), 1, 2)
        storage.steps, storage.at, storage.fault = 0, at, fault
        with suppress(Crash, StorageError):
            retire(child(place, "1"))()
        if storage.steps < at:
            break
        place = replace(place, storage=kind(storage.inner))
        is_whole = 1 in whole(place, 3)
        seen.add((is_whole, bool(items_that_open(place))))
        root = Root(place, CheckpointManagerOptions(cleanup_tmp_directories=True))
        assert root.steps() == ([1, 2] if is_whole else [2])
        assert leftovers(place) == []
        put(root, 3)
        if not is_whole:
            put(root, 1, force=True)
        assert whole(place, 4) == {1, 2, 3}
    assert {is_whole for is_whole, _ in seen} == {True, False} or fault == "ambiguous"


@STORAGES
def test_what_an_earlier_deletion_has_left_is_in_nobody_s_way(kind: type[FaultyStorage], new_place: NewPlace) -> None:
    place = new_place(storage_of(kind))
    root = Root(place)
    for _ in range(2):
        put(root, 1, force=True)
        _ = retire(child(place, "1"))  # and no more
        root.reload()
        assert root.steps() == []
    put(root, 1)
    root.delete(1)
    assert [item.path for item in place.storage.list(f"{place.path}/", deep=True)] == []


@STORAGES
def test_a_step_that_somebody_else_deleted_meanwhile_is_deleted(kind: type[FaultyStorage], new_place: NewPlace) -> None:
    place = new_place(storage_of(kind))
    root, other = Root(place, CheckpointManagerOptions(max_to_keep=1)), Root(place)
    put(root, 1)
    other.reload()
    other.delete(1)
    put(root, 2)
    assert (root.steps(), whole(place)) == ([2], {2})


def test_a_replaced_checkpoint_that_is_the_only_one_gets_its_name_back(new_place: NewPlace) -> None:
    place = new_place(storage_of(FaultyStorage))
    put(Root(place), 1, 2)
    storage = place.storage
    storage.rename(f"{place.path}/1", f"{place.path}/1.orbax-checkpoint-tmp-replaced")
    storage.write(f"{place.path}/1.orbax-checkpoint-tmp/default/d/x", [b"unfinished"])
    storage.write(f"{place.path}/2.orbax-checkpoint-tmp-replaced/default/d/x", [b"old"])
    clean(place, StepNames())
    assert whole(place) == {1, 2}
    assert leftovers(place) == []
