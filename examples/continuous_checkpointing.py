"""Save whenever the last save has ended, instead of every so many steps: what that changes, as a table and a plot.

    python -m examples.continuous_checkpointing [URL] [--svg FILE]

Training runs twice: once with ``FixedIntervalPolicy``, once with ``ContinuousCheckpointingPolicy``. Each time the store
is at first as fast as one expects, then slow, then fast. The fixed interval is the same throughout: while the store is
slow, training waits for it, and while it is fast, more work than necessary is at risk. The continuous one follows the
store. What stays of either run is the last three checkpoints, and one every half hour.

The checkpoints are real, on any URL: every save copies the arrays, which the next step overwrites, and writes them in a
thread. Time is not: steps of three seconds and saves of minutes pass in a moment, and all runs of this come out the
same. The store is as slow as the ``progress=`` callback that draws its bar; the manager takes a ``clock=``.

What a failure costs is arithmetic. What was done since the newest finished checkpoint *began* is lost: the age of a
checkpoint when it is finished already, and what comes on top until the next one is.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from examples.line_chart import Chart, Line, as_svg
from examples.slow_store import Clock, SlowStore
from ocdbt_py import CheckpointManager, CheckpointManagerOptions
from ocdbt_py.policies import (
    AnyPreservationPolicy,
    ContinuousCheckpointingPolicy,
    EveryNSeconds,
    FixedIntervalPolicy,
    LatestN,
    SaveDecisionPolicy,
)

STEP_SECONDS = 3.0
SLOWDOWN = 1.05
"""A step takes so many times as long while a save is under way: it shares the machine's memory and network."""

RESTART_SECONDS = 180.0
"""Until a job that failed trains again, apart from the work that it has to do again."""

MTBF_OF_A_NODE = 5 * 365 * 24 * 3600.0
"""Seconds between its failures; of a job on many nodes any that fails ends it."""

NODES = (64, 256, 1024, 4096, 16384)
LAYERS, WEIGHTS = 8, 16384
MINUTE, HOUR = 60.0, 3600.0


@dataclass(frozen=True, slots=True)
class Phase:
    """So many steps, during which a save takes so long."""

    name: str
    steps: int
    save_seconds: float


def phases(steps: int) -> list[Phase]:
    return [Phase("normal", steps, 147.0), Phase("slow", steps, 400.0), Phase("fast", steps, 20.0)]


# --- the training


def new_state() -> dict[str, Any]:
    return {"layers": [np.arange(WEIGHTS, dtype=np.float32) + i for i in range(LAYERS)], "step": 0}


def train(state: dict[str, Any], step: int) -> None:
    """In place, as an optimizer that saves memory would."""
    for weights in state["layers"]:
        weights += 1
    state["step"] = step


def is_state_of(step: int, state: dict[str, Any]) -> bool:
    expected = new_state()["layers"]
    pairs = zip(state["layers"], expected, strict=True)
    return state["step"] == step and all(np.array_equal(found, weights + step) for found, weights in pairs)


@dataclass(frozen=True, slots=True)
class Save:
    """A save of a run; moments in seconds from its beginning."""

    step: int
    phase: str
    began: float
    ended: float
    waited: float
    """Simulated seconds that training waited for the save before."""
    blocked: float
    """Real seconds that the call took."""


@dataclass(slots=True)
class Run:
    """What a run came to."""

    name: str
    saves: list[Save] = field(default_factory=list)
    phase_ends: dict[str, float] = field(default_factory=dict)
    steps: int = 0

    @property
    def seconds(self) -> float:
        return list(self.phase_ends.values())[-1]

    def intervals(self, phase: str) -> list[int]:
        """Steps between one save and the next, where the next was in this phase."""
        pairs = zip(self.saves, self.saves[1:], strict=False)
        return [after.step - before.step for before, after in pairs if after.phase == phase]

    def span(self, phase: str) -> tuple[float, float]:
        """From when to when a phase lasted."""
        names = list(self.phase_ends)
        before = names.index(phase) - 1
        return (self.phase_ends[names[before]] if before >= 0 else 0.0), self.phase_ends[phase]


