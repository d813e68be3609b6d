"""Several processes that save one checkpoint: how they meet, and how the failure of one reaches the others.

A group of processes is anything with ``index``, ``count`` and ``all_gather`` (:class:`Processes`); what else there is
to agree on is made of that. A save is a few steps, the same in each process (:class:`Steps`). At the end of each step
everybody tells the others what came of it, or why it failed, and nobody goes on before all have done so: the answers
are barrier, decision and failure in one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Protocol

from ocdbt_py import errors
from ocdbt_py.errors import InvalidArgumentError, InvalidTypeError, OcdbtError, StorageError, WaitTimeoutError

__all__ = ["WAIT_TIMEOUT", "Alone", "Processes", "Steps", "is_failure", "missing_processes"]

WAIT_TIMEOUT = 1200.0
"""Seconds that a step waits for the others; as long as Orbax does."""

_DONE, _FAILED = b"+", b"\xffocdbt failed\xff"
_SHOWN = 10


class Processes(Protocol):
    """This process among those that do the same.

    Each of them calls ``all_gather`` with the same names in the same order, from one thread at a time for any name.
    """

    @property
    def index(self) -> int:
        """This process's number, from 0 on; 0 is the one that merges and publishes."""

    @property
    def count(self) -> int: ...

    def all_gather(self, name: str, data: bytes, timeout: float) -> list[bytes]:
        """Everybody's ``data``, by index. Returns when all have called it under this name.

        After ``timeout`` seconds: an error that names who is missing (:class:`WaitTimeoutError`). It may return as soon
        as one of the answers :func:`is_failure`, with ``b""`` for those that are not there yet.
        """


class Alone:
    """The only process."""

    index = 0
    count = 1

    def all_gather(self, name: str, data: bytes, timeout: float) -> list[bytes]:
        return [data]


class Steps:
    """What several processes do together, a step at a time."""

    def __init__(self, processes: Processes, name: str, timeout: float) -> None:
        if not callable(getattr(processes, "all_gather", None)):
            raise InvalidTypeError(
                f"processes= is an object with index, count and all_gather, not {type(processes).__name__}"
            )
        self.index, self.count = processes.index, processes.count
        if not 0 <= self.index < self.count:
            raise InvalidArgumentError(f"There is no process {self.index} among {self.count}; they count from 0")
        if not timeout > 0:
            raise InvalidArgumentError(f"wait_timeout is a positive number of seconds, not {timeout!r}")
        self._processes = processes
        self._name = name
        self._timeout = timeout

    @property
    def is_primary(self) -> bool:
        return self.index == 0

    def take(self, name: str, work: Callable[[], bytes]) -> list[bytes]:
        """Do this process's work, and return what each of them answered.

        If one fails, all do: here with its own error, elsewhere with one of the same class that says which process it
        was. :class:`WaitTimeoutError` names those that did not answer in time.
        """
        name = f"{self._name}/{name}"
        try:
            data = work()
        except BaseException as error:
            with suppress(Exception):  # this error is the one that matters
                self._processes.all_gather(name, _FAILED + _spelled(error), self._timeout)
            raise
        answers = self._gather(name, _DONE + data)
        for index, answer in enumerate(answers):
            if is_failure(answer):
                raise _read_failure(answer.removeprefix(_FAILED), index, self.count)
        return [answer.removeprefix(_DONE) for answer in answers]

    def _gather(self, name: str, data: bytes) -> list[bytes]:
        try:
            answers = self._processes.all_gather(name, data, self._timeout)
        except OcdbtError:
            raise
        except TimeoutError as error:
            raise WaitTimeoutError(f"Gave up waiting for the other processes at {name!r}: {error}") from error
        except Exception as error:  # somebody else's code
            raise StorageError(f"The processes could not exchange {name!r}: {error}", kind="exchange") from error
        if any(map(is_failure, answers)) or (len(answers) == self.count and all(answers)):
            return answers
        raise InvalidArgumentError(f"all_gather of {name!r} did not return the data of {self.count} processes")


def is_failure(data: bytes) -> bool:
    """Whether this is what a process sends in place of its answer when it has failed."""
    return data.startswith(_FAILED)


def missing_processes(name: str, missing: Iterable[int], count: int, timeout: float) -> WaitTimeoutError:
    """Nobody may wait for ever: the error of an ``all_gather``."""
    gone = sorted(missing)
    shown = ", ".join(map(str, gone[:_SHOWN])) + (f" and {len(gone) - _SHOWN} more" if len(gone) > _SHOWN else "")
    return WaitTimeoutError(
        f"Waited {timeout:g} s at {name!r} for process {shown} of {count} (they count from 0): not there any more, or "
        "stuck. See what became of it; a longer wait_timeout= gives it more time"
    )


def _spelled(error: BaseException) -> bytes:
    """An error as the others are told of it; of one that is not ours, they learn its class as text."""
    if isinstance(error, OcdbtError):
        found = {"class": type(error).__name__, "kind": error.kind, "message": str(error)}
    else:
        found = {"class": "", "kind": "process", "message": f"{type(error).__name__}: {error}".rstrip(": ")}
    return json.dumps(found).encode()


def _read_failure(data: bytes, index: int, count: int) -> OcdbtError:
    try:
        found: Any = json.loads(data)
        name, kind, message = found["class"], found["kind"], found["message"]
    except (ValueError, KeyError, TypeError):
        name, kind, message = "", "process", "it did not say why"
    made = getattr(errors, name) if name in errors.__all__ else StorageError
    error: OcdbtError = made(f"Process {index} of {count} failed: {message}", kind=str(kind))
    return error
