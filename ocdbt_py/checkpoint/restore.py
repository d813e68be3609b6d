"""Restore a checkpoint: as NumPy arrays and Python values, or in the form of a target.

Without a target nothing of JAX is needed and no device is touched: dicts and lists as Orbax gives them. With one, its
containers come back, and every leaf in its dtype and on its sharding. Either way the leaves that are wanted are settled
first, from metadata alone, so that whatever does not fit is told before an array is read.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from ocdbt_py.array.dtypes import dtype_from_name, dtype_name
from ocdbt_py.checkpoint.collecting import collector_paused
from ocdbt_py.checkpoint.devices import Shards, to_devices
from ocdbt_py.checkpoint.flatten import ABSENT, Path, flatten, unflatten_paths
from ocdbt_py.checkpoint.layout import Kind, Layout
from ocdbt_py.checkpoint.memory import memory_limit
from ocdbt_py.checkpoint.metadata import ValueType
from ocdbt_py.checkpoint.names import Selection, check_names, compile_selection, leaf_names
from ocdbt_py.checkpoint.opening import (
    all_items,
    find_checkpoint,
    find_item,
    pytree_items,
    read_json_item,
    resolve_checkpoint,
)
from ocdbt_py.checkpoint.random_keys import key_tree, unwrapped, wrapped
from ocdbt_py.checkpoint.stored import NO_ARRAY, READING, ArrayInfo, Reading, StoredTree, python_number
from ocdbt_py.checkpoint.target import Differences, Form, Wanted, fits, wanted
from ocdbt_py.errors import InvalidArgumentError, InvalidTypeError
from ocdbt_py.storage.location import Place

__all__ = ["restore", "restore_place"]


def restore(
    url: Any,
    target: Any = None,
    *,
    item: str | None = None,
    select: Any = None,
    strict: bool = True,
    dtype: Any = None,
    mmap: bool = False,
    verify: bool = False,
    max_memory: int | None = None,
    allow_uncommitted: bool = False,
    progress: Any = None,
    storage_options: dict[str, Any] | None = None,
    fs: Any = None,
) -> Any:
    """The tree saved at ``url``: a checkpoint, one item of one, or a database of arrays (a flat dict by name).

    Of a step with items: its only pytree, else a dict of all its items; ``item`` picks one.

    Without ``target``: NumPy arrays (writable, with memory of their own), Python numbers, ``str``, None. With
    ``target`` its structure, each leaf as its leaf there says: ``jax.ShapeDtypeStruct`` or ``jax.Array`` (on its
    sharding, or the default device), ``np.ndarray`` or anything with ``shape`` and ``dtype``, numbers and ``str`` (of
    that type), None (as saved), ``...`` (not read); None and ``...`` may stand for a whole subtree. ``strict=False``
    lets leaves be missing (they stay as in the target), unexpected (they are not read) and of another shape or kind
    (they come as saved). Of an array that is to lie in several processes, each reads its own shards.

    ``select``: a glob over leaf names (``*`` stops at ``.``, ``**`` does not), a compiled regular expression, or a
    function of (name, :class:`ArrayInfo`); other leaves are not read: gone from dicts, ``...`` in lists and in a
    target. ``dtype`` casts every floating array. ``mmap``: arrays that lie on a local disk as in memory are mapped,
    privately. ``verify`` compares each value that is read whole with the checksum that :func:`save` kept of it.
    ``max_memory``: bytes that this takes beyond the arrays, 64 MiB by default. ``progress``: an fsspec ``Callback``,
    told of bytes.

    Raises :class:`NotFoundError`, :class:`UncommittedError`, :class:`StructureError` (all differences in one),
    :class:`CorruptDataError`, :class:`UnsupportedError`.

    >>> from ocdbt_py import save
    >>> save("memory://example", {"rates": [0.1, 0.2], "step": 3}, overwrite=True)
    >>> restore("memory://example", select="rates.*")
    {'rates': [0.1, 0.2]}
    """
    place = resolve_checkpoint(url, storage_options, fs)
    return restore_place(
        place,
        target,
        item=item,
        select=select,
        strict=strict,
        dtype=dtype,
        reading=Reading(mmap, verify, memory_limit(max_memory), progress),
        allow_uncommitted=allow_uncommitted,
    )


def restore_place(
    place: Place,
    target: Any = None,
    *,
    item: str | None = None,
    select: Any = None,
    strict: bool = True,
    dtype: Any = None,
    reading: Reading = READING,
    allow_uncommitted: bool = False,
) -> Any:
    """:func:`restore` from a place that is resolved already."""
    with collector_paused():
        selection = compile_selection(select)
        floats = None if dtype is None else _floating(dtype)
        found = find_checkpoint(place, allow_uncommitted=allow_uncommitted)
        if item is not None:
            found = find_item(found, item)
        elif found.kind is Kind.STEP:
            names = pytree_items(found)
            if len(names) != 1:
                if target is not None:
                    raise InvalidArgumentError(
                        f"{found.place.url} has the items {', '.join(found.items)}; say with item= which the target is "
                        "for"
                    )
                return {name: _value(find_item(found, name), selection, floats, reading) for name in all_items(found)}
            found = find_item(found, names[0])
        if target is None:
            return _value(found, selection, floats, reading)
        if found.kind is Kind.RANDOM_KEY:
            target = wrapped(found, target)
        tree = _to_target(StoredTree.open(found), target, strict, selection, floats, reading)
        return unwrapped(found, tree) if found.kind is Kind.RANDOM_KEY else tree


def _floating(dtype: Any) -> np.dtype[Any]:
    """What ``dtype=`` means."""
    try:
        found = dtype_from_name(dtype) if isinstance(dtype, str) else np.dtype(dtype)
    except TypeError:
        raise InvalidTypeError(f"dtype= is a floating dtype such as 'bfloat16', not {dtype!r}") from None
    if not _is_floating(found):
        raise InvalidArgumentError(f"dtype= casts floating leaves, so it must be a floating dtype, not {found}")
    return found


def _is_floating(dtype: np.dtype[Any]) -> bool:
    return dtype_name(dtype).startswith(("float", "bfloat"))


def _value(found: Layout, selection: Selection | None, floats: np.dtype[Any] | None, reading: Reading) -> Any:
    """An item as it was saved, as far as its files tell."""
    if found.kind is Kind.JSON:
        return read_json_item(found.place)
    if found.kind is Kind.RANDOM_KEY:
        return unwrapped(found, _value(key_tree(found), None, None, reading))
    stored = StoredTree.open(found)
    kinds = stored.value_types
    values = stored.in_order(_chosen(stored, selection), reading)
    if floats is not None or ValueType.SCALAR in kinds:
        values = [_as_saved(kind, value, floats) for kind, value in zip(kinds, values, strict=True)]
    return stored.tree(values)


def _chosen(stored: StoredTree, selection: Selection | None) -> Sequence[int]:
    """Which leaves are selected."""
    count = len(stored.leaves)
    if selection is None:
        return range(count)
    infos = stored.infos([] if selection.by_name else range(count))
    chosen = [i for i, name in enumerate(stored.names) if selection.matches(name, infos.get(i, NO_ARRAY))]
    if not chosen:
        raise InvalidArgumentError(
            f"select= matches none of the {count} leaves of {stored.place.url}, such as {stored.names[0]!r}"
        )
    return chosen


def _as_saved(value_type: str, value: Any, floats: np.dtype[Any] | None) -> Any:
    """A leaf without a target: NumPy numbers as Python's, arrays as NumPy's."""
    if not isinstance(value, np.ndarray):
        return value
    if value_type == ValueType.SCALAR and not value.ndim:
        return python_number(value)
    return value.astype(floats, copy=False) if floats is not None and _is_floating(value.dtype) else value


def _to_target(
    stored: StoredTree,
    target: Any,
    strict: bool,
    selection: Selection | None,
    floats: np.dtype[Any] | None,
    reading: Reading,
) -> Any:
    """The leaves of a target, each in the form it asks for, in the target's containers."""
    flat = flatten(target)
    names = leaf_names(flat.paths)
    check_names(names, flat.paths)
    wants = [wanted(name, leaf) for name, leaf in zip(names, flat.leaves, strict=True)]
    chosen = set(_chosen(stored, selection))
    sources, differences = _match(stored, flat.paths, names, wants, chosen)
    if strict and differences:
        raise differences.error(stored.place.url, stored.names)
    taken = [i for source in sources for i in source.leaves if i in chosen]
    spread = {
        source.leaves[0]: want
        for want, source in zip(wants, sources, strict=True)
        if source.how is _How.IN_FORM and want.sharding is not None and not want.sharding.is_fully_addressable
    }
    shards = {i: Shards.of(spread[i].sharding, spec) for i, spec in stored.specs(spread).items()}
    parts = {i: each.cover.reads for i, each in shards.items()}
    values = stored.values(taken, reading, parts=parts)
    values |= {i: each._replace(found=values[i]) for i, each in shards.items()}

    def as_saved(i: int) -> Any:
        return _as_saved(stored.value_types[i], values[i], floats) if i in values else ABSENT

    leaves: list[Any] = []
    on_devices: dict[int, tuple[Wanted, Any]] = {}
    for path, want, source in zip(flat.paths, wants, sources, strict=True):
        match source.how:
            case _How.KEPT:
                leaves.append(want.leaf)
            case _How.SKIPPED:
                leaves.append(...)
            case _How.AS_SAVED:
                leaves.append(as_saved(source.leaves[0]))
            case _How.SUBTREE:
                below = [stored.leaves[i].path[len(path) :] for i in source.leaves]
                tree = unflatten_paths(below, [as_saved(i) for i in source.leaves])
                leaves.append(... if tree is ABSENT else tree)
            case _How.IN_FORM if want.form in (Form.JAX, Form.RANDOM_KEY):
                on_devices[len(leaves)] = want, values[source.leaves[0]]
                leaves.append(None)
            case _How.IN_FORM:
                leaves.append(_in_form(want, values[source.leaves[0]], floats))
    for position, array in zip(on_devices, to_devices(on_devices.values(), floats), strict=True):
        leaves[position] = array
    return flat.rebuild(leaves)


