"""Keys, sizes and times as people see them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocdbt_py.view.spelling import array_type, count, moment, printable, size, spelled, unspelled


@pytest.mark.parametrize(
    ("key", "spelling"),
    [
        (b"params.w/.zarray", "params.w/.zarray"),
        ("Größe".encode(), "Größe"),
        (b"a\0b", r"a\x00b"),
        (b"\xff\xfe", r"\xff\xfe"),
        (b"back\\slash", r"back\\slash"),
        (b"\x1b[31mred", r"\x1b[31mred"),
        ("\u200b".encode(), r"\xe2\x80\x8b"),
        (b"", ""),
    ],
)
def test_a_key_is_text_with_everything_unprintable_escaped(key: bytes, spelling: str) -> None:
    assert spelled(key) == spelling
    assert unspelled(spelling) == key


@given(st.binary())
def test_the_spelling_of_any_key_is_printable_and_can_be_undone(key: bytes) -> None:
    assert spelled(key).isprintable()
    assert unspelled(spelled(key)) == key


@given(st.text())
def test_a_leaf_name_is_spelled_as_the_key_of_its_bytes(name: str) -> None:
    assert spelled(name) == spelled(name.encode("utf-8", "surrogatepass"))


def test_an_escape_that_is_none_stands_for_itself() -> None:
    assert unspelled(r"a\b\x1") == rb"a\b\x1"


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (99_940, "99.9 kB"),
        (99_960, "100 kB"),
        (999_499, "999 kB"),
        (999_500, "1.0 MB"),
        (497_800_000, "498 MB"),
        (3 * 10**21, "3000 EB"),
    ],
)
def test_sizes_have_two_or_three_digits_and_a_unit(nbytes: int, text: str) -> None:
    assert size(nbytes) == text


def test_counts_know_one_from_many() -> None:
    assert count(1, "key") == "1 key"
    assert count(12_000, "key") == "12,000 keys"
    assert count(2, "leaf", "leaves") == "2 leaves"


def test_array_types_show_dtype_and_shape() -> None:
    assert array_type("float32", (784, 128)) == "float32[784, 128]"
    assert array_type("int32", ()) == "int32"


def test_times_are_shown_in_utc() -> None:
    assert moment(datetime(2026, 1, 31, 12, 0, 5, 999, tzinfo=UTC)) == "2026-01-31 12:00:05 UTC"
    assert moment(datetime(2026, 1, 31, 12, 0, tzinfo=timezone(timedelta(hours=2)))) == "2026-01-31 10:00:00 UTC"


def test_foreign_text_cannot_steer_the_terminal() -> None:
    assert printable("two\nlines\x1b[2J\x07") == "two\nlines\\x1b[2J\\x07"
