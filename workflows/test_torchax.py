"""The training program of the article on Orbax with Torchax, run on ours: real PyTorch, real torchax, killed, resumed.

A run that was never interrupted, on the real Orbax, says what must come out.
"""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from conformance.servers.server import Server
from workflows.conftest import Directory, on_server
from workflows.programs import Printed, Program, needs

needs("torch", "torchax", "jax", "optax", "orbax")

TRAINING = "examples.torchax_training"
KEPT = {"step__200", "step__300", "step__400"}
SAVED, RESUMED, WEIGHTS = r"saved step (\d+)", r"resumed from step (\d+)", r"weights after 400 steps: (\w+)"


@pytest.fixture(scope="module")
def on_orbax(tmp_path_factory: pytest.TempPathFactory) -> Printed:
    """A run on the real Orbax, from start to end."""
    return Program(TRAINING).run(str(tmp_path_factory.mktemp("orbax") / "run"), on_orbax=True)


def test_it_prints_and_keeps_what_it_does_on_orbax(on_orbax: Printed, local: Directory) -> None:
    printed = Program(TRAINING).run(local.url)
    assert printed.text == on_orbax.text
    assert "steps kept: [200, 300, 400]\n" in printed.text
    assert local.names() == KEPT


@pytest.mark.parametrize(
    ("line", "delay"), [("saved step 200", 0), ("step 300: loss", 0.02)], ids=["between saves", "while saving"]
)
def test_killed_and_started_again_it_ends_with_the_same_weights(
    line: str, delay: float, on_orbax: Printed, directory: Directory
) -> None:
    program = Program(TRAINING, directory.environ)
    killed = program.run_until(line, directory.url, delay=delay)
    resumed = program.run(directory.url)
    assert resumed.numbers(RESUMED)[0] >= killed.numbers(SAVED)[-1]
    assert resumed.last(WEIGHTS) == on_orbax.last(WEIGHTS)
    assert "steps kept: [200, 300, 400]\n" in resumed.text
    assert directory.names() == KEPT


@pytest.mark.parametrize("first_on_orbax", [True, False], ids=["Orbax, then ours", "ours, then Orbax"])
def test_either_goes_on_with_a_run_of_the_other(first_on_orbax: bool, on_orbax: Printed, local: Directory) -> None:
    program = Program(TRAINING)
    program.run(local.url, "--steps=250", on_orbax=first_on_orbax)
    assert local.names() == {"step__100", "step__200"}
    resumed = program.run(local.url, on_orbax=not first_on_orbax)
    assert resumed.numbers(RESUMED) == [200]
    assert resumed.last(WEIGHTS) == on_orbax.last(WEIGHTS)
    assert local.names() == KEPT


def test_a_run_copied_from_the_object_store_goes_on_with_orbax(
    on_orbax: Printed, seaweedfs: Server, tmp_path: Path
) -> None:
    remote, local = on_server(seaweedfs), Directory(str(tmp_path / "run"))
    Program(TRAINING, remote.environ).run(remote.url, "--steps=250")
    filesystem, path = fsspec.url_to_fs(remote.url, **remote.storage_options)
    filesystem.get(path, local.url, recursive=True)
    resumed = Program(TRAINING).run(local.url, on_orbax=True)
    assert resumed.numbers(RESUMED) == [200]
    assert resumed.last(WEIGHTS) == on_orbax.last(WEIGHTS)
    assert local.names() == KEPT
