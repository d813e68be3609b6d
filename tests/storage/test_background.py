"""Work in the background is bounded, and its first error comes to whoever waits for it."""

from __future__ import annotations

import threading
from functools import partial

import pytest

from ocdbt_py.storage.background import Background, each

PATIENCE = 30.0


def test_each_item_is_worked_on_once_and_so_many_at_a_time() -> None:
    barrier = threading.Barrier(3)  # passed by three at once, or by nobody
    done: list[int] = []

    def work(item: int) -> None:
        barrier.wait(PATIENCE)
        done.append(item)

    each(work, range(9), 3)
    assert sorted(done) == list(range(9))


def test_one_worker_is_the_caller_itself_in_order() -> None:
    done: list[tuple[int, threading.Thread]] = []
    each(lambda item: done.append((item, threading.current_thread())), range(5), 1)
    assert done == [(i, threading.current_thread()) for i in range(5)]


@pytest.mark.parametrize("workers", [1, 4])
def test_the_first_error_is_raised_and_nothing_is_begun_after_it(workers: int) -> None:
    begun: list[int] = []

    def work(item: int) -> None:
        begun.append(item)
        if item == 2:
            raise KeyError(item)

    with pytest.raises(KeyError):
        each(work, range(1000), workers)
    assert len(begun) < 1000


def test_what_is_under_way_holds_a_bounded_amount_or_is_alone() -> None:
    background = Background(8, limit=10)
    go_on = threading.Event()
    held: list[int] = []
    most: list[int] = []

    def work(nbytes: int) -> None:
        held.append(nbytes)
        most.append(sum(held))
        assert go_on.wait(PATIENCE)
        held.remove(nbytes)

    opening = threading.Timer(0.1, go_on.set)
    opening.start()
    for nbytes in (4, 4, 4, 100, 10, 1):
        background.start(partial(work, nbytes), nbytes)
    background.wait()
    opening.join()
    assert max(most) == 100
    assert sorted(most)[-2] <= 10


def test_where_there_are_no_more_threads_the_caller_does_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    done: list[int] = []
    each(done.append, range(20), 4)
    assert done == list(range(20))
