"""Columns of keys: the same sequence as a list of them, however they are cut, searched, divided and merged."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ocdbt_py.errors import InvalidArgumentError
from ocdbt_py.format import key_column
from ocdbt_py.format.datafile import common_prefix_length
from ocdbt_py.format.key_column import KeyColumn, cut_for, key_lengths, merge_keys, search, taken_apart

MANY = 5000  # keys, more than one block

KEYS = st.binary(max_size=6) | st.text("ab\0\xff", max_size=8).map(lambda text: text.encode("latin-1"))
INCREASING = st.sets(KEYS, min_size=1, max_size=40).map(sorted)
LIKE_A_CHECKPOINT = sorted(b"block_%d/item_%d/w" % (i // 100, i % 100) for i in range(MANY))


@pytest.fixture(autouse=True, scope="module", params=[0, 4096], ids=["cut", "kept"])
def short_runs(request: pytest.FixtureRequest) -> Iterator[None]:
    """A few keys then make several runs, unless the column keeps all of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(key_column, "_RUN", 3)
        patch.setattr(key_column, "_KEPT", request.param)
        yield


def columns(column: KeyColumn) -> tuple[list[int], list[int], bytes]:
    return column.shared.tolist(), column.starts.tolist(), column.suffixes


@given(INCREASING)
def test_a_column_is_the_sequence_of_its_keys(keys: list[bytes]) -> None:
    column = KeyColumn.of(keys)
    assert len(column) == len(keys)
    assert key_lengths(column).tolist() == list(map(len, keys))
    for i in range(-len(keys), len(keys)):
        assert KeyColumn.of(keys)[i] == keys[i]
    for i in (len(keys), -len(keys) - 1):
        with pytest.raises(IndexError):
            column[i]
    assert list(column) == keys


@given(INCREASING, st.slices(40))
def test_a_slice_is_a_list_of_keys(keys: list[bytes], part: slice) -> None:
    assert KeyColumn.of(keys)[part] == keys[part]


@given(INCREASING, st.lists(KEYS, max_size=10))
def test_a_search_finds_what_bisection_does(keys: list[bytes], wanted: list[bytes]) -> None:
    column = KeyColumn.of(keys)
    for key in [*wanted, *keys]:
        assert search(column, key) == search(keys, key) == bisect_left(keys, key)


@given(INCREASING, st.data())
def test_a_part_is_the_column_of_its_keys(keys: list[bytes], data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(keys) - 1))
    stop = data.draw(st.integers(start + 1, len(keys)))
    part = KeyColumn.of(keys).part(start, stop)
    assert list(part) == keys[start:stop]
    assert columns(part) == columns(KeyColumn.of(keys[start:stop]))


def test_a_search_cuts_one_run_and_a_slice_the_runs_it_touches() -> None:
    column = KeyColumn.of(LIKE_A_CHECKPOINT)
    search(column, b"block_17/item_5/w")
    assert len(column._cut) == 1
    assert column[3:9] == LIKE_A_CHECKPOINT[3:9]
    assert len(column._cut) == 3


def test_many_searches_are_made_in_a_list() -> None:
    column = KeyColumn.of(LIKE_A_CHECKPOINT)
    assert cut_for(1, column) is column
    assert cut_for(MANY, column) == LIKE_A_CHECKPOINT


@pytest.mark.parametrize("keys", [[b"b", b"a"], [b"a", b"a"], [b"ab", b"a"], [b"a", b"c", b"b", b"d"]])
def test_keys_that_do_not_increase_are_refused(keys: list[bytes]) -> None:
    with pytest.raises(InvalidArgumentError, match="strictly increasing"):
        KeyColumn.of(keys)


# Merging


def numbered(old: list[bytes], removed: set[bytes], new: list[bytes]) -> tuple[list[bytes], np.ndarray]:
    """The keys that stay and come, and their numbers; a new one comes for an old one that is the same."""
    numbers = {key: i for i, key in enumerate(old) if key not in removed}
    numbers |= {key: len(old) + i for i, key in enumerate(new)}
    keys = sorted(numbers)
    return keys, np.array([numbers[key] for key in keys], np.int64)


