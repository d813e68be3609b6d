"""What the engine answers: an entry of a version, and a version; and how a caller names a version."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from functools import cached_property
from typing import NamedTuple

from ocdbt_py.errors import InvalidArgumentError, InvalidTypeError
from ocdbt_py.format.datafile import Location
from ocdbt_py.format.versions import VersionEntry

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_RFC_3339 = r"(?a)(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9})\d*)?(?:[Zz]|([+-])(\d\d):(\d\d))"


class ValueLocation(NamedTuple):
    """Where an out-of-line value lies: data file (relative to the database), offset and length in bytes."""

    file: str
    offset: int
    length: int


class Entry:
    """A key of one version: ``key``, ``size`` of its value in bytes, ``generation``, and ``location`` if out of line.

    ``generation`` is an opaque token of the value, made when asked for, only to be compared.
    """

    __slots__ = ("_found", "key")

    def __init__(self, key: bytes, found: bytes | Location) -> None:
        self.key = key
        self._found = found

    @property
    def size(self) -> int:
        return self._found.length if isinstance(self._found, Location) else len(self._found)

    @property
    def location(self) -> ValueLocation | None:
        found = self._found
        if not isinstance(found, Location):
            return None
        return ValueLocation(found.file.path.decode("utf-8", "surrogateescape"), found.offset, found.length)

    @property
    def generation(self) -> bytes:
        return generation_of(self._found)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Entry):
            return NotImplemented
        return self.key == other.key and self._found == other._found

    def __hash__(self) -> int:
        return hash((self.key, self._found))

    def __repr__(self) -> str:
        where = f", location={self.location!r}" if self.location is not None else ""
        return f"Entry(key={self.key!r}, size={self.size}{where})"


def generation_of(found: bytes | Location) -> bytes:
    """Equal for equal inline values, and for the same place of an out-of-line one."""
    from hashlib import blake2b  # OpenSSL comes with it, which who asks for no generation does not need

    if isinstance(found, Location):
        file, offset, length = found
        text = b"%d:%d:%d:" % (offset, length, len(file.base_path)) + file.base_path + file.relative_path
        return b"\1" + blake2b(text, digest_size=16).digest()
    return b"\0" + blake2b(found, digest_size=16).digest()


@dataclass(frozen=True, eq=True)
class Version:
    """One commit: its number, its time, and the statistics of its tree (bytes of nodes, bytes of values out of line).

    ``commit_time`` is UTC, cut to microseconds; ``commit_time_ns`` counts nanoseconds since the epoch.
    """

    generation: int
    commit_time_ns: int
    num_keys: int
    num_tree_bytes: int
    num_indirect_value_bytes: int

    @cached_property
    def commit_time(self) -> datetime:
        try:
            return _EPOCH + timedelta(microseconds=self.commit_time_ns // 1000)
        except OverflowError:  # a file may state any 64 bits
            return datetime.max.replace(tzinfo=UTC)

    @classmethod
    def of(cls, entry: VersionEntry) -> Version:
        return cls(
            entry.generation,
            entry.commit_time_ns,
            entry.num_keys,
            entry.num_tree_bytes,
            entry.num_indirect_value_bytes,
        )


class AtTime(NamedTuple):
    """The newest version committed at or before this many nanoseconds since the epoch."""

    commit_time_ns: int


def parse_version(version: int | str | datetime | Version) -> int | AtTime:
    """What a caller means: a generation number, or a time. Not understood: :class:`InvalidArgumentError`."""
    if isinstance(version, Version):
        return version.generation
    if isinstance(version, bool) or not isinstance(version, int | str | datetime):
        raise InvalidTypeError(
            f"version is a generation number, a Version, an aware datetime or a string, not {type(version).__name__}"
        )
    if isinstance(version, int):
        if not 1 <= version < 1 << 64:
            raise InvalidArgumentError(f"Generation numbers begin at 1; {version} is none")
        return version
    if isinstance(version, datetime):
        if version.tzinfo is None:
            raise InvalidArgumentError(f"version={version!r} has no time zone; use an aware datetime")
        microseconds = (version - _EPOCH) // timedelta(microseconds=1)
        return _at_time(version, microseconds * 1000 + 999)  # a datetime stands for its whole microsecond
    if version[:1] in ("v", "V") and version[1:].isascii() and version[1:].isdigit():
        return parse_version(int(version[1:]))
    match = re.fullmatch(_RFC_3339, version)
    if match is None:
        raise InvalidArgumentError(
            f'version={version!r} is neither a generation ("v3") nor an RFC 3339 time ("2026-01-31T12:00:00Z")'
        )
    *date, fraction, sign, hours, minutes = match.groups()
    zone = timezone(timedelta(hours=int(hours), minutes=int(minutes)) * (-1 if sign == "-" else 1)) if sign else UTC
    try:
        second = datetime(*map(int, date), tzinfo=zone)  # type: ignore[misc, arg-type]
    except ValueError as error:
        raise InvalidArgumentError(f"version={version!r} is no time: {error}") from None
    return _at_time(version, (second - _EPOCH) // timedelta(seconds=1) * 10**9 + int((fraction or "").ljust(9, "0")))


def _at_time(version: str | datetime, nanoseconds: int) -> AtTime:
    if not 0 <= nanoseconds < 1 << 63:
        raise InvalidArgumentError(f"version={str(version)!r} is not between 1970 and 2262, where all commit times lie")
    return AtTime(nanoseconds)
