"""One version's keys: look one up, look many up, scan a range in order.

A lookup walks down one path; many lookups share it. A scan holds one node per level, whatever the size of the tree. All
of it reads only nodes whose range is asked for.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence

import numpy as np

from ocdbt_py.engine.found import Found, FoundColumns
from ocdbt_py.engine.nodes import BTreeNode, Child, Nodes
from ocdbt_py.format.btree import InteriorNode, LeafNode
from ocdbt_py.format.joined_texts import JoinedKeys, rows_of
from ocdbt_py.format.key_column import MANY_SEARCHES, KeyColumn, all_places, search
from ocdbt_py.format.versions import VersionEntry

__all__ = ["NO_VERSION", "Found", "FoundColumns", "Tree"]

NO_VERSION = VersionEntry(0, 0, None, 0, 0, 0, 0)
"""A database before its first commit."""


class Tree:
    """The B-tree of one version. Immutable, and so are all answers."""

    __slots__ = ("nodes", "version")

    def __init__(self, nodes: Nodes, version: VersionEntry) -> None:
        self.nodes = nodes
        self.version = version

    def lookup(self, key: bytes) -> Found:
        return self.lookup_many([key])[0]

    def lookup_many(self, keys: Sequence[bytes]) -> Sequence[Found]:
        """The value of each key, in the order asked; every node on the way is visited once.

        Of many keys it comes in columns.
        """
        root = self._root() if keys else None
        if root is None:
            return [None] * len(keys)
        if isinstance(root, LeafNode):  # as in most trees; nothing is to be divided between nodes
            return _look_up(root, keys)
        ordered = sorted(keys)
        parts: list[Sequence[Found]] = []
        reached = 0  # of the keys; leaves come in their order
        for leaf, low, high in self._shares(root, ordered):
            parts += [[None] * (low - reached)] if low > reached else []
            parts.append(_look_up(leaf, ordered[low:high]))
            reached = high
        parts += [[None] * (len(ordered) - reached)] if len(ordered) > reached else []
        return _in_order(parts, ordered, keys)

    def lookup_joined(self, keys: JoinedKeys) -> FoundColumns | None:
        """The value of each of many keys, if they come in the order of the database, and all are there; else None."""
        root = self._root()
        parts: list[FoundColumns] = []
        entries = []
        reached = 0
        for leaf, low, high in [] if root is None else self._shares(root, keys):
            column = KeyColumn.of(leaf.keys)
            some = keys[low:high]
            assert isinstance(some, JoinedKeys)
            rows = rows_of(column, some) if low == reached else None
            if rows is None:
                return None
            parts.append(FoundColumns.of(leaf, rows))
            entries.append((leaf, rows))
            reached = high
        if not parts or reached < len(keys):
            return None
        found = FoundColumns.joined(parts)
        found.rows = entries
        return found

    def _shares(self, root: BTreeNode, ordered: Sequence[bytes]) -> Iterator[tuple[LeafNode, int, int]]:
        """The leaves in which these keys may be, in order, each with its share of them."""
        level: list[tuple[BTreeNode, bytes | None, int, int]] = [(root, None, 0, len(ordered))]
        while level:
            wanted: list[Child] = []
            shares: list[tuple[int, int]] = []
            for node, upper, low, high in level:
                if isinstance(node, LeafNode):
                    yield node, low, high
                    continue
                while low < high:
                    key = ordered[low]
                    child = bisect_right(node.keys, key) - 1
                    if child < 0:  # before the first key of the tree
                        low += 1
                        continue
                    end = node.keys[child + 1] if child + 1 < len(node.keys) else upper
                    stop = low + 1
                    if stop < high:
                        stop = high if end is None else bisect_left(ordered, end, stop, high)
                    if stop - low > 1 or key.startswith(node.keys[child][: int(node.subtree_prefix_lengths[child])]):
                        wanted.append(_child(node, upper, child))
                        shares.append((low, stop))
                    low = stop
            # of all children at once: on a distant storage each request takes its time
            below = self.nodes.btrees(wanted)
            level = [(node, child.upper, *share) for node, child, share in zip(below, wanted, shares, strict=True)]

    def scan(self, start: bytes = b"", stop: bytes | None = None) -> Iterator[tuple[LeafNode, int, int]]:
        """The leaves that hold keys in ``[start, stop)``, in order, each with the run of its entries in the range."""
        root = self._root()
        if root is None or (stop is not None and start >= stop):
            return
        # the open path: each node with its upper bound and the children still to be visited
        path: list[tuple[BTreeNode, bytes | None, Iterator[int]]] = [(root, None, _children(root, start, stop))]
        while path:
            node, upper, children = path[-1]
            if isinstance(node, LeafNode):
                low = search(node.keys, start)
                high = len(node.keys) if stop is None else search(node.keys, stop)
                if low < high:
                    yield node, low, high
                path.pop()
                continue
            child = next(children, None)
            if child is None:
                path.pop()
                continue
            wanted = _child(node, upper, child)
            (below,) = self.nodes.btrees([wanted])
            path.append((below, wanted.upper, _children(below, start, stop)))

    def _root(self) -> BTreeNode | None:
        version = self.version
        if version.root is None:
            return None
        return self.nodes.btree(version.root, version.root_height, b"", b"", None)


def _child(node: InteriorNode, upper: bytes | None, child: int) -> Child:
    """What an interior node says of a child."""
    key = node.keys[child]
    end = node.keys[child + 1] if child + 1 < len(node.keys) else upper
    return Child(node.location(child), node.height - 1, key[: int(node.subtree_prefix_lengths[child])], key, end)


def _look_up(leaf: LeafNode, keys: Sequence[bytes]) -> Sequence[Found]:
    """The value of each key of a leaf."""
    if len(keys) > 1 and len(keys) * MANY_SEARCHES > len(leaf.keys):
        # all documents, or the chunk of each array: keys at equal distances, if they come in order
        first, last = search(leaf.keys, keys[0]), search(leaf.keys, keys[-1])
        step = max(1, (last - first) // (len(keys) - 1))
        if leaf.keys[first : last + 1][::step] == keys:
            return FoundColumns.of(leaf, slice(first, last + 1, step))
        places = all_places(leaf.keys)
        return FoundColumns.of(leaf, np.array([places.get(key, -1) for key in keys], np.intp))
    answers: list[Found] = []
    for key in keys:
        at = search(leaf.keys, key)
        answers.append(leaf.value(at) if at < len(leaf.keys) and leaf.keys[at] == key else None)
    return answers


def _in_order(parts: Sequence[Sequence[Found]], ordered: Sequence[bytes], keys: Sequence[bytes]) -> Sequence[Found]:
    """The values of the keys, from those of neighbours among them."""
    is_as_asked = ordered == keys
    places = {} if is_as_asked else dict(zip(ordered, range(len(ordered)), strict=True))
    columns = [part for part in parts if isinstance(part, FoundColumns)]
    if len(columns) == len(parts):
        joined = FoundColumns.joined(columns)
        return joined if is_as_asked else joined.take(np.array(list(map(places.__getitem__, keys)), np.intp))
    found = [value for part in parts for value in part]
    return found if is_as_asked else [found[places[key]] for key in keys]


def _children(node: BTreeNode, start: bytes, stop: bytes | None) -> Iterator[int]:
    """The entries of an interior node whose subtrees may hold keys in ``[start, stop)``."""
    if isinstance(node, LeafNode):
        return iter(())
    first = max(0, bisect_right(node.keys, start) - 1)
    return iter(range(first, len(node.keys) if stop is None else bisect_left(node.keys, stop)))
