"""Every manifest, version tree node and B-tree node of a database directory, found by a plain walk over its files.

Only the format layer is used, so that its tests do not stand on the engine. A fault is recorded where it is found and
the walk goes on beside it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from ocdbt_py.errors import CorruptDataError
from ocdbt_py.format.btree import InteriorNode, LeafNode, decode_btree_node
from ocdbt_py.format.datafile import Location
from ocdbt_py.format.manifest import MANIFEST_NAME, Manifest, decode_manifest, parse_numbered_manifest_name
from ocdbt_py.format.versions import VersionEntry, VersionNode, VersionNodeReference, decode_version_node

__all__ = ["Statistics", "Structure", "Walk"]

Node = TypeVar("Node", Manifest, VersionNode, LeafNode | InteriorNode)

Place = tuple[str, int, int]
"""(path below the database, offset, length)."""

Statistics = tuple[int, int, int]
"""Keys, encoded bytes of all nodes, and bytes of values outside the nodes."""


@dataclass(frozen=True)
class Structure:
    """One decoded object: where it is, its bytes, and what they mean."""

    place: Place
    data: bytes
    node: Manifest | VersionNode | LeafNode | InteriorNode
    prefix: bytes = b""


@dataclass
class Walk:
    """The structures below ``database``; each is visited once for every implicit prefix it is reached with."""

    database: Path
    manifests: dict[Place, Structure] = field(default_factory=dict)
    version_nodes: dict[Place, Structure] = field(default_factory=dict)
    btree_nodes: dict[tuple[Place, bytes], Structure] = field(default_factory=dict)
    versions: dict[int, VersionEntry] = field(default_factory=dict)
    stated: dict[tuple[Place, bytes], set[Statistics]] = field(default_factory=dict)
    computed: dict[tuple[Place, bytes], Statistics] = field(default_factory=dict)
    references: list[tuple[VersionNodeReference, VersionNode]] = field(default_factory=list)
    faults: dict[Place, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for path in sorted(self.database.iterdir()):
            if path.name == MANIFEST_NAME or parse_numbered_manifest_name(path.name) is not None:
                self._manifest(path.name)

    def _decode(self, place: Place, decode: Callable[[bytes], Node]) -> tuple[bytes, Node] | None:
        path, offset, length = place
        try:
            with open(self.database / path, "rb") as file:
                file.seek(offset)
                data = file.read(length)
            return data, decode(data)
        except OSError as error:
            self.faults[place] = str(error)
        except CorruptDataError as error:
            self.faults[place] = error.message
        return None

    def _manifest(self, name: str) -> None:
        place = (name, 0, (self.database / name).stat().st_size)
        if decoded := self._decode(place, decode_manifest):
            data, manifest = decoded
            self.manifests[place] = Structure(place, data, manifest)
            self._references(manifest.version_nodes)
            self._versions(manifest.versions)

    def _versions(self, versions: Iterable[VersionEntry]) -> None:
        for version in versions:
            self.versions[version.generation] = version
            if version.root is not None:
                self._btree_node(
                    version.root,
                    b"",
                    version.root_height,
                    (version.num_keys, version.num_tree_bytes, version.num_indirect_value_bytes),
                )

    def _references(self, references: Iterable[VersionNodeReference]) -> None:
        for reference in references:
            place, base_path = _place(reference.location), reference.location.file.base_path
            decoded = self._decode(place, functools.partial(decode_version_node, base_path=base_path))
            if decoded is None:
                continue
            data, node = decoded
            self.references.append((reference, node))
            if place in self.version_nodes:
                continue
            self.version_nodes[place] = Structure(place, data, node)
            if node.height != reference.height:
                self.faults[place] = f"height {node.height} instead of {reference.height}"
                continue
            self._versions(entry for entry in node.entries if isinstance(entry, VersionEntry))
            self._references(entry for entry in node.entries if isinstance(entry, VersionNodeReference))

    def _btree_node(self, location: Location, prefix: bytes, height: int, stated: Statistics) -> Statistics | None:
        place = _place(location)
        self.stated.setdefault((place, prefix), set()).add(stated)
        if (place, prefix) in self.btree_nodes:
            return self.computed.get((place, prefix))
        base_path = location.file.base_path
        decoded = self._decode(place, functools.partial(decode_btree_node, base_path=base_path, prefix=prefix))
        if decoded is None:
            return None
        data, node = decoded
        self.btree_nodes[place, prefix] = Structure(place, data, node, prefix)
        if node.height != height:
            self.faults[place] = f"height {node.height} instead of {height}"
            return None
        if isinstance(node, LeafNode):
            computed = (len(node.keys), len(data), int(node.lengths[node.file_ids >= 0].sum()))
        else:
            below = [
                self._btree_node(
                    node.location(entry),
                    key[: node.subtree_prefix_lengths[entry]],
                    height - 1,
                    (
                        int(node.num_keys[entry]),
                        int(node.num_tree_bytes[entry]),
                        int(node.num_indirect_value_bytes[entry]),
                    ),
                )
                for entry, key in enumerate(node.keys)
            ]
            known = [statistics for statistics in below if statistics is not None]
            if len(known) < len(below):
                return None
            keys, tree_bytes, value_bytes = (sum(column) for column in zip(*known, strict=True))
            computed = (keys, tree_bytes + len(data), value_bytes)
        self.computed[place, prefix] = computed
        return computed


def _place(location: Location) -> Place:
    return location.file.path.decode(), location.offset, location.length
