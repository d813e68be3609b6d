"""``v1.tree``: merging trees, and the names of types."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from ocdbt_py.errors import InvalidArgumentError, StructureError

__all__ = ["AbstractLeaf", "JsonType", "Leaf", "PyTree", "PyTreeKey", "PyTreeKeyPath", "PyTreeOf", "merge"]

T = TypeVar("T")

PyTree = Any
"""Nested containers with leaves."""

PyTreeKey = Any
PyTreeKeyPath = tuple[Any, ...]
Leaf = Any
AbstractLeaf = Any
JsonType = Any


class PyTreeOf(Generic[T]):
    """``PyTreeOf[Leaf]``: a tree with such leaves, for annotations."""


def merge(*trees: Any, overwrite: bool = False, is_leaf: Callable[[Any], bool] | None = None) -> Any:
    """One tree of several: all keys of their dicts and namedtuples, and lists of one length position by position.

    A leaf that several have: with ``overwrite`` the last one's that is not None, else :class:`InvalidArgumentError`.
    :class:`StructureError` where containers are of different kinds or lengths. Both are a ``ValueError``.

    >>> merge({"a": {"x": 1}}, {"a": {"y": 2}, "b": 3})
    {'a': {'x': 1, 'y': 2}, 'b': 3}
    """
    merged: Any = trees[0] if trees else {}
    for tree in trees[1:]:
        merged = _merged(merged, tree, (), overwrite, is_leaf or _is_leaf)
    return merged


def _is_leaf(node: Any) -> bool:
    return not isinstance(node, Mapping | list | tuple)


def _merged(first: Any, second: Any, at: tuple[Any, ...], overwrite: bool, is_leaf: Callable[[Any], bool]) -> Any:
    """``second`` wins."""
    name = ".".join(map(str, at)) or "the tree"
    if is_leaf(first) or is_leaf(second):
        if not overwrite:
            raise InvalidArgumentError(f"Several trees have {name}; overwrite=True takes the last one's")
        return first if second is None else second
    if type(first) is not type(second) and not overwrite:
        raise StructureError(f"{name} is a {type(first).__name__} in one tree and a {type(second).__name__} in another")
    if isinstance(second, Mapping) or hasattr(second, "_fields"):
        old, new = (node if isinstance(node, Mapping) else _fields(node, name) for node in (first, second))
        both = dict(old)
        for key, value in new.items():
            both[key] = _merged(both[key], value, (*at, key), overwrite, is_leaf) if key in both else value
        if isinstance(second, Mapping):
            return both if type(second) is dict else type(second)(both)  # type: ignore[call-arg]
        return type(second)(**both)
    if not isinstance(first, Sequence) or len(first) != len(second):
        raise StructureError(f"{name} has not the same length in all trees")
    pairs = enumerate(zip(first, second, strict=True))
    made = [_merged(old, new, (*at, i), overwrite, is_leaf) for i, (old, new) in pairs]
    return made if isinstance(second, list) else tuple(made)


def _fields(node: Any, name: str) -> dict[str, Any]:
    if not hasattr(node, "_fields"):
        raise StructureError(f"{name} is a {type(node).__name__} in one tree, and has names in another")
    return dict(zip(node._fields, node, strict=True))
