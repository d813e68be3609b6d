"""``v1.metadata`` and its kin: what is known of a checkpoint without reading its arrays."""

from __future__ import annotations

import pprint
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from ocdbt_py.interop.orbax.directories import path_of
from ocdbt_py.interop.orbax.v1.context import Context, current_context
from ocdbt_py.interop.orbax.v1.handlers import PyTreeHandler
from ocdbt_py.interop.orbax.v1.handling import describe_item
from ocdbt_py.interop.orbax.v1.names import AUTO
from ocdbt_py.interop.orbax.v1.opening import Opened, open_checkpoint
from ocdbt_py.interop.orbax.v1.options import check_loading
from ocdbt_py.interop.orbax.v1.resolution import handler_for_load

__all__ = ["CheckpointMetadata", "checkpointables_metadata", "item_descriptions", "metadata", "pytree_metadata"]

M = TypeVar("M")

PyTreeMetadata = Any
"""Dicts and lists, with a description for each leaf."""


class CheckpointMetadata(Generic[M]):
    """A checkpoint: ``metadata`` describes its tree, or its objects by name; times in nanoseconds since the epoch."""

    def __init__(
        self,
        path: Any,
        *,
        metadata: M,
        init_timestamp_nsecs: int | None = None,
        commit_timestamp_nsecs: int | None = None,
        custom_metadata: Any = None,
    ) -> None:
        self._path = path
        self._metadata = metadata
        self._init_time_ns = init_timestamp_nsecs
        self._commit_time_ns = commit_timestamp_nsecs
        self._custom_metadata = custom_metadata

    @property
    def path(self) -> Any:
        return self._path

    @property
    def metadata(self) -> M:
        return self._metadata

    @property
    def init_timestamp_nsecs(self) -> int | None:
        """When its save began."""
        return self._init_time_ns

    @property
    def commit_timestamp_nsecs(self) -> int | None:
        """When it was complete."""
        return self._commit_time_ns

    @property
    def init_timestamp(self) -> datetime | None:
        return _moment(self._init_time_ns)

    @property
    def commit_timestamp(self) -> datetime | None:
        return _moment(self._commit_time_ns)

    @property
    def custom_metadata(self) -> Any:
        """What the user gave when saving."""
        return self._custom_metadata

    def _shown(self) -> dict[str, str]:
        return {
            "metadata": str(self.metadata),
            "init_timestamp_nsecs": str(self.init_timestamp_nsecs),
            "commit_timestamp_nsecs": str(self.commit_timestamp_nsecs),
            "custom_metadata": str(self.custom_metadata),
        }

    def __repr__(self) -> str:
        return f"{type(self).__name__}({pprint.pformat(self._shown())})"


def _moment(time_ns: int | None) -> datetime | None:
    return None if time_ns is None else datetime.fromtimestamp(time_ns / 1e9, tz=UTC)


def metadata(
    path: Any,
    checkpointable_name: str | None = AUTO,
    *,
    storage_options: Mapping[str, Any] | None = None,
    fs: Any = None,
) -> CheckpointMetadata[Any]:
    """The tree at ``path``, described: can be given to ``load``. Raises :class:`InvalidLayoutError`."""
    check_loading(current_context())
    opened = open_checkpoint(path, storage_options, fs)
    name = opened.tree_name(checkpointable_name)
    return _checkpoint(opened, PyTreeHandler().describe(opened.place_of(name)))


def checkpointables_metadata(
    path: Any, *, storage_options: Mapping[str, Any] | None = None, fs: Any = None
) -> CheckpointMetadata[dict[str, Any]]:
    """All objects at ``path``, described, by name; None where nothing is known. Raises :class:`InvalidLayoutError`."""
    opened = open_checkpoint(path, storage_options, fs)
    if opened.is_direct:
        opened.tree_name("state")  # raises, and says what it is
    return _checkpoint(opened, item_descriptions(opened, current_context()))


def item_descriptions(opened: Opened, context: Context) -> dict[str, Any]:
    """What is known of each object of a checkpoint; None where its handler cannot tell."""
    check_loading(context)
    registry = context.checkpointables.registry
    found: dict[str, Any] = {}
    for name in opened.names:
        place = opened.place_of(name)
        handler = handler_for_load(registry, None, name, opened.handler_of(name), place)
        try:
            found[name] = describe_item(handler, place, context)
        except Exception:  # a handler of the user's; the others can be described all the same
            found[name] = None
    return found


def _checkpoint(opened: Opened, described: Any) -> CheckpointMetadata[Any]:
    record = opened.record
    return CheckpointMetadata(
        path_of(opened.place.url),
        metadata=described,
        init_timestamp_nsecs=record.init_time_ns,
        commit_timestamp_nsecs=record.commit_time_ns,
        custom_metadata=record.custom_metadata,
    )


pytree_metadata = metadata
"""Orbax's older name of :func:`metadata`."""
