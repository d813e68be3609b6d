"""What a URL on the command line names: a checkpoint, or a database.

A checkpoint is also a database, so there are options that ask for the latter: a version, or ``--keys``. So does a URL
of TensorStore's form, ``BASE|ocdbt:@v3/prefix``.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from typing import Any

from ocdbt_py.checkpoint.checkpoint import Checkpoint
from ocdbt_py.checkpoint.layout import Kind, Layout, child, identify
from ocdbt_py.checkpoint.opening import find_checkpoint, find_item, pytree_items
from ocdbt_py.database import Database, Version, open_place
from ocdbt_py.errors import InvalidArgumentError, PathNotFoundError
from ocdbt_py.storage.location import Place, resolve
from ocdbt_py.view.results import VersionRow
from ocdbt_py.view.spelling import spelled


@dataclass(frozen=True, slots=True)
class Target:
    """A place and what was opened there.

    ``place`` and ``found``: the URL's own; ``inner``: the place of the item that is meant, the same where there are no
    items. ``checkpoint``: None where keys are meant. ``database``: at ``inner``, of one version; None if there is none.
    """

    place: Place
    found: Layout
    inner: Place
    checkpoint: Checkpoint | None
    database: Database | None

    @property
    def kind(self) -> str:
        return "database" if self.checkpoint is None else "checkpoint"

    @property
    def url(self) -> str:
        return spelled(self.place.url)

    @property
    def generation(self) -> int | None:
        """The version whose keys are shown."""
        return self.keys.version.generation if self.checkpoint is None else None

    @property
    def keys(self) -> Database:
        """The database, where keys are meant."""
        if self.database is None:
            raise InvalidArgumentError(f"The checkpoint at {self.url} does not lie in a database, so it has no keys")
        return self.database


def add_target_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that choose what of a place is meant."""
    add_item_argument(parser)
    parser.add_argument("--keys", action="store_true", help="the keys of the database that a checkpoint lies in")
    parser.add_argument(
        "--version", metavar="V", help="the keys of an old version: v3, or a time like 2026-01-31T12:00:00Z"
    )


def add_item_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--item", metavar="NAME", help="the item of a checkpoint that has several")
    parser.set_defaults(keys=False, version=None)


def open_target(arguments: argparse.Namespace) -> Target:
    """The checkpoint at the URL, or the database where there is no checkpoint or keys are asked for."""
    place = resolve(arguments.url, storage_options=storage_options(arguments))
    found = identify(place)
    if found.kind is Kind.DATABASE or place.version is not None or place.prefix:
        return Target(place, found, place, None, _snapshot(place, arguments.version))
    name = _item(find_checkpoint(place), arguments.item)
    inner = place if name is None else child(place, name)
    if arguments.keys or arguments.version is not None:
        return Target(place, found, inner, None, _snapshot(inner, arguments.version))
    checkpoint = Checkpoint(arguments.url, storage_options=storage_options(arguments))
    if name is not None:
        checkpoint = checkpoint.item(name)
        if not isinstance(checkpoint, Checkpoint):
            raise InvalidArgumentError(
                f"The item {spelled(name)} of {spelled(place.url)} is JSON, not a tree of leaves"
            )
    return Target(place, found, inner, checkpoint, _snapshot_if_any(inner))


def open_database(arguments: argparse.Namespace) -> Target:
    """The newest version of the database at the URL or below the checkpoint there."""
    return open_target(argparse.Namespace(**{**vars(arguments), "keys": True}))


def storage_options(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """``--storage-option KEY=VALUE``, with true, false, null, numbers and other JSON taken as such."""
    options: dict[str, Any] = {}
    for option in arguments.storage_option:
        key, separator, value = option.partition("=")
        if not separator or not key:
            raise InvalidArgumentError("--storage-option is followed by KEY=VALUE")  # the word may hold a secret
        try:
            options[key] = json.loads(value)
        except (ValueError, RecursionError):
            options[key] = value
    return options or None


def version_row(version: Version) -> VersionRow:
    """A version as it is shown."""
    return VersionRow(
        version.generation,
        version.commit_time,
        version.num_keys,
        version.num_tree_bytes,
        version.num_indirect_value_bytes,
    )


def _snapshot(place: Place, version: str | None) -> Database:
    return open_place(place, "r", version=version).snapshot()


def _snapshot_if_any(place: Place) -> Database | None:
    """None where no leaf is an array."""
    try:
        return _snapshot(place, None)
    except PathNotFoundError:
        return None


def _item(found: Layout, asked: str | None) -> str | None:
    """The item that is meant: the one asked for, or the only pytree of a step; None where there are no items."""
    if asked is not None:
        find_item(found, asked)
        return asked
    if found.kind is not Kind.STEP:
        return None
    names = pytree_items(found)
    if len(names) != 1:
        items = ", ".join(map(spelled, found.items)) or "none"
        raise InvalidArgumentError(
            f"{spelled(found.place.url)} is a checkpoint of several items, or of none that is a pytree: {items}. "
            "Say which with --item NAME"
        )
    return names[0]
