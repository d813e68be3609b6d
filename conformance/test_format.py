"""What TensorStore wrote, the format layer reads and writes again to the same byte.

Compressed bytes are compared if libzstd is the release TensorStore 0.1.86 holds, else the bodies inside them.
"""

from __future__ import annotations

import functools
from pathlib import Path
from urllib.parse import unquote_to_bytes

import pytest

from conformance.corpus import Case, ocdbt_cases, orbax_cases
from conformance.structures import Structure, Walk
from ocdbt_py.format import zstd
from ocdbt_py.format.btree import InteriorNode, LeafNode, encode_interior_node, encode_leaf_node
from ocdbt_py.format.config import ManifestKind, StoredConfig, Zstd
from ocdbt_py.format.datafile import DataFileId, Location, common_prefix_length
from ocdbt_py.format.envelope import BTREE_NODE_MAGIC, MANIFEST_MAGIC, VERSION_NODE_MAGIC, decode_envelope
from ocdbt_py.format.manifest import MANIFEST_NAME, Manifest, encode_manifest
from ocdbt_py.format.versions import VersionEntry, VersionNode, encode_version_node

REFERENCE_LIBZSTD = (1, 5, 7)


CASES = ocdbt_cases()
DATABASES = [
    pytest.param(manifest.parent, id=str(manifest.parent.relative_to(case.directory.parent)))
    for case in (*CASES, *orbax_cases())
    for manifest in sorted(case.directory.rglob(MANIFEST_NAME))
]


@functools.cache
def walk_of(database: Path) -> Walk:
    walk = Walk(database)
    assert not walk.faults
    return walk


def config_of(walk: Walk) -> StoredConfig:
    return next(
        structure.node.config
        for (name, _, _), structure in walk.manifests.items()
        if name == MANIFEST_NAME and isinstance(structure.node, Manifest)
    )


def encode(structure: Structure, compression: Zstd | None) -> bytes:
    match structure.node:
        case Manifest():
            return encode_manifest(structure.node)
        case VersionNode():
            return encode_version_node(structure.node, compression)
        case LeafNode():
            return encode_leaf_node(structure.node, excluded=len(structure.prefix), compression=compression)
        case InteriorNode():
            return encode_interior_node(structure.node, excluded=len(structure.prefix), compression=compression)


def body(data: bytes) -> bytes:
    magic = int.from_bytes(data[:4], "big")
    assert magic in (MANIFEST_MAGIC, VERSION_NODE_MAGIC, BTREE_NODE_MAGIC)
    return decode_envelope(magic, data)


@pytest.mark.parametrize("database", DATABASES)
def test_every_structure_decodes_and_encodes_to_the_same_bytes(database: Path) -> None:
    walk = walk_of(database)
    structures = [*walk.manifests.values(), *walk.version_nodes.values(), *walk.btree_nodes.values()]
    compression = config_of(walk).compression
    assert structures
    for structure in structures:
        encoded = encode(structure, compression)
        if compression is None or zstd.LIBRARY_VERSION == REFERENCE_LIBZSTD:
            assert encoded == structure.data, structure.place
        else:
            assert body(encoded) == body(structure.data), structure.place


@pytest.mark.parametrize("database", DATABASES)
def test_the_statistics_in_references_are_those_of_the_trees_below(database: Path) -> None:
    walk = walk_of(database)
    assert walk.stated.keys() == walk.computed.keys() == walk.btree_nodes.keys()
    for place, statistics in walk.stated.items():
        assert statistics == {walk.computed[place]}, place


@pytest.mark.parametrize("database", DATABASES)
def test_the_references_to_version_nodes_state_what_is_in_them(database: Path) -> None:
    for reference, node in walk_of(database).references:
        first, last = node.entries[0], node.entries[-1]
        held = sum(1 if isinstance(entry, VersionEntry) else entry.num_generations for entry in node.entries)
        assert (reference.height, reference.generation) == (node.height, last.generation)
        assert (reference.num_generations, reference.commit_time_ns) == (held, first.commit_time_ns)


