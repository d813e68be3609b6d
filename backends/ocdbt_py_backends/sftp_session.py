"""What is asked of an SFTP server about its files and names, with many requests under way.

A request waits for the network; so the next ones are sent meanwhile, as far as the answers fit into memory that is
bounded (:data:`IN_FLIGHT_BYTES`, :data:`ASKED_BYTES`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from ocdbt_py_backends.body import Body
from ocdbt_py_backends.sftp_conversation import EOF, EXTENDED, EXTENDED_REPLY, NO_SUCH_FILE, Conversation, Refused
from ocdbt_py_backends.sftp_packets import NO_ATTRIBUTES, Attributes, as_text, byte_string, path_string, uint32, uint64

__all__ = ["Session"]

IN_FLIGHT_BYTES = 1 << 20
"""Sent and not yet acknowledged; below the channel's window of 2 MiB."""

ASKED_BYTES = 4 << 20
"""Asked for and not yet here. What the window does not admit waits at the server, which then waits for nothing else."""

_NAMES_AHEAD = 4

_OPEN, _CLOSE, _WRITE, _FSTAT = 3, 4, 6, 8
_OPENDIR, _READDIR, _REMOVE, _MKDIR, _RMDIR, _REALPATH, _STAT, _RENAME = 11, 12, 13, 14, 15, 16, 17, 18
_NAME = 104

_FOR_READING, _FOR_WRITING, _CREATE, _TRUNCATE = 0x1, 0x2, 0x8, 0x10

_POSIX_RENAME = b"posix-rename@openssh.com"
_FSYNC = b"fsync@openssh.com"
_STATVFS = b"statvfs@openssh.com"


class Session(Conversation):
    """Paths are ``str``."""

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
            asked.append(self._ask(EXTENDED, byte_string(_FSYNC), byte_string(handle)))
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
        asked = [self._ask(EXTENDED, byte_string(_FSYNC), byte_string(handle)) for handle in opened]
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
        self._status(self._ask(EXTENDED, byte_string(_POSIX_RENAME), path_string(source), path_string(target)))

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
            if error.code != EOF:
                raise
        finally:
            if self.alive:
                self.close_handle(handle)

    def free_bytes(self, path: str) -> int | None:
        """Where the server can tell."""
        if _STATVFS not in self.extensions:
            return None
        kind, answer = self._answer(self._ask(EXTENDED, byte_string(_STATVFS), path_string(path)))
        if kind != EXTENDED_REPLY:
            raise self._nonsense(kind)
        _, fragment, _, _, available = (answer.uint64() for _ in range(5))
        return int(fragment * available)
