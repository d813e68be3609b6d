"""Restore arguments from the leaves of a target: a leaf comes back like its example."""

from __future__ import annotations

from typing import Any

import numpy as np

from ocdbt_py.errors import InvalidTypeError
from ocdbt_py.interop.orbax.jax_access import is_key_dtype, jax_if_loaded
from ocdbt_py.interop.orbax.metadata.value import ArrayMetadata, ScalarMetadata, StringMetadata
from ocdbt_py.interop.orbax.restore_args import ArrayRestoreArgs, RestoreArgs

__all__ = ["key_data", "leaf_restore_args", "sharding_or_layout"]


def leaf_restore_args(leaf: Any, sharding: Any, *, set_global_shape: bool = True, strict: bool = True) -> RestoreArgs:
    """What a leaf of a target asks for, with the sharding it is to have.

    ``jax.ShapeDtypeStruct`` and descriptions of arrays are NumPy arrays where there is no sharding. Raises
    :class:`InvalidTypeError`, a ``ValueError``, for a leaf that is no example of anything.
    """
    jax = jax_if_loaded()
    if isinstance(leaf, StringMetadata | str):
        return RestoreArgs(restore_type=str)
    if isinstance(leaf, ScalarMetadata):
        return RestoreArgs(restore_type=_python_type(leaf.dtype), dtype=leaf.dtype)
    is_described = isinstance(leaf, ArrayMetadata) or (jax is not None and isinstance(leaf, jax.ShapeDtypeStruct))
    if isinstance(leaf, np.ndarray) or (is_described and sharding is None):
        return RestoreArgs(restore_type=type(leaf) if isinstance(leaf, np.ndarray) else np.ndarray, dtype=leaf.dtype)
    if is_described or (jax is not None and isinstance(leaf, jax.Array)):
        leaf = key_data(leaf)
        has_shape = set_global_shape and not is_key_dtype(leaf.dtype)
        return ArrayRestoreArgs(
            sharding=sharding,
            global_shape=tuple(leaf.shape) if has_shape else None,
            dtype=leaf.dtype,
            strict=strict,
        )
    if isinstance(leaf, int | float) or leaf is ...:
        return RestoreArgs(restore_type=type(leaf))
    raise InvalidTypeError(
        f"A target has arrays, descriptions of arrays, numbers and strings, not {type(leaf).__name__}: {leaf!r:.80}"
    )


def key_data(leaf: Any) -> Any:
    """The array that a typed PRNG key is stored as; it becomes a key again by what was recorded of it."""
    jax = jax_if_loaded()
    if jax is not None and isinstance(leaf, jax.Array) and is_key_dtype(leaf.dtype):
        return jax.random.key_data(leaf)
    return leaf


def _python_type(dtype: Any) -> type:
    """The type of Python's numbers that an element becomes."""
    return type(np.zeros((), dtype).item())


def sharding_or_layout(leaf: Any, support_layout: bool) -> Any:
    """The sharding of an array or a description; with the layout in memory, if it has one and that is asked for."""
    if support_layout and getattr(getattr(leaf, "format", None), "layout", None) is not None:
        return leaf.format
    return getattr(leaf, "sharding", None)
