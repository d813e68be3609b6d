from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocdbt_py.array.codecs import Compressor
from ocdbt_py.checkpoint.encoding import MAX_CHUNK_BYTES, Encoding, chunk_shape
from ocdbt_py.errors import InvalidArgumentError

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("shape", "target", "chunks"),
    [
        ((64, 96), 1024, (16, 16)),
        ((63, 95), 2000, (21, 19)),
        ((16, 24, 16), 3000, (8, 8, 8)),
        ((7,), 4, (1,)),
        ((), 4, ()),
        ((5, 0, 3), 1000, (5, 1, 3)),
        ((10,), 1000, (10,)),
    ],
)
def test_chunks_are_those_orbax_would_cut(shape: Any, target: int, chunks: Any) -> None:
    assert chunk_shape(shape, 4, target) == chunks


@given(st.lists(st.integers(1, 3000), max_size=3), st.integers(8, 5000))
def test_chunks_divide_the_array_and_fit_the_target(shape: list[int], target: int) -> None:
    chunks = chunk_shape(tuple(shape), 8, target)
    assert all(size % chunk == 0 for size, chunk in zip(shape, chunks, strict=True))
    assert math.prod(chunks) * 8 <= target


def test_chunks_of_a_large_prime_take_no_time() -> None:
    assert chunk_shape((2**31 - 1,), 1, 1000) == (1,)


def test_a_target_below_one_element_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="one element"):
        Encoding(None, 7).spec(np.zeros(3))


@pytest.mark.parametrize("chunk_bytes", [0, -1, 1.5, True, "1"])
def test_chunk_bytes_that_is_no_positive_number_is_refused(chunk_bytes: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="chunk_bytes"):
        Encoding(None, chunk_bytes)


@pytest.mark.parametrize("compression", ["", "gzip", "zstd:", "zstd:x", "zstd:23", "zstd:-131073", 3, "AUTO", b"zstd"])
def test_a_compression_that_is_not_known_is_refused(compression: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="compression is"):
        Encoding(compression)


@pytest.mark.parametrize(
    ("compression", "compressor"),
    [
        (None, None),
        ("zstd", Compressor("zstd", 1)),
        ("zstd:-7", Compressor("zstd", -7)),
        ("zstd:0", Compressor("zstd", 0)),
    ],
)
def test_a_compression_given_is_used_for_every_array(compression: Any, compressor: Any) -> None:
    for array in (np.zeros(()), np.zeros(10_000), RANDOM.normal(size=5000)):
        assert Encoding(compression).spec(array).compressor == compressor


@pytest.mark.parametrize(
    ("array", "pays"),
    [
        (np.zeros(100_000), True),
        (np.zeros(100_000)[::2], True),
        (np.arange(50_000), True),
        (RANDOM.integers(0, 4, (300, 300)), True),
        (np.asfortranarray(np.tile(np.arange(300), (300, 1))), True),
        (RANDOM.normal(size=100_000), False),
        (RANDOM.normal(size=(300, 300)).astype(np.float32).T, False),
        (np.frombuffer(RANDOM.bytes(200_000), np.uint8), False),
        (np.zeros(100), False),
        (np.zeros(()), False),
    ],
)
def test_auto_compresses_where_it_pays(array: Any, pays: bool) -> None:
    assert (Encoding("auto").spec(array).compressor is not None) == pays


def test_auto_looks_at_more_than_the_beginning() -> None:
    array = np.concatenate([np.zeros(20_000), RANDOM.normal(size=500_000)])
    assert Encoding("auto").spec(array).compressor is None


def test_arrays_stay_whole_up_to_the_size_of_a_data_file() -> None:
    small = np.broadcast_to(np.float32(0), (1 << 20, 100))
    large = np.broadcast_to(np.float32(0), (1 << 20, 1000))
    assert Encoding(None).spec(small).chunks == small.shape
    chunks = Encoding(None).spec(large).chunks
    assert chunks == (1 << 19, 1000)
    assert math.prod(chunks) * 4 <= MAX_CHUNK_BYTES


def test_arrays_alike_share_one_spec() -> None:
    encoding = Encoding(None)
    assert encoding.spec(np.zeros((2, 3))) is encoding.spec(np.ones((2, 3)))
    assert encoding.spec(np.zeros((2, 3))) is not encoding.spec(np.zeros((3, 2)))


def test_large_compressed_arrays_are_cut_where_their_axes_allow() -> None:
    def chunks(shape: tuple[int, ...], compression: str | None = "zstd", chunk_bytes: int | None = None) -> Any:
        array = np.broadcast_to(np.float32(0), shape)
        return Encoding(compression, chunk_bytes).spec(array).chunks

    assert chunks((8, 1 << 20)) == (4, 1 << 20)  # along the first axis: what is decoded lies in one piece
    assert chunks((1 << 22,)) == (1 << 22,)  # no more than one chunk holds
    assert chunks((16_777_259,)) == (16_777_259,)  # a prime
    assert chunks((8, 1 << 20), None) == (8, 1 << 20)
    assert chunks((8, 1 << 20), "zstd", 1 << 30) == (8, 1 << 20)
    assert chunks((8, 1 << 20), "zstd", 1 << 10) == (8, 32)


def test_an_empty_array_is_one_chunk_compressed_or_not() -> None:
    for compression in (None, "zstd"):
        assert Encoding(compression).spec(np.empty((0, 5))).chunks == (1, 5)
