"""Descriptions of arrays, and shardings for them: ``ocp.arrays``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ocdbt_py.interop.orbax.jax_access import the_jax
from ocdbt_py.interop.orbax.tree import to_shape_dtype_struct

__all__ = ["construct_maximal_shardings", "to_shape_dtype_struct"]


def construct_maximal_shardings(abstract_state: Any, devices: Sequence[Any] | None = None) -> Any:
    """For each ``jax.ShapeDtypeStruct`` of a tree a sharding that divides it among ``devices``, all by default, as far
    as its shape allows.
    """
    jax = the_jax("A sharding")
    using = list(devices or jax.devices())
    return jax.tree.map(lambda described: _maximal(jax, tuple(described.shape), using), abstract_state)


def _maximal(jax: Any, shape: tuple[int, ...], devices: Sequence[Any]) -> Any:
    """The largest axis is divided first, by what it and the number of devices left have in common."""
    sharding, mesh, spec = jax.sharding.NamedSharding, jax.sharding.Mesh, jax.sharding.PartitionSpec
    if not shape or max(shape) < jax.device_count():
        return sharding(mesh(devices, ("a",)), spec())
    left = len(devices)
    sizes: list[int] = []
    axes: list[str | None] = [None] * len(shape)
    for axis in (int(each) for each in np.argsort(shape)[::-1]):
        common = math.gcd(shape[axis], left)
        if shape[axis] >= left and common > 1:
            axes[axis] = chr(ord("a") + len(sizes))
            sizes.append(common)
            left //= common
    if left > 1:
        sizes.append(left)
    names = tuple(chr(ord("a") + i) for i in range(len(sizes)))
    return sharding(mesh(np.asarray(devices).reshape(sizes), names), spec(*axes))
