"""Train a small model, save it, look into the checkpoint, let TensorStore and Orbax judge it, and go on training.

    python -m examples.demo [DIRECTORY]

The model is a classifier of handwritten digits in Flax, with Adam from optax. It is trained for some steps and saved
with ``ocdbt_py``. Then single tensors and slices are read by name; TensorStore reads every array of the same directory,
and both of Orbax's checkpointers restore it; and the training goes on from the checkpoint beside a run that was never
interrupted. The exit code is 0 if every verdict is good.
"""

from __future__ import annotations

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import tensorstore
from flax import nnx
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from sklearn.datasets import load_digits

import ocdbt_py
from ocdbt_py.cli import main as ocdbt

STEPS_BEFORE, STEPS_AFTER, BATCH = 60, 40, 128


# --- the model and its training


class Classifier(nnx.Module):  # type: ignore[misc]
    """64 pixels, two hidden layers, 10 digits."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.hidden = nnx.List([nnx.Linear(64, 512, rngs=rngs), nnx.Linear(512, 512, rngs=rngs)])
        self.digits = nnx.Linear(512, 10, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        for layer in self.hidden:
            images = nnx.relu(layer(images))
        return self.digits(images)  # type: ignore[no-any-return]


@nnx.jit  # type: ignore[untyped-decorator]
def train_step(model: Classifier, optimizer: nnx.Optimizer, images: jax.Array, labels: jax.Array) -> jax.Array:
    def loss_of(model: Classifier) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()  # type: ignore[no-any-return]

    loss, gradients = nnx.value_and_grad(loss_of)(model)
    optimizer.update(model, gradients)
    return loss  # type: ignore[no-any-return]


@dataclass(slots=True)
class Run:
    """A model, its optimizer, and how far it got."""

    model: Classifier
    optimizer: nnx.Optimizer
    step: int = 0

    @classmethod
    def new(cls, seed: int) -> Run:
        model = Classifier(nnx.Rngs(seed))
        return cls(model, nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param))

    def train(self, steps: int) -> list[float]:
        """The loss of each step. Batches depend on the step's number alone, so a resumed run sees the same ones."""
        images, labels = DIGITS
        losses = []
        for _ in range(steps):
            self.step += 1
            chosen = np.random.default_rng(self.step).choice(len(labels), BATCH, replace=False)
            losses.append(float(train_step(self.model, self.optimizer, images[chosen], labels[chosen])))
        return losses

    def tree(self) -> dict[str, Any]:
        """Everything that training needs to go on, as a pytree."""
        return {"model": nnx.state(self.model), "optimizer": nnx.state(self.optimizer), "step": self.step}

    def resume(self, tree: dict[str, Any]) -> None:
        nnx.update(self.model, tree["model"])
        nnx.update(self.optimizer, tree["optimizer"])
        self.step = tree["step"]


def digits() -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    images, labels = load_digits(return_X_y=True)
    return (images / 16).astype(np.float32), labels.astype(np.int32)


DIGITS = digits()


# --- comparing


def named(tree: Any) -> dict[str, NDArray[Any]]:
    """Leaf name -> array, by the names that Orbax gives."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {".".join(map(step_name, path)): np.asarray(leaf) for path, leaf in leaves}


def step_name(step: Any) -> str:
    return str(next(getattr(step, name) for name in ("key", "name", "idx") if hasattr(step, name)))


def same_bits(found: dict[str, NDArray[Any]], wanted: dict[str, NDArray[Any]]) -> bool:
    return found.keys() == wanted.keys() and all(
        found[name].dtype == array.dtype
        and found[name].shape == array.shape
        and found[name].tobytes() == array.tobytes()
        for name, array in wanted.items()
    )


def arrays_of_tensorstore(directory: Path, names: list[str]) -> Iterator[tuple[str, NDArray[Any]]]:
    """The arrays as TensorStore's own zarr and OCDBT drivers read them."""
    for name in names:
        kvstore = {"driver": "ocdbt", "base": f"file://{directory}/", "path": f"{name}/"}
        yield name, np.asarray(tensorstore.open({"driver": "zarr", "kvstore": kvstore}).result().read().result())


def abstract(tree: Any) -> Any:
    """What Orbax calls a target: shapes, dtypes and devices instead of arrays."""

    def described(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array):
            return leaf
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)  # type: ignore[no-untyped-call]

    return jax.tree.map(described, tree)


# --- the show


