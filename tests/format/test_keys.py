"""Shared prefixes: found the same by the loop and by the matrix, whatever the keys look like."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocdbt_py.format.datafile import common_prefix_length
from ocdbt_py.format.keys import common_prefix_lengths

MANY = 5000  # keys, more than one block


@pytest.mark.parametrize(
    "keys",
    [
        [],
        [b""],
        [b"a"],
        [b"", b"a", b"ab", b"b"],
        [b"%08d/.zarray" % number for number in range(MANY)],
        [b"%d" % number for number in range(MANY)],
        [b"a" * length for length in range(300)],
        [b"\0" * length for length in range(300)],  # as rows padded with zeros, all alike
        [b"k" + b"\0" * length + b"\1" for length in reversed(range(40))],
        [b"\xff" * 8 + bytes([byte]) for byte in range(256)],
        [bytes([0x7F + number // 128]) * 20 + b"%03d" % number for number in range(200)],
        [b"a" * 65535, *(b"b%02d" % number for number in range(50)), b"c" * 65535],  # too wide for a matrix
        [b"same"] * 20,
    ],
    ids=lambda keys: f"{len(keys)} keys",
)
def test_neighbours_share_what_they_share(keys: list[bytes]) -> None:
    lengths = common_prefix_lengths(keys)
    assert lengths.tolist() == [common_prefix_length(a, b) for a, b in pairwise(keys)]


@given(st.lists(st.binary(max_size=20) | st.text("ab\0", max_size=20).map(str.encode), max_size=60))
def test_neighbours_share_what_they_share_in_any_order(keys: list[bytes]) -> None:
    lengths = common_prefix_lengths(keys)
    assert lengths.tolist() == [common_prefix_length(a, b) for a, b in pairwise(keys)]
