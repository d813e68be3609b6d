"""The continuous checkpointing example: its time is simulated, so its figures are exact."""

from __future__ import annotations

import statistics
import uuid
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.progress import Progress

from examples.continuous_checkpointing import (
    Phase,
    Run,
    Save,
    charts,
    cost,
    is_state_of,
    lost_work,
    main,
    new_state,
    run,
    shown_bars,
    train,
)
from examples.line_chart import Chart, Line, as_svg, ticks
from examples.slow_store import Clock, SlowStore
from ocdbt_py import CheckpointManager, CheckpointManagerOptions
from ocdbt_py.policies import ContinuousCheckpointingPolicy, FixedIntervalPolicy, SaveDecisionPolicy

PLAN = [Phase("normal", 40, 30.0), Phase("slow", 60, 90.0), Phase("fast", 40, 6.0)]


def trained(policy: SaveDecisionPolicy, plan: list[Phase] = PLAN) -> Run:
    clock = Clock()
    bars = shown_bars()
    store = SlowStore(clock, bars)
    options = CheckpointManagerOptions(save_decision_policy=policy, progress=store)
    with CheckpointManager(f"memory://continuous-{uuid.uuid4().hex}", options, clock=clock) as manager:
        found = run("run", manager, plan, clock, store, bars)
        assert manager.all_steps() == [save.step for save in found.saves]
    return found


def a_save(began: float, ended: float, step: int = 1) -> Save:
    return Save(step, "normal", began, ended, 0.0, 0.0)


def test_the_interval_in_steps_follows_the_time_that_a_save_takes() -> None:
    found = trained(ContinuousCheckpointingPolicy())
    # a step of 3 s takes 3.15 s beside a save
    assert {phase.name: statistics.median(found.intervals(phase.name)) for phase in PLAN} == {
        "normal": 10,
        "slow": 29,
        "fast": 2,
    }
    assert sum(each.waited for each in found.saves) == 0


def test_the_minimum_interval_holds_where_saves_are_faster() -> None:
    found = trained(ContinuousCheckpointingPolicy(minimum_interval_secs=30), [Phase("fast", 60, 6.0)])
    assert set(found.intervals("fast")) == {10}


def test_a_fixed_interval_waits_for_a_slow_store() -> None:
    found = trained(FixedIntervalPolicy(20))
    assert [each.step for each in found.saves] == [20, 40, 60, 80, 100, 120, 140]
    waited = {phase.name: sum(each.waited for each in found.saves if each.phase == phase.name) for phase in PLAN}
    assert waited["normal"] == 0
    # 20 steps of 3.15 s pass while a save of 90 s is under way: it is waited for at steps 80, 100 and 120
    assert waited["slow"] == pytest.approx(2 * (90 - 20 * 3.15))
    assert waited["fast"] == pytest.approx(90 - 20 * 3.15)
    assert all(before.ended <= after.began + 1e-6 for before, after in zip(found.saves, found.saves[1:], strict=False))


def test_what_is_lost_began_with_the_newest_finished_checkpoint() -> None:
    # without a checkpoint all is lost: half of the time on average
    assert (lost_work([], 0, 100).mean, lost_work([], 0, 100).worst) == (50, 100)
    # until 20 since the start, from then on since 10
    lost = lost_work([a_save(10, 20)], 0, 40)
    assert lost.mean == pytest.approx((20 * 10 + 20 * 20) / 40)
    assert lost.worst == 30
    # saves back to back, each of 10 s: their age when finished, and half an interval
    many = [a_save(10 * i, 10 * i + 10, i) for i in range(100)]
    assert lost_work(many, 500, 900).mean == pytest.approx(15)
    # one that has not ended before the failure does not count
    assert lost_work([a_save(10, 200)], 0, 40).worst == 40


def test_what_failures_cost_falls_with_their_number() -> None:
    found = trained(ContinuousCheckpointingPolicy())
    assert cost(found, 1e4) > cost(found, 1e5) > cost(found, 1e12)
    saving = 1 - found.steps * 3 / found.seconds
    assert cost(found, 1e12) == pytest.approx(saving, abs=1e-6)
    assert 0 < saving <= 0.05


def test_an_error_in_the_loop_does_not_leave_a_save_waiting_for_it() -> None:
    clock, bars = Clock(), shown_bars()
    store = SlowStore(clock, bars)
    options = CheckpointManagerOptions(save_decision_policy=FixedIntervalPolicy(5), progress=store)
    plan = [Phase("normal", 6, 30.0), Phase("half a step", 2.5, 30.0)]  # type: ignore[arg-type]
    url = f"memory://continuous-{uuid.uuid4().hex}"
    manager = CheckpointManager(url, options, clock=clock)
    with pytest.raises(TypeError):
        run("run", manager, plan, clock, store, bars)
    manager.close()
    assert CheckpointManager(url).all_steps() == [5]


def test_a_state_of_another_step_is_recognised() -> None:
    state = new_state()
    for step in (1, 2, 3):
        train(state, step)
    assert is_state_of(3, state)
    assert not is_state_of(2, state)
    state["layers"][1][5] += 1
    assert not is_state_of(3, state)


def test_it_runs_on_a_local_disk_and_draws_a_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "plot.svg"
    arguments = [str(tmp_path / "runs"), "--steps", "70", "--interval", "20", "--svg", str(plot)]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert shown.count("restored identical") == 2
    assert "P50" in shown
    assert {path.name for path in (tmp_path / "runs" / "fixed").iterdir()} >= {"180", "200"}
    lines = [each for each in ElementTree.parse(plot).iter() if each.tag.endswith("polyline")]
    assert len(lines) == 5


def test_it_runs_on_any_url_but_not_twice(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [f"memory://continuous-{uuid.uuid4().hex}", "--steps", "25", "--interval", "10"]
    assert main(arguments) == 0
    assert capsys.readouterr().out.count("restored identical") == 2
    with pytest.raises(SystemExit):
        main(arguments)
    assert "holds a run already" in capsys.readouterr().err


def test_a_run_of_few_saves_can_be_drawn() -> None:
    found = trained(FixedIntervalPolicy(20), [Phase("normal", 20, 5.0)])
    ElementTree.fromstring(as_svg(charts([found, found], [Phase("normal", 20, 5.0)])))


def test_ticks_are_round_and_reach_the_end() -> None:
    assert ticks(0.9) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(134) == [0, 50, 100, 150]
    assert ticks(6) == [0, 1, 2, 3, 4, 5, 6]
    assert ticks(0) == [0, 1]


def test_labels_of_a_chart_are_escaped() -> None:
    drawn = as_svg([Chart("a < b & c", "x", "y", [Line("<line>", "#000", [(0, 0), (1, 2)])])])
    texts = [each.text for each in ElementTree.fromstring(drawn).iter() if each.tag.endswith("text")]
    assert "a < b & c" in texts
    assert "<line>" in texts


def test_bars_show_how_far_a_save_is() -> None:
    clock, bars = Clock(), Progress(disable=True)
    store = SlowStore(clock, bars)
    store.prepare()
    store.begin(0.0)
    store.set_size(10)
    store.relative_update(4)
    assert [(task.completed, task.total) for task in bars.tasks] == [(4, 10)]
