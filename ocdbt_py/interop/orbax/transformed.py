"""Restores in which the target's leaves are not simply the stored ones: transformations, and old checkpoints.

Orbax does both in one way, and so does this. Of the stored leaves those are read that the target, through the
transformations, asks for; then the target's leaves are taken from these by path, or computed.

In a checkpoint without ``_METADATA``, or with leaves in the msgpack file beside it, nothing says of which type a leaf
was: it comes back as a ``jax.Array`` where its arguments are of the kind for that, and else as a NumPy array.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from ocdbt_py.checkpoint.flatten import ABSENT, unflatten_paths
from ocdbt_py.checkpoint.metadata import ValueType
from ocdbt_py.checkpoint.stored import StoredTree
from ocdbt_py.errors import InvalidArgumentError, KeyNotFoundError
from ocdbt_py.interop.orbax.leaf_reading import read_leaves
from ocdbt_py.interop.orbax.matching import args_by_leaf, opened
from ocdbt_py.interop.orbax.restore_args import ArrayRestoreArgs, RestoreArgs
from ocdbt_py.interop.orbax.transform_utils import RestoreTransform, Transform, apply_transformations, flat_transforms
from ocdbt_py.interop.orbax.tree import deserialize_tree, from_flat_dict, to_flat_dict

__all__ = ["restore_transformed"]

_Names = tuple[str, ...]


def restore_transformed(stored: StoredTree, args: Any, *, knows_types: bool = False) -> Any:
    """The stored tree as a ``PyTreeRestore`` with ``transforms`` asks, or an old one with or without.

    ``knows_types``: whether the stored tree says of each leaf what it was. Raises what
    :func:`~ocdbt_py.interop.orbax.restoring.restore_pytree` does.
    """
    target, transforms = args.item, args.transforms
    paths = [record.path for record in stored.leaves]
    if transforms is None:
        if target is not None and not knows_types and _is_flat(stored):
            return _by_name(stored, target, args.restore_args)
        wanted = dict(enumerate(args_by_leaf(paths, args.restore_args, stored.place.url)))
        restored = unflatten_paths(paths, _in_order(stored, _read(stored, wanted, knows_types)))
        return restored if target is None else deserialize_tree(restored, target)
    if target is None:
        raise InvalidArgumentError("transforms= say where the leaves of item= come from; give that, too")
    wanted = _wanted(stored, target, args)
    values = _in_order(stored, _read(stored, wanted, knows_types))
    leaves = [... if value is ABSENT else value for value in values]
    restored = unflatten_paths(paths, leaves)
    if args.restore_args is None:
        raise InvalidArgumentError("transforms= need restore_args=, with the structure of item=")
    made = _with_args(transforms, to_flat_dict(args.restore_args, sep="/"))
    return apply_transformations(restored, made, target, args.transforms_default_to_original)


def _is_flat(stored: StoredTree) -> bool:
    """Whether the names of arrays are all there is, with no tree of them."""
    return all(len(record.path) <= 1 for record in stored.leaves) and bool(stored.documents)


def _by_name(stored: StoredTree, target: Any, restore_args: Any) -> Any:
    """The leaves of a target from arrays that have nothing but names."""
    flat = opened(target)
    index = {name: i for i, name in enumerate(stored.names)}
    wanted, sources = {}, []
    for path, args in zip(flat.paths, args_by_leaf(flat.paths, restore_args, stored.place.url), strict=True):
        name = ".".join(key.name for key in path)
        if name not in index:
            raise KeyNotFoundError(f"There is no array {name!r} in {stored.place.url}", url=stored.place.url)
        sources.append(index[name])
        wanted[index[name]] = args
    values = _read(stored, wanted, knows_types=False)
    return flat.rebuild([values[i] for i in sources])


def _in_order(stored: StoredTree, values: Mapping[int, Any]) -> list[Any]:
    return [values.get(i, ABSENT) for i in range(len(stored.leaves))]


def _read(stored: StoredTree, wanted: Mapping[int, RestoreArgs], knows_types: bool) -> dict[int, Any]:
    empty = {i for i in wanted if stored.leaves[i].value_type in ValueType.EMPTY}
    asked = {i: args if knows_types else _typed(args, stored, i) for i, args in wanted.items() if i not in empty}
    return read_leaves(stored, asked) | {i: stored.plain(i) for i in empty}


def _typed(args: RestoreArgs, stored: StoredTree, i: int) -> RestoreArgs:
    """Arguments that name a type, for a leaf of which nothing says what it was."""
    kind = stored.leaves[i].value_type
    if kind in (ValueType.STRING, ValueType.SCALAR):  # stands in the file itself
        return RestoreArgs(dtype=args.dtype if kind == ValueType.SCALAR else None)
    if args.restore_type is not None:
        return args
    word = ValueType.JAX_ARRAY if isinstance(args, ArrayRestoreArgs) else ValueType.NUMPY_ARRAY
    return dataclasses.replace(args, restore_type=word)


def _wanted(stored: StoredTree, target: Any, args: Any) -> dict[int, RestoreArgs]:
    """The stored leaves that the target takes through the transformations, with the arguments of what they become."""
    transforms: dict[_Names, Transform] = flat_transforms(args.transforms)
    in_target = to_flat_dict(target, keep_empty_nodes=True)
    given = {} if args.restore_args is None else to_flat_dict(args.restore_args, keep_empty_nodes=True)
    wanted: dict[int, RestoreArgs] = {}
    for i, record in enumerate(stored.leaves):
        names = tuple(key.name for key in record.path)
        its = _args_through(names, in_target, transforms, given)
        if its is not None:
            wanted[i] = its
        elif names in in_target and _falls_back(names, transforms) is not bool(args.transforms_default_to_original):
            wanted[i] = _or_default(given.get(names))
    return wanted


def _or_default(args: Any) -> RestoreArgs:
    return args if isinstance(args, RestoreArgs) else RestoreArgs()


def _args_through(
    names: _Names, target: Mapping[_Names, Any], transforms: Mapping[_Names, Transform], given: Mapping[_Names, Any]
) -> RestoreArgs | None:
    """The arguments of a stored leaf that a transformation takes; None if none does."""
    stored_key = "/".join(names)
    for pattern, transform in transforms.items():
        if transform.multi_value_fn is not None:
            inputs = _inputs(transform)
            for input_pattern, args in inputs.items():
                if re.fullmatch(input_pattern, stored_key):
                    return _or_default(args)
        elif not transform.use_fallback:
            for key in target:
                match = re.fullmatch("/".join(pattern), "/".join(key))
                if match is None:
                    continue
                source = "/".join(key) if transform.original_key is None else match.expand(transform.original_key)
                if source == stored_key:
                    return _or_default(given.get(key))
    return None


def _inputs(transform: Transform) -> Mapping[str, Any]:
    if not isinstance(transform, RestoreTransform):
        raise InvalidArgumentError("While restoring, a multi_value_fn is one of a RestoreTransform")
    if transform.multi_value_fn_input_args is None:
        raise InvalidArgumentError("multi_value_fn_input_args say which leaves the multi_value_fn needs; give them")
    return transform.multi_value_fn_input_args


def _falls_back(names: _Names, transforms: Mapping[_Names, Transform]) -> bool:
    key = "/".join(names)
    return any(each.use_fallback and re.fullmatch("/".join(pattern), key) for pattern, each in transforms.items())


def _with_args(transforms: Any, given: Mapping[str, Any]) -> Any:
    """The transformations with functions that need no arguments any more."""

    def bound(transform: Transform) -> Transform:
        function = transform.multi_value_fn
        if function is None:
            return transform
        return Transform(multi_value_fn=lambda key, tree: function(key, tree, given[key]))

    return from_flat_dict({key: bound(each) for key, each in flat_transforms(transforms).items()})
