"""One conversation with an SFTP server (protocol version 3, OpenSSH's extensions): numbered requests, and answers.

paramiko's own client sends ahead through threads that nobody can stop, decodes names that are not UTF-8 into errors,
and keeps neither the server's extensions nor its limits; of paramiko only the channel is used here, with its time limit
on every wait. Answers may come in any order, and what was asked to be read goes straight to where it belongs.

A conversation is for one thread at a time. What an operation left unanswered is dropped when the answer comes.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from ocdbt_py_backends.sftp_packets import Answer, Attributes, Lost, as_text, byte_string, uint32, uint64

__all__ = [
    "BAD_MESSAGE",
    "EOF",
    "EXTENDED",
    "EXTENDED_REPLY",
    "FAILURE",
    "NO_SUCH_FILE",
    "OP_UNSUPPORTED",
    "PERMISSION_DENIED",
    "Conversation",
    "Refused",
]

_LEAST_REQUEST = 32 << 10  # every server takes so many bytes in one request
_MOST_REQUEST = 128 << 10
_RECEIVED_AT_ONCE = 256 << 10
_LONGEST_ANSWER = 16 << 20

_INIT, _VERSION, _READ = 1, 2, 5
_STATUS, _HANDLE, _DATA, _ATTRS, EXTENDED, EXTENDED_REPLY = 101, 102, 103, 105, 200, 201

_OK, EOF, NO_SUCH_FILE, PERMISSION_DENIED, FAILURE, BAD_MESSAGE = 0, 1, 2, 3, 4, 5
OP_UNSUPPORTED = 8

_LIMITS = b"limits@openssh.com"


class Refused(Exception):
    """The server's answer to a request is an error."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"status {code}: {text}")
        self.code = code


class Conversation:
    """``channel`` is open, its subsystem ``sftp`` runs, and it has a time limit."""

    def __init__(self, channel: Any) -> None:
        self.channel = channel
        self.lock = threading.Lock()
        """For whoever uses it."""
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
            kind, limits = self._answer(self._ask(EXTENDED, byte_string(_LIMITS)))
            if kind == EXTENDED_REPLY:
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
            if error.code == EOF:
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
