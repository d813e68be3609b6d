"""``v1.delete``: a whole checkpoint, or one item of one.

A whole one is taken away in one step that leaves nothing that looks like a checkpoint. An item goes in four, of which
every one may be the last before a crash; calling again with the same name goes on from there, Orbax's call too::

    _CHECKPOINT_DELETION       says which item goes: from now on nobody reads it
    ITEM/                      its files
    _CHECKPOINT_METADATA       without it
    _CHECKPOINT_DELETION       is removed
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from ocdbt_py.checkpoint.jax_processes import default_processes
from ocdbt_py.checkpoint.layout import Kind, child, identify, read_file
from ocdbt_py.checkpoint.metadata import CHECKPOINT_METADATA, METADATA, decode_json
from ocdbt_py.checkpoint.processes import WAIT_TIMEOUT, Steps
from ocdbt_py.errors import (
    CorruptDataError,
    InvalidArgumentError,
    InvalidTypeError,
    PathNotFoundError,
    UnsupportedError,
)
from ocdbt_py.interop.orbax.directories import directory_place, exists
from ocdbt_py.interop.orbax.v1.context import current_context
from ocdbt_py.interop.orbax.v1.errors import DeletionRecoveryError, InvalidLayoutError
from ocdbt_py.interop.orbax.v1.names import DELETION, RESERVED, V1_MARKER
from ocdbt_py.interop.orbax.v1.responses import Response
from ocdbt_py.manager.deleting import retire
from ocdbt_py.storage.location import Place

__all__ = ["delete", "delete_async", "delete_item"]

_MARKERS = frozenset({V1_MARKER, CHECKPOINT_METADATA, METADATA})


def delete(
    path: Any,
    *,
    checkpointable_name: str | None = None,
    missing_ok: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    fs: Any = None,
) -> bool:
    """Delete the checkpoint at ``path``, or the item ``checkpointable_name`` of it. Whether there was anything.

    Raises ``FileNotFoundError`` if there was not, unless ``missing_ok``; :class:`InvalidLayoutError` for a directory
    that is no checkpoint, which is left alone; ``ValueError`` for the only item of a checkpoint;
    :class:`DeletionRecoveryError` while the deletion of another item has not ended.
    """
    place = directory_place(path, storage_options, fs)
    if checkpointable_name is not None:
        check_item_name(checkpointable_name)
    if current_context().deletion.gcs_deletion_options.todelete_full_path is not None:
        raise UnsupportedError("deletion.gcs_deletion_options.todelete_full_path is not supported here: leave it out")
    return _by_the_first_process(place, lambda: _delete(place, checkpointable_name, missing_ok))


def _by_the_first_process(place: Place, work: Callable[[], bool]) -> bool:
    """Process 0 does it; the others wait, get its answer, or fail as it does."""
    processes = default_processes()
    steps = Steps(processes, f"delete {place.path.rpartition('/')[2]}", WAIT_TIMEOUT)
    return bool(steps.take("delete", lambda: b"1" if steps.is_primary and work() else b"")[0])


def _delete(place: Place, name: str | None, missing_ok: bool) -> bool:
    if not exists(place):
        if missing_ok:
            return False
        raise PathNotFoundError(f"There is no checkpoint at {place.url}", url=place.url)
    if name is not None:
        return _delete_item(place, name, missing_ok)
    layout = identify(place)
    above = place.path.rpartition("/")[0]
    parent = Place(place.storage, above, place.storage.describe(above))
    if above and any(read_file(parent, each) is not None for each in (V1_MARKER, CHECKPOINT_METADATA, DELETION)):
        raise InvalidLayoutError(
            f"{place.url} is one item of the checkpoint {parent.url}; delete it from that, with checkpointable_name",
            url=place.url,
        )
    if layout.kind is not Kind.NOTHING and layout.names.isdisjoint(_MARKERS):
        raise InvalidLayoutError(f"{place.url} is no checkpoint: {layout.kind.value}. It was left alone", url=place.url)
    retire(place)()
    return True


def delete_async(
    path: Any,
    *,
    checkpointable_name: str | None = None,
    missing_ok: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    fs: Any = None,
) -> Response[bool]:
    """:func:`delete`, in the background."""

    def work() -> bool:
        return delete(
            path,
            checkpointable_name=checkpointable_name,
            missing_ok=missing_ok,
            storage_options=storage_options,
            fs=fs,
        )

    return Response(work, "ocdbt-delete")


def delete_item(place: Place, name: str, *, missing_ok: bool = False) -> bool:
    """Delete one item of the checkpoint at ``place``, or end such a deletion."""
    check_item_name(name)
    return _by_the_first_process(place, lambda: _delete_item(place, name, missing_ok))


def _delete_item(place: Place, name: str, missing_ok: bool) -> bool:
    record = _record(place)
    if record is None:
        original = _read(place, CHECKPOINT_METADATA)
        handlers = original.get("item_handlers") if isinstance(original, dict) else None
        if not isinstance(handlers, dict):
            raise InvalidLayoutError(f"{place.url} is no checkpoint with items", url=place.url)
        if name not in handlers or not exists(child(place, name)):
            if missing_ok and not exists(child(place, name)):
                return False
            raise PathNotFoundError(f"{place.url} has no {name!r}; it has {', '.join(handlers)}", url=place.url)
        if not any(each != name and each not in RESERVED and exists(child(place, each)) for each in handlers):
            raise InvalidArgumentError(f"{name!r} is all there is in {place.url}; delete the whole checkpoint")
        record = {
            "operation_id": uuid.uuid4().hex,
            "checkpointable_name": name,
            "destination": None,
            "original_metadata": original,
            "updated_metadata": {**original, "item_handlers": {k: v for k, v in handlers.items() if k != name}},
        }
        _write(place, DELETION, record)
    elif record["checkpointable_name"] != name:
        raise DeletionRecoveryError(
            f"The deletion of {record['checkpointable_name']!r} from {place.url} was begun; delete that first",
            url=place.url,
        )
    elif record.get("destination") is not None:
        raise DeletionRecoveryError(
            f"{name!r} of {place.url} was being moved to {record['destination']}; only what began that can end it",
            url=place.url,
        )
    retire(child(place, name))()
    _write(place, CHECKPOINT_METADATA, record["updated_metadata"])
    place.storage.delete(f"{place.path}/{DELETION}")
    return True


def check_item_name(name: Any) -> None:
    """Raise :class:`InvalidArgumentError` unless an item can be called so."""
    if not isinstance(name, str):
        raise InvalidTypeError(f"checkpointable_name is a str or None, not {type(name).__name__}")
    if name in ("", ".", "..") or name in RESERVED or name == CHECKPOINT_METADATA or set(name) & {"/", "\\", "\0"}:
        raise InvalidArgumentError(f"{name!r} cannot be the name of a checkpointable")


def _record(place: Place) -> dict[str, Any] | None:
    """What is being deleted, if anything is."""
    if read_file(place, DELETION) is None:
        return None
    record = _read(place, DELETION)
    is_whole = isinstance(record, dict) and isinstance(record.get("updated_metadata"), dict)
    if not is_whole or not isinstance(record.get("checkpointable_name"), str):
        raise DeletionRecoveryError(f"{DELETION} of {place.url} does not say what is being deleted", url=place.url)
    check_item_name(record["checkpointable_name"])
    return dict(record)


def _read(place: Place, name: str) -> Any:
    data = read_file(place, name)
    if data is None:
        raise PathNotFoundError(f"There is no {name} in {place.url}", path=name, url=place.url)
    try:
        return decode_json(data, name)
    except CorruptDataError as error:
        raise error.located(url=place.url) from None


def _write(place: Place, name: str, document: Mapping[str, Any]) -> None:
    place.storage.write(f"{place.path}/{name}", [json.dumps(document).encode()])
