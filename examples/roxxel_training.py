"""Train a Flax NNX model with Roxxel's ``Checkpointer``, unmodified, whose Orbax is ``ocdbt_py``.

    python -m examples.roxxel_training DIRECTORY [--steps 400]

Roxxel imports ``orbax.checkpoint`` itself, so there is no import here to change: ``install()``, called before Roxxel is
imported, makes that name stand for ``ocdbt_py.interop.orbax``. Saves are asynchronous and of model and optimizer
together, the three steps with the lowest loss are kept, and a second run goes on from the newest of them.

Roxxel never waits for its last save, and neither does this program: the end of the process does.
"""

# ruff: noqa: E402 - the order of these imports is the point

from __future__ import annotations

import argparse
import os
import tempfile
import zlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from ocdbt_py.interop.orbax import install

install()

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from rich.console import Console
from rich.progress import track
from roxxel.checkpoint import Checkpointer

SAVE_EVERY, KEPT, BATCH, FEATURES = 50, 3, 32, 16


class Regressor(nnx.Module):  # type: ignore[misc]
    """Two layers with dropout, so that the state has random keys and counters beside the weights."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.hidden = nnx.Linear(FEATURES, 64, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.answer = nnx.Linear(64, 1, rngs=rngs)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        return self.answer(self.dropout(nnx.relu(self.hidden(inputs))))  # type: ignore[no-any-return]


def loss_of(model: Regressor, inputs: jax.Array, wanted: jax.Array) -> jax.Array:
    return ((model(inputs) - wanted) ** 2).mean()


@nnx.jit  # type: ignore[untyped-decorator]
def train_step(model: Regressor, optimizer: nnx.Optimizer, inputs: jax.Array, wanted: jax.Array) -> jax.Array:
    loss, gradients = nnx.value_and_grad(loss_of)(model, inputs, wanted)
    optimizer.update(model, gradients)
    return loss  # type: ignore[no-any-return]


def batch(step: int) -> tuple[jax.Array, jax.Array]:
    """Points of a noisy plane; those of a step are the same in every run."""
    rng = np.random.default_rng([2, step])
    inputs = rng.normal(size=(BATCH, FEATURES))
    wanted = inputs.sum(axis=1, keepdims=True) + rng.normal(size=(BATCH, 1))
    return jnp.asarray(inputs, "float32"), jnp.asarray(wanted, "float32")


def checkpointer_at(directory: str, model: Regressor, optimizer: nnx.Optimizer) -> Checkpointer:
    """Roxxel's, for a path or any URL that fsspec knows."""
    if "://" not in directory:
        return Checkpointer(directory, model, optimizer, max_to_keep=KEPT)
    # Roxxel makes an absolute path of whatever it is given. What saves is its public attribute, and can be replaced.
    with tempfile.TemporaryDirectory() as unused:
        checkpointer = Checkpointer(unused, model, optimizer, max_to_keep=KEPT)
        checkpointer.mngr.close()
    options = ocp.CheckpointManagerOptions(max_to_keep=KEPT, best_fn=lambda metrics: metrics["loss"], best_mode="min")
    checkpointer.mngr = ocp.CheckpointManager(directory, options=options)
    return checkpointer


def checksum(state: nnx.State) -> str:
    """Of all the bits of model and optimizer, so that two runs can be compared by eye."""
    crc = 0
    for leaf in jax.tree.leaves(state):
        values = jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        crc = zlib.crc32(np.ascontiguousarray(values).tobytes(), crc)
    return f"{crc:08x}"


def train(directory: str, steps: int, console: Console) -> None:
    """Train until that many steps are done, those before the step that is gone on from included."""
    model = Regressor(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    checkpointer = checkpointer_at(directory, model, optimizer)
    start = checkpointer.restore()
    console.print(f"start at step {start}, state {checksum(nnx.state((model, optimizer)))}")

    for step in track(range(start + 1, steps + 1), "training", console=console, disable=not console.is_terminal):
        loss = train_step(model, optimizer, *batch(step))
        if step % SAVE_EVERY == 0:
            checkpointer.save(step, {"loss": float(loss)})
            console.print(f"save of step {step}: loss {float(loss):.6f}")
    console.print(f"state after {steps} steps: {checksum(nnx.state((model, optimizer)))}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.roxxel_training")
    parser.add_argument("directory", help="where the checkpoints are, a path or any URL that fsspec knows")
    parser.add_argument("--steps", type=int, default=400, help="steps of all runs together (default: %(default)s)")
    arguments = parser.parse_args()
    train(arguments.directory, arguments.steps, Console(highlight=False, soft_wrap=True))


if __name__ == "__main__":
    main()
