"""JAX arrays over many devices: which parts this process writes, and which it reads.

**Written** is each element once, by the process that holds replica 0 of it, straight from that device's buffer: a
:class:`Sharded` array is a few blocks, never gathered. Chunks are as large as a shard, so no two processes write to
one. Where all replicas of a shard lie in one process there is nothing to share; where they lie in several, and the
shard is long enough, each replica writes its slice of it ("Chunk shape"). All processes come to the same division,
from the sharding alone.

**Read** is each distinct slice that lies on a device of this process, once, however many devices hold it
(:func:`cover`).

Nothing here imports JAX; arrays and shardings are asked for what they know.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ocdbt_py.array.chunks import piece_count, select
from ocdbt_py.array.spec import ArraySpec
from ocdbt_py.errors import UnsupportedError

__all__ = ["Block", "Bounds", "Cover", "Sharded", "bounds", "cover", "describe_sharding", "sharded"]

Bounds: TypeAlias = tuple[tuple[int, int], ...]
"""Start and stop along each axis."""

_WORTH_SPLITTING = 64 << 10
"""Bytes of a slice below which replicas do not share the writing of a shard: each chunk costs its readers a request."""


class Block(NamedTuple):
    """Part of an array: its elements from ``start`` on."""

    start: tuple[int, ...]
    array: NDArray[Any]


class Sharded(NamedTuple):
    """An array of which this process writes ``blocks``. Each begins on a multiple of ``write_shape`` along every axis.

    ``is_spread``: it lies in several processes, and others write the other blocks.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    write_shape: tuple[int, ...]
    blocks: tuple[Block, ...]
    is_spread: bool

    @property
    def nbytes(self) -> int:
        """Bytes that this process writes, uncompressed."""
        return sum(block.array.nbytes for block in self.blocks)


def sharded(value: Any) -> Sharded:
    """A ``jax.Array`` as what this process has to write of it."""
    shape: tuple[int, ...] = tuple(value.shape)
    dtype = np.dtype(value.dtype)
    division = _divide(value.sharding, shape, dtype.itemsize)
    blocks = []
    for shard in value.addressable_shards:
        starts = tuple(start for start, _ in bounds(shard.index, shape))
        axis = division.axis
        if axis is None:
            if shard.replica_id == 0 and shard.data.size:
                blocks.append(Block(starts, np.asarray(shard.data)))
            continue
        size = division.write_shape[axis]
        first = shard.replica_id * size
        part = np.asarray(shard.data)[(slice(None),) * axis + (slice(first, first + size),)]
        blocks.append(Block((*starts[:axis], starts[axis] + first, *starts[axis + 1 :]), part))
    return Sharded(shape, dtype, division.write_shape, tuple(blocks), not value.is_fully_addressable)


class _Division(NamedTuple):
    """``axis`` is the one that replicas share, each writing ``write_shape`` of it; None: replica 0 writes shards."""

    write_shape: tuple[int, ...]
    axis: int | None


@lru_cache(maxsize=4096)  # a model has many leaves and few shardings
def _divide(sharding: Any, shape: tuple[int, ...], itemsize: int) -> _Division:
    holders: dict[Bounds, list[int]] = {}
    for device, index in sharding.devices_indices_map(shape).items():
        holders.setdefault(bounds(index, shape), []).append(device.process_index)
    extents = zip(*([stop - start for start, stop in part] for part in holders), strict=True)
    shard = tuple(max(sizes) for sizes in extents)
    if any(start % max(size, 1) for part in holders for (start, _), size in zip(part, shard, strict=True)):
        raise UnsupportedError(f"its sharding cuts the shape {shape} into unequal parts; put it on a NamedSharding")
    replicas = len(next(iter(holders.values())))
    if replicas > 1 and any(len(set(processes)) > 1 for processes in holders.values()):
        axis = next((axis for axis, size in enumerate(shard) if size and size % replicas == 0), None)
        if axis is not None and math.prod(shard) * itemsize >= replicas * _WORTH_SPLITTING:
            return _Division((*shard[:axis], shard[axis] // replicas, *shard[axis + 1 :]), axis)
    return _Division(tuple(max(size, 1) for size in shard), None)


def bounds(index: Sequence[slice], shape: Sequence[int]) -> Bounds:
    """What a device's index, slices with or without ends, means for an array of this shape."""
    return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))


class Cover(NamedTuple):
    """What to read of an array, and where each of the parts that are wanted is found in it.

    ``reads`` are the selections; ``places`` of a part: which of them, and its slices there.
    """

    reads: Sequence[tuple[slice, ...]]
    places: Mapping[Bounds, tuple[int, tuple[slice, ...]]]


def cover(parts: Sequence[Bounds], spec: ArraySpec) -> Cover:
    """Read these parts, all distinct: together where they fill a box, or share chunks that are only read whole."""
    if not parts:
        return Cover([], {})
    lows = [min(starts) for starts in zip(*([start for start, _ in part] for part in parts), strict=True)]
    highs = [max(stops) for stops in zip(*([stop for _, stop in part] for part in parts), strict=True)]
    box: Bounds = tuple(zip(lows, highs, strict=True))
    if len(parts) == 1 or sum(map(_volume, parts)) == _volume(box) or _share_chunks(parts, box, spec):
        places = {
            part: (0, tuple(slice(a - low, b - low) for (a, b), low in zip(part, lows, strict=True))) for part in parts
        }
        return Cover([_slices(box)], places)
    whole = (slice(None),) * len(spec.shape)
    return Cover([_slices(part) for part in parts], {part: (i, whole) for i, part in enumerate(parts)})


def _share_chunks(parts: Sequence[Bounds], box: Bounds, spec: ArraySpec) -> bool:
    """Whether reading all of the box takes fewer chunks than reading the parts, where chunks are decoded whole."""
    if spec.is_raw:
        return False
    return _chunks(box, spec) < sum(_chunks(part, spec) for part in parts)


def _chunks(part: Bounds, spec: ArraySpec) -> int:
    return piece_count(select(_slices(part), spec.shape), spec.chunks)


def _volume(part: Bounds) -> int:
    return math.prod(stop - start for start, stop in part)


def _slices(part: Bounds) -> tuple[slice, ...]:
    return tuple(slice(start, stop) for start, stop in part)


@lru_cache(maxsize=64)  # so that leaves on one sharding share one description
def describe_sharding(sharding: Any) -> Mapping[str, Any] | None:
    """What ``_sharding`` says of one; None for kinds that Orbax does not record."""
    mesh, spec = getattr(sharding, "mesh", None), getattr(sharding, "spec", None)
    if mesh is not None and spec is not None:
        return {
            "sharding_type": "NamedSharding",
            "shape": list(mesh.devices.shape),
            "axis_names": list(mesh.axis_names),
            "axis_types": [str(kind) for kind in mesh.axis_types],
            "partition_spec": list(spec),
            "device_mesh": {"mesh": _ids(mesh.devices.tolist())},
        }
    if len(sharding.device_set) == 1:
        (device,) = sharding.device_set
        # Every release of Orbax understands the older spelling of a CPU device, only recent ones the newer.
        text = f"TFRT_CPU_{device.id}" if device.platform == "cpu" else str(device)
        return {"sharding_type": "SingleDeviceSharding", "device_str": text}
    return None


def _ids(devices: Any) -> Any:
    return [_ids(below) for below in devices] if isinstance(devices, list) else {"id": devices.id}
