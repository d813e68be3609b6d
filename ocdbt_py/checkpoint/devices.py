"""NumPy arrays onto JAX's devices: the only module of this layer that imports JAX; for targets alone.

An array whose devices all belong to this process is read whole, once, and JAX distributes it. Of one that lies in
several processes, each reads its own shards (:class:`Shards`) and names them to JAX as parts of a whole.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ocdbt_py.array.dtypes import dtype_name
from ocdbt_py.array.spec import ArraySpec
from ocdbt_py.checkpoint.shards import Bounds, Cover, bounds, cover
from ocdbt_py.checkpoint.target import Form, Wanted

__all__ = ["Shards", "to_devices"]


class Shards(NamedTuple):
    """What this process needs of an array that lies in several; ``found`` is what ``cover.reads`` gave."""

    on: Sequence[tuple[Any, Bounds]]
    cover: Cover
    shape: tuple[int, ...]
    found: Sequence[NDArray[Any]] = ()

    @classmethod
    def of(cls, sharding: Any, spec: ArraySpec) -> Shards:
        """What this process needs of a stored array that is to lie so."""
        indices = sharding.addressable_devices_indices_map(spec.shape)
        on = [(device, bounds(index, spec.shape)) for device, index in indices.items()]
        return cls(on, cover(list(dict.fromkeys(part for _, part in on)), spec), spec.shape)

    def pieces(self) -> list[NDArray[Any]]:
        """What goes to each device."""
        places = [self.cover.places[part] for _, part in self.on]
        return [self.found[number][inside] for number, inside in places]


def to_devices(
    wanted: Collection[tuple[Wanted, NDArray[Any] | Shards]], floats: np.dtype[Any] | None = None
) -> list[Any]:
    """Each array in its dtype, or in ``floats`` where that is floating, on its sharding; on the default device where it
    has none.
    """
    if not wanted:
        return []
    import jax

    placed: list[Any] = [None] * len(wanted)
    spread: list[tuple[int, Wanted, Shards]] = []
    anywhere: list[tuple[int, NDArray[Any]]] = []
    for position, (want, array) in enumerate(wanted):
        if isinstance(array, Shards):
            spread.append((position, want, array))
            continue
        array = array.astype(_dtype(want, floats), copy=False)
        if want.sharding is None:
            anywhere.append((position, array))
        else:
            # what device_put comes to, without what that takes to find out what it was given: a third of its time
            placed[position] = jax.make_array_from_callback(array.shape, want.sharding, partial(_part, array))
    # one call for many arrays: a call each costs more than the arrays
    for (position, _), array in zip(anywhere, jax.device_put([array for _, array in anywhere]), strict=True):
        placed[position] = array
    for position, array in zip((position for position, _, _ in spread), _spread(jax, spread, floats), strict=True):
        placed[position] = array
    for position, (want, _) in enumerate(wanted):
        if want.form is Form.RANDOM_KEY:
            placed[position] = jax.random.wrap_key_data(placed[position], impl=_key_impl(jax, want.leaf))
    return placed


def _part(array: NDArray[Any], index: Any) -> NDArray[Any]:
    """What JAX asks for: the part of an array that a device needs."""
    part: NDArray[Any] = array[(*index, ...)]  # an array, of rank 0 too
    return part


def _spread(jax: Any, wanted: Sequence[tuple[int, Wanted, Shards]], floats: np.dtype[Any] | None) -> list[Any]:
    """Arrays that lie in several processes, from what lies in this one."""
    pieces: list[NDArray[Any]] = []
    places: list[Any] = []
    for _, want, shards in wanted:
        dtype, kind = _dtype(want, floats), want.sharding.memory_kind
        pieces += [piece.astype(dtype, copy=False) for piece in shards.pieces()]
        places += [jax.sharding.SingleDeviceSharding(device, memory_kind=kind) for device, _ in shards.on]
    put = iter(jax.device_put(pieces, places))
    made = []
    for _, want, shards in wanted:
        mine = [next(put) for _ in shards.on]
        # without a shard here, nothing but this says the dtype
        options = {} if mine else {"dtype": _dtype(want, floats)}
        made.append(jax.make_array_from_single_device_arrays(shards.shape, want.sharding, mine, **options))
    return made


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
