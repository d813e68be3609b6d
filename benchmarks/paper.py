"""Orbax's paper, scaled to this machine: ``python -m benchmarks.paper [--quick] [--rounds N] [--json FILE]``.

"Orbax: Distributed Checkpointing with JAX" (arXiv 2605.23066) states up to 3.5x faster saving and 2x faster loading
than comparable tools for PyTorch. Here are both sides of that claim, and ``ocdbt_py``, on one model state: Llama 3.1 8B
with a sixteenth of its parameters (``--quick``: a 256th), 291 leaves of bfloat16, cut into 4 shards along the first
axis, as ``fsdp`` does. It is saved and loaded

* by one process (of JAX: on 4 virtual devices), synchronously and asynchronously (until the call returns),
* by 4 processes that write one checkpoint: those of JAX after ``jax.distributed``, ocdbt_py's meeting through files,
  torch's through gloo on loopback,
* resharded: what the 4 processes saved, on 1, 2 and 16 devices of one process; by DCP in 1 process and in 2.

Equal on all sides: the same bits; fsync before a save has ended (``--no-fsync``: nowhere; Orbax takes no part then, for
it always does); imports and building the input are outside the clock. Every load is compared with the input bit for
bit. What is not installed is left out, with a word. Ratios are of medians, with those of single rounds beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.harness import (
    READY,
    PrimedMemory,
    Ratio,
    Times,
    machine,
    print_table,
    run_children,
    write_json,
    write_markdown,
)
from benchmarks.model_state import MODELS, Values
from benchmarks.paper_sides import SIDES, Job, Side

FULL, QUICK = "llama8b-1/16", "llama8b-1/256"
OURS, PEER = "ocdbt_py", "dcp"
SHARDS = 4

TITLES = {
    "ocdbt_py": "ocdbt_py",
    "ocdbt_py-mapped": "ocdbt_py, NumPy, mapped",
    "orbax": "Orbax",
    "orbax-raw": "Orbax, uncompressed",
    "dcp": "torch DCP",
    "torch.save": "torch.save",
    "safetensors": "safetensors",
}
NEEDED = {
    "ocdbt_py": ("jax",),
    "ocdbt_py-mapped": (),
    "orbax": ("orbax", "jax"),
    "orbax-raw": ("orbax", "jax"),
    "dcp": ("torch",),
    "torch.save": ("torch",),
    "safetensors": ("safetensors", "torch"),
}
ALWAYS_DURABLE = ("orbax", "orbax-raw")
BEGINNING = ("ocdbt_py", "ocdbt_py-mapped", "orbax", "orbax-raw", "dcp")
TOGETHER = ("ocdbt_py", "orbax", "orbax-raw", "dcp")
JAX_TOGETHER = ("ocdbt_py", "orbax", "orbax-raw")


@dataclass(frozen=True, slots=True)
class Operation:
    """What is timed, by how many processes, on how many shards."""

    title: str
    name: str
    count: int
    shards: int
    sides: tuple[str, ...]

    def processes(self, side: str) -> int:
        """A process of torch holds one shard, where there are several."""
        return self.shards if side == PEER and self.shards < SHARDS else self.count


OPERATIONS = {
    "alone": (
        Operation("1 process: save", "save", 1, SHARDS, tuple(SIDES)),
        Operation("1 process: load", "load", 1, SHARDS, tuple(SIDES)),
        Operation("1 process: async save returns", "begin", 1, SHARDS, BEGINNING),
    ),
    "together": (
        Operation("4 processes: save", "save", SHARDS, SHARDS, TOGETHER),
        Operation("4 processes: load", "load", SHARDS, SHARDS, TOGETHER),
        Operation("4 shards loaded as 1", "load", 1, 1, TOGETHER),
        Operation("4 shards loaded as 2", "load", 1, 2, TOGETHER),
        Operation("4 shards loaded as 16", "load", 1, 16, JAX_TOGETHER),
    ),
}
"""Each begins with the save of what the next ones load."""


# --- the child: one process of one side, one operation


def child(job: Job) -> None:
    with os.fdopen(os.dup(1), "w") as driver:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # libraries print there who has connected to whom
        side = SIDES[job.side](job)
        print(READY, file=driver, flush=True)
        sys.stdin.readline()
        print(json.dumps(measured(job, side)), file=driver, flush=True)
        sys.stdin.read()  # until all have answered: libraries do not like others to leave first
    os._exit(0)


def measured(job: Job, side: Side) -> dict[str, Any]:
    touched, spent = _peak_mib(), time.process_time()
    began = time.monotonic()  # one clock for all processes of a machine
    result = {"save": side.save, "load": side.load, "begin": side.begin or side.save}[job.operation]()
    ended = time.monotonic()
    if job.operation == "begin":
        result()
    answer: dict[str, Any] = {
        "began": began,
        "ended": ended,
        "cpu": time.process_time() - spent,
        "extra_mib": _peak_mib() - touched,
        "verified": 0,
    }
    if job.operation != "save":
        answer["verified"] = verify(job, side, result if job.operation == "load" else side.load())
    return answer


def verify(job: Job, side: Side, found: Any) -> int:
    """How many bytes are as they were saved; any that are not end the benchmark."""
    values = Values(MODELS[job.model])
    seen = 0
    for name, start, bits in side.pieces(found):
        if bits.tobytes() != values.rows(name, start, start + len(bits)).tobytes():
            raise SystemExit(f"{job.side} loaded other values of {name}, from row {start} on")
        seen += bits.nbytes
    return seen


def _peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


# --- the driver


@dataclass(slots=True)
class Runs:
    """One side's measurements of one operation, by round."""

    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    extra_mib: list[float] = field(default_factory=list)
    stored: int = 0

    @property
    def times(self) -> Times:
        return Times(tuple(self.seconds))


