"""Evaluators wait for steps that somebody else saves; time passes only when they sleep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest

from ocdbt_py.backends import MemoryStorage
from ocdbt_py.checkpoint.layout import child
from ocdbt_py.checkpoint.restore import restore_place
from ocdbt_py.errors import StorageError
from ocdbt_py.manager.options import CheckpointManagerOptions
from ocdbt_py.manager.root import Root
from ocdbt_py.manager.snapshots import SNAPSHOTS, snapshot
from ocdbt_py.manager.step_names import StepNames
from ocdbt_py.manager.watching import Watch, checkpoints_iterator, wait_for_new_checkpoint
from ocdbt_py.storage.location import Place
from ocdbt_py.testing.faulty import FaultyStorage
from tests.checkpoint.places import Bucket
from tests.manager.roots import STORAGES, Clock, NewPlace, contents_of, put, storage_of, tree_of, whole


class Later(Clock):
    """Things happen at certain seconds, while somebody sleeps."""

    def __init__(self, happens: dict[int, Callable[[], object]]) -> None:
        super().__init__(0.0)
        self.happens = happens

    def sleep(self, seconds: float, /) -> None:
        super().sleep(seconds)
        for when in sorted(self.happens):
            if when <= self.now:
                self.happens.pop(when)()


@STORAGES
def test_each_newest_step_is_found_and_those_between_are_passed_over(
    kind: type[FaultyStorage], new_place: NewPlace
) -> None:
    place = new_place(storage_of(kind))
    root = Root(place)
    clock = Later({3: lambda: put(root, 1), 5: lambda: put(root, 2, 3), 9: lambda: put(root, 7)})
    watch = Watch(place, clock=clock, pause=1, timeout=20)
    found = []
    for step, at in watch.steps():
        found.append((step, clock.now))
        assert restore_place(at)["step"] == step
    assert found == [(1, 3), (3, 5), (7, 9)]
    assert clock.now == 29


def test_a_body_that_takes_long_gets_the_newest_and_the_interval_is_kept(place: Place) -> None:
    root = Root(place)
    put(root, 1)
    clock = Later({10: lambda: put(root, 2), 20: lambda: put(root, 3), 55: lambda: put(root, 4)})
    found = []
    for step, _ in Watch(place, clock=clock, pause=1, timeout=30).steps(min_interval=25):
        found.append((step, clock.now))
    assert found == [(1, 0), (3, 25), (4, 55)]


def test_when_the_time_is_up_somebody_may_say_that_more_will_come(place: Place) -> None:
    answers = [False, False, True]
    clock = Clock(0)
    with Watch(place, clock=clock, pause=2, timeout=5, timeout_fn=lambda: answers.pop(0)).held() as found:
        assert found is None
    assert (answers, clock.slept) == ([], [2, 2, 2, 2])


@STORAGES
def test_steps_that_are_not_finished_or_do_not_open_are_not_found(
    kind: type[FaultyStorage], new_place: NewPlace
) -> None:
    place = new_place(storage_of(kind))
    put(Root(place), 1, 2)
    place.storage.write(f"{place.path}/2/default/_METADATA", [b"{"])
    unfinished = "3.orbax-checkpoint-tmp" if kind is FaultyStorage else "3"
    place.storage.write(f"{place.path}/{unfinished}/_CHECKPOINT_METADATA", [b"{}"])
    with Watch(place, timeout=0, clock=Clock()).held() as found:
        assert found is not None
        assert found.step == 1
    with Watch(place, timeout=0, clock=Clock()).held(until_step=2) as found:
        assert found is None


def test_the_functions_take_urls_names_and_a_time_limit(tmp_path: Path) -> None:
    clock = Clock()
    with wait_for_new_checkpoint(tmp_path / "run", timeout=3, clock=clock) as step:
        assert step == -1
    assert list(checkpoints_iterator(tmp_path / "run", timeout=3, clock=clock)) == []
    from ocdbt_py.checkpoint.opening import resolve_checkpoint

    names = StepNames("ckpt")
    put(Root(resolve_checkpoint(tmp_path / "run", None, None), CheckpointManagerOptions(step_name_format=names)), 4)
    with wait_for_new_checkpoint(tmp_path / "run", timeout=3, clock=clock, step_name_format=names) as step:
        assert step == 4
    found = checkpoints_iterator(tmp_path / "run", timeout=3, clock=clock, step_name_format=names, snapshots=True)
    assert next(found) == 4
    assert (tmp_path / "run" / SNAPSHOTS / "ckpt_4" / "default").is_dir()
    assert list(found) == []
    assert not (tmp_path / "run" / SNAPSHOTS / "ckpt_4").exists()


@STORAGES
def test_a_snapshot_outlives_the_step_and_is_removed_at_the_end(kind: type[FaultyStorage], new_place: NewPlace) -> None:
    place = new_place(storage_of(kind))
    root = Root(place, CheckpointManagerOptions(max_to_keep=1))
    put(root, 1)
    place.storage.write(f"{place.path}/{SNAPSHOTS}/0/left", [b"by one that was killed"])
    found = []
    for step, at in Watch(place, snapshots=child(place, SNAPSHOTS), timeout=3, clock=Clock()).steps():
        found.append(step)
        if step == 1:
            put(root, 2)
            assert whole(place, 5) == {2}
        assert restore_place(at) is not None
        assert restore_place(at)["step"] == tree_of(step)["step"]
        assert root.steps(read=True) == [2]
    assert found == [1, 2]
    assert not list(place.storage.list(f"{place.path}/{SNAPSHOTS}/"))


def test_a_step_that_is_deleted_while_it_is_copied_gives_way_to_the_next(new_place: NewPlace) -> None:
    class Deleting(FaultyStorage):
        def create(self, path: str) -> Any:
            if SNAPSHOTS in path and "/1/" in path and root.steps() == [1]:
                put(root, 2)
            return super().create(path)

    place = new_place(storage_of(Deleting))
    root = Root(place, CheckpointManagerOptions(max_to_keep=1))
    put(root, 1)
    clock = Clock()
    with Watch(place, snapshots=child(place, SNAPSHOTS), clock=clock, timeout=9).held() as found:
        assert found is not None
        assert (found.step, len(clock.slept)) == (2, 1)
        assert [item.path for item in place.storage.list(f"{place.path}/{SNAPSHOTS}/")] == [f"{found.place.path}/"]


def test_a_copy_that_fails_leaves_nothing_behind(new_place: NewPlace) -> None:
    storage = FaultyStorage(MemoryStorage(fsspec.filesystem("memory")))
    place = new_place(storage)
    put(Root(place), 1)
    storage.steps, storage.at, storage.fault = 0, 5, "fail"
    with pytest.raises(StorageError), snapshot(child(place, "1"), child(place, SNAPSHOTS)):
        pass
    assert not list(storage.list(f"{place.path}/{SNAPSHOTS}/"))


def test_a_bucket_s_steps_are_seen_when_their_marker_is_there(new_place: NewPlace) -> None:
    storage = storage_of(Bucket)
    place = new_place(storage)
    seen = []

    class Looking(Bucket):
        def write(self, path: str, *rest: Any) -> Any:
            with Watch(place, timeout=0, clock=Clock()).held() as found:
                seen.append(found)
            return super().write(path, *rest)

    root = Root(replace(place, storage=Looking(storage.inner)))
    root.save(1, contents_of(1))
    root.close()
    assert seen[0] is None
    assert [each for each in seen[:-1] if each is not None] == []
    assert root.latest() == 1
