"""``KEY[slice]`` as typed."""

from __future__ import annotations

import numpy as np
import pytest

from ocdbt_py.cli.selection import byte_range, parse_selection, readings
from ocdbt_py.errors import InvalidArgumentError


@pytest.mark.parametrize(
    ("text", "selection"),
    [
        ("0", (0,)),
        ("-1", (-1,)),
        (" 3 , 4 ", (3, 4)),
        ("0:10, ::2", (slice(0, 10), slice(None, None, 2))),
        ("::-1", (slice(None, None, -1),)),
        (":", (slice(None),)),
        ("5:", (slice(5, None),)),
        ("..., 1", (..., 1)),
        ("None, 2", (None, 2)),
        ("newaxis, np.newaxis", (None, None)),
        ("1,", (1,)),
    ],
)
def test_a_selection_is_read_as_numpy_reads_it(text: str, selection: tuple[object, ...]) -> None:
    assert parse_selection(text) == selection


@pytest.mark.parametrize("text", ["0", "-1, 2", "0:2, ::2", "::-1", "..., 1", "None, 1", "1, :", ":, None, 1:"])
def test_a_selection_means_what_python_means_by_it(text: str) -> None:
    array = np.arange(24).reshape(4, 6)
    expected = eval(f"array[{text}]", {"array": array, "None": None})  # the test may evaluate; the command never does
    assert np.array_equal(array[parse_selection(text)], expected)


@pytest.mark.parametrize(
    "text",
    ["", "a", "1:2:3:4", "::0", "1 2", "1.5", "..., ...", "[1]", "__import__('os')", "1,,2", "9" * 40, "0x1", "٣"],
)
def test_what_is_no_selection_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError):
        parse_selection(text)


def test_a_name_with_brackets_is_first_of_all_a_name() -> None:
    assert list(readings("a[0]")) == [("a[0]", None), ("a", (0,))]
    assert list(readings("a[b]c")) == [("a[b]c", None)]
    assert list(readings("a[0][1:2]")) == [("a[0][1:2]", None), ("a[0]", (slice(1, 2),))]


@pytest.mark.parametrize(
    ("text", "expected"), [("2:5", (2, 5)), (":", (0, None)), ("3:", (3, None)), ("-4:", (-4, None))]
)
def test_part_of_a_value_is_one_slice_without_a_step(text: str, expected: tuple[int, int | None]) -> None:
    assert byte_range(parse_selection(text), "k") == expected


@pytest.mark.parametrize("text", ["1", "::2", "1:2, 3:4", "-4:-1", "..."])
def test_other_selections_of_bytes_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="START:STOP"):
        byte_range(parse_selection(text), "k")
