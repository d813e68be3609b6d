from __future__ import annotations

import bz2
import contextlib
import gzip
import struct
import sys
import tracemalloc
import types
import zlib
from collections.abc import Callable
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from ocdbt_py.array.codecs import Compressor, Decoder, Encoder, refuse_impossible
from ocdbt_py.errors import InvalidArgumentError, UnsupportedError

ALL = [Compressor(name, level) for name in ("zstd", "zlib", "gzip", "bz2") for level in (1, 9)]
TEXT = b"".join(b"%d, " % (i * i) for i in range(40_000))  # several zstd blocks


def decode(compressor: Compressor, data: bytes | memoryview, size: int) -> bytes:
    refuse_impossible(compressor, data, size)
    target = bytearray(size)
    Decoder().decode_into(compressor, data, memoryview(target))
    return bytes(target)


def zstd_frame(data: bytes, **options: Any) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(data)


def streamed_zstd_frame(data: bytes, **options: Any) -> bytes:
    stream = zstandard.ZstdCompressor(**options).compressobj()
    return stream.compress(data) + stream.flush()


@pytest.mark.parametrize("compressor", ALL, ids=str)
@pytest.mark.parametrize("data", [b"x", b"\0" * 100_000, TEXT], ids=["one", "zeros", "text"])
def test_what_is_encoded_is_decoded(compressor: Compressor, data: bytes) -> None:
    encoder, decoder = Encoder(), Decoder()
    for _ in range(2):  # the second time with contexts that were used
        encoded = encoder.encode(compressor, memoryview(data))
        target = bytearray(len(data))
        refuse_impossible(compressor, encoded, len(data))
        decoder.decode_into(compressor, encoded, memoryview(target))
        assert target == data


def test_each_method_writes_what_its_own_library_reads() -> None:
    encode = Encoder().encode
    assert zstandard.decompress(encode(Compressor("zstd", 3), TEXT)) == TEXT
    assert zlib.decompress(encode(Compressor("zlib"), TEXT)) == TEXT
    assert gzip.decompress(encode(Compressor("gzip"), TEXT)) == TEXT
    assert bz2.decompress(encode(Compressor("bz2"), TEXT)) == TEXT


def test_a_zstd_frame_states_its_content_size_and_carries_no_checksum() -> None:
    parameters = zstandard.get_frame_parameters(Encoder().encode(Compressor("zstd", 1), TEXT))
    assert (parameters.content_size, parameters.has_checksum) == (len(TEXT), False)


def test_a_higher_level_is_used() -> None:
    low, high = (Encoder().encode(Compressor("zstd", level), TEXT) for level in (-5, 19))
    assert len(high) < len(low)


@pytest.mark.parametrize("data", [TEXT, TEXT[:100], bytes(500_000), bytes(range(256)) * 2], ids=len)
@pytest.mark.parametrize("checksum", [False, True])
def test_every_kind_of_single_zstd_frame_is_read(data: bytes, checksum: bool) -> None:
    for frame in (zstd_frame, streamed_zstd_frame):
        for level in (-7, 1, 19):
            encoded = frame(data, level=level, write_checksum=checksum)
            assert decode(Compressor("zstd"), memoryview(encoded), len(data)) == data


