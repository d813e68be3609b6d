"""Restores with Orbax's rules: what ``StandardRestore`` and ``PyTreeRestore`` mean, for one item.

The leaves that are wanted are found first, by comparing paths (:mod:`ocdbt_py.interop.orbax.matching`); then each is
read in the form that its arguments ask for (:mod:`ocdbt_py.interop.orbax.leaf_reading`). The two kinds of restore
differ in where these arguments come from. ``PyTreeRestore`` is given them, and a leaf without any comes back as it was
saved, whatever the target looks like. ``StandardRestore`` takes them from the leaves of its target, or without one from
what is known of the stored leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ocdbt_py.checkpoint.flatten import Flat, Path, unflatten_paths
from ocdbt_py.checkpoint.layout import Kind, Layout, holds_database, identify
from ocdbt_py.checkpoint.metadata import METADATA, ValueType
from ocdbt_py.checkpoint.stored import StoredTree
from ocdbt_py.errors import InvalidArgumentError, InvalidTypeError, PathNotFoundError, StructureError
from ocdbt_py.interop.orbax.jax_access import is_key_dtype, jax_if_installed, jax_if_loaded
from ocdbt_py.interop.orbax.leaf_reading import read_leaves
from ocdbt_py.interop.orbax.matching import args_by_leaf, is_empty_node, opened, part_of, plain_tree, whole
from ocdbt_py.interop.orbax.metadata.reading import SavedShardings, leaf_metadata
from ocdbt_py.interop.orbax.metadata.sharding import ShardingMetadata
from ocdbt_py.interop.orbax.metadata.value import ArrayMetadata
from ocdbt_py.interop.orbax.restore_args import ArrayRestoreArgs, RestoreArgs
from ocdbt_py.interop.orbax.target_args import leaf_restore_args, sharding_or_layout
from ocdbt_py.interop.orbax.transformed import restore_transformed
from ocdbt_py.storage.location import Place

__all__ = ["restore_item", "restore_pytree", "restore_standard"]


def restore_item(place: Place, args: Any) -> Any:
    """The pytree at ``place``, as ``args`` ask: a ``StandardRestore`` or a ``PyTreeRestore``, told by its fields."""
    return restore_standard(place, args) if hasattr(args, "fallback_sharding") else restore_pytree(place, args)


def restore_pytree(place: Place, args: Any) -> Any:
    """The pytree at ``place`` by Orbax's ``PyTreeRestore``; of a ``StandardRestore`` by that.

    Raises :class:`PathNotFoundError` (a ``FileNotFoundError``) where there is no tree, :class:`StructureError` (a
    ``ValueError``) where target and tree differ, :class:`InvalidArgumentError` where a sharding is missing or its
    devices are, and what reading raises.
    """
    if hasattr(args, "fallback_sharding"):
        return restore_standard(place, args)
    stored, kind = _open(place)
    is_old = _is_old(stored, kind)
    if getattr(args, "legacy_transform_fn", None) is not None:
        raise InvalidArgumentError(
            "legacy_transform_fn gets Orbax's own description of files, which is not made here; use transforms=, or "
            "restore the tree and change it"
        )
    if args.item is None and kind is Kind.DATABASE:
        raise _no_tree(identify(place))
    if args.transforms is not None or is_old:
        return restore_transformed(stored, args, knows_types=not is_old)
    target = plain_tree(args.item)
    if target is None:
        return _as_stored(stored, args_by_leaf(_live_paths(stored), args.restore_args, place.url))
    flat = opened(target)
    if args.partial_restore:
        part_of(flat, _live_paths(stored), place.url)
    else:
        whole(flat, _live_paths(stored), place.url)
    wanted = args_by_leaf(flat.paths, args.restore_args, place.url)
    wanted = [_completed(each, leaf) for each, leaf in zip(wanted, flat.leaves, strict=True)]
    return _in_containers(stored, flat, wanted, skips=not args.partial_restore)


def restore_standard(place: Place, args: Any) -> Any:
    """The pytree at ``place`` by Orbax's ``StandardRestore``: arrays and numbers, in the form of a target's leaves.

    Raises what :func:`restore_pytree` does, and :class:`InvalidTypeError` (a ``ValueError``) for a leaf of the target
    that is neither array nor number.
    """
    stored, kind = _open(place)
    is_old = _is_old(stored, kind)
    target = plain_tree(args.item)
    fallback = args.fallback_sharding
    if target is None:
        _need_metadata(stored, kind)
        paths, examples, flat = _live_paths(stored), _live_metadata(stored), None
        shardings = _saved_shardings(stored, examples, fallback)
    else:
        flat = opened(target)
        paths, examples = flat.paths, flat.leaves
        for path, leaf in zip(paths, examples, strict=True):
            _check_standard(path, leaf)
        if not is_old:
            whole(flat, _live_paths(stored), place.url)
        shardings = _target_shardings(stored, kind, flat, args.support_layout, fallback)
    wanted = [
        RestoreArgs() if is_empty_node(leaf) else leaf_restore_args(leaf, sharding)
        for leaf, sharding in zip(examples, shardings, strict=True)
    ]
    if not args.strict:
        wanted = [replace(w, strict=False) if isinstance(w, ArrayRestoreArgs) else w for w in wanted]
    if is_old:
        tree = unflatten_paths(paths, wanted) if flat is None else flat.rebuild(wanted)
        return restore_transformed(stored, _OldRestore(target, tree))
    if flat is None:
        return _as_stored(stored, wanted)
    wanted = [_completed(each, leaf) for each, leaf in zip(wanted, flat.leaves, strict=True)]
    return _in_containers(stored, flat, wanted, skips=False)


@dataclass
class _OldRestore:
    """What restoring an old checkpoint looks at."""

    item: Any
    restore_args: Any
    transforms: Any = None
    transforms_default_to_original: bool = True


def _open(place: Place) -> tuple[StoredTree, Kind]:
    layout = identify(place)
    if layout.kind is Kind.STEP and holds_database(layout.names):
        layout = layout._replace(kind=Kind.DATABASE)  # a tree that has lost its metadata
    if layout.kind not in (Kind.PYTREE, Kind.OLD_PYTREE, Kind.ARRAYS, Kind.DATABASE):
        raise _no_tree(layout)
    return StoredTree.open(layout), layout.kind


def _is_old(stored: StoredTree, kind: Kind) -> bool:
    """Whether its structure, or some of its leaves, stand elsewhere than in ``_METADATA``."""
    return kind is not Kind.PYTREE or bool(stored.documents or stored.strings)


def _need_metadata(stored: StoredTree, kind: Kind) -> None:
    """Refuse to say what a leaf was where nothing says so."""
    if kind is not Kind.PYTREE:
        raise PathNotFoundError(
            f"There is no {METADATA} in {stored.place.url}, which says what its leaves are; give "
            "StandardRestore a target whose arrays have shardings, or use PyTreeRestore",
            url=stored.place.url,
        )


def _no_tree(layout: Layout) -> PathNotFoundError:
    place = layout.place
    what = f"{METADATA} is not there" if layout.kind is not Kind.NOTHING else "the directory is empty or not there"
    hint = f"; it has the items {', '.join(layout.items)}" if layout.items else ""
    return PathNotFoundError(f"There is no pytree at {place.url}: {what}{hint}", url=place.url)


def _live(stored: StoredTree) -> list[int]:
    """The leaves there are: an empty container that was filled later is recorded beside what is in it."""
    above = {record.path[:depth] for record in stored.leaves for depth in range(len(record.path))}
    return [i for i, record in enumerate(stored.leaves) if record.path not in above]


def _live_paths(stored: StoredTree) -> list[Path]:
    return [stored.leaves[i].path for i in _live(stored)]


def _live_metadata(stored: StoredTree) -> list[Any]:
    described = leaf_metadata(stored)
    return [described[i] for i in _live(stored)]


def _as_stored(stored: StoredTree, wanted: Sequence[RestoreArgs]) -> Any:
    """All leaves, in dicts and lists."""
    live = _live(stored)
    values = _values(stored, dict(zip(live, wanted, strict=True)))
    return unflatten_paths([stored.leaves[i].path for i in live], [values[i] for i in live])


def _in_containers(stored: StoredTree, flat: Flat[Any], wanted: Sequence[RestoreArgs], *, skips: bool) -> Any:
    """The leaves of a target, in its containers; what is empty there, or not stored, stays as it is."""
    index = {stored.leaves[i].path: i for i in _live(stored)}
    sources: dict[int, int] = {}  # position in the target -> stored leaf
    for position, (path, leaf) in enumerate(zip(flat.paths, flat.leaves, strict=True)):
        if path in index and not is_empty_node(leaf) and not (skips and leaf is ...):
            sources[position] = index[path]
    values = _values(stored, {i: wanted[position] for position, i in sources.items()})
    return flat.rebuild([values[sources[at]] if at in sources else leaf for at, leaf in enumerate(flat.leaves)])


def _values(stored: StoredTree, wanted: dict[int, RestoreArgs]) -> dict[int, Any]:
    empty = [i for i in wanted if stored.leaves[i].value_type in ValueType.EMPTY]
    values = read_leaves(stored, {i: args for i, args in wanted.items() if i not in set(empty)})
    return values | {i: stored.plain(i) for i in empty}


def _completed(args: RestoreArgs, leaf: Any) -> RestoreArgs:
    """Arguments with the shape and dtype that the target's leaf has, where they leave them open and are strict."""
    shape, dtype = getattr(leaf, "shape", None), getattr(leaf, "dtype", None)
    if not isinstance(args, ArrayRestoreArgs) or isinstance(leaf, type) or not args.strict:
        return args
    if not shape or dtype is None or is_key_dtype(dtype):
        return args
    updates: dict[str, Any] = {}
    if args.global_shape is None:
        updates |= {"global_shape": shape, "shape": shape}
    if args.dtype is None:
        updates["dtype"] = dtype
    return replace(args, **updates) if updates else args


