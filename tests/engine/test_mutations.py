from __future__ import annotations

import numpy as np
import pytest

import ocdbt_py
from ocdbt_py.engine.columns import INLINE
from ocdbt_py.engine.data_files import DataFiles
from ocdbt_py.engine.mutations import KeyRange, Mutations, Staged, stage_puts
from ocdbt_py.format.btree import LeafNode
from ocdbt_py.format.datafile import DataFileId, Location
from ocdbt_py.storage.protocol import Capabilities


class NoStorage:
    """Staging appends; it does not write."""

    capabilities = Capabilities()


def staged(mutations: Mutations, max_inline: int = 4) -> Staged:
    data_files = DataFiles(NoStorage(), "db", 0, names=lambda: "0" * 32)  # type: ignore[arg-type]
    return mutations.stage(max_inline, "d/", data_files)


def contents(found: Staged) -> dict[bytes, bytes | Location]:
    return {key: found.puts.value(i) for i, key in enumerate(found.puts.keys)}


def test_a_later_operation_wins() -> None:
    mutations = Mutations()
    mutations.put(b"a", b"1")
    mutations.put(b"b", b"2")
    mutations.put(b"c", b"3")
    mutations.delete_range(b"a", b"c")
    mutations.put(b"b", b"4")
    mutations.delete(b"c")
    mutations.put(b"d", b"5")
    found = staged(mutations)
    assert contents(found) == {b"b": b"4", b"d": b"5"}
    assert found.keys == [b"b", b"c", b"d"]
    assert found.put_ranks.tolist() == [0, 1, 1, 2]
    assert found.ranges == [KeyRange(b"a", b"c")]


def test_long_values_go_to_data_files_in_key_order_and_short_ones_stay() -> None:
    mutations = Mutations()
    mutations.update({b"c": b"12345", b"a": b"123456", b"b": b"1234"})
    found = contents(staged(mutations))
    file = DataFileId(b"", b"d/" + b"0" * 32)
    assert found == {b"a": Location(file, 0, 6), b"b": b"1234", b"c": Location(file, 6, 5)}


def test_a_location_is_taken_as_it_is() -> None:
    where = Location(DataFileId(b"ocdbt.process_0/", b"d/x"), 7, 2)
    mutations = Mutations()
    mutations.put(b"k", where)
    assert contents(staged(mutations)) == {b"k": where}


def test_a_span_takes_no_more_of_the_inline_values_than_it_needs() -> None:
    mutations = Mutations()
    mutations.update({bytes([65 + i]): bytes([97 + i]) * (i % 4) for i in range(10)})
    found = staged(mutations)
    low, high = found.span(b"C", b"H")
    part = found.puts_in(low, high)
    assert part.keys == [b"C", b"D", b"E", b"F", b"G"]
    assert [part.value(i) for i in range(5)] == [b"cc", b"ddd", b"", b"f", b"gg"]
    assert len(part.inline) == 8
    assert np.all(part.file_ids == INLINE)


@pytest.mark.parametrize(
    ("given", "merged"),
    [
        ([(b"a", b"c"), (b"b", b"d")], [(b"a", b"d")]),
        ([(b"a", b"b"), (b"c", b"d")], [(b"a", b"b"), (b"c", b"d")]),
        ([(b"c", b"d"), (b"a", b"c")], [(b"a", b"d")]),
        ([(b"b", None), (b"a", b"c")], [(b"a", None)]),
        ([(b"b", b"a"), (b"b", b"b")], []),
        ([(b"a", b"b"), (b"e", None), (b"b", b"e")], [(b"a", None)]),
    ],
)
def test_ranges_that_touch_become_one(
    given: list[tuple[bytes, bytes | None]], merged: list[tuple[bytes, bytes | None]]
) -> None:
    mutations = Mutations()
    for start, stop in given:
        mutations.delete_range(start, stop)
    assert staged(mutations).ranges == [KeyRange(*each) for each in merged]


@pytest.mark.parametrize(
    ("prefix", "stop"), [(b"", None), (b"a", b"b"), (b"a\xff", b"b"), (b"\xff\xff", None), (b"a\xfe\xff", b"a\xff")]
)
def test_the_keys_with_a_prefix_are_a_range(prefix: bytes, stop: bytes | None) -> None:
    assert KeyRange.of_prefix(prefix) == KeyRange(prefix, stop)


def test_a_key_beyond_the_limit_is_refused() -> None:
    mutations = Mutations()
    mutations.put(b"k" * 65535, b"")
    with pytest.raises(ocdbt_py.InvalidArgumentError, match="65535"):
        mutations.put(b"k" * 65536, b"")
    mutations.update({b"a": b"", b"k" * 65535: b""})
    with pytest.raises(ocdbt_py.InvalidArgumentError, match="65535"):
        mutations.update({b"a": b"", b"k" * 65536: b"", b"z": b""})


def test_puts_alone_are_staged_from_columns_and_the_last_of_a_key_counts() -> None:
    file = DataFileId(b"", b"d/x")
    puts = LeafNode(
        keys=[b"c", b"a", b"b", b"a", b"d", b"a"],
        lengths=np.array([2, 2, 3, 9, 2, 5]),
        file_ids=np.array([INLINE, INLINE, INLINE, 0, INLINE, 0]),
        offsets=np.array([0, 0, 2, 64, 0, 128]),
        inline=b"xxyyy",
        files=(file,),
    )
    found = stage_puts(puts)
    assert contents(found) == {b"a": Location(file, 128, 5), b"b": b"yyy", b"c": b"xx", b"d": b"xx"}
    assert found.keys == [b"a", b"b", b"c", b"d"]
    assert found.put_ranks.tolist() == [0, 1, 2, 3, 4]
