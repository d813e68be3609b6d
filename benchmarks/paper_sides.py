"""The sides of ``benchmarks.paper``, each in a process of its own: how it saves a model's state, and loads it again.

The state (:mod:`benchmarks.model_state`) is cut along its first axes into as many shards as the job has, which is what
``fsdp`` means for a checkpoint.

* Sides of JAX hold ``jax.Array`` on a mesh of as many devices as there are shards, in one process or in several.
* Sides of torch hold whole tensors in one process, ``DTensor`` in several.

A side's ``load`` ends when the bytes are in memory. Those that map files instead touch every page of them before the
clock stops: else they would be timed for doing nothing.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.model_state import MODELS, Values

__all__ = ["SIDES", "Job", "Piece", "Side"]

_PAGE = 4096
_COPY_AHEAD = 100_000_000
"""Bytes that DCP's threads read ahead, as in the configurations that came with the paper."""


class Piece(NamedTuple):
    """Rows of a leaf as a side has loaded them, as bits."""

    name: str
    start: int
    bits: NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class Job:
    """What one process of a measurement is told."""

    side: str
    operation: str
    model: str
    path: str
    shards: int
    index: int
    count: int
    port: int
    durable: bool
    threads: int

    @property
    def is_alone(self) -> bool:
        return self.count == 1


@dataclass(frozen=True, slots=True)
class Side:
    """What can be timed. ``begin`` saves asynchronously: it returns what waits for the end."""

    save: Callable[[], Any]
    load: Callable[[], Any]
    pieces: Callable[[Any], Iterator[Piece]]
    begin: Callable[[], Callable[[], Any]] | None = None


def touch(pieces: Iterator[Piece]) -> None:
    """Read a byte of every page."""
    for piece in pieces:
        piece.bits.reshape(-1).view(np.uint8)[::_PAGE].max(initial=0)


# --- sides of JAX


class JaxState:
    """A state as arrays on a mesh."""

    def __init__(self, job: Job) -> None:
        each = job.shards // job.count
        os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={each}"
        import jax
        import ml_dtypes
        from jax.sharding import Mesh, NamedSharding, PartitionSpec

        if not job.is_alone:
            jax.distributed.initialize(f"127.0.0.1:{job.port}", job.count, job.index, initialization_timeout=120)
        values = Values(MODELS[job.model])
        partition: Any = PartitionSpec  # JAX has no types for these two
        described: Any = jax.ShapeDtypeStruct
        sharding = NamedSharding(Mesh(np.array(jax.devices()), ("fsdp",)), partition("fsdp"))

        def made(name: str, shape: tuple[int, ...]) -> Any:
            def part(index: Any) -> Any:
                start, stop, _ = index[0].indices(shape[0])
                return values.rows(name, start, stop).view(ml_dtypes.bfloat16)

            return jax.make_array_from_callback(shape, sharding, part)

        jax_untyped: Any = jax
        self.wait: Callable[[Any], Any] = jax_untyped.block_until_ready
        if job.operation != "load":
            self.tree = _nested({name: made(name, shape) for name, shape in values.shapes.items()})
            self.wait(self.tree)
        self.target = _nested(
            {name: described(shape, ml_dtypes.bfloat16, sharding=sharding) for name, shape in values.shapes.items()}
        )

    def pieces(self, tree: Any) -> Iterator[Piece]:
        for name, array in _flat(tree):
            for shard in array.addressable_shards:
                yield Piece(name, shard.index[0].start or 0, np.asarray(shard.data).view(np.uint16))


def ours(job: Job) -> Side:
    """Several processes meet in a directory beside the checkpoint."""
    import ocdbt_py

    save, save_async, restore = ocdbt_py.save, ocdbt_py.save_async, ocdbt_py.restore  # loaded on first use
    state = JaxState(job)
    processes = None if job.is_alone else ocdbt_py.FileProcesses(f"{job.path}.meeting", job.index, job.count)
    options: dict[str, Any] = {"durable": job.durable, "processes": processes}
    return Side(
        save=lambda: save(job.path, state.tree, **options),
        load=lambda: state.wait(restore(job.path, state.target)),
        begin=lambda: save_async(job.path, state.tree, **options).result,
        pieces=state.pieces,
    )


def ours_mapped(job: Job) -> Side:
    """NumPy arrays, and loaded ones that are the file's own pages."""
    import ml_dtypes

    import ocdbt_py

    save, save_async, restore = ocdbt_py.save, ocdbt_py.save_async, ocdbt_py.restore
    values = Values(MODELS[job.model])
    tree = _nested(
        {name: values.rows(name, 0, shape[0]).view(ml_dtypes.bfloat16) for name, shape in values.shapes.items()}
    )

    def load() -> Any:
        tree = restore(job.path, mmap=True)
        touch(pieces(tree))
        return tree

    def pieces(tree: Any) -> Iterator[Piece]:
        return (Piece(name, 0, array.view(np.uint16)) for name, array in _flat(tree))

    return Side(
        save=lambda: save(job.path, tree, durable=job.durable),
        load=load,
        begin=lambda: save_async(job.path, tree, durable=job.durable).result,
        pieces=pieces,
    )


def orbax(job: Job) -> Side:
    """As the paper's configurations have it: OCDBT, zarr v3, zstd."""
    return _orbax(job, use_ocdbt=True, use_zarr3=True, use_compression=True)


def orbax_raw(job: Job) -> Side:
    return _orbax(job, use_ocdbt=True, use_zarr3=True, use_compression=False)


