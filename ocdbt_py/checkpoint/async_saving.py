"""Save while the program goes on.

Everything is judged before :func:`save_async` returns, and what can change is copied; a thread writes. So the caller
may change, donate or delete what was saved at once. What can change is NumPy's, read-only arrays too, whose owner may
write to them. A ``jax.Array`` cannot: of one on a CPU the buffer itself is held, not the array, which would be gone
once it is donated or deleted. A step that donates it meanwhile finds the buffer in use, and takes as much new memory.
What lies on an accelerator is copied to the host in any case. (Memory that JAX shares with NumPy, as ``jax.device_put``
of an aligned array may, must not be changed by JAX's own rules.)

The threads are our own: a pool refuses work once the interpreter is about to exit. Exit waits for them, and does so
before the pools of others are closed, since the clients of network storages look up hosts in one. After a fork a save
goes on in the process that began it, and only there.

A save that failed tells so to whoever asks for its result. If nobody can ask any more, because the handle is gone or
the interpreter exits, ``threading.excepthook`` gets the error, as any thread's that ends with one: it is printed.
"""

from __future__ import annotations

import atexit
import concurrent.futures.thread  # noqa: F401  (for what it registers at exit: see below)
import os
import threading
import traceback
import weakref
from _thread import start_new_thread
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Literal

from ocdbt_py.checkpoint.collecting import collector_paused
from ocdbt_py.checkpoint.contents import Contents, direct
from ocdbt_py.checkpoint.encoding import Encoding
from ocdbt_py.checkpoint.opening import resolve_checkpoint
from ocdbt_py.checkpoint.processes import WAIT_TIMEOUT, Processes
from ocdbt_py.checkpoint.save import BegunSave
from ocdbt_py.errors import ConflictError, UnsupportedError, WaitTimeoutError
from ocdbt_py.storage.location import Place, Settings

__all__ = ["AsyncSave", "begin_save", "save_async"]


class _Work:
    """One save under way: what its handle and its thread share."""

    def __init__(self, place: Place, index: int, then: Callable[[], None] | None) -> None:
        self.place = place
        self._index = index  # of the process; threads of one interpreter may stand for several
        self._then = then
        self.finished = threading.Event()
        self.error: BaseException | None = None
        self._lock = threading.Lock()
        self._is_told = False
        self._has_handle = True
        self._thread: threading.Thread | None = None

    def reserve(self) -> None:
        """Have the place for ourselves, among the saves of this kind."""
        with _lock:
            if any(map(self._meets, _under_way)):
                raise ConflictError(
                    f"Another save_async to {self.place.url} is under way; wait for its result(), or save elsewhere",
                    url=self.place.url,
                )
            _under_way.add(self)

    def _meets(self, other: _Work) -> bool:
        mine, its = self.place, other.place
        return (mine.path, self._index) == (its.path, other._index) and mine.storage == its.storage

    def release(self) -> None:
        """Let others have the place."""
        with _lock:
            _under_way.discard(self)

    def start(self, begun: BegunSave) -> None:
        """Begin to write; where no thread can be had any more, write."""
        if not _is_exiting:
            with suppress(RuntimeError):
                start_new_thread(self._start_thread, (begun,))
                return
        self._run(begun)

    def _start_thread(self, begun: BegunSave) -> None:
        """In a bare thread: what starts a ``Thread`` waits until that runs, and then for its turn to go on."""
        thread = threading.Thread(target=self._run, args=(begun,), name="ocdbt-save", daemon=False)
        try:
            thread.start()
        except RuntimeError:
            self._run(begun)

    def _run(self, begun: BegunSave) -> None:
        self._thread = threading.current_thread()
        error = None
        then, self._then = self._then, None  # it may know who holds the handle, and we outlive that
        try:
            begun.write()
            if then is not None:
                then()
        except BaseException as caught:
            error = caught
        del begun, then
        _let_go_of_copies(error)
        self.release()
        with self._lock:
            self.error = error
            self.finished.set()
            is_lost = not self._has_handle
        if is_lost:
            self._report()

    def told(self) -> BaseException | None:
        """What came of it, for somebody who asked."""
        with self._lock:
            self._is_told = True
        return self.error

    def nobody_can_ask(self) -> None:
        """The handle is gone, or soon will be."""
        with self._lock:
            self._has_handle = False
            is_lost = self.finished.is_set()
        if is_lost:
            self._report()

    def _report(self) -> None:
        with self._lock:
            error, is_told, self._is_told = self.error, self._is_told, True
        if error is not None and not is_told:
            trace = error.__traceback__
            threading.excepthook(threading.ExceptHookArgs((type(error), error, trace, self._thread)))

    def left_behind(self) -> None:
        """This is another process now, a fork, where no thread does this work."""
        self._lock = threading.Lock()
        if not self.finished.is_set():
            self.error = UnsupportedError(
                f"The save to {self.place.url} goes on in the process that began it, and this is a fork of that; ask "
                "there for its result",
                url=self.place.url,
            )
            self.finished = threading.Event()
            self.finished.set()
        self._is_told = True


