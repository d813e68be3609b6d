"""One SFTP conversation (protocol version 3, OpenSSH's extensions) over a channel, with many requests under way.

A request waits for the network; so the next ones are sent meanwhile, as far as the answers fit into memory that is
bounded (:data:`IN_FLIGHT_BYTES`, :data:`ASKED_BYTES`). paramiko's own client sends ahead through threads that nobody
can stop, decodes names that are not UTF-8 into errors, and keeps neither the server's extensions nor its limits; of
paramiko only the channel is used here, with its time limit on every wait.

A session is for one thread at a time. What an operation left unanswered is dropped when the answer comes.
"""

from __future__ import annotations

import struct
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from ocdbt_py_backends.body import Body
from ocdbt_py_backends.sftp_packets import (
    NO_ATTRIBUTES,
    Answer,
    Attributes,
    Lost,
    as_text,
    byte_string,
    path_string,
    uint32,
    uint64,
)

__all__ = [
    "BAD_MESSAGE",
    "FAILURE",
    "NO_SUCH_FILE",
    "OP_UNSUPPORTED",
    "PERMISSION_DENIED",
    "Attributes",
    "Lost",
    "Refused",
    "Session",
]

IN_FLIGHT_BYTES = 1 << 20
"""Sent and not yet acknowledged; below the channel's window of 2 MiB."""

ASKED_BYTES = 4 << 20
"""Asked for and not yet here. What the window does not admit waits at the server, which then waits for nothing else."""

_LEAST_REQUEST = 32 << 10  # every server takes so many bytes in one request
_MOST_REQUEST = 128 << 10
_RECEIVED_AT_ONCE = 256 << 10
_LONGEST_ANSWER = 16 << 20
_NAMES_AHEAD = 4

_INIT, _VERSION, _OPEN, _CLOSE, _READ, _WRITE, _FSTAT = 1, 2, 3, 4, 5, 6, 8
_OPENDIR, _READDIR, _REMOVE, _MKDIR, _RMDIR, _REALPATH, _STAT, _RENAME = 11, 12, 13, 14, 15, 16, 17, 18
_STATUS, _HANDLE, _DATA, _NAME, _ATTRS, _EXTENDED, _EXTENDED_REPLY = 101, 102, 103, 104, 105, 200, 201

_FOR_READING, _FOR_WRITING, _CREATE, _TRUNCATE = 0x1, 0x2, 0x8, 0x10

_OK, _EOF, NO_SUCH_FILE, PERMISSION_DENIED, FAILURE, BAD_MESSAGE = 0, 1, 2, 3, 4, 5
OP_UNSUPPORTED = 8

_POSIX_RENAME = b"posix-rename@openssh.com"
_FSYNC = b"fsync@openssh.com"
_STATVFS = b"statvfs@openssh.com"
_LIMITS = b"limits@openssh.com"