@dataclass(slots=True)
class Demo:
    directory: Path
    console: Console
    verdicts: list[tuple[str, str, bool]]

    def play(self) -> bool:
        run = self.train_and_save()
        saved = run.tree()
        self.look_inside(named(saved))
        self.ask_the_others(saved)
        self.go_on(run)
        return self.conclude()

    def train_and_save(self) -> Run:
        self.section("1  Train, and save with ocdbt_py")
        run = Run.new(seed=0)
        losses = run.train(STEPS_BEFORE)
        self.console.print(
            f"{STEPS_BEFORE} steps on {len(DIGITS[1]):,} digits: loss {losses[0]:.3f} → {losses[-1]:.3f}"
        )
        start = time.perf_counter()
        ocdbt_py.save(self.directory, run.tree(), custom_metadata={"data": "digits", "loss": losses[-1]})
        self.console.print(f"ocdbt_py.save took {(time.perf_counter() - start) * 1000:.0f} ms, fsync included")
        self.console.print(f"\n[bold]$ ocdbt tree {escape(str(self.directory))}", soft_wrap=True)
        ocdbt(["tree", str(self.directory)])
        return run

    def look_inside(self, saved: dict[str, NDArray[Any]]) -> None:
        self.section("2  Read one tensor, and one slice of it, by name")
        checkpoint = ocdbt_py.Checkpoint(self.directory)
        table = self.table("read", "shape", "bytes fetched", "of all")
        name = "model.hidden.1.kernel.value"
        total = sum(array.nbytes for array in saved.values())
        right = True
        for text, index in (("[:]", ...), ("[:2]", np.s_[:2]), ("[7, ::64]", np.s_[7, ::64])):
            part = np.asarray(checkpoint[name][index])
            right &= part.tobytes() == saved[name][index].tobytes()
            fetched = sum(fetch.length for fetch in checkpoint.explain(name, index))
            table.add_row(Text(name + text), str(part.shape), f"{fetched:,}", f"{fetched / total:.3%}")
        self.console.print(table)
        self.judge("ocdbt_py", "a tensor and its slices, read by name", right)

    def ask_the_others(self, saved: dict[str, Any]) -> None:
        self.section("3  The same directory, read by TensorStore and by Orbax")
        wanted = named(saved)
        size = sum(array.nbytes for array in wanted.values()) / 1e6
        found = dict(arrays_of_tensorstore(self.directory, list(wanted)))
        self.judge("TensorStore", f"{len(wanted)} arrays, {size:.1f} MB, bit for bit", same_bits(found, wanted))
        with ocp.StandardCheckpointer() as standard:
            restored = standard.restore(self.directory, abstract(saved))
        self.judge(
            "Orbax StandardCheckpointer", "restored into its target, bit for bit", same_bits(named(restored), wanted)
        )
        with ocp.PyTreeCheckpointer() as pytree:
            restored = pytree.restore(self.directory)
        self.judge(
            "Orbax PyTreeCheckpointer", "restored without a target, bit for bit", same_bits(named(restored), wanted)
        )

    def go_on(self, run: Run) -> None:
        self.section("4  Go on from the checkpoint")
        resumed = Run.new(seed=1)  # other weights, so that only the checkpoint can make it equal
        target = abstract(resumed.tree())
        resumed.resume(ocdbt_py.restore(self.directory, target))
        uninterrupted, after_restore = run.train(STEPS_AFTER), resumed.train(STEPS_AFTER)
        table = self.table("step", "loss, never interrupted", "loss, from the checkpoint")
        for step in (0, STEPS_AFTER // 2 - 1, STEPS_AFTER - 1):
            table.add_row(str(STEPS_BEFORE + step + 1), repr(uninterrupted[step]), repr(after_restore[step]))
        self.console.print(table)
        self.judge(
            "ocdbt_py.restore", f"{STEPS_AFTER} more steps, the same losses exactly", uninterrupted == after_restore
        )

    def section(self, title: str) -> None:
        self.console.print()
        self.console.rule(f"[bold]{title}", align="left")

    def table(self, *columns: str) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
        for column in columns:
            table.add_column(column, no_wrap=True)
        return table

    def judge(self, who: str, what: str, good: bool) -> None:
        self.verdicts.append((who, what, good))
        self.console.print(f"{'[green]✓' if good else '[red]✗'}[/] {who}: {what}")

    def conclude(self) -> bool:
        self.section("Verdicts")
        table = self.table("by", "what", "verdict")
        for who, what, good in self.verdicts:
            table.add_row(who, what, "[bold green]identical" if good else "[bold red]DIFFERENT")
        self.console.print(table)
        return all(good for *_, good in self.verdicts)


def quiet() -> None:
    """Warnings and logs of the libraries say nothing here that a reader could act on."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", nargs="?", help="where to save; absent or empty (default: a temporary directory)")
    arguments = parser.parse_args()
    quiet()
    with tempfile.TemporaryDirectory(prefix="ocdbt-demo-") as temporary:
        directory = Path(arguments.directory or Path(temporary) / "checkpoint").absolute()
        try:
            return 0 if Demo(directory, Console(highlight=False), []).play() else 1
        except ocdbt_py.OcdbtError as error:
            sys.stderr.write(f"{error}\n")
            return 1


if __name__ == "__main__":
    sys.exit(main())
