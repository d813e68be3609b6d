"""Keys of a leaf, cut at once or left as columns: the same are accepted, with the same answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocdbt_py.errors import CorruptDataError
from ocdbt_py.format import key_column, keys
from ocdbt_py.format.datafile import common_prefix_length
from ocdbt_py.format.key_column import KeyColumn, search
from ocdbt_py.format.keys import MAX_KEY_LENGTH, decode_keys, encode_keys
from ocdbt_py.format.primitives import Reader, encode_varint_column

KEYS = st.binary(max_size=6) | st.text("ab\0\xff", max_size=8).map(lambda text: text.encode("latin-1"))
INCREASING = st.sets(KEYS, min_size=3, max_size=40).map(sorted)
PREFIXES = st.sampled_from([b"", b"\0", b"block/"])


@pytest.fixture(autouse=True, scope="module")
def small_is_large() -> Iterator[None]:
    """Three keys are then a large leaf, and more than one run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keys, "LARGE", 2)
        patch.setattr(key_column, "_RUN", 2)
        yield


def stored(found: Sequence[bytes], shared: Sequence[int]) -> bytes:
    """Keys as a writer stores them that says so of what they share."""
    cuts = [0, *shared]
    suffixes = [key[cut:] for key, cut in zip(found, cuts, strict=True)]
    return encode_varint_column(shared) + encode_varint_column([len(s) for s in suffixes]) + b"".join(suffixes)


def greatest(found: Sequence[bytes]) -> list[int]:
    return [common_prefix_length(a, b) for a, b in pairwise(found)]


def decoded(
    data: bytes, count: int, prefix: bytes = b"", *, at_once: bool = False, budget: int = 1 << 30
) -> tuple[Sequence[bytes], int, int]:
    """The keys, what they leave of the data and of the memory."""
    reader = Reader(data, "B-tree node", budget=budget)
    with pytest.MonkeyPatch.context() as patch:
        if at_once:
            patch.setattr(keys, "LARGE", count)
        found, _ = decode_keys(reader, count, prefix, interior=False)
    return found, reader.remaining, reader.budget


def outcome(data: bytes, count: int, prefix: bytes, *, at_once: bool) -> object:
    try:
        found, remaining, budget = decoded(data, count, prefix, at_once=at_once)
    except CorruptDataError as error:
        return str(error), error.offset
    return list(found), remaining, budget


@given(INCREASING, PREFIXES, st.lists(KEYS, max_size=5))
def test_keys_are_the_same_and_found_the_same(found: list[bytes], prefix: bytes, wanted: list[bytes]) -> None:
    data = stored(found, greatest(found)) + b"rest"
    column, *left = decoded(data, len(found), prefix)
    cut, *left_at_once = decoded(data, len(found), prefix, at_once=True)
    assert isinstance(column, KeyColumn)
    assert isinstance(cut, list)
    assert left == left_at_once
    for key in [*wanted, *(prefix + key for key in wanted), *cut]:
        assert search(column, key) == search(cut, key)
    assert list(column) == cut == [prefix + key for key in found]
    assert b"".join(encode_keys(column, len(prefix))) == b"".join(encode_keys(cut, len(prefix))) == data[:-4]


@given(INCREASING, st.data())
def test_keys_that_share_more_than_is_stored_are_cut_at_once(found: list[bytes], data: st.DataObject) -> None:
    shared = [data.draw(st.integers(0, most)) for most in greatest(found)]
    body = stored(found, shared)
    column, *_ = decoded(body, len(found))
    assert list(column) == found
    assert isinstance(column, KeyColumn) == (shared == greatest(found))


@given(
    INCREASING,
    PREFIXES,
    st.lists(st.tuples(st.integers(0, 500), st.integers(0, 2), st.binary(max_size=2)), min_size=1, max_size=4),
)
def test_damaged_keys_are_refused_or_read_the_same(
    found: list[bytes], prefix: bytes, changes: list[tuple[int, int, bytes]]
) -> None:
    data = stored(found, greatest(found))
    for place, removed, inserted in changes:
        place %= len(data) + 1
        data = data[:place] + inserted + data[place + removed :]
    assert outcome(data, len(found), prefix, at_once=False) == outcome(data, len(found), prefix, at_once=True)


@given(st.lists(KEYS, min_size=3, max_size=10))
def test_keys_in_any_order_are_refused_or_read_the_same(found: list[bytes]) -> None:
    data = stored(found, greatest(found))
    assert outcome(data, len(found), b"", at_once=False) == outcome(data, len(found), b"", at_once=True)


@pytest.mark.parametrize(
    "found",
    [
        [b"ab", b"abc", b"abd", b"aa"],  # less than a key two rows before
        [b"abc", b"abcd", b"ab", b"b"],  # the beginning of the key before
        [b"a", b"b", b"b", b"c"],
        [b"", b"", b"a"],
        [b"a\xff", b"a\xff\0", b"a\xfe", b"b"],
    ],
)
def test_keys_that_do_not_increase_are_corrupt(found: list[bytes]) -> None:
    with pytest.raises(CorruptDataError, match="is not greater than key"):
        decoded(stored(found, greatest(found)), len(found))


def test_a_key_that_shares_more_than_there_is_before_is_corrupt() -> None:
    with pytest.raises(CorruptDataError, match="key 2 shares 2 bytes of a key of 1"):
        decoded(stored([b"a", b"b", b"b?c"], [0, 2]), 3)


def test_a_full_key_may_not_be_too_long() -> None:
    found = [b"a", b"b" * MAX_KEY_LENGTH, b"c"]
    data = stored(found, greatest(found))
    assert isinstance(decoded(data, 3)[0], KeyColumn)
    with pytest.raises(CorruptDataError, match=f"key 1 has {MAX_KEY_LENGTH + 1} bytes"):
        decoded(data, 3, b"x")


def test_uncut_keys_need_the_memory_of_cut_ones() -> None:
    found = [b"a" * 1000 + bytes([last]) for last in range(100)]
    data = stored(found, greatest(found))
    needed = (1 << 30) - decoded(data, len(found))[2]
    assert needed > 100_000
    decoded(data, len(found), budget=needed)
    with pytest.raises(CorruptDataError, match="beyond the limit"):
        decoded(data, len(found), budget=needed - 1)


def test_keys_that_share_too_many_different_lengths_are_cut_at_once() -> None:
    found = sorted([b"a" * n + b"b" for n in range(600)] + [b"a" * n + b"bc" for n in range(600)])
    column, *_ = decoded(stored(found, greatest(found)), len(found))
    assert column == found
