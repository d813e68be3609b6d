"""B-tree nodes: the worked example of the format document, every rule, and round trips of any node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ocdbt_py.errors import CorruptDataError, InvalidArgumentError
from ocdbt_py.format.btree import (
    InteriorNode,
    LeafNode,
    decode_btree_node,
    encode_interior_node,
    encode_leaf_node,
)
from ocdbt_py.format.config import Zstd
from ocdbt_py.format.datafile import DataFileId, Location
from ocdbt_py.format.envelope import BTREE_NODE_MAGIC, encode_envelope
from ocdbt_py.format.primitives import encode_varint

FILE_A = DataFileId(b"", b"d/4784840966eeba3923de56498d505d8e")
FILE_B = DataFileId(b"", b"d/76f5c7f4809113f5b3cd7447122c81ed")


def i64(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


def u64(*values: int) -> NDArray[np.uint64]:
    return np.array(values, np.uint64)


def leaf(entries: Sequence[tuple[bytes, bytes | Location]]) -> LeafNode:
    inline = b""
    rows = []
    files = sorted({value.file for _, value in entries if isinstance(value, Location)})
    for _, value in entries:
        if isinstance(value, Location):
            rows.append((value.length, files.index(value.file), value.offset))
        else:
            rows.append((len(value), -1, len(inline)))
            inline += value
    lengths, file_ids, offsets = zip(*rows, strict=True)
    return LeafNode([key for key, _ in entries], i64(*lengths), i64(*file_ids), i64(*offsets), inline, tuple(files))


def columns(node: LeafNode | InteriorNode) -> dict[str, Any]:
    """All fields, arrays as lists with their dtype."""
    values = {field.name: getattr(node, field.name) for field in fields(node)}
    return {
        name: (value.dtype, value.tolist()) if isinstance(value, np.ndarray) else value
        for name, value in values.items()
    }


def encode(node: LeafNode | InteriorNode, excluded: int = 0, compression: Zstd | None = None) -> bytes:
    if isinstance(node, LeafNode):
        return encode_leaf_node(node, excluded=excluded, compression=compression)
    return encode_interior_node(node, excluded=excluded, compression=compression)


ROOT = InteriorNode(
    height=2,
    keys=[b"app", b"b"],
    subtree_prefix_lengths=i64(3, 0),
    file_ids=i64(0, 1),
    offsets=i64(119, 37),
    lengths=i64(76, 66),
    num_keys=u64(2, 3),
    num_tree_bytes=u64(165, 103),
    num_indirect_value_bytes=u64(6, 0),
    files=(FILE_A, FILE_B),
)
ROOT_BYTES = bytes.fromhex(
    "0cdb20de"  # magic
    "7200000000000000"  # length = 114
    "00"  # format version
    "00"  # compression method
    "02"  # height
    "02"  # table: num_files
    "02"  # path_prefix_length[1]
    "22 20"  # path_suffix_length
    "00 00"  # base_path_length
    "642f3437383438343039363665656261333932336465353634393864353035643865"  # path_suffix[0]
    "3736663563376634383039313133663562336364373434373132326338316564"  # path_suffix[1], without d/
    "02"  # num_entries
    "00"  # key_prefix_length[1]
    "03 01"  # key_suffix_length
    "03 00"  # subtree_common_prefix_length
    "617070 62"  # key_suffix: app, b
    "00 01"  # child file id
    "77 25"  # child offset
    "4c 42"  # child length
    "02 03"  # num_keys
    "a501 67"  # num_tree_bytes
    "06 00"  # num_indirect_value_bytes
    "1c6ed1e2"  # CRC-32C
)

INNER = InteriorNode(
    height=1,
    keys=[b"app", b"apple"],
    subtree_prefix_lengths=i64(3, 5),
    file_ids=i64(0, 0),
    offsets=i64(6, 33),
    lengths=i64(27, 62),
    num_keys=u64(1, 1),
    num_tree_bytes=u64(27, 62),
    num_indirect_value_bytes=u64(0, 6),
    files=(FILE_A,),
)
INNER_BYTES = bytes.fromhex(
    "0cdb20de"  # magic
    "4c00000000000000"  # length = 76
    "00"  # format version
    "00"  # compression method
    "01"  # height
    "01"  # table: num_files
    "22"  # path_suffix_length
    "00"  # base_path_length
    "642f3437383438343039363665656261333932336465353634393864353035643865"  # path_suffix
    "02"  # num_entries
    "00"  # key_prefix_length[1]
    "00 02"  # key_suffix_length
    "00 02"  # subtree_common_prefix_length
    "6c65"  # key_suffix: nothing, le
    "00 00"  # child file id
    "06 21"  # child offset
    "1b 3e"  # child length
    "01 01"  # num_keys
    "1b 3e"  # num_tree_bytes
    "00 06"  # num_indirect_value_bytes
    "273166ba"  # CRC-32C
)

INLINE_LEAF_BYTES = bytes.fromhex(
    "0cdb20de"  # magic
    "1b00000000000000"  # length = 27
    "00"  # format version
    "00"  # compression method
    "00"  # height
    "00"  # table: num_files
    "01"  # num_entries
    "00"  # key_suffix_length; no key_suffix
    "03"  # value_length
    "00"  # value_kind = inline
    "6f6e65"  # value
    "e7c07503"  # CRC-32C
)

INDIRECT_LEAF_BYTES = bytes.fromhex(
    "0cdb20de"  # magic
    "3e00000000000000"  # length = 62
    "00"  # format version
    "00"  # compression method
    "00"  # height
    "01"  # table: num_files
    "22"  # path_suffix_length
    "00"  # base_path_length
    "642f3437383438343039363665656261333932336465353634393864353035643865"  # path_suffix
    "01"  # num_entries
    "00"  # key_suffix_length; no key_suffix
    "06"  # value_length
    "01"  # value_kind = indirect
    "00"  # file id
    "00"  # offset
    "221e5480"  # CRC-32C
)

THREE_INLINE_BYTES = bytes.fromhex(
    "0cdb20de"  # magic
    "2500000000000000"  # length = 37
    "00"  # format version
    "00"  # compression method
    "00"  # height
    "00"  # table: num_files
    "03"  # num_entries
    "00 00"  # key_prefix_length[1..]
    "01 01 01"  # key_suffix_length
    "62 63 64"  # key_suffix
    "00 01 01"  # value_length
    "00 00 00"  # value_kind
    "33 34"  # values: nothing, 3, 4
    "3d7707e2"  # CRC-32C
)


@pytest.mark.parametrize(
    ("node", "prefix", "data"),
    [
        (ROOT, b"", ROOT_BYTES),
        (INNER, b"app", INNER_BYTES),
        (leaf([(b"app", b"one")]), b"app", INLINE_LEAF_BYTES),
        (leaf([(b"apple", Location(FILE_A, 0, 6))]), b"apple", INDIRECT_LEAF_BYTES),
        (leaf([(b"b", b""), (b"c", b"3"), (b"d", b"4")]), b"", THREE_INLINE_BYTES),
    ],
    ids=["root", "inner", "inline leaf", "indirect leaf", "three inline"],
)
def test_the_worked_example_is_written_and_read(node: LeafNode | InteriorNode, prefix: bytes, data: bytes) -> None:
    assert encode(node, len(prefix)) == data
    assert columns(decode_btree_node(data, prefix=prefix)) == columns(node)
    assert columns(decode_btree_node(memoryview(data), prefix=prefix)) == columns(node)


def test_values_and_children_are_found_by_their_place() -> None:
    mixed = leaf([(b"a", b"one"), (b"b", Location(FILE_A, 7, 8)), (b"c", b""), (b"d", b"two")])
    decoded = decode_btree_node(encode(mixed))
    assert isinstance(decoded, LeafNode)
    assert [decoded.value(entry) for entry in range(4)] == [b"one", Location(FILE_A, 7, 8), b"", b"two"]
    root = decode_btree_node(ROOT_BYTES)
    assert isinstance(root, InteriorNode)
    assert root.location(1) == Location(FILE_B, 37, 66)


def test_without_its_prefix_a_node_shows_what_is_stored() -> None:
    node = decode_btree_node(INNER_BYTES)
    assert isinstance(node, InteriorNode)
    assert node.keys == [b"", b"le"]
    assert node.subtree_prefix_lengths.tolist() == [0, 2]


def test_the_data_files_of_a_node_lie_below_its_transitive_base_path() -> None:
    files = (DataFileId(b"abc", b"def"), DataFileId(b"abc1", b"def1"))
    node = replace(ROOT, files=files)
    decoded = decode_btree_node(encode(node), base_path=b"xyz/")
    assert decoded.files == (DataFileId(b"xyz/abc", b"def"), DataFileId(b"xyz/abc1", b"def1"))


def test_the_table_of_files_is_made_canonical() -> None:
    tidy = leaf([(b"a", Location(FILE_A, 1, 2)), (b"b", Location(FILE_B, 3, 4)), (b"c", b"x")])
    untidy = replace(tidy, files=(FILE_B, DataFileId(b"", b"unused"), FILE_A, FILE_A), file_ids=i64(3, 0, -1))
    assert encode(untidy) == encode(tidy)


def test_inline_values_may_lie_in_any_order() -> None:
    tidy = leaf([(b"a", b"one"), (b"b", Location(FILE_A, 1, 2)), (b"c", b"three")])
    untidy = replace(tidy, inline=b"..threeone..", offsets=i64(7, 1, 2))
    shifted = replace(tidy, inline=b"..onethree", offsets=i64(2, 1, 5))
    assert encode(untidy) == encode(shifted) == encode(tidy)


def test_inline_values_have_at_most_a_mebibyte_and_references_end_at_the_last_offset() -> None:
    largest = leaf(
        [(b"a", bytes(2**20)), (b"b", Location(FILE_A, 2**63 - 2, 1)), (b"c", Location(FILE_A, 0, 2**63 - 1))]
    )
    assert columns(decode_btree_node(encode(largest))) == columns(largest)


def test_statistics_are_any_64_bit_numbers() -> None:
    extreme = replace(ROOT, num_keys=u64(2**64 - 1, 0), num_indirect_value_bytes=u64(2**63, 2**64 - 1))
    assert columns(decode_btree_node(encode(extreme))) == columns(extreme)


# Rules, one at a time: a body is its fields in hex, of which a case changes some

LEAF_FIELDS = {
    "height": "00",
    "files": "01 03 00 642f61",  # d/a
    "count": "02",
    "prefixes": "01",
    "suffixes": "02 01",
    "subtree_prefixes": "",
    "keys": "6162 63",  # ab, ac
    "lengths": "01 02",
    "kinds": "00 01",
    "file_ids": "00",
    "offsets": "05",
    "values": "78",
    "rest": "",
}
INTERIOR_FIELDS = {
    "height": "01",
    "files": "01 03 00 642f61",
    "count": "02",
    "prefixes": "01",
    "suffixes": "02 01",
    "subtree_prefixes": "01 01",
    "keys": "6162 63",
    "file_ids": "00 00",
    "offsets": "05 06",
    "lengths": "07 08",
    "num_keys": "01 01",
    "num_tree_bytes": "07 08",
    "num_indirect_value_bytes": "00 00",
    "rest": "",
}


def number(value: int) -> str:
    return encode_varint(value).hex()


MISSING = number(2**64 - 1)


def sealed(fields: dict[str, str]) -> bytes:
    return encode_envelope(BTREE_NODE_MAGIC, bytes.fromhex("".join(fields.values())), None)


def one(length: int, **changes: str) -> dict[str, str]:
    """A leaf of one inline value of zeros."""
    changes = {"lengths": number(length), "kinds": "00", "values": "00" * length} | changes
    return (
        LEAF_FIELDS
        | {"count": "01", "prefixes": "", "suffixes": "01", "keys": "61", "file_ids": "", "offsets": ""}
        | changes
    )


@pytest.mark.parametrize(
    "fields",
    [
        LEAF_FIELDS,
        INTERIOR_FIELDS,
        LEAF_FIELDS | {"prefixes": "00", "suffixes": "02 02", "keys": "6162 6163"},  # shares less than it could
        LEAF_FIELDS | {"prefixes": "8000", "suffixes": "8200 02", "keys": "6162 6163"},
        LEAF_FIELDS | {"prefixes": "00", "suffixes": "01 01", "keys": "7f 80"},
        LEAF_FIELDS | {"prefixes": "00", "suffixes": "00 01", "keys": "61"},
        LEAF_FIELDS | {"offsets": number(2**63 - 3)},
        LEAF_FIELDS | {"lengths": "01 00"},
        LEAF_FIELDS | {"files": "02 00 0301 0000 642f61 61"},  # unsorted and unused
        one(1 << 20),
        one(0),
        INTERIOR_FIELDS | {"subtree_prefixes": "00 02"},
        INTERIOR_FIELDS | {"height": "ff"},
    ],
)
def test_a_node_within_the_rules_is_read(fields: dict[str, str]) -> None:
    assert len(decode_btree_node(sealed(fields)).keys) in (1, 2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, r"height: 1 bytes announced, 0 left \(at byte 14\)"),
        ({"height": "00"}, "number of data files"),
        (LEAF_FIELDS | {"count": "00"}, r"0 entries, outside 1\.\.1048576 \(at byte 21\)"),
        (INTERIOR_FIELDS | {"count": "00"}, r"0 entries, outside 1\.\.1048576"),
        (LEAF_FIELDS | {"count": number(2**20 + 1)}, "1048577 entries, outside"),
        (LEAF_FIELDS | {"count": number(2**32)}, "number of entries: 4294967296 does not fit 32 bits"),
        (LEAF_FIELDS | {"count": number(2**20)}, "key_prefix_length: 1048575 values announced"),
        (LEAF_FIELDS | {"rest": "00"}, "1 bytes after the end of the data"),
        (INTERIOR_FIELDS | {"rest": "00"}, "1 bytes after the end of the data"),
        # Keys
        (LEAF_FIELDS | {"prefixes": "03"}, r"key 1 shares 3 bytes of a key of 2 \(at byte 27\)"),
        (LEAF_FIELDS | {"prefixes": number(65536)}, "key_prefix_length: 65536 does not fit 16 bits"),
        (LEAF_FIELDS | {"suffixes": "02 808004"}, "key_suffix_length: 65536 does not fit 16 bits"),
        (LEAF_FIELDS | {"keys": "6162 61"}, r"key 1 is not greater than key 0 \(at byte 27\)"),
        (LEAF_FIELDS | {"keys": "6162 62"}, "key 1 is not greater than key 0"),
        (LEAF_FIELDS | {"suffixes": "02 00", "keys": "6162"}, "key 1 is not greater than key 0"),
        (LEAF_FIELDS | {"prefixes": "02", "suffixes": "02 00", "keys": "6162"}, "key 1 is not greater than key 0"),
        (LEAF_FIELDS | {"prefixes": "00", "suffixes": "01 01", "keys": "80 7f"}, "key 1 is not greater than key 0"),
        (LEAF_FIELDS | {"suffixes": "02 7f"}, "129 bytes of keys announced, 10 left"),
        (
            LEAF_FIELDS | {"prefixes": number(65535), "suffixes": number(65535) + "01", "keys": "61" * 65536},
            "key 1 has 65536 bytes, more than 65535",
        ),
        (
            INTERIOR_FIELDS | {"subtree_prefixes": "01 03"},
            "subtree prefix of entry 1 has 3 of 2 bytes",
        ),
        (INTERIOR_FIELDS | {"subtree_prefixes": "01 808004"}, "subtree_common_prefix_length: 65536 does not fit"),
        # Values
        (LEAF_FIELDS | {"kinds": "00 02"}, r"unknown kind 2 of value 1 \(at byte 31\)"),
        (LEAF_FIELDS | {"lengths": "05 02"}, "inline values: 5 bytes announced, 1 left"),
        (LEAF_FIELDS | {"lengths": "00 02"}, "1 bytes after the end of the data"),
        (one(2**20 + 1), "inline value 0 has 1048577 bytes, more than 1048576"),
        (one(0, lengths=MISSING), "inline value 0 has 18446744073709551615 bytes"),
        (LEAF_FIELDS | {"file_ids": "01"}, "data file 1 of a table of 1"),
        (LEAF_FIELDS | {"files": "00"}, "data file 0 of a table of 0"),
        (LEAF_FIELDS | {"offsets": number(2**63 - 2)}, f"reference 0: offset {2**63 - 2} and length 2 exceed"),
        (LEAF_FIELDS | {"lengths": "01" + MISSING, "offsets": MISSING}, "reference 0: offset .* exceed"),
        (LEAF_FIELDS | {"lengths": "01" + MISSING, "offsets": "01"}, "reference 0: offset 1 and length .* exceed"),
        # Children
        (INTERIOR_FIELDS | {"file_ids": "00 03"}, "data file 3 of a table of 1"),
        (INTERIOR_FIELDS | {"offsets": "00" + MISSING, "lengths": "00" + MISSING}, "reference 1: offset .* exceed"),
        (INTERIOR_FIELDS | {"offsets": number(2**63 - 1) + "00"}, "reference 0: offset .* and length 7 exceed"),
    ],
)  # fmt: skip
def test_a_broken_rule_is_named(fields: dict[str, str], message: str) -> None:
    with pytest.raises(CorruptDataError, match=f"^B-tree node: .*{message}") as caught:
        decode_btree_node(sealed(fields))
    assert caught.value.offset is not None


def test_a_key_has_at_most_65535_bytes_with_the_implicit_prefix() -> None:
    data = encode(leaf([(b"k" * 40000, b"")]))
    assert len(decode_btree_node(data, prefix=b"p" * 25535).keys[0]) == 65535
    with pytest.raises(CorruptDataError, match="key 0 has 65536 bytes, more than 65535"):
        decode_btree_node(data, prefix=b"p" * 25536)


def test_the_first_of_many_faults_is_named() -> None:
    keys = [b"%03d" % number for number in range(1000)]
    keys[500], keys[700] = keys[501], keys[701]
    header = bytes.fromhex("00" + "00" + number(1000)) + bytes(999) + b"\3" * 1000
    body = header + b"".join(keys) + bytes(1000) + bytes(1000)
    position = 14 + len(header) + 501 * 3
    with pytest.raises(
        CorruptDataError, match=rf"key 501 is not greater than key 500 \(at byte {position}\)"
    ) as caught:
        decode_btree_node(encode_envelope(BTREE_NODE_MAGIC, body, None))
    assert caught.value.offset == position


@pytest.mark.parametrize(
    ("node", "excluded", "message"),
    [
        (replace(leaf([(b"a", b"")]), keys=[]), 0, "0 entries, outside"),
        (replace(leaf([(b"a", b"")]), lengths=i64(0, 0)), 0, "columns of another length"),
        (replace(ROOT, num_keys=u64(1)), 0, "columns of another length"),
        (leaf([(b"a", b""), (b"a", b"")]), 0, "strictly increasing"),
        (leaf([(b"b", b""), (b"a", b"")]), 0, "strictly increasing"),
        (leaf([(b"a" * 65536, b"")]), 0, "Key of 65536 bytes"),
        (leaf([(b"ab", b""), (b"ac", b"")]), 2, "do not share the 2 bytes"),
        (leaf([(b"ab", b"")]), 3, "do not share the 3 bytes"),
        (leaf([(b"ab", b"")]), -1, "do not share the -1 bytes"),
        (leaf([(b"a", bytes(2**20 + 1))]), 0, "Inline value of 1048577 bytes"),
        (replace(leaf([(b"a", b"xy")]), inline=b"x"), 0, "outside the 1 inline bytes"),
        (replace(leaf([(b"a", b"xy")]), offsets=i64(-1)), 0, "outside the 2 inline bytes"),
        (leaf([(b"a", Location(FILE_A, 2**63 - 1, 1))]), 0, "Reference with offset"),
        (leaf([(b"a", Location(FILE_A, -1, 1))]), 0, "Reference with offset -1"),
        (replace(leaf([(b"a", Location(FILE_A, 0, 1))]), files=()), 0, "outside the 0 files"),
        (replace(ROOT, file_ids=i64(0, -1)), 0, "outside the 2 files"),
        (replace(ROOT, height=0), 0, "Height 0"),
        (replace(ROOT, height=256), 0, "Height 256"),
        (replace(ROOT, subtree_prefix_lengths=i64(4, 0)), 0, "subtree prefix is longer"),
        (replace(INNER, subtree_prefix_lengths=i64(3, 2)), 3, "shorter than what is left out"),
    ],
)
def test_what_would_not_be_read_is_not_written(node: LeafNode | InteriorNode, excluded: int, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        encode(node, excluded)


# Round trips

KEYS = st.sets(st.binary(max_size=6) | st.text("ab/", max_size=12).map(str.encode), min_size=1, max_size=80).map(sorted)
FILES = st.builds(DataFileId, st.sampled_from([b"", b"a/", b"ab/"]), st.binary(max_size=3))
LOCATIONS = st.builds(Location, FILES, st.integers(0, 2**62), st.integers(0, 2**62 - 1))


@st.composite
def leaves(draw: st.DrawFn) -> LeafNode:
    return leaf([(key, draw(st.binary(max_size=9) | LOCATIONS)) for key in draw(KEYS)])


@st.composite
def interiors(draw: st.DrawFn) -> InteriorNode:
    keys = draw(KEYS)
    locations = [draw(LOCATIONS) for _ in keys]
    files = sorted({location.file for location in locations})

    def statistics() -> NDArray[np.uint64]:
        return u64(*(draw(st.integers(0, 2**64 - 1)) for _ in keys))

    return InteriorNode(
        height=draw(st.integers(1, 255)),
        keys=keys,
        subtree_prefix_lengths=i64(*(draw(st.integers(0, len(key))) for key in keys)),
        file_ids=i64(*(files.index(location.file) for location in locations)),
        offsets=i64(*(location.offset for location in locations)),
        lengths=i64(*(location.length for location in locations)),
        num_keys=statistics(),
        num_tree_bytes=statistics(),
        num_indirect_value_bytes=statistics(),
        files=tuple(files),
    )


@given(leaves() | interiors(), st.none() | st.just(Zstd(0)), st.binary(max_size=3))
def test_nodes_survive_the_round_trip(node: LeafNode | InteriorNode, compression: Zstd | None, prefix: bytes) -> None:
    below = replace(node, keys=[prefix + key for key in node.keys])
    if isinstance(below, InteriorNode):
        below = replace(below, subtree_prefix_lengths=below.subtree_prefix_lengths + len(prefix))
    data = encode(below, len(prefix), compression)
    assert data == encode(node, 0, compression)
    decoded = decode_btree_node(data, prefix=prefix)
    if isinstance(decoded, LeafNode) and isinstance(below, LeafNode):
        # The offset of an inline value is the decoder's choice.
        entries = range(len(decoded.keys))
        assert [decoded.value(entry) for entry in entries] == [below.value(entry) for entry in entries]
        assert decoded.keys == below.keys
    else:
        assert columns(decoded) == columns(below)
    assert encode(decoded, len(prefix), compression) == data
