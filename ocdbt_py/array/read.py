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

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ocdbt_py.array.chunks import Index
from ocdbt_py.array.codecs import CHECKSUM_BYTES, Decoder, checked, refuse_impossible, refuse_too_short
from ocdbt_py.array.dtypes import low_bits
from ocdbt_py.array.fetches import ArrayRead, Fetch, Missing, Unfinished, begun, missing_chunk
from ocdbt_py.array.sharding import only_chunk
from ocdbt_py.array.spec import ArraySpec
from ocdbt_py.array.streaming import Source, Stream, can_stream, open_stream, slabs
from ocdbt_py.array.values import Buffer, Request, Values
from ocdbt_py.errors import InvalidArgumentError, OcdbtError
from ocdbt_py.storage.background import processors

__all__ = ["BUDGET", "ArrayRead", "Buffer", "Missing", "Request", "Values", "plan", "read_array", "read_arrays"]

BUDGET: Final = 24 << 20
"""Bytes fetched and held at a time, unless one chunk alone is larger; a store may need as much again on the way."""

_LANDING_SHARE = 4
"""Bytes that go where they belong are held nowhere else: only one in so many counts, for what is on the way."""

_REQUEST_COST = 1024  # bytes a fetch costs beside its data, so that a group of tiny chunks ends too
_THREAD_PAYS = 1 << 20  # decoded bytes of a group below which threads cost more than they gain
_LARGE_CHUNK = 64 << 10  # bytes; smaller ones are decoded where they are


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
    waiting: list[Unfinished] = []  # arrays whose fetches have all been queued, but not the bytes
    group: list[Fetch] = []
    held = 0
    for array in begun(values, reads, missing):
        lands = array.spec.is_raw and array.spec.lies_as_stored
        for fetch in array.fetches(values):
            cost = fetch.nbytes // (_LANDING_SHARE if lands and not fetch.is_shard else 1) + _REQUEST_COST
            if cost > budget and not fetch.is_shard and can_stream(array.spec.compressor, array.spec.checksums):
                _fetch(values, group, decoder)
                yield from (done.finished() for done in waiting)
                waiting, group, held = [], [], 0
                array.demand_all_chunks(values)
                _stream(values, fetch, budget // 4)
                continue
            if group and held + cost > budget:
                if group[-1].array is array:
                    array.demand_all_chunks(values)
                _fetch(values, group, decoder)
                yield from (done.finished() for done in waiting)
                waiting, group, held = [], [], 0
            group.append(fetch)
            held += cost
        waiting.append(array)
    _fetch(values, group, decoder)
    yield from (done.finished() for done in waiting)


def plan(
    values: Values, name: str, spec: ArraySpec, selection: Index = ..., *, missing: Missing = "error"
) -> Iterator[tuple[bytes, int, int | None]]:
    """The requests that reading the selection makes, as (key, start, stop); stop None is the value's end.

    Where it depends on the index of a shard what they are, that is read, and its request is one of them.
    """
    log = _Log(values)
    for array in begun(log, [ArrayRead(name, spec, selection)], missing):
        for fetch in array.fetches(log):
            yield from log.taken()
            request = fetch.request
            yield request if isinstance(request, tuple) else (request, 0, None)
    yield from log.taken()


class _Log(Values):
    """Values that remember what they were asked for."""

    def __init__(self, values: Values) -> None:
        self._values = values
        self._requests: list[Request] = []

    def read_many(self, requests: Sequence[Request], default: None) -> Sequence[bytes | None]:
        self._requests += requests
        return self._values.read_many(requests, default)

    def taken(self) -> list[tuple[bytes, int, int | None]]:
        """The requests since the last call."""
        taken, self._requests = self._requests, []
        return [request if isinstance(request, tuple) else (request, 0, None) for request in taken]


def _fetch(values: Values, group: Sequence[Fetch], decoder: Decoder) -> None:
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
    contents = [
        data if data is None or _is_plain(fetch) else _opened(fetch, data)
        for fetch, data in zip(group, answers, strict=True)
    ]
    in_threads: list[tuple[Fetch, Buffer, NDArray[Any]]] = []
    for fetch, size, buffer, data in zip(group, sizes, buffers, contents, strict=True):
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
    workers = min(len(in_threads), processors())
    if workers < 2 or sum(fetch.span.stop for fetch, _, _ in in_threads) < _THREAD_PAYS:
        for job in in_threads:
            _place(*job, decoder)
        return
    idle = [Decoder() for _ in range(workers)]

    def place_one(fetch: Fetch, data: Buffer, target: NDArray[Any]) -> None:
        decoder = idle.pop()
        try:
            _place(fetch, data, target, decoder)
        finally:
            idle.append(decoder)

    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(workers, thread_name_prefix="ocdbt-decode") as pool:
        done = [pool.submit(place_one, *job) for job in in_threads]
    for future in done:
        future.result()


def _stream(values: Values, fetch: Fetch, at_once: int) -> None:
    """Fetch a chunk that is too large to be held, ``at_once`` bytes at a time, and place it."""
    array, spec, span = fetch.array, fetch.array.spec, fetch.span
    nbytes = span.stop - span.start
    sizes: list[int | None] = []

    def learned(found: Sequence[int | None]) -> Sequence[memoryview | None]:
        sizes.extend(found)
        _check_size(fetch, found[0])
        buffer = _landing(fetch, found[0])
        if buffer is None:
            raise _NotYet
        return [buffer]

    try:
        _look_up(values, [fetch], learned)
    except _NotYet:
        pass
    else:
        (stored,) = learned(sizes)
        assert stored is not None
        _check_elements(fetch, stored)
        return
    size = sizes[0]
    if size is None:
        array.fill(array.part(span.target))
        return
    try:
        if spec.compressor is not None:
            refuse_too_short(spec.compressor, size, nbytes)
            if size <= at_once:
                (data,) = values.read_many([fetch.request], None)
                refuse_impossible(spec.compressor, data or b"", nbytes)
        target = array.part(span.target)
        stream = open_stream(spec.compressor, Source(values, fetch.request, size, at_once))
        if target.nbytes == nbytes and target.flags.c_contiguous and spec.lies_as_stored:
            content = target.reshape(-1).view(np.uint8).data
            stream.fill(content)
            stream.end()
            _check_elements(fetch, content)
            return
        window = np.empty(at_once, np.uint8)
        at = 0
        for slab in slabs(span.offset, span.shape, span.strides, spec.dtype.itemsize, at_once):
            at = _skip(stream, at, slab.offset, window)
            stream.fill(window[: slab.extent].data)
            at += slab.extent
            elements: NDArray[Any] = np.ndarray(slab.shape, spec.stored_dtype, window, 0, span.strides)
            index: tuple[Any, ...] = (*slab.target, ...)
            _take(fetch, elements, target[index])
        _skip(stream, at, nbytes, window)
        stream.end()
    except ValueError as error:
        if isinstance(error, OcdbtError):
            raise
        raise fetch.error(str(error)) from error


class _NotYet(Exception):
    """The bytes do not lie in the array as they are stored."""


def _skip(stream: Stream, at: int, to: int, window: NDArray[np.uint8]) -> int:
    while at < to:
        size = min(to - at, len(window))
        stream.fill(window[:size].data)
        at += size
    return at


def _look_up(
    values: Values, group: Sequence[Fetch], place: Callable[[Sequence[int | None]], Sequence[memoryview | None]]
) -> Sequence[Buffer | None]:
    try:
        return values.read_many_into([fetch.request for fetch in group], place)
    except InvalidArgumentError as error:
        # A database refuses a range beyond the value's end: for a caller a mistake, here the stored value is too short.
        short = [fetch for fetch in group if fetch.key == error.key]
        if not short:
            raise
        raise short[0].error(f"it is shorter than the array's metadata says ({error.message})") from error


def _check_size(fetch: Fetch, size: int | None) -> None:
    if size is None:
        if fetch.array.missing == "error":
            raise missing_chunk(fetch.array.name, fetch.key)
    elif (wanted := _size_asked_for(fetch)) is not None and size != wanted:
        raise fetch.error(f"it has {size} bytes where the array's metadata says {wanted}")


def _size_asked_for(fetch: Fetch) -> int | None:
    """What the answer has to have, where it is known."""
    if isinstance(fetch.request, tuple) and fetch.request[2] is not None:
        return fetch.request[2] - fetch.request[1]
    return None if fetch.is_shard or fetch.array.spec.compressor is not None else fetch.array.stored_nbytes


def _is_plain(fetch: Fetch) -> bool:
    """Whether the answer is elements and nothing else."""
    return fetch.array.spec.is_raw and not fetch.is_shard


def _opened(fetch: Fetch, data: Buffer) -> Buffer | None:
    """The elements of a chunk, or what is to be decompressed, out of what is around them; None if they are left out.

    Whatever can be checked without decompressing has been.
    """
    array, spec = fetch.array, fetch.array.spec
    wanted = fetch.span.stop - fetch.span.start
    try:
        if spec.sharding is not None and fetch.is_shard:
            found = only_chunk(memoryview(data), spec.sharding, spec.index_nbytes)
            if found is None and array.missing == "error":
                raise missing_chunk(array.name, fetch.key)
            if found is None:
                return None
            data = found
        if spec.compressor is None and len(data) != array.stored_nbytes:
            raise ValueError(f"it has {len(data)} bytes where the array's metadata says {array.stored_nbytes}")
        if spec.checksums[1]:
            data = checked(data)
        if spec.compressor is not None:
            refuse_impossible(spec.compressor, data, wanted + CHECKSUM_BYTES * spec.checksums[0])
    except ValueError as error:
        raise fetch.error(str(error)) from error
    return data


def _landing(fetch: Fetch, size: int | None) -> memoryview | None:
    """The memory of the array that holds the answer as it is stored, where there is such; sets the array's aside."""
    spec = fetch.array.spec
    if size is None or not _is_plain(fetch) or not spec.lies_as_stored:
        return None
    target = fetch.array.part(fetch.span.target)
    # As many bytes as are fetched, so all of these are wanted, and both are in C order.
    if target.nbytes != size or not target.flags.c_contiguous:
        return None
    return target.reshape(-1).view(np.uint8).data


def _check_elements(fetch: Fetch, stored: memoryview) -> None:
    if fetch.array.spec.dtype.kind == "b" and len(stored) and np.frombuffer(stored, np.uint8).max() > 1:
        raise fetch.error("it holds bytes that are neither false nor true")


def _place(fetch: Fetch, data: Buffer, target: NDArray[Any], decoder: Decoder) -> None:
    """Decode a chunk, and copy what is wanted of it to its part of the box, where it is not decoded in place."""
    array, span = fetch.array, fetch.span
    spec = array.spec
    content = data
    in_place = False
    if spec.compressor is not None:
        inside = spec.checksums[0]
        size = span.stop + CHECKSUM_BYTES * inside
        in_place = target.nbytes == size and target.flags.c_contiguous and spec.lies_as_stored
        content = target.reshape(-1).view(np.uint8).data if in_place else decoder.room(array.name, size)
        try:
            decoder.decode_into(spec.compressor, data, content)
            content = checked(content) if inside else content
        except ValueError as error:
            raise fetch.error(str(error)) from error
    if in_place:
        _check_elements(fetch, memoryview(content))
        return
    _take(fetch, np.ndarray(span.shape, spec.stored_dtype, content, span.offset, span.strides), target)


def _take(fetch: Fetch, elements: NDArray[Any], target: NDArray[Any]) -> None:
    """Copy elements as they are stored to their part of the box."""
    spec = fetch.array.spec
    mask = low_bits(spec.dtype)
    if mask is not None:
        np.bitwise_and(elements, mask, out=target)
    else:
        target[...] = elements
    if spec.dtype.kind == "b" and target.max() > 1:
        raise fetch.error("it holds bytes that are neither false nor true")
