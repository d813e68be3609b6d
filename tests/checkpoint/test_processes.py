"""How processes meet and tell each other of failures; here each is a thread."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ocdbt_py.backends import MemoryStorage
from ocdbt_py.checkpoint.checkpoint import Checkpoint
from ocdbt_py.checkpoint.contents import Contents, Item, Tree, direct, json_item, pytree_item
from ocdbt_py.checkpoint.encoding import Encoding
from ocdbt_py.checkpoint.file_processes import FileProcesses
from ocdbt_py.checkpoint.finishing import discard_save, finish_save
from ocdbt_py.checkpoint.jax_processes import JaxProcesses
from ocdbt_py.checkpoint.layout import child, read_file
from ocdbt_py.checkpoint.processes import Alone, Steps
from ocdbt_py.checkpoint.restore import restore, restore_place
from ocdbt_py.checkpoint.save import BegunSave, save
from ocdbt_py.errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    InvalidTypeError,
    OcdbtError,
    PathNotFoundError,
    StorageError,
    StructureError,
    UncommittedError,
    WaitTimeoutError,
)
from ocdbt_py.testing.faulty import Crash, FaultyStorage
from tests.checkpoint.places import Bucket, NewPlace, save_at

PATIENCE = 30.0
COUNT = 3


class Coordinator:
    """The key-value store of JAX's service, as far as it is used."""

    def __init__(self) -> None:
        self.keys: dict[str, str] = {}
        self.changed = threading.Condition()

    def key_value_set(self, key: str, value: str) -> None:
        with self.changed:
            if key in self.keys:
                raise RuntimeError("ALREADY_EXISTS: it is there")
            self.keys[key] = value
            self.changed.notify_all()

    def blocking_key_value_get(self, key: str, timeout_ms: int) -> str:
        with self.changed:
            if not self.changed.wait_for(lambda: key in self.keys, timeout_ms / 1000):
                raise RuntimeError("DEADLINE_EXCEEDED: nobody has set it")
            return self.keys[key]

    def key_value_delete(self, key: str) -> None:
        with self.changed:
            self.keys.pop(key, None)


Group = Callable[[], list[Any]]
"""Makes the processes of one run."""


