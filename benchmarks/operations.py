"""One operation of one side, by one process or several together; and the rounds in which sides take turns at it.

Every figure becomes one record of the benchmark's document: workload, operation, side, and by round the seconds, CPU
seconds and MiB at the peak. Every load is compared with the input bit for bit, outside the clock. What ocdbt_py has
saved is handed to two judges in the first round: TensorStore opens each array, and Orbax restores the whole.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.harness import READY, ExtraMemory, PrimedMemory, Ratio, Times, run_child, run_children
from benchmarks.sides import SIDES, Job, Side, prepare, read_pass, taking_part
from benchmarks.states import STATES, Values

__all__ = ["CHILD", "Figures", "Measurement", "Operation", "Runs", "child", "measured", "records", "rows", "verify"]

CHILD = "benchmarks.operations"
LOADS = ("load", "map")


# --- the child: one process of one side, one operation


def child(job: Job) -> None:
    with os.fdopen(os.dup(1), "w") as driver:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # libraries print there who has connected to whom
        if job.is_warm:
            warm_up(job)
        side = prepare(job)
        print(READY, file=driver, flush=True)
        sys.stdin.readline()
        print(json.dumps(measured(job, side)), file=driver, flush=True)
        sys.stdin.read()  # until all have answered: libraries do not like others to leave first
    os._exit(0)


def warm_up(job: Job) -> None:
    """Save and load three small arrays of the same dtype: what a library imports or sets up on first use is no part of
    the operation.
    """
    tiny = replace(job, state=f"small-3-{STATES[job.state].dtype}", path=f"{job.path}.warm-up")
    prepare(replace(tiny, operation="save")).operations["save"]()
    if job.operation != "save":
        if job.operation == "begin":
            shutil.rmtree(tiny.path)
        result = prepare(replace(tiny, operation=job.operation)).operations[job.operation]()
        if job.operation == "begin":
            result()
    shutil.rmtree(tiny.path)


def measured(job: Job, side: Side) -> dict[str, Any]:
    memory, spent = ExtraMemory(), time.process_time()
    began = time.monotonic()  # one clock for all processes of a machine
    result = side.operations[job.operation]()
    ended = time.monotonic()
    if job.operation == "begin":
        result()
    answer: dict[str, Any] = {
        "began": began,
        "ended": ended,
        "cpu": time.process_time() - spent,
        "extra_mib": memory.peak(),
    }
    if job.operation in LOADS:
        began = time.monotonic()
        read_pass(side.pieces(result))
        answer["pass"] = time.monotonic() - began
        answer["verified"] = verify(job, side, result)
    return answer


def verify(job: Job, side: Side, found: Any) -> int:
    """How many bytes are as they were saved; any that are not end the benchmark."""
    values = Values(STATES[job.state])
    seen = 0
    for name, start, bits in side.pieces(found):
        if bits.tobytes() != values.rows(name, start, start + len(bits)).tobytes():
            raise SystemExit(f"{job.side} loaded other values of {name}, from row {start} on")
        seen += bits.nbytes
    return seen


# --- the driver


@dataclass(frozen=True, slots=True)
class Operation:
    """What is timed, by how many processes, on how many shards."""

    title: str
    name: str
    sides: tuple[str, ...]
    count: int = 1
    shards: int = 1
    counts: Mapping[str, int] = field(default_factory=dict)
    """Of sides for which it is another one."""
    is_warm: bool = True
    """Whether a process has saved and loaded something small before; together with others it has not."""


@dataclass(slots=True)
class Runs:
    """One side's measurements of one operation, by round."""

    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    extra_mib: list[float] = field(default_factory=list)
    passes: list[float] = field(default_factory=list)
    stored: int = 0

    @property
    def times(self) -> Times:
        return Times(tuple(self.seconds))


