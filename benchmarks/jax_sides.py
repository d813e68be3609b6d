"""Sides that hold ``jax.Array``, and Orbax's with NumPy arrays: ocdbt_py and Orbax.

The state lies on a mesh of as many devices as the job has shards, in one process or in several, cut along its first
axes, which is what ``fsdp`` means for a checkpoint.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.sides import Job, Piece, Side, flat, nested
from benchmarks.states import STATES, Values


class JaxState:
    """A state as arrays on a mesh; on a single device without one, as most small programs have it."""

    def __init__(self, job: Job) -> None:
        each = job.shards // job.count
        if job.shards > 1:
            os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={each}"
        import jax
        from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

        if not job.is_alone:
            jax.distributed.initialize(f"127.0.0.1:{job.port}", job.count, job.index, initialization_timeout=120)
        values = Values(STATES[job.state])
        partition: Any = PartitionSpec  # JAX has no types for these two
        described: Any = jax.ShapeDtypeStruct
        mesh = Mesh(np.array(jax.devices()), ("fsdp",))
        sharding: Any = (
            SingleDeviceSharding(jax.devices()[0]) if job.shards == 1 else NamedSharding(mesh, partition("fsdp"))
        )
        self._bits = values.bits

        def made(name: str, shape: tuple[int, ...]) -> Any:
            def part(index: Any) -> Any:
                start, stop, _ = index[0].indices(shape[0])
                return values.rows(name, start, stop).view(values.dtype)

            return jax.make_array_from_callback(shape, sharding, part)

        jax_untyped: Any = jax
        self.wait: Callable[[Any], Any] = jax_untyped.block_until_ready
        if job.operation in ("save", "begin"):
            self.tree = nested({name: made(name, shape) for name, shape in values.shapes.items()})
            self.wait(self.tree)
        self.target = nested(
            {name: described(shape, values.dtype, sharding=sharding) for name, shape in values.shapes.items()}
        )

    def pieces(self, tree: Any) -> Iterator[Piece]:
        for name, array in flat(tree):
            for shard in array.addressable_shards:
                yield Piece(name, shard.index[0].start or 0, np.asarray(shard.data).view(self._bits))


class NumPyState:
    """A state as NumPy arrays, for Orbax."""

    def __init__(self, job: Job) -> None:
        import jax  # noqa: F401

        values = Values(STATES[job.state])
        self._bits = values.bits
        self.tree = nested({name: values.array(name) for name in values.shapes})
        self.target = self.tree

    def wait(self, tree: Any) -> Any:
        return tree

    def pieces(self, tree: Any) -> Iterator[Piece]:
        return (Piece(name, 0, array.view(self._bits)) for name, array in flat(tree))


def ours(job: Job, **options: Any) -> Side:
    """Several processes meet in a directory beside the checkpoint."""
    import ocdbt_py

    save, save_async, restore = ocdbt_py.save, ocdbt_py.save_async, ocdbt_py.restore  # loaded on first use
    state = JaxState(job)
    processes = None if job.is_alone else ocdbt_py.FileProcesses(f"{job.path}.meeting", job.index, job.count)
    options = {"durable": job.durable, "processes": processes, **options}
    return Side(
        {
            "save": lambda: save(job.path, state.tree, **options),
            "load": lambda: state.wait(restore(job.path, state.target)),
            "begin": lambda: save_async(job.path, state.tree, **options).result,
        },
        state.pieces,
    )


def ours_zstd(job: Job) -> Side:
    return ours(job, compression="zstd")


def orbax(job: Job) -> Side:
    """``StandardCheckpointer`` with its defaults: OCDBT, zarr v2, zstd."""
    return _standard(job, JaxState(job))


def orbax_numpy(job: Job) -> Side:
    return _standard(job, NumPyState(job))


def orbax_raw(job: Job) -> Side:
    return _configured(job, use_compression=False)


def orbax_zarr3(job: Job) -> Side:
    """As the configurations that came with Orbax's paper have it: OCDBT, zarr v3, zstd."""
    return _configured(job, use_ocdbt=True, use_zarr3=True, use_compression=True)


def orbax_zarr3_raw(job: Job) -> Side:
    return _configured(job, use_ocdbt=True, use_zarr3=True, use_compression=False)


def _checkpoints() -> Any:
    import logging

    import orbax.checkpoint

    logging.disable(logging.WARNING)
    return orbax.checkpoint


def _standard(job: Job, state: JaxState | NumPyState) -> Side:
    ocp = _checkpoints()

    def begin() -> Callable[[], Any]:
        checkpointer = ocp.StandardCheckpointer()
        checkpointer.save(job.path, state.tree)

        def wait() -> None:
            checkpointer.wait_until_finished()
            checkpointer.close()

        return wait

    def load() -> Any:
        with ocp.StandardCheckpointer() as checkpointer:
            return state.wait(checkpointer.restore(job.path, state.target))

    return Side({"save": lambda: begin()(), "load": load, "begin": begin}, state.pieces)


def _configured(job: Job, **settings: bool) -> Side:
    state = JaxState(job)
    ocp = _checkpoints()

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

    return Side({"save": save, "load": load, "begin": begin}, state.pieces)
