"""The data file table: what is shared between neighbours, where base paths end, and whose table it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocdbt_py.errors import CorruptDataError, InvalidArgumentError
from ocdbt_py.format.datafile import (
    NO_FILE,
    DataFileId,
    common_prefix_length,
    decode_file_table,
    encode_file_table,
)
from ocdbt_py.format.primitives import Reader


def decode(data: bytes, base_path: bytes = b"", budget: int = 1 << 30) -> tuple[DataFileId, ...]:
    reader = Reader(data, "Table", budget=budget)
    files = decode_file_table(reader, base_path)
    reader.finish()
    return files


def file_id(base: str, relative: str) -> DataFileId:
    return DataFileId(base.encode(), relative.encode())


TABLES = [
    ([], "00"),
    ([NO_FILE], "01 00 00"),
    (
        [file_id("", "d/1")],
        "01"  # number of files
        "03"  # suffix length
        "00"  # base length
        "642f31",  # d/1
    ),
    (
        [file_id("", ""), file_id("", "d/12"), file_id("", "d/13")],
        "03"
        "00 03"  # shared with the path before
        "00 04 01"  # suffix lengths
        "00 00 00"  # base lengths
        "642f3132 33",  # d/12, 3
    ),
    (  # Base paths differ: nothing beyond them is shared, though the relative paths are the same.
        [file_id("ab", "xy"), file_id("abc", "xy")],
        "020204 0302 0361627879 637879",
    ),
    (  # The same path split elsewhere is another file.
        [file_id("a", "bc"), file_id("ab", "c")],
        "020103 0201 02616263 6263",
    ),
    (  # Equal base paths: the prefix goes on into the relative paths.
        [file_id("a/", "x1"), file_id("a/", "x2")],
        "020304 0102 02612f7831 32",
    ),
]


@pytest.mark.parametrize(("files", "encoded"), TABLES)
def test_a_table_is_written_and_read(files: list[DataFileId], encoded: str) -> None:
    data = bytes.fromhex(encoded)
    assert encode_file_table(files) == (data, {file: number for number, file in enumerate(files)})
    assert decode(data) == tuple(files)


def test_a_table_is_sorted_and_holds_each_file_once() -> None:
    files = [file_id(*pair) for pair in ("bd", "ac", "ab", "be", "bd")]
    data, numbers = encode_file_table(files)
    assert decode(data) == tuple(sorted(set(files)))
    assert numbers == {file_id("a", "b"): 0, file_id("a", "c"): 1, file_id("b", "d"): 2, file_id("b", "e"): 3}


@given(st.sets(st.tuples(st.text("ab/", max_size=4), st.text("ab/", max_size=4)), max_size=20))
def test_tables_survive_the_round_trip(pairs: set[tuple[str, str]]) -> None:
    files = sorted(file_id(*pair) for pair in pairs)
    assert decode(encode_file_table(files)[0]) == tuple(files)


def test_a_transitive_base_path_is_put_before_all_base_paths() -> None:
    data, _ = encode_file_table([file_id("", "y"), file_id("a", "b")])
    assert decode(data, b"x/") == (file_id("x/", "y"), file_id("x/a", "b"))
    assert decode(data, b"x/")[1].path == b"x/ab"


@pytest.mark.parametrize(
    "encoded",
    [
        "02 00 0101 0000 62 61",  # not sorted
        "02 01 0100 0000 61",  # twice the same
        "02 00 0101 0000 61 62",  # a prefix of 0 is never wrong
    ],
)
def test_tables_no_writer_makes_are_read_as_they_are(encoded: str) -> None:
    assert len(decode(bytes.fromhex(encoded))) == 2


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        ("", "number of data files"),
        ("01", "path_suffix_length: 1 values announced, 0 bytes left"),
        ("01 808004 00", "path_suffix_length: 65536 does not fit 16 bits"),
        ("01 00 808004", "base_path_length: 65536 does not fit 16 bits"),
        ("02 808004 0000 0000", "path_prefix_length: 65536 does not fit 16 bits"),
        ("01 05 06 6162636465", "base path of data file 0 has 6 of 5 bytes"),
        ("02 04 0301 0000 61626364", "data file 1 shares 4 bytes of a path of 3"),
        ("02 02 0201 0001 616263", "data file 1 shares 2 bytes across the end of a base path"),
        ("02 02 0201 0200 616263", "data file 1 shares 2 bytes across the end of a base path"),
        ("02 03 0301 0102 61626364", "data file 1 shares 3 bytes across the end of a base path"),
        ("01 03 00 6162", "3 bytes of paths announced, 2 left"),
        ("03 ffff03 ffff03 0100 01 000000", "announced"),
    ],
)
def test_a_broken_rule_is_named(encoded: str, message: str) -> None:
    with pytest.raises(CorruptDataError, match=f"Table: .*{message}"):
        decode(bytes.fromhex(encoded))


def test_a_path_has_at_most_65535_bytes_with_its_transitive_base_path() -> None:
    longest = DataFileId(b"", b"a" * 65535)
    data, _ = encode_file_table([longest])
    assert decode(data) == (longest,)
    with pytest.raises(CorruptDataError, match="path of data file 0 has 65535 bytes, more than 65534"):
        decode(data, b"z")
    with pytest.raises(InvalidArgumentError, match="65536 bytes exceeds 65535"):
        encode_file_table([DataFileId(b"a", b"a" * 65535)])


@pytest.mark.parametrize("count", ["ffffffffffffffffff01", "8080808008"])
def test_a_count_beyond_the_data_is_refused_at_once(count: str) -> None:
    with pytest.raises(CorruptDataError, match=r"data file names need .* bytes of memory"):
        decode(bytes.fromhex(count) + b"\1" * 100)


def test_paths_that_unfold_beyond_the_budget_are_refused() -> None:
    count = 1000
    data = (
        bytes.fromhex("e807")
        + bytes.fromhex("ffff03") * (count - 1)  # each shares 65535 bytes
        + bytes.fromhex("ffff03")
        + bytes(count - 1)
        + bytes(count)
        + bytes(65535)
    )
    assert len(data) < 1 << 17
    with pytest.raises(CorruptDataError, match="the paths of 1000 data files need 65535000 bytes"):
        decode(data, budget=1 << 24)
    assert len(decode(data, budget=1 << 27)) == count


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_the_common_prefix_is_as_long_as_it_can_be(a: bytes, b: bytes) -> None:
    length = common_prefix_length(a, b)
    assert a[:length] == b[:length]
    assert length == min(len(a), len(b)) or a[length] != b[length]
    assert common_prefix_length(a, a + b) == len(a)
