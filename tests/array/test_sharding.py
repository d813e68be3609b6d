from __future__ import annotations

import struct
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocdbt_py.array import fetches as fetches_module
from ocdbt_py.array.codecs import Compressor
from ocdbt_py.array.fetches import ArrayRead
from ocdbt_py.array.lazy import LazyArray
from ocdbt_py.array.read import plan, read_array, read_arrays
from ocdbt_py.array.sharding import Sharding, decode_index, encode_shard, only_chunk
from ocdbt_py.array.spec import ArraySpec
from ocdbt_py.array.write import encode_array
from ocdbt_py.array.zarr3 import orbax_spec
from ocdbt_py.errors import CorruptDataError, UnsupportedError
from ocdbt_py.format.checksum import crc32c

Array = np.ndarray[Any, Any]
F4 = np.dtype("f4")
ZSTD = Compressor("zstd", 3)
NOTHING = 2**64 - 1


def spec_of(
    shape: Any, chunks: Any, shards: Any = None, compressor: Compressor | None = None, **more: Any
) -> ArraySpec:
    sharding = None if shards is None else Sharding(shards, **more.pop("sharding", {}))
    return ArraySpec(
        *(shape, chunks, more.pop("dtype", F4), more.pop("order", "C"), more.pop("fill", 0.0), compressor, "/"),
        **{"zarr_format": 3, "chunk_key_encoding": "default", "sharding": sharding, **more},
    )


def numbers(*shape: int) -> Array:
    return np.arange(np.prod(shape), dtype=F4).reshape(shape)


def stored(store: type[Any], name: str, array: Array, spec: ArraySpec) -> Any:
    return store((key, bytes(value)) for key, value in encode_array(name, array, spec))


def index(*places: tuple[int, int]) -> bytes:
    data = struct.pack(f"<{2 * len(places)}Q", *(number for place in places for number in place))
    return data + crc32c(data).to_bytes(4, "little")


def test_a_shard_is_its_chunks_and_their_places() -> None:
    assert bytes(encode_shard([b"abc", None, b"de"], Sharding((3,)))) == b"abcde" + index(
        (0, 3), (NOTHING, NOTHING), (3, 2)
    )
    first = index((36, 3), (39, 2))
    assert bytes(encode_shard([b"abc", b"de"], Sharding((2,), index_at_start=True))) == first + b"abcde"
    plain = encode_shard([b"abc"], Sharding((1,), index_byte_order=">", index_checksum=False))
    assert bytes(plain) == b"abc" + struct.pack(">2Q", 0, 3)


@given(st.lists(st.none() | st.binary(max_size=9), min_size=1, max_size=5), st.booleans(), st.booleans())
def test_what_is_put_in_a_shard_is_found_there(chunks: list[bytes | None], at_start: bool, checksum: bool) -> None:
    sharding = Sharding((len(chunks),), at_start, ">", checksum)
    shard = encode_shard(chunks, sharding)
    size = sharding.index_nbytes((1,))
    places = decode_index(shard[:size] if at_start else shard[-size:], sharding, size).tolist()
    for chunk, (offset, length) in zip(chunks, places, strict=True):
        assert (None if offset == NOTHING else bytes(shard[offset : offset + length])) == chunk
    if len(chunks) == 1:
        found = only_chunk(memoryview(shard), sharding, size)
        assert (None if found is None else bytes(found)) == chunks[0]


def test_what_orbax_writes_is_read_with_one_request(store: Any) -> None:
    array = numbers(100, 100)
    for compressor in (None, ZSTD):
        spec = orbax_spec(array.shape, array.shape, F4, compressor=compressor)
        values = stored(store, "w", array, spec)
        result = read_array(values, "w", spec)
        assert values.requests == [b"w/c/0/0"]
        assert np.array_equal(result, array)
        assert result.base is not None
        assert result.base.nbytes <= array.nbytes + 64
        assert result.flags.writeable


def test_many_arrays_of_one_chunk_share_one_lookup(store: Any) -> None:
    arrays = [numbers(i % 3 + 1, 2) + i for i in range(100)]
    specs = [orbax_spec(a.shape, a.shape, F4, compressor=ZSTD if i % 2 else None) for i, a in enumerate(arrays)]
    values = store()
    for i, (array, spec) in enumerate(zip(arrays, specs, strict=True)):
        values.update(stored(store, str(i), array, spec))
    results = list(read_arrays(values, (ArrayRead(str(i), spec) for i, spec in enumerate(specs))))
    assert values.calls == [100]
    assert all(np.array_equal(got, a) for got, a in zip(results, arrays, strict=True))


def test_large_raw_chunks_are_read_into_place_behind_one_lookup_of_all_indices(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetches_module, "_INDEX_FIRST", 1000)
    array = numbers(40, 50)
    spec = orbax_spec(array.shape, array.shape, F4, compressor=None)
    values = store()
    for name in "abc":
        values.update(stored(store, name, array, spec))
    results = list(read_arrays(values, (ArrayRead(name, spec) for name in "abc")))
    assert values.calls == [3, 3]
    assert values.requests == [(b"%c/c/0/0" % n, -20, None) for n in b"abc"] + [
        (b"%c/c/0/0" % n, 0, 8000) for n in b"abc"
    ]
    assert all(np.array_equal(result, array) for result in results)


