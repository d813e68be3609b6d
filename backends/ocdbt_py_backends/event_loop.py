"""Threads that wait for coroutines in fsspec's event loop, and coroutines that wait for several others."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import Future, wait
from typing import Any, TypeVar

from ocdbt_py.errors import InvalidArgumentError, StorageError

__all__ = ["gather", "run"]

_HEARTBEAT = 1.0
"""A waiting thread looks up so often: for an interrupt, where the system delivers none to a thread that waits, and for
a loop that is no more."""

_FAREWELL = 10.0
"""An interrupted wait gives its coroutine so many seconds to clean up behind it."""

_STOPPED = "The event loop of the filesystem was stopped while a request was under way"

T = TypeVar("T")


def run(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> T:
    """Run in a loop that another thread runs, and wait for the result.

    How long is for the coroutine to bound; that the loop still runs is seen to here. What interrupts the wait
    (``KeyboardInterrupt``) cancels the coroutine, and is raised once that has ended.
    """
    if _running_here(loop):
        work.close()
        raise InvalidArgumentError("This was called in fsspec's own event loop, which it would wait for forever")
    result: Future[T] = Future()
    tasks: list[asyncio.Task[T]] = []

    def settle(task: asyncio.Task[T]) -> None:
        if task.cancelled():  # by our interrupt, or by what ends the loop
            result.set_exception(StorageError(_STOPPED))
        elif (error := task.exception()) is not None:
            result.set_exception(error)
        else:
            result.set_result(task.result())

    def start() -> None:
        tasks.append(loop.create_task(work))
        tasks[0].add_done_callback(settle)

    def cancel() -> None:
        for task in tasks:
            task.cancel()

    try:
        loop.call_soon_threadsafe(start)
        while not wait([result], _HEARTBEAT).done:
            if not loop.is_running():
                raise StorageError(_STOPPED)
        return result.result()
    except BaseException:
        if not result.done() and loop.is_running():
            loop.call_soon_threadsafe(cancel)
            wait([result], _FAREWELL)
        raise


async def gather(jobs: Sequence[Callable[[], Awaitable[None]]], workers: int) -> None:
    """Do all of them, so many at a time; the first error ends the others, and is raised when they have ended."""
    waiting = iter(jobs)

    async def work() -> None:
        for job in waiting:
            await job()

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(workers, len(jobs))):
                group.create_task(work())
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from errors.exceptions[0].__cause__


def _running_here(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False
