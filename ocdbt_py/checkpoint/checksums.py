"""CRC-32C of every stored value: what OCDBT, zarr and Orbax do not keep, in a file beside theirs that they ignore.

Nodes and manifests carry their own checksums, and with them the short values that stand in nodes. Of the other values,
which are nearly all bytes of a checkpoint, the file ``ocdbt_checksums`` beside the manifest tells them. It is a table
of what was written into one database, keyed by data file, offset and length. Data files never change, so no later
writer can make it stale; a merged database refers to data files of the processes' databases, each of which has a table
of its own. Integers are little endian::

    8 bytes    OCDBTCRC
    u32        1, the version of this form
    u32        number of data files, then for each, in the order of their paths:
        u16    length of its path; the path, relative to the database
        u64    number of its values
    u64 …      offset of each value, file by file, ascending
    u64 …      length of each value
    u32 …      CRC-32C of each value
    u32        CRC-32C of all of the above
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ocdbt_py.array.values import Buffer, Request, Values
from ocdbt_py.database_reading import Readable
from ocdbt_py.engine.entries import ValueLocation
from ocdbt_py.errors import CorruptDataError, UnsupportedError
from ocdbt_py.format.checksum import crc32c

__all__ = [
    "CHECKSUMS",
    "Table",
    "Verified",
    "decode_checksums",
    "encode_checksums",
    "encode_columns",
    "read_table",
    "table_of",
]

CHECKSUMS = "ocdbt_checksums"
"""The name of the file."""

Table = Mapping[str, Mapping[int, tuple[int, int]]]
"""Data file -> offset -> length and checksum."""

_MAGIC = b"OCDBTCRC"
_HEADER = struct.Struct("<8sII")
_VALUE_BYTES = 8 + 8 + 4
_PART_OF_A_PROCESS = r"ocdbt\.process_[0-9]+/"
_CHUNK = rb"/(?:c(?:[/.][0-9]+)*|[0-9]+(?:[/.][0-9]+)*|\.zarray|zarr\.json)\Z"
_TAIL_BYTES = 1 << 20
"""So much of the end of a value is remembered, where it is read before the beginning, as the index of a shard is."""


def table_of(data_file: str) -> tuple[str, str]:
    """The table that tells of a data file, and what it calls that; all relative to the directory of the pytree.

    >>> table_of("ocdbt.process_3/d/1f")
    ('ocdbt.process_3/ocdbt_checksums', 'd/1f')
    """
    match = re.match(_PART_OF_A_PROCESS, data_file)
    part = "" if match is None else match[0]
    return part + CHECKSUMS, data_file[len(part) :]


# --- bytes


def encode_checksums(table: Table) -> bytes:
    """The file."""
    columns = {}
    for name, values in table.items():
        rows = [(offset, *value) for offset, value in values.items()]
        columns[name] = tuple(np.array(rows, np.uint64).reshape(-1, 3).T)
    return encode_columns(columns)


def encode_columns(columns: Mapping[str, Sequence[NDArray[Any]]]) -> bytes:
    """The same from data file -> the values' offsets, lengths and checksums, in any order."""
    header = [_HEADER.pack(_MAGIC, 1, len(columns))]
    sorted_columns = []
    for name in sorted(columns):
        offsets, lengths, checksums = columns[name]
        path = name.encode("utf-8", "surrogateescape")
        header += [struct.pack("<H", len(path)), path, struct.pack("<Q", len(offsets))]
        order = offsets.argsort()
        sorted_columns.append([offsets[order], lengths[order], checksums[order]])
    parts = header
    for kind, column in zip(("<u8", "<u8", "<u4"), zip(*sorted_columns, strict=True), strict=False):
        parts += [part.astype(kind).tobytes() for part in column]
    data = b"".join(parts)
    return data + struct.pack("<I", crc32c(data))


def decode_checksums(data: bytes, path: str) -> Table:
    """The table of a file; whatever is wrong with it is :class:`CorruptDataError`."""
    try:
        magic, version, files = _HEADER.unpack_from(data)
        if magic != _MAGIC:
            raise ValueError("it does not begin as one")
        if version != 1:
            raise UnsupportedError(f"{path} is of version {version}, made by a newer release; use that", path=path)
        if crc32c(memoryview(data)[:-4]).to_bytes(4, "little") != data[-4:]:
            raise ValueError("its own checksum is another")
        at = _HEADER.size
        names = []
        for _ in range(files):
            (size,) = struct.unpack_from("<H", data, at)
            name = data[at + 2 : at + 2 + size].decode("utf-8", "surrogateescape")
            (count,) = struct.unpack_from("<Q", data, at + 2 + size)
            names.append((name, count))
            at += 10 + size
        total = sum(count for _, count in names)
        if len(data) != at + _VALUE_BYTES * total + 4:
            raise ValueError(f"it has {len(data)} bytes, which is not room for {total} values")
    except (ValueError, struct.error) as error:
        raise CorruptDataError(
            f"{path} is not a table of value checksums: {error}; the checkpoint itself may be intact", path=path
        ) from None
    offsets, lengths = np.frombuffer(data, "<u8", 2 * total, at).reshape(2, -1).tolist()
    checksums = np.frombuffer(data, "<u4", total, at + 16 * total).tolist()
    table = {}
    rows = zip(lengths, checksums, strict=True)
    numbers = iter(offsets)
    for name, count in names:
        table[name] = {offset: row for _, offset, row in zip(range(count), numbers, rows, strict=False)}
    return table


