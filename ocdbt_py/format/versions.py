"""The version tree: every version of a database, oldest to newest, in nodes of a fixed alignment.

Generations count from 1. With ``A = 2**arity_log2``, generations 1..A form the first leaf, A+1..2A the second, and so
on; a node of height h spans ``A**(h+1)`` generations. The manifest holds the entries of the newest leaf, still growing,
and at most one reference per height to what is older; :func:`reference_ranges` says which.

The rules are functions that name the first fault of a list of entries, or none. Decoding turns it into
``CorruptDataError``, encoding into ``InvalidArgumentError``: what would not be read is not written.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Final, NamedTuple

from ocdbt_py.errors import InvalidArgumentError
from ocdbt_py.format.config import Zstd, arity_fault
from ocdbt_py.format.datafile import (
    MAX_OFFSET,
    NO_FILE,
    DataFileId,
    Location,
    decode_file_table,
    encode_file_table,
)
from ocdbt_py.format.envelope import DEFAULT_LIMIT, VERSION_NODE_MAGIC, decode_envelope, encode_envelope
from ocdbt_py.format.primitives import MAX_U64, Reader, encode_u64_column, encode_varint, encode_varint_column

__all__ = [
    "VersionEntry",
    "VersionNode",
    "VersionNodeReference",
    "decode_references",
    "decode_version_node",
    "decode_versions",
    "encode_references",
    "encode_version_node",
    "encode_versions",
    "files_of",
    "manifest_references_fault",
    "max_height",
    "reference_ranges",
    "versions_fault",
]

_MISSING: Final = MAX_U64
"""Offset and length of a root that is not there (format document, "Leaf entry array")."""

_NO_ROOT: Final = Location(NO_FILE, _MISSING, _MISSING)


class VersionEntry(NamedTuple):
    """One version. ``root`` is None for an empty tree; times are nanoseconds since the Unix epoch.

    The statistics count the whole tree: keys, encoded bytes of its nodes, and bytes of values stored outside them.
    """

    generation: int
    root_height: int
    root: Location | None
    num_keys: int
    num_tree_bytes: int
    num_indirect_value_bytes: int
    commit_time_ns: int


class VersionNodeReference(NamedTuple):
    """A version tree node of ``height``: its last generation, how many versions it holds, and its earliest time."""

    generation: int
    location: Location
    num_generations: int
    commit_time_ns: int
    height: int


class VersionNode(NamedTuple):
    """Height 0 holds versions, oldest first; above it, references to nodes one lower."""

    version_tree_arity_log2: int
    height: int
    entries: tuple[VersionEntry, ...] | tuple[VersionNodeReference, ...]


def max_height(arity_log2: int) -> int:
    """The largest height of a version tree node.

    >>> max_height(4)
    14
    """
    return 63 // arity_log2 - 1


def reference_ranges(generation: int, arity_log2: int) -> list[tuple[int, int, int]]:
    """Which nodes a manifest with this latest generation may refer to: (first, last generation, height), lowest first.

    A reference of that height, if present, names a last generation in the range (format document, "Interior entry
    array"). Missing heights are history that was lost.

    >>> reference_ranges(30, 2)
    [(17, 28, 1), (1, 16, 2)]
    """
    last = (generation - 1) >> arity_log2 << arity_log2
    ranges = []
    height = 1
    while last > 0:
        shift = (height + 1) * arity_log2
        before = (last - 1) >> shift << shift
        ranges.append((before + 1, last, height))
        last = before
        height += 1
    return ranges


# Rules


def _count_fault(count: int, arity_log2: int) -> str | None:
    most = 1 << arity_log2
    return None if 1 <= count <= most else f"{count} entries, outside 1..{most}"


def _order_fault(entries: Sequence[VersionEntry | VersionNodeReference]) -> str | None:
    if entries[0].generation < 1:
        return "generation 0"
    for number, (a, b) in enumerate(pairwise(entries), 1):
        if a.generation >= b.generation:
            return f"entry {number}: generation {b.generation} does not follow generation {a.generation}"
        if a.commit_time_ns >= b.commit_time_ns:
            return f"entry {number}: commit time {b.commit_time_ns} is not after {a.commit_time_ns}"
    return None


def _location_fault(location: Location) -> str | None:
    if location.offset + location.length <= MAX_OFFSET:
        return None
    return f"offset {location.offset} and length {location.length} exceed {MAX_OFFSET}"


def versions_fault(entries: Sequence[VersionEntry], arity_log2: int) -> str | None:
    """The first rule broken by the versions of one leaf (format document, "Leaf entry array")."""
    if fault := _count_fault(len(entries), arity_log2) or _order_fault(entries):
        return fault
    first, last = entries[0].generation, entries[-1].generation
    if (first - 1) >> arity_log2 != (last - 1) >> arity_log2:
        return f"generations {first} and {last} belong to different leaves of {1 << arity_log2}"
    highest = (1 << arity_log2 * (max_height(arity_log2) + 1)) + (1 << arity_log2)
    if last > highest:
        return f"generation {last} exceeds {highest}, the end of the version tree"
    for number, entry in enumerate(entries):
        if not 0 <= entry.root_height <= 255:
            return f"entry {number}: root height {entry.root_height} is outside 0..255"
        if entry.root is None:
            if entry.root_height or entry.num_keys or entry.num_tree_bytes or entry.num_indirect_value_bytes:
                return f"entry {number}: no root, but a height or statistics"
        elif fault := _location_fault(entry.root):
            return f"entry {number}: {fault}"
    return None


def _references_fault(references: Sequence[VersionNodeReference]) -> str | None:
    if fault := _order_fault(references):
        return fault
    for number, reference in enumerate(references):
        if fault := _location_fault(reference.location):
            return f"entry {number}: {fault}"
    return None


def _node_fault(references: Sequence[VersionNodeReference], height: int, arity_log2: int) -> str | None:
    """The first rule broken by the entries of a node of ``height`` above 0."""
    if fault := _count_fault(len(references), arity_log2) or _references_fault(references):
        return fault
    shift = arity_log2 * height
    stride = 1 << shift
    for number, reference in enumerate(references):
        if reference.height != height - 1:
            return f"entry {number}: height {reference.height} below a node of height {height}"
        if reference.generation % stride:
            return f"entry {number}: generation {reference.generation} is not a multiple of {stride}"
        if not 1 <= reference.num_generations <= stride:
            return f"entry {number}: {reference.num_generations} generations, outside 1..{stride}"
    first, last = references[0].generation, references[-1].generation
    if (first - 1) >> shift + arity_log2 != (last - 1) >> shift + arity_log2:
        return f"generations {first} and {last} belong to different nodes of height {height}"
    return None


def manifest_references_fault(
    references: Sequence[VersionNodeReference], versions: Sequence[VersionEntry], arity_log2: int
) -> str | None:
    """The first rule broken by the references of a manifest with (valid) inline ``versions``."""
    if not references:
        return None
    if len(references) > max_height(arity_log2):
        return f"{len(references)} version tree nodes, more than the {max_height(arity_log2)} possible heights"
    if fault := _references_fault(references):
        return fault
    for a, b in pairwise(references):
        if a.height <= b.height:
            return f"version tree node of height {b.height} after one of height {a.height}"
    allowed = {height: (first, last) for first, last, height in reference_ranges(versions[-1].generation, arity_log2)}
    for reference in references:
        generation, height = reference.generation, reference.height
        first, last = allowed.get(height, (1, 0))
        if not first <= generation <= last:
            return f"version tree node of height {height} and generation {generation} is not expected here"
        if generation % (1 << arity_log2 * height):
            return f"generation {generation} of a version tree node does not fit its height {height}"
        span = (generation - 1) % (1 << arity_log2 * (height + 1)) + 1
        if not 1 <= reference.num_generations <= span:
            return f"version tree node of height {height} with {reference.num_generations} generations, not 1..{span}"
    if references[-1].commit_time_ns >= versions[0].commit_time_ns:
        return "the last version tree node is not older than the first inline version"
    return None


# Wire form of the two kinds of lists


def files_of(versions: Sequence[VersionEntry], references: Sequence[VersionNodeReference]) -> list[DataFileId]:
    """Every data file the entries refer to, that of a missing root included."""
    files = [NO_FILE if entry.root is None else entry.root.file for entry in versions]
    return files + [reference.location.file for reference in references]


def encode_versions(versions: Sequence[VersionEntry], file_numbers: dict[DataFileId, int]) -> bytes:
    """The leaf entry array."""
    generations, *rest = map(b"".join, zip(*map(_version_row, versions), strict=True))
    return b"".join(
        (
            encode_varint(len(versions)),
            generations,
            bytes([entry.root_height for entry in versions]),
            encode_varint_column([file_numbers[file] for file in files_of(versions, ())]),
            *rest,
            encode_u64_column([entry.commit_time_ns for entry in versions]),
        )
    )


@lru_cache(maxsize=256)  # a manifest says again what the one before said, but for one version
def _version_row(entry: VersionEntry) -> tuple[bytes, ...]:
    """What is said of one version by itself, in the order of the columns, but for the fields of a fixed width."""
    _, offset, length = _NO_ROOT if entry.root is None else entry.root
    statistics = (entry.num_keys, entry.num_tree_bytes, entry.num_indirect_value_bytes)
    return tuple(map(encode_varint, (entry.generation, offset, length, *statistics)))


def decode_versions(reader: Reader, files: Sequence[DataFileId], arity_log2: int) -> tuple[VersionEntry, ...]:
    """The leaf entry array at the reader's position, checked."""
    at = reader.position
    count = reader.varint("number of versions")
    if fault := _count_fault(count, arity_log2):
        raise reader.error(fault, at)
    generations = reader.varint_list(count, "generation")
    heights = reader.take(count, "root_height")
    roots = [
        None if offset == length == _MISSING else Location(file, offset, length)
        for file, offset, length in _read_locations(reader, count, files)
    ]
    entries = tuple(
        map(
            VersionEntry,
            generations,
            heights,
            roots,
            reader.varint_list(count, "num_keys"),
            reader.varint_list(count, "num_tree_bytes"),
            reader.varint_list(count, "num_indirect_value_bytes"),
            reader.u64_list(count, "commit_time"),
        )
    )
    if fault := versions_fault(entries, arity_log2):
        raise reader.error(fault, at)
    return entries


def encode_references(
    references: Sequence[VersionNodeReference], file_numbers: dict[DataFileId, int], *, heights: bool
) -> bytes:
    """The interior entry array, with the ``heights`` that only a manifest stores, or without."""
    if not references:
        return encode_varint(0)
    generations, *rest = map(b"".join, zip(*map(_reference_row, references), strict=True))
    return b"".join(
        (
            encode_varint(len(references)),
            generations,
            encode_varint_column([file_numbers[file] for file in files_of((), references)]),
            *rest,
            encode_u64_column([reference.commit_time_ns for reference in references]),
            bytes([reference.height for reference in references]) if heights else b"",
        )
    )


@lru_cache(maxsize=256)
def _reference_row(reference: VersionNodeReference) -> tuple[bytes, ...]:
    _, offset, length = reference.location
    return tuple(map(encode_varint, (reference.generation, offset, length, reference.num_generations)))


def decode_references(
    reader: Reader, files: Sequence[DataFileId], most: int, height: int | None
) -> tuple[VersionNodeReference, ...]:
    """At most ``most`` references at the reader's position, unchecked.

    All are of ``height``; None if the heights are stored, as in a manifest.
    """
    at = reader.position
    count = reader.varint("number of version tree nodes")
    if count > most:
        raise reader.error(f"{count} version tree nodes, more than {most}", at)
    if not count:
        return ()
    generations = reader.varint_list(count, "generation")
    locations = _read_locations(reader, count, files)
    num_generations = reader.varint_list(count, "num_generations")
    times = reader.u64_list(count, "commit_time")
    heights = reader.take(count, "entry_height") if height is None else [height] * count
    return tuple(map(VersionNodeReference, generations, locations, num_generations, times, heights))


def _read_locations(reader: Reader, count: int, files: Sequence[DataFileId]) -> list[Location]:
    at = reader.position
    numbers = reader.varint_list(count, "data_file_id")
    offsets = reader.varint_list(count, "data_file_offset")
    lengths = reader.varint_list(count, "data_file_length")
    if numbers and max(numbers) >= len(files):
        raise reader.error(f"data file {max(numbers)} of a table of {len(files)}", at)
    return [
        Location(files[number], offset, length)
        for number, offset, length in zip(numbers, offsets, lengths, strict=True)
    ]


# Nodes


def _height_fault(height: int, arity_log2: int) -> str | None:
    highest = max_height(arity_log2)
    return None if 0 <= height <= highest else f"height {height} is outside 0..{highest}"


def encode_version_node(node: VersionNode, compression: Zstd | None) -> bytes:
    """The object TensorStore would write; ``InvalidArgumentError`` if a rule is broken."""
    arity_log2, height = node.version_tree_arity_log2, node.height
    versions = [entry for entry in node.entries if isinstance(entry, VersionEntry)]
    references = [entry for entry in node.entries if isinstance(entry, VersionNodeReference)]
    fault = arity_fault(arity_log2) or _height_fault(height, arity_log2)
    if fault is None and (references if height == 0 else versions):
        fault = "versions belong in nodes of height 0, references above"
    if fault is None:
        fault = _node_fault(references, height, arity_log2) if height else versions_fault(versions, arity_log2)
    if fault:
        raise InvalidArgumentError(f"Version tree node: {fault}")
    table, file_numbers = encode_file_table(files_of(versions, references))
    if height:
        entries = encode_references(references, file_numbers, heights=False)
    else:
        entries = encode_versions(versions, file_numbers)
    return encode_envelope(VERSION_NODE_MAGIC, bytes((arity_log2, height)) + table + entries, compression)


def decode_version_node(data: bytes | memoryview, *, base_path: bytes = b"", limit: int = DEFAULT_LIMIT) -> VersionNode:
    """The node ``data`` holds; ``base_path`` is the transitive one, and part of the data files of the result.

    Who followed a reference still has to compare height, arity and last generation with it.
    """
    body = decode_envelope(VERSION_NODE_MAGIC, data, limit=limit)
    reader = Reader(body, "Version tree node", budget=limit)
    arity_log2 = reader.byte("version_tree_arity_log2")
    if fault := arity_fault(arity_log2):
        raise reader.error(fault, 0)
    height = reader.byte("height")
    if fault := _height_fault(height, arity_log2):
        raise reader.error(fault, 1)
    files = decode_file_table(reader, base_path)
    at = reader.position
    if height == 0:
        versions = decode_versions(reader, files, arity_log2)
        reader.finish()
        return VersionNode(arity_log2, 0, versions)
    references = decode_references(reader, files, 1 << arity_log2, height - 1)
    reader.finish()
    if fault := _node_fault(references, height, arity_log2):
        raise reader.error(fault, at)
    return VersionNode(arity_log2, height, references)
