"""Roxxel's own ``Trainer`` over a file of tokens, from which it makes its ``Checkpointer`` itself.

    python -m workflows.roxxel_trainer DIRECTORY STEPS

Prints the steps that are there at the end and a checksum of model and optimizer.
"""

# ruff: noqa: E402 - the order of these imports is the point

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from ocdbt_py.interop.orbax import install

install()

import jax
import numpy as np
import optax
from flax import nnx
from roxxel import Curriculum, Roxxel, Trainer

from examples.roxxel_training import checksum

TOKENS, CONTEXT = 16, 8


class NextToken(nnx.Module):  # type: ignore[misc]
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embedding = nnx.Embed(TOKENS, 8, rngs=rngs)
        self.logits = nnx.Linear(8, TOKENS, rngs=rngs)


def loss_of(model: NextToken, batch: jax.Array) -> jax.Array:
    logits = model.logits(model.embedding(batch[:, :-1]))
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:]).mean()  # type: ignore[no-any-return]


def main() -> None:
    directory, steps = Path(sys.argv[1]), int(sys.argv[2])
    tokens = directory / "tokens.rox"
    if not tokens.exists():
        directory.mkdir(parents=True)
        walk = np.random.default_rng(3).integers(0, 3, size=20_000).cumsum() % TOKENS
        Roxxel(str(tokens)).write(iter([walk.astype(np.int32)]), block_size=1024)
    model = NextToken(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    trainer = Trainer(
        model=model,
        optimizer=optimizer,
        curriculum=Curriculum(Roxxel(str(tokens)), [{"steps": steps, "batch_size": 4, "seq_len": CONTEXT}]),
        loss_fn=loss_of,
        save_path=str(directory),
        checkpoint_every=20,
        log_every=20,
    )
    trainer.run()
    print(f"steps: {sorted(int(step.name) for step in (directory / 'checkpoints').iterdir())}")
    print(f"state after {steps} steps: {checksum(nnx.state((model, optimizer)))}")


if __name__ == "__main__":
    main()
