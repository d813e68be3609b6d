"""What it takes to read an array, or a part of it: which bytes of which values, and where they go.

An :class:`Unfinished` array gives its fetches, one for each chunk or range of one, lazily. Of shards, most need
their index first: :func:`begun` reads those of many arrays together, and the others follow as they are needed, many at
a time. A shard of one chunk, which is what Orbax writes, is fetched whole with its index, unless only a part of it is
wanted or it is large and would have to be copied.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ocdbt_py.array.allocation import allocate
from ocdbt_py.array.chunks import MERGE_GAP, Index, Piece, Span, piece_count, pieces, pieces_within, select, spans
from ocdbt_py.array.codecs import CHECKSUM_BYTES
from ocdbt_py.array.sharding import decode_index, place_in_shard
from ocdbt_py.array.spec import ArraySpec, array_key
from ocdbt_py.array.values import Buffer, Request, Values
from ocdbt_py.errors import CorruptDataError, InvalidArgumentError, UnsupportedError

__all__ = ["ArrayRead", "Fetch", "Missing", "Unfinished", "begun", "missing_chunk"]

Missing: TypeAlias = Literal["error", "fill"]
"""What a chunk that is not there means: damage, or that it holds nothing but the fill value."""

_MOST_FILLED = 1 << 24  # chunks of one array that may be filled in; each has to be looked up
_PROBED_AT_ONCE = 4096  # keys
_AHEAD = 1024  # arrays whose shard indices are read together
_INDEX_BYTES = 4 << 20  # of indices, read together
_INDEX_FIRST_COMPRESSED = 16 << 20  # bytes; larger ones are decoded as they come, without what is around them
_INDEX_FIRST = 1 << 20  # bytes from which copying a chunk costs more than a request for the index of its shard


class ArrayRead(NamedTuple):
    """One array to read: all of it, or what a basic index selects; into ``out`` if given."""

    name: str
    spec: ArraySpec
    selection: Index = ...
    out: NDArray[Any] | None = None


def begun(values: Values, reads: Iterable[ArrayRead], missing: Missing) -> Iterator[Unfinished]:
    """The arrays, each with the indices of its first shards if it needs them."""
    reads = iter(reads)
    while some := [Unfinished(read, missing) for read in islice(reads, _AHEAD)]:
        first: list[tuple[Unfinished, bytes]] = []
        room = _INDEX_BYTES
        for array in some:
            for key in array.keys_of_indices():
                room -= array.spec.index_nbytes
                if room < 0 or len(first) >= _PROBED_AT_ONCE:
                    break
                first.append((array, key))
        _read_indices(values, first)
        yield from some


def _read_indices(values: Values, wanted: Sequence[tuple[Unfinished, bytes]]) -> None:
    if not wanted:
        return
    try:
        answers = values.read_many([array.index_request(key) for array, key in wanted], None)
    except InvalidArgumentError as error:
        damaged = [(array, key) for array, key in wanted if key == error.key]
        if not damaged:
            raise
        array, key = damaged[0]
        raise array.error(key, f"it is shorter than the index of a shard ({error.message})") from error
    for (array, key), data in zip(wanted, answers, strict=True):
        array.take_index(key, data)


class Fetch(NamedTuple):
    """One request, and what to do with the answer."""

    request: Request
    span: Span
    array: Unfinished
    is_shard: bool = False
    """Whether the answer is a shard of one chunk, with its index, and not a chunk or part of one."""

    @property
    def nbytes(self) -> int:
        """Bytes that the answer takes, or its content, whichever are more."""
        wanted = self.span.stop - self.span.start
        if isinstance(self.request, tuple) and self.request[2] is not None:
            return max(wanted, self.request[2] - self.request[1])
        return wanted

    @property
    def key(self) -> bytes:
        return self.request[0] if isinstance(self.request, tuple) else self.request

    def error(self, reason: str) -> CorruptDataError:
        return self.array.error(self.key, reason)


class Unfinished:
    """An array on its way: what it needs, and, once its first bytes are here, its memory."""

    __slots__ = (
        "_box",
        "_chunks_known",
        "_given",
        "_indices",
        "_left_out",
        "_out",
        "_selection",
        "missing",
        "name",
        "spec",
    )

    def __init__(self, read: ArrayRead, missing: Missing) -> None:
        self.name, self.spec, index, self._out = read
        self.missing = missing
        # The common case, an array in one chunk and all of it, needs no arithmetic.
        whole = index is Ellipsis and self.spec.is_one_chunk
        self._selection = None if whole else select(index, self.spec.shape)
        self._box: NDArray[Any] | None = None
        self._chunks_known = missing == "fill"
        self._given = self._out is not None
        self._left_out: list[tuple[slice, ...]] = []
        self._indices: dict[bytes, NDArray[np.uint64] | None] = {}  # of shards, None for one that is not there
        if self._out is not None:
            self._demand_room(self._out)
        looked_up = 1 if self._selection is None else piece_count(self._selection, self.spec.key_shape)
        if missing == "fill" and looked_up > _MOST_FILLED:
            raise UnsupportedError(
                f"Array {self.name!r} has more than {_MOST_FILLED} chunks to look up here, and any of them may be "
                "missing. Read slices of it"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """The result's."""
        return self.spec.shape if self._selection is None else self._selection.shape

    def _demand_room(self, out: NDArray[Any]) -> None:
        if out.shape != self.shape or out.dtype != self.spec.dtype:
            raise InvalidArgumentError(
                f"Array {self.name!r}: out has shape {out.shape} and dtype {out.dtype}, "
                f"what is read {self.shape} and {self.spec.dtype}"
            )
        if not out.flags.writeable:
            raise InvalidArgumentError(f"Array {self.name!r}: out is read-only")

    def error(self, key: bytes, reason: str) -> CorruptDataError:
        """What to raise for a value that cannot be used."""
        return CorruptDataError(
            f"Array {self.name!r}: chunk {key!r} cannot be used: {reason}. "
            "Other chunks and arrays may be intact; check the checkpoint to see which",
            key=key,
        )

    def fetches(self, values: Values) -> Iterator[Fetch]:
        spec = self.spec
        strides, whole = spec.chunk_strides, spec.chunk_nbytes
        if spec.sharding is not None and self._index_first:
            yield from self._sharded_fetches(values)
            return
        is_shard = spec.sharding is not None
        if self._selection is None:
            key = array_key(self.name, spec.chunk_key((0,) * spec.ndim))
            yield Fetch(key, Span(0, whole, 0, spec.shape, strides, ()), self, is_shard)
            return
        for piece in pieces(self._selection, spec.chunks):
            key = array_key(self.name, spec.chunk_key(piece.chunk))
            if is_shard or not spec.is_raw:
                yield Fetch(key, _whole_chunk(piece, strides, whole), self, is_shard)
                continue
            for span in spans(piece, strides, spec.dtype.itemsize):
                part = span.stop - span.start < whole
                yield Fetch((key, span.start, span.stop) if part else key, span, self)

    # --- shards

    @property
    def _index_first(self) -> bool:
        """Whether the index of a shard has to be known before its chunks are asked for."""
        spec = self.spec
        if spec.key_shape != spec.chunks:
            return True
        large = _INDEX_FIRST if self._all_elements else MERGE_GAP
        return spec.chunk_nbytes > (large if spec.is_raw else _INDEX_FIRST_COMPRESSED)

    @property
    def _all_elements(self) -> bool:
        return self._selection is None or math.prod(axis.size for axis in self._selection.axes) == self.spec.size

    def keys_of_indices(self) -> Iterator[bytes]:
        """The keys of the shards whose index has to be known, none where no index has."""
        if self.spec.sharding is not None and self._index_first:
            for piece in self._shards():
                yield array_key(self.name, self.spec.chunk_key(piece.chunk))

    def index_request(self, key: bytes) -> Request:
        """Where the index of a shard stands."""
        sharding, size = self.spec.sharding, self.spec.index_nbytes
        return (key, 0, size) if sharding is not None and sharding.index_at_start else (key, -size, None)

    def take_index(self, key: bytes, data: Buffer | None) -> None:
        """The index of a shard, checked; None if the shard is not there."""
        sharding = self.spec.sharding
        assert sharding is not None
        if data is None:
            if self.missing == "error":
                raise missing_chunk(self.name, key)
            self._indices[key] = None
            return
        try:
            self._indices[key] = decode_index(data, sharding, self.spec.index_nbytes)
        except ValueError as error:
            raise self.error(key, str(error)) from error

    def _place(self, key: bytes, index: NDArray[np.uint64], number: int) -> tuple[int, int] | None:
        """Where in a shard a chunk lies; None if it is left out, and may be."""
        place = place_in_shard(index, number)
        if place is None:
            if self.missing == "error":
                raise missing_chunk(self.name, key)
        elif self.spec.compressor is None and place[1] - place[0] != self.stored_nbytes:
            raise self.error(
                key, f"its shard index gives a chunk {place[1] - place[0]} bytes, not {self.stored_nbytes}"
            )
        return place

    @property
    def stored_nbytes(self) -> int:
        """Bytes of each chunk as stored, where it is not compressed."""
        return self.spec.chunk_nbytes + CHECKSUM_BYTES * self.spec.checksums[1]

    def _shards(self) -> Iterator[Piece]:
        selection = select(..., self.spec.shape) if self._selection is None else self._selection
        return pieces(selection, self.spec.key_shape)

    def _chunks_of_shards(self, values: Values) -> Iterator[tuple[bytes, Piece, tuple[int, int] | None]]:
        """The key, piece and place of each chunk, or of a shard that is not there; indices are read many at a time."""
        spec = self.spec
        shards = self._shards()
        at_once = min(_PROBED_AT_ONCE, _INDEX_BYTES // spec.index_nbytes + 1)
        while some := list(islice(shards, at_once)):
            keys = [array_key(self.name, spec.chunk_key(shard.chunk)) for shard in some]
            _read_indices(values, [(self, key) for key in keys if key not in self._indices])
            for key, shard in zip(keys, some, strict=True):
                index = self._indices[key]
                if index is None:
                    yield key, shard, None
                    continue
                for piece in pieces_within(shard, spec.chunks):
                    number = sum(map(operator.mul, piece.chunk, spec.index_strides))
                    yield key, piece, self._place(key, index, number)

    def _sharded_fetches(self, values: Values) -> Iterator[Fetch]:
        spec = self.spec
        strides, whole = spec.chunk_strides, spec.chunk_nbytes
        for key, piece, place in self._chunks_of_shards(values):
            if place is None:
                self._left_out.append(piece.target)
            elif not spec.is_raw:
                yield Fetch((key, *place), _whole_chunk(piece, strides, whole), self)
            else:
                for span in spans(piece, strides, spec.dtype.itemsize):
                    yield Fetch((key, place[0] + span.start, place[0] + span.stop), span, self)

    def demand_all_chunks(self, values: Values) -> None:
        """Look up every key once, so that an array is not begun whose end is not there."""
        if self._chunks_known:
            return
        self._chunks_known = True
        if self.spec.sharding is not None and self._index_first:
            for _ in self._chunks_of_shards(values):
                pass
            return
        selection = select(..., self.spec.shape) if self._selection is None else self._selection
        chunks = pieces(selection, self.spec.chunks)
        keys = (array_key(self.name, self.spec.chunk_key(piece.chunk)) for piece in chunks)
        while some := [(key, 0, 0) for key in islice(keys, _PROBED_AT_ONCE)]:
            for (key, _, _), found in zip(some, values.read_many(some, None), strict=True):
                if found is None:
                    raise missing_chunk(self.name, key)

    def part(self, target: tuple[slice, ...]) -> NDArray[Any]:
        """That part of the box, elements as they are stored; the first call sets memory aside for the whole."""
        if self._box is None:
            result = self.result()
            box = result if self._selection is None else self._selection.box(result)
            self._box = box.view(self.spec.stored_dtype.newbyteorder("="))
        index: tuple[Any, ...] = (*target, ...)
        return self._box[index] if target else self._box

    def result(self) -> NDArray[Any]:
        """The array, its memory set aside by now if not before."""
        if self._out is None:
            # Zeroed memory is free where the system hands out new pages, and most fill values are zero.
            self._out = allocate(self.name, self.shape, self.spec.dtype, zero=self.missing == "fill")
        return self._out

    def finished(self) -> NDArray[Any]:
        """The array, once all fetches have been placed."""
        for target in self._left_out:
            self.fill(self.part(target))
        return self.result()

    def fill(self, target: NDArray[Any]) -> None:
        """A chunk is not there, and may be: give its part of the box the fill value."""
        if self._given or self.spec.fill_value is not None:
            target[...] = self.spec.fill_element


def _whole_chunk(piece: Piece, strides: tuple[int, ...], nbytes: int) -> Span:
    offset = sum(axis.start * stride for axis, stride in zip(piece.inside, strides, strict=True))
    steps = tuple(axis.step * stride for axis, stride in zip(piece.inside, strides, strict=True))
    return Span(0, nbytes, offset, tuple(axis.size for axis in piece.inside), steps, piece.target)


def missing_chunk(name: str, key: bytes) -> CorruptDataError:
    return CorruptDataError(
        f"Array {name!r}: chunk {key!r} is missing. Its writer may not have finished, or left out chunks that hold "
        "nothing but the fill value without saying so",
        kind="missing-chunk",
        key=key,
    )
