"""Sides that hold tensors of torch: its distributed checkpoints, ``torch.save``, and safetensors.

Tensors are whole in one process, ``DTensor`` in several. A load ends when the bytes are in memory: safetensors maps its
file, so every byte is read once before the clock stops; else it would be timed for doing nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.sides import Job, Piece, Side, read_pass, settle
from benchmarks.states import STATES, Values

_COPY_AHEAD = 100_000_000
"""Bytes that DCP's threads read ahead, as in the configurations that came with the paper."""


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
        self._values = Values(STATES[job.state])
        self._dtype = getattr(self.torch, STATES[job.state].dtype)
        self._signed = np.dtype(f"i{self._values.bits.itemsize}")
        if job.operation != "load":
            self.tree = self._made(self._tensor)

    def empty(self) -> dict[str, Any]:
        """What DCP loads into."""
        return self._made(
            lambda name, start, stop: self.torch.empty(
                (stop - start, *self._values.shapes[name][1:]), dtype=self._dtype
            )
        )

    def _tensor(self, name: str, start: int, stop: int) -> Any:
        bits = self._values.rows(name, start, stop).view(self._signed)
        return self.torch.from_numpy(bits).view(self._dtype)

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
            bits = local.view(getattr(self.torch, self._signed.name)).numpy()
            yield Piece(name, start, bits.view(self._values.bits))


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
        {
            "save": lambda: checkpoint.save(state.tree, **options()),
            "load": load,
            "begin": lambda: checkpoint.async_save(state.tree, **options()).result,
        },
        state.pieces,
    )


def torch_save(job: Job) -> Side:
    state = TorchState(job)
    file = f"{job.path}/state.pt"

    def save() -> None:
        Path(job.path).mkdir()
        state.torch.save(state.tree, file)
        settle(job, file)

    return Side({"save": save, "load": lambda: state.torch.load(file, weights_only=True)}, state.pieces)


def safetensors(job: Job) -> Side:
    state = TorchState(job)
    library: Any = import_module("safetensors.torch")
    file = f"{job.path}/state.safetensors"

    def save() -> None:
        Path(job.path).mkdir()
        library.save_file(state.tree, file)
        settle(job, file)

    def load() -> Any:
        tree = library.load_file(file)
        read_pass(state.pieces(tree))
        return tree

    return Side({"save": save, "load": load}, state.pieces)
