"""``keras.callbacks.OrbaxCheckpoint`` runs on ours, and prints and leaves what it does on the real Orbax."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from workflows.programs import Printed, Program, needs

needs("keras", "orbax")

EXAMPLE = Program("examples.keras_callback")
START, STATE = r"epochs: start at epoch (\d+)", r"epochs: .*state (\w+)"


@pytest.fixture(scope="module")
def orbax_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("orbax")


@pytest.fixture(scope="module")
def on_orbax(orbax_root: Path) -> Printed:
    """All parts on the real Orbax."""
    return EXAMPLE.run(str(orbax_root), on_orbax=True)


def contents(root: Path) -> dict[str, object]:
    """Every step: its items, what is said to have written them, and the leaves and types of each tree."""
    found: dict[str, object] = {}
    for step in root.glob("*/*"):
        items = {}
        for item in sorted(step.iterdir()):
            if item.is_dir():
                tree = json.loads((item / "_METADATA").read_text())
                leaves = {name: leaf["value_metadata"]["value_type"] for name, leaf in tree["tree_metadata"].items()}
                items[item.name] = (leaves, tree["use_ocdbt"], tree["use_zarr3"])
        handlers = json.loads((step / "_CHECKPOINT_METADATA").read_text())["item_handlers"]
        found[step.relative_to(root).as_posix()] = (items, handlers, (step / "orbax.checkpoint").exists())
    return found


def test_every_part_prints_and_leaves_what_it_does_on_orbax(
    on_orbax: Printed, orbax_root: Path, tmp_path: Path
) -> None:
    printed = EXAMPLE.run(str(tmp_path))
    assert printed.text == on_orbax.text
    assert printed.last(r"epochs: steps (\[.*\])") == "[2, 3]"
    assert printed.last(r"batches: steps (\[.*\])") == "[20, 25, 30]"
    assert printed.text.count("the same weights: True") == 3
    assert "laid out by P(None, 'model')" in printed.text
    assert printed.text.count("laid out by P('data', None)") == 2
    assert contents(tmp_path) == contents(orbax_root)


@pytest.mark.parametrize("first_on_orbax", [True, False], ids=["Orbax, then ours", "ours, then Orbax"])
def test_either_goes_on_with_a_run_of_the_other(first_on_orbax: bool, on_orbax: Printed, tmp_path: Path) -> None:
    EXAMPLE.run(str(tmp_path), "--part=epochs", "--epochs=2", on_orbax=first_on_orbax)
    resumed = EXAMPLE.run(str(tmp_path), "--part=epochs", on_orbax=not first_on_orbax)
    assert resumed.numbers(START) == [2]
    assert resumed.last(STATE) == on_orbax.last(STATE)
    assert {step.name for step in (tmp_path / "epochs").iterdir()} == {"2", "3"}


def test_a_run_that_was_killed_goes_on_and_ends_as_one_that_was_not(on_orbax: Printed, tmp_path: Path) -> None:
    killed = EXAMPLE.run_until("epochs: epoch 2", str(tmp_path), "--part=epochs")
    assert killed.code < 0
    resumed = EXAMPLE.run(str(tmp_path), "--part=epochs")
    # A save waits for the one before, and the one of epoch 2 had begun: that of epoch 1 was finished.
    assert resumed.numbers(START)[0] >= 2
    assert resumed.last(STATE) == on_orbax.last(STATE)
    assert {step.name for step in (tmp_path / "epochs").iterdir()} == {"2", "3"}
