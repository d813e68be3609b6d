"""Training loops that are to be killed, each a fork of this process, which has imported all that they need.

A line on standard input is a loop to be run, as JSON; on standard output stand its process and, a line each, the steps
that it knows to be saved. It never ends by itself.
"""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from typing import Any

import numpy as np

from ocdbt_py.checkpoint.contents import Contents, pytree_item
from ocdbt_py.checkpoint.opening import resolve_checkpoint
from ocdbt_py.manager.options import CheckpointManagerOptions
from ocdbt_py.manager.root import Root
from ocdbt_py.storage.location import Place, Settings
from tests.checkpoint.places import Bucket


def place_of(directory: str, is_bucket: bool) -> Place:
    """``is_bucket``: nothing is renamed there, as in an object store."""
    place = resolve_checkpoint(directory, None, None, Settings(durable=False))  # the computer goes on
    return Place(Bucket(place.storage), place.path, place.url) if is_bucket else place


def tree_of(step: int) -> dict[str, Any]:
    return {"w": np.full((64, 64), step, np.float32), "b": np.arange(step, step + 10), "step": step}


def contents_of(step: int) -> Contents:
    return Contents({"default": pytree_item(tree_of(step))})


def loss_of(metrics: Any) -> float:
    return float(metrics["loss"])


def train(given: dict[str, Any]) -> None:
    options = CheckpointManagerOptions(
        cleanup_tmp_directories=True,
        enable_async_checkpointing=given["is_async"],
        max_to_keep=given["keep"],
        best_fn=loss_of if given["is_best"] else None,
        todelete_subdir=given["todelete"],
    )
    root = Root(place_of(given["directory"], given["is_bucket"]), options)
    latest = root.latest()
    step = 0 if latest is None else latest + 1
    while True:
        assert root.save(step, partial(contents_of, step), metrics={"loss": step})
        saved = step if not given["is_async"] else step - 1
        if step % 5 == 4:
            root.wait_until_finished()
            saved = step
        if saved > (-1 if latest is None else latest):
            os.write(1, f"saved {saved}\n".encode())
        step += 1


def main() -> None:
    for line in sys.stdin:
        child = os.fork()
        if not child:
            try:
                train(json.loads(line))
            except BaseException as error:
                os.write(1, f"failed {error!r}\n".encode())
            os._exit(1)
        os.write(1, f"pid {child}\n".encode())
        os.waitpid(child, 0)
        os.write(1, b"ended\n")


if __name__ == "__main__":
    main()
