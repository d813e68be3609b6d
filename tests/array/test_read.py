from __future__ import annotations

import threading
import tracemalloc
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from ocdbt_py.array import fetches as fetches_module
from ocdbt_py.array import read as read_module
from ocdbt_py.array.codecs import Compressor
from ocdbt_py.array.dtypes import dtype_from_name
from ocdbt_py.array.read import ArrayRead, plan, read_array, read_arrays
from ocdbt_py.array.spec import ArraySpec
from ocdbt_py.array.write import encode_array
from ocdbt_py.errors import CorruptDataError, InvalidArgumentError, UnsupportedError

Array = np.ndarray[Any, Any]
F4 = np.dtype("f4")
ZSTD = Compressor("zstd", 1)


def stored(store: type[Any], name: str, array: Array, spec: ArraySpec) -> Any:
    return store((key, bytes(value)) for key, value in encode_array(name, array, spec))


def numbers(*shape: int, dtype: str = "float32") -> Array:
    return np.arange(np.prod(shape)).astype(dtype_from_name(dtype)).reshape(shape)


def test_a_whole_uncompressed_array_takes_one_request_and_one_copy(store: Any) -> None:
    array = numbers(500, 1000)
    spec = ArraySpec(array.shape, array.shape, F4)
    values = stored(store, "w", array, spec)
    tracemalloc.start()
    try:
        result = read_array(values, "w", spec)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert values.requests == [b"w/0.0"]
    assert peak < 1.02 * array.nbytes
    assert result.base is not None
    assert result.base.nbytes <= array.nbytes + 64
    assert result.flags.writeable
    assert np.array_equal(result, array)


def test_a_whole_compressed_chunk_is_decoded_into_place(store: Any) -> None:
    array = np.zeros((500, 1000), F4)
    for chunks in ((500, 1000), (100, 1000)):
        spec = ArraySpec(array.shape, chunks, F4, compressor=ZSTD)
        values = stored(store, "w", array, spec)
        tracemalloc.start()
        try:
            read_array(values, "w", spec)
            assert tracemalloc.get_traced_memory()[1] < 1.05 * array.nbytes
        finally:
            tracemalloc.stop()


def test_a_slice_of_an_uncompressed_array_fetches_only_its_bytes(store: Any) -> None:
    array = numbers(100, 10, 5000)
    spec = ArraySpec(array.shape, array.shape, F4)
    cases: list[tuple[Any, int]] = [
        (np.s_[7], 1),
        (np.s_[20:30], 1),
        (np.s_[3, 4, 5], 1),
        (np.s_[:, 2], 100),
        (np.s_[5, ::3], 4),
        (np.s_[::-50, -1, :10], 2),
    ]
    for index, requests in cases:
        values = stored(store, "w", array, spec)
        result = read_array(values, "w", spec, index)
        assert np.array_equal(result, array[index])
        assert len(values.requests) == requests
        assert values.bytes_read == result.nbytes


def test_a_slice_of_a_compressed_array_fetches_the_chunks_it_meets_whole(store: Any) -> None:
    array = numbers(10, 10)
    spec = ArraySpec(array.shape, (4, 4), F4, compressor=ZSTD)
    values = stored(store, "w", array, spec)
    assert np.array_equal(read_array(values, "w", spec, np.s_[3:5, 9]), array[3:5, 9])
    assert values.requests == [b"w/0.2", b"w/1.2"]


def test_the_plan_is_what_reading_then_asks_for(store: Any) -> None:
    array = numbers(64, 4096)
    for compressor in (None, ZSTD):
        spec = ArraySpec(array.shape, (32, 4096), F4, compressor=compressor)
        for index in (..., np.s_[30:34, 5], np.s_[0:0], np.s_[3]):
            values = stored(store, "w", array, spec)
            planned = list(plan(values, "w", spec, index))
            read_array(values, "w", spec, index)
            assert planned == [r if isinstance(r, tuple) else (r, 0, None) for r in values.requests]


def test_many_small_arrays_share_one_lookup_and_come_in_order(store: Any) -> None:
    arrays = {f"leaf{i}": numbers(i % 3 + 1, 2) + i for i in range(100)}
    specs = {
        name: ArraySpec(a.shape, a.shape, F4, compressor=ZSTD if i % 2 else None)
        for i, (name, a) in enumerate(arrays.items())
    }
    values = store()
    for name, array in arrays.items():
        values.update(stored(store, name, array, specs[name]))
    results = list(read_arrays(values, (ArrayRead(name, specs[name]) for name in arrays)))
    assert values.calls == [100]
    assert all(np.array_equal(got, a) for got, a in zip(results, arrays.values(), strict=True))


