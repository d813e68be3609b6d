"""``ocp.checkpoint_manager``: where older programs look for the manager and its options."""

from __future__ import annotations

from ocdbt_py.interop.orbax.errors import StepAlreadyExistsError
from ocdbt_py.interop.orbax.manager import AbstractCheckpointManager, CheckpointManager
from ocdbt_py.interop.orbax.manager_options import CheckpointManagerOptions
from ocdbt_py.interop.orbax.options import AsyncOptions, FileOptions, MultiprocessingOptions

__all__ = [
    "AbstractCheckpointManager",
    "AsyncOptions",
    "CheckpointManager",
    "CheckpointManagerOptions",
    "FileOptions",
    "MultiprocessingOptions",
    "StepAlreadyExistsError",
]
