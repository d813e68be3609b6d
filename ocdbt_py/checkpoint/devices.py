"""NumPy arrays onto JAX's devices: the only module of this layer that imports JAX; for targets alone."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdbt_py.array.dtypes import dtype_name
from ocdbt_py.checkpoint.target import Form, Wanted

__all__ = ["to_devices"]


def to_devices(wanted: Collection[tuple[Wanted, NDArray[Any]]], floats: np.dtype[Any] | None = None) -> list[Any]:
    """Each array in its dtype, or in ``floats`` where that is floating, on its sharding; on the default device where it
    has none.
    """
    if not wanted:
        return []
    import jax

    placed: list[Any] = [None] * len(wanted)
    batches: dict[bool, list[tuple[int, NDArray[Any], Any]]] = {False: [], True: []}
    for position, (want, array) in enumerate(wanted):
        array = array.astype(_dtype(want, floats), copy=False)
        batches[want.sharding is not None].append((position, array, want.sharding))
    # one call for many arrays: a call each costs more than the arrays
    for has_sharding, batch in batches.items():
        arrays = [array for _, array, _ in batch]
        shardings = [sharding for _, _, sharding in batch] if has_sharding else None
        for (position, _, _), array in zip(batch, jax.device_put(arrays, shardings), strict=True):
            placed[position] = array
    for position, (want, _) in enumerate(wanted):
        if want.form is Form.RANDOM_KEY:
            placed[position] = jax.random.wrap_key_data(placed[position], impl=_key_impl(jax, want.leaf))
    return placed


def _key_impl(jax: Any, key: Any) -> Any:
    """The generator that a typed key, or the description of one, is for."""
    found: list[Any] = []
    # key_impl takes arrays only, but a traced one will do
    jax.eval_shape(lambda traced: found.append(jax.random.key_impl(traced)), key)
    return found[0]


def _dtype(want: Wanted, floats: np.dtype[Any] | None) -> np.dtype[Any]:
    if want.form is Form.RANDOM_KEY:
        return np.dtype(np.uint32)
    dtype: np.dtype[Any] = np.dtype(want.dtype)
    return floats if floats is not None and dtype_name(dtype).startswith(("float", "bfloat")) else dtype