def test_a_slice_of_a_raw_chunk_fetches_the_index_and_its_bytes(store: Any) -> None:
    array = numbers(100, 5000)
    for at_start in (False, True):
        spec = spec_of(array.shape, array.shape, array.shape, sharding={"index_at_start": at_start})
        values = stored(store, "w", array, spec)
        result = read_array(values, "w", spec, np.s_[7:9, 10:])
        assert np.array_equal(result, array[7:9, 10:])
        place = (7 * 5000 + 10) * 4 + 20 * at_start
        index_request = (b"w/c/0/0", 0, 20) if at_start else (b"w/c/0/0", -20, None)
        assert values.requests == [index_request, (b"w/c/0/0", place, place + 9990 * 4)]


def test_a_slice_of_shards_fetches_their_indices_and_the_chunks_it_meets(store: Any) -> None:
    array = numbers(8, 8)
    spec = spec_of(array.shape, (2, 2), (4, 4), ZSTD)
    values = stored(store, "w", array, spec)
    assert np.array_equal(read_array(values, "w", spec, np.s_[3:6, 1]), array[3:6, 1])
    assert values.calls == [2, 2]
    assert values.requests[:2] == [(b"w/c/0/0", -68, None), (b"w/c/1/0", -68, None)]
    assert [key for key, _, _ in values.requests[2:]] == [b"w/c/0/0", b"w/c/1/0"]
    assert values.bytes_read < sum(map(len, values.values())) / 2


def test_the_plan_is_what_reading_then_asks_for(store: Any) -> None:
    array = numbers(64, 4096)
    for chunks, shards in (((32, 4096), (32, 4096)), ((8, 1024), (32, 2048)), ((8, 1024), None)):
        for compressor in (None, ZSTD):
            spec = spec_of(array.shape, chunks, shards, compressor)
            for cut in (..., np.s_[30:34, 5], np.s_[0:0], np.s_[3]):
                values = stored(store, "w", array, spec)
                planned = list(plan(values, "w", spec, cut))
                assert list(LazyArray(values, "w", spec).plan(cut)) == planned
                values.requests = []
                read_array(values, "w", spec, cut)
                assert planned == [r if isinstance(r, tuple) else (r, 0, None) for r in values.requests]


@given(st.data())
def test_any_slice_of_any_shards_is_what_numpy_would_give(store: Any, data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 7), max_size=3), label="shape"))
    chunks = tuple(data.draw(st.integers(1, 3)) for _ in shape)
    shards = tuple(chunk * data.draw(st.integers(1, 3)) for chunk in chunks)
    orders = [tuple(data.draw(st.permutations(range(len(shape))))) for _ in range(2)]
    compressor = data.draw(st.sampled_from([None, ZSTD]))
    spec = spec_of(
        *(shape, chunks, shards, compressor),
        sharding={"index_at_start": data.draw(st.booleans()), "order": orders[0]},
        order=orders[1],
        checksums=(compressor is not None and data.draw(st.booleans()), data.draw(st.booleans())),
        byte_order=data.draw(st.sampled_from("<>")),
    )
    array = numbers(*shape)
    values = stored(store, "w", array, spec)
    cut = tuple(data.draw(st.slices(size)) for size in shape)
    assert np.array_equal(read_array(values, "w", spec), array)
    assert np.array_equal(read_array(values, "w", spec, cut), array[cut])


def test_the_first_step_of_a_plan_asks_for_some_indices_only(store: Any) -> None:
    spec = spec_of((2**40,), (2**4,), (2**5,))
    value = bytes(encode_shard([bytes(64), bytes(64)], Sharding((2**5,))))

    class Endless(store):  # type: ignore[misc]
        def read_many(self, requests: Any, default: None) -> list[bytes]:
            self.requests += requests
            return [value[start:stop] for _, start, stop in requests]

    values = Endless()
    assert next(iter(plan(values, "w", spec))) == (b"w/c/0", -36, None)
    assert len(values.requests) <= 2 * 4096


def test_chunks_and_shards_left_out_are_the_fill_value_or_missing(store: Any) -> None:
    spec = spec_of((4, 8), (2, 2), (4, 4), fill=7.0)
    values = store({b"w/c/0/0": bytes(16) + index((0, 16), *[(NOTHING, NOTHING)] * 3)})
    expected = np.full((4, 8), 7, F4)
    expected[:2, :2] = 0
    assert np.array_equal(read_array(values, "w", spec, missing="fill"), expected)
    out = np.empty((4, 8), F4)
    assert np.array_equal(read_array(values, "w", spec, missing="fill", out=out), expected)
    with pytest.raises(CorruptDataError, match="w/c/0/0") as caught:
        read_array(values, "w", spec, np.s_[:, :4])
    assert caught.value.kind == "missing-chunk"
    with pytest.raises(CorruptDataError, match="w/c/0/1"):
        read_array(values, "w", spec)
    one = orbax_spec((4,), (4,), F4, compressor=None)
    left_out = store({b"w/c/0": index((NOTHING, NOTHING))})
    assert np.array_equal(read_array(left_out, "w", one, missing="fill"), np.zeros(4, F4))
    with pytest.raises(CorruptDataError, match="missing"):
        read_array(left_out, "w", one)


