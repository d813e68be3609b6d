"""Arrays that lie in a file as they lie in memory: no chunk of them has to be decoded, or looked at by itself.

Either as private memory maps of the file (:func:`map_arrays`), or, if they are small, many at a time: neighbours in a
file are read in one piece into memory of their own, and each is a view of its part (:func:`gather_arrays`). What lies
otherwise is left to :mod:`ocdbt_py.array.read`, and so is everything that is wrong with a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ocdbt_py.array.sharding import only_chunk
from ocdbt_py.array.spec import ArraySpec, array_keys
from ocdbt_py.database_reading import Readable
from ocdbt_py.engine.nodes import file_path
from ocdbt_py.engine.tree import Found
from ocdbt_py.errors import CorruptDataError, NotFoundError
from ocdbt_py.format.datafile import DataFileId, Location
from ocdbt_py.storage.location import Place
from ocdbt_py.storage.protocol import Buffer

__all__ = ["gather_arrays", "map_arrays"]

Seen = Callable[[bytes, Buffer], object]
"""Called with each key and its stored bytes, before these are used."""

_SMALL = 64 << 10
"""Bytes; a larger array has memory of its own, which goes when it goes."""

_PIECE = 1 << 20
"""Bytes read into one piece of memory, which lives as long as any of its arrays."""

_GAP = 64
"""Bytes between two arrays that are read with them."""


class _Placed(NamedTuple):
    """An array of one chunk, and where that is; in the order of their places."""

    file: DataFileId
    offset: int
    length: int
    i: int
    key: bytes


class _Chunks(NamedTuple):
    """The one chunk of each of some arrays, in columns: which array, its key, and what stands there."""

    indices: list[int]
    keys: list[bytes]
    found: list[Found]


def map_arrays(
    place: Place, source: Readable, names: Sequence[str], specs: Mapping[int, ArraySpec], seen: Seen | None = None
) -> dict[int, NDArray[Any]]:
    """Those of the arrays ``names[i]`` that can be mapped; ``source`` says where below ``place`` they are."""
    files: dict[DataFileId, tuple[memoryview, NDArray[np.uint8]]] = {}
    arrays: dict[int, NDArray[Any]] = {}
    of: DataFileId | None = None  # whose file is at hand: that of neighbours, mostly
    mapped, content, size = memoryview(b""), np.empty(0, np.uint8), 0
    view = np.ndarray
    for i, key, found in zip(*_found(source, names, specs), strict=True):
        if not isinstance(found, Location):
            continue
        spec = specs[i]
        file, offset, length = found
        if file is not of:
            if file not in files:
                whole = _map_file(place, file, key)
                files[file] = whole, np.frombuffer(whole, np.uint8)
            mapped, content = files[file]
            of, size = file, len(mapped)
        if length == spec.chunk_nbytes and offset + length <= size and spec.sharding is None:
            if seen is not None:
                seen(key, mapped[offset : offset + length])
            arrays[i] = view(spec.shape, spec.dtype, content, offset)
            continue
        stored: memoryview | None = mapped[offset : offset + length]
        reason = f"of {spec.nbytes} bytes by its metadata"
        if seen is not None and stored is not None and len(stored) == length:
            seen(key, stored)
        try:
            if stored is not None and spec.sharding is not None and len(stored) == length:
                stored = only_chunk(stored, spec.sharding, spec.index_nbytes)
        except ValueError as error:
            stored, reason = mapped[:0], str(error)
        if stored is None:
            continue  # the shard leaves it out
        if len(stored) != spec.nbytes:
            raise CorruptDataError(
                f"The chunk of array {names[i]!r}, {reason}, cannot be in the {length} bytes at {offset} in a file of "
                f"{len(mapped)}",
                path=found.file.path.decode("utf-8", "surrogateescape"),
                key=key,
                url=place.url,
            )
        arrays[i] = np.frombuffer(stored, spec.dtype, spec.size).reshape(spec.shape)
    return arrays


def gather_arrays(
    source: Readable, names: Sequence[str], specs: Mapping[int, ArraySpec], budget: int, seen: Seen | None = None
) -> Iterator[dict[int, NDArray[Any]]]:
    """Those of the arrays ``names[i]`` that are small and stored as they are, as many at a time as ``budget`` bytes
    hold.
    """
    inline: dict[int, NDArray[Any]] = {}
    placed: list[_Placed] = []
    for i, key, found in zip(*_found(source, names, specs), strict=True):
        spec = specs[i]
        nbytes = spec.chunk_nbytes
        if spec.sharding is not None or found is None:
            continue
        if isinstance(found, Location):
            if found.length == nbytes <= _SMALL:
                placed.append(_Placed(*found, i, key))
        elif len(found) == nbytes:
            if seen is not None:
                seen(key, found)
            inline[i] = np.ndarray(spec.shape, spec.dtype, found).copy()
    if inline:
        yield inline
    placed.sort()
    batch: list[Sequence[_Placed]] = []
    held = 0
    for piece in _pieces(placed, specs):
        size = piece[-1].offset + piece[-1].length - piece[0].offset
        if batch and held + size > budget:
            yield _read(source, batch, specs, seen)
            batch, held = [], 0
        batch.append(piece)
        held += size
    if batch:
        yield _read(source, batch, specs, seen)


def _found(source: Readable, names: Sequence[str], specs: Mapping[int, ArraySpec]) -> _Chunks:
    """The chunks of those arrays that are stored as they are."""
    numbers = list(map(id, specs.values()))
    distinct = dict(zip(numbers, specs.values(), strict=True))  # arrays alike share one
    files = {number: spec.chunk_key((0,) * spec.ndim) for number, spec in distinct.items() if spec.is_plain}
    wanted: list[int] = []
    keys: list[bytes] = []
    for file in sorted(set(files.values())):
        of_file = {number for number, each in files.items() if each == file}
        having = [i for i, number in zip(specs, numbers, strict=True) if number in of_file]
        wanted += having
        keys += array_keys([names[i] for i in having], file)
    return _Chunks(wanted, keys, source.find(keys) if keys else [])


def _pieces(placed: Sequence[_Placed], specs: Mapping[int, ArraySpec]) -> Iterator[Sequence[_Placed]]:
    """Neighbours that are read together: in one file, at most a small gap between them, and none in another's bytes."""
    begin = start = end = 0
    of = None
    for at, (file, offset, length, i, _) in enumerate(placed):
        if (
            not 0 <= offset - end <= _GAP
            or offset + length - start > _PIECE
            or (file is not of and file != of)
            or (offset - start) % specs[i].dtype.alignment
        ):
            if at:
                yield placed[begin:at]
            begin, start, of = at, offset, file
        end = offset + length
    if placed:
        yield placed[begin:]


