"""Read arrays, or slices of them, from anything that can look up many keys at once.

One pass over a stream of *fetches* (a whole chunk, or a byte range of an uncompressed one) serves everything: one
array or fifty thousand, whole or sliced. Fetches are grouped until they would hold ``budget`` bytes, and each group is
one ``read_many_into``. Memory is set aside for the arrays of a group once its chunks are known to be there and of the
right size (when compressed: once they have been looked at). An array that takes several groups has all its chunk keys
looked up first, without their bytes.

Where bytes lie in the array as they are stored, the store fills it with them; a compressed chunk that is its array, or
fills consecutive memory of it, is decompressed into place; other bytes are copied once. Several large compressed chunks
of a group are decompressed by a few threads, one per processor at most.

What may be wrong with the stored bytes is ``CorruptDataError`` naming the array and the chunk.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, Final, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ocdbt_py.array.chunks import Index, Piece, Span, piece_count, pieces, select, spans
from ocdbt_py.array.codecs import Decoder, refuse_impossible
from ocdbt_py.array.dtypes import low_bits
from ocdbt_py.array.spec import ArraySpec, array_key
from ocdbt_py.errors import CorruptDataError, InvalidArgumentError, UnsupportedError

__all__ = ["BUDGET", "ArrayRead", "Buffer", "Missing", "Request", "Values", "plan", "read_array", "read_arrays"]

Buffer: TypeAlias = bytes | bytearray | memoryview

Request: TypeAlias = bytes | tuple[bytes, int, int | None]
"""A key, or (key, start, stop) for bytes ``[start, stop)`` of its value."""

Missing: TypeAlias = Literal["error", "fill"]
"""What a chunk that is not there means: damage, or that it holds nothing but the fill value."""

BUDGET: Final = 24 << 20
"""Bytes fetched and held at a time, unless one chunk alone is larger; a store may need as much again on the way."""

_LANDING_SHARE = 4
"""Bytes that go where they belong are held nowhere else: only one in so many counts, for what is on the way."""

_REQUEST_COST = 1024  # bytes a fetch costs beside its data, so that a group of tiny chunks ends too
_MOST_FILLED = 1 << 24  # chunks of one array that may be filled in; each has to be looked up
_PROBED_AT_ONCE = 4096  # keys
_THREAD_PAYS = 1 << 20  # decoded bytes of a group below which threads cost more than they gain
_LARGE_CHUNK = 64 << 10  # bytes; smaller ones are decoded where they are


class Values(Protocol):
    """Where the bytes come from. A :class:`~ocdbt_py.database.Database` is one.

    A class of its own that inherits from this one needs :meth:`read_many` alone.
    """

    def read_many(self, requests: Sequence[Request], default: None) -> Sequence[bytes | None]:
        """One answer per request, in order; ``default`` for a key that is not there."""

    def read_many_into(
        self, requests: Sequence[Request], place: Callable[[Sequence[int | None]], Sequence[memoryview | None]]
    ) -> Sequence[Buffer | None]:
        """Look the requests up, ask ``place`` once where the answers go, and put them there.

        ``place`` is given the size of each answer in bytes, None for a key that is not there; it returns for each a
        buffer of that size, or None. Answers without a buffer are returned, in their places.
        """
        answers = self.read_many(requests, None)
        buffers = place([None if data is None else len(data) for data in answers])
        for data, buffer in zip(answers, buffers, strict=True):
            if data is not None and buffer is not None:
                buffer[:] = data
        return answers


class ArrayRead(NamedTuple):
    """One array to read: all of it, or what a basic index selects; into ``out`` if given."""

    name: str
    spec: ArraySpec
    selection: Index = ...
    out: NDArray[Any] | None = None


def read_array(
    values: Values,
    name: str,
    spec: ArraySpec,
    selection: Index = ...,
    *,
    out: NDArray[Any] | None = None,
    missing: Missing = "error",
    budget: int = BUDGET,
) -> NDArray[Any]:
    """The selected part of an array, as NumPy's basic indexing would give it; a new writable array, or ``out``.

    ``out`` has exactly the selection's shape and the array's dtype; after an error it holds anything.
    """
    (array,) = read_arrays(values, [ArrayRead(name, spec, selection, out)], missing=missing, budget=budget)
    return array


def read_arrays(
    values: Values, reads: Iterable[ArrayRead], *, missing: Missing = "error", budget: int = BUDGET
) -> Iterator[NDArray[Any]]:
    """The arrays, in order, each as soon as it is complete. Small ones share requests."""
    decoder = Decoder()
    waiting: list[_Unfinished] = []  # arrays whose fetches have all been queued, but not the bytes
    group: list[_Fetch] = []
    held = 0
    for read in reads:
        array = _Unfinished(read, missing)
        share = _LANDING_SHARE if read.spec.compressor is None and _lies_as_stored(read.spec) else 1
        for fetch in array.fetches():
            cost = (fetch.span.stop - fetch.span.start) // share + _REQUEST_COST
            if group and held + cost > budget:
                if group[-1].array is array:
                    array.demand_all_chunks(values)
                _fetch(values, group, decoder)
                yield from (done.result() for done in waiting)
                waiting, group, held = [], [], 0
            group.append(fetch)
            held += cost
        waiting.append(array)
    _fetch(values, group, decoder)
    yield from (done.result() for done in waiting)


def plan(name: str, spec: ArraySpec, selection: Index = ...) -> Iterator[tuple[bytes, int, int | None]]:
    """The requests that reading the selection makes, as (key, start, stop); stop None is the value's end."""
    for fetch in _Unfinished(ArrayRead(name, spec, selection), "error").fetches():
        request = fetch.request
        yield request if isinstance(request, tuple) else (request, 0, None)