def _check_standard(path: Path, leaf: Any) -> None:
    jax = jax_if_loaded()
    kinds: tuple[Any, ...] = (int, float, np.ndarray)
    if jax is not None:
        kinds += jax.Array, jax.ShapeDtypeStruct
    if not isinstance(leaf, kinds) and not is_empty_node(leaf):
        raise InvalidTypeError(
            f"The leaf {'.'.join(key.name for key in path)!r} of the target is of the type {type(leaf).__name__}; "
            "StandardRestore takes arrays, jax.ShapeDtypeStruct, int and float, and PyTreeRestore more"
        )


def _saved_shardings(stored: StoredTree, described: Sequence[Any], fallback: Any) -> list[Any]:
    """Where each array lay when it was saved."""
    shardings = SavedShardings(stored)
    return [
        _on_these_devices(shardings, each.sharding if isinstance(each, ArrayMetadata) else None, fallback)
        for each in described
    ]


def _on_these_devices(shardings: SavedShardings, described: ShardingMetadata | None, fallback: Any) -> Any:
    if described is None or jax_if_installed() is None:
        return None
    try:
        return shardings.made(described)
    except InvalidArgumentError:
        if fallback is None:
            raise
        return fallback


def _target_shardings(
    stored: StoredTree, kind: Kind, flat: Flat[Any], support_layout: bool, fallback: Any
) -> list[Any]:
    """Where each leaf of a target is to lie: as it says itself, else where it lay when it was saved."""
    shardings = SavedShardings(stored)
    index: dict[tuple[str, ...], int] | None = None
    found: list[Any] = []
    for path, leaf in zip(flat.paths, flat.leaves, strict=True):
        sharding = None
        if hasattr(leaf, "sharding") and not is_empty_node(leaf):
            sharding = sharding_or_layout(leaf, support_layout)
            if sharding is None:
                if index is None:
                    _need_metadata(stored, kind)
                    index = {tuple(key.name for key in stored.leaves[i].path): i for i in _live(stored)}
                names = tuple(key.name for key in path)
                if names not in index:
                    raise StructureError(
                        f"The target has the leaf {'.'.join(names)!r}, and the checkpoint has not", url=stored.place.url
                    )
                i = index[names]
                if stored.leaves[i].value_type == ValueType.JAX_ARRAY:
                    sharding = _on_these_devices(shardings, shardings.described(stored.names[i]), fallback)
        found.append(sharding)
    return found
