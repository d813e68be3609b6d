"""Read and write TensorStore's OCDBT databases, and Orbax's checkpoints in them, on any URL.

    import ocdbt_py

    ocdbt_py.save("checkpoints/1", {"w": w, "step": 3})     # a checkpoint that Orbax restores
    ocdbt_py.Checkpoint("checkpoints/1")["w"][:10]          # one slice of one tensor, and only its bytes
    ocdbt_py.open("checkpoints/1").items()                  # the key-value database below it

Names load on first use: importing this package imports neither fsspec nor JAX, and does no work.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ocdbt_py import policies as policies
    from ocdbt_py.care.check import Report as Report
    from ocdbt_py.care.check import check as check
    from ocdbt_py.checkpoint.async_saving import AsyncSave as AsyncSave
    from ocdbt_py.checkpoint.async_saving import save_async as save_async
    from ocdbt_py.checkpoint.checkpoint import Checkpoint as Checkpoint
    from ocdbt_py.checkpoint.file_processes import FileProcesses as FileProcesses
    from ocdbt_py.checkpoint.restore import restore as restore
    from ocdbt_py.checkpoint.save import save as save
    from ocdbt_py.database import MISSING as MISSING
    from ocdbt_py.database import Config as Config
    from ocdbt_py.database import Database as Database
    from ocdbt_py.database import Entry as Entry
    from ocdbt_py.database import Version as Version
    from ocdbt_py.database import WriteOptions as WriteOptions
    from ocdbt_py.database import open as open
    from ocdbt_py.errors import *  # noqa: F403
    from ocdbt_py.manager.listing import SavedStep as SavedStep
    from ocdbt_py.manager.manager import CheckpointManager as CheckpointManager
    from ocdbt_py.manager.options import CheckpointManagerOptions as CheckpointManagerOptions
    from ocdbt_py.manager.stopping import StopSignals as StopSignals
    from ocdbt_py.manager.watching import checkpoints_iterator as checkpoints_iterator
    from ocdbt_py.manager.watching import wait_for_new_checkpoint as wait_for_new_checkpoint

_HOMES = {
    "care.check": ("Report", "check"),
    "checkpoint.async_saving": ("AsyncSave", "save_async"),
    "checkpoint.checkpoint": ("Checkpoint",),
    "checkpoint.file_processes": ("FileProcesses",),
    "checkpoint.restore": ("restore",),
    "checkpoint.save": ("save",),
    "database": ("MISSING", "Config", "Database", "Entry", "Version", "WriteOptions", "open"),
    "errors": (
        "AlreadyExistsError",
        "ConfigMismatchError",
        "ConflictError",
        "CorruptDataError",
        "InvalidArgumentError",
        "InvalidTypeError",
        "KeyNotFoundError",
        "NotFoundError",
        "OcdbtError",
        "PathNotFoundError",
        "StorageError",
        "StoragePermissionError",
        "StructureError",
        "UncommittedError",
        "UnsupportedError",
        "WaitTimeoutError",
    ),
    "manager.listing": ("SavedStep",),
    "manager.manager": ("CheckpointManager",),
    "manager.options": ("CheckpointManagerOptions",),
    "manager.stopping": ("StopSignals",),
    "manager.watching": ("checkpoints_iterator", "wait_for_new_checkpoint"),
}
_MODULES = ("policies",)
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [*_HOME_OF, *_MODULES, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