class _How(enum.Enum):
    """What becomes of a leaf of a target."""

    KEPT = "stays as it is"
    SKIPPED = "..."
    IN_FORM = "a stored leaf in the form of the target's"
    AS_SAVED = "a stored leaf as it was saved"
    SUBTREE = "all stored leaves below its path, as they were saved"


class _Source(NamedTuple):
    """Where a leaf of a target comes from; ``leaves`` are stored ones."""

    how: _How
    leaves: Sequence[int] = ()


def _match(
    stored: StoredTree, paths: Sequence[Path], names: Sequence[str], wants: Sequence[Wanted], chosen: set[int]
) -> tuple[list[_Source], Differences]:
    """Pair the leaves of a target with the stored ones, by name."""
    by_name = {name: i for i, name in enumerate(stored.names)}
    kinds = stored.value_types
    infos = stored.infos(range(len(kinds)))
    rest = set(chosen)
    subtrees = _Subtrees(stored)
    sources = []
    differences = Differences()
    for path, name, want in zip(paths, names, wants, strict=True):
        i = by_name.get(name)
        found: Sequence[int] = () if i is None else (i,)
        if i is None and want.form in (Form.SKIPPED, Form.AS_SAVED):
            found = subtrees.below(path)
        rest.difference_update(found)
        source = _Source(_How.SKIPPED)
        if not found and want.form is not Form.SKIPPED:
            source = _Source(_How.KEPT)
            differences.missing(name, want)
        elif want.form is not Form.SKIPPED and not chosen.isdisjoint(found):
            source = _Source(_How.SUBTREE if i is None else _How.AS_SAVED, found)
            kind, info = kinds[found[0]], infos.get(found[0], NO_ARRAY)
            if want.form is not Form.AS_SAVED and fits(want, kind, info):
                source = _Source(_How.IN_FORM, found)
            elif want.form is not Form.AS_SAVED:
                differences.mismatched(name, _described(kind, info), want)
        sources.append(source)
    for i in sorted(rest):
        differences.unexpected(stored.names[i], _described(kinds[i], infos.get(i, NO_ARRAY)))
    return sources, differences


