"""The options of Orbax's classes, with its names and defaults: ``ocp.options``.

What has no meaning here is accepted and does nothing, where leaving it out changes neither what is written nor when:
``barrier_sync_fn`` (processes meet as :mod:`ocdbt_py.checkpoint.processes` has it),
``create_directories_asynchronously`` (a storage makes directories as files are written into them),
``skip_sync_file_validations``. What would change it is refused by those who read the option.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ocdbt_py.checkpoint.jax_processes import default_processes
from ocdbt_py.errors import UnsupportedError
from ocdbt_py.storage.location import Place

__all__ = [
    "AsyncOptions",
    "AtomicityMode",
    "AtomicityOptions",
    "FileOptions",
    "MemoryLimitOptions",
    "MultiprocessingOptions",
    "check_atomicity",
    "check_options",
]


@dataclass
class AsyncOptions:
    """How a save goes on behind the caller. ``timeout_secs``: seconds that processes wait for each other.

    ``post_finalization_callback`` is called in the thread that writes, once a checkpoint is published.
    """

    timeout_secs: int = 1200
    barrier_sync_fn: Callable[..., None] | None = None
    post_finalization_callback: Callable[[], None] | None = None
    create_directories_asynchronously: bool = True


@dataclass
class MultiprocessingOptions:
    """Which process lists, decides and publishes; here always process 0 of all."""

    primary_host: int | None = 0
    active_processes: set[int] | None = None
    barrier_sync_key_prefix: str | None = None


class AtomicityMode(enum.StrEnum):
    """How a checkpoint becomes visible at once."""

    AUTO = "auto"
    COMMIT_FILE = "commit_file"
    ATOMIC_RENAME = "atomic_rename"


@dataclass(frozen=True)
class AtomicityOptions:
    """``AUTO``: by rename where the storage renames directories, elsewhere by a marker written last."""

    mode: AtomicityMode = AtomicityMode.AUTO
    allow_legacy_atomic_rename: bool = False


@dataclass(frozen=True)
class FileOptions:
    """Of directories and files that are made; ``path_permission_mode`` only on a local disk."""

    path_permission_mode: int | None = None
    skip_sync_file_validations: bool = False


@dataclass
class MemoryLimitOptions:
    """``max_transfer_concurrent_gb``: a bound on what is copied from devices at a time."""

    max_transfer_concurrent_gb: int | None = None


def check_options(
    processes: MultiprocessingOptions | None, files: FileOptions | None, temporary_path_class: Any
) -> None:
    """Refuse what would change by whom or with which permissions is written, and cannot be done.

    Where there is one process it is the primary one and all that are active, whatever the options say. Raises
    :class:`UnsupportedError`.
    """
    refused = None
    if processes is not None and default_processes().count > 1:
        if processes.primary_host != 0:
            refused = f"primary_host={processes.primary_host!r}: process 0 lists, decides and publishes"
        elif processes.active_processes is not None:
            refused = "active_processes: all processes take part"
    if files is not None and files.path_permission_mode is not None:
        refused = "path_permission_mode: files get the permissions that the process's umask leaves"
    if temporary_path_class is not None:
        refused = "temporary_path_class: the storage decides how a checkpoint is published"
    if refused is not None:
        raise UnsupportedError(f"This option of Orbax's cannot be had here: {refused}")


def check_atomicity(atomicity: AtomicityOptions | None, place: Place) -> None:
    """Refuse another way to publish than the storage's own. Raises :class:`UnsupportedError`."""
    if atomicity is None or atomicity.mode == AtomicityMode.AUTO:
        return
    own = AtomicityMode.ATOMIC_RENAME if place.storage.capabilities.rename else AtomicityMode.COMMIT_FILE
    if atomicity.mode != own:
        raise UnsupportedError(
            f"Checkpoints at {place.url} are published by AtomicityMode.{own.name}, which goes with its storage; leave "
            "the option out",
            url=place.url,
        )
