"""Sides that hold NumPy arrays: ocdbt_py, TensorStore driven directly, and files of NumPy arrays."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.sides import Job, Piece, Side, flat, nested, read_pass, settle
from benchmarks.states import STATES, Values


class NumPyState:
    """A state as a dict of arrays by name; only a save builds it."""

    def __init__(self, job: Job) -> None:
        self.values = Values(STATES[job.state])
        self.leaves: dict[str, Any] = {}
        if job.operation in ("save", "begin"):
            self.leaves = {name: self.values.array(name) for name in self.values.shapes}

    def pieces(self, tree: Any) -> Iterator[Piece]:
        return (Piece(name, 0, array.view(self.values.bits)) for name, array in flat(tree))


def ours(job: Job) -> Side:
    """Restored into memory of the arrays' own; ``map`` restores views of the file, read on first use."""
    import ocdbt_py

    save, save_async, restore = ocdbt_py.save, ocdbt_py.save_async, ocdbt_py.restore  # loaded on first use
    state = NumPyState(job)
    tree = nested(state.leaves)
    return Side(
        {
            "save": lambda: save(job.path, tree, durable=job.durable),
            "load": lambda: restore(job.path),
            "map": lambda: restore(job.path, mmap=True),
            "begin": lambda: save_async(job.path, tree, durable=job.durable).result,
        },
        state.pieces,
    )


def ours_mapped(job: Job) -> Side:
    """The same, but a load is a map with every page touched."""
    side = ours(job)
    mapped = side.operations["map"]

    def load() -> Any:
        tree = mapped()
        read_pass(side.pieces(tree))
        return tree

    return Side({**side.operations, "load": load}, side.pieces)


def tensorstores(job: Job) -> Side:
    """The calls that Orbax makes of it and nothing else: zarr arrays of one chunk in an OCDBT database, each opened
    twice for a save, to create it and to write to it, all in one transaction; each opened once for a load, read into
    an array that is there."""
    import tensorstore as ts

    state = NumPyState(job)
    context = ts.Context(
        {
            "cache_pool": {"total_bytes_limit": 100_000_000},
            "file_io_concurrency": {"limit": 128},
            "file_io_sync": job.durable,
        }
    )

    def spec(name: str) -> dict[str, Any]:
        base = {"driver": "file", "path": f"{job.path}/"}
        return {"driver": "zarr", "kvstore": {"driver": "ocdbt", "base": base, "path": f"{name}/"}}

    def new(name: str, array: Any) -> Any:
        described = spec(name)
        described["kvstore"] |= {
            "config": {"max_inline_value_bytes": 1024, "max_decoded_node_bytes": 100_000_000},
            "target_data_file_size": 1 << 31,
        }
        metadata = {"shape": list(array.shape), "chunks": list(array.shape), "compressor": None}
        described |= {"dtype": array.dtype.name, "metadata": metadata, "store_data_equal_to_fill_value": True}
        return ts.Spec(described)

    def save() -> None:
        transaction = ts.Transaction(atomic=True)
        within: dict[str, Any] = {"context": context, "transaction": transaction}
        created, opened = [], []  # whoever drops the first of them cancels it, and its write waits for ever
        for name, array in state.leaves.items():
            described = new(name, array)
            created.append(ts.open(described, create=True, open=True, **within))
            opened.append(ts.open(described, open=True, assume_metadata=True, **within))
        for each in created:
            each.result()
        writes = [
            each.result().write(array, can_reference_source_data_indefinitely=True)
            for each, array in zip(opened, state.leaves.values(), strict=True)
        ]
        for write in writes:
            write.copy.result()
        transaction.commit_async().result()

    def load() -> dict[str, Any]:
        opened = {name: ts.open(spec(name), open=True, context=context) for name in state.values.shapes}
        found, copies = {}, []
        for name, each in opened.items():
            found[name] = np.empty(state.values.shapes[name], state.values.dtype)
            copies.append(ts.array(found[name]).write(each.result()))
        for copy in copies:
            copy.result()
        return found

    return Side({"save": save, "load": load}, state.pieces)


def raw_files(job: Job) -> Side:
    """No format at all, which is the floor of the others: threads that write a file each, for which room was asked for,
    and the checksums of the arrays, and read them into new arrays."""
    from ocdbt_py.format.checksum import crc32c

    state = NumPyState(job)
    itemsize = state.values.bits.itemsize
    shares: list[list[str]] = [[] for _ in range(job.threads)]
    lengths = [0] * job.threads
    sizes = {name: itemsize * math.prod(shape) for name, shape in state.values.shapes.items()}
    for name in sorted(sizes, key=sizes.__getitem__, reverse=True):
        least = lengths.index(min(lengths))
        shares[least].append(name)
        lengths[least] += sizes[name]

    def save_share(index: int) -> None:
        with open(f"{job.path}/{index}", "wb", buffering=0) as file:
            if lengths[index] and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, lengths[index])
            for name in shares[index]:
                data = state.leaves[name].view(state.values.bits).data.cast("B")
                crc32c(data)
                while data:
                    data = data[file.write(data) :]
            if job.durable:
                os.fsync(file.fileno())

    def save() -> None:
        Path(job.path).mkdir()
        with ThreadPoolExecutor(job.threads) as threads:
            list(threads.map(save_share, range(job.threads)))
        settle(job, job.path)

    def load_share(index: int) -> dict[str, Any]:
        found = {}
        with open(f"{job.path}/{index}", "rb", buffering=0) as file:
            for name in shares[index]:
                bits = found[name] = np.empty(state.values.shapes[name], state.values.bits)
                into = bits.data.cast("B")
                while into:
                    into = into[file.readinto(into) or len(into) :]
        return found

    def load() -> dict[str, Any]:
        with ThreadPoolExecutor(job.threads) as threads:
            return {name: bits for found in threads.map(load_share, range(job.threads)) for name, bits in found.items()}

    return Side({"save": save, "load": load}, state.pieces)


def safetensors(job: Job) -> Side:
    import ml_dtypes  # noqa: F401  # who loads bfloat16 must have imported what gives NumPy the name
    import safetensors.numpy as library

    state = NumPyState(job)
    return _one_file(job, state, lambda file: library.save_file(state.leaves, file), library.load_file)


def npz(job: Job) -> Side:
    """It has no bfloat16, so it is given bits."""
    state = NumPyState(job)
    bits = {name: array.view(state.values.bits) for name, array in state.leaves.items()}

    def load(file: str) -> dict[str, Any]:
        with np.load(file) as found:
            return dict(found)

    return _one_file(job, state, lambda file: np.savez(file, **bits), load, "state.npz")


def pickle(job: Job) -> Side:
    import pickle as library

    state = NumPyState(job)

    def save(file: str) -> None:
        with open(file, "wb") as opened:
            library.dump(state.leaves, opened, protocol=5)

    def load(file: str) -> Any:
        with open(file, "rb") as opened:
            return library.load(opened)

    return _one_file(job, state, save, load)


def _one_file(
    job: Job, state: NumPyState, write: Callable[[str], Any], read: Callable[[str], Any], name: str = "state"
) -> Side:
    file = f"{job.path}/{name}"

    def save() -> None:
        Path(job.path).mkdir()
        write(file)
        settle(job, file)

    return Side({"save": save, "load": lambda: read(file)}, state.pieces)
