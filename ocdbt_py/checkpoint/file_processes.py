"""Processes that share nothing but a storage: they meet through small files in a directory.

    URL/hello.INDEX              who this process is, and whom it has met
    URL/run.ID/NAME.N/INDEX      what it said when NAME was gathered for the Nth time
    URL/run.ID/NAME.N/failure    who failed there

**A run has an ID that no dead run shares.** Each process draws a random token and shows it in its ``hello``, along with
the tokens it has read in the others'. A ``hello`` that repeats one's own token was written by somebody who is here now;
once all of them do, everybody knows the same tokens, and the ID is made of them. What earlier runs left is never read:
an old ``hello`` cannot know a new token.

Files are written whole, framed by their length, so that a storage that shows half-written ones misleads nobody. Waiting
is looking again, after pauses that grow to a second. Every process removes its own files a few gatherings later, and
process 0 the rest of the run, and of dead runs.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from ocdbt_py.checkpoint.processes import is_failure, missing_processes
from ocdbt_py.errors import InvalidArgumentError, NotFoundError, OcdbtError, UnsupportedError
from ocdbt_py.storage.background import each
from ocdbt_py.storage.location import Settings, resolve
from ocdbt_py.storage.protocol import Read

__all__ = ["FileProcesses"]

_FIRST_PAUSE, _LONGEST_PAUSE = 0.005, 1.0
_FAREWELL = 5.0
"""Seconds that process 0 waits until the others have gone, to remove the last files; else the next run does."""

_KEPT = 32
"""Of the files that a process has written, the last so many stay: a slow one may be a few behind, not more."""

_LENGTH_BYTES = 8


class FileProcesses:
    """Process ``index`` of ``count`` that all use the directory ``url``, which nothing else does.

    Any storage that can be written will do. Each process makes one of these and uses it for all its saves; they find
    each other at the first. As a context manager, or with :meth:`close`, it removes its files at the end.

    >>> FileProcesses("memory://meeting", 0, 1).all_gather("ready?", b"yes", timeout=10)
    [b'yes']
    """

    def __init__(
        self, url: Any, index: int, count: int, *, storage_options: dict[str, Any] | None = None, fs: Any = None
    ) -> None:
        if type(index) is not int or type(count) is not int or not 0 <= index < count:
            raise InvalidArgumentError(f"index is one of 0 to count - 1, not {index!r} of {count!r}")
        place = resolve(url, storage_options=storage_options, fs=fs, settings=Settings(durable=False))
        if not place.storage.capabilities.writable:
            raise UnsupportedError(f"{place.url} cannot be written, so no processes can meet there")
        self.index = index
        self.count = count
        self._storage = place.storage
        self._base = place.path
        self._url = place.url
        self._token = os.urandom(16).hex()
        self._run = ""
        self._calls: Counter[str] = Counter()
        self._files: deque[str] = deque()
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<FileProcesses {self._url}: {self.index} of {self.count}>"

    def all_gather(self, name: str, data: bytes, timeout: float) -> list[bytes]:
        """Everybody's ``data``, by index; as :class:`~ocdbt_py.checkpoint.processes.Processes` has it."""
        deadline = time.monotonic() + timeout
        with self._lock:
            if not self._run:
                self._meet(name, timeout, deadline)
            self._calls[name] += 1
            base = f"{self._run}/{quote(name, safe='')}.{self._calls[name]}"
        answers = {self.index: data}
        self._write(f"{base}/{self.index}", data)
        if is_failure(data):
            self._write(f"{base}/failure", str(self.index).encode())

        def is_complete() -> bool:
            self._look(base, answers)
            return len(answers) == self.count or any(map(is_failure, answers.values()))

        if not _wait(is_complete, deadline):
            raise missing_processes(name, set(range(self.count)) - answers.keys(), self.count, timeout)
        if len(answers) == self.count:
            self._forget(f"{base}/{self.index}")
        return [answers.get(index, b"") for index in range(self.count)]

    def close(self) -> None:
        """Remove what is left of this process's files. Process 0 waits for the others a little, and tidies up."""
        self._leave(_FAREWELL)

    def _leave(self, patience: float) -> None:
        if not self._run:
            return
        with suppress(OcdbtError):
            if self._files:  # everybody has answered something, so all have met, and nobody looks at this any more
                self._storage.delete(self._hello(self.index))
            self._write(f"{self._run}/bye/{self.index}", b"")
            if self.index == 0:
                gone: dict[int, bytes] = {0: b""}

                def are_gone() -> bool:
                    self._look(f"{self._run}/bye", gone)
                    return len(gone) == self.count

                if _wait(are_gone, time.monotonic() + patience):
                    self._storage.delete(f"{self._run}/")
        self._run = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave(_FAREWELL if error is None else 0.0)  # after an error somebody is perhaps gone for ever

    # --- meeting

    def _meet(self, name: str, timeout: float, deadline: float) -> None:
        """Agree with all the others on the ID of this run."""
        others = [index for index in range(self.count) if index != self.index]
        met: dict[str, str] = {}
        confirmed: set[int] = set()
        shown: list[dict[str, str]] = []

        def have_met() -> bool:
            def look(index: int) -> None:
                try:
                    found = json.loads(self._read(self._hello(index)) or b"{}")
                    token, seen = found.get("token"), found.get("met", {})
                except (ValueError, AttributeError):
                    return
                if isinstance(token, str):
                    met[str(index)] = token
                    if seen.get(str(self.index)) == self._token:
                        confirmed.add(index)

            each(look, [index for index in others if index not in confirmed], self._storage.capabilities.parallel)
            if not shown or shown[-1] != met:  # before it is called done, for the others wait for it
                shown[:] = [dict(met)]
                self._write(self._hello(self.index), json.dumps({"token": self._token, "met": met}).encode())
            return len(confirmed) == len(others)

        if not _wait(have_met, deadline):
            raise missing_processes(name, set(others) - confirmed, self.count, timeout)
        tokens = [met.get(str(index), self._token) for index in range(self.count)]
        self._run = f"{self._base}/run.{hashlib.sha256(' '.join(tokens).encode()).hexdigest()[:32]}"
        if self.index == 0 and self._storage.capabilities.list:
            self._remove_dead_runs()

    def _remove_dead_runs(self) -> None:
        with suppress(OcdbtError):
            for item in list(self._storage.list(f"{self._base}/run.")):
                if item.path.endswith("/") and item.path != f"{self._run}/":
                    self._storage.delete(item.path)

    def _hello(self, index: int) -> str:
        return f"{self._base}/hello.{index}"

    # --- files

    def _look(self, base: str, answers: dict[int, bytes]) -> None:
        """Read those answers that have come since."""
        storage = self._storage
        missing = {str(index): index for index in range(self.count) if index not in answers}
        found: list[str] = [*missing]
        if storage.capabilities.list:
            start = len(base) + 1
            there = {item.path[start:] for item in storage.list(f"{base}/")}
            found = [name for name in missing if name in there]
            if "failure" in there:
                failed = self._read(f"{base}/failure")
                found = [name for name in missing if failed is not None and name == failed.decode()] or found

        def look(name: str) -> None:
            data = self._read(f"{base}/{name}")
            if data is not None:
                answers[missing[name]] = data

        each(look, found, storage.capabilities.parallel)

    def _read(self, path: str) -> bytes | None:
        """A file that is there, whole."""
        try:
            found = self._storage.read(path)
        except NotFoundError:
            return None
        assert isinstance(found, Read)
        data = found.data[_LENGTH_BYTES:]
        return data if found.data[:_LENGTH_BYTES] == len(data).to_bytes(_LENGTH_BYTES, "little") else None

    def _write(self, path: str, data: bytes) -> None:
        self._storage.write(path, [len(data).to_bytes(_LENGTH_BYTES, "little") + data])

    def _forget(self, path: str) -> None:
        with self._lock:
            self._files.append(path)
            gone = self._files.popleft() if len(self._files) > _KEPT else None
        if gone is not None:
            with suppress(OcdbtError):
                self._storage.delete(gone)


def _wait(is_done: Callable[[], bool], deadline: float) -> bool:
    """Ask again and again; False if it is not done by the deadline."""
    pause = _FIRST_PAUSE
    while not is_done():
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        time.sleep(min(pause, left))
        pause = min(pause * 1.5, _LONGEST_PAUSE)
    return True