def _orbax(job: Job, **settings: bool) -> Side:
    state = JaxState(job)
    import logging

    import orbax.checkpoint as ocp

    logging.disable(logging.WARNING)

    def save() -> None:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**settings)) as checkpointer:
            checkpointer.save(job.path, args=ocp.args.PyTreeSave(state.tree))

    def begin() -> Callable[[], Any]:
        checkpointer = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(**settings))
        checkpointer.save(job.path, args=ocp.args.PyTreeSave(state.tree))
        return lambda: checkpointer.close()

    def load() -> Any:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**settings)) as checkpointer:
            restore_args = ocp.checkpoint_utils.construct_restore_args(state.target)
            arguments = ocp.args.PyTreeRestore(state.target, restore_args=restore_args)
            return state.wait(checkpointer.restore(job.path, args=arguments))

    return Side(save, load, state.pieces, begin)


# --- sides of torch


class TorchState:
    """A state as tensors: whole in one process, ``DTensor`` in several."""

    def __init__(self, job: Job) -> None:
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as it is meant to be
        self.torch: Any = import_module("torch")
        # As its launcher does: with more, the copies of small tensors wait for threads that the machine is short of.
        self.torch.set_num_threads(1)
        self._mesh: Any = None
        if not job.is_alone:
            self._distributed: Any = import_module("torch.distributed.tensor")
            distributed: Any = import_module("torch.distributed")
            distributed.init_process_group(
                "gloo", init_method=f"tcp://127.0.0.1:{job.port}", rank=job.index, world_size=job.count
            )
            self._mesh = import_module("torch.distributed.device_mesh").init_device_mesh("cpu", (job.count,))
            # the first one imports a compiler; that is importing, not loading
            kind = self._distributed
            kind.DTensor.from_local(self.torch.zeros(1), self._mesh, [kind.Shard(0)])
        self._job = job
        self._values = Values(MODELS[job.model])
        if job.operation != "load":
            self.tree = self._made(self._tensor)

    def empty(self) -> dict[str, Any]:
        """What DCP loads into."""
        return self._made(
            lambda name, start, stop: self.torch.empty(
                (stop - start, *self._values.shapes[name][1:]), dtype=self.torch.bfloat16
            )
        )

    def _tensor(self, name: str, start: int, stop: int) -> Any:
        bits = self._values.rows(name, start, stop).view(np.int16)
        return self.torch.from_numpy(bits).view(self.torch.bfloat16)

    def _made(self, local: Callable[[str, int, int], Any]) -> dict[str, Any]:
        tree = {}
        for name, shape in self._values.shapes.items():
            start, stop = self._rows(shape)
            tensor = local(name, start, stop)
            if self._mesh is not None:
                kind = self._distributed
                tensor = kind.DTensor.from_local(tensor, self._mesh, [kind.Shard(0)])
            tree[name] = tensor
        return tree

    def _rows(self, shape: tuple[int, ...]) -> tuple[int, int]:
        each = shape[0] // self._job.count
        return self._job.index * each, (self._job.index + 1) * each

    def pieces(self, tree: dict[str, Any]) -> Iterator[Piece]:
        for name, tensor in tree.items():
            start, _ = self._rows(self._values.shapes[name])
            local = tensor if self._mesh is None else tensor.to_local()
            yield Piece(name, start, local.view(self.torch.int16).numpy().view(np.uint16))


def dcp(job: Job) -> Side:
    """``torch.distributed.checkpoint`` with its own writer of files."""
    state = TorchState(job)
    checkpoint: Any = import_module("torch.distributed.checkpoint")
    if find_spec("fsspec"):  # it looks for it at the first load
        import_module("torch.distributed.checkpoint._fsspec_filesystem")

    def options() -> dict[str, Any]:
        writer = checkpoint.FileSystemWriter(
            job.path, thread_count=job.threads, per_thread_copy_ahead=_COPY_AHEAD, sync_files=job.durable
        )
        return {"storage_writer": writer, "no_dist": job.is_alone}

    def load() -> Any:
        found = state.empty()
        checkpoint.load(found, checkpoint_id=job.path, no_dist=job.is_alone)
        return found

    return Side(
        save=lambda: checkpoint.save(state.tree, **options()),
        load=load,
        begin=lambda: checkpoint.async_save(state.tree, **options()).result,
        pieces=state.pieces,
    )


def torch_save(job: Job) -> Side:
    state = TorchState(job)
    file = f"{job.path}/state.pt"

    def save() -> None:
        Path(job.path).mkdir()
        state.torch.save(state.tree, file)
        _settle(job, file)

    return Side(save, lambda: state.torch.load(file, weights_only=True), state.pieces)


def safetensors(job: Job) -> Side:
    state = TorchState(job)
    library: Any = import_module("safetensors.torch")
    file = f"{job.path}/state.safetensors"

    def save() -> None:
        Path(job.path).mkdir()
        library.save_file(state.tree, file)
        _settle(job, file)

    def load() -> Any:
        tree = library.load_file(file)
        touch(state.pieces(tree))
        return tree

    return Side(save, load, state.pieces)


def _settle(job: Job, file: str) -> None:
    """What those leave to their callers: the file and its name are on the disk before the save is called done."""
    if job.durable:
        for path in (file, job.path):
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)


SIDES: dict[str, Callable[[Job], Side]] = {
    "ocdbt_py": ours,
    "ocdbt_py-mapped": ours_mapped,
    "orbax": orbax,
    "orbax-raw": orbax_raw,
    "dcp": dcp,
    "torch.save": torch_save,
    "safetensors": safetensors,
}


def _nested(leaves: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *above, last = name.split(".")
        below = tree
        for key in above:
            below = below.setdefault(key, {})
        below[last] = leaf
    return tree


def _flat(tree: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield above + key, value
