"""The object that a training loop holds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ocdbt_py.checkpoint.checkpoint import Checkpoint
from ocdbt_py.checkpoint.restore import restore
from ocdbt_py.errors import InvalidArgumentError, InvalidTypeError, NotFoundError, StructureError
from ocdbt_py.manager.manager import CheckpointManager
from ocdbt_py.manager.options import CheckpointManagerOptions
from ocdbt_py.manager.step_names import CompositeNames, StepNames


def test_a_loop_goes_on_where_it_stopped(tmp_path: Path) -> None:
    def loop(until: int) -> dict[str, Any]:
        options = CheckpointManagerOptions(max_to_keep=3, save_interval_steps=2)
        with CheckpointManager(tmp_path / "run", options, metadata={"seed": 1}) as manager:
            state: dict[str, Any] = {"w": np.zeros(4), "step": 0}
            latest = manager.latest_step()
            if latest is not None:
                state = manager.restore(latest, target=state)
            for step in range(state["step"], until):
                state["w"] += step
                state["step"] = step + 1
                manager.save(step, state, metrics={"loss": np.float32(1 / (step + 1))})
            assert manager.metadata == {"seed": 1}
        return state

    loop(6)
    with CheckpointManager(tmp_path / "run") as manager:
        assert manager.all_steps() == [0, 2, 4]
        assert manager.metrics(4) == {"loss": pytest.approx(0.2)}
    state = loop(11)
    np.testing.assert_equal(state, {"w": np.full(4, sum(range(11)), float), "step": 11})
    assert restore(tmp_path / "run" / "10")["step"] == 11


def test_what_is_saved_may_be_changed_at_once(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path) as manager:
        state = {"w": np.arange(1_000_000)}
        assert manager.save(1, state)
        state["w"][:] = -1
        np.testing.assert_equal(manager.restore(), {"w": np.arange(1_000_000)})


def test_several_items_are_kept_beside_each_other(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path, CheckpointManagerOptions(best_fn=lambda m: float(m["loss"]))) as manager:
        average = {"w": np.ones(3)}
        manager.save(
            1,
            {"w": np.zeros(3)},
            {"loss": 0.5},
            items={"average": average},
            json={"data": {"position": 17}},
            custom_metadata={"note": "first"},
        )
        found = manager.restore(1)
        np.testing.assert_equal(
            found,
            {
                "default": {"w": np.zeros(3)},
                "average": average,
                "data": {"position": 17},
                "metrics": {"loss": 0.5},
            },
        )
        assert manager.restore(1, item="data") == {"position": 17}
        np.testing.assert_equal(manager.restore(1, target=average, item="average"), average)
        checkpoint = manager.checkpoint(1)
        assert isinstance(checkpoint, Checkpoint)
        assert checkpoint.item_names() == ["average", "data", "default", "metrics"]
        info = manager.info(1)
        assert (info.custom_metadata, info.metrics, manager.best_step()) == ({"note": "first"}, {"loss": 0.5}, 1)


def test_items_without_a_default_one(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path) as manager:
        manager.save(1, items={"params": {"w": np.ones(3)}}, json={"data": [1]})
        np.testing.assert_equal(manager.restore(), {"w": np.ones(3)})
        assert manager.restore(item="data") == [1]


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"tree": {"w": 1}, "items": {"default": {"w": 1}}},
        {"items": {"a": {"w": 1}}, "json": {"a": 1}},
        {"tree": {"w": 1}, "json": {"metrics": 1}},
        {"tree": {"w": 1}, "items": {"a/b": {"w": 1}}},
        {"tree": {"w": 1}, "json": {"a": object()}},
        {"tree": {"w": 1}, "metrics": {"loss": object()}},
        {"tree": {"w": 1}, "custom_metadata": [1]},
    ],
)
def test_what_cannot_be_saved_is_refused_and_leaves_nothing(given: dict[str, Any], tmp_path: Path) -> None:
    with CheckpointManager(tmp_path) as manager:
        with pytest.raises(InvalidArgumentError):
            manager.save(1, **given)
        assert manager.all_steps() == []
        assert manager.save(1, {"w": 1})


def test_there_is_nothing_to_restore_at_first(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path) as manager:
        assert manager.latest_step() is None
        with pytest.raises(NotFoundError, match="no steps"):
            manager.restore()
        manager.save(1, {"w": 1})
        with pytest.raises(FileNotFoundError, match="it has 1"):
            manager.restore(2)
        with pytest.raises(StructureError):
            manager.restore(target={"v": 1})
        assert repr(manager) == f"<CheckpointManager {tmp_path}: 1 steps, the latest 1>"


def test_names_of_steps_can_be_chosen_and_changed(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path, CheckpointManagerOptions(step_prefix="ckpt")) as manager:
        manager.save(1, {"w": 1})
    assert (tmp_path / "ckpt_1" / "default" / "_METADATA").is_file()
    new = StepNames("ckpt", 4)
    options = CheckpointManagerOptions(step_name_format=CompositeNames(new, [new, StepNames("ckpt")]), max_to_keep=2)
    with CheckpointManager(tmp_path, options) as manager:
        manager.save(2, {"w": 2})
        assert (manager.all_steps(), manager.restore(1), manager.restore(2)) == ([1, 2], {"w": 1}, {"w": 2})
        manager.save(3, {"w": 3})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ckpt_0002", "ckpt_0003"]


def test_a_program_that_ends_without_close_loses_nothing_and_never_imports_jax(tmp_path: Path) -> None:
    program = """
