"""``SaveArgs``: how single leaves of a tree are stored.

``dtype`` converts a leaf before it is saved. ``chunk_byte_size`` bounds the bytes of a chunk; all arrays of a tree are
cut alike here, so the smallest that was given holds for all. ``shard_axes`` says which axes to cut first; any cut reads
the same, so this one is left to the library. ``aggregate`` is of releases before 0.6, and Orbax ignores it as well.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ocdbt_py.errors import StructureError

__all__ = ["SaveArgs", "apply_save_args", "map_with"]


@dataclass
class SaveArgs:
    """How one leaf is stored. ``chunk_byte_size``: bytes of a chunk at most."""

    aggregate: bool = False
    dtype: Any = None
    chunk_byte_size: int | None = None
    shard_axes: tuple[int, ...] = ()


def apply_save_args(tree: Any, save_args: Any) -> tuple[Any, int | None]:
    """``tree`` with every leaf in the dtype its :class:`SaveArgs` ask for, and the smallest chunk size among them.

    ``save_args`` has the tree's structure, with None where there is nothing to say. Raises :class:`StructureError`.
    """
    if save_args is None:
        return tree, None
    sizes: list[int] = []

    def apply(leaf: Any, args: Any) -> Any:
        if args is None:
            return leaf
        size = getattr(args, "chunk_byte_size", None)
        if size is not None:
            sizes.append(size)
        dtype = getattr(args, "dtype", None)
        return leaf if dtype is None else _as_dtype(leaf, dtype)

    return map_with(apply, tree, save_args), min(sizes, default=None)


def map_with(function: Callable[[Any, Any], Any], tree: Any, other: Any) -> Any:
    """A tree of what ``function`` makes of each leaf of ``tree`` and of what ``other`` has in its place."""
    jax = sys.modules.get("jax")
    if jax is not None and hasattr(jax, "tree_util"):  # it knows of nodes that others registered
        leaves, structure = jax.tree_util.tree_flatten(tree)
        try:
            others = structure.flatten_up_to(other)
        except (ValueError, TypeError) as error:
            raise _mismatch(str(error)) from None
        return structure.unflatten([function(leaf, its) for leaf, its in zip(leaves, others, strict=True)])
    return _map_plain(function, tree, other, "")


def _map_plain(function: Callable[[Any, Any], Any], tree: Any, other: Any, name: str) -> Any:
    """The same for dicts, lists and tuples, without JAX."""
    if tree is None:
        return None
    if isinstance(tree, Mapping):
        if not isinstance(other, Mapping) or tree.keys() != other.keys():
            raise _mismatch(f"the keys of {name or 'the tree'} differ")
        return {key: _map_plain(function, value, other[key], f"{name}.{key}") for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        if not isinstance(other, list | tuple) or len(tree) != len(other):
            raise _mismatch(f"the lengths of {name or 'the tree'} differ")
        made = [_map_plain(function, a, b, f"{name}.{i}") for i, (a, b) in enumerate(zip(tree, other, strict=True))]
        if isinstance(tree, list):
            return made
        return type(tree)(*made) if hasattr(tree, "_fields") else tuple(made)
    return function(tree, other)


def _mismatch(what: str) -> StructureError:
    return StructureError(f"save_args has not the structure of what is saved: {what}")


def _as_dtype(leaf: Any, dtype: Any) -> Any:
    if isinstance(leaf, str) or leaf is None:
        return leaf
    if hasattr(leaf, "astype"):
        return leaf.astype(dtype)
    return np.asarray(leaf).astype(dtype)[()]