@pytest.mark.parametrize(("compressor", "budget"), [(ZSTD, 1_000_000), (None, 250_000)])
def test_no_more_than_the_budget_is_held_at_a_time_beside_the_arrays(
    store: Any, compressor: Compressor | None, budget: int
) -> None:
    arrays = [numbers(100_000) + i for i in range(6)]
    spec = ArraySpec((100_000,), (100_000,), F4, compressor=compressor)
    values = store()
    for i, array in enumerate(arrays):
        values.update(stored(store, str(i), array, spec))
    results = list(read_arrays(values, [ArrayRead(str(i), spec) for i in range(6)], budget=budget))
    assert values.calls == [2, 2, 2]
    assert all(np.array_equal(got, array) for got, array in zip(results, arrays, strict=True))


def test_an_array_larger_than_the_budget_is_read_in_several_groups(store: Any) -> None:
    array = numbers(100, 1000)
    for compressor in (None, ZSTD):
        spec = ArraySpec(array.shape, (7, 300), F4, compressor=compressor)
        values = stored(store, "w", array, spec)
        values.update(stored(store, "v", array + 1, spec))
        result, other = read_arrays(values, [ArrayRead("w", spec), ArrayRead("v", spec)], budget=50_000)
        assert np.array_equal(result, array)
        assert np.array_equal(other, array + 1)


def test_every_chunk_is_asked_for_once_however_many_there_are(store: Any) -> None:
    array = numbers(5000)
    spec = ArraySpec(array.shape, (1,), F4)
    values = stored(store, "w", array, spec)
    assert np.array_equal(read_array(values, "w", spec), array)
    assert len(values.requests) == len(set(values.requests)) == 5000


@pytest.mark.parametrize("compressor", [None, ZSTD, Compressor("bz2")], ids=str)
@pytest.mark.parametrize("name", ["bool", "int8", "uint64", "float16", "complex64", "bfloat16", "float8_e5m2", "int2"])
def test_each_order_byte_order_and_separator_is_read(store: Any, name: str, compressor: Compressor | None) -> None:
    array = (np.arange(60) % 2).astype(dtype_from_name(name)).reshape(3, 4, 5)
    orders: Any = ("C", "F")
    byte_orders: Any = ("<", ">") if name in ("uint64", "float16", "complex64") else ("<",)
    for order in orders:
        for byte_order in byte_orders:
            for chunks in ((3, 4, 5), (2, 3, 2), (9, 9, 9)):
                spec = ArraySpec((3, 4, 5), chunks, array.dtype, order, None, compressor, "/", byte_order)
                values = stored(store, "w", array, spec)
                assert b"w/0/0/0" in values
                for index in (..., np.s_[::-1, 1:, ::2]):
                    result = read_array(values, "w", spec, index)
                    assert result.dtype == array.dtype
                    assert result.tobytes() == array[index].tobytes()


def test_an_array_of_rank_0_has_the_one_chunk_0(store: Any) -> None:
    spec = ArraySpec((), (), np.dtype("i8"))
    result = read_array(store({b"step/0": b"\5" + bytes(7)}), "step", spec)
    assert (result.shape, result.item()) == ((), 5)


def test_only_the_low_bits_of_a_narrow_type_count(store: Any) -> None:
    for compressor in (None, ZSTD):
        spec = ArraySpec((4,), (4,), dtype_from_name("int4"), compressor=compressor)
        raw = np.array([0xF7, 0x0F, 0x88, 0x71], np.uint8)
        chunk = bytes(raw)
        if compressor:
            unsigned = ArraySpec((4,), (4,), raw.dtype, compressor=compressor)
            chunk = stored(store, "w", raw, unsigned)[b"w/0"]
        result = read_array(store({b"w/0": chunk}), "w", spec)
        assert result.astype(int).tolist() == [7, -1, -8, 1]
        assert result.tobytes() == np.array([7, -1, -8, 1]).astype(ml_dtypes.int4).tobytes()