def run(
    name: str, manager: CheckpointManager, plan: Sequence[Phase], clock: Clock, store: SlowStore, bars: Progress
) -> Run:
    """A training run. Where time is real, all that is here of saving is ``manager.save(step, state)``."""
    found = Run(name)
    state = new_state()
    start = clock.time()
    bar = bars.add_task(name, total=sum(phase.steps for phase in plan))
    try:
        for phase in plan:
            for _ in range(phase.steps):
                found.steps += 1
                train(state, found.steps)
                clock.pass_until(clock.time() + STEP_SECONDS * (SLOWDOWN if store.is_busy else 1.0))
                if not store.is_busy:
                    manager.wait_until_finished()  # it has ended, in simulated time
                if manager.should_save(found.steps):
                    found.saves.append(save(manager, found.steps, state, phase, clock, store, start))
                bars.advance(bar)
            found.phase_ends[phase.name] = clock.time() - start
    finally:
        store.release()
    manager.wait_until_finished()
    return found


def save(
    manager: CheckpointManager,
    step: int,
    state: dict[str, Any],
    phase: Phase,
    clock: Clock,
    store: SlowStore,
    start: float,
) -> Save:
    """``manager.save(step, state)``, and what it took."""
    due = clock.time()
    clock.pass_until(store.busy_until)  # it waits for the save before; here time has to be told
    manager.wait_until_finished()
    store.prepare()
    called = time.perf_counter()
    manager.save(step, state)
    blocked = time.perf_counter() - called
    store.begin(phase.save_seconds)
    began = clock.time()
    return Save(step, phase.name, began - start, store.busy_until - start, began - due, blocked)


# --- the arithmetic


@dataclass(frozen=True, slots=True)
class Lost:
    """Work that a failure costs, in seconds: if it comes at any moment alike, and at the worst."""

    mean: float
    worst: float


def lost_work(saves: Sequence[Save], start: float, end: float) -> Lost:
    """What a failure between two moments of a run costs: all since the newest finished checkpoint began."""
    moments = [(0.0, 0.0), *((save.began, save.ended) for save in saves)]  # the initial state is there from the start
    total = worst = 0.0
    for i, (began, ended) in enumerate(moments):
        next_one = moments[i + 1][1] if i + 1 < len(moments) else end
        first, last = max(ended, start), min(next_one, end)
        if first < last:
            total += ((last - began) ** 2 - (first - began) ** 2) / 2
            worst = max(worst, last - began)
    return Lost(total / (end - start), worst)


def cost(run: Run, mtbf: float, phase: Phase | None = None) -> float:
    """Part of the time, of a phase or all of it, that is no progress where something fails every ``mtbf`` seconds:
    saving (waiting, and slower steps), work done again, starting again."""
    start, end = (0.0, run.seconds) if phase is None else run.span(phase.name)
    steps = run.steps if phase is None else phase.steps
    saving = 1 - steps * STEP_SECONDS / (end - start)
    return saving + (lost_work(run.saves, start, end).mean + RESTART_SECONDS) / mtbf


# --- what is shown


