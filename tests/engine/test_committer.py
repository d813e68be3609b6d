"""Threads of one handle commit together: fewer versions, nothing lost, and nobody suffers for what befalls another."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import ocdbt_py
from ocdbt_py.database import Database, open_place
from ocdbt_py.engine.commit import Sources
from ocdbt_py.engine.mutations import Mutations
from ocdbt_py.engine.process_lock import ProcessLock
from ocdbt_py.storage.location import Place, Settings, resolve
from ocdbt_py.storage.protocol import Hold, Note
from ocdbt_py.testing.faulty import FaultyStorage

PATIENCE = 30.0


class Clock:
    """The time of day, asked once in the middle of each attempt to commit, which is where a test can step in."""

    def __init__(self) -> None:
        self.actions: deque[Callable[[], None]] = deque()

    def __call__(self) -> int:
        if self.actions:
            self.actions.popleft()()
        return time.time_ns()


class Stop:
    """An action that holds a commit up until it may go on."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.go_on = threading.Event()

    def __call__(self) -> None:
        self.reached.set()
        assert self.go_on.wait(PATIENCE)


class Call(threading.Thread):
    """A call in a thread of its own; what it raised is its ``error``."""

    def __init__(self, function: Callable[[], object]) -> None:
        super().__init__(daemon=True)  # one that hangs fails its test, and must not hold up the others
        self.function = function
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.function()
        except BaseException as error:
            self.error = error

    def ended(self) -> Call:
        self.join(PATIENCE)
        assert not self.is_alive()
        return self


