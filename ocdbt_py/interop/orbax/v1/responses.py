"""What the ``…_async`` functions return: something to wait for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from ocdbt_py.errors import WaitTimeoutError

__all__ = ["AsyncResponse", "Response", "SaveResponse"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class AsyncResponse(Protocol[T_co]):
    """What goes on while the program does something else."""

    def result(self, timeout: float | None = None) -> T_co:
        """Wait for it, at most ``timeout`` seconds; what it gave, or the error it failed with."""

    def on_complete(self, callback: Callable[[T_co], None]) -> None:
        """Call ``callback`` with the result as soon as there is one; never, if it fails."""


class _Pending(Protocol):
    def result(self, timeout: float | None = None) -> object: ...


class Response(Generic[T]):
    """The result of ``work``, which a thread of its own does. The interpreter does not exit before."""

    def __init__(self, work: Callable[[], T], name: str) -> None:
        self._name = name
        self._finished = threading.Event()
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[T], None]] = []
        self._results: list[T] = []
        self._error: BaseException | None = None
        threading.Thread(target=self._run, args=(work,), name=name).start()

    def _run(self, work: Callable[[], T]) -> None:
        try:
            self._results.append(work())
        except BaseException as error:
            self._error = error
        with self._lock:
            self._finished.set()
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks if self._results else ():
            callback(self._results[0])

    def done(self) -> bool:
        """Whether it has ended, well or not."""
        return self._finished.is_set()

    def result(self, timeout: float | None = None) -> T:
        """Wait for it; :class:`WaitTimeoutError` after ``timeout`` seconds, though it goes on."""
        if not self._finished.wait(timeout):
            raise WaitTimeoutError(f"{self._name} has not ended after {timeout} seconds; it goes on")
        if self._error is not None:
            raise self._error
        return self._results[0]

    def on_complete(self, callback: Callable[[T], None]) -> None:
        """Call ``callback`` with the result as soon as there is one, from the thread that made it; now, if there is."""
        with self._lock:
            if not self._finished.is_set():
                self._callbacks.append(callback)
                return
        if self._results:
            callback(self._results[0])


class SaveResponse(Generic[T]):
    """A save that is under way; its result is ``value``. A thread waits for it only if somebody wants to be called."""

    def __init__(self, save: _Pending, value: T) -> None:
        self._save = save
        self._value = value
        self._watching: Response[T] | None = None

    def result(self, timeout: float | None = None) -> T:
        """Wait until the checkpoint is there. Raises what the save raised."""
        self._save.result(timeout)
        return self._value

    def on_complete(self, callback: Callable[[T], None]) -> None:
        """Call ``callback`` with the result once the checkpoint is there, from another thread."""
        if self._watching is None:
            self._watching = Response(self.result, "ocdbt-save-watch")
        self._watching.on_complete(callback)
