"""One process that saves, keeps and deletes: on storages that rename directories, and on such that do not."""

from __future__ import annotations

import gc
import json
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from ocdbt_py.checkpoint.async_saving import AsyncSave
from ocdbt_py.checkpoint.contents import Contents, pytree_item
from ocdbt_py.checkpoint.layout import child, read_file
from ocdbt_py.checkpoint.metadata import CHECKPOINT_METADATA, COMMIT_MARKER
from ocdbt_py.checkpoint.opening import resolve_checkpoint
from ocdbt_py.checkpoint.restore import restore_place
from ocdbt_py.errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    NotFoundError,
    OcdbtError,
    StorageError,
    UnsupportedError,
    WaitTimeoutError,
)
from ocdbt_py.manager.options import CheckpointManagerOptions
from ocdbt_py.manager.root import Root
from ocdbt_py.policies import (
    AnyPreservationPolicy,
    AnySavePolicy,
    BestN,
    ContinuousCheckpointingPolicy,
    CustomSteps,
    EveryNSeconds,
    FixedIntervalPolicy,
    LatestN,
    SpecificStepsPolicy,
)
from ocdbt_py.storage.location import Place
from ocdbt_py.testing.faulty import Fault, FaultyStorage
from tests.checkpoint.places import Bucket
from tests.manager.roots import (
    STORAGES,
    Clock,
    Gate,
    NewPlace,
    contents_of,
    leftovers,
    put,
    storage_of,
    sync,
    tree_of,
    whole,
)


def options(**given: Any) -> CheckpointManagerOptions:
    return CheckpointManagerOptions(**given)


def loss_of(metrics: Any) -> float:
    return float(metrics["loss"])


@STORAGES
@pytest.mark.parametrize("is_async", [True, False])
def test_steps_are_saved_and_all_but_the_last_go(
    kind: type[FaultyStorage], is_async: bool, new_place: NewPlace
) -> None:
    place = new_place(storage_of(kind))
    root = Root(place, options(max_to_keep=2, enable_async_checkpointing=is_async))
    assert root.latest() is None
    put(root, 0, 1, 2, 3)
    assert (root.steps(), root.latest(), root.best()) == ([2, 3], 3, 3)
    assert whole(place) == {2, 3}
    assert leftovers(place) == []
    assert root.info(3).custom_metadata == {"of": 3}
    root.close()
    again = Root(place)
    assert (again.steps(), again.latest()) == ([2, 3], 3)
    assert again.info(3).custom_metadata == {"of": 3}


def test_the_policy_decides_and_contents_are_asked_for_after_a_yes(place: Place) -> None:
    def never() -> Contents:
        raise AssertionError("this step is not saved")

    root = Root(place, options(save_interval_steps=3, save_on_steps={4}))
    put(root, 2)  # nothing is there yet
    assert not root.save(5, never)
    put(root, 4) if root.should_save(4) else pytest.fail("4 is one of the steps")
    put(root, 6)
    assert not root.save(6, never)
    assert not root.save(3, never)
    put(root, 3, force=True)
    assert (root.steps(), root.latest()) == ([2, 4, 6, 3], 3)
    assert Root(place).steps() == [2, 3, 4, 6]


def test_a_step_that_is_there_is_refused_also_when_forced(place: Place) -> None:
    root = Root(place)
    put(root, 1)
    with pytest.raises(AlreadyExistsError, match=r"Step 1 .* exists already") as caught:
        root.save(1, contents_of(1), force=True)
    assert caught.value.kind == "step-exists"
    put(root, 2)


def test_a_function_decides_with_the_latest_step(place: Place) -> None:
    asked: list[tuple[int, int | None]] = []

    def should_save(step: int, latest: int | None) -> bool:
        asked.append((step, latest))
        return step % 2 == 1

    root = Root(place, options(should_save_fn=should_save))
    assert [root.save(step, contents_of(step)) for step in range(4)] == [False, True, False, True]
    assert asked == [(0, None), (1, None), (2, 1), (3, 1)]
    root.close()


# --- while a save is under way


