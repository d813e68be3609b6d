"""A checkpoint that is to be read through the v1 API: what lies at a path, or why it is no checkpoint.

One that the v1 API's free functions wrote has the file ``orbax.checkpoint``. All others with named items are read just
so, whoever wrote them; and so is, without a name, a tree whose files lie in the path itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ocdbt_py.checkpoint.layout import ItemKind, Kind, Layout, child, read_file
from ocdbt_py.checkpoint.metadata import (
    CHECKPOINT_METADATA,
    CheckpointMetadata,
    decode_checkpoint_metadata,
    decode_json,
)
from ocdbt_py.checkpoint.opening import find_checkpoint
from ocdbt_py.errors import CorruptDataError, InvalidArgumentError, NotFoundError
from ocdbt_py.interop.orbax.directories import directory_place
from ocdbt_py.interop.orbax.errors import ItemNotFoundError
from ocdbt_py.interop.orbax.v1.errors import DeletionInProgressError, InvalidLayoutError
from ocdbt_py.interop.orbax.v1.names import AUTO, DELETION, RESERVED, STATE, V1_MARKER
from ocdbt_py.storage.location import Place

__all__ = ["Opened", "deleted_item", "is_orbax_checkpoint", "open_checkpoint", "read_record"]

_TREES = (ItemKind.PYTREE, ItemKind.OLD_PYTREE)


@dataclass(frozen=True)
class Opened:
    """A checkpoint, and the names of what is in it. ``items`` is empty for a tree without a name."""

    place: Place
    layout: Layout
    items: Mapping[str, ItemKind]

    @property
    def is_direct(self) -> bool:
        """Whether it is a tree without a name."""
        return self.layout.kind is not Kind.STEP

    @property
    def names(self) -> list[str]:
        """Those of the user's items; a tree called ``state`` is the first."""
        return sorted(self.items.keys() - RESERVED, key=lambda name: (name != STATE, name))

    @cached_property
    def record(self) -> CheckpointMetadata:
        """What ``_CHECKPOINT_METADATA`` says; nothing, where there is none."""
        return read_record(self.place)

    def handler_of(self, name: str) -> str | None:
        """Which class wrote an item, as far as that is known."""
        handlers = self.record.item_handlers
        found = handlers.get(name) if isinstance(handlers, dict) else handlers if self.is_direct else None
        return found if isinstance(found, str) else None

    def place_of(self, name: str | None) -> Place:
        """The directory of an item; None: of the tree without a name."""
        return self.place if name is None else child(self.place, name)

    def need(self, names: Iterable[str]) -> None:
        """Raise :class:`ItemNotFoundError` unless all of these items are there."""
        missing = [name for name in names if name not in self.items]
        for name in missing:
            if name == deleted_item(self.place):
                raise DeletionInProgressError(
                    f"The deletion of {name!r} from {self.place.url} was begun; delete it again to end that",
                    url=self.place.url,
                )
        if missing:
            absent = ", ".join(map(repr, missing))
            raise ItemNotFoundError(
                f"{self.place.url} has no {absent}; it has {', '.join(self.names) or 'no items'}", url=self.place.url
            )

    def tree_name(self, name: str | None) -> str | None:
        """The name of the tree that is meant; None is the one without. Raises :class:`InvalidLayoutError`."""
        url = self.place.url
        if name == AUTO:
            found = next((each for each in self.names if self.items[each] in _TREES), None)
            if found is None and not self.is_direct:
                raise InvalidLayoutError(f"{url} has no tree; it has {', '.join(self.names) or 'no items'}", url=url)
            return found
        if name is None:
            if not self.is_direct:
                raise InvalidLayoutError(
                    f"{url} has items, and checkpointable_name=None means a tree without a name; name one of "
                    f"{', '.join(self.names)}",
                    url=url,
                )
            return None
        if not name or name in RESERVED:
            raise InvalidArgumentError(f"{name!r} cannot be the name of a checkpointable")
        if self.is_direct:
            raise InvalidLayoutError(f"{url} is a tree without a name; load it with checkpointable_name=None", url=url)
        if name == deleted_item(self.place):
            self.need([name])
        if self.items.get(name) not in _TREES:
            trees = [each for each in self.names if self.items[each] in _TREES]
            raise InvalidLayoutError(
                f"{url} has no tree {name!r}; its trees are {', '.join(trees) or 'none'}, and load_checkpointables "
                "loads what is no tree",
                url=url,
            )
        return name


def open_checkpoint(path: Any, storage_options: Mapping[str, Any] | None = None, fs: Any = None) -> Opened:
    """Look at what lies at ``path``. Raises :class:`InvalidLayoutError` if that is no finished checkpoint."""
    place = directory_place(path, storage_options, fs)
    try:
        layout = find_checkpoint(place)
    except (NotFoundError, InvalidArgumentError) as error:
        raise InvalidLayoutError(error.message, url=place.url) from error
    if layout.kind is not Kind.STEP and CHECKPOINT_METADATA not in layout.names:
        above = place.path.rpartition("/")[0]
        if above and read_file(Place(place.storage, above, place.storage.describe(above)), CHECKPOINT_METADATA):
            raise InvalidLayoutError(
                f"{place.url} is one item of the checkpoint {place.storage.describe(above)}; load that, and name the "
                "item with checkpointable_name",
                url=place.url,
            )
    if V1_MARKER in layout.names and CHECKPOINT_METADATA not in layout.names:
        raise InvalidLayoutError(f"{place.url} has no {CHECKPOINT_METADATA}: it was copied without it", url=place.url)
    return Opened(place, layout, layout.items if layout.kind is Kind.STEP else {})


def is_orbax_checkpoint(path: Any, *, storage_options: Mapping[str, Any] | None = None, fs: Any = None) -> bool:
    """Whether a finished checkpoint lies at ``path``: neither a root of steps nor one item of a checkpoint."""
    try:
        open_checkpoint(path, storage_options, fs)
    except InvalidLayoutError:
        return False
    return True


def read_record(place: Place) -> CheckpointMetadata:
    """``_CHECKPOINT_METADATA``; nothing, where there is none or it cannot be read."""
    data = read_file(place, CHECKPOINT_METADATA)
    try:
        return CheckpointMetadata() if data is None else decode_checkpoint_metadata(data)
    except CorruptDataError:
        return CheckpointMetadata()


def deleted_item(place: Place) -> str | None:
    """The item whose deletion was begun and has not ended."""
    data = read_file(place, DELETION)
    try:
        record = None if data is None else decode_json(data, DELETION)
    except CorruptDataError:
        return None
    name = record.get("checkpointable_name") if isinstance(record, dict) else None
    return name if isinstance(name, str) else None
