"""``v1.training.Checkpointer`` without JAX: steps, policies, metrics, deletion."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ocdbt_py.interop.orbax import v1
from ocdbt_py.interop.orbax.v1.errors import NoEntryError
from ocdbt_py.interop.orbax.v1.training.errors import StepAlreadyExistsError, StepNotFoundError

Checkpointer = v1.training.Checkpointer
policies = v1.training.save_decision_policies
keeping = v1.training.preservation_policies


def steps(root: Path) -> list[int]:
    return sorted(int(step.name) for step in root.iterdir() if step.name.isdigit())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


def test_steps_are_plain_numbers_whose_items_lie_below(root: Path) -> None:
    with Checkpointer(root) as checkpointer:
        assert checkpointer.latest is None
        assert checkpointer.save(3, {"a": np.ones(2)}, metrics={"loss": 0.5}, custom_metadata={"run": 7})
    assert {path.name for path in (root / "3").iterdir()} == {
        "_CHECKPOINT_METADATA",
        "commit_success.txt",
        "metrics",
        "state",
    }
    assert json.loads((root / "3/metrics/metrics").read_text()) == {"loss": 0.5}
    handlers = json.loads((root / "3/_CHECKPOINT_METADATA").read_text())["item_handlers"]
    assert handlers["metrics"] == "orbax.checkpoint.experimental.v1._src.handlers.json_handler.MetricsHandler"


def test_what_was_saved_is_known_and_loaded_by_the_next_run(root: Path) -> None:
    with Checkpointer(root, custom_metadata={"project": "x"}) as checkpointer:
        checkpointer.save(1, {"a": 1}, metrics={"loss": 2.0}, custom_metadata={"c": 1})
        checkpointer.save_checkpointables(5, {"params": {"w": np.ones(2)}, "config": {"n": "x"}})
    checkpointer = Checkpointer(root)
    assert [(known.step, known.metrics) for known in checkpointer.checkpoints] == [(1, {"loss": 2.0}), (5, None)]
    assert checkpointer.latest is not None
    assert checkpointer.latest.step == 5
    assert str(checkpointer.latest.path) == str(root / "5")
    assert checkpointer.load(1) == checkpointer.load(checkpointer.checkpoints[0]) == {"a": 1}
    np.testing.assert_equal(checkpointer.load_checkpointables()["params"], {"w": np.ones(2)})
    assert checkpointer.load_checkpointables(5, {"config": None}) == {"config": {"n": "x"}}
    described = checkpointer.metadata(1)
    assert (described.step, described.metadata, described.metrics, described.custom_metadata) == (
        1,
        {"a": 0},
        {"loss": 2.0},
        {"c": 1},
    )
    assert checkpointer.checkpointables_metadata().metadata.keys() == {"params", "config"}
    assert checkpointer.root_metadata().custom_metadata == {"project": "x"}


def test_a_step_that_is_not_there_is_a_file_not_found_error(root: Path) -> None:
    checkpointer = Checkpointer(root)
    for call in (checkpointer.load, checkpointer.metadata, checkpointer.load_checkpointables):
        with pytest.raises(StepNotFoundError, match="no steps"):
            call()
        with pytest.raises(FileNotFoundError):
            call(7)
    checkpointer.save(1, {"a": 1})
    with pytest.raises(KeyError, match="no 'other'"):
        checkpointer.load(1, checkpointable_name="other")
    with pytest.raises(NoEntryError):
        checkpointer.load(1, {"b": 1})


def test_policies_decide_what_is_saved_and_what_stays(root: Path) -> None:
    saved = []
    with Checkpointer(
        root,
        save_decision_policy=policies.FixedIntervalPolicy(2),
        preservation_policy=keeping.AnyPreservationPolicy([keeping.LatestN(2), keeping.EveryNSteps(6)]),
    ) as checkpointer:
        for step in range(1, 13):
            assert checkpointer.should_save(step) is (step % 2 == 0)
            if checkpointer.save(step, {"step": step}):
                saved.append(step)
    assert saved == [2, 4, 6, 8, 10, 12]
    assert steps(root) == [6, 10, 12]


def test_best_steps_stay_by_their_metrics_over_a_restart(root: Path) -> None:
    losses = {1: 3.0, 2: 1.0, 3: 2.0, 4: 4.0}
    best = keeping.BestN(get_metric_fn=lambda metrics: metrics["loss"], reverse=True, n=2)
    for step, loss in losses.items():
        with Checkpointer(
            root, save_decision_policy=policies.FixedIntervalPolicy(1), preservation_policy=best
        ) as checkpointer:
            assert checkpointer.save(step, {"a": step}, metrics={"loss": loss})
    assert steps(root) == [2, 3]


def test_a_step_is_saved_twice_only_when_asked(root: Path) -> None:
    checkpointer = Checkpointer(root)
    checkpointer.save(1, {"a": 1})
    checkpointer.save(2, {"a": 2})
    for force in (False, True):
        with pytest.raises(StepAlreadyExistsError) as caught:
            checkpointer.save(2, {"a": 3}, force=force)
        assert isinstance(caught.value, FileExistsError)
    assert checkpointer.save(1, {"a": 4}, overwrite=True)
    assert checkpointer.save(2, {"a": 5}, overwrite=True)
    assert (checkpointer.load(1), checkpointer.load(2)) == ({"a": 4}, {"a": 5})


def test_an_overwrite_that_fails_leaves_the_step_as_it_was(root: Path) -> None:
    checkpointer = Checkpointer(root)
    checkpointer.save(1, {"a": 1})
    with pytest.raises(ValueError, match="of type object"):
        checkpointer.save(1, {"a": object()}, overwrite=True)
    assert Checkpointer(root).load(1) == {"a": 1}


def test_a_save_in_the_background_answers_true_and_what_is_closed_can_go_on(root: Path) -> None:
    checkpointer = Checkpointer(root, save_decision_policy=policies.FixedIntervalPolicy(1))
    responses = [checkpointer.save_async(step, {"a": step}) for step in (1, 2)]
    checkpointer.close()
    assert not checkpointer.is_saving_in_progress()
    assert [response.result() for response in responses if response is not None] == [True, True]
    last = checkpointer.save_checkpointables_async(3, {"state": {"a": 3}})
    assert last is not None
    assert last.result()
    checkpointer.wait()
    assert steps(root) == [1, 2, 3]


def test_steps_and_their_items_are_deleted(root: Path) -> None:
    checkpointer = Checkpointer(root)
    checkpointer.save_checkpointables(1, {"a": {"x": 1}, "b": {"x": 2}})
    checkpointer.save(2, {"x": 3})
    assert checkpointer.delete(1, checkpointable_name="a")
    assert checkpointer.load_checkpointables(1) == {"b": {"x": 2}}
    with pytest.raises(ValueError, match="all there is"):
        checkpointer.delete(1, checkpointable_name="b")
    with pytest.raises(FileNotFoundError):
        checkpointer.delete(1, checkpointable_name="a")
    assert checkpointer.delete_async(1).result()
    assert steps(root) == [2]
    with pytest.raises(StepNotFoundError):
        checkpointer.delete(1)
    assert not checkpointer.delete(1, missing_ok=True)
    assert not checkpointer.delete(1, missing_ok=True, checkpointable_name="a")


def test_steps_of_another_process_appear_after_a_reload(root: Path) -> None:
    first, second = Checkpointer(root), Checkpointer(root)
    first.save(1, {"a": 1})
    assert second.latest is None
    second.reload()
    assert second.latest is not None
    assert second.load() == {"a": 1}


def test_the_options_of_the_checkpointer_hold_where_no_block_has_others(root: Path) -> None:
    def format_of(step: int) -> Any:
        return json.loads((root / str(step) / "state/_METADATA").read_text())["use_zarr3"]

    context = v1.Context()
    context.array.saving.use_zarr3 = False
    checkpointer = Checkpointer(root, context=context)
    checkpointer.save(1, {"w": np.ones(2)})
    with v1.Context():
        checkpointer.save(2, {"w": np.ones(2)})
    assert (format_of(1), format_of(2)) == (False, True)


def test_the_callback_of_a_context_is_called_once_a_step_is_there(root: Path) -> None:
    seen: list[list[int]] = []
    context = v1.Context()
    context.asynchronous.post_finalization_callback = lambda: seen.append(steps(root))
    with Checkpointer(root, context=context) as checkpointer:
        checkpointer.save(1, {"a": 1})
    assert seen == [[1]]


def test_a_step_is_a_whole_number(root: Path) -> None:
    checkpointer = Checkpointer(root)
    for step in (1.5, True, -1, "1"):
        with pytest.raises(ValueError, match=r"[Ss]tep"):
            checkpointer.save(step, {"a": 1})  # type: ignore[arg-type]
    assert checkpointer.save(np.int64(1), {"a": 1})  # type: ignore[arg-type]


def test_steps_have_the_names_that_were_chosen(root: Path) -> None:
    names = v1.path.step.standard_name_format(step_prefix="at", step_format_fixed_length=4)
    with Checkpointer(root, step_name_format=names) as checkpointer:
        checkpointer.save(7, {"a": 1})
    assert {path.name for path in root.iterdir()} == {"at_0007"}
    found = Checkpointer(root, step_name_format=names).latest
    assert found is not None
    assert (found.step, str(found.path)) == (7, str(root / "at_0007"))


def test_a_root_may_be_any_url() -> None:
    url = "memory://v1-training/root"
    with Checkpointer(
        url,
        save_decision_policy=policies.FixedIntervalPolicy(1),
        preservation_policy=keeping.LatestN(2),
        custom_metadata={"by": "us"},
    ) as checkpointer:
        for step in range(4):
            assert checkpointer.save(step, {"a": step}, metrics={"m": step})
    found = Checkpointer(url)
    assert [(known.step, known.metrics) for known in found.checkpoints] == [(2, {"m": 2}), (3, {"m": 3})]
    assert (found.load(), found.load(2)) == ({"a": 3}, {"a": 2})
    assert found.root_metadata().custom_metadata == {"by": "us"}
    assert str(found.directory).startswith("memory://")
