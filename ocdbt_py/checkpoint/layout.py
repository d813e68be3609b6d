"""What lies at a place: a checkpoint, one of its items, a root of steps, a bare database; and whether it was finished.

    ROOT/                        steps below: ROOT
      STEP/                      items below, _CHECKPOINT_METADATA beside them: STEP
        ITEM/_METADATA           a pytree: PYTREE; so is a checkpoint that was saved directly, without items
        ITEM/checkpoint          a pytree of an old release: OLD_PYTREE
        ITEM/metadata            JSON; ITEM/jax_random_key/: RANDOM_KEY
      STEP.orbax-checkpoint-tmp/ being written, or never finished

Recognition goes by names alone, and by as few listings as will do; where a storage cannot list, known names are tried.
Which JSON says what is :mod:`ocdbt_py.checkpoint.metadata`'s business.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

from ocdbt_py.array.metadata import METADATA_FILES
from ocdbt_py.checkpoint.metadata import (
    AGGREGATE,
    CHECKPOINT_METADATA,
    COMMIT_MARKER,
    METADATA,
    decode_checkpoint_metadata,
)
from ocdbt_py.errors import CorruptDataError, NotFoundError, PathNotFoundError
from ocdbt_py.format.manifest import MANIFEST_NAME, parse_numbered_manifest_name
from ocdbt_py.storage.background import each
from ocdbt_py.storage.location import Place
from ocdbt_py.storage.protocol import Read, Storage

__all__ = [
    "JSON_FILES",
    "PROCESS_PREFIX",
    "RANDOM_KEYS",
    "TEMPORARY",
    "ItemKind",
    "Kind",
    "Layout",
    "child",
    "holds_database",
    "identify",
    "is_finished",
    "part_name",
    "read_file",
    "replaced_path",
    "temporary_path",
]

TEMPORARY = ".orbax-checkpoint-tmp"
"""A directory with this in its name is not, or not yet, a checkpoint."""

PROCESS_PREFIX = "ocdbt.process_"
"""Begins the directory of what one process wrote."""

JSON_FILES = ("data.json", "metadata", "metrics")
"""What an item that is JSON consists of, by who wrote it."""

RANDOM_KEYS = ("jax_random_key", "np_random_key")
"""What the directory of the key itself is called, in an item that is a random key."""

_OLD_ARRAY = "checkpoint/"
"""The directory of the array in an item that is one, in releases that wrote no metadata beside it."""

_REPLACED = f"{TEMPORARY}-replaced"
_V1_MARKER = "orbax.checkpoint"
_STEP_NAME = re.compile(r"(.+_)?[0-9]+", re.ASCII | re.DOTALL)
_PROBED_AT_ONCE = 8
_LOOKED_INTO = 8
"""So many directories are opened to tell what the others of their kind are."""

_KNOWN_FILES = (METADATA, MANIFEST_NAME, CHECKPOINT_METADATA, COMMIT_MARKER, AGGREGATE, _V1_MARKER, *JSON_FILES)
_KNOWN_ITEMS = ("default", "state", "pytree")


class Kind(enum.Enum):
    """What a directory is."""

    NOTHING = "nothing"
    PYTREE = "a pytree"
    OLD_PYTREE = "a pytree of Orbax 0.3 or older"
    STEP = "a step with items"
    ROOT = "a root of steps"
    DATABASE = "a database"
    JSON = "a JSON item"
    RANDOM_KEY = "a random key"
    ARRAYS = "arrays in directories"
    PARTS = "the unmerged parts of several processes"
    OTHER = "something else"


class ItemKind(enum.Enum):
    """What an item of a step is."""

    PYTREE = "pytree"
    OLD_PYTREE = "old pytree"
    JSON = "JSON"
    RANDOM_KEY = "random key"
    ARRAYS = "arrays"
    OTHER = "other"


class Layout(NamedTuple):
    """A place and what lies there. ``names``: files, and directories with a slash at the end.

    ``items`` of a step: name -> kind. ``steps`` of a root: names, in the order of their numbers.
    """

    place: Place
    kind: Kind
    names: frozenset[str] = frozenset()
    items: Mapping[str, ItemKind] = {}
    steps: tuple[str, ...] = ()


def child(place: Place, name: str) -> Place:
    """The file or directory ``name`` of a place."""
    path = f"{place.path}/{name}"
    return replace(place, path=path, url=place.storage.describe(path))


def part_name(index: int) -> str:
    """The directory that a process writes, below the pytree's."""
    return f"{PROCESS_PREFIX}{index}"


