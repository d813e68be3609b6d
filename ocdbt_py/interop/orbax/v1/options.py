"""The options of a :class:`Context`, with Orbax's names and defaults: ``v1.options``.

Each lies in a namespace of its context (``ctx.array.saving.use_zarr3 = False``) and cannot be changed while a ``with``
block uses that context. Some have no meaning here, where leaving them out changes nothing that a reader could see: how
transfers from devices are grouped, how large data files are, how much is in memory at a time (it is bounded anyway),
how processes name their barriers. What would change more and cannot be had is refused when it is about to matter
(:func:`check_saving`, :func:`check_loading`), and an option that is not here when it is set.
"""

from __future__ import annotations

import contextvars
import dataclasses
import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from ocdbt_py.errors import UnsupportedError
from ocdbt_py.interop.orbax.options import AtomicityMode
from ocdbt_py.interop.orbax.v1.errors import FrozenContextError
from ocdbt_py.interop.orbax.v1.registration import CheckpointableHandlerRegistry, read_only_registry

__all__ = [
    "ArrayOptions",
    "AsyncOptions",
    "AtomicityMode",
    "AtomicityOptions",
    "CheckpointLayout",
    "CheckpointablesOptions",
    "DeletionOptions",
    "FileOptions",
    "MemoryOptions",
    "MultiprocessingOptions",
    "PathwaysOptions",
    "PyTreeOptions",
    "SafetensorsOptions",
    "check_loading",
    "check_saving",
]

FROZEN: contextvars.ContextVar[frozenset[int]] = contextvars.ContextVar("ocdbt_frozen_options", default=frozenset())
"""The identities of the contexts that are in use, and of their options."""


class _Options:
    """Options that stay as they are while their context is in use."""

    def __setattr__(self, name: str, value: Any) -> None:
        known = [each.name for each in dataclasses.fields(self)]  # type: ignore[arg-type]
        if name not in known:
            raise AttributeError(f"{type(self).__name__} has no option {name!r} here; it has {', '.join(known)}")
        if id(self) in FROZEN.get():
            raise FrozenContextError(
                f"{type(self).__name__}.{name} belongs to a context that is in use; set it before the with block, or "
                "make another context of it: Context(context)"
            )
        object.__setattr__(self, name, value)


@dataclass(kw_only=True)
class AsyncOptions(_Options):
    """``timeout_secs``: how long processes wait for each other. The callback runs once a checkpoint is published."""

    timeout_secs: int = 1200
    post_finalization_callback: Callable[[], None] | None = None
    create_directories_asynchronously: bool = True


@dataclass(kw_only=True)
class AtomicityOptions(_Options):
    """Here a storage's own abilities settle it: renamed where directories can be, marked last elsewhere."""

    mode: AtomicityMode = AtomicityMode.AUTO
    allow_legacy_atomic_rename: bool = False


@dataclass(kw_only=True)
class MultiprocessingOptions(_Options):
    """Here always all processes, of which process 0 publishes."""

    primary_host: int | None = 0
    active_processes: set[int] | None = None
    barrier_sync_key_prefix: str | None = None


@dataclass(kw_only=True)
class FileOptions(_Options):
    """``path_class``: what paths are given to the handlers of others."""

    path_permission_mode: int | None = None
    path_class: type[Any] = Path
    skip_sync_file_validations: bool = False


@dataclass(kw_only=True)
class PyTreeOptions(_Options):
    """``loading.partial_load``: leaves that the abstract tree lacks are left out."""

    @dataclass(kw_only=True)
    class Saving(_Options):
        """Of trees."""

        pytree_metadata_options: Any = None

    @dataclass(kw_only=True)
    class Loading(_Options):
        """Of trees."""

        partial_load: bool = False

    saving: Saving = field(default_factory=Saving)
    loading: Loading = field(default_factory=Loading)


class ScopedStorageOptionsCreator(Protocol):
    """Says how one leaf is stored; None leaves it at ``storage_options``."""

    def __call__(self, key: Any, value: Any) -> ArrayOptions.Saving.StorageOptions | None: ...


@dataclass(kw_only=True)
class ArrayOptions(_Options):
    """How arrays are stored and read."""

    @dataclass(kw_only=True)
    class Saving(_Options):
        """``use_zarr3``: else zarr v2. ``use_compression``: arrays for which it pays are compressed."""

        @dataclass(kw_only=True)
        class StorageOptions(_Options):
            """``dtype``: floating arrays and others are cast to it. ``chunk_byte_size``: chunks are no larger."""

            dtype: Any = None
            chunk_byte_size: int | None = None
            shard_axes: tuple[int, ...] | None = None

        ScopedStorageOptionsCreator: ClassVar[type[Any]] = ScopedStorageOptionsCreator

        storage_options: StorageOptions = field(default_factory=StorageOptions)
        use_ocdbt: bool = True
        use_zarr3: bool = True
        use_compression: bool = True
        ocdbt_target_data_file_size: int | None = None
        enable_pinned_host_transfer: bool | None = None
        enable_post_merge_validation: bool = True
        use_replica_parallel: bool | None = None
        min_slice_bytes_for_replica_parallel: int | None = None
        max_replicas_for_replica_parallel: int | None = None
        enable_replica_parallel_separate_folder: bool = False
        enable_write_sharding_file: bool = True
        scoped_storage_options_creator: Callable[..., Any] | None = None

    @dataclass(kw_only=True)
    class Loading(_Options):
        """``enable_padding_and_truncation``: an array of another shape than asked for is cut, or filled with zeros."""

        @dataclass(kw_only=True)
        class LoadAndBroadcastOptions(_Options):
            """Of reading by one replica for all."""

            replica_axis_index: int | None = 0
            primary_replica_id: int | None = 0
            broadcast_memory_limit_bytes: int | None = None
            broadcast_memory_scaling_factor: float | None = 0.75

        enable_padding_and_truncation: bool = False
        raise_array_data_missing_error: bool = True
        use_load_and_broadcast: bool = False
        load_and_broadcast_options: LoadAndBroadcastOptions = field(default_factory=LoadAndBroadcastOptions)

    saving: Saving = field(default_factory=Saving)
    loading: Loading = field(default_factory=Loading)


