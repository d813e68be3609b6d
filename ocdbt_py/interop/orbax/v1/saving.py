"""``v1.save`` and its kin: one checkpoint at one path.

PATH/orbax.checkpoint        an empty file: this is a checkpoint of the v1 API
PATH/_CHECKPOINT_METADATA
PATH/state/…                 one directory for each checkpointable; a tree is ``state``
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ocdbt_py.checkpoint.async_saving import begin_save
from ocdbt_py.checkpoint.contents import Contents
from ocdbt_py.checkpoint.flatten import flatten
from ocdbt_py.errors import AlreadyExistsError, InvalidArgumentError, InvalidTypeError
from ocdbt_py.interop.orbax.directories import directory_place
from ocdbt_py.interop.orbax.errors import DestinationExistsError
from ocdbt_py.interop.orbax.v1.context import Context, current_context
from ocdbt_py.interop.orbax.v1.handlers import PyTreeHandler
from ocdbt_py.interop.orbax.v1.handling import contents_of
from ocdbt_py.interop.orbax.v1.names import METRICS, RESERVED, STATE, V1_MARKER
from ocdbt_py.interop.orbax.v1.options import check_saving
from ocdbt_py.interop.orbax.v1.resolution import handler_for_save
from ocdbt_py.interop.orbax.v1.responses import SaveResponse

__all__ = [
    "checkpoint_contents",
    "save",
    "save_async",
    "save_checkpointables",
    "save_checkpointables_async",
    "save_pytree",
    "save_pytree_async",
]


def save(
    path: Any,
    state: Any,
    *,
    checkpointable_name: str = STATE,
    overwrite: bool = False,
    custom_metadata: Mapping[str, Any] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    fs: Any = None,
) -> None:
    """Save a tree at ``path``, under the name ``checkpointable_name`` there.

    ``overwrite`` replaces a checkpoint, once the new one is complete. ``custom_metadata``: a dict that JSON can hold.
    Raises ``ValueError``: something is there (:class:`DestinationExistsError`), or a leaf cannot be saved.
    """
    save_async(
        path,
        state,
        checkpointable_name=checkpointable_name,
        overwrite=overwrite,
        custom_metadata=custom_metadata,
        storage_options=storage_options,
        fs=fs,
    ).result()


def save_async(
    path: Any,
    state: Any,
    *,
    checkpointable_name: str = STATE,
    overwrite: bool = False,
    custom_metadata: Mapping[str, Any] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    fs: Any = None,
) -> SaveResponse[None]:
    """:func:`save`, returning as soon as nothing done to the tree can change what is written."""
    check_state(state)
    return save_checkpointables_async(
        path,
        {checkpointable_name: state},
        overwrite=overwrite,
        custom_metadata=custom_metadata,
        storage_options=storage_options,
        fs=fs,
    )


def save_checkpointables(
    path: Any,
    checkpointables: dict[str, Any],
    *,
    overwrite: bool = False,
    custom_metadata: Mapping[str, Any] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    fs: Any = None,
) -> None:
    """Save several objects by name, each with the handler for it. Raises as :func:`save`, and :class:`NoEntryError`."""
    save_checkpointables_async(
        path,
        checkpointables,
        overwrite=overwrite,
        custom_metadata=custom_metadata,
        storage_options=storage_options,
        fs=fs,
    ).result()


def save_checkpointables_async(
    path: Any,
    checkpointables: dict[str, Any],
    *,
    overwrite: bool = False,
    custom_metadata: Mapping[str, Any] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    fs: Any = None,
) -> SaveResponse[None]:
    """:func:`save_checkpointables`, in the background."""
    context = current_context()
    contents = checkpoint_contents(checkpointables, context, custom_metadata, files={V1_MARKER: b""})
    place = directory_place(path, storage_options, fs)
    try:
        handle = begin_save(
            place,
            contents,
            overwrite=overwrite,
            max_memory=context.memory.write_concurrent_bytes,
            wait_timeout=context.asynchronous.timeout_secs,
            then=context.asynchronous.post_finalization_callback,
        )
    except AlreadyExistsError as error:
        raise DestinationExistsError(error.message, kind=error.kind, url=error.url) from None
    return SaveResponse(handle, None)


def checkpoint_contents(
    checkpointables: Mapping[str, Any],
    context: Context,
    custom_metadata: Mapping[str, Any] | None = None,
    *,
    metrics: Any = None,
    files: Mapping[str, bytes] | None = None,
) -> Contents:
    """A checkpoint of these objects. Raises what is wrong with their names, and with them."""
    check_saving(context)
    check_checkpointables(checkpointables)
    registry = context.checkpointables.registry
    objects = dict(checkpointables)
    if metrics:
        objects[METRICS] = metrics
    items = {
        name: contents_of(handler_for_save(registry, value, name), value, context) for name, value in objects.items()
    }
    return Contents(items, custom_metadata, files or {})


def check_checkpointables(checkpointables: Any) -> None:
    """Raise :class:`InvalidArgumentError` unless these are objects by name."""
    if not checkpointables or not isinstance(checkpointables, dict):
        raise InvalidTypeError(
            "checkpointables is a dict of objects by name, with one at least, not "
            + (type(checkpointables).__name__ if checkpointables else "an empty one")
        )
    if "" in checkpointables:
        raise InvalidArgumentError("The empty str cannot be the name of a checkpointable")
    reserved = sorted(RESERVED & checkpointables.keys())
    if reserved:
        raise InvalidArgumentError(
            f"No checkpointable can be called {' or '.join(map(repr, reserved))}: reserved names"
        )


def check_state(state: Any) -> None:
    """Raise :class:`InvalidTypeError`, a ``ValueError``, if this is no tree that can be saved."""
    if not PyTreeHandler().is_handleable(state):
        kinds = sorted(
            {type(leaf).__name__ for leaf in flatten(state).leaves if not PyTreeHandler().is_handleable(leaf)}
        )
        raise InvalidTypeError(
            f"The tree has leaves of type {', '.join(kinds)}; arrays, numbers and str can be saved in one, other "
            "objects with save_checkpointables and a handler for them"
        )


save_pytree = save
"""Orbax's older name of :func:`save`."""

save_pytree_async = save_async
