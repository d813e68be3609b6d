"""All cases of restoring, by Orbax and by us, on eight virtual devices; the argument is a directory.

Beside the cases, every pytree of the corpus, of old releases too, is restored in a few ways. Writes ``result.json``:
case -> where the two differ, or "".
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as theirs

from conformance import (
    orbax_restoring_damage,
    orbax_restoring_helpers,
    orbax_restoring_leaves,
    orbax_restoring_steps,
    orbax_restoring_targets,
)
from conformance.corpus import orbax_cases
from conformance.orbax_restoring_worlds import CASES, CHECKPOINTS, ORBAX, OURS, World, difference, outcome, unexpected
from ocdbt_py.checkpoint.restore import restore

MODULES = (
    orbax_restoring_targets,
    orbax_restoring_leaves,
    orbax_restoring_helpers,
    orbax_restoring_damage,
    orbax_restoring_steps,
)


def as_saved(w: World, d: Path) -> Any:
    return w.pytree(d)


def as_saved_by_standard(w: World, d: Path) -> Any:
    return w.standard(d)


def as_numpy(w: World, d: Path) -> Any:
    def wanted(leaf: Any) -> Any:
        return w.leaf(np.ndarray if isinstance(leaf, np.ndarray) else None)

    return w.pytree(d, restore_args=jax.tree.map(wanted, restore(d)))


def in_a_target(w: World, d: Path) -> Any:
    tree = restore(d)
    args = jax.tree.map(lambda _: w.leaf(), tree)
    return w.pytree(d, jax.tree.map(lambda _: 0, tree), restore_args=args)


def on_one_device(w: World, d: Path) -> Any:
    device = jax.sharding.SingleDeviceSharding(jax.devices()[2])

    def wanted(leaf: Any) -> Any:
        return w.array(sharding=device) if isinstance(leaf, np.ndarray) else w.leaf()

    return w.pytree(d, restore_args=jax.tree.map(wanted, restore(d)))


WAYS: tuple[Callable[[World, Path], Any], ...] = (as_saved, as_saved_by_standard, as_numpy, in_a_target, on_one_device)


def corpus_trees() -> Iterator[tuple[str, Path]]:
    """Those with a tree; Orbax stumbles over the directory of a lone array, which has a handler of its own."""
    for each in orbax_cases():
        for item in each.expected["items"]:
            at = each.checkpoint / item["dir"]
            if not (at / "checkpoint").is_dir():
                yield f"{each.checkpoint.parent.name}/{item['dir']}", at


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable()
    directory = Path(sys.argv[1])
    for name, make in CHECKPOINTS.items():
        with theirs.PyTreeCheckpointer() as checkpointer:
            checkpointer.save(directory / name, make())
    results = {}
    for name, each in CASES.items():
        by_orbax, by_us = (outcome(world, each.function, directory / each.checkpoint) for world in (ORBAX, OURS))
        results[name] = unexpected(by_orbax, each.raises) or difference(by_orbax, by_us)
    corpus = {}
    for name, at in corpus_trees():
        for way in WAYS:
            found = difference(*(outcome(world, way, at) for world in (ORBAX, OURS)))
            corpus[f"{name} {way.__name__}"] = found
    (directory / "result.json").write_text(json.dumps({"cases": results, "corpus": corpus}))


if __name__ == "__main__":
    main()
