"""What is asked of any filesystem of fsspec, and asked again after a connection broke.

A filesystem with one connection (ftplib's is a socket and a place in a conversation) is used by one thread at a time;
one that broke is made again, and what only looks or names is asked again. Neither survives a fork.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from ocdbt_py.errors import OcdbtError, StorageError
from ocdbt_py.storage.location import safe_url
from ocdbt_py_backends.generic_failures import failure_of
from ocdbt_py_backends.generic_filesystem import renewed, turn_on

__all__ = ["ATTEMPTS", "TRANSIENT", "Attempts"]

ATTEMPTS = 4
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 3.0

TRANSIENT = frozenset({"unreachable", "unavailable", "interrupted", "timeout"})
"""Kinds of :class:`StorageError` after which another connection may do it."""

T = TypeVar("T")


class Attempts:
    """``given`` is the filesystem to begin with; ``describe`` says in messages where a path is."""

    def __init__(self, given: Any, describe: Callable[[str], str]) -> None:
        self._given = given
        self._pid = os.getpid()
        self.fs = given
        self.describe = describe

    def do(self, path: str, work: Callable[[Any], T], *, reading: bool = True, left: Sized = ()) -> T:
        """Let the filesystem do it, and a new one again after a connection broke: ``work`` may be done twice.

        Where it takes what is done off what is ``left``, the attempts to do the rest are counted anew.
        """
        before = len(left)
        attempts, pause = ATTEMPTS, _FIRST_PAUSE
        while True:
            used = None
            try:
                with self.used(path) as used:
                    return work(used)
            except Exception as error:
                failure = self.translated(error, path, reading=reading)
                if len(left) < before:
                    before = len(left)
                    attempts, pause = ATTEMPTS, _FIRST_PAUSE
                attempts -= 1
                if failure.kind not in TRANSIENT or not attempts:
                    raise failure from (None if failure is error else error)
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, _LONGEST_PAUSE)
            self._renew(used)

    @contextmanager
    def used(self, path: str) -> Iterator[Any]:
        """The filesystem, for this thread alone unless it is made for many."""
        if self._pid != os.getpid():
            self.fs = renewed(self._given)
            self._pid = os.getpid()
        fs = self.fs
        with turn_on(fs, self.describe(path), path):
            yield fs

    def _renew(self, broken: Any) -> None:
        """Have another filesystem, unless another thread has seen to that."""
        with suppress(Exception):  # then the next attempt says what is wrong
            another = renewed(self._given)
            if self.fs is broken:
                self.fs = another

    def translated(self, error: Exception, path: str, *, reading: bool) -> OcdbtError:
        if isinstance(error, OcdbtError):
            return error
        found = failure_of(error, self.describe(path), path, self._server)
        if isinstance(error, NotADirectoryError) and not reading:
            return StorageError(
                f"{self.describe(path)} cannot be made, for one of its parents is a file",
                kind="not-a-directory",
                path=path,
            )
        return found

    @property
    def _server(self) -> str:
        """Where the filesystem's URLs do not say it."""
        base = self._given.storage_options.get("base_url")
        return f" to {safe_url(base)}" if isinstance(base, str) else ""
