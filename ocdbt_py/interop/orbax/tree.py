"""Pytrees by path, as Orbax has them: ``ocp.tree``. They work with JAX and without."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from ocdbt_py.checkpoint.flatten import Path, flatten, unflatten_paths
from ocdbt_py.checkpoint.names import leaf_name
from ocdbt_py.errors import CorruptDataError, InvalidArgumentError, InvalidTypeError, KeyNotFoundError
from ocdbt_py.interop.orbax.jax_access import is_key_dtype, the_jax
from ocdbt_py.interop.orbax.matching import is_empty_node, opened
from ocdbt_py.interop.orbax.metadata.sharding import ShardingMetadata
from ocdbt_py.interop.orbax.target_args import sharding_or_layout

__all__ = [
    "JsonType",
    "PyTree",
    "deserialize_tree",
    "from_flat_dict",
    "get_param_names",
    "is_flat_dict",
    "serialize_tree",
    "str_keypath",
    "to_flat_dict",
    "to_shape_dtype_struct",
]

PyTree: TypeAlias = Any
JsonType: TypeAlias = Any


def to_flat_dict(
    tree: PyTree,
    sep: str | None = None,
    keep_empty_nodes: bool = False,
    is_leaf: Callable[[Any], bool] | None = None,
) -> dict[Any, Any]:
    """Path -> leaf: a path is a tuple of ``str``, or with ``sep`` these joined by it.

    None and empty containers are left out unless ``keep_empty_nodes``; ``is_leaf`` has what is taken as a leaf instead.

    >>> to_flat_dict({"a": [1, 2], "b": {}}, sep="/")
    {'a/0': 1, 'a/1': 2}
    """
    flat = opened(tree) if is_leaf is None else flatten(tree, is_leaf)
    keeps = is_leaf or ((lambda _: True) if keep_empty_nodes else (lambda _: False))
    found: dict[Any, Any] = {}
    for path, leaf in zip(flat.paths, flat.leaves, strict=True):
        if keeps(leaf) or not is_empty_node(leaf):
            names = _names(path)
            found[names if sep is None else sep.join(names)] = leaf
    return found


def _names(path: Path) -> tuple[str, ...]:
    return tuple(key.name for key in path)


def from_flat_dict(
    flat_dict: Mapping[Any, Any], target: PyTree = None, sep: str | None = None, *, inplace: bool = False
) -> PyTree:
    """The tree that :func:`to_flat_dict` took apart: in the containers of ``target``, or nested dicts.

    ``inplace`` empties ``flat_dict`` on the way. Raises :class:`KeyNotFoundError` where the target has another leaf.

    >>> from_flat_dict({"a/0": 1, "a/1": 2}, target={"a": (0, 0)}, sep="/")
    {'a': (1, 2)}
    """
    if inplace and not isinstance(flat_dict, dict):
        raise InvalidTypeError("inplace=True takes leaves out of flat_dict, so that must be a dict")
    source = flat_dict if isinstance(flat_dict, dict) and inplace else dict(flat_dict)
    if target is None:
        return _nested(source, sep)
    flat = opened(target)
    leaves = []
    for path, leaf in zip(flat.paths, flat.leaves, strict=True):
        key: Any = _names(path) if sep is None else sep.join(_names(path))
        if not is_empty_node(leaf):
            if key not in source:
                raise KeyNotFoundError(f"There is no leaf {key!r} for the target")
            leaf = source[key]
        leaves.append(leaf)
    made = flat.rebuild(leaves)
    if inplace:
        for path in flat.paths:
            source.pop(_names(path) if sep is None else sep.join(_names(path)), None)
    return made


def _nested(source: dict[Any, Any], sep: str | None) -> Any:
    if sep is None and () in source:
        if len(source) > 1:
            raise InvalidArgumentError(f"The empty path is a tree of one leaf, but there are {list(source)[:9]}")
        return source.pop(())
    made: dict[str, Any] = {}
    for key in list(source):
        *above, last = key if sep is None else key.split(sep)
        level = made
        for name in above:
            level = level.setdefault(name, {})
        level[last] = source.pop(key)
    return made


def serialize_tree(tree: PyTree, keep_empty_nodes: bool = False) -> PyTree:
    """The tree in dicts and lists alone, as it is stored: tuples become lists, and everything else dicts.

    Raises :class:`InvalidArgumentError` for a tree without leaves.
    """
    flat = _leaves_by_path(tree, keep_empty_nodes)
    if not flat:
        raise InvalidArgumentError("A tree without leaves has no such form: is it {} or []?")
    try:
        return unflatten_paths([path for path, _ in flat], [leaf for _, leaf in flat])
    except CorruptDataError:
        raise InvalidArgumentError("A list has something empty in it; keep_empty_nodes=True keeps that") from None


def _leaves_by_path(tree: PyTree, keep_empty_nodes: bool) -> list[tuple[Path, Any]]:
    flat = opened(tree)
    pairs = zip(flat.paths, flat.leaves, strict=True)
    return [(path, leaf) for path, leaf in pairs if keep_empty_nodes or not is_empty_node(leaf)]


def deserialize_tree(serialized: PyTree, target: PyTree, keep_empty_nodes: bool = False) -> PyTree:
    """What :func:`serialize_tree` made, back in the containers of ``target``; what that has not is left out.

    Raises :class:`KeyNotFoundError` where the target has a leaf that is not there.
    """
    flat = opened(target)
    leaves = []
    for path, leaf in zip(flat.paths, flat.leaves, strict=True):
        leaves.append(leaf if is_empty_node(leaf) and not keep_empty_nodes else _at(serialized, path))
    return flat.rebuild(leaves)


def _at(tree: Any, path: Path) -> Any:
    for key in path:
        one_level = flatten(tree, lambda value, tree=tree: value is not tree)  # type: ignore[misc]
        children = {step[0].name: child for step, child in zip(one_level.paths, one_level.leaves, strict=True) if step}
        if key.name not in children:
            raise KeyNotFoundError(f"There is no leaf {leaf_name(path)!r} in the tree")
        tree = children[key.name]
    return tree


def get_param_names(item: PyTree, *, include_empty_nodes: bool = True) -> PyTree:
    """The tree with each leaf's name in its place: its path joined by ``.``."""
    flat = opened(item)
    pairs = zip(flat.paths, flat.leaves, strict=True)
    return flat.rebuild(
        [leaf_name(path) if include_empty_nodes or not is_empty_node(leaf) else leaf for path, leaf in pairs]
    )


