"""Train a PyTorch model on JAX with torchax, save it every 100 steps, and go on from the last save when started again.

    python -m examples.torchax_training DIRECTORY [--steps 400]

The checkpointing is that of a published article on Orbax with Torchax: a ``CheckpointManager`` with a prefix and a
number to keep, a template to restore into, a save and a wait. Two things differ from the article: the import, which
reads ``ocdbt_py.interop.orbax`` for ``orbax.checkpoint``, and the directory, which may be any that fsspec knows, such
as ``s3://bucket/run``. Four saves leave three steps: ``step__200``, ``step__300`` and ``step__400``.

Batches depend on the number of the step alone, and the optimizer has no state. So a run that was killed and started
again ends with the weights of one that was not, bit for bit; the last line printed tells their checksum.
"""

from __future__ import annotations

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import argparse
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
import optax
import torch
from rich.console import Console
from rich.progress import track

import ocdbt_py.interop.orbax as ocp

STEPS_PER_EPOCH, SAVE_EVERY, BATCH, PIXELS, DIGITS = 100, 100, 64, 28 * 28, 10


@contextmanager
def missing_overloads() -> Iterator[None]:
    """Names stand in for operators that PyTorch no longer has.

    torchax lists all overloads of the operators that it knows, also those for tensors with named dimensions. PyTorch
    2.13 dropped them, and the import of torchax fails at the first. Nothing ever calls them.
    """
    packet: Any = torch._ops.OpOverloadPacket
    found = packet.__getattr__

    def stand_in(self: Any, name: str) -> Any:
        try:
            return found(self, name)
        except AttributeError:
            if "dimname" in name.lower() or "names" in name:
                return f"{self}.{name}"
            raise

    packet.__getattr__ = stand_in
    try:
        yield
    finally:
        packet.__getattr__ = found


with missing_overloads():
    import torchax
    from torchax.interop import jax_jit, jax_view, torch_view
    from torchax.train import make_train_step

    torchax.default_env()  # lists more of them


class Classifier(torch.nn.Module):  # type: ignore[misc]
    """Three layers, hence six tensors, whose names have dots in them."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = torch.nn.Linear(PIXELS, 120)
        self.fc2 = torch.nn.Linear(120, 84)
        self.fc3 = torch.nn.Linear(84, DIGITS)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        images = torch.nn.functional.relu(self.fc1(images))
        images = torch.nn.functional.relu(self.fc2(images))
        return self.fc3(images)


def batch(step: int) -> tuple[jax.Array, jax.Array]:
    """Noisy pictures of ten made-up digits; those of a step are the same in every run."""
    digits = np.random.default_rng(0).normal(size=(DIGITS, PIXELS))
    rng = np.random.default_rng([1, step])
    labels = rng.integers(DIGITS, size=BATCH)
    images = digits[labels] + rng.normal(scale=3, size=(BATCH, PIXELS))
    return jax.numpy.asarray(images, "float32"), jax.numpy.asarray(labels, "int32")


def train(directory: str, steps: int, console: Console) -> dict[str, Any]:
    """Train until that many steps are done, those of earlier runs included. Returns the state at the end."""
    torch.manual_seed(0)
    with torchax.default_env():
        model = Classifier().to("jax")
    weights = dict(model.named_parameters())
    optimizer = optax.sgd(0.05)

    def forward(weights: Any, buffers: Any, images: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(model, weights, (images,))

    train_step = jax_jit(make_train_step(forward, torch.nn.functional.cross_entropy, optimizer))
    optimizer_state = torch_view(optimizer.init(jax_view(weights)))

    options = ocp.CheckpointManagerOptions(max_to_keep=3, save_interval_steps=1, step_prefix="step_")
    manager = ocp.CheckpointManager(directory, item_handlers=ocp.StandardCheckpointHandler(), options=options)

    state: dict[str, Any] = {"weights": jax_view(weights), "epoch": 0, "global_step": 0}
    latest = manager.latest_step()
    if latest is not None:
        state = manager.restore(latest, args=ocp.args.StandardRestore(state))
        weights = torch_view(state["weights"])
        console.print(f"resumed from step {state['global_step']}, in epoch {state['epoch']}")

    remaining = range(state["global_step"] + 1, steps + 1)
    for step in track(remaining, "training", console=console, disable=not console.is_terminal):
        images, labels = torch_view(batch(step))
        loss, weights, optimizer_state = train_step(weights, {}, optimizer_state, images, labels)
        state = {"weights": jax_view(weights), "epoch": step // STEPS_PER_EPOCH, "global_step": step}
        if step % SAVE_EVERY == 0:
            console.print(f"step {step}: loss {float(jax_view(loss)):.6f}")
            manager.save(step, args=ocp.args.StandardSave(state))
            manager.wait_until_finished()
            console.print(f"saved step {step}")
    console.print(f"steps kept: {manager.all_steps()}")
    manager.close()
    return state


def checksum(weights: dict[str, jax.Array]) -> str:
    """Of all the bits, so that two runs can be compared by eye."""
    crc = 0
    for name in sorted(weights):
        crc = zlib.crc32(np.ascontiguousarray(weights[name]).tobytes(), crc)
    return f"{crc:08x}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.torchax_training")
    parser.add_argument("directory", help="where the checkpoints are, a path or any URL that fsspec knows")
    parser.add_argument("--steps", type=int, default=400, help="steps of all runs together (default: %(default)s)")
    arguments = parser.parse_args()
    state = train(arguments.directory, arguments.steps, Console(highlight=False, soft_wrap=True))
    print(f"weights after {state['global_step']} steps: {checksum(state['weights'])}")


if __name__ == "__main__":
    main()