@pytest.fixture(params=["files", "files without listing", "JAX's store"])
def group(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Group:
    if request.param == "JAX's store":
        return lambda: (lambda store: [JaxProcesses(store, index, COUNT) for index in range(COUNT)])(Coordinator())

    def make() -> list[Any]:
        made = [FileProcesses(tmp_path / "meeting", index, COUNT) for index in range(COUNT)]
        if "without" in request.param:
            for each in made:
                unlisted = FaultyStorage(each._storage, capabilities=replace(each._storage.capabilities, list=False))
                monkeypatch.setattr(each, "_storage", unlisted)
        return made

    return make


def all_do(processes: list[Any], work: Callable[[Any], Any]) -> list[Any]:
    """What each one's work returns, or the error that it raises."""
    results: list[Any] = [None] * len(processes)

    def do(i: int) -> None:
        try:
            results[i] = work(processes[i])
        except BaseException as error:
            results[i] = error

    threads = [threading.Thread(target=do, args=(i,)) for i in range(len(processes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    return results


def test_everybody_gets_everybodys_data_by_index_however_often(group: Group) -> None:
    def work(process: Any) -> list[list[bytes]]:
        found = []
        for round_ in range(50):  # more than are kept
            time.sleep(0.001 * ((process.index + round_) % 3))
            data = [b"", b"\0\xff" * 1000][round_ % 2] + b"%d" % process.index
            found.append(process.all_gather("same / name?", data, PATIENCE))
        return found

    expected = [[[b"", b"\0\xff" * 1000][round_ % 2] + b"%d" % i for i in range(COUNT)] for round_ in range(50)]
    assert all_do(group(), work) == [expected] * COUNT


def test_whoever_is_missing_is_named_by_the_others(group: Group) -> None:
    processes = group()
    assert all_do(processes, lambda p: p.all_gather("first", b"", PATIENCE)) == [[b""] * COUNT] * COUNT
    for error in all_do([processes[0], processes[2]], lambda process: process.all_gather("second", b"", 0.3)):
        assert type(error) is WaitTimeoutError
        assert "0.3 s at 'second' for process 1 of 3" in str(error)


def test_whoever_never_came_is_named_too(group: Group) -> None:
    for error in all_do(group()[:1], lambda process: process.all_gather("first", b"", 0.2)):
        assert type(error) is WaitTimeoutError
        assert "for process 1, 2 of 3" in str(error)


def test_a_failure_reaches_the_others_at_once_even_if_somebody_is_missing(group: Group) -> None:
    def work(process: Any) -> Any:
        steps = Steps(process, "test", PATIENCE * 10)
        steps.take("meet", lambda: b"")

        def fail() -> bytes:
            if process.index == 1:
                raise AlreadyExistsError("there is a file in the way")
            return b"fine"

        return steps.take("work", fail) if process.index < 2 else b"never comes"

    first, second, third = all_do(group(), work)
    assert type(first) is AlreadyExistsError
    assert str(first) == "Process 1 of 3 failed: there is a file in the way"
    assert str(second) == "there is a file in the way"
    assert third == b"never comes"


def test_an_error_of_somebody_elses_code_is_told_as_text(group: Group) -> None:
    def work(process: Any) -> Any:
        def fail() -> bytes:
            if process.index == 2:
                raise ZeroDivisionError("by zero")
            return b""

        return Steps(process, "test", PATIENCE).take("work", fail)

    *others, own = all_do(group(), work)
    assert type(own) is ZeroDivisionError
    for error in others:
        assert (type(error), error.kind) == (StorageError, "process")
        assert str(error) == "Process 2 of 3 failed: ZeroDivisionError: by zero"


class Told:
    """Processes of somebody else's making."""

    index, count = 0, 2

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def all_gather(self, name: str, data: bytes, timeout: float) -> Any:
        if isinstance(self._answer, BaseException):
            raise self._answer
        return self._answer


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (TimeoutError("no word from 1"), WaitTimeoutError),
        (OSError("no route"), StorageError),
        ([b"+"], InvalidArgumentError),
        ([b"+", b""], InvalidArgumentError),
        ([b"+", b"\xffocdbt failed\xffnot JSON"], StorageError),
        (
            [b"+", b"\xffocdbt failed\xff" + json.dumps({"class": "os", "kind": "x", "message": ""}).encode()],
            StorageError,
        ),
    ],
)
def test_whatever_an_all_gather_does_is_an_error_of_ours(answer: Any, expected: type[OcdbtError]) -> None:
    with pytest.raises(expected):
        Steps(Told(answer), "test", 1.0).take("work", lambda: b"")


def test_arguments_that_cannot_be_meant_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidTypeError, match="all_gather"):
        save(tmp_path / "c", {"x": 1}, processes=3)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="wait_timeout"):
        save(tmp_path / "c", {"x": 1}, wait_timeout=0)
    for index, count in ((2, 2), (-1, 2), (0, 0), ("0", 2)):
        with pytest.raises(InvalidArgumentError):
            FileProcesses(tmp_path, index, count)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_one_process_needs_nobody(tmp_path: Path) -> None:
    for processes in (Alone(), FileProcesses(tmp_path / "meeting", 0, 1)):
        save(tmp_path / "c", {"x": np.arange(3)}, processes=processes, overwrite=True)
        assert restore(tmp_path / "c")["x"].tolist() == [0, 1, 2]
        assert not (tmp_path / "c/ocdbt.process_0").exists()


# --- what a run leaves


def test_files_of_dead_runs_confuse_nobody_and_are_removed(tmp_path: Path) -> None:
    def run(count: int) -> list[Any]:
        made = [FileProcesses(tmp_path, index, COUNT) for index in range(count)]
        return all_do(
            made,
            lambda process: process.all_gather("begin", b"%d" % process.index, PATIENCE if count == COUNT else 0.3),
        )

    assert run(COUNT) == [[b"0", b"1", b"2"]] * COUNT
    assert all(type(error) is WaitTimeoutError for error in run(2))  # the hello of the third is there, an old one
    (tmp_path / "hello.0").write_bytes(b"half a fi")
    assert run(COUNT) == [[b"0", b"1", b"2"]] * COUNT
    assert len([each for each in tmp_path.iterdir() if each.name.startswith("run.")]) == 1


