"""Names of steps, and finding steps by them: ``ocp.path.step``.

A name format of Orbax's builds a name and finds steps below a directory. These do so by the rules of
:mod:`ocdbt_py.manager.step_names`, and have that module's two methods besides, so that the manager takes either.
Directories are paths or URLs; a step's ``path`` is of the kind that the directory was.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

from ocdbt_py.checkpoint.layout import TEMPORARY, child
from ocdbt_py.errors import InvalidArgumentError, NotFoundError
from ocdbt_py.interop.orbax.directories import directory_place, exists, path_of, subdirectories
from ocdbt_py.interop.orbax.metadata.checkpoint import StepMetadata, step_metadata
from ocdbt_py.manager.listing import UNKNOWN_TIME, is_committed
from ocdbt_py.manager.step_names import StepNames
from ocdbt_py.storage.location import Place

__all__ = [
    "TMP_DIR_SUFFIX",
    "Metadata",
    "NameFormat",
    "any_checkpoint_step",
    "build_step_path",
    "checkpoint_steps",
    "checkpoint_steps_paths",
    "composite_name_format",
    "find_step_path",
    "get_save_directory",
    "is_checkpoint_finalized",
    "is_path_finalized",
    "is_path_temporary",
    "is_standard_name_format",
    "is_tmp_checkpoint",
    "latest_step_metadata",
    "maybe_find_step_metadata",
    "standard_name_format",
    "step_from_checkpoint_name",
    "step_metadata_of_checkpoint_path",
    "step_prefix_with_underscore",
    "tmp_checkpoints",
]

TMP_DIR_SUFFIX = TEMPORARY


class _NoStepError(NotFoundError, ValueError):
    """Orbax tells that a step is not there by a ``ValueError``."""

    default_kind = "step-not-found"


@dataclass(frozen=True)
class Metadata:
    """A step that is there. Times in nanoseconds since the epoch; None where they are not recorded."""

    step: int
    path: Any

    @cached_property
    def _recorded(self) -> StepMetadata:
        return step_metadata(directory_place(self.path))

    @property
    def init_timestamp_nsecs(self) -> int | None:
        return self._recorded.init_timestamp_nsecs

    @property
    def commit_timestamp_nsecs(self) -> int | None:
        return self._recorded.commit_timestamp_nsecs

    @property
    def commit_timestamp(self) -> datetime:
        """When it was committed, in UTC; without a record of it, when a local directory was changed last."""
        nanoseconds = self.commit_timestamp_nsecs
        if nanoseconds is None and isinstance(self.path, str):
            return UNKNOWN_TIME
        seconds = os.stat(self.path).st_mtime if nanoseconds is None else nanoseconds / 1e9
        return datetime.fromtimestamp(seconds, tz=UTC)


@runtime_checkable
class NameFormat(Protocol):
    """How steps are called, and which are there."""

    def build_name(self, step: int) -> str:
        """What the directory of this step is called."""

    def find_all(self, base_path: Any) -> Iterator[Metadata]:
        """The finished steps below a directory, in no certain order."""

    def find_step(self, base_path: Any, step: int) -> Metadata:
        """One finished step. Raises ``ValueError`` if it is not there."""


@dataclass(frozen=True)
class _StandardNames:
    """``[PREFIX_]DIGITS``."""

    step_prefix: str | None = None
    step_format_fixed_length: int | None = None
    single_host_load_and_broadcast: bool = False

    @cached_property
    def _names(self) -> StepNames:
        return StepNames(self.step_prefix, self.step_format_fixed_length)

    def __str__(self) -> str:
        return f'StandardNameFormat("{self.build_name(1234)}")'

    def name(self, step: int) -> str:
        return self._names.name(step)

    def step(self, name: str) -> int | None:
        return self._names.step(name)

    def build_name(self, step: int) -> str:
        return self._names.name(step)

    def find_all(self, base_path: Any) -> Iterator[Metadata]:
        place = directory_place(base_path)
        for name in subdirectories(place):
            step = self._names.step(name)
            if step is not None and _is_finished(child(place, name)):
                yield Metadata(step, path_of(child(place, name).url))

    def find_step(self, base_path: Any, step: int) -> Metadata:
        place = directory_place(base_path)
        found = child(place, self.build_name(step))
        if not exists(found) or not _is_finished(found):
            raise _NoStepError(f"There is no finished step {step}, called {self.build_name(step)}, in {place.url}")
        return Metadata(step, path_of(found.url))


def _is_finished(place: Place) -> bool:
    return TEMPORARY not in place.path.rpartition("/")[2] and is_committed(place)


def standard_name_format(
    *,
    step_prefix: str | None = None,
    step_format_fixed_length: int | None = None,
    single_host_load_and_broadcast: bool = False,
    temporary_path_cls: Any = None,
    atomicity_options: Any = None,
) -> NameFormat:
    """``23``, ``0023`` with a fixed length of 4, ``step_23`` with the prefix ``step``.

    The storage says what a finished directory is, so the last two arguments do nothing.

    >>> standard_name_format(step_prefix="step", step_format_fixed_length=4).build_name(23)
    'step_0023'
    """
    return _StandardNames(step_prefix, step_format_fixed_length, single_host_load_and_broadcast)


@dataclass(frozen=True)
class _CompositeNames:
    """Writes one format, reads several."""

    write_name_format: NameFormat
    read_name_formats: Sequence[NameFormat]

    def __post_init__(self) -> None:
        if self.write_name_format not in self.read_name_formats:
            raise InvalidArgumentError("write_name_format must be among read_name_formats")

    def __str__(self) -> str:
        return f"Composite([{','.join(map(str, self.read_name_formats))}])"

    def name(self, step: int) -> str:
        return self.write_name_format.build_name(step)

    def step(self, name: str) -> int | None:
        known = (each.step(name) for each in self.read_name_formats if hasattr(each, "step"))
        return next((step for step in known if step is not None), None)

    def build_name(self, step: int) -> str:
        return self.write_name_format.build_name(step)

    def find_all(self, base_path: Any) -> Iterator[Metadata]:
        seen = set()
        for each in self.read_name_formats:
            for found in each.find_all(base_path):
                if str(found.path) not in seen:
                    seen.add(str(found.path))
                    yield found

    def find_step(self, base_path: Any, step: int) -> Metadata:
        for each in self.read_name_formats:
            found = maybe_find_step_metadata(base_path, each, step=step)
            if found is not None:
                return found
        raise _NoStepError(f"There is no finished step {step} by any of {self} in {base_path}")


def composite_name_format(write_name_format: NameFormat, read_name_formats: Sequence[NameFormat]) -> NameFormat:
    """One format to write, several to read; earlier ones win where two name the same step."""
    return _CompositeNames(write_name_format, read_name_formats)


def is_standard_name_format(name_format: Any) -> bool:
    return isinstance(name_format, _StandardNames)


def step_prefix_with_underscore(step_prefix: str | None) -> str:
    return "" if step_prefix is None else f"{step_prefix}_"


def build_step_path(base_path: Any, name_format: NameFormat, step: int) -> Any:
    """Where a step is, or would be."""
    return path_of(child(directory_place(base_path), name_format.build_name(step)).url)


def find_step_path(base_path: Any, name_format: NameFormat, *, step: int, include_uncommitted: bool = False) -> Any:
    """Where a step is; of one that is not finished, with ``include_uncommitted``, the temporary directory.

    Raises ``ValueError`` if it is not there.
    """
    if include_uncommitted:
        place = directory_place(base_path)
        name = name_format.build_name(step)
        for found in subdirectories(place):
            if found.partition(TEMPORARY)[0] == name and (TEMPORARY in found or not is_committed(child(place, found))):
                return path_of(child(place, found).url)
    return name_format.find_step(base_path, step).path


def maybe_find_step_metadata(base_path: Any, name_format: NameFormat, *, step: int) -> Metadata | None:
    """One finished step; None if it is not there."""
    try:
        return name_format.find_step(base_path, step)
    except ValueError:
        return None


def latest_step_metadata(root_path: Any, name_format: NameFormat) -> Metadata | None:
    """The finished step with the highest number; None if there is none."""
    found = sorted(name_format.find_all(root_path), key=lambda each: str(each.path), reverse=True)
    return max(found, key=lambda each: each.step, default=None)


def step_metadata_of_checkpoint_path(checkpoint_path: Any, name_format: NameFormat) -> Metadata:
    """The step that a directory is. Raises ``ValueError`` if it is none."""
    place = directory_place(checkpoint_path)
    above, _, name = place.path.rpartition("/")
    root = path_of(place.storage.describe(above))
    for found in name_format.find_all(root):
        if str(found.path).rstrip("/").rpartition("/")[2] == name:
            return found
    raise _NoStepError(f"{place.url} is no finished step by {name_format}")


def get_save_directory(
    step: int,
    directory: Any,
    name: str | None = None,
    step_prefix: str | None = None,
    override_directory: Any = None,
    step_format_fixed_length: int | None = None,
    step_name_format: NameFormat | None = None,
) -> Any:
    """Where the item ``name`` of a step is, or would be."""
    if directory is None:
        raise InvalidArgumentError("directory is the root of the steps, and None is none")
    names = step_name_format or standard_name_format(
        step_prefix=step_prefix, step_format_fixed_length=step_format_fixed_length
    )
    if override_directory is None:
        place = child(directory_place(directory), names.build_name(step))
    else:
        place = directory_place(override_directory)
    return path_of(place.url if name is None else child(place, name).url)


def is_path_finalized(path: Any) -> bool:
    """Whether a directory was committed."""
    place = directory_place(path)
    return exists(place) and _is_finished(place)


def is_path_temporary(path: Any) -> bool:
    """Whether a directory is being written, or never was finished."""
    return not is_path_finalized(path)


is_checkpoint_finalized = is_path_finalized
is_tmp_checkpoint = is_path_temporary


def tmp_checkpoints(checkpoint_dir: Any) -> list[str]:
    """Names of the unfinished directories below a directory."""
    place = directory_place(checkpoint_dir)
    return [name for name in subdirectories(place) if not _is_finished(child(place, name))]


def _looks_like_step(name: str) -> bool:
    return name.rpartition("_")[2].isdigit()


def checkpoint_steps_paths(checkpoint_dir: Any) -> list[Any]:
    """The finished steps below a directory, with any prefix and any padding."""
    place = directory_place(checkpoint_dir)
    found = [child(place, name) for name in subdirectories(place) if _looks_like_step(name)]
    return [path_of(each.url) for each in found if _is_finished(each)]


def checkpoint_steps(checkpoint_dir: Any) -> list[int]:
    """The numbers of :func:`checkpoint_steps_paths`."""
    return [step_from_checkpoint_name(str(path).rpartition("/")[2]) for path in checkpoint_steps_paths(checkpoint_dir)]


def any_checkpoint_step(checkpoint_dir: Any) -> int | None:
    """Some finished step; None if there is none."""
    return next(iter(checkpoint_steps(checkpoint_dir)), None)


def step_from_checkpoint_name(name: str) -> int:
    """The number in the name of a step, or of a step's temporary directory. Raises ``ValueError`` if it has none."""
    match = re.fullmatch(r"(?:.+_)?([0-9]+)", name.partition(TEMPORARY)[0], re.DOTALL)
    if match is None:
        raise InvalidArgumentError(f"{name!r} is no name of a step")
    return int(match[1])