@pytest.mark.parametrize("database", DATABASES)
def test_a_node_below_the_root_leaves_out_what_all_its_keys_share(database: Path) -> None:
    walk = walk_of(database)
    roots = {version.root for version in walk.versions.values()}
    for structure in walk.btree_nodes.values():
        node = structure.node
        assert isinstance(node, LeafNode | InteriorNode)
        path, offset, length = structure.place
        if Location(DataFileId(b"", path.encode()), offset, length) in roots:
            assert structure.prefix == b""
            continue
        shared = common_prefix_length(node.keys[0], node.keys[-1])
        if isinstance(node, InteriorNode):
            shared = min(shared, int(node.subtree_prefix_lengths.min()))
        assert structure.prefix == node.keys[0][:shared]


def parse_location(text: str) -> tuple[str, int, int]:
    _, base, relative, offset, length = text.split(":")
    return (unquote_to_bytes(base) + unquote_to_bytes(relative)).decode(), int(offset), int(length)


def place_of(location: Location) -> tuple[str, int, int]:
    return location.file.path.decode(), location.offset, location.length


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_versions_are_those_tensorstore_sees(case: Case) -> None:
    walk = walk_of(case.db)
    seen = [
        {
            "generation": version.generation,
            "commit_time": version.commit_time_ns,
            "root_height": version.root_height,
            "root": None if version.root is None else place_of(version.root),
            "num_keys": version.num_keys,
            "num_tree_bytes": version.num_tree_bytes,
            "num_indirect_value_bytes": version.num_indirect_value_bytes,
        }
        for _, version in sorted(walk.versions.items())
    ]
    expected = [
        {name: version[name] for name in seen[0]} | {"root": version["root"] and parse_location(version["root"])}
        for version in case.expected["versions"]
    ]
    assert seen == expected


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_version_nodes_are_those_tensorstore_sees(case: Case) -> None:
    walk = walk_of(case.db)
    latest = max(walk.manifests.values(), key=lambda manifest: latest_generation(manifest))
    assert isinstance(latest.node, Manifest)
    assert {parse_location(node["location"]) for node in case.expected["manifest_version_tree_nodes"]} == {
        place_of(reference.location) for reference in latest.node.version_nodes
    }
    expected = {parse_location(node["location"]): node for node in case.expected["version_tree_nodes"]}
    # Older numbered manifests refer to nodes that the newest has replaced.
    assert expected.keys() <= walk.version_nodes.keys()
    if config_of(walk).manifest_kind is ManifestKind.SINGLE:
        assert expected.keys() == walk.version_nodes.keys()
    for place, node in expected.items():
        found = walk.version_nodes[place].node
        assert isinstance(found, VersionNode)
        assert (found.height, len(found.entries)) == (node["height"], node["num_entries"])
        assert found.entries[-1].generation == node["generation_number"]


def latest_generation(structure: Structure) -> int:
    assert isinstance(structure.node, Manifest)
    return structure.node.latest.generation if structure.node.latest else 0


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_newest_tree_has_the_shape_tensorstore_sees(case: Case) -> None:
    walk = walk_of(case.db)
    newest = walk.versions[case.expected["latest_generation"]]
    level = [] if newest.root is None else [(place_of(newest.root), b"")]
    levels = []
    while level:
        nodes = [walk.btree_nodes[place, prefix].node for place, prefix in level]
        shape, below = [], []
        for (place, _), node in zip(level, nodes, strict=True):
            assert isinstance(node, LeafNode | InteriorNode)
            shape.append([len(node.keys), node.keys[0].hex(), place[2]])
            if isinstance(node, InteriorNode):
                for entry, key in enumerate(node.keys):
                    below.append((place_of(node.location(entry)), key[: node.subtree_prefix_lengths[entry]]))
        levels.append(shape)
        level = below
    assert levels == case.expected["tree_levels"]


def test_the_corpus_holds_every_kind_of_structure() -> None:
    walks = [walk_of(case.db) for case in CASES]
    compressions = {config_of(walk).compression for walk in walks}
    assert None in compressions
    assert len(compressions) > 2
    assert {config_of(walk).manifest_kind for walk in walks} == set(ManifestKind)
    heights = {
        node.node.height for walk in walks for node in walk.btree_nodes.values() if not isinstance(node.node, Manifest)
    }
    version_heights = {
        node.node.height for walk in walks for node in walk.version_nodes.values() if isinstance(node.node, VersionNode)
    }
    assert heights >= {0, 1, 2}
    assert version_heights >= {0, 1, 2}
    assert any(structure.prefix for walk in walks for structure in walk.btree_nodes.values())
