"""Varints and columns: both spellings of each, plain and by the column."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocdbt_py.errors import CorruptDataError, InvalidArgumentError
from ocdbt_py.format.primitives import BODY_START, Reader, encode_u64_column, encode_varint, encode_varint_column

VARINTS = [
    (0, "00"),
    (1, "01"),
    (127, "7f"),
    (128, "80 01"),
    (300, "ac 02"),
    (16383, "ff 7f"),
    (16384, "80 80 01"),
    (2**32 - 1, "ff ff ff ff 0f"),
    (2**63 - 1, "ff ff ff ff ff ff ff ff 7f"),
    (2**63, "80 80 80 80 80 80 80 80 80 01"),
    (2**64 - 1, "ff ff ff ff ff ff ff ff ff 01"),
]
LONG = 100  # values, enough for the path through NumPy


def reader(data: bytes) -> Reader:
    return Reader(data, "Test")


@pytest.mark.parametrize(("value", "encoded"), VARINTS)
def test_a_varint_is_written_and_read(value: int, encoded: str) -> None:
    data = bytes.fromhex(encoded)
    assert encode_varint(value) == data
    assert reader(data).varint("x") == value


@pytest.mark.parametrize("count", [1, LONG])
@pytest.mark.parametrize(("value", "encoded"), VARINTS)
def test_a_column_is_its_varints_one_after_the_other(value: int, encoded: str, count: int) -> None:
    data = bytes.fromhex(encoded) * count
    assert encode_varint_column([value] * count) == data
    assert encode_varint_column(np.array([value] * count, np.uint64)) == data
    assert reader(data).varint_list(count, "x") == [value] * count
    assert reader(data).varints(count, "x").tolist() == [value] * count


@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 300), max_size=3 * LONG), st.binary(max_size=9))
def test_a_column_survives_the_round_trip_and_leaves_the_rest(values: list[int], rest: bytes) -> None:
    data = encode_varint_column(values)
    assert data == b"".join(map(encode_varint, values))
    source = reader(data + rest)
    assert source.varints(len(values), "x").tolist() == values
    assert source.position == len(data)
    assert source.remaining == len(rest)


@pytest.mark.parametrize(
    ("encoded", "value"), [("80 00", 0), ("80 80 80 80 00", 0), ("e4 80 00", 100), ("ff 80 00", 127)]
)
@pytest.mark.parametrize("count", [1, LONG])
@pytest.mark.parametrize("bits", [16, 32, 64])
def test_longer_spellings_than_needed_are_read(encoded: str, value: int, count: int, bits: int) -> None:
    data = bytes.fromhex(encoded) * count
    assert reader(data).varint_list(count, "x", bits) == [value] * count


@pytest.mark.parametrize(
    ("bits", "encoded", "message"),
    [
        (16, "80 80 04", "65536 does not fit 16 bits"),
        (16, "80 80 80 80 80 00", "more than 5 bytes"),
        (32, "80 80 80 80 10", "4294967296 does not fit 32 bits"),
        (32, "80 80 80 80 80 00", "more than 5 bytes"),
        (64, "80 80 80 80 80 80 80 80 80 02", "18446744073709551616 does not fit 64 bits"),
        (64, "80 80 80 80 80 80 80 80 80 80 00", "more than 10 bytes"),
        (64, "80", "ends inside a number"),
    ],
)
@pytest.mark.parametrize("before", [0, LONG])
def test_a_bad_number_is_refused_where_it_begins(bits: int, encoded: str, message: str, before: int) -> None:
    source = reader(b"\1" * before + bytes.fromhex(encoded))
    with pytest.raises(CorruptDataError, match=rf"Test: x: .*{message} \(at byte {BODY_START + before}\)") as caught:
        source.varint_list(before + 1, "x", bits)
    assert caught.value.offset == BODY_START + before


@pytest.mark.parametrize("count", [4, LONG, 2**31, 2**63])
def test_a_count_beyond_the_bytes_at_hand_is_refused_before_anything_is_read(count: int) -> None:
    source = reader(b"\1\1\1")
    with pytest.raises(CorruptDataError, match=f"{count} values announced, 3 bytes left"):
        source.varints(count, "x")
    with pytest.raises(CorruptDataError, match="bytes announced, 3 left"):
        source.u64_list(count, "x")
    with pytest.raises(CorruptDataError, match="bytes announced, 3 left"):
        source.take(count, "x")


def test_fixed_width_columns_are_little_endian() -> None:
    values = [0, 1, 2**63, 2**64 - 1]
    data = struct.pack("<4Q", *values)
    assert encode_u64_column(values) == data
    assert reader(data).u64_list(4, "x") == values


@pytest.mark.parametrize("value", [-1, 2**64])
def test_numbers_beyond_64_bits_are_not_written(value: int) -> None:
    with pytest.raises(InvalidArgumentError, match="64-bit"):
        encode_varint(value)
    with pytest.raises(InvalidArgumentError, match="64-bit"):
        encode_u64_column([value])
    for count in (1, LONG):
        with pytest.raises(InvalidArgumentError, match="64-bit"):
            encode_varint_column([value] * count)


def test_a_reader_that_is_finished_has_nothing_left() -> None:
    source = reader(b"ab")
    assert source.byte("x") == ord("a")
    with pytest.raises(CorruptDataError, match="1 bytes after the end of the data"):
        source.finish()
    source.take(1, "x")
    source.finish()


def test_a_budget_is_spent_once() -> None:
    source = Reader(b"", "Test", budget=100)
    source.charge(60, "keys")
    with pytest.raises(CorruptDataError, match=r"keys need 60 bytes of memory, beyond the limit"):
        source.charge(60, "keys")
    source.charge(40, "keys")