Figures = dict[tuple[str, str], Runs]
"""By operation's title and side."""


@dataclass(frozen=True, slots=True)
class Measurement:
    model: str
    sides: Sequence[str]
    directory: Path
    memory: PrimedMemory
    durable: bool
    threads: int

    def round(self, group: str, figures: Figures | None) -> None:
        """Every operation of a group once, the sides in turn; into ``figures``, where the round counts."""
        for operation in OPERATIONS[group]:
            for side in (side for side in operation.sides if side in self.sides):
                path = self.directory / f"{group}-{side}{'-async' * (operation.name == 'begin')}"
                seconds, cpu, extra = self.run(operation, side, path)
                if figures is not None:
                    runs = figures.setdefault((operation.title, side), Runs())
                    runs.seconds.append(seconds)
                    runs.cpu.append(cpu)
                    runs.extra_mib.append(extra)
                    runs.stored = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
                print(f"  {operation.title}, {TITLES[side]}: {seconds:.3f} s", file=sys.stderr)
        for path in self.directory.iterdir():
            shutil.rmtree(path)

    def run(self, operation: Operation, side: str, path: Path) -> tuple[float, float, float]:
        """Wall seconds from the first to begin to the last to end, CPU seconds and MiB of all processes."""
        count = operation.processes(side)
        port = _free_port()
        jobs = [
            Job(
                side=side,
                operation=operation.name,
                model=self.model,
                path=str(path),
                shards=operation.shards,
                index=index,
                count=count,
                port=port,
                durable=self.durable,
                threads=self.threads,
            )
            for index in range(count)
        ]
        if not self.durable:
            os.sync()  # nobody pays for what another left to be written
        arguments = [["--child", json.dumps(asdict(job))] for job in jobs]
        answers = run_children("benchmarks.paper", arguments, self.memory)
        verified = sum(answer["verified"] for answer in answers)
        if operation.name != "save" and verified != MODELS[self.model].nbytes:
            raise SystemExit(f"{side} loaded {verified} bytes of {MODELS[self.model].nbytes}")
        seconds = max(answer["ended"] for answer in answers) - min(answer["began"] for answer in answers)
        return seconds, sum(each["cpu"] for each in answers), sum(each["extra_mib"] for each in answers)


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
    return port


def taking_part(chosen: Sequence[str], durable: bool) -> list[str]:
    """The sides that can; why the others do not is said in a line each."""
    found = []
    for side in chosen:
        missing = [name for name in NEEDED[side] if find_spec(name) is None]
        if missing:
            print(f"{TITLES[side]} is left out: {' and '.join(missing)} not installed", file=sys.stderr)
        elif side in ALWAYS_DURABLE and not durable:
            print(f"{TITLES[side]} is left out: it cannot do without fsync", file=sys.stderr)
        else:
            found.append(side)
    return found


