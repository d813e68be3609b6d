"""Bytes: the examples of the reference list (groups A, C, D, E and F), each also through TensorStore's own coders.

TensorStore writes manifests and version tree nodes from JSON (``undump``) and shows as JSON what it reads (``dump``).
"""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np
import pytest
import tensorstore as ts

from ocdbt_py.engine.columns import Child, interior_of
from ocdbt_py.errors import CorruptDataError
from ocdbt_py.format.btree import InteriorNode, LeafNode, decode_btree_node, encode_interior_node, encode_leaf_node
from ocdbt_py.format.config import StoredConfig, Zstd
from ocdbt_py.format.datafile import DataFileId, Location, decode_file_table, encode_file_table
from ocdbt_py.format.manifest import MANIFEST_NAME, Manifest, decode_manifest, encode_manifest
from ocdbt_py.format.primitives import Reader
from ocdbt_py.format.versions import (
    VersionEntry,
    VersionNode,
    VersionNodeReference,
    decode_version_node,
    encode_version_node,
)

ZEROS = StoredConfig(bytes(16))


def at(base: str, relative: str, offset: int, length: int) -> Location:
    return Location(DataFileId(base.encode(), relative.encode()), offset, length)


def memory() -> Any:
    return ts.KvStore.open({"driver": "memory", "path": f"{uuid.uuid4().hex}/"}).result()


def dumped(base: Any, node: str | None = None) -> Any:
    return ts.ocdbt.dump(base, node).result()


def dumped_manifest(manifest: Manifest) -> Any:
    """What TensorStore shows of the bytes that we make of it."""
    base = memory()
    base[MANIFEST_NAME] = encode_manifest(manifest)
    return dumped(base)


ONE_VERSION = Manifest(ZEROS, (VersionEntry(1, 0, at("abc", "defgh", 10, 42), 8, 220, 101, 1),), ())
HIGHER = ONE_VERSION._replace(versions=(ONE_VERSION.versions[0]._replace(root_height=5),))
WITH_HISTORY = Manifest(
    ZEROS._replace(version_tree_arity_log2=1),
    (VersionEntry(15, 0, at("abc", "defgh", 10, 42), 8, 220, 101, 10),),
    (
        VersionNodeReference(8, at("abc", "defgh", 10, 42), 8, 1, 3),
        VersionNodeReference(12, at("abc", "defgh1", 10, 42), 4, 5, 2),
        VersionNodeReference(14, at("abc1", "defgh", 10, 42), 2, 8, 1),
    ),
)


@pytest.mark.parametrize("manifest", [ONE_VERSION, HIGHER, WITH_HISTORY], ids=["one version", "height 5", "history"])
@pytest.mark.parametrize("compression", [None, Zstd(0)])
def test_a_manifest_is_written_and_read_as_by_tensorstore(manifest: Manifest, compression: Zstd | None) -> None:
    manifest = manifest._replace(config=manifest.config._replace(compression=compression))
    data = encode_manifest(manifest)
    assert decode_manifest(data) == manifest
    assert ts.ocdbt.undump_manifest(dumped_manifest(manifest)) == data


def test_the_dump_of_a_manifest_says_what_was_written() -> None:
    assert dumped_manifest(WITH_HISTORY) == {
        "config": {
            "compression": {"id": "zstd"},
            "max_decoded_node_bytes": 8388608,
            "max_inline_value_bytes": 100,
            "uuid": "0" * 32,
            "version_tree_arity_log2": 1,
        },
        "version_tree_nodes": [
            {
                "commit_time": time,
                "generation_number": generation,
                "height": height,
                "location": f"versionnode:{base}:{relative}:10:42",
                "num_generations": count,
            }
            for generation, base, relative, count, time, height in [
                (8, "abc", "defgh", 8, 1, 3),
                (12, "abc", "defgh1", 4, 5, 2),
                (14, "abc1", "defgh", 2, 8, 1),
            ]
        ],
        "versions": [
            {
                "commit_time": 10,
                "generation_number": 15,
                "root": {
                    "location": "btreenode:abc:defgh:10:42",
                    "statistics": {"num_indirect_value_bytes": 101, "num_keys": 8, "num_tree_bytes": 220},
                },
                "root_height": 0,
            }
        ],
    }


VERSION_LEAF = VersionNode(
    1, 0, (VersionEntry(1, 0, at("a", "b", 1, 2), 3, 20, 10, 1), VersionEntry(2, 0, at("c", "d", 3, 4), 4, 21, 11, 2))
)
VERSION_INTERIOR = VersionNode(
    1,
    1,
    (VersionNodeReference(2, at("a", "b", 1, 2), 2, 1, 0), VersionNodeReference(4, at("c", "d", 3, 4), 2, 2, 0)),
)