class _Fetch(NamedTuple):
    """One request, and what to do with the answer."""

    request: Request
    span: Span
    array: _Unfinished

    @property
    def key(self) -> bytes:
        return self.request[0] if isinstance(self.request, tuple) else self.request

    def error(self, reason: str) -> CorruptDataError:
        key = self.key
        return CorruptDataError(
            f"Array {self.array.name!r}: chunk {key!r} cannot be used: {reason}. "
            "Other chunks and arrays may be intact; check the checkpoint to see which",
            key=key,
        )


class _Unfinished:
    """An array on its way: what it needs, and, once its first bytes are here, its memory."""

    __slots__ = ("_box", "_chunks_known", "_given", "_out", "_selection", "missing", "name", "spec")

    def __init__(self, read: ArrayRead, missing: Missing) -> None:
        self.name, self.spec, index, self._out = read
        self.missing = missing
        # The common case, an array in one chunk and all of it, needs no arithmetic.
        whole = index is Ellipsis and self.spec.chunks == self.spec.shape
        self._selection = None if whole else select(index, self.spec.shape)
        self._box: NDArray[Any] | None = None
        self._chunks_known = missing == "fill"
        self._given = self._out is not None
        if self._out is not None:
            self._demand_room(self._out)
        looked_up = 1 if self._selection is None else piece_count(self._selection, self.spec.chunks)
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

    def fetches(self) -> Iterator[_Fetch]:
        spec = self.spec
        strides, whole = spec.chunk_strides, spec.chunk_nbytes
        if self._selection is None:
            key = array_key(self.name, spec.chunk_key((0,) * spec.ndim))
            yield _Fetch(key, Span(0, whole, 0, spec.shape, strides, ()), self)
            return
        for piece in pieces(self._selection, spec.chunks):
            key = array_key(self.name, spec.chunk_key(piece.chunk))
            if spec.compressor is not None:
                yield _Fetch(key, _whole_chunk(piece, strides, whole), self)
                continue
            for span in spans(piece, strides, spec.dtype.itemsize):
                part = span.stop - span.start < whole
                yield _Fetch((key, span.start, span.stop) if part else key, span, self)

    def demand_all_chunks(self, values: Values) -> None:
        """Look up every key once, so that an array is not begun whose end is not there."""
        if self._chunks_known:
            return
        self._chunks_known = True
        selection = select(..., self.spec.shape) if self._selection is None else self._selection
        chunks = pieces(selection, self.spec.chunks)
        keys = (array_key(self.name, self.spec.chunk_key(piece.chunk)) for piece in chunks)
        while some := [(key, 0, 0) for key in islice(keys, _PROBED_AT_ONCE)]:
            for (key, _, _), found in zip(some, values.read_many(some, None), strict=True):
                if found is None:
                    raise _missing_chunk(self.name, key)

    def part(self, target: tuple[slice, ...]) -> NDArray[Any]:
        """That part of the box, elements as they are stored; the first call sets memory aside for the whole."""
        if self._box is None:
            result = self.result()
            box = result if self._selection is None else self._selection.box(result)
            self._box = box.view(self.spec.stored_dtype.newbyteorder("="))
        index: tuple[Any, ...] = (*target, ...)
        return self._box[index] if target else self._box

    def result(self) -> NDArray[Any]:
        """The array; complete when all fetches have been placed."""
        if self._out is None:
            # Zeroed memory is free where the system hands out new pages, and most fill values are zero.
            self._out = _allocate(self.name, self.shape, self.spec.dtype, zero=self.missing == "fill")
        return self._out

    def fill(self, target: NDArray[Any]) -> None:
        """A chunk is not there, and may be: give its part of the box the fill value."""
        if self._given or self.spec.fill_value is not None:
            target[...] = self.spec.fill_element