import sys
import numpy as np
from ocdbt_py.manager.manager import CheckpointManager
manager = CheckpointManager(sys.argv[1])
for step in range(3):
    manager.save(step, {"w": np.full(1_000_000, step)})
assert not {"jax", "fsspec"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, timeout=60)
    with CheckpointManager(tmp_path) as manager:
        assert manager.all_steps() == [0, 1, 2]
        np.testing.assert_equal(manager.restore(), {"w": np.full(1_000_000, 2)})


def test_an_evaluator_reads_while_another_manager_saves(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path) as trainer:
        evaluator = CheckpointManager(tmp_path, CheckpointManagerOptions(read_only=True))
        trainer.save(1, {"w": 1})
        trainer.wait_until_finished()
        assert evaluator.latest_step() is None
        assert evaluator.restore(1) == {"w": 1}
        evaluator.reload()
        assert evaluator.latest_step() == 1
        assert not evaluator.save(2, {"w": 2})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"best_mode": "most"}, "'max' or 'min'"),
        ({"max_to_keep": -1}, "max_to_keep"),
        ({"save_interval_steps": 0}, "save_interval_steps"),
        ({"keep_period": 0}, "keep_period"),
        ({"preservation_policy": object()}, r"should_preserve\(\)"),
        ({"save_decision_policy": CheckpointManager}, r"should_save\(\)"),
        ({"step_name_format": object()}, "step_name_format"),
        ({"step_prefix": "a/b"}, "step_prefix"),
        ({"todelete_subdir": "../trash"}, "todelete_subdir"),
        ({"todelete_subdir": "7"}, "name of a step"),
        ({"compression": "lzma"}, "compression"),
        ({"zarr_format": 4}, "zarr_format"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        CheckpointManagerOptions(**given)


def test_options_that_would_have_no_effect_beside_a_policy_are_refused() -> None:
    from ocdbt_py.policies import LatestN

    for given in ({"max_to_keep": 1}, {"keep_period": 2}):
        with pytest.raises(InvalidArgumentError, match="alone what stays"):
            CheckpointManagerOptions(preservation_policy=LatestN(1), **given)  # type: ignore[arg-type]
    with pytest.raises(InvalidTypeError):
        CheckpointManagerOptions(preservation_policy=LatestN)  # type: ignore[arg-type]