def test_a_run_that_ends_well_leaves_nothing(tmp_path: Path) -> None:
    def work(process: FileProcesses) -> None:
        with process:
            for round_ in range(3):
                process.all_gather(f"{round_}", b"", PATIENCE)

    all_do([FileProcesses(tmp_path, index, COUNT) for index in range(COUNT)], work)
    assert list(tmp_path.iterdir()) == []


def test_no_more_than_some_files_are_kept(tmp_path: Path) -> None:
    processes = [FileProcesses(tmp_path, index, COUNT) for index in range(COUNT)]
    all_do(processes, lambda process: [process.all_gather(f"{i}", b"", PATIENCE) for i in range(60)])
    assert len([each for each in tmp_path.rglob("*") if each.is_file()]) <= COUNT * 33


# --- saves

TREE: dict[str, Any] = {"x": np.arange(5000), "text": "t"}


def saves(place: Any, processes: list[Any], **options: Any) -> list[Any]:
    return all_do(processes, lambda process: save_at(place, TREE, processes=process, **options))


def in_memory(place: Any) -> list[Any]:
    return [FileProcesses(f"memory:/{place.path}-meeting", index, COUNT) for index in range(COUNT)]


def test_a_crash_of_the_first_process_at_any_step_leaves_the_old_checkpoint_or_the_new(new_place: NewPlace) -> None:
    for kind in (FaultyStorage, Bucket):
        step = 0
        crashed = True
        while crashed:
            step += 1
            place = new_place(MemoryStorage())
            save_at(place, {"old": 1})
            faulty = replace(place, storage=kind(place.storage, at=step))
            as_bucket = place if kind is FaultyStorage else replace(place, storage=Bucket(place.storage))
            made = in_memory(place)

            def work(process: Any, faulty: Any = faulty, place: Any = as_bucket) -> None:
                where = faulty if process.index == 0 else place
                save_at(where, TREE, processes=process, overwrite=True, wait_timeout=PATIENCE)

            results = all_do(made, work)
            crashed = type(results[0]) is Crash
            assert crashed or results == [None] * COUNT, results
            try:
                found = restore_place(as_bucket)
                assert found == {"old": 1} or found["x"].tolist() == TREE["x"].tolist()
            except UncommittedError:
                assert crashed
        assert step > 8


class Killed(BaseException):
    """The process has ended."""


class KilledAt:
    """A process that ends before it answers a step; the others wait for it."""

    def __init__(self, inner: FileProcesses, step: str) -> None:
        self._inner, self._step = inner, step
        self.index, self.count = inner.index, inner.count

    def all_gather(self, name: str, data: bytes, timeout: float) -> list[bytes]:
        if name.endswith(self._step):
            raise Killed
        return self._inner.all_gather(name, data, timeout)


def items_of(tree: Any) -> Contents:
    key = Item("of.another", {"deep": Tree(tree, Encoding(None))}, {"kind": b"odd"})
    items = {"tree": pytree_item(tree, Encoding(None)), "note": json_item({"n": 1}), "key": key}
    return Contents(items, {"by": "hand"}, {"beside": b"it"})


def test_several_processes_save_several_items(new_place: NewPlace) -> None:
    place = new_place(MemoryStorage())
    all_do(in_memory(place), lambda process: BegunSave(place, items_of(TREE), processes=process).write())
    assert restore_place(place, item="note") == {"n": 1}
    for found in (restore_place(place, item="tree"), restore_place(child(place, "key/deep"))):
        assert (found["x"].tolist(), found["text"]) == (TREE["x"].tolist(), "t")
    assert read_file(place, "key/kind") == b"odd"
    assert read_file(place, "beside") == b"it"


def test_processes_that_save_different_items_are_all_told_so(new_place: NewPlace) -> None:
    place = new_place(MemoryStorage())

    def work(process: Any) -> None:
        contents = items_of(TREE) if process.index else Contents({"tree": pytree_item(TREE)})
        BegunSave(place, contents, processes=process)

    for error in all_do(in_memory(place), work):
        assert type(error) is StructureError
        assert "process 0: tree; process 1: tree, key/deep" in str(error)


