"""Where two versions' trees differ, reading only what differs.

Both trees are walked side by side in key order. Two references to the same node need no look inside, and since a commit
writes only the nodes it changes, two neighbouring versions share nearly all of theirs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from ocdbt_py.engine.tree import Found, Tree
from ocdbt_py.format.btree import LeafNode
from ocdbt_py.format.datafile import Location
from ocdbt_py.format.key_column import search


class Difference(NamedTuple):
    """A key whose value differs; None where the key is absent. Out of line, another place is another value."""

    key: bytes
    before: Found
    after: Found


class _Unread(NamedTuple):
    """A node that nobody has looked into yet, holding keys from ``key`` on."""

    key: bytes
    location: Location
    height: int
    prefix: bytes
    lower: bytes
    upper: bytes | None


@dataclass(slots=True)
class _Run:
    """The entries of a leaf that are still to be compared."""

    leaf: LeafNode
    at: int
    stop: int

    @property
    def key(self) -> bytes:
        return self.leaf.keys[self.at]


class _Side:
    """What one tree still holds, the smallest keys on top; unread nodes until there is a reason to read them."""

    def __init__(self, tree: Tree, start: bytes, stop: bytes | None) -> None:
        self._tree = tree
        self._start = start
        self._stop = stop
        root = tree.version.root
        self.pending: list[_Unread | _Run] = []
        if root is not None:
            self.pending.append(_Unread(start, root, tree.version.root_height, b"", b"", None))

    def expand(self) -> None:
        """Read the unread node on top."""
        unread = self.pending.pop()
        assert isinstance(unread, _Unread)
        _, location, height, prefix, lower, upper = unread
        node = self._tree.nodes.btree(location, height, prefix, lower, upper)
        if isinstance(node, LeafNode):
            low = search(node.keys, self._start)
            high = len(node.keys) if self._stop is None else search(node.keys, self._stop)
            if low < high:
                self.pending.append(_Run(node, low, high))
            return
        ends = [*node.keys[1:], upper]
        for i in reversed(range(len(node.keys))):
            key, end = node.keys[i], ends[i]
            if (self._stop is None or key < self._stop) and (end is None or end > self._start):
                prefix = key[: int(node.subtree_prefix_lengths[i])]
                self.pending.append(_Unread(key, node.location(i), height - 1, prefix, key, end))

    def take(self) -> tuple[bytes, Found]:
        """The smallest key and its value, which are then behind us."""
        run = self.pending[-1]
        assert isinstance(run, _Run)
        key, value = run.key, run.leaf.value(run.at)
        run.at += 1
        if run.at == run.stop:
            self.pending.pop()
        return key, value


def differences(before: Tree, after: Tree, start: bytes = b"", stop: bytes | None = None) -> Iterator[Difference]:
    """The keys in ``[start, stop)`` that differ between two versions of one database, in order."""
    old, new = _Side(before, start, stop), _Side(after, start, stop)
    while old.pending or new.pending:
        left = old.pending[-1] if old.pending else None
        right = new.pending[-1] if new.pending else None
        if isinstance(left, _Unread) and isinstance(right, _Unread):
            if (left.location, left.height) == (right.location, right.height):
                old.pending.pop()
                new.pending.pop()
            elif left.height >= right.height:
                old.expand()
            else:
                new.expand()
        elif isinstance(left, _Unread) and not (isinstance(right, _Run) and right.key < left.key):
            old.expand()
        elif isinstance(right, _Unread) and not (isinstance(left, _Run) and left.key < right.key):
            new.expand()
        elif right is None or (left is not None and left.key < right.key):
            key, value = old.take()
            yield Difference(key, value, None)
        elif left is None or right.key < left.key:
            key, value = new.take()
            yield Difference(key, None, value)
        else:
            (key, was), (_, now) = old.take(), new.take()
            if was != now:
                yield Difference(key, was, now)
