"""``ocdbt tree URL``: a checkpoint's pytree, or a database's keys with ``/`` as the separator."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from ocdbt_py.cli.leaves import leaves
from ocdbt_py.cli.target import Target, add_target_arguments, open_target
from ocdbt_py.view.results import Item, Tree, TreeNode
from ocdbt_py.view.spelling import spelled

_DEEPEST = 100
"""Levels shown at most; a tree may be nested ten thousand deep."""

Path = Sequence[str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-d", "--depth", type=int, default=_DEEPEST, metavar="LEVELS", help="show only so many levels")
    add_target_arguments(parser)


def run(arguments: argparse.Namespace) -> Tree:
    target = open_target(arguments)
    items = list(_items(target))
    arrays = [item for _, item in items if item.shape is not None]
    return Tree(
        url=target.url,
        kind=target.kind,
        version=target.generation,
        nodes=tuple(_nodes(items, max(1, min(arguments.depth, _DEEPEST)))),
        items=len(items),
        arrays=len(arrays),
        parameters=sum(math.prod(item.shape or ()) for item in arrays),
        nbytes=sum(item.nbytes or 0 for _, item in items),
    )


def _items(target: Target) -> Iterator[tuple[Path, Item]]:
    if target.checkpoint is not None:
        for leaf in leaves(target.checkpoint):
            yield leaf.path, leaf.item
        return
    for entry in target.keys.scan():
        key = spelled(entry.key)
        yield key.split("/"), Item(key, "value", nbytes=entry.size)


@dataclass(slots=True)
class _Branch:
    """A container that is not complete yet: its name, its line, and what it has so far."""

    name: str
    line: int
    items: int = 0
    nbytes: int = 0


def _nodes(items: Iterable[tuple[Path, Item]], levels: int) -> list[TreeNode]:
    """Lines in preorder, from items in the order of the tree: those of one container follow each other."""
    nodes: list[TreeNode] = []
    branches: list[_Branch] = []

    def close(depth: int) -> None:
        while len(branches) > depth:
            done = branches.pop()
            nodes[done.line] = replace(nodes[done.line], items=done.items, nbytes=done.nbytes)

    for path, item in items:
        containers = path[:-1][:levels]
        shared = 0
        while shared < min(len(branches), len(containers)) and branches[shared].name == containers[shared]:
            shared += 1
        close(shared)
        for depth, name in enumerate(containers[shared:], start=shared):
            branches.append(_Branch(name, len(nodes)))
            nodes.append(TreeNode(depth, name, "container", None, None, 0, 0, hidden=depth + 1 == levels))
        for branch in branches:
            branch.items += 1
            branch.nbytes += item.nbytes or 0
        if len(containers) < levels:
            name = path[-1] if path else ""
            nodes.append(TreeNode(len(containers), name, item.type, item.dtype, item.shape, item.nbytes or 0, 0))
    close(0)
    return nodes