class Queue:
    """A commit under way on ``db``, and calls that wait behind it, in the order in which they were added."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._stop = Stop()
        clock.actions.appendleft(self._stop)
        self._first = Call(lambda: db.write("first", b""))
        assert self._stop.reached.wait(PATIENCE)
        self.calls: list[Call] = []

    def add(self, function: Callable[[], object]) -> None:
        self.calls.append(Call(function))
        self.wait_for(len(self.calls))

    def wait_for(self, count: int) -> None:
        deadline = time.monotonic() + PATIENCE
        while len(self._db._engine._committer._queue) != count:
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def release(self) -> list[BaseException | None]:
        """Let the first commit go on; what became of the calls."""
        self._stop.go_on.set()
        assert self._first.ended().error is None
        return [call.ended().error for call in self.calls]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return resolve(tmp_path / "db", settings=Settings(durable=False))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def storage(place: Place) -> FaultyStorage:
    return FaultyStorage(place.storage)


@pytest.fixture
def db(place: Place, clock: Clock, storage: FaultyStorage) -> Iterator[Database]:
    with open_place(replace(place, storage=storage), "x", sources=Sources(clock=clock)) as database:
        yield database


def kinds(errors: list[BaseException | None]) -> list[Any]:
    """The kinds of our errors, the names of others."""
    return [error and getattr(error, "kind", type(error).__name__) for error in errors]


def increment(db: Database, key: str) -> None:
    value, entry = db.lookup(key)
    db.write(key, b"%d" % (int(value) + 1), if_equal=entry.generation)


# --- together


def test_all_that_wait_behind_a_commit_become_one_version(db: Database, clock: Clock) -> None:
    queue = Queue(db, clock)
    for i in range(20):
        queue.add(lambda i=i: db.write(f"{i:02}", b"%d" % i * 60))  # type: ignore[misc]
    assert queue.release() == [None] * 20
    assert dict(db.items()) == {b"first": b"", **{b"%02d" % i: b"%d" % i * 60 for i in range(20)}}
    assert [version.num_keys for version in db.versions()] == [21, 1, 0]


def test_threads_that_write_at_once_lose_nothing(db: Database) -> None:
    calls = [
        Call(lambda name=name: [db.write(f"{name}-{i:02}", b"x") for i in range(25)])  # type: ignore[misc]
        for name in "abcdefgh"
    ]
    assert [call.ended().error for call in calls] == [None] * 8
    assert list(db) == [b"%c-%02d" % key for key in itertools.product(b"abcdefgh", range(25))]
    generations = [version.generation for version in db.versions()]
    assert generations == list(range(len(generations), 0, -1))


def test_what_waits_is_applied_in_the_order_in_which_it_came(db: Database, clock: Clock) -> None:
    db.update({"a": b"0", "b": b"0"})
    queue = Queue(db, clock)
    for change in (
        lambda: db.write("a", b"1"),
        lambda: db.write("c", b"1"),
        lambda: db.delete_range("b", "d"),
        lambda: db.write("a", b"2"),
        lambda: db.write("d", b"1"),
        lambda: db.delete("d"),
        lambda: db.write("b", b"2"),
    ):
        queue.add(change)
    assert kinds(queue.release()) == [None] * 7
    assert dict(db.items()) == {b"a": b"2", b"b": b"2", b"first": b""}
    assert db.version.generation == 4


def test_every_thread_learns_the_generation_of_what_it_wrote_itself(db: Database, clock: Clock) -> None:
    learned = {}

    def write(value: bytes) -> None:
        learned[value] = db.write("k", value)

    queue = Queue(db, clock)
    values = [b"1", b"2" * 200, b"3"]
    for value in values:
        queue.add(lambda value=value: write(value))  # type: ignore[misc]
    assert queue.release() == [None] * 3
    assert learned[b"3"] == db.stat("k").generation
    assert len(set(learned.values())) == 3
    for value in values[:2]:  # overwritten in the version that brought them
        with pytest.raises(ocdbt_py.ConflictError):
            db.write("k", b"4", if_equal=learned[value])


# --- conditions


def test_a_condition_that_does_not_hold_disturbs_nobody_else(db: Database, clock: Clock) -> None:
    db["taken"] = b"before"
    queue = Queue(db, clock)
    queue.add(lambda: db.write("a", b"1"))
    queue.add(lambda: db.write("taken", b"mine", if_equal=ocdbt_py.MISSING))
    queue.add(lambda: db.write("b", b"1"))
    queue.add(lambda: db.__delitem__("absent"))
    queue.add(lambda: db.write("c", b"1", if_equal=ocdbt_py.MISSING))
    queue.add(lambda: db.write("d", b"1"))
    assert kinds(queue.release()) == [None, "condition", None, "key-not-found", None, None]
    assert dict(db.items()) == {b"a": b"1", b"b": b"1", b"c": b"1", b"d": b"1", b"first": b"", b"taken": b"before"}
    assert db.version.generation == 6  # a; b; c and d, beside the creation and the first two


def test_a_value_that_cannot_be_fetched_is_nobody_elses_failure(db: Database, clock: Clock, tmp_path: Path) -> None:
    with ocdbt_py.open(tmp_path / "damaged", "x", durable=False) as source:
        source["long"] = b"v" * 100_000  # in a file of its own
        location = source.stat("long").location
        source["short"] = b"v"
    assert location is not None
    (tmp_path / "damaged" / location.file).unlink()
    with ocdbt_py.open(tmp_path / "damaged") as damaged:
        queue = Queue(db, clock)
        queue.add(lambda: db.write("before", b"1"))
        queue.add(lambda: db.copy_from(damaged))
        queue.add(lambda: db.write("after", b"2"))
        assert kinds(queue.release()) == [None, "corrupt", None]
    assert list(db.items()) == [(b"after", b"2"), (b"before", b"1"), (b"first", b"")]


def test_a_condition_holds_in_the_version_before_with_nothing_in_between(db: Database, clock: Clock) -> None:
    db["n"] = b"0"
    seen = db.stat("n").generation
    queue = Queue(db, clock)
    for value in (b"1", b"2", b"3"):
        queue.add(lambda value=value: db.write("n", value, if_equal=seen))  # type: ignore[misc]
    queue.add(lambda: db.write("other", b""))
    assert kinds(queue.release()) == [None, "condition", "condition", None]
    assert db["n"] == b"1"


def test_threads_that_increment_one_counter_lose_nothing(db: Database) -> None:
    conflicts: list[ocdbt_py.ConflictError] = []

    def work() -> None:
        for _ in range(10):
            while True:
                try:
                    increment(db, "n")
                    break
                except ocdbt_py.ConflictError as conflict:
                    conflicts.append(conflict)

    db["n"] = b"0"
    calls = [Call(work) for _ in range(8)]
    assert [call.ended().error for call in calls] == [None] * 8
    assert db["n"] == b"80"
    assert {conflict.kind for conflict in conflicts} == {"condition"}
    assert db.version.generation == 82


# --- failures


def test_a_failing_storage_is_the_error_of_everyone_in_the_commit(
    db: Database, clock: Clock, storage: FaultyStorage
) -> None:
    def fail_soon() -> None:
        storage.at, storage.fault = storage.steps + 1, "fail"

    queue = Queue(db, clock)
    clock.actions.append(fail_soon)
    for key in "abc":
        queue.add(lambda key=key: db.write(key, b"x" * 200))  # type: ignore[misc]
    errors = queue.release()
    assert kinds(errors) == ["storage"] * 3
    assert len({id(error) for error in errors}) == 3  # each thread adds a traceback of its own
    assert list(db) == [b"first"]
    db.update(a=b"1", b=b"2")
    assert list(db) == [b"a", b"b", b"first"]
    assert db.version.generation == 3


@pytest.mark.parametrize("early", [False, True], ids=["in the storage", "while it collects the requests"])
def test_an_interrupt_of_the_thread_that_commits_leaves_nobody_waiting(
    db: Database, clock: Clock, monkeypatch: pytest.MonkeyPatch, early: bool
) -> None:
    def interrupt(*_: object) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    queue = Queue(db, clock)
    if early:
        monkeypatch.setattr(Mutations, "merge", interrupt)
    else:
        clock.actions.append(interrupt)
    for key in "abcd":
        queue.add(lambda key=key: db.write(key, b"x"))  # type: ignore[misc]
    errors = queue.release()
    assert sorted(map(str, kinds(errors))) == ["KeyboardInterrupt", "ambiguous", "ambiguous", "ambiguous"]
    assert list(db) == [b"first"]
    db["e"] = b"x"
    assert list(db) == [b"e", b"first"]


def test_a_write_that_was_interrupted_while_it_waited_is_not_made_later(db: Database, clock: Clock) -> None:
    queue = Queue(db, clock)

    def interrupt() -> None:
        queue.wait_for(1)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    interrupting = Call(interrupt)
    with pytest.raises(KeyboardInterrupt):
        db.write("interrupted", b"x", if_equal=ocdbt_py.MISSING)
    assert interrupting.ended().error is None
    queue.release()
    db.write("a", b"x")
    db["b"] = b"x"
    assert list(db) == [b"a", b"b", b"first"]
    assert db.version.generation == 4


@pytest.mark.parametrize("kind", ["single", "numbered"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), ocdbt_py.StorageError("the lock file is stuck")], ids=repr)
def test_whatever_fails_once_the_manifest_is_in_place_the_version_stays_whole(
    place: Place, kind: str, error: BaseException
) -> None:
    class Failing(FaultyStorage):
        @contextmanager
        def hold(self, path: str, timeout: float, note: Note | None = None) -> Iterator[Hold]:
            with super().hold(path, timeout, note) as held:
                yield held
            raise error

    open_place(place, "x", config=ocdbt_py.Config(manifest_kind=kind)).close()
    with open_place(replace(place, storage=Failing(place.storage)), "r+") as db, pytest.raises(type(error)):
        db["k"] = b"x" * 200
    with open_place(place) as db:
        assert dict(db.items()) == {b"k": b"x" * 200}


def test_a_commit_is_seen_by_its_own_thread_whatever_others_ask_meanwhile(place: Place, clock: Clock) -> None:
    with open_place(place, "x", sources=Sources(clock=clock), max_staleness=3600.0) as db:
        queue = Queue(db, clock)
        db.refresh()  # later than the commit began, and sees what was before it
        assert list(db) == []
        assert queue.release() == []
        assert list(db) == [b"first"]


# --- forks


def _commit_in_a_child_while_others_wait(place: Place) -> None:
    clock = Clock()
    with open_place(place, "r+", sources=Sources(clock=clock)) as db:
        queue = Queue(db, clock)
        for key in "ab":
            queue.add(lambda key=key: db.write(key, b"parent"))  # type: ignore[misc]
        child = os.fork()
        if not child:
            clock.actions.clear()
            calls = [Call(lambda key=key: db.write(key, b"child")) for key in "cdefghij"]  # type: ignore[misc]
            os._exit(sum(call.ended().error is not None for call in calls))
        assert queue.release() == [None, None]
        assert os.waitpid(child, 0) == (child, 0)


def test_a_forked_child_commits_what_it_wants_and_nothing_of_what_its_parent_had_under_way(place: Place) -> None:
    open_place(place, "x").close()
    # from a process of its own, for the one that runs the tests has threads of other libraries
    process = multiprocessing.get_context("spawn").Process(target=_commit_in_a_child_while_others_wait, args=(place,))
    process.start()
    process.join()
    assert process.exitcode == 0
    with open_place(place) as db:
        added = [list(db.at(generation)) for generation in range(1, db.version.generation + 1)]
        assert dict(db.items()) == {
            b"first": b"",
            **dict.fromkeys((b"a", b"b"), b"parent"),
            **{b"%c" % key: b"child" for key in b"cdefghij"},
        }
    new = [set(after) - set(before) for before, after in itertools.pairwise(added)]
    assert sum(map(len, new)) == 11
    assert any({b"a", b"b"} <= each for each in new)  # perhaps with the children's, made while they waited


def test_threads_of_a_forked_child_exclude_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    forks: list[int] = []
    lock = ProcessLock(on_fork=lambda: forks.append(1))
    child = os.getpid() + 1
    inside: list[int] = []

    def getpid() -> int:
        time.sleep(0.01)  # so that all of them find that they are in a child before one has drawn the consequence
        return child

    def enter() -> None:
        barrier.wait()
        with lock:
            inside.append(1)
            assert inside == [1]
            time.sleep(0.01)
            inside.pop()

    barrier = threading.Barrier(8)
    monkeypatch.setattr(os, "getpid", getpid)
    calls = [Call(enter) for _ in range(8)]
    assert [call.ended().error for call in calls] == [None] * 8
    assert forks == [1]