def report(figures: Figures) -> tuple[list[list[str]], list[dict[str, Any]]]:
    """Rows of the table, and of the document."""
    rows, records = [], []
    for (title, side), runs in figures.items():
        mine, peer = figures.get((title, OURS)), figures.get((title, PEER))
        ours_is_faster = None if mine is None or side == OURS else Ratio.between(runs.times, mine.times)
        faster_than_peer = None if peer is None or side == PEER else Ratio.between(peer.times, runs.times)
        middle = {name: Times(tuple(values)).median for name, values in (("cpu", runs.cpu), ("mib", runs.extra_mib))}
        rows.append(
            [
                f"{title:<29}  {TITLES[side]}",
                str(runs.times),
                f"{middle['cpu']:.2f}",
                f"{middle['mib']:.0f}",
                f"{runs.stored / 1e6:.0f}",
                str(faster_than_peer or ""),
                str(ours_is_faster or ""),
            ]
        )
        records.append(
            {
                "operation": title,
                "side": side,
                "seconds": runs.seconds,
                "cpu_seconds": runs.cpu,
                "extra_mib": runs.extra_mib,
                "stored_bytes": runs.stored,
                "faster_than_dcp": asdict(faster_than_peer) if faster_than_peer else None,
                "ours_is_faster": asdict(ours_is_faster) if ours_is_faster else None,
            }
        )
    return rows, records


HEADER = [
    "operation, side",
    "seconds, median [min..max]",
    "CPU s",
    "extra MiB",
    "MB stored",
    "faster than torch DCP",
    "ours is faster [min..max]",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help=f"as --model {QUICK}")
    parser.add_argument("--model", choices=tuple(MODELS), default=FULL)
    parser.add_argument("--rounds", type=int, default=5, help="that count, after one that does not")
    parser.add_argument("--side", choices=tuple(SIDES), action="append", help="only this one; repeatable")
    parser.add_argument("--group", choices=tuple(OPERATIONS), action="append", help="one process, or 4; repeatable")
    parser.add_argument("--no-fsync", action="store_true", help="leave it out everywhere")
    parser.add_argument("--dcp-threads", type=int, default=2, help="that write; the paper's configurations say 16")
    parser.add_argument("--directory", help="where to save (default: a temporary directory)")
    parser.add_argument("--prime-mib", type=int, default=2048, metavar="MIB", help="touched memory to give back")
    parser.add_argument("--json", metavar="FILE", help="write the figures to FILE too")
    parser.add_argument("--markdown", metavar="FILE", help="write the table to FILE too")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(Job(**json.loads(arguments.child)))
        return
    model = QUICK if arguments.quick else arguments.model
    durable = not arguments.no_fsync
    figures = measure(arguments, model, durable)
    rows, records = report(figures)
    title = (
        f"{model}, {len(MODELS[model].leaves())} leaves, {MODELS[model].nbytes / 1e6:.0f} MB of bfloat16, "
        f"{'fsync on all sides' if durable else 'no fsync'}, fresh processes in turn, {arguments.rounds} rounds "
        f"({machine()['cpu']}, {machine()['cores']} cores)"
    )
    print_table(title, HEADER, rows)
    write_markdown(arguments.markdown, title, HEADER, rows)
    settings: Mapping[str, Any] = {"model": model, "fsync": durable, "dcp_threads": arguments.dcp_threads}
    write_json(arguments.json, {"benchmark": "paper", **settings, "runs": records})


def measure(arguments: argparse.Namespace, model: str, durable: bool) -> Figures:
    sides = taking_part(arguments.side or tuple(SIDES), durable)
    figures: Figures = {}
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        memory = PrimedMemory(arguments.prime_mib)
        measurement = Measurement(model, sides, Path(directory), memory, durable, arguments.dcp_threads)
        for group in arguments.group or tuple(OPERATIONS):
            for number in range(arguments.rounds + 1):  # the first fills the caches of all sides and does not count
                print(f"{group}, round {number} of {arguments.rounds}", file=sys.stderr)
                measurement.round(group, figures if number else None)
    return figures


if __name__ == "__main__":
    main()