def damaged(name: str) -> list[bytes]:
    methods: dict[str, Callable[[bytes], bytes]] = {
        "zstd": zstd_frame,
        "zlib": zlib.compress,
        "gzip": gzip.compress,
        "bz2": bz2.compress,
    }
    good = methods[name]
    half = len(TEXT) // 2
    whole = good(TEXT)
    return [
        b"",
        whole[:5],
        whole[: len(whole) // 2],
        whole[:-1],
        whole + b"\0",
        whole + whole,
        whole + good(b""),
        good(TEXT[:half]) + good(TEXT[half:]),
        good(TEXT[:-1]),
        good(TEXT + b"x"),
        b"not compressed at all",
        TEXT,
    ]


@pytest.mark.parametrize(
    ("name", "number"), [(name, n) for name in ("zstd", "zlib", "gzip", "bz2") for n in range(len(damaged("zlib")))]
)
def test_anything_but_one_stream_of_exactly_that_size_is_refused(name: str, number: int) -> None:
    with pytest.raises(ValueError):
        decode(Compressor(name), damaged(name)[number], len(TEXT))


@pytest.mark.parametrize(
    "data",
    [
        streamed_zstd_frame(TEXT, write_checksum=True)[:-2],
        zstd_frame(TEXT, write_checksum=True)[:-4] + b"\0\0\0\0",
        b"\x50\x2a\x4d\x18\x02\0\0\0ab" + zstd_frame(TEXT),
        zstd_frame(TEXT) + b"\x50\x2a\x4d\x18\x02\0\0\0ab",
        streamed_zstd_frame(TEXT[:-1]),
        streamed_zstd_frame(TEXT + b"x"),
    ],
    ids=["cut checksum", "wrong checksum", "skippable before", "skippable after", "short stream", "long stream"],
)
def test_zstd_frames_are_held_to_the_last_byte(data: bytes) -> None:
    with pytest.raises(ValueError):
        decode(Compressor("zstd"), data, len(TEXT))


@pytest.mark.parametrize("name", ["zlib", "gzip"])
def test_a_wrong_checksum_is_refused(name: str) -> None:
    data = bytearray(Encoder().encode(Compressor(name), TEXT))
    data[-8 if name == "gzip" else -1] ^= 1
    with pytest.raises(ValueError, match="damaged"):
        decode(Compressor(name), bytes(data), len(TEXT))


@pytest.mark.parametrize("name", ["zstd", "zlib", "gzip", "bz2"])
def test_a_bomb_allocates_no_more_than_its_declared_size(name: str) -> None:
    bomb = Encoder().encode(Compressor(name), bytes(64 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError):
            decode(Compressor(name), bomb, 1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["zstd", "zlib", "gzip", "bz2"])
@pytest.mark.parametrize("size", [1 << 40, (1 << 63) - 1])
def test_a_size_that_so_few_bytes_cannot_hold_is_refused_before_memory_is_set_aside(name: str, size: int) -> None:
    with pytest.raises(ValueError):
        refuse_impossible(Compressor(name), Encoder().encode(Compressor(name), TEXT), size)


@pytest.mark.parametrize("compressor", ALL, ids=str)
def test_the_densest_data_there_is_counts_as_possible(compressor: Compressor) -> None:
    size = 20_000_000
    refuse_impossible(compressor, Encoder().encode(compressor, bytes(size)), size)


def test_a_stated_content_size_that_differs_is_refused_without_decoding() -> None:
    with pytest.raises(ValueError, match="at most"):
        refuse_impossible(Compressor("zstd"), zstd_frame(bytes(1000)), 1001)


@given(st.binary(max_size=60), st.sampled_from(ALL), st.integers(1, 300))
def test_random_bytes_are_refused_or_decoded(data: bytes, compressor: Compressor, size: int) -> None:
    if compressor.id == "zstd":
        data = b"\x28\xb5\x2f\xfd" + data
    with contextlib.suppress(ValueError):
        assert len(decode(compressor, data, size)) == size


@given(st.sampled_from(ALL), st.data())
def test_flipped_bytes_are_refused_or_decoded(compressor: Compressor, data: st.DataObject) -> None:
    content = TEXT[:3000]
    encoded = bytearray(Encoder().encode(compressor, content))
    for _ in range(data.draw(st.integers(1, 3))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(ValueError):
        assert len(decode(compressor, bytes(encoded), len(content))) == len(content)


def blosc_header(decoded: int, encoded: int) -> bytes:
    return struct.pack("<4B3I", 2, 1, 0, 4, decoded, decoded, encoded)


def test_blosc_goes_to_numcodecs_blosc_with_the_declared_room_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("numcodecs.blosc")

    def decompress(data: bytes, target: memoryview) -> None:
        target[:] = data[16:] * 2

    module.decompress = decompress  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "numcodecs", types.ModuleType("numcodecs"))
    monkeypatch.setitem(sys.modules, "numcodecs.blosc", module)
    assert decode(Compressor("blosc"), blosc_header(6, 19) + b"abc", 6) == b"abcabc"
    for data in (b"", blosc_header(7, 19) + b"abc", blosc_header(6, 20) + b"abc"):
        with pytest.raises(ValueError, match="blosc"):
            decode(Compressor("blosc"), data, 6)


def test_without_numcodecs_blosc_is_unsupported_and_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "numcodecs.blosc", None)
    with pytest.raises(UnsupportedError, match="pip install numcodecs"):
        decode(Compressor("blosc"), blosc_header(6, 16), 6)


def test_blosc_is_not_written() -> None:
    with pytest.raises(UnsupportedError, match="only read"):
        Encoder().encode(Compressor("blosc"), b"abc")


@pytest.mark.parametrize(("name", "level"), [("zstd", 23), ("zstd", -131073), ("zlib", 10), ("gzip", -1), ("bz2", 0)])
def test_levels_outside_a_methods_range_are_refused(name: str, level: int) -> None:
    with pytest.raises(InvalidArgumentError, match=f"Level {level} of {name}"):
        Compressor(name, level)


def test_unknown_methods_are_unsupported() -> None:
    with pytest.raises(UnsupportedError, match="pickle"):
        Compressor("pickle")