def test_gaps_and_any_order_of_chunks_are_fine(store: Any) -> None:
    one, two = numbers(4).tobytes(), (numbers(4) + 4).tobytes()
    values = store({b"w/c/0": b"--" + two + b"-" + one + index((19, 16), (2, 16))})
    spec = spec_of((8,), (4,), (8,))
    assert np.array_equal(read_array(values, "w", spec), numbers(8))
    assert np.array_equal(read_array(values, "w", spec, np.s_[5:7]), numbers(8)[5:7])


GOOD = bytes(16)
DAMAGED = {
    "empty": b"",
    "no room for an index": b"abc",
    "an index of another shard": GOOD + index((0, 16))[:-1] + b"\0",
    "cut off": (GOOD + index((0, 16)))[:-1],
    "one byte more": GOOD + index((0, 16)) + b"\0",
    "beyond the end": GOOD + index((30, 16)),
    "far beyond the end": GOOD + index((2**63, 16)),
    "half absent": GOOD + index((NOTHING, 16)),
    "too short": GOOD + index((0, 15)),
    "too long": GOOD + index((0, 2**62)),
}


@pytest.mark.parametrize("value", DAMAGED.values(), ids=DAMAGED)
@pytest.mark.parametrize("large", [False, True])
def test_a_damaged_shard_is_named(store: Any, value: bytes, large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetches_module, "_INDEX_FIRST", 0 if large else 1 << 20)
    for compressor in (None, ZSTD):
        spec = orbax_spec((4,), (4,), F4, compressor=compressor)
        with pytest.raises(CorruptDataError, match="'w': chunk b'w/c/0'") as caught:
            read_array(store({b"w/c/0": value}), "w", spec)
        assert caught.value.key == b"w/c/0"
    several = spec_of((8,), (4,), (8,))
    with pytest.raises(CorruptDataError, match="w/c/0"):
        read_array(store({b"w/c/0": value}), "w", several)


def test_a_checksum_finds_one_flipped_bit(store: Any) -> None:
    array = numbers(100)
    for compressor, checksums in ((None, (False, True)), (ZSTD, (False, True)), (ZSTD, (True, False))):
        for shards in (None, (100,), (200,)):
            spec = spec_of(array.shape, (100,), shards, compressor, checksums=checksums)
            values = stored(store, "w", array, spec)
            assert np.array_equal(read_array(values, "w", spec), array)
            damaged = bytearray(values[b"w/c/0"])
            damaged[50] ^= 1
            values[b"w/c/0"] = bytes(damaged)
            with pytest.raises(CorruptDataError, match="w/c/0"):
                read_array(values, "w", spec)
    with pytest.raises(CorruptDataError, match="no room for a checksum"):
        read_array(store({b"w/c/0": b"abc"}), "w", spec_of((9,), (9,), None, ZSTD, checksums=(False, True)))


@given(st.data())
def test_any_bytes_for_a_shard_are_read_or_refused(store: Any, data: st.DataObject) -> None:
    compressor = data.draw(st.sampled_from([None, ZSTD]))
    shards, at_start = data.draw(st.sampled_from([(4,), (8,)])), data.draw(st.booleans())
    sharding = {"index_at_start": at_start, "index_checksum": data.draw(st.integers(0, 3)) == 0}
    spec = spec_of((8,), (4,), shards, compressor, sharding=sharding)
    values = stored(store, "w", numbers(8), spec)
    damaged = bytearray(values[b"w/c/0"])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    values[b"w/c/0"] = bytes(damaged)
    for cut in (..., np.s_[1:2]):
        for missing in ("error", "fill"):
            with suppress(CorruptDataError):
                assert read_array(values, "w", spec, cut, missing=missing).dtype == F4


def test_a_shape_that_no_shard_bears_out_costs_nothing(store: Any) -> None:
    huge = spec_of((2**60,), (2**20,), (2**40,))
    values = store({b"w/c/0": b"x"})
    with pytest.raises(CorruptDataError):
        read_array(values, "w", huge, np.s_[:10])
    with pytest.raises((CorruptDataError, UnsupportedError)):
        read_array(values, "w", huge)
    many = spec_of((2**60,), (1,), (1,))
    with pytest.raises(CorruptDataError):
        read_array(values, "w", many)
    with pytest.raises(UnsupportedError):
        read_array(values, "w", many, missing="fill")


def test_the_chunks_of_an_array_that_lie_beyond_its_end_are_left_out() -> None:
    spec = spec_of((3, 5), (1, 2), (5, 8))
    (_, value) = list(encode_array("w", numbers(3, 5), spec))[1]
    size = spec.index_nbytes
    assert spec.sharding is not None
    places = decode_index(value[-size:], spec.sharding, size)[:, 1]
    assert [int(length == NOTHING) for length in places] == [0, 0, 0, 1] * 3 + [1] * 8
