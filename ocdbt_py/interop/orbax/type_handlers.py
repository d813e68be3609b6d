"""How leaves are read and written, as far as that can be chosen here: ``ocp.type_handlers``.

In Orbax a program can replace the reader and writer of a type. Here they are fixed, but for the one that programs with
several replicas register, :class:`SingleReplicaArrayHandler`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ocdbt_py.errors import InvalidArgumentError, UnsupportedError
from ocdbt_py.interop.orbax.jax_access import jax_if_loaded
from ocdbt_py.interop.orbax.restore_args import ArrayRestoreArgs, RestoreArgs, SingleReplicaArrayRestoreArgs
from ocdbt_py.interop.orbax.save_args import SaveArgs

__all__ = [
    "PLACEHOLDER",
    "ArrayRestoreArgs",
    "RestoreArgs",
    "SaveArgs",
    "SingleReplicaArrayHandler",
    "SingleReplicaArrayRestoreArgs",
    "register_type_handler",
]

PLACEHOLDER = ...


@dataclass
class SingleReplicaArrayHandler:
    """Asks that one replica reads an array and sends it to the others.

    The arrays are the same in any case: here every process reads what lies on its own devices, and of that each slice
    once. So this changes nothing.
    """

    replica_axis_index: int | None = 0
    primary_replica_id: int | None = 0
    broadcast_memory_limit_bytes: int | None = None
    broadcast_memory_scaling_factor: float | None = 0.75


def register_type_handler(
    ty: Any, handler: Any, func: Callable[[Any], bool] | None = None, override: bool = False
) -> None:
    """Have ``handler`` read and write leaves of the type ``ty``.

    Takes :class:`SingleReplicaArrayHandler` for ``jax.Array`` alone, with ``override=True``, since there is a handler
    for that. Raises :class:`InvalidArgumentError` (a ``ValueError``), and :class:`UnsupportedError` for other handlers.
    """
    jax = jax_if_loaded()
    if not isinstance(handler, SingleReplicaArrayHandler) or jax is None or ty is not jax.Array or func is not None:
        raise UnsupportedError(
            f"Leaves of the type {ty!r} are read and written in one way here, not by {type(handler).__name__}; save "
            "them as arrays, numbers or strings"
        )
    if not override:
        raise InvalidArgumentError("jax.Array has a handler already; give override=True")
