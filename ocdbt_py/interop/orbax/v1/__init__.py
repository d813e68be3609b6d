"""``ocp.v1``: the newer of Orbax's two interfaces, by its names. Keras uses it.

    from ocdbt_py.interop.orbax import v1 as ocp

    ocp.save(path, tree); ocp.load(path)
    with ocp.training.Checkpointer(root) as checkpointer: ...

One name that is not here is an ``AttributeError`` that says so: nothing is a stub. What is written Orbax loads, and the
other way round; it stores arrays as zarr v3, and a lone tree under the name ``state``.
"""

from __future__ import annotations

from typing import Any

from ocdbt_py.checkpoint.names import nearest
from ocdbt_py.interop.orbax.v1 import arrays, errors, handlers, multihost, options, path, training, tree
from ocdbt_py.interop.orbax.v1.context import Context
from ocdbt_py.interop.orbax.v1.deletion import delete, delete_async
from ocdbt_py.interop.orbax.v1.describing import (
    CheckpointMetadata,
    PyTreeMetadata,
    checkpointables_metadata,
    metadata,
    pytree_metadata,
)
from ocdbt_py.interop.orbax.v1.handlers import (
    AbstractCheckpointable,
    Checkpointable,
    CheckpointableHandler,
    StatefulCheckpointable,
)
from ocdbt_py.interop.orbax.v1.loading import (
    PLACEHOLDER,
    load,
    load_async,
    load_checkpointables,
    load_checkpointables_async,
    load_pytree,
    load_pytree_async,
)
from ocdbt_py.interop.orbax.v1.opening import is_orbax_checkpoint
from ocdbt_py.interop.orbax.v1.responses import AsyncResponse
from ocdbt_py.interop.orbax.v1.saving import (
    save,
    save_async,
    save_checkpointables,
    save_checkpointables_async,
    save_pytree,
    save_pytree_async,
)

__all__ = [
    "PLACEHOLDER",
    "AbstractCheckpointable",
    "AsyncResponse",
    "CheckpointMetadata",
    "Checkpointable",
    "CheckpointableHandler",
    "Context",
    "PyTreeMetadata",
    "StatefulCheckpointable",
    "arrays",
    "checkpointables_metadata",
    "delete",
    "delete_async",
    "errors",
    "handlers",
    "is_orbax_checkpoint",
    "load",
    "load_async",
    "load_checkpointables",
    "load_checkpointables_async",
    "load_pytree",
    "load_pytree_async",
    "metadata",
    "multihost",
    "options",
    "path",
    "pytree_metadata",
    "save",
    "save_async",
    "save_checkpointables",
    "save_checkpointables_async",
    "save_pytree",
    "save_pytree_async",
    "training",
    "tree",
]


def __getattr__(name: str) -> Any:
    guess = None if name.startswith("__") else nearest(name, __all__)
    raise AttributeError(
        f"{__name__} has no {name!r}{f'; the nearest it has is {guess!r}' if guess else ''} (it has most of "
        "orbax.checkpoint.v1's public names, not all)",
        name=name,
    )
