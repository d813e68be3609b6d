"""``v1.arrays``: what stands for an array that is not there."""

from __future__ import annotations

from typing import Any

import numpy as np

from ocdbt_py.interop.orbax.jax_access import is_key_dtype, the_jax
from ocdbt_py.interop.orbax.v1.abstract_leaves import AbstractArray, AbstractShardedArray

__all__ = [
    "AbstractArray",
    "AbstractScalar",
    "AbstractShardedArray",
    "ArrayLike",
    "DType",
    "Scalar",
    "Shape",
    "to_shape_dtype_struct",
]

Shape = tuple[int, ...]
DType = np.dtype[Any]
Scalar = int | float | np.number[Any] | bytes | bool
AbstractScalar = Scalar
ArrayLike = AbstractArray | AbstractShardedArray


def to_shape_dtype_struct(arr: Any, dtype: Any = None, scalar_dtype: Any = None, support_format: bool = False) -> Any:
    """The ``jax.ShapeDtypeStruct`` of an array, or of its metadata; a number stays one, as ``scalar_dtype`` if given.

    ``dtype`` in place of its own. A typed PRNG key becomes its data.
    """
    jax = the_jax("jax.ShapeDtypeStruct")
    if isinstance(arr, int | float | np.number):
        return arr if scalar_dtype is None else scalar_dtype(arr)
    if isinstance(arr, jax.Array) and is_key_dtype(arr.dtype):
        arr = jax.random.key_data(arr)
    sharding: Any = getattr(arr, "sharding", None)
    if hasattr(sharding, "to_jax_sharding"):
        sharding = sharding.to_jax_sharding()
    shape = arr.shape if hasattr(arr, "shape") else arr.global_shape
    return jax.ShapeDtypeStruct(shape, arr.dtype if dtype is None else dtype, sharding=sharding)
