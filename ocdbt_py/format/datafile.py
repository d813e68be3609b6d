"""Names of data files, the table of names that opens every structure with references, and the references.

A path is a pair (base path, relative path). A structure reached through a reference is read relative to the base path
of that reference, the *transitive* base path, so a whole subtree written for a directory can be referenced from above
(format document, "Data file table"). In memory the base paths are already combined.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Final, NamedTuple

from ocdbt_py.errors import InvalidArgumentError
from ocdbt_py.format.primitives import Reader, encode_varint, encode_varint_column

__all__ = [
    "MAX_OFFSET",
    "MAX_PATH_LENGTH",
    "NO_FILE",
    "DataFileId",
    "Location",
    "common_prefix_length",
    "decode_file_table",
    "encode_file_table",
]

MAX_PATH_LENGTH: Final = 65535
MAX_OFFSET: Final = 2**63 - 1
"""The largest end (offset + length) of a reference."""

# What CPython takes for one entry of a table besides the bytes of its path: a tuple, two bytes objects, and three
# numbers in lists while it is being read.
_ENTRY_OVERHEAD = 384


class DataFileId(NamedTuple):
    """A data file: the combined base path and the path below it, plain byte strings that are simply joined."""

    base_path: bytes
    relative_path: bytes

    @property
    def path(self) -> bytes:
        """Relative to the directory of the database."""
        return self.base_path + self.relative_path


class Location(NamedTuple):
    """A range of bytes in a data file."""

    file: DataFileId
    offset: int
    length: int


NO_FILE: Final = DataFileId(b"", b"")
"""The file of a missing root. It takes an entry of the table like any other."""


def common_prefix_length(a: bytes, b: bytes) -> int:
    """How many bytes two strings share at their beginning.

    >>> common_prefix_length(b"apple", b"apply")
    4
    """
    shortest = min(len(a), len(b))
    if a[:shortest] == b[:shortest]:
        return shortest
    for place in range(min(shortest, 8)):  # random names and most keys differ early
        if a[place] != b[place]:
            return place
    # The highest set bit of the exclusive or, read as big-endian numbers, lies in the first byte that differs.
    difference = int.from_bytes(a[:shortest], "big") ^ int.from_bytes(b[:shortest], "big")
    return shortest - (difference.bit_length() + 7) // 8


def encode_file_table(files: Iterable[DataFileId]) -> tuple[bytes, dict[DataFileId, int]]:
    """The canonical table of ``files`` (sorted, each once), and the number of each in it."""
    table = sorted(set(files))
    if not table:
        return encode_varint(0), {}
    rows = list(map(_table_row, table, [NO_FILE, *table]))
    prefixes, suffixes, suffix_lengths, base_lengths = zip(*rows, strict=True)
    encoded = b"".join(
        (
            encode_varint(len(table)),
            encode_varint_column(prefixes[1:]),
            encode_varint_column(suffix_lengths),
            encode_varint_column(base_lengths),
            *suffixes,
        )
    )
    return encoded, dict(zip(table, range(len(table)), strict=True))


@lru_cache(maxsize=256)  # a manifest has all the rows of the one before, but for one or two
def _table_row(file: DataFileId, before: DataFileId) -> tuple[int, bytes, int, int]:
    """How much of its path a file shares with the one before, the rest, and the lengths of that and of its base."""
    base, relative = file
    path = base + relative
    if len(path) > MAX_PATH_LENGTH:
        raise InvalidArgumentError(f"Data file path of {len(path)} bytes exceeds {MAX_PATH_LENGTH}: {path[:80]!r}...")
    # A shared prefix ends with the base path unless both base paths are the same.
    if base == before.base_path:
        shared = common_prefix_length(path, before.path)
    else:
        shared = common_prefix_length(base, before.base_path)
    return shared, path[shared:], len(path) - shared, len(base)


def decode_file_table(reader: Reader, base_path: bytes) -> tuple[DataFileId, ...]:
    """The table at the reader's position; ``base_path`` is the transitive one of the structure being read."""
    count = reader.varint("number of data files")
    if not count:
        return ()
    reader.charge(_ENTRY_OVERHEAD * count, f"{count} data file names")
    at = reader.position
    prefixes = [0, *reader.varint_list(count - 1, "path_prefix_length", 16)]
    suffixes = reader.varint_list(count, "path_suffix_length", 16)
    bases = reader.varint_list(count, "base_path_length", 16)
    if (stored := sum(suffixes)) > reader.remaining:
        raise reader.error(f"{stored} bytes of paths announced, {reader.remaining} left")
    reader.charge(sum(prefixes) + stored + len(base_path) * count, f"the paths of {count} data files")
    longest = MAX_PATH_LENGTH - len(base_path)
    files = []
    path, previous_base = b"", 0
    for number, (prefix, suffix, base) in enumerate(zip(prefixes, suffixes, bases, strict=True)):
        if prefix > len(path):
            raise reader.error(f"data file {number} shares {prefix} bytes of a path of {len(path)}", at)
        if prefix + suffix > longest:
            raise reader.error(f"path of data file {number} has {prefix + suffix} bytes, more than {longest}", at)
        if base > prefix + suffix:
            raise reader.error(f"base path of data file {number} has {base} of {prefix + suffix} bytes", at)
        if prefix > min(base, previous_base) and base != previous_base:
            raise reader.error(f"data file {number} shares {prefix} bytes across the end of a base path", at)
        path = path[:prefix] + reader.data[reader.position : reader.position + suffix]
        reader.position += suffix
        files.append(DataFileId(base_path + path[:base], path[base:]))
        previous_base = base
    return tuple(files)
