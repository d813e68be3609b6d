"""Frames: the two forms the reference writes, and what is not one whole frame."""

from __future__ import annotations

import tracemalloc

import pytest

from ocdbt_py.format.zstd import MAX_LEVEL, MIN_LEVEL, compress, decompress

TEXT = bytes(range(256)) * 40
LIMIT = 1 << 30

MAGIC = "28 b5 2f fd"
# Frames of one raw block. Descriptor: 20 single segment (a content size, no window), 04 checksum. Block header: 1 last
# block, type << 1 (0 raw, 1 one byte repeated), size << 3.
WITH_SIZE = bytes.fromhex(MAGIC + "20 03" + "19 00 00" + "61 62 63")
WITHOUT_SIZE = bytes.fromhex(MAGIC + "00 58" + "19 00 00" + "61 62 63")
WITH_CHECKSUM = bytes.fromhex(MAGIC + "24 03" + "19 00 00" + "61 62 63" + "99 09 77 ad")
WINDOW_128_MIB = bytes.fromhex(MAGIC + "00 88" + "19 00 00" + "61 62 63")  # what level 22 may need
WINDOW_256_MIB = bytes.fromhex(MAGIC + "00 90" + "19 00 00" + "61 62 63")
WRONG_SIZE = bytes.fromhex(MAGIC + "20 04" + "19 00 00" + "61 62 63")
SKIPPABLE = bytes.fromhex("50 2a 4d 18" + "02 00 00 00" + "00 00")
BOMB = bytes.fromhex(MAGIC + "00 58" + "02 00 10 00" * 8191 + "03 00 10 00")  # 8192 blocks of 128 KiB: 1 GiB


@pytest.mark.parametrize("level", [MIN_LEVEL, -5, 0, 3, 19, MAX_LEVEL])
@pytest.mark.parametrize("size", [0, 1, 4096, 4097, 10000])
def test_a_body_survives_the_round_trip(level: int, size: int) -> None:
    assert decompress(compress(TEXT[:size], level), size) == TEXT[:size]


def test_level_0_is_level_3() -> None:
    assert compress(TEXT, 0) == compress(TEXT, 3)


@pytest.mark.parametrize(("size", "is_recorded"), [(1, True), (4096, True), (4097, False), (10000, False)])
def test_the_content_size_is_recorded_up_to_4096_bytes(size: int, is_recorded: bool) -> None:
    descriptor = compress(TEXT[:size], 0)[4]
    size_flag, single_segment, checksum, dictionary = (
        descriptor >> 6,
        descriptor >> 5 & 1,
        descriptor >> 2 & 1,
        descriptor & 3,
    )
    assert bool(size_flag or single_segment) is is_recorded
    assert (checksum, dictionary) == (0, 0)


@pytest.mark.parametrize("frame", [WITH_SIZE, WITHOUT_SIZE, WITH_CHECKSUM, WINDOW_128_MIB])
def test_sizes_and_checksums_are_optional(frame: bytes) -> None:
    assert decompress(frame, LIMIT) == b"abc"
    assert decompress(memoryview(frame), LIMIT) == b"abc"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a zstd frame"),
        (b"abcdef", "not a zstd frame"),
        (SKIPPABLE, "not a zstd frame"),
        (SKIPPABLE + WITH_SIZE, "not a zstd frame"),
        (WITH_SIZE[:-1], "cut off"),
        (WITH_SIZE[:5], "cut off"),
        (WITH_CHECKSUM[:-1], "cut off"),
        (WITH_SIZE + b"\0", "1 bytes after the end"),
        (WITH_SIZE * 2, "12 bytes after the end"),
        (WITH_SIZE + SKIPPABLE, "10 bytes after the end"),
        (WITH_SIZE + bytes(5000), "5000 bytes after the end"),
        (compress(TEXT, 0) + bytes(5000), "5000 bytes after the end"),
        (WITH_CHECKSUM[:-1] + b"\0", "damaged"),
        (WRONG_SIZE, "damaged"),
        (WINDOW_256_MIB, "damaged"),
    ],
)
def test_anything_but_one_whole_frame_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decompress(data, LIMIT)


def test_a_bomb_stops_near_the_limit() -> None:
    tracemalloc.start()
    with pytest.raises(ValueError, match="more than 1048576 bytes when decompressed"):
        decompress(BOMB, 1 << 20)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20


def test_a_body_of_exactly_the_limit_is_read() -> None:
    data = compress(TEXT, 0)
    assert decompress(data, len(TEXT)) == TEXT
    with pytest.raises(ValueError, match="more than"):
        decompress(data, len(TEXT) - 1)


@pytest.mark.parametrize("data", [WITH_CHECKSUM[:-1] + b"\0", WITH_SIZE[:-1], WITH_SIZE + b"\0", BOMB])
def test_what_was_refused_leaves_nothing_behind_for_the_next_frame(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"damaged|cut off|after the end|more than"):
        decompress(data, 1 << 20)
    assert decompress(WITHOUT_SIZE, LIMIT) == b"abc"
    assert decompress(compress(TEXT * 10, 0), LIMIT) == TEXT * 10
    assert decompress(WITH_CHECKSUM, LIMIT) == b"abc"
