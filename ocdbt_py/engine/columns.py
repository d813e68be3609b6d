"""Merge and cut the columns of B-tree nodes.

A rewrite never builds an object per entry: what stays and what comes in become one node (:func:`merge`), however
large, and runs of it the nodes that are written (:func:`cut`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ocdbt_py.format.btree import InteriorNode, LeafNode
from ocdbt_py.format.datafile import DataFileId, Location
from ocdbt_py.format.key_column import LONG, KeyColumn, key_lengths, merge_keys

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


def packed(node: Node) -> Node:
    """The same with the keys of a long leaf as a column; ``InvalidArgumentError`` unless they are increasing."""
    if isinstance(node, LeafNode) and len(node.keys) > LONG and not isinstance(node.keys, KeyColumn):
        return replace(node, keys=KeyColumn.of(node.keys))
    return node


def merge(node: Node, keep: NDArray[np.bool_], new: Node, places: NDArray[np.int64]) -> Node:
    """The entries to ``keep``, with those of ``new`` put before the entries at these ``places``, one for each.

    It comes out with no more files, and a leaf with no more inline bytes, than it needs: nodes are kept and merged into
    again, commit after commit.
    """
    kept, added = keep.nonzero()[0], np.arange(len(places))
    is_new = np.zeros(len(kept) + len(places), bool)
    is_new[kept.searchsorted(places) + added] = True
    order = np.empty(len(is_new), np.int64)
    order[is_new], order[~is_new] = added + len(node.keys), kept
    keys = merge_keys(node.keys, new.keys, order)
    new_is_inline = new.file_ids == INLINE
    file_ids = np.concatenate((node.file_ids, np.where(new_is_inline, INLINE, new.file_ids + len(node.files))))
    file_ids, files = _used(file_ids[order], node.files + new.files)
    if isinstance(node, LeafNode) and isinstance(new, LeafNode):
        offsets = np.concatenate((node.offsets, new.offsets + new_is_inline * len(node.inline)))[order]
        lengths = np.concatenate((node.lengths, new.lengths))[order]
        offsets, inline = _compact(file_ids == INLINE, offsets, lengths, node.inline + new.inline)
        return LeafNode(keys=keys, lengths=lengths, file_ids=file_ids, offsets=offsets, inline=inline, files=files)
    assert isinstance(node, InteriorNode)
    assert isinstance(new, InteriorNode)
    columns = {name: np.concatenate((getattr(node, name), getattr(new, name)))[order] for name in _INTERIOR_COLUMNS}
    return InteriorNode(height=node.height, keys=keys, files=files, file_ids=file_ids, **columns)


def _used(
    file_ids: NDArray[np.int64], files: tuple[DataFileId, ...]
) -> tuple[NDArray[np.int64], tuple[DataFileId, ...]]:
    """The files that are referred to, and their new numbers."""
    if not files:
        return file_ids, files
    used = np.bincount(file_ids[file_ids != INLINE], minlength=len(files)).nonzero()[0]
    if len(used) == len(files):
        return file_ids, files
    numbers = np.full(len(files) + 1, INLINE, np.int64)  # one more, for INLINE = -1 to index
    numbers[used] = np.arange(len(used))
    return numbers[file_ids], tuple(files[i] for i in used.tolist())


def _compact(
    is_inline: NDArray[np.bool_], offsets: NDArray[np.int64], lengths: NDArray[np.int64], data: bytes
) -> tuple[NDArray[np.int64], bytes]:
    """Inline values one after the other, and their new offsets. Long runs of them lie so already, and move as one."""
    starts = offsets[is_inline]
    if not len(starts):
        return offsets, b""
    sizes = lengths * is_inline
    stops = starts + lengths[is_inline]
    breaks = (starts[1:] != stops[:-1]).nonzero()[0]
    runs = zip([int(starts[0]), *starts[breaks + 1].tolist()], [*stops[breaks].tolist(), int(stops[-1])], strict=True)
    inline = b"".join([data[start:stop] for start, stop in runs])
    return np.where(is_inline, sizes.cumsum() - sizes, offsets), inline


def cut(node: Node, start: int, stop: int) -> Node:
    """The entries ``[start, stop)``; the columns are views."""
    if start == 0 and stop == len(node.keys):
        return node
    run = slice(start, stop)
    keys = node.keys.part(start, stop) if isinstance(node.keys, KeyColumn) else node.keys[run]
    if isinstance(node, LeafNode):
        return LeafNode(
            keys=keys,
            lengths=node.lengths[run],
            file_ids=node.file_ids[run],
            offsets=node.offsets[run],
            inline=node.inline,
            files=node.files,
        )
    columns = {name: getattr(node, name)[run] for name in _INTERIOR_COLUMNS}
    return InteriorNode(height=node.height, keys=keys, files=node.files, file_ids=node.file_ids[run], **columns)


def decoded_sizes(node: LeafNode | InteriorNode) -> NDArray[np.int64]:
    """What each entry weighs in :func:`~ocdbt_py.engine.split.split`, in bytes."""
    keys = key_lengths(node.keys)
    # one more, for INLINE = -1 to index
    paths = np.array([len(file.base_path) + len(file.relative_path) for file in node.files] + [0], np.int64)
    if isinstance(node, InteriorNode):
        return keys + INTERIOR_ENTRY_BYTES + paths[node.file_ids]
    values = np.where(node.file_ids == INLINE, node.lengths, INDIRECT_VALUE_BYTES + paths[node.file_ids])
    return keys + LEAF_ENTRY_BYTES + values


def saturating_sum(values: Iterable[int] | NDArray[np.uint64]) -> int:
    """A sum of statistics, which stop at 2**64 - 1 ("Statistics"). They come from files, unchecked."""
    if isinstance(values, np.ndarray):
        if len(values) and int(values.max()) < (1 << 63) // len(values):
            return int(values.sum(dtype=np.uint64))
        values = values.tolist()
    return min(sum(values), (1 << 64) - 1)