def _fetch(values: Values, group: Sequence[_Fetch], decoder: Decoder) -> None:
    """Make the requests of a group: bytes go where they belong, or are checked and then placed."""
    if not group:
        return
    sizes: Sequence[int | None] = ()
    buffers: list[memoryview | None] = []

    def place(found: Sequence[int | None]) -> Sequence[memoryview | None]:
        nonlocal sizes
        sizes = found
        for fetch, size in zip(group, sizes, strict=True):
            _check_size(fetch, size)
        buffers.extend(_landing(fetch, size) for fetch, size in zip(group, sizes, strict=True))
        return buffers

    answers = _look_up(values, group, place)
    for fetch, data in zip(group, answers, strict=True):
        if data is not None and fetch.array.spec.compressor is not None:
            _check_compressed(fetch, data)
    in_threads: list[tuple[_Fetch, Buffer, NDArray[Any]]] = []
    for fetch, size, buffer, data in zip(group, sizes, buffers, answers, strict=True):
        if buffer is not None:
            _check_elements(fetch, buffer)
            continue
        target = fetch.array.part(fetch.span.target)
        if size is None or data is None:
            fetch.array.fill(target)
        elif fetch.array.spec.compressor is not None and fetch.span.stop >= _LARGE_CHUNK:
            in_threads.append((fetch, data, target))
        else:
            _place(fetch, data, target, decoder)
    workers = min(len(in_threads), _processors())
    if workers < 2 or sum(fetch.span.stop for fetch, _, _ in in_threads) < _THREAD_PAYS:
        for job in in_threads:
            _place(*job, decoder)
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="ocdbt-decode") as pool:
        done = [pool.submit(_place, *job, Decoder()) for job in in_threads]
    for future in done:
        future.result()


def _look_up(
    values: Values, group: Sequence[_Fetch], place: Callable[[Sequence[int | None]], Sequence[memoryview | None]]
) -> Sequence[Buffer | None]:
    try:
        return values.read_many_into([fetch.request for fetch in group], place)
    except InvalidArgumentError as error:
        # A database refuses a range beyond the value's end: for a caller a mistake, here the stored value is too short.
        short = [fetch for fetch in group if fetch.key == error.key]
        if not short:
            raise
        raise short[0].error(f"it is shorter than the array's metadata says ({error.message})") from error


