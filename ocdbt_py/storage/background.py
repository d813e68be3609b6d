"""Work done beside the caller's, a bounded amount at a time: requests that each take milliseconds, made together.

Threads of our own, one for each piece of work: a pool refuses work while the interpreter exits, when the last save may
still run, and a thread is nothing beside a request. Where the system gives no more threads, the caller does the work.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import TypeVar

__all__ = ["Background", "each", "processors"]

T = TypeVar("T")


class Background:
    """At most ``workers`` pieces of work at once, which together hold at most ``limit`` bytes, or are only one."""

    def __init__(self, workers: int, limit: int = 0) -> None:
        self._workers = workers
        self._limit = limit
        self._changed = threading.Condition()
        self._running = 0
        self._held = 0
        self._error: BaseException | None = None

    def start(self, work: Callable[[], None], nbytes: int = 0) -> None:
        """Begin, once there is room; nothing is begun after an error, which is raised instead."""
        with self._changed:
            self._changed.wait_for(lambda: self._error is not None or self._has_room(nbytes))
            if self._error is not None:
                raise self._error
            self._running += 1
            self._held += nbytes
        try:
            threading.Thread(target=self._do, args=(work, nbytes), name="ocdbt-background").start()
        except RuntimeError:
            self._do(work, nbytes)

    def wait(self) -> None:
        """Return when all has been done; the first error is raised, once nothing runs any more."""
        self.settle()
        if self._error is not None:
            raise self._error

    def settle(self) -> None:
        """Return when nothing runs any more, whatever came of it."""
        with self._changed:
            self._changed.wait_for(lambda: not self._running)

    def _has_room(self, nbytes: int) -> bool:
        return not self._running or (self._running < self._workers and self._held + nbytes <= self._limit)

    def _do(self, work: Callable[[], None], nbytes: int) -> None:
        error = None
        try:
            work()
        except BaseException as caught:
            error = caught
        del work  # with what it holds
        with self._changed:
            self._error = self._error or error
            self._running -= 1
            self._held -= nbytes
            self._changed.notify_all()


def each(function: Callable[[T], object], items: Iterable[T], workers: int) -> None:
    """Call it with every item, so many at a time; the first error is raised, once nothing runs any more."""
    if workers < 2:
        for item in items:
            function(item)
        return
    background = Background(workers)

    def call(item: T) -> None:
        function(item)

    try:
        for item in items:
            background.start(partial(call, item))
    finally:
        background.settle()
    background.wait()


def processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
