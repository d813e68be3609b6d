"""What is known of a step, and of a root of steps: ``ocp.metadata.StepMetadata`` and ``RootMetadata``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ocdbt_py.checkpoint.layout import child, read_file
from ocdbt_py.checkpoint.metadata import CHECKPOINT_METADATA, decode_json
from ocdbt_py.checkpoint.opening import resolve_checkpoint
from ocdbt_py.errors import CorruptDataError, InvalidArgumentError
from ocdbt_py.storage.location import Place

__all__ = [
    "RootMetadata",
    "SaveStepStatistics",
    "StepMetadata",
    "get_step_metadata",
    "root_metadata",
    "step_metadata",
]

ROOT_METADATA = "_ROOT_METADATA"
ROOT_DIRECTORY = "metadata"


@dataclass
class SaveStepStatistics:
    """How long the parts of a save took, as far as its writer measured: seconds, and times since the epoch."""

    step: int | None = None
    event_type: str | None = "save"
    directory: str | None = None
    reached_preemption: bool | None = False
    preemption_received_at: float | None = None
    synchronous: bool | None = False
    wait_for_prev_start_time: float | None = None
    wait_for_prev_duration_secs: float | None = None
    time_between_consecutive_saves_sec: float | None = None
    checkpointer_blocking_start_time: float | None = None
    checkpointer_blocking_duration_secs: float | None = None
    get_old_steps_start_time: float | None = None
    get_old_steps_duration_secs: float | None = None
    checkpoint_manager_blocking_start_time: float | None = None
    checkpoint_manager_blocking_duration_secs: float | None = None


_MEASURED = {each.name for each in dataclasses.fields(SaveStepStatistics)}


@dataclass
class StepMetadata:
    """A step, or a checkpoint without items. Times in nanoseconds since the epoch.

    ``item_handlers`` and ``item_metadata``: by item, or the one there is.
    """

    item_handlers: dict[str, str] | str | None = None
    item_metadata: Any = None
    metrics: dict[str, Any] = field(default_factory=dict)
    performance_metrics: SaveStepStatistics = field(default_factory=SaveStepStatistics)
    init_timestamp_nsecs: int | None = None
    commit_timestamp_nsecs: int | None = None
    custom_metadata: dict[str, Any] = field(default_factory=dict)


@dataclass
class RootMetadata:
    """What a manager was given about all its steps."""

    internal_metadata: dict[str, Any] | None = field(default_factory=dict)
    custom_metadata: dict[str, Any] | None = field(default_factory=dict)


def step_metadata(place: Place, item_metadata: Any = None, metrics: Mapping[str, Any] | None = None) -> StepMetadata:
    """``_CHECKPOINT_METADATA`` of the checkpoint there; ``metrics`` are added to what that says.

    A file that is not there, or is no JSON, counts as empty, as in Orbax. One that says something else than it may is
    :class:`InvalidArgumentError`, a ``ValueError``, as there.
    """
    data = read_file(place, CHECKPOINT_METADATA)
    try:
        document = {} if data is None else decode_json(data, CHECKPOINT_METADATA)
    except CorruptDataError:
        document = {}
    return _decoded(document, place.url, item_metadata, metrics)


def get_step_metadata(path: Any) -> StepMetadata:
    """``_CHECKPOINT_METADATA`` of the checkpoint at ``path``, without a word on its items.

    Raises :class:`InvalidArgumentError` where there is none.
    """
    place = resolve_checkpoint(path, None, None)
    data = read_file(place, CHECKPOINT_METADATA)
    if data is None:
        raise InvalidArgumentError(f"There is no {CHECKPOINT_METADATA} in {place.url}", url=place.url)
    return step_metadata(place)


_FIELDS: dict[str, type | tuple[type, ...]] = {
    "item_handlers": (dict, str),
    "metrics": dict,
    "performance_metrics": dict,
    "init_timestamp_nsecs": int,
    "commit_timestamp_nsecs": int,
    "custom_metadata": dict,
}


def _decoded(document: Any, url: str, item_metadata: Any, metrics: Mapping[str, Any] | None) -> StepMetadata:
    found = _known_fields(document, _FIELDS, url)
    statistics = SaveStepStatistics()
    for name, value in (found["performance_metrics"] or {}).items():
        if isinstance(value, float) and name in _MEASURED:
            setattr(statistics, name, value)
    return StepMetadata(
        item_handlers=found["item_handlers"],
        item_metadata=item_metadata,
        metrics={**(found["metrics"] or {}), **(metrics or {})},
        performance_metrics=statistics,
        init_timestamp_nsecs=found["init_timestamp_nsecs"],
        commit_timestamp_nsecs=found["commit_timestamp_nsecs"],
        custom_metadata=found["custom_metadata"] or {},
    )


def _known_fields(document: Any, fields: Mapping[str, Any], url: str) -> dict[str, Any]:
    """The fields, each of its type or None; other keys count as custom metadata, unless there is some already."""
    if not isinstance(document, dict):
        raise InvalidArgumentError(f"The metadata of {url} is no JSON object", url=url)
    found = {name: document.get(name) for name in fields}
    for name, kind in fields.items():
        if found[name] is not None and not isinstance(found[name], kind):
            raise InvalidArgumentError(f"In the metadata of {url}, {name} is {str(found[name])[:80]!r}", url=url)
    others = {name: value for name, value in document.items() if name not in fields}
    if others and found["custom_metadata"]:
        raise InvalidArgumentError(
            f"The metadata of {url} has the unknown keys {sorted(others)[:8]} beside custom_metadata", url=url
        )
    return found if not others else {**found, "custom_metadata": others}


def root_metadata(place: Place) -> RootMetadata:
    """What the manager of the root there was given as ``metadata=``; empty where nothing was."""
    directory = child(place, ROOT_DIRECTORY)
    for name in (ROOT_METADATA, "metadata"):  # the second is of older releases, and the user's JSON alone
        data = read_file(directory, name)
        if data is None:
            continue
        try:
            document = decode_json(data, name)
        except CorruptDataError:
            continue
        fields = {"internal_metadata": dict, "custom_metadata": dict}
        found = _known_fields(document, fields, directory.url)
        return RootMetadata(found["internal_metadata"] or {}, found["custom_metadata"] or {})
    return RootMetadata()