def _check_size(fetch: _Fetch, size: int | None) -> None:
    if size is None:
        if fetch.array.missing == "error":
            raise _missing_chunk(fetch.array.name, fetch.key)
    elif fetch.array.spec.compressor is None and size != fetch.span.stop - fetch.span.start:
        wanted = fetch.span.stop - fetch.span.start
        raise fetch.error(f"it has {size} bytes where the array's metadata says {wanted}")


def _check_compressed(fetch: _Fetch, data: Buffer) -> None:
    compressor = fetch.array.spec.compressor
    assert compressor is not None
    try:
        refuse_impossible(compressor, data, fetch.span.stop - fetch.span.start)
    except ValueError as error:
        raise fetch.error(str(error)) from error


def _landing(fetch: _Fetch, size: int | None) -> memoryview | None:
    """The memory of the array that holds the answer as it is stored, where there is such; sets the array's aside."""
    spec = fetch.array.spec
    if size is None or spec.compressor is not None or not _lies_as_stored(spec):
        return None
    target = fetch.array.part(fetch.span.target)
    # As many bytes as are fetched, so all of these are wanted, and both are in C order.
    if target.nbytes != size or not target.flags.c_contiguous:
        return None
    return target.reshape(-1).view(np.uint8).data


def _lies_as_stored(spec: ArraySpec) -> bool:
    """Whether elements of a decoded chunk are those in memory, in C order."""
    return spec.stored_dtype.isnative and (spec.order == "C" or spec.ndim <= 1) and low_bits(spec.dtype) is None


def _check_elements(fetch: _Fetch, stored: memoryview) -> None:
    if fetch.array.spec.dtype.kind == "b" and len(stored) and np.frombuffer(stored, np.uint8).max() > 1:
        raise fetch.error("it holds bytes that are neither false nor true")


def _place(fetch: _Fetch, data: Buffer, target: NDArray[Any], decoder: Decoder) -> None:
    """Decode a chunk, and copy what is wanted of it to its part of the box, where it is not decoded in place."""
    array, span = fetch.array, fetch.span
    spec = array.spec
    content = data
    in_place = False
    if spec.compressor is not None:
        in_place = target.nbytes == span.stop and target.flags.c_contiguous and _lies_as_stored(spec)
        decoded = target if in_place else _allocate(array.name, (span.stop,), np.dtype(np.uint8))
        content = decoded.reshape(-1).view(np.uint8).data
        try:
            decoder.decode_into(spec.compressor, data, content)
        except ValueError as error:
            raise fetch.error(str(error)) from error
    if in_place:
        _check_elements(fetch, memoryview(content))
        return
    elements = np.ndarray(span.shape, spec.stored_dtype, content, span.offset, span.strides)
    mask = low_bits(spec.dtype)
    if mask is not None:
        np.bitwise_and(elements, mask, out=target)
    else:
        target[...] = elements
    if spec.dtype.kind == "b" and target.max() > 1:
        raise fetch.error("it holds bytes that are neither false nor true")


def _whole_chunk(piece: Piece, strides: tuple[int, ...], nbytes: int) -> Span:
    offset = sum(axis.start * stride for axis, stride in zip(piece.inside, strides, strict=True))
    steps = tuple(axis.step * stride for axis, stride in zip(piece.inside, strides, strict=True))
    return Span(0, nbytes, offset, tuple(axis.size for axis in piece.inside), steps, piece.target)


def _missing_chunk(name: str, key: bytes) -> CorruptDataError:
    return CorruptDataError(
        f"Array {name!r}: chunk {key!r} is missing. Its writer may not have finished, or left out chunks that hold "
        "nothing but the fill value without saying so",
        kind="missing-chunk",
        key=key,
    )


def _allocate(name: str, shape: tuple[int, ...], dtype: np.dtype[Any], *, zero: bool = False) -> NDArray[Any]:
    try:
        return np.zeros(shape, dtype) if zero else np.empty(shape, dtype)
    except (MemoryError, ValueError) as error:
        raise UnsupportedError(
            f"Array {name!r}: {shape} elements of {dtype} do not fit into memory. Read slices of it"
        ) from error


def _processors() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
