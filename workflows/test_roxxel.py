"""Roxxel's ``Checkpointer``, as its package has it, runs on ours, and a process that ends without a wait loses nothing.

A run on the real Orbax, whose manager is closed for it, says what must come out.
"""

from __future__ import annotations

import heapq
from pathlib import Path

import pytest

from workflows.conftest import Directory
from workflows.programs import Printed, Program, needs

needs("roxxel", "flax", "optax", "orbax")

TRAINING, TRAINER = "examples.roxxel_training", "workflows.roxxel_trainer"
START, STATE = r"start at step (\d+)", r"state after 400 steps: (\w+)"


@pytest.fixture(scope="module")
def on_orbax(tmp_path_factory: pytest.TempPathFactory) -> Printed:
    """A run on the real Orbax, from start to end."""
    return Program(TRAINING).run(str(tmp_path_factory.mktemp("orbax") / "run"), on_orbax=True)


def best(printed: Printed) -> set[str]:
    """The names of the three steps with the lowest losses."""
    losses = {step: float(loss) for step, loss in printed.pairs(r"save of step (\d+): loss (\S+)")}
    return set(heapq.nsmallest(3, losses, key=lambda step: losses[step]))


def test_the_steps_with_the_lowest_losses_are_kept_as_on_orbax(on_orbax: Printed, directory: Directory) -> None:
    printed = Program(TRAINING, directory.environ).run(directory.url)
    assert printed.text == on_orbax.text
    assert best(printed) == {"250", "300", "350"}, "the last step is not among them, and is deleted once it is saved"
    assert directory.names() == best(printed)


def test_the_save_that_is_in_flight_when_the_process_ends_is_there(directory: Directory) -> None:
    printed = Program(TRAINING, directory.environ).run(directory.url, "--steps=300")
    assert "300" in best(printed)
    assert directory.names() == best(printed)


def test_model_and_optimizer_go_on_from_a_template(on_orbax: Printed, directory: Directory) -> None:
    program = Program(TRAINING, directory.environ)
    program.run(directory.url, "--steps=300")
    resumed = program.run(directory.url)
    assert resumed.numbers(START) == [300]
    assert resumed.last(STATE) == on_orbax.last(STATE)
    assert directory.names() == best(on_orbax)


def test_a_run_that_was_killed_goes_on_from_the_last_step_that_was_finished(
    on_orbax: Printed, directory: Directory
) -> None:
    program = Program(TRAINING, directory.environ)
    program.run_until("save of step 300", directory.url)
    resumed = program.run(directory.url)
    # A save that has begun ends the wait for the one before, and that was one of the best three so far.
    assert resumed.numbers(START)[0] >= 250
    assert resumed.last(STATE) == on_orbax.last(STATE)
    assert directory.names() == best(on_orbax)


@pytest.mark.parametrize("first_on_orbax", [True, False], ids=["Orbax, then ours", "ours, then Orbax"])
def test_either_goes_on_with_a_run_of_the_other(first_on_orbax: bool, on_orbax: Printed, local: Directory) -> None:
    program = Program(TRAINING)
    program.run(local.url, "--steps=250", on_orbax=first_on_orbax)
    assert local.names() == {"100", "200", "250"}
    resumed = program.run(local.url, on_orbax=not first_on_orbax)
    assert resumed.numbers(START) == [250]
    assert resumed.last(STATE) == on_orbax.last(STATE)
    assert local.names() == best(on_orbax)


def test_roxxels_trainer_runs_and_goes_on_as_on_orbax(tmp_path: Path) -> None:
    trainer = Program(TRAINER)
    wanted = trainer.run(str(tmp_path / "orbax"), "200", on_orbax=True)
    first = trainer.run(str(tmp_path / "ours"), "100")
    assert first.last(r"steps: (.*)") == "[60, 80, 100]"
    resumed = trainer.run(str(tmp_path / "ours"), "200")
    assert "Resuming at global step 100" in resumed.text
    assert wanted.text.endswith("".join(resumed.text.splitlines(keepends=True)[-2:]))
    assert resumed.last(r"steps: (.*)") == "[140, 160, 200]"
    assert resumed.pairs(r"S(\d+) \| Loss: (\S+)") == wanted.pairs(r"S(\d+) \| Loss: (\S+)")[5:]
