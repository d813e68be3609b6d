"""Orbax's names on our engine: ``import ocdbt_py.interop.orbax as ocp`` in place of ``import orbax.checkpoint as ocp``.

Neither TensorStore nor Orbax is needed, JAX only where JAX arrays are saved or asked for, and a directory may be any
URL. What is written Orbax reads, and the other way round; a run can change from one to the other and back.

Names load on first use. One that is not here is an ``AttributeError`` that says so: nothing is a stub.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ocdbt_py.checkpoint.names import nearest

_MODULES = (
    "args",
    "arrays",
    "checkpoint_manager",
    "checkpoint_managers",
    "checkpoint_utils",
    "checkpointers",
    "handlers",
    "metadata",
    "msgpack_utils",
    "multihost",
    "options",
    "path",
    "transform_utils",
    "tree",
    "type_handlers",
    "utils",
    "v1",
)
"""Modules of Orbax's that are modules here, by the same names."""

_OTHER_MODULES = {"checkpoint_args": "registration", "step": "path.step"}

_HOMES = {
    "checkpointers": (
        "AbstractCheckpointer",
        "AsyncCheckpointer",
        "Checkpointer",
        "PyTreeCheckpointer",
        "StandardCheckpointer",
    ),
    "composite_handler": ("CompositeCheckpointHandler", "CompositeOptions"),
    "errors": ("StepAlreadyExistsError",),
    "handlers": (
        "ArrayCheckpointHandler",
        "AsyncCheckpointHandler",
        "CheckpointHandler",
        "JaxRandomKeyCheckpointHandler",
        "JsonCheckpointHandler",
        "NumpyRandomKeyCheckpointHandler",
        "ProtoCheckpointHandler",
        "PyTreeCheckpointHandler",
        "StandardCheckpointHandler",
    ),
    "installation": ("install",),
    "manager": ("AbstractCheckpointManager", "CheckpointManager"),
    "manager_options": ("CheckpointManagerOptions",),
    "options": ("AsyncOptions",),
    "registration": ("CheckpointHandlerRegistry", "DefaultCheckpointHandlerRegistry"),
    "restore_args": ("ArrayRestoreArgs", "RestoreArgs", "SingleReplicaArrayRestoreArgs"),
    "save_args": ("SaveArgs",),
    "transform_utils": ("RestoreTransform", "Transform", "apply_transformations", "merge_trees"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

PLACEHOLDER = ...
"""Stands for a leaf of a target that is not to be read."""

__all__ = ["PLACEHOLDER", *_MODULES, *_HOME_OF]


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    elif name in _MODULES:
        value = import_module(f"{__name__}.{name}")
    elif name in _OTHER_MODULES:
        value = import_module(f"{__name__}.{_OTHER_MODULES[name]}")
    else:
        guess = None if name.startswith("__") else nearest(name, __all__)
        raise AttributeError(
            f"{__name__} has no {name!r}{f'; the nearest it has is {guess!r}' if guess else ''} (it has most of "
            "orbax.checkpoint's public names, not all)",
            name=name,
            obj=import_module(__name__),
        )
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
