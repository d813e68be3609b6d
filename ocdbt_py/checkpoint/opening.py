"""Which checkpoint, or which item of one, a caller means; and if there is none, what is there instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ocdbt_py.checkpoint.layout import (
    JSON_FILES,
    TEMPORARY,
    ItemKind,
    Kind,
    Layout,
    child,
    holds_database,
    identify,
    is_finished,
    read_file,
    replaced_path,
)
from ocdbt_py.checkpoint.metadata import METADATA, decode_json
from ocdbt_py.checkpoint.names import nearest
from ocdbt_py.errors import CorruptDataError, InvalidArgumentError, NotFoundError, PathNotFoundError, UncommittedError
from ocdbt_py.storage.location import DEFAULT_SETTINGS, Place, Settings, resolve

__all__ = ["all_items", "find_checkpoint", "find_item", "pytree_items", "read_json_item", "resolve_checkpoint"]


_DELETION = "_CHECKPOINT_DELETION"
"""Says of a step, as long as one of its items is being deleted, which."""

_DESCRIPTOR = "descriptor"
"""An item that Orbax reserved for itself."""


def resolve_checkpoint(
    url: Any, storage_options: Mapping[str, Any] | None, fs: Any, settings: Settings = DEFAULT_SETTINGS
) -> Place:
    """The directory that ``url`` names."""
    place = resolve(url, storage_options=storage_options, fs=fs, settings=settings)
    if place.version is not None or place.prefix:
        raise InvalidArgumentError("A checkpoint is a directory; its URL has no part after |ocdbt:")
    return place


def find_checkpoint(place: Place, *, allow_uncommitted: bool = False) -> Layout:
    """A pytree, a step with items, or a database; anything else is an error that says what it is."""
    layout = identify(place)
    match layout.kind:
        case Kind.PYTREE | Kind.OLD_PYTREE | Kind.STEP | Kind.RANDOM_KEY | Kind.ARRAYS:
            if not allow_uncommitted and not is_finished(layout):
                raise UncommittedError(
                    f"The checkpoint at {place.url} was never finished, or is still being written; "
                    "allow_uncommitted=True reads what there is",
                    url=place.url,
                )
            if layout.kind is Kind.STEP and holds_database(layout.names):
                raise CorruptDataError(
                    f"The checkpoint at {place.url} has arrays but no {METADATA}, which says what they are; it was "
                    "copied without it. ocdbt_py.open() reads the keys of its database",
                    path=METADATA,
                    url=place.url,
                )
            layout = _without_deleted(layout)
            if layout.kind is Kind.STEP and not layout.items:
                raise NotFoundError(f"The checkpoint at {place.url} has no items", kind="item-not-found", url=place.url)
            return layout
        case Kind.DATABASE:
            return layout
        case Kind.ROOT:
            raise InvalidArgumentError(
                f"{place.url} is not a checkpoint but holds several: {_some(layout.steps)}. Give the URL of one, such "
                f"as {place.url}/{layout.steps[-1]}",
                url=place.url,
            )
        case Kind.PARTS:
            if not allow_uncommitted:
                raise _unmerged(layout)
            return layout
        case Kind.NOTHING:
            raise _nothing(place)
        case _:
            raise NotFoundError(
                f"There is no checkpoint at {place.url}; it holds {_some(sorted(layout.names))}",
                kind="checkpoint-not-found",
                url=place.url,
            )


def _without_deleted(layout: Layout) -> Layout:
    """A step without the item whose deletion was begun, and perhaps never ended."""
    if _DELETION not in layout.names:
        return layout
    place = layout.place
    data = read_file(place, _DELETION)
    try:
        record = None if data is None else decode_json(data, _DELETION)
    except CorruptDataError as error:
        raise error.located(url=place.url) from None
    deleted = record.get("checkpointable_name") if isinstance(record, dict) else None
    return layout._replace(items={name: kind for name, kind in layout.items.items() if name != deleted})


def _unmerged(layout: Layout) -> UncommittedError:
    url = layout.place.url
    return UncommittedError(
        f"{url} holds only what single processes wrote ({_some(sorted(layout.names))}), never merged into one "
        "checkpoint: its writers did not finish. With this URL, allow_uncommitted=True reads the arrays that are there",
        kind="unmerged",
        url=url,
    )


def _nothing(place: Place) -> NotFoundError:
    """Absent, unless something beside it tells more."""
    storage, path = place.storage, place.path
    if storage.capabilities.list and storage.capabilities.rename:
        beside = {item.path for item in storage.list(path + TEMPORARY)}
        if f"{replaced_path(path)}/" in beside:
            return UncommittedError(
                f"The checkpoint at {place.url} was being replaced when its writer stopped. The old one is whole: "
                f"rename {storage.describe(replaced_path(path))} back to it, or save there again",
                url=place.url,
            )
        # older releases put a time or a number behind the temporary name
        unfinished = [name[:-1] for name in sorted(beside) if name.endswith("/")]
        if unfinished:
            return UncommittedError(
                f"The checkpoint at {place.url} was never finished, or is still being written: what there is lies at "
                f"{storage.describe(unfinished[-1])}",
                url=place.url,
            )
    return PathNotFoundError(f"There is nothing at {place.url}; check the path", url=place.url)


def pytree_items(layout: Layout) -> list[str]:
    """The names of a step's items that are pytrees, of any release."""
    kinds = (ItemKind.PYTREE, ItemKind.OLD_PYTREE, ItemKind.ARRAYS)
    return [name for name, kind in layout.items.items() if kind in kinds]


def all_items(layout: Layout) -> list[str]:
    """The names of a step's items that hold what somebody saved."""
    return [name for name in layout.items if name != _DESCRIPTOR]


def find_item(layout: Layout, name: str) -> Layout:
    """One item of a step, by name."""
    if layout.kind is not Kind.STEP:
        raise InvalidArgumentError(
            f"{layout.place.url} is {layout.kind.value}, not a step with items; leave out item={name!r}",
            url=layout.place.url,
        )
    if name not in layout.items:
        guess = nearest(str(name), list(layout.items))
        raise NotFoundError(
            f"There is no item {name!r} in {layout.place.url}{f'; did you mean {guess!r}?' if guess else ''} "
            f"It has {_some(list(layout.items))}",
            kind="item-not-found",
            url=layout.place.url,
        )
    found = identify(child(layout.place, name))
    if found.kind is Kind.PARTS:
        raise _unmerged(found)
    return found


def read_json_item(place: Place) -> Any:
    """The value of an item that is JSON."""
    for name in JSON_FILES:
        data = read_file(place, name)
        if data is not None:
            try:
                return decode_json(data, name)
            except CorruptDataError as error:
                raise error.located(url=place.url) from None
    raise PathNotFoundError(f"The JSON of {place.url} is gone", url=place.url)


def _some(names: tuple[str, ...] | list[str]) -> str:
    shown = ", ".join(names[-20:] if len(names) > 20 else names)
    return f"{len(names)} in all, of which {shown}" if len(names) > 20 else shown or "nothing"
