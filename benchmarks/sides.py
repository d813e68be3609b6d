"""The sides of a benchmark, each in a process of its own: how it saves a state, and loads it again.

A side holds the state (:mod:`benchmarks.states`) as its users do, as ``jax.Array``, NumPy arrays or tensors of torch,
and offers operations by name: ``save`` and ``load``, most of them ``begin``, an asynchronous save that returns what
waits for its end. What is equal on all sides: the bits, and ``durable``: whether everything is on the disk, by fsync,
when a save is called done.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["SIDES", "Job", "Piece", "Side", "flat", "nested", "prepare", "read_pass", "settle", "taking_part"]


class Piece(NamedTuple):
    """Rows of a leaf as a side has loaded them, as bits."""

    name: str
    start: int
    bits: NDArray[Any]


@dataclass(frozen=True, slots=True)
class Job:
    """What one process of a measurement is told."""

    side: str
    operation: str
    state: str
    path: str
    shards: int = 1
    index: int = 0
    count: int = 1
    port: int = 0
    durable: bool = True
    threads: int = 2
    is_warm: bool = False

    @property
    def is_alone(self) -> bool:
        return self.count == 1


@dataclass(frozen=True, slots=True)
class Side:
    """What can be timed, and the loaded state in pieces."""

    operations: Mapping[str, Callable[[], Any]]
    pieces: Callable[[Any], Iterator[Piece]]


class Kind(NamedTuple):
    """Where a side is made, what must be installed for that, and what it cannot leave out."""

    title: str
    module: str
    function: str
    needs: tuple[str, ...] = ()
    is_always_durable: bool = False


SIDES = {
    "ocdbt_py": Kind("ocdbt_py", "jax_sides", "ours", ("jax",)),
    "ocdbt_py-zstd": Kind("ocdbt_py, zstd", "jax_sides", "ours_zstd", ("jax",)),
    "ocdbt_py-numpy": Kind("ocdbt_py, NumPy", "numpy_sides", "ours"),
    "ocdbt_py-mapped": Kind("ocdbt_py, NumPy, mapped", "numpy_sides", "ours_mapped"),
    "orbax": Kind("Orbax", "jax_sides", "orbax", ("orbax", "jax"), True),
    "orbax-raw": Kind("Orbax, uncompressed", "jax_sides", "orbax_raw", ("orbax", "jax"), True),
    "orbax-numpy": Kind("Orbax, NumPy", "jax_sides", "orbax_numpy", ("orbax", "jax"), True),
    "orbax-zarr3": Kind("Orbax, zarr3", "jax_sides", "orbax_zarr3", ("orbax", "jax"), True),
    "orbax-zarr3-raw": Kind("Orbax, zarr3, uncompressed", "jax_sides", "orbax_zarr3_raw", ("orbax", "jax"), True),
    "tensorstore": Kind("TensorStore, uncompressed", "numpy_sides", "tensorstores", ("tensorstore",)),
    "dcp": Kind("torch DCP", "torch_sides", "dcp", ("torch",)),
    "torch.save": Kind("torch.save", "torch_sides", "torch_save", ("torch",)),
    "safetensors-torch": Kind("safetensors, torch", "torch_sides", "safetensors", ("safetensors", "torch")),
    "safetensors": Kind("safetensors", "numpy_sides", "safetensors", ("safetensors",)),
    "npz": Kind("npz", "numpy_sides", "npz"),
    "pickle": Kind("pickle", "numpy_sides", "pickle"),
    "raw-files": Kind("raw files and checksums", "numpy_sides", "raw_files"),
}


def prepare(job: Job) -> Side:
    """Import what the side needs, and build the state."""
    kind = SIDES[job.side]
    made: Side = getattr(import_module(f"benchmarks.{kind.module}"), kind.function)(job)
    return made


def taking_part(chosen: tuple[str, ...] | list[str], durable: bool = True) -> list[str]:
    """The sides that can; why the others do not is said in a line each."""
    found = []
    for side in chosen:
        missing = [name for name in SIDES[side].needs if find_spec(name) is None]
        if missing:
            print(f"{SIDES[side].title} is left out: {' and '.join(missing)} not installed", file=sys.stderr)
        elif SIDES[side].is_always_durable and not durable:
            print(f"{SIDES[side].title} is left out: it cannot do without fsync", file=sys.stderr)
        else:
            found.append(side)
    return found


def read_pass(pieces: Iterator[Piece]) -> int:
    """Read every byte once, as the first use of a loaded state does."""
    seen = 0
    for piece in pieces:
        flat_bits = piece.bits.reshape(-1)
        whole = flat_bits.nbytes // 8 * 8 // flat_bits.itemsize
        seen ^= int(np.bitwise_xor.reduce(flat_bits[:whole].view(np.uint64)))
    return seen


def settle(job: Job, file: str) -> None:
    """What some leave to their callers: the file and its name are on the disk before the save is called done."""
    if job.durable:
        for path in (file, job.path):
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *above, last = name.split(".")
        below = tree
        for key in above:
            below = below.setdefault(key, {})
        below[last] = leaf
    return tree


def flat(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{above}{key}.")
        else:
            yield above + key, value
