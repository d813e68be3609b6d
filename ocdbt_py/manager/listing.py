"""The steps that are there, and what is known of each.

One listing of the root finds them by name; then ``_CHECKPOINT_METADATA`` of each is read, which has the commit time,
the user's metadata, and whether there are metrics. So time-based policies and best-n go on where an earlier
run, ours or Orbax's, has left off.

What counts as a step: its name is one, and it was finished (:mod:`ocdbt_py.checkpoint.layout`). That is Orbax's answer,
and where directories are renamed it lets an empty directory be a step. ``only_whole`` asks for more: that it says of
itself that it is a checkpoint, or looks like one. Whether it really :func:`opens` is not asked of all of them, since
that reads the metadata of every leaf.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from ocdbt_py.checkpoint.layout import TEMPORARY, ItemKind, Kind, child, identify, read_file
from ocdbt_py.checkpoint.metadata import (
    CHECKPOINT_METADATA,
    COMMIT_MARKER,
    CheckpointMetadata,
    decode_checkpoint_metadata,
    decode_json,
)
from ocdbt_py.checkpoint.opening import find_checkpoint, find_item, pytree_items, read_json_item
from ocdbt_py.checkpoint.stored import StoredTree
from ocdbt_py.errors import CorruptDataError, InvalidArgumentError, NotFoundError, UnsupportedError
from ocdbt_py.manager.step_names import NameFormat
from ocdbt_py.storage.background import each
from ocdbt_py.storage.location import Place

__all__ = [
    "METRICS",
    "UNKNOWN_TIME",
    "SavedStep",
    "decode_steps",
    "encode_steps",
    "find_steps",
    "is_committed",
    "opens",
    "read_metrics",
    "step_directories",
]

METRICS = "metrics"
"""The item that the metrics are, and the file in it."""

UNKNOWN_TIME = datetime.fromtimestamp(0, UTC)
"""Of a step that does not say when it was committed."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SavedStep:
    """What is known of a step. ``time``: of the commit, in UTC; while it is being saved, when that began.

    ``metrics`` is None where there are none. ``name``: of its directory.
    """

    step: int
    time: datetime
    metrics: Any = None
    custom_metadata: Mapping[str, Any] = field(default_factory=dict)
    is_saving: bool = False
    name: str = ""


def step_directories(place: Place, names: NameFormat) -> dict[int, str]:
    """Step -> name of its directory, finished or not. Where several have one number, the name we would write wins."""
    storage = place.storage
    if not storage.capabilities.list:
        raise UnsupportedError(
            f"The storage of {place.url} cannot list, so its steps cannot be found; restore one by its own URL",
            url=place.url,
        )
    start = len(place.path) + 1
    found: dict[int, str] = {}
    for item in storage.list(f"{place.path}/"):
        name = item.path[start:-1]
        step = names.step(name) if item.path.endswith("/") and TEMPORARY not in name else None
        if step is not None and (step not in found or name == names.name(step)):
            found[step] = name
    return found


def find_steps(place: Place, names: NameFormat, *, only_whole: bool, read_metadata: bool = True) -> list[SavedStep]:
    """The steps below ``place``, ascending.

    ``read_metadata=False`` reads no times and no metrics, and nothing at all where a name says that a step is finished.
    """
    found: dict[int, SavedStep] = {}
    directories = step_directories(place, names)

    def look(step: int) -> None:
        at = child(place, directories[step])
        if not read_metadata and at.storage.capabilities.rename:
            found[step] = SavedStep(step, UNKNOWN_TIME, name=directories[step])
            return
        metadata = _read_metadata(at)
        if is_committed(at, metadata) and (not only_whole or metadata is not None or _looks_whole(at)):
            metadata = metadata or CheckpointMetadata()
            metrics = _metrics(at, metadata) if read_metadata else None
            time = _commit_time(at, metadata)
            found[step] = SavedStep(step, time, metrics, dict(metadata.custom_metadata), name=directories[step])

    each(look, directories, place.storage.capabilities.parallel)
    return [found[step] for step in sorted(found)]


def is_committed(place: Place, metadata: CheckpointMetadata | None = None) -> bool:
    """Whether the writer of a step, whose name is not a temporary one, finished it."""
    if place.storage.capabilities.rename:
        return True
    metadata = metadata or _read_metadata(place)
    has_time = metadata is not None and metadata.commit_time_ns is not None
    return has_time or read_file(place, COMMIT_MARKER) is not None


def opens(place: Place) -> bool:
    """Whether a step can be restored, as far as its metadata tells: no bytes of arrays are read."""
    try:
        layout = find_checkpoint(place)
        if layout.kind is not Kind.STEP:
            StoredTree.open(layout)
            return True
        for name in pytree_items(layout):
            StoredTree.open(find_item(layout, name))
        for name, kind in layout.items.items():
            if kind is ItemKind.JSON and name != METRICS:  # which may be unreadable: it counts as none then
                read_json_item(child(place, name))
    except (NotFoundError, CorruptDataError, InvalidArgumentError) as error:
        _log.debug("%s does not open: %s", place.url, error)
        return False
    return True


def read_metrics(place: Place) -> Any | None:
    """The metrics of a step; None if it has none, or none that can be read."""
    data = read_file(child(place, METRICS), METRICS)
    try:
        return None if data is None else decode_json(data, f"{METRICS}/{METRICS}")
    except CorruptDataError as error:
        _log.warning("%s counts as a step without metrics: %s", place.url, error)
        return None


def encode_steps(steps: Iterable[SavedStep]) -> bytes:
    """What process 0 tells the others."""
    spelled = [[i.step, i.time.isoformat(), i.metrics, dict(i.custom_metadata), i.name] for i in steps]
    return json.dumps(spelled).encode()


def decode_steps(data: bytes) -> list[SavedStep]:
    """What process 0 has told."""
    return [
        SavedStep(step, datetime.fromisoformat(moment), metrics, custom, name=name)
        for step, moment, metrics, custom, name in json.loads(data)
    ]


def _read_metadata(place: Place) -> CheckpointMetadata | None:
    """None where there is none that can be read; as in Orbax that is no reason to stop."""
    data = read_file(place, CHECKPOINT_METADATA)
    try:
        return None if data is None else decode_checkpoint_metadata(data)
    except CorruptDataError:
        return None


def _looks_whole(place: Place) -> bool:
    """Whether a directory that does not say what it is can be nothing but a checkpoint: old releases', or a copy."""
    return identify(place).kind in (Kind.PYTREE, Kind.OLD_PYTREE, Kind.STEP)


def _metrics(place: Place, metadata: CheckpointMetadata) -> Any | None:
    handlers = metadata.item_handlers
    return None if isinstance(handlers, dict) and METRICS not in handlers else read_metrics(place)


def _commit_time(place: Place, metadata: CheckpointMetadata) -> datetime:
    with suppress(OverflowError, OSError, ValueError):
        if metadata.commit_time_ns is not None:
            return datetime.fromtimestamp(metadata.commit_time_ns / 1e9, UTC)
        if place.url == place.path:  # a local directory
            return datetime.fromtimestamp(os.stat(place.path).st_mtime, UTC)
    return UNKNOWN_TIME
