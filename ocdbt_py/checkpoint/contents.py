"""What a checkpoint is to hold: items, each in a directory of its own, and small files.

    STEP/_CHECKPOINT_METADATA         which item is of which handler, when it was saved
    STEP/default/_METADATA, …         an item that is a pytree
    STEP/metrics/metrics              an item that is a small file
    STEP/rng/np_random_key/_METADATA  an item with a pytree somewhere below

The *direct* layout is that of one pytree without a step: its files lie in the checkpoint's own directory. Nothing here
is written or judged; :mod:`ocdbt_py.checkpoint.save` does that.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

from ocdbt_py.checkpoint.encoding import Encoding
from ocdbt_py.checkpoint.layout import TEMPORARY
from ocdbt_py.checkpoint.metadata import JSON_HANDLER, PYTREE_HANDLER
from ocdbt_py.errors import InvalidArgumentError, InvalidTypeError

__all__ = ["DIRECT", "Contents", "Item", "Tree", "direct", "json_item", "pytree_item"]

DIRECT = ""
"""The name of the item of a checkpoint that has no others: its files lie in the checkpoint's own directory."""


class Tree(NamedTuple):
    """One pytree, how its arrays are stored, and the user's metadata that is kept with it."""

    tree: Any
    encoding: Encoding = Encoding()
    custom_metadata: Mapping[str, Any] | None = None


class Item(NamedTuple):
    """One item: pytrees by the directory below it (``""`` is its own), small files by their path below it.

    ``handler``: the class of Orbax's that reads it, as ``_CHECKPOINT_METADATA`` records it.
    """

    handler: str | None
    trees: Mapping[str, Tree] = MappingProxyType({})
    files: Mapping[str, bytes] = MappingProxyType({})


@dataclass(frozen=True, repr=False, eq=False)
class Contents:
    """A whole checkpoint: items by name, or the one of the direct layout (:data:`DIRECT`); ``files`` lie beside them.

    Raises :class:`InvalidArgumentError` for names that are not one directory below.
    """

    items: Mapping[str, Item]
    custom_metadata: Mapping[str, Any] | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.items:
            raise InvalidArgumentError("There is nothing to save: a checkpoint has at least one item")
        if self.is_direct:
            return
        for name in self.items:
            if name in ("", ".", "..") or set(name) & {"/", "\\", "\0"} or TEMPORARY in name:
                raise InvalidArgumentError(f"{name!r} cannot be the name of an item; it is that of one directory")
            if name in self.files:
                raise InvalidArgumentError(f"{name!r} cannot be the name of an item: a file beside it is called so")

    @property
    def is_direct(self) -> bool:
        return set(self.items) == {DIRECT}

    @property
    def handlers(self) -> str | dict[str, str | None] | None:
        """``item_handlers`` of ``_CHECKPOINT_METADATA``."""
        if self.is_direct:
            return self.items[DIRECT].handler
        return {name: item.handler for name, item in self.items.items()}

    @property
    def directories(self) -> list[str]:
        """Those of the items; each is marked as complete, for readers that are given it alone."""
        return [] if self.is_direct else list(self.items)

    def trees(self) -> Iterator[tuple[str, Tree]]:
        """All pytrees, by directory below the checkpoint's."""
        for name, item in self.items.items():
            for directory, tree in item.trees.items():
                yield "/".join(filter(None, (name, directory))), tree

    def small_files(self) -> dict[str, bytes]:
        """All files that are no pytree's, by path below the checkpoint's directory."""
        files = dict(self.files)
        for name, item in self.items.items():
            files |= {f"{name}/{path}" if name else path: data for path, data in item.files.items()}
        return files


def direct(tree: Any, encoding: Encoding, custom_metadata: Mapping[str, Any] | None = None) -> Contents:
    """One pytree in the checkpoint's own directory."""
    return Contents({DIRECT: pytree_item(tree, encoding)}, custom_metadata)


def pytree_item(
    tree: Any,
    encoding: Encoding | None = None,
    handler: str = PYTREE_HANDLER,
    custom_metadata: Mapping[str, Any] | None = None,
) -> Item:
    """An item that is a pytree. ``custom_metadata``: what Orbax keeps in the item's own ``_METADATA``."""
    return Item(handler, {"": Tree(tree, encoding or Encoding(), custom_metadata)})


def json_item(value: Any, handler: str = JSON_HANDLER, file: str = "metadata") -> Item:
    """An item that is JSON in one file. Raises :class:`InvalidTypeError` where JSON cannot hold it."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidTypeError(f"This item is to be stored as JSON, which cannot hold it: {error}") from None
    return Item(handler, files={file: text.encode("utf-8", "surrogatepass")})