@pytest.mark.parametrize("compressor", [None, ZSTD], ids=str)
def test_a_bool_that_is_neither_0_nor_1_is_corrupt_data(store: Any, compressor: Compressor | None) -> None:
    raw = np.array([0, 2], np.uint8)
    values = stored(store, "w", raw, ArraySpec((2,), (2,), raw.dtype, compressor=compressor))
    with pytest.raises(CorruptDataError, match="neither false nor true"):
        read_array(values, "w", ArraySpec((2,), (2,), np.dtype(bool), compressor=compressor))


def test_a_missing_chunk_is_corrupt_data_naming_array_and_chunk(store: Any) -> None:
    spec = ArraySpec((4,), (2,), F4)
    values = stored(store, "w", numbers(4), spec)
    del values[b"w/1"]
    with pytest.raises(CorruptDataError, match=r"'w'.*w/1.*missing") as caught:
        read_array(values, "w", spec)
    assert (caught.value.kind, caught.value.key) == ("missing-chunk", b"w/1")
    assert np.array_equal(read_array(values, "w", spec, np.s_[:2]), [0, 1])


@pytest.mark.parametrize(("dtype", "fill"), [("f4", None), ("f4", 1.5), (ml_dtypes.bfloat16, -2.0), (">i2", 7)])
def test_or_it_reads_as_the_fill_value(store: Any, dtype: Any, fill: Any) -> None:
    spec = ArraySpec((5, 2), (2, 2), np.dtype(dtype), fill_value=fill)
    values = stored(store, "w", np.ones((5, 2), dtype), spec)
    del values[b"w/1.0"]
    expected = np.ones((5, 2), spec.dtype)
    expected[2:4] = 0 if fill is None else fill
    for out in (None, np.full((5, 2), 9, spec.dtype)):
        assert np.array_equal(read_array(values, "w", spec, missing="fill", out=out), expected)
    assert np.array_equal(read_array(store(), "w", spec, np.s_[3, ::-1], missing="fill"), expected[3])


HUGE = [
    ArraySpec((2**40, 2**20), (1, 1), F4),
    ArraySpec((2**61,), (2**60,), F4),
    ArraySpec((2**61,), (1,), np.dtype("u1"), compressor=ZSTD),
    ArraySpec((2**40,), (2**40,), np.dtype("u1"), compressor=ZSTD),
    ArraySpec((2**40,), (2**40,), np.dtype("u1"), compressor=Compressor("gzip")),
]


