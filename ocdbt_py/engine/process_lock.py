"""A mutex that a forked child does not inherit locked."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable


class ProcessLock:
    """A ``threading.Lock`` for ``with``, another one in a forked child, where ``on_fork`` is called when it is first
    held: what another thread of the parent was doing under the old one will never be finished there."""

    __slots__ = ("_locks", "_on_fork")

    def __init__(self, on_fork: Callable[[], None] | None = None) -> None:
        self._locks = {os.getpid(): threading.Lock()}
        self._on_fork = on_fork

    def __enter__(self) -> None:
        process = os.getpid()
        lock = self._locks.get(process)
        if lock is None:
            mine = threading.Lock()
            mine.acquire()
            lock = self._locks.setdefault(process, mine)  # several threads may come at once; one of them is first
            if lock is mine:
                if self._on_fork is not None:
                    self._on_fork()
                return
        lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._locks[os.getpid()].release()