Figures = dict[tuple[str, str, str], Runs]
"""By workload, operation's title, and side."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """A state, the sides that take part, and where they save."""

    workload: str
    state: str
    sides: Sequence[str]
    directory: Path
    memory: PrimedMemory
    durable: bool = True
    threads: int = 2

    def rounds(self, operations: Sequence[Operation], rounds: int, figures: Figures, *, warm: bool = True) -> None:
        """So many rounds that count, after one that fills the caches of all sides and does not, where ``warm``."""
        for number in range(0 if warm else 1, rounds + 1):
            print(f"{self.workload}: round {number} of {rounds}", file=sys.stderr)
            self.round(operations, figures if number else None, judged=number == (0 if warm else 1))

    def round(self, operations: Sequence[Operation], figures: Figures | None, *, judged: bool = False) -> None:
        """Every operation once, the sides in turn; into ``figures``, where the round counts."""
        for side in taking_part(list(self.sides), self.durable):
            judge = judged and side.startswith("ocdbt_py")
            for operation in operations:
                if side not in operation.sides:
                    continue
                path = self.directory / f"{side}{'' if operation.name != 'begin' else '-async'}"
                runs = Runs() if figures is None else figures.setdefault((self.workload, operation.title, side), Runs())
                self.run(operation, side, path, runs)
                runs.stored = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
                print(f"  {operation.title}, {SIDES[side].title}: {runs.seconds[-1]:.3f} s", file=sys.stderr)
                if judge and operation.name not in LOADS:
                    run_child("benchmarks.judges", [self.state, str(path)], PrimedMemory(0))
                    print("    TensorStore and Orbax read what was saved", file=sys.stderr)
            for path in self.directory.iterdir():
                shutil.rmtree(path)

    def run(self, operation: Operation, side: str, path: Path, runs: Runs) -> None:
        """Wall seconds from the first to begin to the last to end; CPU seconds and MiB of all processes."""
        count = operation.counts.get(side, operation.count)
        port = _free_port()
        jobs = [
            Job(
                side=side,
                operation=operation.name,
                state=self.state,
                path=str(path),
                shards=operation.shards,
                index=index,
                count=count,
                port=port,
                durable=self.durable,
                threads=self.threads,
                is_warm=operation.is_warm and count == 1,
            )
            for index in range(count)
        ]
        if not self.durable:
            os.sync()  # nobody pays for what another left to be written
        memory = self.memory.up_to(2 * STATES[self.state].nbytes // (1 << 20) + 128)
        files = path if operation.name in LOADS else None
        answers = run_children(CHILD, [[json.dumps(asdict(job))] for job in jobs], memory, files)
        verified = sum(answer.get("verified", 0) for answer in answers)
        if operation.name in LOADS and verified != STATES[self.state].nbytes:
            raise SystemExit(f"{side} loaded {verified} bytes of {STATES[self.state].nbytes}")
        runs.seconds.append(max(each["ended"] for each in answers) - min(each["began"] for each in answers))
        runs.cpu.append(sum(each["cpu"] for each in answers))
        runs.extra_mib.append(sum(each["extra_mib"] for each in answers))
        if operation.name in LOADS:
            runs.passes.append(max(each["pass"] for each in answers))


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
    return port


# --- what was found


def records(figures: Figures, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "workload": workload,
            "operation": title,
            "side": side,
            "seconds": runs.seconds,
            "cpu_seconds": runs.cpu,
            "extra_mib": runs.extra_mib,
            "pass_seconds": runs.passes,
            "stored_bytes": runs.stored,
            **settings,
        }
        for (workload, title, side), runs in figures.items()
    ]


HEADER = ["operation, side", "seconds, median [min..max]", "CPU s", "extra MiB", "MB stored", "ours is faster"]


def rows(figures: Figures) -> list[list[str]]:
    """Of the table that a benchmark prints; beside each side ocdbt_py's ratio to it, where it holds the same leaves."""
    found = []
    for (workload, title, side), runs in figures.items():
        mine = figures.get((workload, title, "ocdbt_py"))
        faster = "" if mine is None or side.startswith("ocdbt_py") else str(Ratio.between(runs.times, mine.times))
        cpu, extra = Times(tuple(runs.cpu)).median, Times(tuple(runs.extra_mib)).median
        found.append(
            [
                f"{workload}: {title:<29}  {SIDES[side].title}",
                str(runs.times),
                f"{cpu:.2f}",
                f"{extra:.0f}",
                f"{runs.stored / 1e6:.0f}",
                faster,
            ]
        )
    return found


if __name__ == "__main__":
    child(Job(**json.loads(sys.argv[1])))
