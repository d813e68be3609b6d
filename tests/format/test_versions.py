"""Version tree nodes: the worked example of the format document, the arithmetic of generations, and every rule."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocdbt_py.errors import CorruptDataError, InvalidArgumentError
from ocdbt_py.format.config import Zstd
from ocdbt_py.format.datafile import DataFileId, Location
from ocdbt_py.format.envelope import VERSION_NODE_MAGIC, encode_envelope
from ocdbt_py.format.primitives import encode_varint
from ocdbt_py.format.versions import (
    VersionEntry,
    VersionNode,
    VersionNodeReference,
    decode_version_node,
    encode_version_node,
    max_height,
    reference_ranges,
)

FILE_A = DataFileId(b"", b"d/4784840966eeba3923de56498d505d8e")
FILE_B = DataFileId(b"", b"d/53dde8f6a8149050c766f80006b77c03")
FILE_C = DataFileId(b"", b"d/76f5c7f4809113f5b3cd7447122c81ed")

LEAF = VersionNode(
    version_tree_arity_log2=1,
    height=0,
    entries=(
        VersionEntry(1, 0, None, 0, 0, 0, 1795230060682910077),
        VersionEntry(2, 2, Location(FILE_A, 260, 80), 3, 334, 6, 1795230060695029653),
    ),
)
LEAF_BYTES = bytes.fromhex(
    "0cdb1234"  # magic
    "7100000000000000"  # length = 113
    "00"  # format version
    "00"  # compression method
    "01"  # version_tree_arity_log2
    "00"  # height
    "02"  # table: num_files
    "00"  # path_prefix_length[1]
    "00 22"  # path_suffix_length
    "00 00"  # base_path_length
    "642f3437383438343039363665656261333932336465353634393864353035643865"  # path_suffix[1]; [0] is empty
    "02"  # num_versions
    "01 02"  # generation_number
    "00 02"  # root_height
    "00 01"  # root file id
    "ffffffffffffffffff01 8402"  # root offset: missing, 260
    "ffffffffffffffffff01 50"  # root length: missing, 80
    "00 03"  # num_keys
    "00 ce02"  # num_tree_bytes
    "00 06"  # num_indirect_value_bytes
    "7d991b893af0e918 9587d4893af0e918"  # commit_time
    "5c8c4f14"  # CRC-32C
)

INTERIOR = VersionNode(
    version_tree_arity_log2=1,
    height=1,
    entries=(
        VersionNodeReference(2, Location(FILE_B, 211, 113), 2, 1795230060682910077, 0),
        VersionNodeReference(4, Location(FILE_C, 217, 127), 2, 1795230060700687356, 0),
    ),
)
INTERIOR_BYTES = bytes.fromhex(
    "0cdb1234"  # magic
    "7900000000000000"  # length = 121
    "00"  # format version
    "00"  # compression method
    "01"  # version_tree_arity_log2
    "01"  # height
    "02"  # table: num_files
    "02"  # path_prefix_length[1]
    "22 20"  # path_suffix_length
    "00 00"  # base_path_length
    "642f3533646465386636613831343930353063373636663830303036623737633033"  # path_suffix[0]
    "3736663563376634383039313133663562336364373434373132326338316564"  # path_suffix[1], without d/
    "02"  # num_children
    "02 04"  # generation_number
    "00 01"  # child file id
    "d301 d901"  # child offset
    "71 7f"  # child length
    "02 02"  # num_generations
    "7d991b893af0e918 fcdb2a8a3af0e918"  # commit_time, earliest in the child
    "68559192"  # CRC-32C
)


@pytest.mark.parametrize(("node", "data"), [(LEAF, LEAF_BYTES), (INTERIOR, INTERIOR_BYTES)])
def test_the_worked_example_is_written_and_read(node: VersionNode, data: bytes) -> None:
    assert encode_version_node(node, None) == data
    assert decode_version_node(data) == node
    assert decode_version_node(memoryview(data)) == node


def test_the_data_files_of_a_node_lie_below_its_transitive_base_path() -> None:
    node = decode_version_node(INTERIOR_BYTES, base_path=b"sub/")
    files = [entry.location.file for entry in node.entries if isinstance(entry, VersionNodeReference)]
    assert files == [DataFileId(b"sub/", file.relative_path) for file in (FILE_B, FILE_C)]


# Arithmetic


@pytest.mark.parametrize(
    ("generation", "arity_log2", "ranges"),
    [
        (0, 2, []),
        (1, 2, []),
        (4, 2, []),
        (5, 2, [(1, 4, 1)]),
        (8, 2, [(1, 4, 1)]),
        (9, 2, [(1, 8, 1)]),
        (17, 2, [(1, 16, 1)]),
        (30, 2, [(17, 28, 1), (1, 16, 2)]),
        (43, 2, [(33, 40, 1), (1, 32, 2)]),
        (17, 1, [(13, 16, 1), (9, 12, 2), (1, 8, 3)]),
    ],
)
def test_the_references_a_manifest_may_hold(
    generation: int, arity_log2: int, ranges: list[tuple[int, int, int]]
) -> None:
    assert reference_ranges(generation, arity_log2) == ranges


@given(st.integers(2, 2**60), st.integers(1, 16))
def test_the_ranges_adjoin_from_the_newest_leaf_back_to_generation_1(generation: int, arity_log2: int) -> None:
    ranges = reference_ranges(generation, arity_log2)
    assert [height for _, _, height in ranges] == list(range(1, len(ranges) + 1))
    end = generation - 1 - (generation - 1) % 2**arity_log2
    for first, last, height in ranges:
        assert first <= last == end
        assert last % 2 ** (arity_log2 * height) == 0
        end = first - 1
    assert end == 0


@pytest.mark.parametrize(("arity_log2", "height"), [(1, 62), (2, 30), (4, 14), (5, 11), (8, 6), (16, 2)])
def test_the_highest_node_covers_all_generations_of_64_bits(arity_log2: int, height: int) -> None:
    assert max_height(arity_log2) == height


# Rules, one at a time: a body is its fields in hex, of which a case changes some

FILE = "01 03 00 642f61"  # d/a
LEAF_FIELDS = {
    "arity": "01",
    "height": "00",
    "files": FILE,
    "count": "02",
    "generations": "01 02",
    "root_heights": "00 02",
    "file_ids": "00 00",
    "offsets": "00 05",
    "lengths": "05 06",
    "num_keys": "01 01",
    "num_tree_bytes": "05 06",
    "num_indirect_value_bytes": "00 00",
    "times": "0100000000000000 0200000000000000",
    "rest": "",
}
MISSING = "ffffffffffffffffff01"  # 2^64 - 1
INTERIOR_FIELDS = {
    "arity": "01",
    "height": "01",
    "files": FILE,
    "count": "02",
    "generations": "02 04",
    "file_ids": "00 00",
    "offsets": "00 05",
    "lengths": "05 06",
    "num_generations": "02 01",
    "times": "0100000000000000 0200000000000000",
    "rest": "",
}


def number(value: int) -> str:
    return encode_varint(value).hex()


def sealed(fields: dict[str, str]) -> bytes:
    return encode_envelope(VERSION_NODE_MAGIC, bytes.fromhex("".join(fields.values())), None)


def one(fields: dict[str, str], **changes: str) -> dict[str, str]:
    """The fields of a node with one entry."""
    columns = list(fields)[list(fields).index("generations") : -1]
    firsts = {name: fields[name].split()[0] for name in columns}
    return fields | firsts | {"count": "01"} | changes


@pytest.mark.parametrize(
    "fields",
    [
        LEAF_FIELDS,
        INTERIOR_FIELDS,
        one(LEAF_FIELDS),
        one(LEAF_FIELDS, generations="02"),
        one(LEAF_FIELDS, offsets=MISSING, lengths=MISSING, num_keys="00", num_tree_bytes="00"),
        one(LEAF_FIELDS, num_keys=MISSING, num_tree_bytes=MISSING, num_indirect_value_bytes=MISSING),
        one(LEAF_FIELDS, times="0000000000000000"),
        one(LEAF_FIELDS, times="ffffffffffffffff"),
        one(LEAF_FIELDS, offsets=number(2**63 - 1), lengths="00"),
        one(LEAF_FIELDS, generations=number(2**63 + 2)),
        one(LEAF_FIELDS, arity="04", generations=number(2**60 + 16)),
        LEAF_FIELDS | {"arity": "04", "generations": "01 10"},  # a gap
        INTERIOR_FIELDS | {"num_generations": "01 01"},
        one(INTERIOR_FIELDS),
        one(INTERIOR_FIELDS, generations="04"),
        INTERIOR_FIELDS | {"height": "02", "generations": "04 08", "num_generations": "04 01"},
    ],
)
def test_a_node_within_the_rules_is_read_and_written_again(fields: dict[str, str]) -> None:
    node = decode_version_node(sealed(fields))
    assert decode_version_node(encode_version_node(node, Zstd(0))) == node


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        # Both kinds
        (LEAF_FIELDS | {"arity": "00"}, r"version_tree_arity_log2 0 is outside 1..16 \(at byte 14\)"),
        (LEAF_FIELDS | {"arity": "11"}, r"version_tree_arity_log2 17 is outside 1..16 \(at byte 14\)"),
        (INTERIOR_FIELDS | {"height": "3f"}, r"height 63 is outside 0..62 \(at byte 15\)"),
        (INTERIOR_FIELDS | {"arity": "10", "height": "03"}, "height 3 is outside 0..2"),
        (LEAF_FIELDS | {"rest": "00"}, "1 bytes after the end of the data"),
        (INTERIOR_FIELDS | {"rest": "00"}, "1 bytes after the end of the data"),
        # Leaves
        (LEAF_FIELDS | {"count": "00"}, "0 entries, outside 1..2"),
        (LEAF_FIELDS | {"count": "03"}, "3 entries, outside 1..2"),
        (LEAF_FIELDS | {"count": MISSING}, "18446744073709551615 entries, outside 1..2"),
        (one(LEAF_FIELDS, generations="00"), "generation 0"),
        (LEAF_FIELDS | {"generations": "01 01"}, "entry 1: generation 1 does not follow generation 1"),
        (LEAF_FIELDS | {"generations": "02 01"}, "entry 1: generation 1 does not follow generation 2"),
        (LEAF_FIELDS | {"generations": "02 03"}, "generations 2 and 3 belong to different leaves of 2"),
        (one(LEAF_FIELDS, generations=number(2**63 + 3)), f"generation {2**63 + 3} exceeds {2**63 + 2}"),
        (one(LEAF_FIELDS, arity="04", generations=number(2**60 + 17)), f"exceeds {2**60 + 16}"),
        (one(LEAF_FIELDS, arity="05", generations=number(2**60 + 33)), f"exceeds {2**60 + 32}"),
        (one(LEAF_FIELDS, arity="10", generations=number(2**48 + 65537)), f"exceeds {2**48 + 65536}"),
        (one(LEAF_FIELDS, offsets=MISSING, lengths=MISSING), "entry 0: no root, but a height or statistics"),
        (
            one(LEAF_FIELDS, offsets=MISSING, lengths=MISSING, num_keys="00", num_tree_bytes="00", root_heights="01"),
            "entry 0: no root, but a height or statistics",
        ),
        (one(LEAF_FIELDS, offsets=MISSING), "entry 0: offset 18446744073709551615 and length 5 exceed"),
        (one(LEAF_FIELDS, lengths=MISSING), "entry 0: offset 0 and length 18446744073709551615 exceed"),
        (one(LEAF_FIELDS, offsets=number(2**63 - 1)), "entry 0: offset 9223372036854775807 and length 5 exceed"),
        (one(LEAF_FIELDS, file_ids="01"), "data file 1 of a table of 1"),
        (one(LEAF_FIELDS, offsets=MISSING, lengths=MISSING, file_ids="01"), "data file 1 of a table of 1"),
        (one(LEAF_FIELDS, files="00"), "data file 0 of a table of 0"),
        (LEAF_FIELDS | {"times": "0100000000000000" * 2}, "entry 1: commit time 1 is not after 1"),
        (
            LEAF_FIELDS | {"times": "0200000000000000 0100000000000000"},
            "entry 1: commit time 1 is not after 2",
        ),
        (LEAF_FIELDS | {"times": "01000000000000000200000000000000"[:-2]}, "commit_time: 16 bytes announced, 15 left"),
        # Nodes above
        ({"arity": "01", "height": "01", "files": FILE, "count": "00"}, "0 entries, outside 1..2"),
        (INTERIOR_FIELDS | {"count": "03"}, "3 version tree nodes, more than 2"),
        (INTERIOR_FIELDS | {"generations": "00 02"}, "generation 0"),
        (INTERIOR_FIELDS | {"generations": "04 02"}, "entry 1: generation 2 does not follow generation 4"),
        (INTERIOR_FIELDS | {"generations": "02 02"}, "entry 1: generation 2 does not follow generation 2"),
        (INTERIOR_FIELDS | {"generations": "01 04"}, "entry 0: generation 1 is not a multiple of 2"),
        (INTERIOR_FIELDS | {"generations": "02 06"}, "generations 2 and 6 belong to different nodes of height 1"),
        (INTERIOR_FIELDS | {"num_generations": "00 01"}, r"entry 0: 0 generations, outside 1\.\.2"),
        (INTERIOR_FIELDS | {"num_generations": "02 03"}, r"entry 1: 3 generations, outside 1\.\.2"),
        (INTERIOR_FIELDS | {"times": "0100000000000000" * 2}, "entry 1: commit time 1 is not after 1"),
        (one(INTERIOR_FIELDS, offsets=MISSING, lengths=MISSING), "entry 0: offset 18446744073709551615 and length"),
        (one(INTERIOR_FIELDS, file_ids="01"), "data file 1 of a table of 1"),
    ],
)
def test_a_broken_rule_is_named(fields: dict[str, str], message: str) -> None:
    with pytest.raises(CorruptDataError, match=f"^Version tree node: .*{message}") as caught:
        decode_version_node(sealed(fields))
    assert caught.value.offset is not None


@pytest.mark.parametrize(
    ("node", "changes", "message"),
    [
        (LEAF, {"version_tree_arity_log2": 0}, "version_tree_arity_log2 0 is outside"),
        (LEAF, {"height": 1}, "versions belong in nodes of height 0"),
        (INTERIOR, {"height": 0}, "versions belong in nodes of height 0"),
        (INTERIOR, {"height": 63}, "height 63 is outside"),
        (INTERIOR, {"height": 2}, "entry 0: height 0 below a node of height 2"),
        (LEAF, {"entries": ()}, "0 entries, outside 1..2"),
        (INTERIOR, {"entries": ()}, "0 entries, outside 1..2"),
        (LEAF, {"entries": LEAF.entries[::-1]}, "does not follow"),
        (LEAF, {"entries": (VersionEntry(1, 256, Location(FILE_A, 0, 1), 0, 0, 0, 0),)}, "root height 256"),
    ],
)
def test_what_would_not_be_read_is_not_written(node: VersionNode, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        encode_version_node(node._replace(**changes), None)


@st.composite
def leaves(draw: st.DrawFn) -> VersionNode:
    arity_log2 = draw(st.integers(1, 8))
    block = draw(st.integers(0, 1000)) << arity_log2
    generations = sorted(block + 1 + place for place in draw(st.sets(st.integers(0, 2**arity_log2 - 1), min_size=1)))
    times = sorted(draw(st.sets(st.integers(0, 2**64 - 1), min_size=len(generations), max_size=len(generations))))
    statistics = st.integers(0, 2**64 - 1)
    files = st.builds(DataFileId, st.binary(max_size=3), st.binary(max_size=3))
    locations = st.builds(Location, files, st.integers(0, 2**62), st.integers(0, 2**62 - 1))
    entries = []
    for generation, time in zip(generations, times, strict=True):
        if draw(st.booleans()):
            entries.append(VersionEntry(generation, 0, None, 0, 0, 0, time))
        else:
            numbers = draw(st.tuples(statistics, statistics, statistics))
            entries.append(VersionEntry(generation, draw(st.integers(0, 255)), draw(locations), *numbers, time))
    return VersionNode(arity_log2, 0, tuple(entries))


@given(leaves(), st.none() | st.just(Zstd(0)))
def test_leaves_survive_the_round_trip(node: VersionNode, compression: Zstd | None) -> None:
    assert decode_version_node(encode_version_node(node, compression)) == node