class Refused(Exception):
    """The server's answer to a request is an error."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"status {code}: {text}")
        self.code = code


class Session:
    """``channel`` is open, its subsystem ``sftp`` runs, and it has a time limit. Paths are ``str``."""

    def __init__(self, channel: Any) -> None:
        self.channel = channel
        self.lock = threading.Lock()
        """For whoever uses the session."""
        self.alive = True
        self._received = memoryview(b"")
        self._last_id = 0
        self._awaited: dict[int, memoryview | None] = {}
        self._answers: dict[int, tuple[int, Any]] = {}
        self.extensions: dict[bytes, bytes] = {}
        self._most_read = self._most_written = _LEAST_REQUEST
        self._greet()

    @property
    def usable(self) -> bool:
        return self.alive and not self.channel.closed

    def begin(self) -> None:
        """Forget what an operation before did not wait for."""
        self._awaited.clear()
        self._answers.clear()

    def close(self) -> None:
        self.alive = False
        with suppress(Exception):
            self.channel.close()

    # --- files

    def open(self, path: str) -> bytes:
        return self._handle(self._ask(_OPEN, path_string(path), uint32(_FOR_READING), NO_ATTRIBUTES))

    def open_many(self, paths: Sequence[str]) -> list[bytes | Refused]:
        """Handles for reading, asked for together."""
        asked = [self._ask(_OPEN, path_string(path), uint32(_FOR_READING), NO_ATTRIBUTES) for path in paths]
        found: list[bytes | Refused] = []
        for request in asked:
            try:
                found.append(self._handle(request))
            except Refused as error:
                found.append(error)
        return found

    def open_for_writing(self, path: str, *, new: bool) -> bytes:
        """``new``: made, or emptied if there; else it must be there."""
        flags = _FOR_WRITING | (_CREATE | _TRUNCATE if new else 0)
        return self._handle(self._ask(_OPEN, path_string(path), uint32(flags), NO_ATTRIBUTES))

    def close_handle(self, *handles: bytes) -> None:
        """Of files that were read: nobody waits for the answer."""
        for handle in handles:
            self._send(_CLOSE, byte_string(handle))

    def finish(self, handle: bytes, *, synced: bool) -> Attributes:
        """Close a written file, on the disk if the server can do that; what the server says of it."""
        asked = [self._ask(_FSTAT, byte_string(handle))]
        if synced and self.can_sync:
            asked.append(self._ask(_EXTENDED, byte_string(_FSYNC), byte_string(handle)))
        asked.append(self._ask(_CLOSE, byte_string(handle)))
        attributes = self._attributes(asked[0])
        for request in asked[1:]:
            self._status(request)
        return attributes

    def begin_reading(self, handle: bytes, most: int) -> tuple[Attributes, bytes]:
        """What the server says of an open file, and its first bytes, both asked for at once."""
        first = bytearray(min(most, self._most_read))
        described, read = self._ask(_FSTAT, byte_string(handle)), self._ask_read(handle, 0, memoryview(first))
        attributes = self._attributes(described)
        if not attributes.is_file:
            return attributes, b""
        return attributes, bytes(first[: self._read(read)])

    def read_into(self, places: Sequence[tuple[bytes, int, memoryview]]) -> list[int]:
        """Fill each view of (handle, offset, view); how many bytes of it there were."""
        counts = [0] * len(places)
        pieces = (
            (index, offset + at, view[at : at + self._most_read])
            for index, (_, offset, view) in enumerate(places)
            for at in range(0, len(view), self._most_read)
        )
        asked: deque[tuple[int, int, int, memoryview]] = deque()
        in_flight = 0

        def take() -> None:
            nonlocal in_flight
            request, index, offset, view = asked.popleft()
            in_flight -= len(view)
            count = self._read(request)
            counts[index] += count
            if 0 < count < len(view):  # the server's own limit is lower
                ask(index, offset + count, view[count:])

        def ask(index: int, offset: int, view: memoryview) -> None:
            nonlocal in_flight
            asked.append((self._ask_read(places[index][0], offset, view), index, offset, view))
            in_flight += len(view)

        for index, offset, view in pieces:
            while asked and in_flight + len(view) > ASKED_BYTES:
                take()
            ask(index, offset, view)
        while asked:
            take()
        return counts

    def write(self, handle: bytes, offset: int, body: Body) -> None:
        asked: deque[tuple[int, int]] = deque()
        in_flight = 0
        for part in body.parts(self._most_written):
            while asked and in_flight + len(part) > IN_FLIGHT_BYTES:
                request, size = asked.popleft()
                self._status(request)
                in_flight -= size
            asked.append(
                (self._ask(_WRITE, byte_string(handle), uint64(offset), uint32(len(part)), *part.views), len(part))
            )
            offset += len(part)
            in_flight += len(part)
        for request, _ in asked:
            self._status(request)

    @property
    def can_sync(self) -> bool:
        return _FSYNC in self.extensions

    def sync(self, paths: Sequence[str]) -> None:
        """Have the server wait for its disk. A directory is opened as a file is, which OpenSSH allows."""
        handles = self.open_many(paths)
        opened = [handle for handle in handles if isinstance(handle, bytes)]
        asked = [self._ask(_EXTENDED, byte_string(_FSYNC), byte_string(handle)) for handle in opened]
        self.close_handle(*opened)
        for request in asked:
            self._status(request)
        for handle in handles:
            if isinstance(handle, Refused):
                raise handle

    # --- names

    def stat(self, path: str) -> Attributes:
        """Of what a symbolic link leads to."""
        return self._attributes(self._ask(_STAT, path_string(path)))

    def found(self, path: str) -> Attributes | None:
        """As :meth:`stat`; None where nothing is."""
        try:
            return self.stat(path)
        except Refused as error:
            if error.code == NO_SUCH_FILE:
                return None
            raise

    def rename(self, source: str, target: str) -> None:
        """The protocol's own: a target that is there is refused."""
        self._status(self._ask(_RENAME, path_string(source), path_string(target)))

    @property
    def can_replace(self) -> bool:
        return _POSIX_RENAME in self.extensions

    def replace(self, source: str, target: str) -> None:
        """As ``os.replace`` on the server."""
        self._status(self._ask(_EXTENDED, byte_string(_POSIX_RENAME), path_string(source), path_string(target)))

    def remove(self, paths: Sequence[str]) -> list[Refused | None]:
        """Of each file, why it was not removed."""
        return self._statuses([self._ask(_REMOVE, path_string(path)) for path in paths])

    def make_directory(self, path: str) -> None:
        self._status(self._ask(_MKDIR, path_string(path), NO_ATTRIBUTES))

    def remove_directory(self, path: str) -> None:
        self._status(self._ask(_RMDIR, path_string(path)))

    def real_path(self, path: str) -> str:
        kind, answer = self._answer(self._ask(_REALPATH, path_string(path)))
        if kind != _NAME or answer.uint32() < 1:
            raise self._nonsense(kind)
        return as_text(answer.string())

    def listing(self, path: str) -> Iterator[tuple[str, Attributes]]:
        """Names in a directory, and what the server says of each, not following links."""
        handle = self._handle(self._ask(_OPENDIR, path_string(path)))
        asked: deque[int] = deque()
        try:
            while True:
                while len(asked) < _NAMES_AHEAD:
                    asked.append(self._ask(_READDIR, byte_string(handle)))
                kind, answer = self._answer(asked.popleft())
                if kind != _NAME:
                    raise self._nonsense(kind)
                for _ in range(answer.uint32()):
                    name = as_text(answer.string())
                    answer.string()  # the line that ls would print
                    attributes = answer.attributes()
                    if name not in (".", ".."):
                        yield name, attributes
        except Refused as error:
            if error.code != _EOF:
                raise
        finally:
            if self.alive:
                self.close_handle(handle)

    def free_bytes(self, path: str) -> int | None:
        """Where the server can tell."""
        if _STATVFS not in self.extensions:
            return None
        kind, answer = self._answer(self._ask(_EXTENDED, byte_string(_STATVFS), path_string(path)))
        if kind != _EXTENDED_REPLY:
            raise self._nonsense(kind)
        _, fragment, _, _, available = (answer.uint64() for _ in range(5))
        return int(fragment * available)

    # --- requests and answers

    def _greet(self) -> None:
        self._put(struct.pack(">IBI", 5, _INIT, 3))
        length, kind = struct.unpack(">IB", self._take(5))
        if kind != _VERSION or not 5 <= length < _LONGEST_ANSWER:
            raise self._nonsense(kind)
        answer = Answer(self._take(length - 1))
        answer.uint32()
        while answer.left:
            name = answer.string()
            self.extensions[name] = answer.string()
        if _LIMITS in self.extensions:
            kind, limits = self._answer(self._ask(_EXTENDED, byte_string(_LIMITS)))
            if kind == _EXTENDED_REPLY:
                _, most_read, most_written, _ = (limits.uint64() for _ in range(4))
                # 0: the server does not say
                self._most_read = min(max(most_read, _LEAST_REQUEST), _MOST_REQUEST)
                self._most_written = min(max(most_written, _LEAST_REQUEST), _MOST_REQUEST)

    def _ask(self, kind: int, *parts: bytes | memoryview) -> int:
        """Send a request whose answer is waited for later."""
        request = self._send(kind, *parts)
        self._awaited[request] = None
        return request

    def _ask_read(self, handle: bytes, offset: int, view: memoryview) -> int:
        request = self._send(_READ, byte_string(handle), uint64(offset), uint32(len(view)))
        self._awaited[request] = view
        return request

    def _send(self, kind: int, *parts: bytes | memoryview) -> int:
        self._last_id = request = (self._last_id + 1) & 0xFFFFFFFF
        length = 5 + sum(map(len, parts))
        self._put(b"".join([struct.pack(">IBI", length, kind, request), *parts]))
        return request

    def _answer(self, request: int) -> tuple[int, Any]:
        """Kind and content of the answer; an error is raised."""
        while request not in self._answers:
            self._receive()
        del self._awaited[request]
        kind, content = self._answers.pop(request)
        if kind == _STATUS:
            code = content.uint32()
            if code != _OK:
                raise Refused(code, as_text(content.string()) if content.left else "")
        return kind, content

    def _handle(self, request: int) -> bytes:
        kind, answer = self._answer(request)
        if kind != _HANDLE:
            raise self._nonsense(kind)
        return bytes(answer.string())

    def _attributes(self, request: int) -> Attributes:
        kind, answer = self._answer(request)
        if kind != _ATTRS:
            raise self._nonsense(kind)
        found: Attributes = answer.attributes()
        return found

    def _status(self, request: int) -> None:
        kind, _ = self._answer(request)
        if kind != _STATUS:
            raise self._nonsense(kind)

    def _statuses(self, requests: Sequence[int]) -> list[Refused | None]:
        found: list[Refused | None] = []
        for request in requests:
            try:
                self._status(request)
                found.append(None)
            except Refused as error:
                found.append(error)
        return found

    def _read(self, request: int) -> int:
        """How many bytes came; 0 at the end of the file."""
        try:
            kind, count = self._answer(request)
        except Refused as error:
            if error.code == _EOF:
                return 0
            raise
        if kind != _DATA:
            raise self._nonsense(kind)
        return int(count)

    def _receive(self) -> None:
        """Take one answer off the channel, data straight to where it belongs."""
        length, kind, request = struct.unpack(">IBI", self._take(9))
        left = length - 5
        if not 0 <= left < _LONGEST_ANSWER:
            raise self._nonsense(kind)
        if request not in self._awaited:
            self._take(left)
            return
        view = self._awaited[request]
        if kind == _DATA and view is not None:
            (count,) = struct.unpack(">I", self._take(4))
            if count > len(view) or count != left - 4:
                raise self._nonsense(kind)
            self._take_into(view[:count])
            self._answers[request] = kind, count
        else:
            self._answers[request] = kind, Answer(self._take(left))

    def _take(self, size: int) -> bytes:
        if size <= len(self._received):
            taken, self._received = self._received[:size], self._received[size:]
            return bytes(taken)
        found = bytearray(size)
        self._take_into(memoryview(found))
        return bytes(found)

    def _take_into(self, view: memoryview) -> None:
        while len(view):
            if not self._received:
                self._received = memoryview(self._get())
            taken = self._received[: len(view)]
            view[: len(taken)] = taken
            view, self._received = view[len(taken) :], self._received[len(taken) :]

    def _get(self) -> bytes:
        with self._channel_in_use():
            data: bytes = self.channel.recv(_RECEIVED_AT_ONCE)
            if not data:
                raise EOFError("The channel is closed")
            return data

    def _put(self, packet: bytes) -> None:
        rest = memoryview(packet)
        with self._channel_in_use():
            while rest:
                count = self.channel.send(rest)
                if not count:
                    raise EOFError("The channel is closed")
                rest = rest[count:]

    @contextmanager
    def _channel_in_use(self) -> Iterator[None]:
        """After any error, an interrupt from the keyboard too, nobody knows where in the conversation we are."""
        try:
            yield
        except BaseException as error:
            self.close()
            if not isinstance(error, Exception):
                raise
            raise Lost("no answer in time" if isinstance(error, TimeoutError) else "the connection broke") from error

    def _nonsense(self, kind: int) -> Lost:
        self.close()
        return Lost(f"the server's answer (kind {kind}) is none to what was asked")
