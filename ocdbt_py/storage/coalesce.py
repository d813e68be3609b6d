"""Byte ranges into requests: neighbours of one file share one, and a long range is cut into several.

Where each request costs milliseconds, fetching a gap of some kilobytes that nobody asked for is cheaper than another
request. Nothing here does I/O; a backend makes the requests, and hands each answer to its :class:`Fetch`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from ocdbt_py.storage.protocol import ByteRange, Filling

__all__ = ["Fetch", "fetches", "fill", "landing", "ranges_of", "runs", "scatter"]


@dataclass(slots=True)
class Fetch:
    """One request for bytes ``[start, stop)`` of a file, and which of the ranges asked for it serves, by index."""

    path: str
    start: int
    stop: int
    serves: list[int] = field(default_factory=list)


def fetches(ranges: Sequence[ByteRange], *, gap: int, most: int) -> list[Fetch]:
    """The requests that give all ``ranges``: at most ``gap`` unwanted bytes between neighbours, ``most`` bytes each.

    Empty ranges need no request. A range longer than ``most`` is served by several requests.
    """
    found: list[Fetch] = []
    order = sorted((i for i, (_, start, stop) in enumerate(ranges) if start < stop), key=lambda i: ranges[i])
    for i in order:
        path, start, stop = ranges[i]
        last = found[-1] if found else None
        # start may lie before the last request where that is the end of a long range
        near = last is not None and last.path == path and last.start <= start <= last.stop + gap
        if last is not None and near and stop - last.start <= most:
            last.stop = max(last.stop, stop)
            last.serves.append(i)
            continue
        found.extend(Fetch(path, begin, min(begin + most, stop), [i]) for begin in range(start, stop, most))
    return found


def runs(requests: Iterable[Fetch], *, most: int) -> Iterator[list[Fetch]]:
    """Those of one file that follow one another, ``most`` bytes at a time: one stream can bring them."""
    run: list[Fetch] = []
    size = 0
    for fetch in requests:
        if run and (run[0].path != fetch.path or size + fetch.stop - fetch.start > most):
            yield run
            run, size = [], 0
        run.append(fetch)
        size += fetch.stop - fetch.start
    if run:
        yield run


def scatter(fetch: Fetch, data: bytes, ranges: Sequence[ByteRange], results: list[bytes | bytearray]) -> None:
    """Put what one request brought where it belongs; ``results`` begins as empty bytes, one for each range."""
    view = memoryview(data)
    for i in fetch.serves:
        _, start, stop = ranges[i]
        if (start, stop) == (fetch.start, fetch.stop):
            results[i] = data
        elif fetch.start <= start and stop <= fetch.stop:
            results[i] = data[start - fetch.start : stop - fetch.start]
        else:  # a part of a long range; the others come by themselves
            whole = results[i]
            if not isinstance(whole, bytearray):
                whole = results[i] = bytearray(stop - start)
            begin, end = max(start, fetch.start), min(stop, fetch.stop)
            whole[begin - start : end - start] = view[begin - fetch.start : end - fetch.start]


def fill(fetch: Fetch, data: bytes, fillings: Sequence[Filling]) -> None:
    """As :func:`scatter`, into the buffers of ``fillings``, from whose ranges the request was made."""
    view = memoryview(data)
    for i in fetch.serves:
        _, start, buffer = fillings[i]
        begin, end = max(start, fetch.start), min(start + len(buffer), fetch.stop)
        buffer[begin - start : end - start] = view[begin - fetch.start : end - fetch.start]


def landing(fetch: Fetch, fillings: Sequence[Filling]) -> memoryview | None:
    """Where an answer lies in one buffer as it comes, that part of it: such an answer can be received in place."""
    if len(fetch.serves) != 1:
        return None
    _, start, buffer = fillings[fetch.serves[0]]
    whole = start <= fetch.start and fetch.stop <= start + len(buffer)
    return buffer[fetch.start - start : fetch.stop - start] if whole else None


def ranges_of(fillings: Iterable[Filling]) -> list[ByteRange]:
    """What is to be read to fill them."""
    return [(path, start, start + len(buffer)) for path, start, buffer in fillings]