@pytest.mark.parametrize("node", [VERSION_LEAF, VERSION_INTERIOR], ids=["leaf", "interior"])
@pytest.mark.parametrize("compression", [None, Zstd(0)])
def test_a_version_node_is_written_and_read_as_by_tensorstore(node: VersionNode, compression: Zstd | None) -> None:
    data = encode_version_node(node, compression)
    assert decode_version_node(data) == node
    base = memory()
    config = StoredConfig(bytes(16), version_tree_arity_log2=1, compression=compression)
    base[MANIFEST_NAME] = encode_manifest(ONE_VERSION._replace(config=config))
    base["file"] = data
    shown = dumped(base, f"versionnode::file:0:{len(data)}")
    assert ts.ocdbt.undump_version_tree_node(dumped(base)["config"], shown) == data


LIMITS = {
    1: 2**63 + 2,
    2: 2**62 + 4,
    3: 2**63 + 8,
    4: 2**60 + 16,
    5: 2**60 + 32,
    8: 2**56 + 256,
    16: 2**48 + 65536,
}


@pytest.mark.parametrize(("arity_log2", "limit"), LIMITS.items())
def test_the_last_generation_there_can_be(arity_log2: int, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    config = StoredConfig(bytes(16), version_tree_arity_log2=arity_log2)

    def manifest(generation: int) -> Manifest:
        return Manifest(config, (VersionEntry(generation, 0, None, 0, 0, 0, 1),), ())

    assert decode_manifest(encode_manifest(manifest(limit))) == manifest(limit)
    assert dumped_manifest(manifest(limit))["versions"][0]["generation_number"] == limit
    with monkeypatch.context() as unchecked:
        unchecked.setattr("ocdbt_py.format.manifest.versions_fault", lambda *_: None)
        beyond = encode_manifest(manifest(limit + 1))
    with pytest.raises(CorruptDataError, match=f"exceeds {limit}"):
        decode_manifest(beyond)
    base = memory()
    base[MANIFEST_NAME] = beyond
    with pytest.raises(ValueError, match="DATA_LOSS"):
        dumped(base)


# --- the table of data files


def table(*pairs: tuple[str, str]) -> list[DataFileId]:
    return [DataFileId(base.encode(), relative.encode()) for base, relative in pairs]


def decoded(data: bytes, base_path: bytes = b"") -> list[DataFileId]:
    reader = Reader(data, "Table")
    files = decode_file_table(reader, base_path)
    reader.finish()
    return list(files)


def test_an_empty_table_is_one_byte() -> None:
    assert encode_file_table([]) == (b"\0", {})
    assert decoded(b"\0") == []


def test_a_table_comes_out_sorted_and_each_file_once() -> None:
    given = table(("b", "d"), ("a", "c"), ("a", "b"), ("b", "e"), ("b", "d"))
    assert decoded(encode_file_table(given)[0]) == table(("a", "b"), ("a", "c"), ("b", "d"), ("b", "e"))


def test_every_way_to_share_a_beginning_survives() -> None:
    files = table(
        ("", ""), ("", "a"), ("", "ab"), ("", "ac"), ("a", ""), ("a", "x"), ("a", "xy"), ("a", "xyz"), ("ab", ""),
        ("ab", "xy"), ("ab", "xyz"), ("ac", "xy"),
    )  # fmt: skip
    data, numbers = encode_file_table(files)
    assert decoded(data) == files
    assert [numbers[file] for file in files] == list(range(12))


def test_a_transitive_path_goes_before_every_base_path() -> None:
    given = table(("b", "d"), ("a", "c"), ("a", "b"), ("b", "e"), ("", "y"))
    assert decoded(encode_file_table(given)[0], b"x/") == table(
        ("x/", "y"), ("x/a", "b"), ("x/a", "c"), ("x/b", "d"), ("x/b", "e")
    )


# --- nodes of the B-tree, stored in a file of their own and dumped


def stored(data: bytes) -> tuple[Any, str]:
    """A base with a database whose data file ``abc/f`` holds ``data``, and its place as a dump spells it."""
    base = memory()
    base[MANIFEST_NAME] = encode_manifest(ONE_VERSION)
    base["abc/f"] = data
    return base, f"btreenode:abc/:f:0:{len(data)}"


def test_a_leaf_leaves_out_its_prefix() -> None:
    zeros = np.zeros(2, np.int64)
    inline = LeafNode([b"abc", b"abd"], zeros + 6, zeros - 1, np.array([0, 6]), b"value1value2", ())
    data = encode_leaf_node(inline, excluded=2, compression=None)
    node = decode_btree_node(data, prefix=b"ab")
    assert isinstance(node, LeafNode)
    assert node.keys == [b"abc", b"abd"]
    assert [node.value(0), node.value(1)] == [b"value1", b"value2"]
    assert b"abc" not in data
    base, location = stored(data)
    assert dumped(base, location) == {
        "entries": [{"inline_value": b"value1", "key": b"c"}, {"inline_value": b"value2", "key": b"d"}],
        "height": 0,
    }


def test_the_dump_of_a_leaf_shows_both_kinds_of_values() -> None:
    mixed = LeafNode(
        [b"abc", b"abd"],
        np.array([6, 25]),
        np.array([-1, 0]),
        np.array([0, 1]),
        b"value1",
        (DataFileId(b"abc", b"def"),),
    )
    base, location = stored(encode_leaf_node(mixed, excluded=0, compression=Zstd(0)))
    assert dumped(base, location) == {
        "entries": [
            {"inline_value": b"value1", "key": b"abc"},
            {"indirect_value": "value:abc/abc:def:1:25", "key": b"abd"},  # below the base path that led here
        ],
        "height": 0,
    }


INTERIOR = InteriorNode(
    height=2,
    keys=[b"abc", b"def"],
    subtree_prefix_lengths=np.array([1, 1]),
    file_ids=np.array([0, 1]),
    offsets=np.array([5, 42]),
    lengths=np.array([6, 9]),
    num_keys=np.array([5, 8], np.uint64),
    num_tree_bytes=np.array([200, 220], np.uint64),
    num_indirect_value_bytes=np.array([100, 101], np.uint64),
    files=(DataFileId(b"abc", b"def"), DataFileId(b"abc1", b"def1")),
)


def test_an_interior_node_is_written_and_read_as_by_tensorstore() -> None:
    data = encode_interior_node(INTERIOR, compression=Zstd(0))
    node = decode_btree_node(data)
    assert isinstance(node, InteriorNode)
    assert (node.height, node.keys) == (2, INTERIOR.keys)
    assert [node.location(0), node.location(1)] == [at("abc", "def", 5, 6), at("abc1", "def1", 42, 9)]
    base, location = stored(data)
    assert dumped(base, location) == {
        "entries": [
            {
                "key": key,
                "location": location,
                "statistics": {"num_indirect_value_bytes": indirect, "num_keys": keys, "num_tree_bytes": tree},
                "subtree_common_prefix": key[:1],
            }
            for key, location, indirect, tree, keys in [
                (b"abc", "btreenode:abc/abc:def:5:6", 100, 200, 5),
                (b"def", "btreenode:abc/abc1:def1:42:9", 101, 220, 8),
            ]
        ],
        "height": 2,
    }


def test_children_lie_below_the_base_path_that_led_to_their_parent() -> None:
    files = table(("abc", "def"), ("abc1", "def1"), ("abc1", "def2"), ("abc1", "def1"))
    four = interior_of(
        [
            Child(key, 1, Location(file, 5, 6), 5, 200, 100)
            for key, file in zip((b"a", b"b", b"c", b"d"), files, strict=True)
        ],
        height=2,
    )
    node = decode_btree_node(encode_interior_node(four, compression=None), base_path=b"xyz/")
    assert isinstance(node, InteriorNode)
    assert [node.location(i).file for i in range(4)] == [
        DataFileId(b"xyz/" + file.base_path, file.relative_path) for file in files
    ]
    assert (node.keys, node.num_keys.tolist()) == ([b"a", b"b", b"c", b"d"], [5] * 4)


# --- places


def test_a_place_is_spelled_in_dumps_as_we_split_it() -> None:
    base = memory()
    base[MANIFEST_NAME] = encode_manifest(ONE_VERSION)
    base["abc/def "] = b"." + b"x" * 36
    assert dumped(base, "value:abc/:def%20:1:36") == b"x" * 36
    file = DataFileId(b"abc/", b"def ")
    assert decoded(encode_file_table([file])[0]) == [file]
    with pytest.raises(ValueError, match="Invalid indirect data kind"):
        dumped(base, "abc:abc/:def%20:1:36")


@pytest.mark.parametrize(
    ("offset", "length", "is_legal"),
    [(2**63 - 1, 0, True), (2**63 - 2, 1, True), (2**63, 0, False), (2**63 - 1, 1, False)],
)
def test_a_place_ends_at_the_last_offset_there_is(
    offset: int, length: int, is_legal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = ONE_VERSION.versions[0]._replace(root=at("", "f", offset, length))
    monkeypatch.setattr("ocdbt_py.format.manifest.versions_fault", lambda *_: None)
    data = encode_manifest(ONE_VERSION._replace(versions=(version,)))
    base = memory()
    base[MANIFEST_NAME] = data
    monkeypatch.undo()
    if is_legal:
        assert decode_manifest(data).versions == (version,)
        assert dumped(base)["versions"][0]["root"]["location"] == f"btreenode::f:{offset}:{length}"
    else:
        with pytest.raises(CorruptDataError, match="exceed"):
            decode_manifest(data)
        with pytest.raises(ValueError, match="Invalid offset/length"):
            dumped(base)
        with pytest.raises(ValueError, match="Invalid offset/length"):
            dumped(base, f"value::f:{offset}:{length}")