@example([b"a", b"ab", b"b"], {2}, [], 0)
@example([b"a", b"ab", b"b"], {0}, [], 0)
@example([b"a", b"ab", b"b"], set(), [b"aa", b"c"], 0)
@given(INCREASING, st.sets(st.integers(0, 39)), st.sets(KEYS, max_size=5).map(sorted), st.sampled_from([0, 8]))
def test_a_merged_column_is_the_column_of_the_merged_keys(
    old: list[bytes], removed: set[int], new: list[bytes], spliced: int
) -> None:
    keys, order = numbered(old, {old[i] for i in removed if i < len(old)}, new)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(key_column, "_SPLICED", spliced)  # 0: however much changes
        merged = merge_keys(KeyColumn.of(old), new, order)
    assert list(merged) == keys
    if isinstance(merged, KeyColumn):
        assert columns(merged) == columns(KeyColumn.of(keys))


def test_few_changes_to_many_keys_are_spliced() -> None:
    column: KeyColumn | list[bytes] = KeyColumn.of(LIKE_A_CHECKPOINT)
    keys = LIKE_A_CHECKPOINT
    choose = random.Random(1)
    for step in range(30):
        removed = set(choose.sample(keys, 5))
        new = sorted({choose.choice(keys) + b"%d" % step, b"block_%d" % step, choose.choice(keys)})
        keys, order = numbered(keys, removed, new)
        assert isinstance(column, KeyColumn)
        column = merge_keys(column, new, order)  # type: ignore[assignment]
    assert isinstance(column, KeyColumn)
    assert list(column) == keys
    assert columns(column) == columns(KeyColumn.of(keys))


def test_keys_that_only_replace_themselves_leave_the_column_as_it_is() -> None:
    column = KeyColumn.of(LIKE_A_CHECKPOINT)
    new = LIKE_A_CHECKPOINT[10:13]
    _, order = numbered(LIKE_A_CHECKPOINT, set(), new)
    assert merge_keys(column, new, order) is column


def test_a_merged_list_is_a_list() -> None:
    assert merge_keys([b"a", b"c"], [b"b"], np.array([0, 2, 1])) == [b"a", b"b", b"c"]


@pytest.mark.parametrize("order", [[1, 0], [0, 0], [0, 1, 2, 2], [4, 0], [0, 1, 4]])
def test_keys_merged_out_of_order_are_refused(order: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(key_column, "_SPLICED", 0)
        with pytest.raises(InvalidArgumentError, match="strictly increasing"):
            merge_keys(KeyColumn.of([b"a", b"b", b"c"]), [b"a", b"b"], np.array(order))


# Taking apart


@pytest.mark.parametrize(
    "keys",
    [
        [],
        [b""],
        [b"a"],
        [b"", b"a", b"ab", b"b"],
        [b"%08d/.zarray" % number for number in range(MANY)],
        sorted(b"%d" % number for number in range(MANY)),
        [b"a" * length for length in range(300)],
        [b"\0" * length for length in range(300)],  # as rows padded with zeros, all alike
        [b"k" + b"\0" * length + b"\1" for length in reversed(range(40))],
        [b"x" * 90 + b"%02d" % number + b"y" * (number % 12) for number in range(100)],  # about as wide as is narrow
        [b"\xff" * 8 + bytes([byte]) for byte in range(256)],
        [bytes([0x7F + number // 128]) * 20 + b"%03d" % number for number in range(200)],
        [b"a" * 65535, *(b"b%02d" % number for number in range(50)), b"c" * 65535],  # too wide for a matrix
    ],
    ids=lambda keys: f"{len(keys)} keys",
)
def test_keys_are_taken_apart_where_neighbours_differ(keys: list[bytes]) -> None:
    shared, lengths, suffixes = taken_apart(keys)
    assert shared.tolist() == [common_prefix_length(a, b) for a, b in pairwise([b"", *keys])]
    assert lengths.tolist() == list(map(len, keys))
    assert suffixes == b"".join([key[same:] for key, same in zip(keys, shared.tolist(), strict=True)])


@given(st.sets(st.binary(max_size=20) | st.text("ab\0", max_size=20).map(str.encode), max_size=60).map(sorted))
def test_any_keys_are_taken_apart_where_neighbours_differ(keys: list[bytes]) -> None:
    shared, _, suffixes = taken_apart(keys)
    assert shared.tolist() == [common_prefix_length(a, b) for a, b in pairwise([b"", *keys])]
    assert suffixes == b"".join([key[same:] for key, same in zip(keys, shared.tolist(), strict=True)])


def test_the_one_key_that_is_out_of_order_is_found_wherever_it_is() -> None:
    keys = [b"%08d" % number for number in range(MANY)]
    for at in (1, 4095, 4096, 4097, MANY - 1):
        with pytest.raises(InvalidArgumentError, match="strictly increasing"):
            taken_apart([*keys[: at - 1], keys[at], keys[at - 1], *keys[at + 1 :]])
