"""Cases of checkpoints that lost a file, or were saved on devices that are not there."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from conformance.orbax_restoring_worlds import OTHER, P, World, case, described, keys, plain

counter = itertools.count()


def without(d: Path, *names: str) -> Path:
    """A copy of a checkpoint that lacks these files."""
    made = d.parent / f"copy-{next(counter)}"
    shutil.copytree(d, made)
    for name in names:
        if (made / name).is_dir():
            shutil.rmtree(made / name)
        else:
            (made / name).unlink()
    return made


def elsewhere(d: Path) -> Path:
    """A copy that says it was saved on devices nobody has."""
    made = without(d)
    shardings = json.loads((made / "_sharding").read_text())
    for name, text in shardings.items():
        shardings[name] = text.replace('"id": 0', '"id": 99').replace("cpu:0", "cpu:99")
    (made / "_sharding").write_text(json.dumps(shardings))
    return made


def undecided(value: Any) -> Any:
    """A target's leaf that leaves the sharding open."""
    return described(value, None) if isinstance(value, jax.Array) else value


@case("plain", ValueError)
def devices_that_are_not_there(w: World, d: Path) -> Any:
    return w.pytree(elsewhere(d))


@case("plain", ValueError)
def devices_that_are_not_there_by_standard(w: World, d: Path) -> Any:
    return w.standard(elsewhere(d))


@case("plain")
def devices_that_are_not_there_and_a_fallback(w: World, d: Path) -> Any:
    return w.standard(elsewhere(d), fallback_sharding=NamedSharding(OTHER, P()))


@case("plain")
def devices_that_are_not_there_and_a_fallback_for_a_target(w: World, d: Path) -> Any:
    return w.standard(elsewhere(d), jax.tree.map(undecided, plain()), fallback_sharding=NamedSharding(OTHER, P()))


@case("plain")
def devices_that_are_not_there_do_not_matter_with_a_target(w: World, d: Path) -> Any:
    return w.standard(elsewhere(d), plain())


@case("keys", ValueError)
def one_device_that_is_not_there(w: World, d: Path) -> Any:
    return w.standard(elsewhere(d))


@case("plain", ValueError)
def no_shardings(w: World, d: Path) -> Any:
    return w.pytree(without(d, "_sharding"))


@case("plain")
def no_shardings_by_standard(w: World, d: Path) -> Any:
    return w.standard(without(d, "_sharding"))


@case("plain")
def no_shardings_and_a_described_target(w: World, d: Path) -> Any:
    return w.standard(without(d, "_sharding"), jax.tree.map(undecided, plain()))


@case("keys")
def nothing_says_that_keys_are_keys(w: World, d: Path) -> Any:
    return w.pytree(without(d, "array_metadatas"))


@case("keys")
def nothing_says_that_keys_in_a_target_are_keys(w: World, d: Path) -> Any:
    return w.standard(without(d, "array_metadatas"), keys())


@case("plain", FileNotFoundError)
def no_metadata(w: World, d: Path) -> Any:
    return w.pytree(without(d, "_METADATA"))


@case("plain", FileNotFoundError)
def no_metadata_by_standard(w: World, d: Path) -> Any:
    return w.standard(without(d, "_METADATA"))


@case("plain")
def no_metadata_and_a_target(w: World, d: Path) -> Any:
    wanted = plain()
    given = jax.tree.map(lambda _: w.leaf(), wanted)
    given["w"] = w.array(sharding=NamedSharding(OTHER, P("a")))
    return w.pytree(without(d, "_METADATA"), wanted, restore_args=given)


@case("plain")
def no_metadata_and_a_part_as_target(w: World, d: Path) -> Any:
    return w.pytree(without(d, "_METADATA"), {"n": np.zeros(3), "inner": {"c": [0, 0]}})


@case("plain")
def no_checkpoint_metadata(w: World, d: Path) -> Any:
    return w.pytree(without(d, "_CHECKPOINT_METADATA", "commit_success.txt"))