@STORAGES
def test_while_a_save_is_under_way_the_steps_that_it_replaces_can_still_be_read(
    kind: type[FaultyStorage], new_place: NewPlace
) -> None:
    gate = Gate()
    gate.is_open.set()
    place = new_place(storage_of(kind))
    root = Root(place, options(max_to_keep=1, progress=gate))
    put(root, 1)
    gate.is_open.clear()
    assert root.save(2, contents_of(2))
    assert root.is_saving_in_progress()
    assert (root.steps(), root.latest(), root.best()) == ([2], 1, 1)
    assert (root.info(2).is_saving, root.info(1).is_saving) == (True, False)
    assert whole(place) == {1}
    assert root.place_of(1).path == f"{place.path}/1"
    gate.is_open.set()
    root.wait_until_finished()
    assert not root.is_saving_in_progress()
    assert (root.steps(), root.latest(), root.info(2).is_saving) == ([2], 2, False)
    assert whole(place) == {2}


@pytest.fixture
def gate_of_waits(monkeypatch: pytest.MonkeyPatch) -> Gate:
    """Opened by whoever waits for a save."""
    gate, wait = Gate(), AsyncSave.wait

    def opening(handle: AsyncSave, timeout: float | None = None) -> bool:
        gate.is_open.set()
        return wait(handle, timeout)

    monkeypatch.setattr(AsyncSave, "wait", opening)
    return gate


def test_only_one_save_is_under_way(place: Place, gate_of_waits: Gate) -> None:
    root = Root(place, options(progress=gate_of_waits))
    assert root.save(1, contents_of(1))
    assert whole(place) == set()

    def contents() -> Contents:
        assert whole(place) == {1}
        return contents_of(2)()

    assert root.save(2, contents)
    root.close()
    assert whole(place) == {1, 2}


def test_continuous_saving_declines_at_once_while_a_save_is_under_way(place: Place) -> None:
    gate, clock = Gate(), Clock()
    policy = ContinuousCheckpointingPolicy(minimum_interval_secs=10)
    root = Root(place, options(save_decision_policy=policy, progress=gate), clock=clock)
    assert root.save(1, contents_of(1))
    clock.now += 100
    assert not root.save(2, contents_of(2))
    gate.is_open.set()
    root.wait_until_finished()
    assert root.save(3, contents_of(3))
    root.wait_until_finished()
    clock.now += 9
    assert not root.save(4, contents_of(4))
    clock.now += 1
    assert root.save(5, contents_of(5))
    root.close()
    assert root.steps() == [1, 3, 5]


def test_a_wait_with_a_time_limit_says_what_goes_on(place: Place) -> None:
    gate = Gate()
    root = Root(place, options(progress=gate))
    root.save(1, contents_of(1))
    with pytest.raises(WaitTimeoutError, match=r"step 1 .* it goes on"):
        root.wait_until_finished(0.001)
    gate.is_open.set()
    root.wait_until_finished(60)
    assert root.latest() == 1


def test_looking_again_and_deleting_wait_for_the_save_under_way(place: Place, gate_of_waits: Gate) -> None:
    root = Root(place, options(progress=gate_of_waits))
    root.save(1, contents_of(1))
    assert root.steps(read=True) == [1]
    root.wait_until_finished()
    gate_of_waits.is_open.clear()
    root.save(2, contents_of(2))
    root.delete(2)
    assert (root.steps(), whole(place)) == ([1], {1})


# --- failure


@STORAGES
def test_a_save_that_failed_deletes_nothing_leaves_the_list_and_is_told_once(
    kind: type[FaultyStorage], new_place: NewPlace
) -> None:
    gate = Gate()
    gate.is_open.set()
    place = new_place(storage_of(kind))
    root = Root(place, options(max_to_keep=1, progress=gate))
    put(root, 1)
    gate.error = InterruptedError("the disk is gone")
    root.save(2, contents_of(2))
    root.join()
    assert (root.steps(), root.latest(), whole(place)) == ([1], 1, {1})
    with pytest.raises(NotFoundError, match=r"no step 2 in .*; it has 1"):
        root.info(2)
    with pytest.raises(InterruptedError):
        root.check_for_errors()
    root.check_for_errors()
    root.wait_until_finished()
    gate.error = None
    put(root, 2)
    assert (root.steps(), whole(place), leftovers(place)) == ([2], {2}, [])


