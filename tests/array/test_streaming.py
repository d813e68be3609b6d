"""Chunks too large to be held, with a budget so small that nearly all are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocdbt_py.array.codecs import Compressor, Decoder, Encoder, refuse_too_short
from ocdbt_py.array.metadata import encode_metadata
from ocdbt_py.array.read import read_array
from ocdbt_py.array.sharding import Sharding
from ocdbt_py.array.spec import ArraySpec, array_key
from ocdbt_py.array.streaming import slabs
from ocdbt_py.array.values import Request
from ocdbt_py.array.write import Pieces, encode_large_chunk
from ocdbt_py.errors import CorruptDataError

BUDGET = 4000
COMPRESSORS = [None, *(Compressor(name, 1) for name in ("zstd", "zlib", "gzip", "bz2"))]
ARRAY = np.random.default_rng(2).integers(0, 1 << 12, (40, 30, 20), np.int32)


def in_parts(store: Any) -> Any:
    """Values that are not read before it is known where they go, as those of a database."""

    class Values(store):  # type: ignore[misc]
        def read_many_into(self, requests: Sequence[Request], place: Any) -> Any:
            cuts = [request if isinstance(request, tuple) else (request, 0, None) for request in requests]
            buffers = place([len(self[key][start:stop]) if key in self else None for key, start, stop in cuts])
            answers = self.read_many(requests, None)
            for data, buffer in zip(answers, buffers, strict=True):
                if data is not None and buffer is not None:
                    buffer[:] = data
            return answers

    return Values()


def stored(store: Any, spec: ArraySpec, array: Any = ARRAY, large: int = 0) -> Any:
    """The keys and values of an array, each chunk made in pieces where it can be."""
    values = in_parts(store)
    made_in_pieces = False
    values[array_key("w", spec.metadata_key)] = encode_metadata(spec)
    for index in np.ndindex(spec.grid):
        value = encode_large_chunk(array, spec, index, Encoder(large))
        made_in_pieces |= isinstance(value, Pieces)
        values[array_key("w", spec.chunk_key(index))] = b"".join(value) if isinstance(value, Pieces) else bytes(value)
    assert made_in_pieces == (large == 0 and not (spec.compressor is None and spec.is_one_chunk and spec.order == "C"))
    return values


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=str)
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("byte_order", ["<", ">"])
@pytest.mark.parametrize("chunks", [(40, 30, 20), (16, 30, 7)])
def test_chunks_made_in_pieces_are_read_in_parts(
    store: Any, compressor: Compressor | None, order: Any, byte_order: Any, chunks: tuple[int, ...]
) -> None:
    spec = ArraySpec(ARRAY.shape, chunks, ARRAY.dtype, order, 7, compressor, byte_order=byte_order)
    if spec.is_one_chunk and order == "C" and compressor is None:
        values = stored(store, spec, np.asfortranarray(ARRAY), large=1 << 30)
    else:
        values = stored(store, spec)
    whole = stored(store, spec, large=1 << 30)
    decoder = Decoder()
    for key in values.keys() - {b"w/.zarray"}:  # frames may differ, their content may not
        decoded = bytearray(spec.chunk_nbytes), bytearray(spec.chunk_nbytes)
        for each, content in zip((values, whole), decoded, strict=True):
            if compressor is None:
                content[:] = each[key]
            else:
                decoder.decode_into(compressor, each[key], memoryview(content))
        assert decoded[0] == decoded[1]
    values.requests.clear()
    for index in (..., np.s_[3], np.s_[::-3, 2:, 5], np.s_[:, 7:9, ::2], np.s_[5:5]):
        np.testing.assert_array_equal(read_array(values, "w", spec, index, budget=BUDGET), ARRAY[index])
    largest = max(len(values[r[0]][r[1] : r[2]]) for r in values.requests if isinstance(r, tuple))
    assert largest <= BUDGET or (compressor is None and order == "C" and byte_order == "<")  # where it lands


@pytest.mark.parametrize("compressor", [None, Compressor("zstd", 1)], ids=str)
def test_shards_of_one_chunk_are_made_in_pieces(store: Any, compressor: Compressor | None) -> None:
    spec = ArraySpec(
        ARRAY.shape, (40, 30, 20), ARRAY.dtype, compressor=compressor, zarr_format=3, sharding=Sharding((40, 30, 20))
    )
    values = in_parts(store)
    value = encode_large_chunk(ARRAY, spec, (0, 0, 0), Encoder(0))
    assert isinstance(value, Pieces)
    values[array_key("w", spec.chunk_key((0, 0, 0)))] = b"".join(value)
    np.testing.assert_array_equal(read_array(values, "w", spec), ARRAY)


@pytest.mark.parametrize("kind", ["bool", "int4", "bfloat16"])
def test_elements_are_converted_a_slab_at_a_time(store: Any, kind: str) -> None:
    dtype = np.dtype(bool) if kind == "bool" else np.dtype(getattr(pytest.importorskip("ml_dtypes"), kind))
    array = (ARRAY % 2).astype(dtype)
    for compressor in (None, Compressor("zstd", 1)):
        spec = ArraySpec(array.shape, array.shape, dtype, "F", compressor=compressor)
        values = stored(store, spec, array)
        assert np.array_equal(read_array(values, "w", spec, budget=BUDGET), array)
        assert np.array_equal(read_array(values, "w", spec, np.s_[::2, 3], budget=BUDGET), array[::2, 3])


@pytest.mark.parametrize("compressor", COMPRESSORS[1:], ids=str)
@pytest.mark.parametrize("index", [..., np.s_[3:30:2]], ids=["in place", "through a window"])
def test_whatever_is_wrong_with_a_stream_is_corrupt_data(store: Any, compressor: Compressor, index: Any) -> None:
    spec = ArraySpec(ARRAY.shape, ARRAY.shape, ARRAY.dtype, compressor=compressor)
    good = stored(store, spec)
    frame = good[b"w/0.0.0"]
    content = bytearray(ARRAY.tobytes())
    encoder = Encoder()
    damaged = [
        (frame[:-1], "cut off|ends|early|damaged"),
        (frame[: len(frame) // 2], "cut off|ends|early|damaged"),
        (frame + b"x", "follow its|too many|more bytes|damaged"),
        (frame + frame, "follow its|too many|more bytes|damaged"),
        (encoder.encode(compressor, content + b"x"), "more bytes"),
        (encoder.encode(compressor, content[:-1]), "early|cut off"),
        (b"x" * len(frame), "damaged|cut off|early"),
        (b"", "cannot hold|not a zstd"),
    ]
    for data, reason in damaged:
        values = in_parts(store)
        values[b"w/0.0.0"] = data
        with pytest.raises(CorruptDataError, match=reason) as caught:
            read_array(values, "w", spec, index, budget=BUDGET)
        assert caught.value.key == b"w/0.0.0"


def test_a_missing_chunk_is_an_error_or_the_fill_value(store: Any) -> None:
    spec = ArraySpec(ARRAY.shape, ARRAY.shape, ARRAY.dtype, fill_value=3, compressor=Compressor("zstd", 1))
    with pytest.raises(CorruptDataError, match="missing"):
        read_array(store(), "w", spec, budget=BUDGET)
    assert (read_array(store(), "w", spec, budget=BUDGET, missing="fill") == 3).all()


def test_a_frame_says_how_large_its_content_is() -> None:
    compressor = Compressor("zstd", 1)
    pieces = [b"a" * 1000, b"b" * 2000]
    frame = b"".join(Encoder().encode_pieces(compressor, pieces, 3000))
    assert frame[4] >> 6 or frame[4] >> 5 & 1  # RFC 8878: a content size field is there
    content = bytearray(3000)
    Decoder().decode_into(compressor, frame, memoryview(content))
    assert content == b"".join(pieces)


def test_a_length_alone_refuses_what_no_encoding_could_hold() -> None:
    for compressor in COMPRESSORS[1:]:
        assert compressor is not None
        refuse_too_short(compressor, 1000, 100_000)
        with pytest.raises(ValueError, match="cannot hold"):
            refuse_too_short(compressor, 1000, 1 << 40)


@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 3)), min_size=0, max_size=4),
    st.integers(1, 300),
    st.randoms(use_true_random=False),
)
def test_slabs_are_in_order_and_hold_every_element_once(axes: list[tuple[int, int]], limit: int, random: Any) -> None:
    order = list(range(len(axes)))
    random.shuffle(order)
    strides = [0] * len(axes)
    room = 2
    for axis in order:
        size, step = axes[axis]
        strides[axis] = room * step
        room *= size * step
    shape = [size for size, _ in axes]
    seen = np.zeros(shape, int)
    end = 0
    for slab in slabs(5, shape, strides, 2, limit):
        assert slab.offset >= end
        end = slab.offset + slab.extent
        assert slab.extent <= max(limit, 2)
        seen[slab.target] += 1
    assert (seen == 1).all()
