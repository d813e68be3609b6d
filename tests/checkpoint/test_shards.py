"""Which parts of a JAX array a process writes, and which it reads; with shardings made of paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pytest

from ocdbt_py.array.codecs import Compressor
from ocdbt_py.array.spec import ArraySpec
from ocdbt_py.checkpoint.shards import Bounds, cover, describe_sharding, sharded
from ocdbt_py.errors import UnsupportedError


@dataclass(frozen=True)
class Device:
    id: int
    process_index: int


@dataclass(frozen=True)
class Paper:
    """Devices in rows: each column of ``parts`` along an axis, ``replicas`` of each part, in turn over processes."""

    parts: tuple[int, ...]
    replicas: int
    processes: int

    def devices_indices_map(self, shape: tuple[int, ...]) -> dict[Device, tuple[slice, ...]]:
        found = {}
        cells = [cell for cell in product(*map(range, self.parts)) for _ in range(self.replicas)]
        for number, cell in enumerate(cells):
            sizes = [size // part for size, part in zip(shape, self.parts, strict=True)]
            index = tuple(
                slice(None) if part == 1 else slice(at * size, (at + 1) * size)
                for at, size, part in zip(cell, sizes, self.parts, strict=True)
            )
            found[Device(number, number % self.processes)] = index
        return found


@dataclass
class Shard:
    index: tuple[slice, ...]
    replica_id: int
    data: Any


class Array:
    """What process ``process`` sees of a value."""

    def __init__(self, value: Any, sharding: Any, process: int) -> None:
        self.shape, self.dtype, self.sharding = value.shape, value.dtype, sharding
        self.is_fully_addressable = False
        self.addressable_shards = []
        seen: dict[str, int] = {}
        for device, index in sharding.devices_indices_map(value.shape).items():
            replica = seen[str(index)] = seen.get(str(index), -1) + 1
            if device.process_index == process:
                self.addressable_shards.append(Shard(index, replica, value[index]))


@pytest.mark.parametrize(
    ("shape", "sharding", "write_shape"),
    [
        ((64, 4096), Paper((4, 2), 1, 4), (16, 2048)),
        ((64, 4096), Paper((1, 1), 4, 1), (64, 4096)),  # all in one process: nothing to share
        ((64, 4096), Paper((1, 1), 4, 4), (16, 4096)),
        ((63, 4096), Paper((1, 1), 4, 2), (63, 1024)),  # the first axis that divides
        ((63, 4095), Paper((1, 1), 4, 4), (63, 4095)),
        ((64, 256), Paper((1, 1), 4, 4), (64, 256)),  # too short to share
        ((64, 4096), Paper((2, 1), 2, 2), (16, 4096)),
        ((), Paper((), 4, 4), ()),
    ],
)
def test_each_element_is_written_once_by_whoever_holds_it(
    shape: tuple[int, ...], sharding: Paper, write_shape: tuple[int, ...]
) -> None:
    value = np.random.default_rng(0).normal(size=shape)
    written = np.zeros(shape)
    counts = np.zeros(shape, int)
    for process in range(sharding.processes):
        found = sharded(Array(value, sharding, process))
        assert (found.shape, found.write_shape, found.is_spread) == (shape, write_shape, True)
        for start, part in found.blocks:
            assert all(at % size == 0 for at, size in zip(start, write_shape, strict=True))
            inside = tuple(slice(at, at + size) for at, size in zip(start, part.shape, strict=True))
            written[inside] = part
            counts[inside] += 1
    assert np.array_equal(written, value)
    assert (counts == 1).all()


def test_parts_of_several_sizes_are_refused() -> None:
    class Uneven:
        def devices_indices_map(self, shape: tuple[int, ...]) -> dict[Device, tuple[slice, ...]]:
            return {Device(0, 0): (slice(0, 3),), Device(1, 1): (slice(3, 8),)}

    with pytest.raises(UnsupportedError, match="unequal"):
        sharded(Array(np.arange(8), Uneven(), 0))


def test_a_kind_of_sharding_that_orbax_does_not_record_is_left_out() -> None:
    class Other:
        device_set = frozenset({1, 2})

    assert describe_sharding(Other()) is None


PLAIN = ArraySpec((100, 100), (50, 50), np.dtype("f4"))
PACKED = ArraySpec((100, 100), (50, 50), np.dtype("f4"), compressor=Compressor("zstd", 1))


@pytest.mark.parametrize(
    ("spec", "parts", "reads"),
    [
        (PLAIN, [((0, 10), (0, 100))], 1),
        (PLAIN, [((0, 10), (0, 100)), ((10, 20), (0, 100))], 1),  # they fill a box
        (PLAIN, [((0, 10), (0, 100)), ((20, 30), (0, 100))], 2),
        (PACKED, [((0, 10), (0, 100)), ((20, 30), (0, 100))], 1),  # of the same chunks, which are decoded whole
        (PACKED, [((0, 10), (0, 50)), ((90, 100), (50, 100))], 2),
        (PLAIN, [((0, 50), (0, 50)), ((50, 100), (50, 100))], 2),
    ],
)
def test_parts_are_read_together_where_that_costs_nothing(spec: ArraySpec, parts: Sequence[Bounds], reads: int) -> None:
    value = np.arange(10_000).reshape(100, 100)
    found = cover(parts, spec)
    assert len(found.reads) == reads
    assert set(found.places) == set(parts)
    for part, (number, inside) in found.places.items():
        expected = value[tuple(slice(start, stop) for start, stop in part)]
        assert np.array_equal(value[found.reads[number]][inside], expected)


def test_a_process_without_a_shard_reads_nothing() -> None:
    assert cover([], PLAIN) == ([], {})
    rank_0 = ArraySpec((), (), np.dtype("f4"))
    assert cover([()], rank_0) == ([()], {(): (0, ())})