@dataclass(kw_only=True)
class CheckpointablesOptions(_Options):
    """``registry``: which handler saves and loads which object."""

    registry: CheckpointableHandlerRegistry = field(default_factory=read_only_registry)


@dataclass(kw_only=True)
class PathwaysOptions(_Options):
    """Of a runtime that is not supported here."""

    checkpointing_impl: Any = None


@dataclass(kw_only=True)
class DeletionOptions(_Options):
    """``gcs_deletion_options.todelete_full_path``: moved there, not deleted."""

    @dataclass(kw_only=True)
    class GcsDeletionOptions(_Options):
        """On Google Cloud Storage."""

        todelete_full_path: str | None = None

    gcs_deletion_options: GcsDeletionOptions = field(default_factory=GcsDeletionOptions)


@dataclass(kw_only=True)
class MemoryOptions(_Options):
    """Bounds in bytes beyond the tree itself; None: 64 MiB, and for a save in the background one copy of the tree."""

    write_concurrent_bytes: int | None = None
    read_concurrent_bytes: int | None = None
    transfer_concurrent_bytes: int | None = None
    regulator_options: Any = None
    expected_surge_bytes: float | None = None
    is_prioritized_key_fn: Callable[..., bool] | None = None
    serialization_status_callback: Any = None
    deepcopy_host_arrays: bool = True


@dataclass(kw_only=True)
class SafetensorsOptions(_Options):
    """Of a format that is not supported here."""

    max_over_read_ratio: float | None = None
    read_chunk_bytes: int | None = None


class CheckpointLayout(enum.Enum):
    """Whose format it is."""

    ORBAX = "orbax"
    SAFETENSORS = "safetensors"
    AUTO = "auto"


def identities(options: Iterable[Any]) -> frozenset[int]:
    """Of these options and all those within them."""
    found: set[int] = set()
    rest = list(options)
    while rest:
        option = rest.pop()
        if isinstance(option, _Options):
            found.add(id(option))
            rest += [getattr(option, each.name) for each in dataclasses.fields(option)]  # type: ignore[arg-type]
    return frozenset(found)


def check_saving(context: Any) -> None:
    """Raise :class:`UnsupportedError` for what these options ask of a save and cannot have."""
    saving = context.array.saving
    pytree_options = context.pytree.saving.pytree_metadata_options
    _refuse(
        {
            "array.saving.use_ocdbt=False": not saving.use_ocdbt,
            "array.saving.enable_write_sharding_file=False": not saving.enable_write_sharding_file,
            "array.saving.enable_replica_parallel_separate_folder": saving.enable_replica_parallel_separate_folder,
            "array.saving.storage_options.shard_axes": saving.storage_options.shard_axes,
            "pytree.saving.pytree_metadata_options.support_rich_types": getattr(
                pytree_options, "support_rich_types", False
            ),
            "file.path_permission_mode": context.file.path_permission_mode is not None,
            "memory.serialization_status_callback": context.memory.serialization_status_callback is not None,
            "checkpoint_layout=SAFETENSORS": context.checkpoint_layout is CheckpointLayout.SAFETENSORS,
        }
    )
    _refuse_processes(context)


def check_loading(context: Any) -> None:
    """Raise :class:`UnsupportedError` for what these options ask of a load and cannot have."""
    _refuse(
        {
            "array.loading.raise_array_data_missing_error=False": (
                not context.array.loading.raise_array_data_missing_error
            ),
            "checkpoint_layout=SAFETENSORS": context.checkpoint_layout is CheckpointLayout.SAFETENSORS,
        }
    )
    _refuse_processes(context)


def _refuse_processes(context: Any) -> None:
    _refuse(
        {
            f"multiprocessing.primary_host={context.multiprocessing.primary_host}": (
                context.multiprocessing.primary_host != 0
            ),
            "multiprocessing.active_processes": context.multiprocessing.active_processes is not None,
            f"atomicity.mode={context.atomicity.mode}": context.atomicity.mode is not AtomicityMode.AUTO,
            "pathways.checkpointing_impl": context.pathways.checkpointing_impl is not None,
        }
    )


def _refuse(asked: dict[str, Any]) -> None:
    for option, is_asked in asked.items():
        if is_asked:
            raise UnsupportedError(
                f"The option {option} of this context is not supported here; leave it at its default"
            )