@pytest.mark.parametrize("ask", ["wait_until_finished", "close", "save"])
def test_whoever_waits_first_is_told_and_the_next_save_goes_through(ask: str, place: Place) -> None:
    gate = Gate()
    gate.is_open.set()
    gate.error = InterruptedError("the disk is gone")
    root = Root(place, options(progress=gate))
    root.save(1, contents_of(1))
    with pytest.raises(InterruptedError):
        root.save(2, contents_of(2)) if ask == "save" else getattr(root, ask)()
    gate.error = None
    if ask != "close":
        put(root, 2)
        assert root.steps() == [2]


def test_a_failure_that_nobody_asks_for_is_reported(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    gate = Gate()
    gate.error = InterruptedError("the disk is gone")
    root = Root(place, options(progress=gate))
    root.save(1, contents_of(1))
    gate.is_open.set()
    root.join()
    del root
    gc.collect()
    assert [each.exc_type for each in told] == [InterruptedError]


def test_a_leaf_that_cannot_be_saved_is_told_at_once_and_changes_nothing(place: Place) -> None:
    root = Root(place, options(max_to_keep=1))
    put(root, 1)
    with pytest.raises(UnsupportedError):
        root.save(2, lambda: Contents({"default": pytree_item({"w": object()})}))
    with pytest.raises(ZeroDivisionError):
        root.save(2, lambda: 1 // 0)  # type: ignore[arg-type, return-value]
    assert (root.steps(), root.latest(), whole(place), leftovers(place)) == ([1], 1, {1}, [])
    put(root, 2)


def test_an_error_in_the_body_matters_more_than_that_of_the_save(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    gate = Gate()
    gate.error = InterruptedError("the disk is gone")
    gate.is_open.set()

    def train() -> None:
        with Root(place, options(progress=gate)) as root:
            root.save(1, contents_of(1))
            raise KeyError

    with pytest.raises(KeyError):
        train()
    gc.collect()
    assert [each.exc_type for each in told] == [InterruptedError]


@STORAGES
@pytest.mark.parametrize("fault", ["crash", "fail", "ambiguous"])
def test_whatever_goes_wrong_the_last_finished_step_is_found_and_whole(
    kind: type[FaultyStorage], fault: Fault, new_place: NewPlace
) -> None:
    def run(at: int | None) -> tuple[FaultyStorage, Place, list[int]]:
        storage = storage_of(kind)
        place = new_place(storage)
        put(Root(place, sync(max_to_keep=1)), 1)
        storage.steps, storage.at, storage.fault = 0, at, fault
        done = [1]
        try:
            root = Root(place, sync(max_to_keep=1), metadata={"run": 1})
            root.save(2, contents_of(2))
            done.append(2)
        except BaseException as error:
            if not (type(error).__name__ == "Crash" or isinstance(error, OcdbtError)):
                raise
        return storage, place, done

    storage, _, done = run(None)
    assert done == [1, 2]
    for at in range(1, storage.steps + 1):
        storage, place, done = run(at)
        storage.lose_unsynced()
        place = replace(place, storage=storage.inner if kind is FaultyStorage else Bucket(storage.inner))
        found = whole(place, 5)
        after = Root(place, sync(max_to_keep=1, cleanup_tmp_directories=True))
        latest = after.latest()
        assert latest is not None
        assert latest >= done[-1]
        assert latest in found
        assert found >= set(after.steps())
        assert leftovers(place) in ([], ["metadata"])
        put(after, 3)
        assert whole(place, 5) == {3}
        assert leftovers(place) in ([], ["metadata"])


@STORAGES
def test_a_step_that_could_not_be_deleted_is_told_and_deleted_next_time(
    kind: type[FaultyStorage], new_place: NewPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = new_place(storage_of(kind))
    root = Root(place, options(max_to_keep=1))
    put(root, 1)

    def refuse(*args: Any) -> None:
        raise StorageError("no")

    with monkeypatch.context() as patched:
        patched.setattr("ocdbt_py.manager.deleting.retire", refuse)
        root.save(2, contents_of(2))
        with pytest.raises(
            StorageError, match=r"Step 2 .* is saved, but step 1, .* could not be deleted: no"
        ) as caught:
            root.wait_until_finished()
    assert caught.value.kind == "not-deleted"
    assert (root.steps(), root.latest(), whole(place)) == ([1, 2], 2, {1, 2})
    put(root, 3)
    assert (root.steps(), whole(place)) == ([3], {3})


# --- what is there already


@STORAGES
def test_a_step_that_does_not_open_is_never_the_latest_and_is_left_alone(
    kind: type[FaultyStorage], new_place: NewPlace
) -> None:
    place = new_place(storage_of(kind))
    put(Root(place), 1, 2, 3, 4, 5)
    place.storage.delete(f"{place.path}/5/default/manifest.ocdbt")
    place.storage.write(f"{place.path}/4/default/_METADATA", [b"{"])
    place.storage.write(f"{place.path}/2/default/_METADATA", [b"{"])
    root = Root(place, options(max_to_keep=2))
    assert root.latest() == 3
    assert root.steps() == [1, 2, 3]
    root.delete(3)
    assert root.latest() == 1
    put(root, 4)  # where one lies that does not open
    assert (root.steps(), root.latest()) == ([1, 4], 4)
    assert read_file(child(place, "5"), CHECKPOINT_METADATA) is not None


@STORAGES
def test_directories_that_are_no_checkpoints_are_no_steps_and_stay(
    kind: type[FaultyStorage], new_place: NewPlace
) -> None:
    place = new_place(storage_of(kind))
    for name in ("0", "2024"):
        place.storage.write(f"{place.path}/{name}/notes.txt", [b"mine"])
        if kind is Bucket:
            place.storage.write(f"{place.path}/{name}/{COMMIT_MARKER}", [b"of something else"])
    place.storage.write(f"{place.path}/3.orbax-checkpoint-tmp/notes.txt", [b"mine"])
    place.storage.write(f"{place.path}/12", [b"a file"])
    root = Root(place, options(max_to_keep=1))
    assert (root.steps(), root.latest()) == ([], None)
    put(root, 1, 2)
    with pytest.raises(AlreadyExistsError):
        root.save(2024, contents_of(2024))
    assert [read_file(child(place, name), "notes.txt") for name in ("0", "2024")] == [b"mine", b"mine"]
    assert root.steps() == Root(place).steps() == [2]


def test_orbax_counts_an_empty_directory_and_this_can_too(tmp_path: Any) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "2024").mkdir()
    place = resolve_checkpoint(tmp_path, None, None)
    assert Root(place, only_whole=True).steps() == []
    root = Root(place, only_whole=False)
    assert (root.steps(), root.latest()) == ([7, 2024], 2024)
    root = Root(place, options(max_to_keep=1), only_whole=True)
    put(root, 7)
    assert root.latest() == 7


@STORAGES
def test_what_another_job_has_saved_since_is_found_by_looking_again_and_never_replaced(
    kind: type[FaultyStorage], new_place: NewPlace
) -> None:
    place = new_place(storage_of(kind))
    root, other = Root(place), Root(place)
    put(other, 5)
    with pytest.raises(AlreadyExistsError, match=r"somebody else .* reload\(\)"):
        root.save(5, contents_of(5))
    assert root.steps() == []
    assert root.place_of(5).path.endswith("/5")
    root.reload()
    assert (root.steps(), root.latest()) == ([5], 5)


@STORAGES
@pytest.mark.parametrize("is_async", [True, False])
def test_a_step_is_overwritten_on_request_and_stays_if_that_fails(
    kind: type[FaultyStorage], is_async: bool, new_place: NewPlace
) -> None:
    gate = Gate()
    gate.is_open.set()
    place = new_place(storage_of(kind))
    root = Root(place, options(progress=gate, enable_async_checkpointing=is_async))
    put(root, 1, 2)

    def other() -> Contents:
        return Contents({"default": pytree_item({"w": np.ones(3)})})

    def overwrite() -> None:
        assert root.save(1, other, force=True, overwrite=True)
        root.wait_until_finished()

    gate.error = InterruptedError()
    with pytest.raises(InterruptedError):
        overwrite()
    assert (root.steps(), whole(place)) == ([1, 2], {1, 2})
    gate.error = None
    overwrite()
    assert (root.steps(), root.latest()) == ([2, 1], 1)
    np.testing.assert_equal(restore_place(root.place_of(1)), {"w": np.ones(3)})
    assert whole(place, 1) == set()


@STORAGES
def test_what_unfinished_saves_have_left_is_removed_on_request(kind: type[FaultyStorage], new_place: NewPlace) -> None:
    place = new_place(storage_of(kind))
    put(Root(place), 1, 2)
    storage = place.storage
    if kind is FaultyStorage:
        for name in ("3.orbax-checkpoint-tmp", "4.orbax-checkpoint-tmp-1234", "2.orbax-checkpoint-tmp-deleted"):
            storage.write(f"{place.path}/{name}/default/x", [b"x"])
        storage.rename(f"{place.path}/1", f"{place.path}/1.orbax-checkpoint-tmp-replaced")
    else:
        storage.write(f"{place.path}/3/{CHECKPOINT_METADATA}", [b'{"commit_timestamp_nsecs": null}'])
        storage.write(f"{place.path}/3/default/d/0123", [b"x"])
    storage.write(f"{place.path}/mine.orbax-checkpoint-tmp/x", [b"mine"])
    storage.write(f"{place.path}/9/x", [b"mine"])
    before = {item.path for item in storage.list(f"{place.path}/", deep=True)}
    assert Root(place, options(read_only=True, cleanup_tmp_directories=True)).steps() in ([1, 2], [2])
    assert {item.path for item in storage.list(f"{place.path}/", deep=True)} == before
    root = Root(place, options(cleanup_tmp_directories=True))
    assert (root.steps(), whole(place)) == ([1, 2], {1, 2})
    assert leftovers(place) == ["mine.orbax-checkpoint-tmp"]
    assert read_file(child(place, "9"), "x") == b"mine"


def test_what_is_given_up_can_be_moved_away(new_place: NewPlace) -> None:
    place = new_place(storage_of(FaultyStorage))
    root = Root(place, options(max_to_keep=1, todelete_subdir="old/steps"))
    put(root, 1, 2, 3)
    assert whole(place) == {3}
    assert whole(child(place, "old/steps")) == {1, 2}
    root.delete(3)
    put(root, 2, 3)
    assert whole(child(place, "old/steps")) == {1, 2, 3}
    assert Root(place).steps() == [3]


def test_where_nothing_is_renamed_it_is_deleted_all_the_same(new_place: NewPlace) -> None:
    place = new_place(storage_of(Bucket))
    put(Root(place, options(max_to_keep=1, todelete_subdir="old")), 1, 2)
    assert {item.path for item in place.storage.list(f"{place.path}/")} == {f"{place.path}/2/"}


@STORAGES
def test_a_save_is_finished_before_what_it_replaces_has_been_removed_if_so_asked(
    kind: type[FaultyStorage], new_place: NewPlace
) -> None:
    removing, go_on = threading.Event(), threading.Event()

    class Slow(kind):  # type: ignore[misc, valid-type]
        def delete(self, path: str) -> None:
            if threading.current_thread().name == "ocdbt-delete":
                removing.set()
                assert go_on.wait(60)
            super().delete(path)

    place = new_place(storage_of(Slow))
    root = Root(place, options(max_to_keep=1, enable_background_delete=True))
    put(root, 1, 2)
    assert removing.wait(60)
    assert (root.steps(), whole(place)) == ([2], {2})
    go_on.set()
    root.close()
    assert leftovers(place) == []
    assert [item.path for item in place.storage.list(f"{place.path}/")] == [f"{place.path}/2/"]


# --- what is known of steps


def test_metrics_are_read_back_and_the_best_goes_on(place: Place) -> None:
    best = options(max_to_keep=2, best_fn=loss_of, best_mode="min")
    root = Root(place, best)
    for step, loss in enumerate([3.0, 1.0, 2.0, 5.0]):
        root.save(step, contents_of(step), metrics={"loss": loss})
    root.close()
    # the last was the worst, and has gone as soon as it was saved
    assert (root.steps(), root.latest(), root.best()) == ([1, 2], 2, 1)
    root = Root(place, best)
    assert (root.steps(), root.best(), root.metrics(2)) == ([1, 2], 1, {"loss": 2.0})
    root.save(4, contents_of(4), metrics={"loss": 1.5})
    put(root, 5)
    assert (root.steps(), root.metrics(5), root.best()) == ([1, 4, 5], None, 1)
    assert Root(place, options(lightweight_initialize=True)).metrics(4) == {"loss": 1.5}


def test_metrics_without_a_best_fn_are_kept_unless_told_otherwise(place: Place) -> None:
    for step, only_whole, how in [(1, True, {}), (2, False, {}), (3, True, {"prevent_write_metrics": True})]:
        root = Root(place, options(**how), only_whole=only_whole)
        root.save(step, contents_of(step), metrics={"loss": step})
        root.close()
    root = Root(place)
    assert [root.metrics(step) for step in (1, 2, 3)] == [{"loss": 1}, None, None]


def test_metrics_that_cannot_be_read_count_as_none(place: Place) -> None:
    best = options(best_fn=loss_of)
    root = Root(place, best)
    for step in (1, 2):
        root.save(step, contents_of(step), metrics={"loss": step})
    root.close()
    place.storage.write(f"{place.path}/2/metrics/metrics", [b"{"])
    root = Root(place, best)
    assert (root.metrics(2), root.steps()) == (None, [1, 2])


def test_times_are_those_of_the_commits_and_retention_goes_on_after_a_restart(place: Place) -> None:
    clock = Clock(datetime(2026, 1, 1, tzinfo=UTC).timestamp())
    keep = options(preservation_policy=EveryNSeconds(180))
    root = Root(place, keep, clock=clock)
    for step in range(4):
        put(root, step)
        name = f"{place.path}/{step}/{CHECKPOINT_METADATA}"
        if step in root.steps():  # as if the clock of the computer had said so
            document = json.loads(read_file(child(place, str(step)), CHECKPOINT_METADATA) or b"")
            document["commit_timestamp_nsecs"] = int(clock.now * 1e9)
            place.storage.write(name, [json.dumps(document).encode()])
        clock.now += 100
    assert root.steps() == [0, 2]
    root = Root(place, keep, clock=clock)
    assert root.info(2).time - root.info(0).time == timedelta(seconds=200)
    put(root, 4)
    assert root.steps() == [0, 2, 4]


def test_the_time_of_a_step_that_does_not_say_is_that_of_its_directory_or_unknown(tmp_path: Any, place: Place) -> None:
    for at in (resolve_checkpoint(tmp_path, None, None), place):
        put(Root(at), 1)
        at.storage.delete(f"{at.path}/1/{CHECKPOINT_METADATA}")
    local = Root(resolve_checkpoint(tmp_path, None, None))
    assert local.info(1).time == datetime.fromtimestamp((tmp_path / "1").stat().st_mtime, UTC)
    assert Root(place).info(1).time.timestamp() == 0


@STORAGES
def test_a_finished_copy_without_its_metadata_is_known_by_the_marker(
    kind: type[FaultyStorage], new_place: NewPlace
) -> None:
    place = new_place(storage_of(kind))
    put(Root(place), 1, 2)
    place.storage.delete(f"{place.path}/1/{CHECKPOINT_METADATA}")
    place.storage.delete(f"{place.path}/2/{COMMIT_MARKER}")  # the commit time is still there
    assert Root(place).steps() == [1, 2]


def test_the_metadata_of_the_run_is_that_of_the_first_writer(place: Place) -> None:
    assert Root(place).metadata == {}
    assert Root(place, options(read_only=True), metadata={"a": 0}).metadata == {"a": 0}
    assert Root(place, metadata={"a": 1}).metadata == {"a": 1}
    assert Root(place, metadata={"a": 2}).metadata == {"a": 1}
    assert json.loads(read_file(child(place, "metadata"), "_ROOT_METADATA") or b"") == {
        "internal_metadata": {},
        "custom_metadata": {"a": 1},
    }
    with pytest.raises(InvalidArgumentError, match="JSON"):
        Root(place, metadata={"a": object()})


def test_the_metadata_of_an_old_release_is_read(place: Place) -> None:
    place.storage.write(f"{place.path}/metadata/metadata", [b'{"a": 3}'])
    assert Root(place).metadata == {"a": 3}


# --- limits


def test_nothing_is_written_where_it_is_read_only(place: Place) -> None:
    put(Root(place), 1)
    root = Root(place, options(read_only=True, max_to_keep=0))
    assert not root.should_save(2)
    assert not root.save(2, contents_of(2), force=True)
    root.delete(1)
    assert (root.steps(), whole(place)) == ([1], {1})


def test_after_the_end_nothing_is_saved_or_deleted_and_questions_are_answered(place: Place) -> None:
    with Root(place) as root:
        root.save(1, contents_of(1))
    assert (root.steps(), root.latest()) == ([1], 1)
    for call in (lambda: root.save(2, contents_of(2)), lambda: root.delete(1)):
        with pytest.raises(InvalidArgumentError, match="closed"):
            call()
    root.close()


def test_a_step_that_is_not_there_is_an_error_that_names_those_that_are(place: Place) -> None:
    root = Root(place, options(save_interval_steps=1))
    with pytest.raises(NotFoundError, match="it has no steps"):
        root.place_of(1)
    put(root, 1, 2)
    for call in (root.delete, root.info, root.metrics, root.place_of):
        with pytest.raises(FileNotFoundError, match=r"no step 7 in .*; it has 1, 2"):
            call(7)


def test_a_policy_that_answers_for_other_steps_is_refused_before_anything_is_saved(place: Place) -> None:
    class Short:
        def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
            return []

    root = Root(place, options(preservation_policy=Short()))
    with pytest.raises(InvalidArgumentError, match="answered for 0 of 1"):
        root.save(1, contents_of(1))
    assert (root.steps(), whole(place)) == ([], set())


def test_policies_of_one_s_own_are_given_steps_and_context(place: Place) -> None:
    seen: list[Any] = []

    class Mine:
        def should_save(self, step: Any, previous: Any, *, context: Any) -> bool:
            seen.append((step.step, step.time, [info.step for info in previous], context.is_saving_in_progress))
            return True

        def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
            return [info.metrics == {"good": True} for info in checkpoints]

    clock = Clock(0)
    root = Root(place, options(save_decision_policy=Mine(), preservation_policy=Mine()), clock=clock)
    for step in range(3):
        root.save(step, contents_of(step), metrics={"good": step != 1})
        root.wait_until_finished()
    assert root.steps() == [0, 2]
    now = datetime.fromtimestamp(0, UTC)
    assert seen == [(0, now, [], False), (1, now, [0], False), (2, now, [0], False)]


def test_composed_policies_keep_what_any_of_them_keeps(place: Place) -> None:
    best = BestN(get_metric_fn=loss_of, n=1, keep_checkpoints_without_metrics=False)
    rule = AnyPreservationPolicy([LatestN(1), CustomSteps([3]), best])
    when = AnySavePolicy([FixedIntervalPolicy(3), SpecificStepsPolicy([4])])
    root = Root(place, options(save_decision_policy=when, preservation_policy=rule))
    for step in range(13):
        root.save(step, contents_of(step), metrics={"loss": 9 if step == 4 else step / 100})
    root.close()
    assert root.steps() == [3, 4, 12]


def test_a_storage_that_cannot_list_is_refused(new_place: NewPlace) -> None:
    class Mute(FaultyStorage):
        @property
        def capabilities(self) -> Any:
            return replace(self.inner.capabilities, list=False)

    with pytest.raises(UnsupportedError, match="cannot list"):
        Root(new_place(storage_of(Mute)))


def test_what_is_saved_holds_the_tree(place: Place) -> None:
    root = Root(place, options(compression=None, zarr_format=3, checksums=False))
    put(root, 7)
    np.testing.assert_equal(restore_place(root.place_of(7)), tree_of(7))