def str_keypath(keypath: tuple[Any, ...]) -> tuple[str, ...]:
    """JAX's steps of a path as strings."""
    return tuple(_step_name(key) for key in keypath)


def _step_name(key: Any) -> str:
    for attribute in ("idx", "key", "name"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    raise InvalidTypeError(f"A step of a path is one of JAX's keys, not {type(key).__name__}")


def is_flat_dict(tree: PyTree) -> bool:
    """Whether it is a dict with nothing but leaves in it."""
    if not isinstance(tree, dict):
        return False
    flat = opened(tree)
    pairs = zip(flat.paths, flat.leaves, strict=True)
    return not tree or all(len(path) == 1 and not is_empty_node(leaf) for path, leaf in pairs)


def to_shape_dtype_struct(arr: Any, dtype: Any = None, scalar_dtype: Any = None, support_format: bool = False) -> Any:
    """``jax.ShapeDtypeStruct`` of an array or a description of one; numbers stay, or become a ``scalar_dtype``."""
    jax = the_jax("jax.ShapeDtypeStruct")
    if isinstance(arr, jax.Array) and is_key_dtype(arr.dtype):
        arr = jax.random.key_data(arr)
    if isinstance(arr, int | float | np.number):
        return arr if scalar_dtype is None else scalar_dtype(arr)
    shape = arr.shape if hasattr(arr, "shape") else arr.global_shape
    if isinstance(arr, np.ndarray):
        return jax.ShapeDtypeStruct(shape, dtype or arr.dtype)
    sharding = arr.sharding
    if isinstance(sharding, ShardingMetadata):
        sharding = sharding.to_jax_sharding()
    else:
        sharding = sharding_or_layout(arr, support_format)
    return jax.ShapeDtypeStruct(shape, dtype or arr.dtype, sharding=sharding)
