"""Mutations and an old tree make a new tree: only nodes that a mutation meets are read, and only changed ones written.

The rules are TensorStore's, so that both engines grow the same tree ("Leaves", "Interior nodes and height",
"Splitting"):

* A leaf is changed if a put or delete hit it, even one that changes nothing, or a range took an entry out.
* A child that one range covers whole, with no put inside, is dropped unread.
* A changed node is replaced in its parent by none, one or several new ones; a node without entries disappears.
* Nothing is ever joined, and the height never shrinks but to nothing.

Nodes are appended children before parents, so a reference never points at what is not yet placed.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import NamedTuple

import numpy as np

from ocdbt_py.engine.columns import (
    INLINE,
    Child,
    cut,
    decoded_sizes,
    empty_leaf,
    interior_of,
    merge,
    packed,
    saturating_sum,
)
from ocdbt_py.engine.data_files import DataFiles
from ocdbt_py.engine.mutations import Staged
from ocdbt_py.engine.nodes import BTreeNode, Nodes
from ocdbt_py.engine.split import INTERIOR_MINIMUM, LEAF_MINIMUM, split
from ocdbt_py.format.btree import (
    InteriorNode,
    LeafNode,
    encode_interior_node,
    encode_leaf_node,
)
from ocdbt_py.format.config import StoredConfig
from ocdbt_py.format.datafile import Location, common_prefix_length
from ocdbt_py.format.key_column import cut_for, search


class Root(NamedTuple):
    """A tree as a version names it; ``location`` None is the empty tree."""

    height: int
    location: Location | None
    num_keys: int
    num_tree_bytes: int
    num_indirect_value_bytes: int


EMPTY = Root(0, None, 0, 0, 0)


class Rewriter:
    """Applies one commit's mutations; new nodes go to ``data_files`` behind ``prefix``."""

    def __init__(self, nodes: Nodes, config: StoredConfig, staged: Staged, data_files: DataFiles, prefix: str) -> None:
        self._nodes = nodes
        self._config = config
        self._staged = staged
        self._data_files = data_files
        self._prefix = prefix

    def rewrite(self, root: Root) -> Root | None:
        """The new tree, or None when nothing changed."""
        low, high = 0, len(self._staged.keys)
        rebuilt: BTreeNode | None
        if root.location is None:
            rebuilt = self._leaf(empty_leaf(), low, high, b"", None)
        else:
            node = self._nodes.btree(root.location, root.height, b"", b"", None)
            rebuilt = self._rebuild(node, low, high, b"", None)
        if rebuilt is None:
            return None
        if root.location is not None:
            self._nodes.forget(root.location, b"")
        if not rebuilt.keys:
            return EMPTY
        height = rebuilt.height
        while True:
            children = self._encode(rebuilt, may_be_root=True)
            if len(children) == 1:
                _, _, location, num_keys, num_tree_bytes, num_indirect_value_bytes = children[0]
                return Root(height, location, num_keys, num_tree_bytes, num_indirect_value_bytes)
            height += 1
            rebuilt = interior_of(children, height)

    def _rebuild(self, node: BTreeNode, low: int, high: int, lower: bytes, upper: bytes | None) -> BTreeNode | None:
        """The entries a node has after mutations ``[low, high)``, None when it stays as it is."""
        if isinstance(node, LeafNode):
            return self._leaf(node, low, high, lower, upper)
        return self._interior(node, low, high, lower, upper)

    def _leaf(self, node: LeafNode, low: int, high: int, lower: bytes, upper: bytes | None) -> LeafNode | None:
        staged, keys = self._staged, node.keys
        keep = np.ones(len(keys), bool)
        for key_range in staged.ranges:
            inside = key_range.intersect(lower, upper)
            if inside is not None:
                stop = len(keys) if inside.stop is None else search(keys, inside.stop)
                keep[search(keys, inside.start) : stop] = False
        if low == high and keep.all():
            return None
        puts = staged.puts_in(low, high)
        if not keys:
            return puts
        keys = cut_for(high - low, keys)
        places = np.empty(high - low, np.int64)
        for i, key in enumerate(staged.keys[low:high]):
            places[i] = at = search(keys, key)
            if at < len(keys) and keys[at] == key:
                keep[at] = False
        ranks = staged.put_ranks[low : high + 1]
        return merge(node, keep, puts, places[ranks[1:] > ranks[:-1]])

    def _interior(
        self, node: InteriorNode, low: int, high: int, lower: bytes, upper: bytes | None
    ) -> InteriorNode | None:
        keep = np.ones(len(node.keys), bool)
        replacements: list[Child] = []
        places: list[int] = []
        for child, first, last in self._touched(node, low, high, lower, upper):
            # A child begins where its entry says, but the first one takes every smaller key as well.
            begin = node.keys[child] if child else lower
            end = node.keys[child + 1] if child + 1 < len(node.keys) else upper
            no_puts = self._staged.put_ranks[first] == self._staged.put_ranks[last]
            if no_puts and any(key_range.covers(begin, end) for key_range in self._staged.ranges):
                keep[child] = False
                continue
            prefix = node.keys[child][: int(node.subtree_prefix_lengths[child])]
            below = self._nodes.btree(node.location(child), node.height - 1, prefix, node.keys[child], end)
            rebuilt = self._rebuild(below, first, last, begin, end)
            if rebuilt is None:
                continue
            self._nodes.forget(node.location(child), prefix)
            keep[child] = False
            new = self._encode(rebuilt, may_be_root=False)
            replacements += new
            places += [child] * len(new)
        if keep.all():
            return None
        return merge(node, keep, interior_of(replacements, node.height), np.array(places, np.int64))

    def _touched(
        self, node: InteriorNode, low: int, high: int, lower: bytes, upper: bytes | None
    ) -> list[tuple[int, int, int]]:
        """The children that a mutation or a range meets, in order, each with its mutations."""
        keys, staged = node.keys, self._staged
        spans: dict[int, tuple[int, int]] = {}
        at = low
        while at < high:
            child = max(0, bisect_right(keys, staged.keys[at]) - 1)
            end = keys[child + 1] if child + 1 < len(keys) else upper
            _, stop = staged.span(staged.keys[at], end, at, high)
            spans[child] = (at, stop)
            at = stop
        for key_range in staged.ranges:
            inside = key_range.intersect(lower, upper)
            if inside is None:
                continue
            first = max(0, bisect_right(keys, inside.start) - 1)
            last = len(keys) if inside.stop is None else max(first + 1, bisect_left(keys, inside.stop))
            for child in range(first, last):
                spans.setdefault(child, (low, low))
        return [(child, *span) for child, span in sorted(spans.items())]

    def _encode(self, node: BTreeNode, *, may_be_root: bool) -> list[Child]:
        """Cut the entries into nodes, append these, and say where they lie. Only a lone node can be the root."""
        if not node.keys:
            return []
        shared = common_prefix_length(node.keys[0], node.keys[-1])
        minimum = LEAF_MINIMUM if isinstance(node, LeafNode) else INTERIOR_MINIMUM
        runs = split(decoded_sizes(node), shared, self._config.max_decoded_node_bytes, minimum)
        whole = len(runs) == 1
        return [self._append(packed(cut(node, *run)), is_root=may_be_root and whole, is_whole=whole) for run in runs]

    def _append(self, node: BTreeNode, *, is_root: bool, is_whole: bool) -> Child:
        excluded = 0 if is_root else common_prefix_length(node.keys[0], node.keys[-1])
        compression = self._config.compression
        if isinstance(node, LeafNode):
            data = encode_leaf_node(node, excluded=excluded, compression=compression)
            num_keys, below = len(node.keys), 0
            indirect = saturating_sum(node.lengths[node.file_ids != INLINE].astype(np.uint64))
        else:
            # a key below may share less than the entries' keys do
            excluded = min(excluded, int(node.subtree_prefix_lengths.min()))
            data = encode_interior_node(node, excluded=excluded, compression=compression)
            num_keys = saturating_sum(node.num_keys)
            below = saturating_sum(node.num_tree_bytes)
            indirect = saturating_sum(node.num_indirect_value_bytes)
        location = self._data_files.append(self._prefix, data)
        if is_whole:
            self._nodes.keep(location, node.keys[0][:excluded], node)  # the next commit is likely to change it again
        return Child(node.keys[0], excluded, location, num_keys, saturating_sum((len(data), below)), indirect)