# --- reading


def read_table(read: Callable[[str], bytes | None], path: str = CHECKSUMS) -> Table:
    """The table at ``path``; ``read`` gives a small file or None. If it is not there: :class:`UnsupportedError`."""
    data = read(path)
    if data is None:
        raise UnsupportedError(
            f"verify=True needs value checksums, and there is no {path}: it was saved by another program (Orbax keeps "
            "none), or with checksums=False; leave verify out",
            path=path,
        )
    return decode_checksums(data, path)


class _Running(NamedTuple):
    """A value that comes in parts: the checksum of its first ``size`` bytes, and its end, if that came already."""

    size: int = 0
    checksum: int = 0
    tail: bytes = b""


class Verified(Values):
    """The values of a database, each compared with its checksum once all of it has been read.

    A value may come in parts, one after the other, its end perhaps first. One of which only a part is read cannot be
    judged. For one thread at a time.
    """

    def __init__(self, values: Readable, read: Callable[[str], bytes | None]) -> None:
        """``read`` gives a small file of the pytree's directory, or None. No checksums: :class:`UnsupportedError`."""
        self._values = values
        self._running: dict[bytes, _Running] = {}
        self._locations: dict[bytes, ValueLocation] = {}
        for entry in values.scan():
            location = entry.location
            if location is not None and location.length:
                self._locations[entry.key] = location
        paths = {table_of(location.file)[0] for location in self._locations.values()}
        self._tables = {path: read_table(read, path) for path in paths}

    def read_many(self, requests: Sequence[Request], default: None) -> Sequence[bytes | None]:
        answers: list[bytes | None] = self._values.read_many(requests, None)
        for request, data in zip(requests, answers, strict=True):
            if data is not None:
                self.take(request, data)
        return answers

    def read_many_into(
        self, requests: Sequence[Request], place: Callable[[Sequence[int | None]], Sequence[memoryview | None]]
    ) -> Sequence[Buffer | None]:
        buffers: list[memoryview | None] = []

        def noted(sizes: Sequence[int | None]) -> Sequence[memoryview | None]:
            buffers.extend(place(sizes))
            return buffers

        answers = self._values.read_many_into(requests, noted)
        for request, buffer, answer in zip(requests, buffers, answers, strict=True):
            data = answer if buffer is None else buffer
            if data is not None:
                self.take(request, data)
        return answers

    def take(self, request: Request, data: Buffer) -> None:
        """What was read; :class:`CorruptDataError` if it is the last of a value that is not what was saved."""
        key, start, stop = request if isinstance(request, tuple) else (request, 0, None)
        location = self._locations.get(key)
        if location is None or not len(data):
            return
        stop = location.length if stop is None else stop
        start = stop - len(data)
        so_far = self._running.get(key, _Running())
        if start == so_far.size:
            so_far = so_far._replace(size=stop, checksum=crc32c(data, so_far.checksum))
        elif stop == location.length and len(data) <= _TAIL_BYTES:
            so_far = so_far._replace(tail=bytes(data))
        else:
            return
        if so_far.tail and so_far.size == location.length - len(so_far.tail):
            so_far = _Running(location.length, crc32c(so_far.tail, so_far.checksum))
        if so_far.size < location.length:
            self._running[key] = so_far
            return
        self._running.pop(key, None)
        self._compare(key, location, so_far.checksum)

    def _compare(self, key: bytes, location: ValueLocation, checksum: int) -> None:
        path, name = table_of(location.file)
        found = self._tables[path].get(name, {}).get(location.offset)
        if found is None or found[0] != location.length:
            raise UnsupportedError(
                f"There is no checksum of {key!r}: it was written by another program later. Without verify=True it can "
                "be read",
                key=key,
            )
        if found[1] != checksum:
            leaf = re.sub(_CHUNK, b"", key).decode("utf-8", "replace")
            raise CorruptDataError(
                f"The leaf {leaf!r} is not what was saved: the CRC-32C of its value {key!r} was {found[1]:08x}, and is "
                f"{checksum:08x}. {location.length:,} bytes of the data file {location.file} at {location.offset:,} "
                "were changed; restore another copy, or leave the leaf out with select=",
                kind="checksum",
                path=location.file,
                key=key,
                offset=location.offset,
            )
