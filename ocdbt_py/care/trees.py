"""Every B-tree node, read once, and compared with all that is said of it.

Versions share most of their nodes. What is needed of a node to judge another reference to it is kept: its height, the
range and length of its keys, and the statistics of the tree below it, computed. Keys are kept without the prefix that
the parent's entry carries, since a node may be referred to with several.

A fault is reported where it is met, and the walk goes on beside and, where the node makes sense by itself, below it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import NamedTuple

from ocdbt_py.care.files import Files
from ocdbt_py.care.report import Finding
from ocdbt_py.engine.columns import saturating_sum
from ocdbt_py.engine.nodes import BTreeNode, Nodes, btree_fault
from ocdbt_py.errors import CorruptDataError
from ocdbt_py.format.btree import InteriorNode, LeafNode
from ocdbt_py.format.datafile import Location
from ocdbt_py.format.key_column import key_lengths
from ocdbt_py.format.keys import MAX_KEY_LENGTH
from ocdbt_py.format.versions import VersionEntry

Reporter = Callable[[Finding], None]


class Statistics(NamedTuple):
    """Of a tree: keys, encoded bytes of its nodes, bytes of values outside of them."""

    num_keys: int
    num_tree_bytes: int
    num_indirect_value_bytes: int


class _Reference(NamedTuple):
    """What a parent says of a node, and what follows from where the parent stands."""

    location: Location
    height: int
    prefix: bytes
    lower: bytes
    upper: bytes | None
    statistics: Statistics


@dataclass(frozen=True, slots=True)
class _Subtree:
    """A node and what is below it. Keys without the prefix: the node's first, the last and the longest anywhere.

    ``statistics`` None: not all of it could be read. ``stated``: what the first reference said they are.
    """

    height: int
    first: bytes
    last: bytes
    longest: int
    statistics: Statistics | None
    stated: Statistics
    readable: bool


_Visit = Generator[_Reference, _Subtree | None, _Subtree | None]


class Trees:
    """The trees of all versions of a database."""

    def __init__(self, nodes: Nodes, files: Files, report: Reporter) -> None:
        self._nodes = nodes
        self._files = files
        self._report = report
        self._known: dict[Location, _Subtree | None] = {}
        self._refused: dict[Location, _Subtree] = {}
        self._generation = 0

    @property
    def count(self) -> int:
        """Nodes that were read."""
        return sum(subtree is not None for subtree in self._known.values())

    @property
    def complete(self) -> bool:
        """Every node could be read."""
        return None not in self._known.values()

    def version(self, version: VersionEntry) -> bool:
        """Check the tree of one version; whether all of it can be read."""
        if version.root is None:
            return True
        self._generation = version.generation
        stated = Statistics(version.num_keys, version.num_tree_bytes, version.num_indirect_value_bytes)
        root = self._walk(_Reference(version.root, version.root_height, b"", b"", None, stated))
        return root is not None and root.readable

    def _walk(self, root: _Reference) -> _Subtree | None:
        """Run :meth:`_reach` without recursion: a tree may be higher than Python's stack has room for."""
        path, answer = [self._reach(root)], None
        while path:
            try:
                child = path[-1].send(answer)
            except StopIteration as done:
                path.pop()
                answer = done.value
            else:
                path.append(self._reach(child))
                answer = None
        return answer

    def _reach(self, reference: _Reference) -> _Visit:
        """The node at a reference, with all that is below; None where a reader would refuse it.

        Yields the references to children, and is sent what is below each.
        """
        location = reference.location
        subtree: _Subtree | None
        if location in self._known:
            subtree = self._known[location]
            if subtree is None or self._breaks(reference, subtree):
                return None
        elif location in self._refused and self._refused[location].height != reference.height:
            self._breaks(reference, self._refused[location])
            return None
        else:
            node = self._read(reference)
            if node is None:
                self._known[location] = None
                return None
            alone = _alone(node, reference)
            broken = self._breaks(reference, alone)
            if node.height != reference.height:
                self._refused[location] = alone  # right for another parent, perhaps; from here it might never end
                return None
            if isinstance(node, LeafNode):
                subtree = self._leaf(node, reference)
            else:
                subtree = yield from self._interior(node, reference, None if broken else reference.upper)
                assert subtree is not None
            self._known[location] = subtree
            if broken:
                return None
        self._compare(reference, subtree)
        return subtree

    def _read(self, reference: _Reference) -> BTreeNode | None:
        location = reference.location
        if not self._files.node(location, reference.lower, self._generation):
            return None
        try:
            return self._nodes.any_btree(location, reference.prefix)
        except CorruptDataError as error:
            self._found("btree-node", f"{error.message}; put the file back from a copy", reference)
            return None

    def _breaks(self, reference: _Reference, subtree: _Subtree) -> bool:
        """Whether a reader who follows the reference would refuse the node."""
        prefix = reference.prefix
        first, last = prefix + subtree.first, prefix + subtree.last
        fault = btree_fault(subtree.height, first, last, reference.height, reference.lower, reference.upper)
        if fault is None and len(prefix) + subtree.longest > MAX_KEY_LENGTH:
            fault = f"a key has {len(prefix) + subtree.longest} bytes, more than {MAX_KEY_LENGTH}"
        if fault is not None:
            kind = "height" if subtree.height != reference.height else "key-range"
            self._found(kind, f"B-tree node: {fault}", reference)
        return fault is not None

    def _leaf(self, node: LeafNode, reference: _Reference) -> _Subtree:
        outside = node.lengths[node.file_ids >= 0].tolist()
        return replace(
            _alone(node, reference),
            longest=int(key_lengths(node.keys).max()) - len(reference.prefix),
            statistics=Statistics(len(node.keys), reference.location.length, saturating_sum(outside)),
            readable=self._files.values(node, self._generation),
        )

    def _interior(self, node: InteriorNode, reference: _Reference, upper: bytes | None) -> _Visit:
        """What is below an interior node, whose last child ends before ``upper``."""
        cut = len(reference.prefix)
        alone = _alone(node, reference)
        last, longest, readable = alone.last, alone.longest, True
        statistics: Statistics | None = Statistics(0, reference.location.length, 0)
        for i in range(len(node.keys)):
            child = _child(node, i, upper)
            subtree = yield child
            if subtree is None:
                readable, statistics = False, None
                continue
            inside = child.prefix[cut:]
            last = max(last, inside + subtree.last)
            longest = max(longest, len(inside) + subtree.longest)
            readable &= subtree.readable
            statistics = _sum(statistics, subtree.statistics)
        return replace(alone, last=last, longest=longest, statistics=statistics, readable=readable)

    def _compare(self, reference: _Reference, subtree: _Subtree) -> None:
        """The statistics a reference states, with those of the tree, or else with what another reference states."""
        right = subtree.statistics if subtree.statistics is not None else subtree.stated
        if reference.statistics == right:
            return
        whose = "the tree has" if subtree.statistics is not None else "another reference to it states"
        wrong = ", ".join(
            f"{name} {stated:,} where {whose} {actual:,}"
            for name, stated, actual in zip(Statistics._fields, reference.statistics, right, strict=True)
            if stated != actual
        )
        self._found(
            "statistics",
            f"B-tree node: its reference states {wrong}; values are not concerned, but len() and sizes may be wrong",
            reference,
        )

    def _found(self, kind: str, message: str, reference: _Reference) -> None:
        location = reference.location
        path = location.file.path.decode("utf-8", "surrogateescape")
        self._report(
            Finding(
                kind=kind,
                message=f"{message} [{path} at byte {location.offset:,}, version {self._generation}]",
                path=path,
                offset=location.offset,
                key=reference.lower or None,
                generation=self._generation,
            )
        )


def _alone(node: BTreeNode, reference: _Reference) -> _Subtree:
    """What a node shows of itself, before anything below it is known."""
    first, last = node.keys[0][len(reference.prefix) :], node.keys[-1][len(reference.prefix) :]
    return _Subtree(node.height, first, last, 0, None, reference.statistics, readable=False)


def _sum(a: Statistics | None, b: Statistics | None) -> Statistics | None:
    """Of two trees; unknown if one of them is."""
    return None if a is None or b is None else Statistics(*map(saturating_sum, zip(a, b, strict=True)))


def _child(node: InteriorNode, entry: int, upper: bytes | None) -> _Reference:
    key = node.keys[entry]
    return _Reference(
        location=node.location(entry),
        height=node.height - 1,
        prefix=key[: int(node.subtree_prefix_lengths[entry])],
        lower=key,
        upper=node.keys[entry + 1] if entry + 1 < len(node.keys) else upper,
        statistics=Statistics(
            int(node.num_keys[entry]),
            int(node.num_tree_bytes[entry]),
            int(node.num_indirect_value_bytes[entry]),
        ),
    )
