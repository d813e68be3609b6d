"""A checkpoint's leaves with their names, types and sizes, from metadata alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from ocdbt_py.checkpoint.checkpoint import ArrayInfo, Checkpoint
from ocdbt_py.view.results import Item, type_name
from ocdbt_py.view.spelling import spelled


class Leaf(NamedTuple):
    """``name`` as stored; ``path`` and ``item`` as they are shown; ``info`` of an array or a number, else None."""

    name: str
    path: tuple[str, ...]
    item: Item
    info: ArrayInfo | None


def leaves(checkpoint: Checkpoint) -> Iterator[Leaf]:
    """Every leaf, in the order of the tree."""
    for path, leaf in _walk(checkpoint.tree):
        name = ".".join(path)
        shown = spelled(name)
        info = leaf if isinstance(leaf, ArrayInfo) else None
        if info is not None:
            item = Item(shown, "array", info.dtype.name, info.shape, info.nbytes)
        else:
            item = Item(shown, type_name(leaf))
        yield Leaf(name, tuple(map(spelled, path)), item, info)


def _walk(tree: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Dicts and lists, which is all that a tree without a target has; with a stack, since they may be nested deeply."""
    pending: list[tuple[tuple[str, ...], Any]] = [((), tree)]
    while pending:
        path, node = pending.pop()
        if not isinstance(node, dict | list) or not node:
            yield path, node
            continue
        children = node.items() if isinstance(node, dict) else enumerate(node)
        pending += [((*path, str(key)), child) for key, child in reversed(list(children))]
