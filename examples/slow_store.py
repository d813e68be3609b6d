"""Simulated time, and a store that takes its time: so that hours of training and saving pass in a moment.

A save is real in all but its duration. The store is made of a ``progress=`` callback: a save calls it for every array
that it has encoded, in the thread that writes, and there it waits until so much simulated time has passed.
"""

from __future__ import annotations

import threading

from rich.progress import Progress

__all__ = ["Clock", "SlowStore"]

EPOCH = 1_800_000_000.0


class Clock:
    """Simulated time, which passes when :meth:`pass_until` says so."""

    def __init__(self) -> None:
        self._now = EPOCH
        self._passed = threading.Condition()

    def time(self) -> float:
        """Seconds since 1970, as ``time.time`` has them."""
        return self._now

    def pass_until(self, moment: float) -> None:
        with self._passed:
            self._now = max(self._now, moment)
            self._passed.notify_all()

    def wait_until(self, moment: float) -> None:
        """In another thread: until it is so late."""
        with self._passed:
            self._passed.wait_for(lambda: self._now >= moment)


class SlowStore:
    """The ``progress=`` of the saves: it draws their bar, and holds each up until its time has come."""

    def __init__(self, clock: Clock, bars: Progress) -> None:
        self._clock = clock
        self._bars = bars
        self._bar = bars.add_task("save", total=None)
        self._size = 1
        self._written = 0
        self._is_open = threading.Event()
        self._began = EPOCH
        self.busy_until = EPOCH

    def prepare(self) -> None:
        """A save may begin now; how long it takes is said when it has."""
        self._is_open.clear()

    def begin(self, seconds: float) -> None:
        """A save has begun, of which the store is busy for so long."""
        self._began = self._clock.time()
        self.busy_until = self._began + seconds
        self._is_open.set()

    def release(self) -> None:
        """Training has ended, well or not: the thread that writes must not wait for it any more."""
        self._clock.pass_until(self.busy_until)
        self._is_open.set()

    @property
    def is_busy(self) -> bool:
        return self._clock.time() < self.busy_until

    # What the thread that writes calls: the part of fsspec's Callback that a save needs.

    def set_size(self, size: int) -> None:
        self._size, self._written = size, 0
        self._bars.reset(self._bar, total=size)

    def relative_update(self, count: int) -> None:
        self._written += count
        self._is_open.wait()
        self._clock.wait_until(self._began + (self.busy_until - self._began) * self._written / self._size)
        self._bars.advance(self._bar, count)