@pytest.mark.parametrize("kind", [FaultyStorage, Bucket])
@pytest.mark.parametrize("layout", ["direct", "items"])
def test_a_save_whose_first_process_died_is_finished_or_discarded_by_hand(
    kind: Any, layout: str, new_place: NewPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It dies when all have written, before it merges: so the cleaning up of its save does not happen either."""
    for end in (finish_save, discard_save):
        place = new_place(kind(MemoryStorage()))
        monkeypatch.setattr("ocdbt_py.checkpoint.finishing.resolve_checkpoint", lambda *_, place=place: place)
        with pytest.raises(PathNotFoundError):
            end(place.url)
        processes: list[Any] = in_memory(place)
        processes[0] = KilledAt(processes[0], "/write")

        def work(process: Any, place: Any = place) -> None:
            storage = place.storage
            if process.index == 0:
                storage = kind(place.storage.inner)
                storage.delete = lambda path: None  # nobody cleans up after a process that is gone
            where = replace(place, storage=storage)
            contents = direct(TREE, Encoding(None), {"by": "hand"}) if layout == "direct" else items_of(TREE)
            BegunSave(where, contents, processes=process, wait_timeout=1.0).write()

        killed, *others = all_do(processes, work)
        assert type(killed) is Killed
        assert [type(error) for error in others] == [WaitTimeoutError] * (COUNT - 1)
        with pytest.raises((UncommittedError, PathNotFoundError)):
            restore_place(place)
        end(place.url)
        if end is finish_save:
            found = restore_place(place)
            assert (found["x"].tolist(), found["text"]) == (TREE["x"].tolist(), "t")
            if layout == "items":
                assert restore_place(place, item="note") == {"n": 1}
                assert restore_place(child(place, "key/deep"))["text"] == "t"
                assert read_file(place, "tree/commit_success.txt") is not None
            assert Checkpoint._reopen(place, None, False).custom_metadata == {"by": "hand"}
        else:
            left = {item.path for item in place.storage.list(place.path, deep=True)}
            assert all(path.startswith(f"{place.path}-meeting/") for path in left)
        with pytest.raises(PathNotFoundError):
            end(place.url)


def test_what_was_not_all_written_is_not_finished(tmp_path: Path) -> None:
    made = [FileProcesses(tmp_path / "meeting", index, COUNT) for index in range(COUNT)]
    all_do(made, lambda process: save(tmp_path / "c", TREE, processes=process))
    (tmp_path / "c").rename(tmp_path / "c.orbax-checkpoint-tmp")
    whole = tmp_path / "c.orbax-checkpoint-tmp" / "ocdbt.process_0"
    whole.rename(tmp_path / "aside")
    with pytest.raises(UncommittedError, match="process 0"):
        finish_save(tmp_path / "c")
    whole.mkdir()
    (whole / "manifest.ocdbt").write_bytes((whole.parent / "ocdbt.process_1" / "manifest.ocdbt").read_bytes())
    with pytest.raises(OcdbtError):
        finish_save(tmp_path / "c")
    (whole / "manifest.ocdbt").unlink()
    whole.rmdir()
    (tmp_path / "aside").rename(whole)
    finish_save(tmp_path / "c")
    assert restore(tmp_path / "c")["x"].tolist() == TREE["x"].tolist()


@pytest.mark.parametrize("kind", [FaultyStorage, Bucket])
def test_a_process_that_dies_at_the_end_does_not_take_the_checkpoint_with_it(kind: Any, new_place: NewPlace) -> None:
    place = new_place(kind(MemoryStorage()))
    processes: list[Any] = in_memory(place)
    processes[1] = KilledAt(processes[1], "/publish")
    first, killed, third = saves(place, processes, wait_timeout=1.0)
    assert (type(first), type(killed), type(third)) == (WaitTimeoutError, Killed, WaitTimeoutError)
    assert str(first).startswith(f"{place.url} is complete, but: Waited 1 s")
    assert restore_place(place)["x"].tolist() == TREE["x"].tolist()
