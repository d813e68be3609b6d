"""Eight spawned processes that begin their jobs at the same moment."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.pool import AsyncResult
from multiprocessing.synchronize import Barrier
from typing import Any

__all__ = ["PATIENCE", "SPAWN", "WRITERS", "Crew"]

SPAWN = multiprocessing.get_context("spawn")
WRITERS = 8
PATIENCE = 120.0
"""Seconds until a job must be done."""

_start: Barrier


def _enter(start: Barrier) -> None:
    global _start
    _start = start


def _begin(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    _start.wait(PATIENCE)
    return function(*args)


def _nothing() -> None:
    pass


class Crew:
    """As many processes as there are writers."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    @classmethod
    @contextmanager
    def gathered(cls) -> Iterator[Crew]:
        """Their processes, until the end of the block."""
        with SPAWN.Pool(WRITERS, _enter, (SPAWN.Barrier(WRITERS),)) as pool:
            yield cls(pool)

    def begin(self, *jobs: tuple[Any, ...]) -> list[AsyncResult[Any]]:
        """Each job is a function and its arguments; whoever has none is idle."""
        padded = [*jobs, *[(_nothing,)] * (WRITERS - len(jobs))]
        return [self._pool.apply_async(_begin, (job[0], job[1:])) for job in padded]

    def run(self, *jobs: tuple[Any, ...]) -> list[Any]:
        results = [result.get(PATIENCE) for result in self.begin(*jobs)]
        return results[: len(jobs)]
