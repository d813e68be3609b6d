"""What packets of the SFTP protocol are made of: numbers and strings, what is said of a file, answers taken apart.

Strings are bytes; names that are not UTF-8 travel as surrogate escapes.
"""

from __future__ import annotations

import stat
import struct
from dataclasses import dataclass

__all__ = ["NO_ATTRIBUTES", "Answer", "Attributes", "Lost", "as_text", "byte_string", "path_string", "uint32", "uint64"]


class Lost(Exception):
    """The connection broke, or no answer came in time (then ``__cause__`` is a ``TimeoutError``). What was asked may
    have happened.
    """


@dataclass(frozen=True, slots=True)
class Attributes:
    """What a server says of a file; None: it does not say. ``modified`` is in seconds."""

    size: int | None = None
    mode: int | None = None
    modified: int | None = None

    @property
    def is_directory(self) -> bool:
        return self.mode is not None and stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        return self.mode is None or stat.S_ISREG(self.mode)

    @property
    def is_link(self) -> bool:
        return self.mode is not None and stat.S_ISLNK(self.mode)


class Answer:
    """A cursor over the content of one answer."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def uint32(self) -> int:
        return self._number(4)

    def uint64(self) -> int:
        return self._number(8)

    def string(self) -> bytes:
        return self._cut(self.uint32())

    def attributes(self) -> Attributes:
        size = mode = modified = None
        flags = self.uint32()
        if flags & 0x1:
            size = self.uint64()
        if flags & 0x2:
            self._cut(8)  # owner and group
        if flags & 0x4:
            mode = self.uint32()
        if flags & 0x8:
            self._cut(4)  # time of access
            modified = self.uint32()
        if flags & 0x80000000:
            for _ in range(self.uint32()):
                self.string()
                self.string()
        return Attributes(size, mode, modified)

    def _number(self, size: int) -> int:
        return int.from_bytes(self._cut(size), "big")

    def _cut(self, size: int) -> bytes:
        if size > self.left:
            raise Lost("an answer of the server is cut off")
        self._at += size
        return self._data[self._at - size : self._at]


NO_ATTRIBUTES = struct.pack(">I", 0)


def uint32(number: int) -> bytes:
    return number.to_bytes(4, "big")


def uint64(number: int) -> bytes:
    return number.to_bytes(8, "big")


def byte_string(data: bytes) -> bytes:
    return uint32(len(data)) + data


def path_string(path: str) -> bytes:
    return byte_string(path.encode("utf-8", "surrogateescape"))


def as_text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")
