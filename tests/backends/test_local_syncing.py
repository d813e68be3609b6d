"""Waits beside each other: each piece of work is done once, by a thread or by whoever needs it first."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator

import pytest

from ocdbt_py_backends import local_syncing
from ocdbt_py_backends.local_syncing import Syncing

PATIENCE = 30.0


@pytest.fixture(autouse=True)
def waiter(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One of each test's own, that ends at once."""
    monkeypatch.setattr(local_syncing, "_IDLE", 0.01)
    monkeypatch.setattr(local_syncing, "_current", [])
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(PATIENCE)
        assert not thread.is_alive()


class Work:
    """Goes on when told; who did it, each time."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self.done_by: list[str] = []

    def __call__(self) -> None:
        self.begun.set()
        assert self.go_on.wait(PATIENCE)
        self.done_by.append(threading.current_thread().name)


@pytest.fixture
def busy() -> Iterator[Work]:
    """What keeps the thread from everything else."""
    work = Work()
    syncing = Syncing(work)
    assert work.begun.wait(PATIENCE)
    yield work
    work.go_on.set()
    syncing.wait()
    assert work.done_by == ["ocdbt-sync"]


def test_work_under_way_is_waited_for(busy: Work) -> None:
    found: list[str] = []
    last = Syncing(lambda: found.append("x"))
    busy.go_on.set()
    last.wait()
    last.wait()
    assert found == ["x"]


def test_who_needs_it_before_the_thread_is_free_does_it(busy: Work) -> None:
    work = Work()
    work.go_on.set()
    Syncing(work).wait()
    assert work.done_by == [threading.current_thread().name]


def test_what_is_forgotten_is_not_done(busy: Work) -> None:
    work = Work()
    Syncing(work).forget()
    busy.go_on.set()
    Syncing(lambda: None).wait()
    assert not work.begun.is_set()


def test_what_is_under_way_is_not_forgotten() -> None:
    work = Work()
    syncing = Syncing(work)
    assert work.begun.wait(PATIENCE)
    threading.Timer(0.01, work.go_on.set).start()
    syncing.forget()
    assert work.done_by == ["ocdbt-sync"]


def fail() -> None:
    raise OSError("no disk")


def test_an_error_is_raised_where_it_is_waited_for() -> None:
    syncing = Syncing(fail)
    syncing.settle()
    with pytest.raises(OSError, match="no disk"):
        syncing.wait()


def test_where_no_thread_can_be_started_all_is_done_by_those_who_need_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        found: list[str] = []
        Syncing(lambda: found.append("x")).wait()
        assert found == ["x"]


def in_a_child(function: Callable[[], None]) -> int:
    child = os.fork()
    if not child:
        status = 1
        try:
            function()
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    return status


def fork_while_the_thread_is_busy() -> None:
    work = Work()
    syncing = Syncing(work)
    assert work.begun.wait(PATIENCE)
    assert in_a_child(lambda: Syncing(lambda: None).wait()) == 0
    work.go_on.set()
    syncing.wait()


def test_a_forked_child_has_a_thread_of_its_own() -> None:
    process = multiprocessing.get_context("spawn").Process(target=fork_while_the_thread_is_busy)
    process.start()
    process.join()
    assert process.exitcode == 0