class AsyncSave:
    """A save that goes on while the program does something else."""

    def __init__(self, work: _Work) -> None:
        self._work = work
        _handled.add(work)
        weakref.finalize(self, work.nobody_can_ask)  # at exit too, if the handle is still there by then

    def done(self) -> bool:
        """Whether it has ended, well or not."""
        return self._work.finished.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it has ended, without asking what came of it. False after ``timeout`` seconds."""
        return self._work.finished.wait(timeout)

    def result(self, timeout: float | None = None) -> None:
        """Wait until the checkpoint is there. Raises what the save raised.

        :class:`WaitTimeoutError` after ``timeout`` seconds. The save goes on then, and also if the wait is interrupted.
        """
        work = self._work
        if not work.finished.wait(timeout):
            raise WaitTimeoutError(
                f"The save to {work.place.url} has not ended after {timeout} seconds; it goes on", url=work.place.url
            )
        error = work.told()
        if error is not None:
            raise error

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._work.place.url} {'done' if self.done() else 'under way'}>"


_lock = threading.Lock()
_under_way: set[_Work] = set()
_handled: weakref.WeakSet[_Work] = weakref.WeakSet()
_is_exiting = False


def save_async(
    url: Any,
    tree: Any,
    *,
    overwrite: bool = False,
    compression: str | None = "auto",
    chunk_bytes: int | None = None,
    zarr_format: Literal[2, 3] = 2,
    custom_metadata: Mapping[str, Any] | None = None,
    checksums: bool = True,
    durable: bool = True,
    max_memory: int | None = None,
    processes: Processes | None = None,
    wait_timeout: float = WAIT_TIMEOUT,
    progress: Any = None,
    storage_options: dict[str, Any] | None = None,
    fs: Any = None,
) -> AsyncSave:
    """Begin to save ``tree`` as :func:`save` does, and return once nothing done to its data can change what is written.

    What is refused is refused here, before anything is written: leaves, names, arguments, a place that is taken. What
    can go wrong later, :meth:`AsyncSave.result` raises; an error that nobody asked for is reported when the handle is
    gone, at exit at the latest. The interpreter does not exit before the save has ended.

    NumPy arrays are copied, JAX arrays on accelerators too, to the host; of JAX arrays on a CPU the memory is kept
    until the save has ended, even if they are donated or deleted.
    ``progress`` is called from the thread that writes. Beside the errors of :func:`save`, :class:`ConflictError`:
    another such save to the same place is under way.

    >>> handle = save_async("memory://example", {"rates": [0.1, 0.2], "step": 3}, overwrite=True)
    >>> handle.result()
    """
    return begin_save(
        resolve_checkpoint(url, storage_options, fs, Settings(durable=durable)),
        direct(tree, Encoding(compression, chunk_bytes, zarr_format), custom_metadata),
        overwrite=overwrite,
        checksums=checksums,
        max_memory=max_memory,
        processes=processes,
        wait_timeout=wait_timeout,
        progress=progress,
    )


def begin_save(
    place: Place,
    contents: Contents,
    *,
    overwrite: bool = False,
    checksums: bool = True,
    max_memory: int | None = None,
    processes: Processes | None = None,
    wait_timeout: float = WAIT_TIMEOUT,
    progress: Any = None,
    then: Callable[[], None] | None = None,
) -> AsyncSave:
    """:func:`save_async` of any contents, at a place that is resolved already.

    ``then`` is called by the thread that wrote, once the checkpoint is seen; the save has not ended before, and has
    failed if that raises.
    """
    work = _Work(place, 0 if processes is None else getattr(processes, "index", 0), then)
    work.reserve()
    try:
        with collector_paused():
            begun = BegunSave(
                place,
                contents,
                overwrite=overwrite,
                checksums=checksums,
                max_memory=max_memory,
                processes=processes,
                wait_timeout=wait_timeout,
                progress=progress,
            )
            begun.detach()
    except BaseException:
        work.release()
        raise
    handle = AsyncSave(work)
    work.start(begun)
    return handle


def _let_go_of_copies(error: BaseException | None) -> None:
    """Somebody may keep the error, and with it all that the functions knew through which it came."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _wait_for_all() -> None:
    """At exit, when other threads may begin saves yet."""
    global _is_exiting
    _is_exiting = True
    while True:
        with _lock:
            work = next(iter(_under_way), None)
        if work is None:
            return
        work.finished.wait()


def _forget_all() -> None:
    """In a child process."""
    global _lock
    _lock = threading.Lock()
    for work in {*_under_way, *_handled}:
        work.left_behind()
    _under_way.clear()


# Before concurrent.futures, which asked in the same way, closes its pools.
try:
    getattr(threading, "_register_atexit", atexit.register)(_wait_for_all)
except RuntimeError:  # imported while the interpreter exits
    _is_exiting = True
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
