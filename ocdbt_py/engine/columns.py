"""Join, pick and cut the columns of B-tree nodes.

A rewrite never builds an object per entry: what stays and what comes in are laid one behind the other (:func:`join`),
one array of indices says which entries the new node has and in what order (:func:`pick`), and runs of it become nodes
(:func:`cut`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ocdbt_py.format.btree import InteriorNode, LeafNode
from ocdbt_py.format.datafile import DataFileId, Location

LEAF_ENTRY_BYTES = 16
INDIRECT_VALUE_BYTES = 16
INTERIOR_ENTRY_BYTES = 56

INLINE = -1

Node = TypeVar("Node", LeafNode, InteriorNode, LeafNode | InteriorNode)
_INTERIOR_COLUMNS = (
    "subtree_prefix_lengths",
    "offsets",
    "lengths",
    "num_keys",
    "num_tree_bytes",
    "num_indirect_value_bytes",
)


class Child(NamedTuple):
    """What a parent says of one node: the entry of an interior node, or the root in a version."""

    key: bytes
    subtree_prefix_length: int
    location: Location
    num_keys: int
    num_tree_bytes: int
    num_indirect_value_bytes: int


def empty_leaf() -> LeafNode:
    none = np.empty(0, np.int64)
    return LeafNode(keys=[], lengths=none, file_ids=none, offsets=none, inline=b"", files=())


def interior_of(children: Sequence[Child], height: int) -> InteriorNode:
    """The columns of these entries, in order."""
    files: dict[DataFileId, int] = {}
    file_ids = [files.setdefault(child.location.file, len(files)) for child in children]
    return InteriorNode(
        height=height,
        keys=[child.key for child in children],
        subtree_prefix_lengths=np.array([child.subtree_prefix_length for child in children], np.int64),
        file_ids=np.array(file_ids, np.int64),
        offsets=np.array([child.location.offset for child in children], np.int64),
        lengths=np.array([child.location.length for child in children], np.int64),
        num_keys=np.array([child.num_keys for child in children], np.uint64),
        num_tree_bytes=np.array([child.num_tree_bytes for child in children], np.uint64),
        num_indirect_value_bytes=np.array([child.num_indirect_value_bytes for child in children], np.uint64),
        files=tuple(files),
    )


def join(first: Node, second: Node) -> Node:
    """The entries of ``first``, then those of ``second``; keys as they come."""
    files = first.files + second.files
    shift = len(first.files)
    keys = first.keys + second.keys
    if isinstance(first, LeafNode) and isinstance(second, LeafNode):
        inline = second.file_ids == INLINE
        return LeafNode(
            keys=keys,
            lengths=np.concatenate((first.lengths, second.lengths)),
            file_ids=np.concatenate((first.file_ids, np.where(inline, INLINE, second.file_ids + shift))),
            offsets=np.concatenate((first.offsets, second.offsets + inline * len(first.inline))),
            inline=first.inline + second.inline,
            files=files,
        )
    assert isinstance(first, InteriorNode)
    assert isinstance(second, InteriorNode)
    columns = {name: np.concatenate((getattr(first, name), getattr(second, name))) for name in _INTERIOR_COLUMNS}
    file_ids = np.concatenate((first.file_ids, second.file_ids + shift))
    return InteriorNode(height=first.height, keys=keys, files=files, file_ids=file_ids, **columns)


def pick(node: Node, order: NDArray[np.int64]) -> Node:
    """The entries at these indices, in this order."""
    keys = node.keys
    return _select(node, [keys[i] for i in order.tolist()], order)


def cut(node: Node, start: int, stop: int) -> Node:
    """The entries ``[start, stop)``; the columns are views."""
    if start == 0 and stop == len(node.keys):
        return node
    return _select(node, node.keys[start:stop], slice(start, stop))


def _select(node: Node, keys: list[bytes], index: NDArray[np.int64] | slice) -> Node:
    if isinstance(node, LeafNode):
        return LeafNode(
            keys=keys,
            lengths=node.lengths[index],
            file_ids=node.file_ids[index],
            offsets=node.offsets[index],
            inline=node.inline,
            files=node.files,
        )
    columns = {name: getattr(node, name)[index] for name in _INTERIOR_COLUMNS}
    return InteriorNode(height=node.height, keys=keys, files=node.files, file_ids=node.file_ids[index], **columns)


def decoded_sizes(node: LeafNode | InteriorNode) -> NDArray[np.int64]:
    """What each entry weighs in :func:`~ocdbt_py.engine.split.split`, in bytes."""
    keys = np.fromiter(map(len, node.keys), np.int64, len(node.keys))
    # one more, for INLINE = -1 to index
    paths = np.array([len(file.base_path) + len(file.relative_path) for file in node.files] + [0], np.int64)
    if isinstance(node, InteriorNode):
        return keys + INTERIOR_ENTRY_BYTES + paths[node.file_ids]
    values = np.where(node.file_ids == INLINE, node.lengths, INDIRECT_VALUE_BYTES + paths[node.file_ids])
    return keys + LEAF_ENTRY_BYTES + values


def common_prefix(first: bytes, last: bytes) -> int:
    """How many leading bytes two keys share."""
    if last.startswith(first):
        return len(first)
    low, high = 0, min(len(first), len(last))
    while low < high:  # bisection over slices: keys may be 65535 bytes long
        middle = (low + high + 1) // 2
        if first[:middle] == last[:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def saturating_sum(values: Iterable[int] | NDArray[np.uint64]) -> int:
    """A sum of statistics, which stop at 2**64 - 1 ("Statistics"). They come from files, unchecked."""
    if isinstance(values, np.ndarray):
        if len(values) and int(values.max()) < (1 << 63) // len(values):
            return int(values.sum(dtype=np.uint64))
        values = values.tolist()
    return min(sum(values), (1 << 64) - 1)
