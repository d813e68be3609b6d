"""What a caller asks of single leaves: ``ocp.RestoreArgs`` and its kinds for arrays on devices.

These say it leaf by leaf, where the target of a restore (:mod:`ocdbt_py.interop.orbax.restoring`) says it by example.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

from ocdbt_py.errors import InvalidArgumentError
from ocdbt_py.interop.orbax.jax_access import jax_if_loaded

__all__ = ["ArrayRestoreArgs", "RestoreArgs", "SingleReplicaArrayRestoreArgs"]


@dataclass
class RestoreArgs:
    """One leaf. ``restore_type``: the type it is to come back as, None for the one it was saved as. ``dtype``: cast."""

    restore_type: Any = None
    dtype: Any = None


def _array_type() -> Any:
    """``jax.Array``, or its name as ``_METADATA`` has it while nobody has loaded JAX."""
    jax = jax_if_loaded()
    return "jax.Array" if jax is None else jax.Array


_UNSET: Any = object()


@dataclass
class ArrayRestoreArgs(RestoreArgs):
    """One leaf as a ``jax.Array``, on ``sharding`` or on ``mesh`` and ``mesh_axes``.

    ``global_shape`` and ``shape`` are one thing by two names. A stored array of another shape is an error, or with
    ``strict=False`` cut or padded with zeros at the end of each axis.
    """

    restore_type: Any = _UNSET
    mesh: Any = None
    mesh_axes: Any = None
    sharding: Any = None
    global_shape: tuple[int, ...] | None = None
    shape: tuple[int, ...] | None = None
    strict: bool = True

    def __post_init__(self) -> None:
        if self.restore_type is _UNSET:
            self.restore_type = _array_type()
        if self.shape is None:
            self.shape = self.global_shape
        if self.global_shape is None:
            self.global_shape = self.shape
        if self.shape != self.global_shape:
            raise InvalidArgumentError(
                f"shape and global_shape are one thing: {self.shape} and {self.global_shape} differ; give one of them"
            )


@dataclass
class SingleReplicaArrayRestoreArgs(ArrayRestoreArgs):
    """As its base. ``single_replica_sharding`` is deprecated in Orbax, and does nothing."""

    single_replica_sharding: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.single_replica_sharding is not None:
            warnings.warn("single_replica_sharding does nothing; leave it out", DeprecationWarning, stacklevel=3)
