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
from ocdbt_py.array.spec import ArraySpec, array_key
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
    """An array of one chunk, and where that is."""

    i: int
    spec: ArraySpec
    key: bytes
    at: Location

    @property
    def end(self) -> int:
        return self.at.offset + self.at.length


def map_arrays(
    place: Place, source: Readable, names: Sequence[str], specs: Mapping[int, ArraySpec], seen: Seen | None = None
) -> dict[int, NDArray[Any]]:
    """Those of the arrays ``names[i]`` that can be mapped; ``source`` says where below ``place`` they are."""
    files: dict[DataFileId, memoryview] = {}
    arrays: dict[int, NDArray[Any]] = {}
    for i, spec, key, found in _found(source, names, specs):
        if not isinstance(found, Location):
            continue
        mapped = files.get(found.file)
        if mapped is None:
            mapped = files[found.file] = _map_file(place, found.file, key)
        _, offset, length = found
        if length == spec.nbytes and offset + length <= len(mapped) and spec.sharding is None:
            if seen is not None:
                seen(key, mapped[offset : offset + length])
            arrays[i] = np.ndarray(spec.shape, spec.dtype, mapped, offset)
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
    for i, spec, key, found in _found(source, names, specs):
        if spec.sharding is not None:
            continue
        if isinstance(found, Location):
            if found.length == spec.nbytes <= _SMALL:
                placed.append(_Placed(i, spec, key, found))
        elif found is not None and len(found) == spec.nbytes:
            if seen is not None:
                seen(key, found)
            inline[i] = np.ndarray(spec.shape, spec.dtype, found).copy()
    if inline:
        yield inline
    placed.sort(key=lambda each: (each.at.file, each.at.offset))
    batch: list[list[_Placed]] = []
    held = 0
    for piece in _pieces(placed):
        size = piece[-1].end - piece[0].at.offset
        if batch and held + size > budget:
            yield _read(source, batch, seen)
            batch, held = [], 0
        batch.append(piece)
        held += size
    if batch:
        yield _read(source, batch, seen)


def _found(
    source: Readable, names: Sequence[str], specs: Mapping[int, ArraySpec]
) -> Iterator[tuple[int, ArraySpec, bytes, Found]]:
    """What stands at the one chunk of those arrays that are stored as they are."""
    answers: dict[int, tuple[bool, str]] = {}  # of each spec; arrays alike share one
    wanted: list[tuple[int, ArraySpec]] = []
    keys: list[bytes] = []
    for i, spec in specs.items():
        answer = answers.get(id(spec))
        if answer is None:
            answer = answers[id(spec)] = spec.is_plain, spec.chunk_key((0,) * spec.ndim)
        if answer[0]:
            wanted.append((i, spec))
            keys.append(array_key(names[i], answer[1]))
    for (i, spec), key, found in zip(wanted, keys, source.find(keys) if keys else (), strict=True):
        yield i, spec, key, found


def _pieces(placed: Sequence[_Placed]) -> Iterator[list[_Placed]]:
    """Neighbours that are read together: in one file, at most a small gap between them, and none in another's bytes."""
    piece: list[_Placed] = []
    for each in placed:
        if piece:
            gap = each.at.offset - piece[-1].end
            offset = each.at.offset - piece[0].at.offset
            is_near = each.at.file == piece[0].at.file and 0 <= gap <= _GAP and offset + each.at.length <= _PIECE
            if not is_near or offset % each.spec.dtype.alignment:
                yield piece
                piece = []
        piece.append(each)
    if piece:
        yield piece


def _read(source: Readable, pieces: Sequence[Sequence[_Placed]], seen: Seen | None) -> dict[int, NDArray[Any]]:
    memories = []
    fillings = []
    for piece in pieces:
        first, last = piece[0].at, piece[-1]
        memory = np.empty(last.end - first.offset, np.uint8)
        memories.append(memory)
        fillings.append((last.key, first._replace(length=len(memory)), memory.data))
    source.fill(fillings)
    arrays: dict[int, NDArray[Any]] = {}
    for piece, memory in zip(pieces, memories, strict=True):
        start = piece[0].at.offset
        for i, spec, key, (_, offset, length) in piece:
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