def _read(
    source: Readable, pieces: Sequence[Sequence[_Placed]], specs: Mapping[int, ArraySpec], seen: Seen | None
) -> dict[int, NDArray[Any]]:
    memories = []
    fillings = []
    for piece in pieces:
        first, last = piece[0], piece[-1]
        memory = np.empty(last.offset + last.length - first.offset, np.uint8)
        memories.append(memory)
        fillings.append((last.key, Location(first.file, first.offset, len(memory)), memory.data))
    source.fill(fillings)
    arrays: dict[int, NDArray[Any]] = {}
    for piece, memory in zip(pieces, memories, strict=True):
        start = piece[0].offset
        for _, offset, length, i, key in piece:
            spec = specs[i]
            if seen is not None:
                seen(key, memory.data[offset - start : offset - start + length])
            arrays[i] = np.ndarray(spec.shape, spec.dtype, memory, offset - start)
    return arrays


def _map_file(place: Place, file: DataFileId, key: bytes) -> memoryview:
    try:
        return place.storage.map(file_path(place.path, file))
    except NotFoundError as error:
        raise CorruptDataError(
            "Arrays lie in a data file that is not there; the directory was copied without it, or it was deleted",
            path=file.path.decode("utf-8", "surrogateescape"),
            key=key,
            url=place.url,
        ) from error