def policy_table(runs: Sequence[Run], plan: Sequence[Phase]) -> Table:
    title = f"Simulated time, but for the last column; a step takes {STEP_SECONDS:g} s"
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1))
    for heading in ("store", "policy"):
        table.add_column(heading, no_wrap=True)
    for heading in (
        "a save\ntakes, s",
        "saves",
        "P50 of the\ninterval,\nsteps",
        "waited,\ns",
        "lost, min:\nmean, worst",
        "P50 of\nsave(),\nms",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for phase in plan:
        for run in runs:
            saves = [save for save in run.saves if save.phase == phase.name]
            lost = lost_work(run.saves, *run.span(phase.name))
            intervals = run.intervals(phase.name)
            table.add_row(
                phase.name,
                run.name,
                f"{phase.save_seconds:g}",
                str(len(saves)),
                f"{statistics.median(intervals):g}" if intervals else "",
                f"{sum(save.waited for save in saves):.0f}",
                f"{lost.mean / MINUTE:.1f}, {lost.worst / MINUTE:.1f}",
                f"{statistics.median(save.blocked for save in saves) * 1e3:.1f}" if saves else "",
            )
    return table


def mtbf_table(runs: Sequence[Run], plan: Sequence[Phase]) -> Table:
    names = " / ".join(run.name for run in runs)
    title = f"Percent of the time that is no progress (saving, restarts, work done again): {names}"
    table = Table(title=title, box=box.SIMPLE)
    for heading in ("nodes", "failure every", *(phase.name for phase in plan), "all"):
        table.add_column(heading, justify="right")
    for nodes in NODES:
        mtbf = MTBF_OF_A_NODE / nodes
        cells = [" / ".join(f"{cost(run, mtbf, phase) * 100:.1f}" for run in runs) for phase in (*plan, None)]
        table.add_row(f"{nodes:,}", f"{mtbf / HOUR:.1f} h", *cells)
    return table


COLORS = ("#d62728", "#1f77b4")


def charts(runs: Sequence[Run], plan: Sequence[Phase]) -> list[Chart]:
    takes = [
        (moment / HOUR, phase.save_seconds / STEP_SECONDS) for phase in plan for moment in runs[-1].span(phase.name)
    ]
    intervals = [Line("a save takes", "#888", takes, is_dashed=True)]
    lost = []
    for run, color in zip(runs, COLORS, strict=True):
        pairs = zip(run.saves, run.saves[1:], strict=False)
        steps = [(after.began / HOUR, float(after.step - before.step)) for before, after in pairs]
        intervals.append(Line(run.name, color, steps))
        saw = [(0.0, 0.0)]
        before = 0.0
        for save in run.saves:
            if save.ended <= run.seconds:
                saw += [(save.ended / HOUR, (save.ended - each) / MINUTE) for each in (before, save.began)]
                before = save.began
        lost.append(Line(run.name, color, [*saw, (run.seconds / HOUR, (run.seconds - before) / MINUTE)]))
    return [
        Chart("Interval between saves", "hours", "steps", intervals),
        Chart("Work that a failure would cost at this moment", "hours", "minutes", lost),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("url", nargs="?", help="where to save, any URL (default: a temporary directory)")
    parser.add_argument("--steps", type=int, default=1000, help="of each of the three phases")
    parser.add_argument("--interval", type=int, default=100, help="the fixed one, in steps")
    parser.add_argument("--minimum", type=float, default=30.0, help="seconds between saves at least, continuously")
    parser.add_argument("--svg", metavar="FILE", help="write the plot there")
    parser.add_argument("--storage-options", type=json.loads, metavar="JSON", help="for fsspec")
    chosen = parser.parse_args(arguments)
    policies: dict[str, SaveDecisionPolicy] = {
        "fixed": FixedIntervalPolicy(chosen.interval),
        "continuous": ContinuousCheckpointingPolicy(minimum_interval_secs=chosen.minimum),
    }
    plan = phases(chosen.steps)
    runs, verdicts = [], []
    with ExitStack() as stack:
        url = chosen.url or stack.enter_context(tempfile.TemporaryDirectory())
        for name, policy in policies.items():
            with shown_bars() as bars:
                clock = Clock()
                store = SlowStore(clock, bars)
                options = CheckpointManagerOptions(
                    save_decision_policy=policy,
                    preservation_policy=AnyPreservationPolicy([EveryNSeconds(1800), LatestN(3)]),
                    progress=store,
                )
                place = f"{url.rstrip('/')}/{name}"
                with CheckpointManager(place, options, clock=clock, storage_options=chosen.storage_options) as manager:
                    if manager.all_steps():
                        parser.error(f"{place} holds a run already; choose another URL")
                    runs.append(run(name, manager, plan, clock, store, bars))
            with CheckpointManager(place, storage_options=chosen.storage_options) as resumed:
                step = resumed.latest_step()
                is_right = step == runs[-1].saves[-1].step and is_state_of(step, resumed.restore())
                verdicts.append(is_right)
                kept = ", ".join(map(str, resumed.all_steps()))
                print(f"{name}: kept steps {kept}; step {step} restored {'identical' if is_right else 'DIFFERENT'}")
    print(
        f"fixed: every {chosen.interval} steps; continuous: when the save before has ended, {chosen.minimum:g} s apart"
    )
    console = Console(highlight=False)
    console.print(policy_table(runs, plan))
    console.print(mtbf_table(runs, plan))
    if chosen.svg:
        Path(chosen.svg).write_text(as_svg(charts(runs, plan)), encoding="utf-8")
    return 0 if all(verdicts) else 1


def shown_bars() -> Progress:
    columns = TextColumn("{task.description:<16}"), BarColumn(), TextColumn("{task.completed:,.0f}")
    return Progress(*columns, console=Console(stderr=True), transient=True)


if __name__ == "__main__":
    sys.exit(main())
