from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ocdbt_py.engine.split import INTERIOR_MINIMUM, LEAF_MINIMUM, split
from ocdbt_py.format.btree import MAX_ENTRIES


def split_by_the_book(sizes: list[int], common: int, limit: int, minimum: int) -> list[tuple[int, int]]:
    """The rule as it is written down, one entry at a time."""
    runs, start, count = [], 0, len(sizes)
    while start < count:

        def size(end: int, start: int = start) -> int:
            return sum(sizes[start:end]) - (end - start - 1) * common

        parts = -(-(count - start) // MAX_ENTRIES)
        if limit:
            parts = max(parts, -(-size(count) // limit))
        target = -(-size(count) // parts)
        end = start + 1
        while end < count:
            if end - start >= MAX_ENTRIES:
                break
            if size(end) >= target and end >= start + minimum:
                if size(end) > limit and end > start + minimum:
                    end -= 1
                break
            end += 1
        runs.append((start, end))
        start = end
    return runs


@given(
    st.lists(st.integers(0, 300), max_size=60),
    st.integers(0, 20),
    st.sampled_from([0, 1, 40, 100, 500, 2000, 1 << 30]),
    st.sampled_from([LEAF_MINIMUM, INTERIOR_MINIMUM]),
)
def test_runs_end_where_the_rule_ends_them(extra: list[int], common: int, limit: int, minimum: int) -> None:
    sizes = [common + 16 + more for more in extra]  # no entry is smaller than the prefix all keys share
    assert split(np.array(sizes, np.int64), common, limit, minimum) == split_by_the_book(sizes, common, limit, minimum)


def test_a_node_never_has_more_than_2_to_the_20_entries() -> None:
    # the example of a split by count alone: empty values, keys of seven bytes, a limit that size never reaches
    runs = split(np.full(MAX_ENTRIES + 1, 7 + 16, np.int64), 2, 10**9, LEAF_MINIMUM)
    assert [stop - start for start, stop in runs] == [524289, 524288]
    assert [stop - start for start, stop in split(np.full(MAX_ENTRIES, 23, np.int64), 2, 0, LEAF_MINIMUM)] == [
        MAX_ENTRIES
    ]


def test_nothing_is_split_into_nothing() -> None:
    assert split(np.empty(0, np.int64), 0, 100, LEAF_MINIMUM) == []