def temporary_path(path: str) -> str:
    """Where a checkpoint is written before it is renamed to ``path``."""
    return path + TEMPORARY


def replaced_path(path: str) -> str:
    """Where the old checkpoint of ``path`` lies while the new one takes its place; Orbax ignores it."""
    return path + _REPLACED


def read_file(place: Place, name: str) -> bytes | None:
    """A small file of a place; None if it is not there."""
    try:
        found = place.storage.read(f"{place.path}/{name}")
    except NotFoundError:
        return None
    assert isinstance(found, Read)
    return found.data


def identify(place: Place) -> Layout:
    """Recognise what is there. Nothing is read but names."""
    names = _names(place)
    if METADATA in names:
        return Layout(place, Kind.PYTREE, names)
    if AGGREGATE in names:
        return Layout(place, Kind.OLD_PYTREE, names)
    if _is_random_key(names):
        return Layout(place, Kind.RANDOM_KEY, names)
    below = [name[:-1] for name in names if name.endswith("/") and TEMPORARY not in name]
    is_database = holds_database(names)
    if not is_database and any(name.startswith(PROCESS_PREFIX) for name in below):
        return Layout(place, Kind.PARTS, names)
    if CHECKPOINT_METADATA in names or _V1_MARKER in names:
        return Layout(place, Kind.STEP, names, items=_items(place, below))
    if is_database:
        return Layout(place, Kind.DATABASE, names)
    below.sort(key=lambda name: (_STEP_NAME.fullmatch(name) is None, name))
    inside: dict[str, frozenset[str]] = {}
    for name in below[:_LOOKED_INTO]:
        inside[name] = _names(child(place, name))
        if _is_step(child(place, name), inside[name]):
            return Layout(place, Kind.ROOT, names, steps=_steps(place, below))
    if any(_item_kind(found) in _TREES for found in inside.values()):
        return Layout(place, Kind.STEP, names, items=_items(place, below))
    if not names:
        return Layout(place, Kind.NOTHING)
    if not all(found.isdisjoint(METADATA_FILES) for found in (names, *inside.values())):
        return Layout(place, Kind.ARRAYS, names)
    return Layout(place, Kind.JSON if _item_kind(names) is ItemKind.JSON else Kind.OTHER, names)


def holds_database(names: Iterable[str]) -> bool:
    """Whether a directory with these names in it is a database."""
    return any(name == MANIFEST_NAME or parse_numbered_manifest_name(name) is not None for name in names)


def is_finished(layout: Layout) -> bool:
    """Whether its writer committed it.

    Where directories are renamed: by its own name and its step's. Elsewhere: by its marker, or, when it was copied
    there without one, by the commit time in its ``_CHECKPOINT_METADATA``; an item that has neither, by its step's.
    """
    place = layout.place
    above, _, name = place.path.rpartition("/")
    if place.storage.capabilities.rename:
        return TEMPORARY not in name and TEMPORARY not in above.rpartition("/")[2]
    if COMMIT_MARKER in layout.names:
        return True
    has_time = _has_commit_time(place) if CHECKPOINT_METADATA in layout.names else None
    if has_time is not None:
        return has_time  # its own word counts: it is perhaps being replaced, in a step that was finished long ago
    step = replace(place, path=above, url=place.storage.describe(above))
    return read_file(step, COMMIT_MARKER) is not None or _has_commit_time(step) is True


def _has_commit_time(place: Place) -> bool | None:
    """Whether ``_CHECKPOINT_METADATA`` says when it was committed; None where it cannot be read."""
    data = read_file(place, CHECKPOINT_METADATA)
    try:
        return None if data is None else decode_checkpoint_metadata(data).commit_time_ns is not None
    except CorruptDataError:
        return None