@pytest.mark.parametrize("spec", HUGE)
@pytest.mark.parametrize("chunk", [None, b"", b"\0" * 100, bytes.fromhex("28b52ffd2008410000") + b"abcdefgh"])
def test_no_memory_is_set_aside_for_an_array_whose_chunks_are_not_there(
    store: Any, spec: ArraySpec, chunk: bytes | None
) -> None:
    values = store() if chunk is None else store({b"w/0": chunk, b"w/0.0": chunk})
    tracemalloc.start()
    try:
        with pytest.raises(CorruptDataError, match="'w'"):
            read_array(values, "w", spec, budget=1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()
    assert len(values.requests) < 10_000


def test_the_end_of_a_large_array_is_looked_for_before_its_memory_is_set_aside(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = numbers(1000, 100)
    spec = ArraySpec(array.shape, (10, 100), F4)
    values = stored(store, "w", array, spec)
    del values[b"w/99.0"]
    monkeypatch.setattr(fetches_module, "allocate", None)
    with pytest.raises(CorruptDataError, match=r"w/99\.0"):
        read_array(values, "w", spec, budget=10_000)


def test_filling_an_absurd_number_of_chunks_or_bytes_is_refused(store: Any) -> None:
    for spec in (HUGE[0], ArraySpec((2**61,), (2**60,), np.dtype("u1"))):
        with pytest.raises(UnsupportedError, match="Read slices"):
            read_array(store(), "w", spec, missing="fill")
    with pytest.raises(UnsupportedError, match="chunks to look up"):
        read_array(store(), "w", ArraySpec((2**25,), (1,), np.dtype("u1")), missing="fill")
    assert read_array(store(), "w", HUGE[0], np.s_[2**39, -3:], missing="fill").tolist() == [0, 0, 0]


@pytest.mark.parametrize("compressor", [None, *map(Compressor, ("zstd", "zlib", "gzip", "bz2"))], ids=str)
@pytest.mark.parametrize("elements", [0, 5, 7, 600])
def test_a_chunk_of_another_size_is_corrupt_data(store: Any, compressor: Compressor | None, elements: int) -> None:
    spec = ArraySpec((12,), (6,), F4, compressor=compressor)
    values = stored(store, "a.w", numbers(12), spec)
    other = np.zeros(elements or 1, F4)
    wrong = stored(store, "x", other, ArraySpec(other.shape, other.shape, F4, compressor=compressor))[b"x/0"]
    values[b"a.w/1"] = wrong if elements else b""
    with pytest.raises(CorruptDataError, match=r"'a\.w'.*a\.w/1") as caught:
        read_array(values, "a.w", spec)
    assert caught.value.key == b"a.w/1"
    assert np.array_equal(read_array(values, "a.w", spec, np.s_[5::-1]), numbers(12)[5::-1])


def test_a_range_beyond_the_end_of_a_chunk_is_corrupt_data_however_the_store_says_so(store: Any) -> None:
    spec = ArraySpec((100,), (100,), F4)

    class Refusing(store):  # type: ignore[misc]
        def read_many(self, requests: Any, default: None) -> Any:
            key, _, stop = requests[0]
            raise InvalidArgumentError(f"{stop} is out of range", key=key)

    for values in (store({b"w/0": bytes(80)}), Refusing()):
        with pytest.raises(CorruptDataError, match=r"'w'.*w/0"):
            read_array(values, "w", spec, np.s_[10:50])


def test_other_refusals_of_the_store_pass_through(store: Any) -> None:
    class Closed(store):  # type: ignore[misc]
        def read_many(self, requests: Any, default: None) -> Any:
            raise InvalidArgumentError("the database is closed")

    with pytest.raises(InvalidArgumentError, match="closed"):
        read_array(Closed(), "w", ArraySpec((2,), (2,), F4))


def test_what_is_read_into_out_is_out(store: Any) -> None:
    array = numbers(6, 8)
    for compressor in (None, ZSTD):
        for chunks in ((6, 8), (4, 3)):
            spec = ArraySpec((6, 8), chunks, F4, compressor=compressor)
            values = stored(store, "w", array, spec)
            for out in (np.empty((6, 8), F4), np.empty((6, 8), F4, "F"), np.empty((12, 8), F4)[::-2]):
                assert read_array(values, "w", spec, out=out) is out
                assert np.array_equal(out, array)


def test_an_out_that_does_not_fit_is_refused(store: Any) -> None:
    spec = ArraySpec((2, 3), (2, 3), F4)
    values = stored(store, "w", numbers(2, 3), spec)
    read_only = np.empty((2, 3), F4)
    read_only.flags.writeable = False
    for out in (np.empty((3, 2), F4), np.empty((2, 3)), np.empty((2, 3), ">f4"), read_only):
        with pytest.raises(InvalidArgumentError, match="out "):
            read_array(values, "w", spec, out=out)


def decoding_threads(monkeypatch: pytest.MonkeyPatch, values: Any, spec: ArraySpec, processors: int) -> set[str]:
    names: set[str] = set()
    place = read_module._place

    def placed(*args: Any) -> None:
        names.add(threading.current_thread().name)
        place(*args)

    monkeypatch.setattr(read_module, "_place", placed)
    monkeypatch.setattr(read_module, "processors", lambda: processors)
    read_array(values, "w", spec)
    return names


def test_large_compressed_chunks_are_decoded_by_threads_and_small_ones_are_not(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = {threading.current_thread().name}
    for elements, processors, threaded in ((2_000_000, 4, True), (2_000_000, 1, False), (2000, 4, False)):
        spec = ArraySpec((elements,), (elements // 8,), np.dtype("u1"), compressor=ZSTD)
        values = stored(store, "w", np.zeros(elements, "u1"), spec)
        names = decoding_threads(monkeypatch, values, spec, processors)
        assert (names != here) == threaded
        assert len(names) <= processors


def test_damage_found_by_a_thread_is_reported_as_any(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_module, "processors", lambda: 4)
    spec = ArraySpec((2_000_000,), (250_000,), np.dtype("u1"), compressor=ZSTD)
    rng = np.random.default_rng(0)
    values = stored(store, "w", rng.integers(0, 9, 2_000_000).astype("u1"), spec)
    chunk = bytearray(values[b"w/5"])
    chunk[20:40] = b"\xff" * 20
    values[b"w/5"] = bytes(chunk)
    with pytest.raises(CorruptDataError, match=r"'w'.*w/5"):
        read_array(values, "w", spec)