def _described(value_type: str, info: ArrayInfo) -> str:
    if value_type in ValueType.ARRAYS:
        return str(info)
    return "str" if value_type == ValueType.STRING else value_type[:40]


class _Subtrees:
    """Stored leaves by what lies above them, for the few leaves of a target that stand for a whole subtree."""

    def __init__(self, stored: StoredTree) -> None:
        self._stored = stored
        self._by_depth: dict[int, dict[tuple[str, ...], list[int]]] = {}

    @cached_property
    def _paths(self) -> list[tuple[str, ...]]:
        return [tuple([key.name for key in record.path]) for record in self._stored.leaves]

    def below(self, path: Path) -> Sequence[int]:
        depth = len(path)
        if depth not in self._by_depth:
            above = self._by_depth[depth] = {}
            for i, names in enumerate(self._paths):
                if len(names) > depth:
                    above.setdefault(names[:depth], []).append(i)
        return self._by_depth[depth].get(tuple(key.name for key in path), ())


def _in_form(want: Wanted, value: Any, floats: np.dtype[Any] | None) -> Any:
    """A stored leaf as its leaf in the target has it; they are known to fit."""
    match want.form:
        case Form.EMPTY:
            return want.leaf
        case Form.NUMBER:
            kind = next(kind for kind in (bool, int, float, complex) if isinstance(want.leaf, kind))
            return kind(value)
        case Form.NUMPY_NUMBER:
            return value.astype(want.dtype)[()]
        case Form.NUMPY:
            dtype = floats if floats is not None and _is_floating(want.dtype) else want.dtype
            return value.astype(dtype, copy=False)
        case _:
            return value