def _names(place: Place) -> frozenset[str]:
    """What a directory holds, as far as the storage can tell."""
    storage = place.storage
    if storage.capabilities.list:
        start = len(place.path) + 1
        return frozenset(item.path[start:] for item in storage.list(place.path + "/"))
    found = _present(place, _KNOWN_FILES)
    if METADATA in found or MANIFEST_NAME in found:
        return frozenset(found)
    items = {*_KNOWN_ITEMS, *_recorded_items(place)}
    inside = _present(place, [f"{item}/{name}" for item in items for name in (METADATA, AGGREGATE, *JSON_FILES)])
    return frozenset(found | {f"{item}/" for item in items if any(name.startswith(f"{item}/") for name in inside)})


def _present(place: Place, names: Iterable[str]) -> set[str]:
    """Those of the files that are there; asked for together, for each answer takes its time."""
    found: set[str] = set()

    def look(name: str) -> None:
        if _is_file(place.storage, f"{place.path}/{name}"):
            found.add(name)

    each(look, names, _PROBED_AT_ONCE)
    return found


def _recorded_items(place: Place) -> Iterable[str]:
    data = read_file(place, CHECKPOINT_METADATA)
    try:
        handlers = None if data is None else decode_checkpoint_metadata(data).item_handlers
    except CorruptDataError:
        return ()
    return (name for name in handlers if _is_plain(name)) if isinstance(handlers, dict) else ()


def _is_plain(name: str) -> bool:
    """Whether a name from a file is one directory below, and leads nowhere else."""
    return bool(name) and name not in (".", "..") and not set(name) & {"/", "\\", "\0"}


def _is_file(storage: Storage, path: str) -> bool:
    try:
        storage.read(path, 0, 1)
    except PathNotFoundError:
        return False
    return True


def _items(place: Place, names: Iterable[str]) -> dict[str, ItemKind]:
    return {name: _item_kind(_names(child(place, name))) for name in sorted(names)}


_TREES = (ItemKind.PYTREE, ItemKind.OLD_PYTREE)


def _item_kind(names: frozenset[str]) -> ItemKind:
    if METADATA in names:
        return ItemKind.PYTREE
    if AGGREGATE in names:
        return ItemKind.OLD_PYTREE
    if _is_random_key(names):
        return ItemKind.RANDOM_KEY
    if not names.isdisjoint(JSON_FILES):
        return ItemKind.JSON
    return ItemKind.ARRAYS if _OLD_ARRAY in names else ItemKind.OTHER


def _is_random_key(names: frozenset[str]) -> bool:
    """Whether it holds a key and what says of which kind: two items of fixed names, not a step of the user's."""
    return any(f"{name}/" in names and f"{name}_metadata/" in names for name in RANDOM_KEYS)


def _is_step(place: Place, names: frozenset[str]) -> bool:
    """Whether a directory with these names is a checkpoint of its own, and not an item of the one above it."""
    if CHECKPOINT_METADATA in names or _V1_MARKER in names:
        return True
    if METADATA in names or AGGREGATE in names:
        return False
    below = [name[:-1] for name in names if name.endswith("/") and TEMPORARY not in name][:_LOOKED_INTO]
    return any(kind in _TREES for kind in _items(place, below).values())


def _steps(place: Place, names: Iterable[str]) -> tuple[str, ...]:
    """The names that are steps: those with a number, and of the few others those that prove to be."""

    def is_step(name: str) -> bool:
        return _is_step(child(place, name), _names(child(place, name)))

    steps = [name for name in names if _STEP_NAME.fullmatch(name)]
    others = [name for name in names if not _STEP_NAME.fullmatch(name)][:_LOOKED_INTO]
    return tuple(sorted(steps, key=_number) + [name for name in others if is_step(name)])


def _number(name: str) -> tuple[str, int, str]:
    prefix, _, digits = name.rpartition("_")
    return prefix, len(digits.lstrip("0")), digits.lstrip("0")
