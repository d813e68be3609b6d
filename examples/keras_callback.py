"""Train a Keras model with ``keras.callbacks.OrbaxCheckpoint``, whose Orbax is ``ocdbt_py``.

    python -m examples.keras_callback DIRECTORY [--epochs 4]

Keras imports ``orbax.checkpoint`` by itself when the callback is made. ``install()``, called before that, makes the
name stand for ``ocdbt_py.interop.orbax``; nothing else changes. The parts of this program, each in a directory of its
own:

    epochs    a save after every epoch, the last two kept; a second run loads the model and goes on
    best      only epochs that improved the loss on the validation data
    batches   a save every five batches
    weights   weights alone, loaded into a model that is there
    devices   a model on four devices, which comes back with its arrays laid out otherwise

Checkpoints are found by Keras itself, which looks at local directories only.
"""

# ruff: noqa: E402 - the order of these imports is the point

from __future__ import annotations

import argparse
import os
import zlib
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "jax"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Four devices for the last part, on a computer that has one.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")

from ocdbt_py.interop.orbax import install

install()

import keras
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

FEATURES, POINTS, BATCH = 8, 128, 16
BATCHES = POINTS // BATCH

Data = tuple[NDArray[np.float32], NDArray[np.float32]]


def points(seed: int) -> Data:
    """Points in a cube, on one side of a plane or the other."""
    inputs = np.random.default_rng([3, seed]).random((POINTS, FEATURES), np.float32)
    return inputs, (inputs.sum(axis=1, keepdims=True) > FEATURES / 2).astype(np.float32)


def make_model() -> keras.Model:
    """A small classifier, with all kinds of state: weights, moving averages, a seed, an optimizer's.

    The layers have names, since Keras finds the weights in a checkpoint by these. And it is no ``Sequential``: one that
    is loaded names its weights otherwise than the one that was saved, and stays without them.
    """
    keras.utils.set_random_seed(1)
    inputs = keras.Input((FEATURES,), name="features")
    hidden = keras.layers.Dense(16, activation="relu", name="hidden")(inputs)
    hidden = keras.layers.BatchNormalization(momentum=0.5, name="normal")(hidden)
    hidden = keras.layers.Dropout(0.1, seed=2, name="dropout")(hidden)
    model = keras.Model(inputs, keras.layers.Dense(1, activation="sigmoid", name="side")(hidden))
    model.compile(keras.optimizers.Adam(0.02), loss="binary_crossentropy", metrics=["accuracy"])
    return model


def checksum(model: keras.Model) -> str:
    """Of all the bits of model and optimizer, so that two runs can be compared by eye."""
    crc = 0
    for variable in [*model.variables, *model.optimizer.variables]:
        crc = zlib.crc32(np.ascontiguousarray(variable.numpy()).tobytes(), crc)
    return f"{crc:08x}"


class Epochs(keras.callbacks.Callback):  # type: ignore[misc]
    """Shows how far the training is, and prints a line for each epoch."""

    def __init__(self, console: Console, part: str) -> None:
        super().__init__()
        self._console, self._part = console, part
        self._bar = Progress(console=console, transient=True, disable=not console.is_terminal)

    def on_train_begin(self, logs: Any = None) -> None:
        self._bar.start()
        self._task = self._bar.add_task(self._part, total=self.params["epochs"] * self.params["steps"])

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._bar.advance(self._task)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._console.print(f"{self._part}: epoch {epoch}, loss {logs['loss']:.6f}")

    def on_train_end(self, logs: Any = None) -> None:
        self._bar.stop()


class Training:
    """What the parts have in common."""

    def __init__(self, directory: Path, epochs: int, console: Console) -> None:
        self._directory, self._epochs, self._console = directory, epochs, console

    def path(self, part: str) -> str:
        return str(self._directory / part)

    def saved(self, part: str) -> list[int]:
        """The steps that are there."""
        root = self._directory / part
        return sorted(int(step.name) for step in root.iterdir() if step.name.isdigit()) if root.is_dir() else []

    def fit(self, model: keras.Model, part: str, callback: Any, first: int = 0, **options: Any) -> None:
        model.fit(
            *points(0),
            batch_size=BATCH,
            epochs=self._epochs,
            initial_epoch=first,
            shuffle=False,
            verbose=0,
            callbacks=[callback, Epochs(self._console, part)],
            **options,
        )
        callback.wait_until_finished()
        self._console.print(f"{part}: steps {self.saved(part)}, state {checksum(model)}")

    # --- the parts

    def epochs(self) -> None:
        """Goes on where an earlier run has left off, also one that was killed."""
        is_resumed = bool(self.saved("epochs"))
        model = keras.saving.load_model(self.path("epochs")) if is_resumed else make_model()
        first = int(model.optimizer.iterations) // BATCHES
        self._console.print(f"epochs: start at epoch {first}")
        callback = keras.callbacks.OrbaxCheckpoint(self.path("epochs"), max_to_keep=2)
        self.fit(model, "epochs", callback, first)

    def best(self) -> None:
        callback = keras.callbacks.OrbaxCheckpoint(
            self.path("best"), monitor="val_loss", save_best_only=True, max_to_keep=None
        )
        self.fit(make_model(), "best", callback, validation_data=points(1))

    def batches(self) -> None:
        callback = keras.callbacks.OrbaxCheckpoint(self.path("batches"), save_freq=5, max_to_keep=3)
        self.fit(make_model(), "batches", callback)

    def weights(self) -> None:
        trained, fresh = make_model(), make_model()
        callback = keras.callbacks.OrbaxCheckpoint(
            self.path("weights"), save_weights_only=True, save_on_background=False
        )
        self.fit(trained, "weights", callback)
        fresh.load_weights(self.path("weights"))
        self._console.print(f"weights: the same in the other model: {same_weights(trained, fresh)}")

    def devices(self) -> None:
        """Saved with columns on the devices, loaded with rows on them."""
        keras.distribution.set_distribution(on_devices(None, "model"))
        trained = make_model()
        self.fit(trained, "devices", keras.callbacks.OrbaxCheckpoint(self.path("devices")))
        keras.distribution.set_distribution(on_devices("data", None))
        fresh = make_model()
        fresh.load_weights(self.path("devices"))
        loaded = keras.saving.load_model(self.path("devices"))
        for model in (trained, fresh, loaded):
            spec = model.get_layer("hidden").kernel.value.sharding.spec
            self._console.print(f"devices: laid out by {spec}, the same weights: {same_weights(trained, model)}")


def same_weights(one: keras.Model, other: keras.Model) -> bool:
    return all(map(np.array_equal, one.get_weights(), other.get_weights()))


def on_devices(*axes: str | None) -> Any:
    """All devices in a square, with the kernels of the hidden layer cut along these axes of it."""
    devices = keras.distribution.list_devices()
    mesh = keras.distribution.DeviceMesh((2, len(devices) // 2), ["data", "model"], devices=devices)
    layout = keras.distribution.LayoutMap(mesh)
    layout["hidden/kernel"] = axes
    return keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="data")


PARTS = ("epochs", "best", "batches", "weights", "devices")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.keras_callback")
    parser.add_argument("directory", type=Path, help="where the checkpoints are")
    parser.add_argument("--epochs", type=int, default=4, help="of all runs together (default: %(default)s)")
    parser.add_argument("--part", choices=PARTS, action="append", help="only this part; may be given again")
    arguments = parser.parse_args()
    training = Training(arguments.directory.absolute(), arguments.epochs, Console(highlight=False, soft_wrap=True))
    for part in arguments.part or PARTS:
        getattr(training, part)()


if __name__ == "__main__":
    main()
