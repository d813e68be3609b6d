"""Which requests many byte ranges become, and that every range gets exactly its bytes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ocdbt_py.storage.coalesce import Fetch, fetches, fill, landing, ranges_of, runs, scatter
from ocdbt_py.storage.protocol import ByteRange

FILES = {name: bytes((n * 7 + offset) % 251 for n in range(1000)) for offset, name in enumerate("abc")}


@st.composite
def byte_ranges(draw: st.DrawFn) -> ByteRange:
    start, stop = sorted(draw(st.tuples(st.integers(0, 1000), st.integers(0, 1000))))
    return draw(st.sampled_from("abc")), start, stop


@given(st.lists(byte_ranges(), max_size=30), st.integers(0, 50), st.integers(1, 400))
def test_every_range_gets_its_bytes(ranges: list[ByteRange], gap: int, most: int) -> None:
    requests = fetches(ranges, gap=gap, most=most)
    results: list[bytes | bytearray] = [b""] * len(ranges)
    buffers = [bytearray(stop - start) for _, start, stop in ranges]
    fillings = [(path, start, memoryview(buffer)) for (path, start, _), buffer in zip(ranges, buffers, strict=True)]
    assert ranges_of(fillings) == ranges
    for request in requests:
        assert 0 < request.stop - request.start <= most
        data = FILES[request.path][request.start : request.stop]
        scatter(request, data, ranges, results)
        place = landing(request, fillings)
        if place is None:
            fill(request, data, fillings)
        else:
            place[:] = data
    expected = [FILES[path][start:stop] for path, start, stop in ranges]
    assert results == buffers == expected


def test_neighbours_share_a_request_and_strangers_do_not() -> None:
    ranges = [("f", 100, 110), ("f", 0, 10), ("f", 12, 20), ("g", 21, 30), ("f", 5, 8), ("f", 40, 40)]
    assert fetches(ranges, gap=2, most=1000) == [
        Fetch("f", 0, 20, [1, 4, 2]),
        Fetch("f", 100, 110, [0]),
        Fetch("g", 21, 30, [3]),
    ]


def test_a_long_range_is_cut_and_short_ones_are_not_joined_beyond_the_limit() -> None:
    assert [(f.start, f.stop) for f in fetches([("f", 5, 30)], gap=0, most=10)] == [(5, 15), (15, 25), (25, 30)]
    assert [(f.start, f.stop) for f in fetches([("f", 0, 6), ("f", 6, 12)], gap=9, most=10)] == [(0, 6), (6, 12)]


def test_an_answer_for_one_buffer_lands_there_and_one_for_several_does_not() -> None:
    buffers = [memoryview(bytearray(size)) for size in (25, 5, 5)]
    fillings = [("f", 5, buffers[0]), ("g", 0, buffers[1]), ("g", 6, buffers[2])]
    requests = fetches(ranges_of(fillings), gap=2, most=10)
    sizes = [None if (place := landing(request, fillings)) is None else len(place) for request in requests]
    assert sizes == [10, 10, 5, 5, 5]
    assert landing(Fetch("g", 0, 11, [1, 2]), fillings) is None


def test_requests_of_one_file_are_one_run_up_to_so_many_bytes() -> None:
    requests = [Fetch("f", 0, 4), Fetch("f", 4, 8), Fetch("f", 100, 102), Fetch("f", 102, 103), Fetch("g", 0, 20)]
    assert [len(run) for run in runs(requests, most=10)] == [3, 1, 1]
    assert [len(run) for run in runs(requests, most=100)] == [4, 1]
    assert list(runs([], most=10)) == []
