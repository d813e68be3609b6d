"""Waits for the disk beside each other: a disk makes of several at the same time hardly more than one.

One thread waits for what it is handed, and ends when nothing has come for a moment. Whoever needs the result before the
thread has come to it does the work itself, and while the thread is at it, what else was handed over: so a busy machine
is not held up by threads that have to wait their turn, nor one commit by another's.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial

__all__ = ["Syncing"]

_IDLE = 0.2
"""Seconds until the thread ends."""


class Syncing:
    """``work``, a wait for the disk, begun in another thread if that one has the time."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._claim = threading.Lock()
        self._under_way = threading.Lock()
        self._under_way.acquire()
        self._error: BaseException | None = None
        _waiter().take(self)

    @staticmethod
    def close(fd: int) -> None:
        """Close it, though nobody waits for that: what is closed by its last user is freed, which takes as long.

        One may be waiting for that, not more.
        """
        waiter = _waiter()
        if waiter.closing is not None:
            waiter.closing.do()
        waiter.closing = Syncing(partial(os.close, fd))

    def wait(self) -> None:
        """Return when it is done, or raise what it raised."""
        self.settle()
        if self._error is not None:
            raise self._error

    def settle(self) -> None:
        """Return when it is done, whatever came of it."""
        if not self.do():
            _waiter().help()
        with self._under_way:
            pass

    def forget(self) -> None:
        """It need not be done, unless it is under way, and then return when it is done."""
        if not self._claim.acquire(blocking=False):
            with self._under_way:
                pass

    def do(self) -> bool:
        """Unless somebody has begun already; whether it was done here."""
        if not self._claim.acquire(blocking=False):
            return False
        try:
            self._work()
        except BaseException as error:
            self._error = error
        finally:
            self._under_way.release()
        return True


class _Waiter:
    """The thread of one process."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[Syncing] = queue.SimpleQueue()
        self.closing: Syncing | None = None
        self._is_running = False

    def take(self, job: Syncing) -> None:
        self._jobs.put(job)
        with self._lock:
            if self._is_running:
                return
            self._is_running = True
        try:
            threading.Thread(target=self._run, name="ocdbt-sync", daemon=True).start()
        except RuntimeError:  # no more threads: all of it is done by those who need it
            self._is_running = False

    def help(self) -> None:
        """Do one thing that waits for the thread."""
        with suppress(queue.Empty):
            self._jobs.get_nowait().do()

    def _run(self) -> None:
        while True:
            try:
                self._jobs.get(timeout=_IDLE).do()
            except queue.Empty:
                with self._lock:
                    if self._jobs.empty():
                        self._is_running = False
                        return


_current: list[_Waiter] = []


def _waiter() -> _Waiter:
    """A forked child has none of its parent's threads."""
    if not _current or _current[0].process != os.getpid():
        _current[:] = [_Waiter()]
    return _current[0]
