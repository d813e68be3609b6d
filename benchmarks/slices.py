"""A part of a checkpoint in a process that never saw it: ``python -m benchmarks.slices [--quick] [--json FILE]``.

Two questions: 64 rows of a tensor of 154 MB, and one array of a few KiB out of 50,000. The clock starts before the
checkpoint is opened and stops when the values are in memory, after imports and after another, tiny checkpoint was read
the same way; each time in a fresh process. The bytes are those that the process asked the system to read. ocdbt_py and
TensorStore both read what ocdbt_py wrote and what TensorStore wrote as Orbax makes it write; Orbax restores the one
leaf of the first. All compare what they read with what was saved.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import PrimedMemory, Ratio, Times, machine, print_table, run_child, timed, write_json
from benchmarks.operations import Measurement, Operation, Runs
from benchmarks.sides import nested, taking_part
from benchmarks.states import STATES, Values

ROWS = 64
TINY = "small-3-float32"


@dataclass(frozen=True, slots=True)
class Question:
    title: str
    state: str
    leaf: str
    rows: int | None


QUESTIONS = {
    "slice": Question(f"{ROWS} rows of a tensor of 154 MB", "gpt2", "tokens", ROWS),
    "one-of-50k": Question("one array out of 50,000", "small-50k", "block_321.item_45.w", None),
    "tiny": Question("one array out of 200", "small-200", "block_1.item_45.w", None),
}
WRITERS = {"ocdbt_py-numpy": "ocdbt_py", "tensorstore": "TensorStore", "safetensors": "safetensors", "npz": "npz"}
READERS = {
    "ocdbt_py": ("ocdbt_py-numpy", "tensorstore"),
    "tensorstore": ("ocdbt_py-numpy", "tensorstore"),
    "orbax": ("ocdbt_py-numpy",),
    "safetensors": ("safetensors",),
    "npz": ("npz",),
}
"""Reader -> whose files it reads."""


# --- the child


def reader(name: str) -> Callable[[str, str, int | None], Any]:
    """Imports what is needed; then: of a path the rows of a leaf, or all of it."""
    if name == "ocdbt_py":
        import ocdbt_py

        checkpoint = ocdbt_py.Checkpoint
        return lambda path, leaf, rows: np.asarray(checkpoint(path)[leaf][:rows])
    if name == "tensorstore":
        import tensorstore as ts

        def read(path: str, leaf: str, rows: int | None) -> Any:
            context = ts.Context({"cache_pool": {"total_bytes_limit": 100_000_000}})
            base = {"driver": "file", "path": f"{path}/"}
            spec = {"driver": "zarr", "kvstore": {"driver": "ocdbt", "base": base, "path": f"{leaf}/"}}
            return ts.open(spec, open=True, context=context).result()[:rows].read().result()

        return read
    if name == "orbax":
        return _orbax()
    if name == "safetensors":
        from safetensors import safe_open

        def read_safetensors(path: str, leaf: str, rows: int | None) -> Any:
            with safe_open(f"{path}/state", "numpy") as found:
                return found.get_slice(leaf)[:rows]

        return read_safetensors

    def read_npz(path: str, leaf: str, rows: int | None) -> Any:
        with np.load(f"{path}/state.npz") as found:
            return found[leaf][:rows].view(np.float32)

    return read_npz


def _orbax() -> Callable[[str, str, int | None], Any]:
    """It has no slices of unsharded arrays: the leaf is restored whole."""
    import logging

    import orbax.checkpoint as ocp

    logging.disable(logging.WARNING)

    def read(path: str, leaf: str, rows: int | None) -> Any:
        target = nested({leaf: 0})
        restore_args = nested({leaf: ocp.RestoreArgs(restore_type=np.ndarray)})
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            arguments = ocp.args.PyTreeRestore(target, restore_args=restore_args, partial_restore=True)
            found = checkpointer.restore(path, args=arguments)
        for name in leaf.split("."):
            found = found[name]
        return found[:rows]

    return read


def child(name: str, side: str, question: Question, path: str) -> None:
    read = reader(name)
    read(f"{path}.tiny", next(iter(STATES[TINY].leaves)), None)
    before = bytes_read()
    seconds, found = timed(lambda: read(path, question.leaf, question.rows))
    taken = bytes_read() - before
    values = Values(STATES[question.state])
    rows = question.rows or values.shapes[question.leaf][0]
    if found.tobytes() != values.rows(question.leaf, 0, rows).tobytes():
        raise SystemExit(f"{name} reads other values than {side} saved")
    print(json.dumps({"seconds": seconds, "bytes": taken, "needed": found.nbytes}), flush=True)


def bytes_read() -> int:
    """By this process, from wherever: the system's count of what it asked for."""
    file = Path("/proc/self/io")
    return int(file.read_text().split()[1]) if file.exists() else 0


# --- the driver


@dataclass(slots=True)
class Reads:
    seconds: list[float] = field(default_factory=list)
    read: list[int] = field(default_factory=list)
    needed: int = 0


def measure(name: str, rounds: int, directory: Path) -> dict[str, Reads]:
    """By side: who reads whose."""
    question = QUESTIONS[name]
    writers = taking_part(list(WRITERS))
    for writer in writers:
        for state, ending in ((question.state, ""), (TINY, ".tiny")):
            measurement = Measurement(name, state, (), directory, PrimedMemory(0))
            measurement.run(Operation("save", "save", ()), writer, directory / f"{writer}{ending}", Runs())
    found: dict[str, Reads] = {}
    for number in range(rounds + 1):  # the first fills the caches of all sides and does not count
        for who, files in READERS.items():
            for writer in (each for each in files if each in writers):
                path = str(directory / writer)
                memory = PrimedMemory(512 if name == "slice" else 64)
                arguments = ["--child", who, writer, name, path]
                answer = run_child("benchmarks.slices", arguments, memory, Path(path))
                if number:
                    side = f"{who} from {WRITERS[writer]}"
                    reads = found.setdefault(side, Reads(needed=answer["needed"]))
                    reads.seconds.append(answer["seconds"])
                    reads.read.append(answer["bytes"])
        print(f"{question.title}: round {number} of {rounds}", file=sys.stderr)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="as --rounds 1")
    parser.add_argument("--question", choices=tuple(QUESTIONS), action="append", help="only this one; repeatable")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--directory", help="where to save (default: a temporary directory)")
    parser.add_argument("--json", metavar="FILE", help="write the figures to FILE too")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        who, side, name, path = arguments.child
        child(who, side, QUESTIONS[name], path)
        return
    rows, records = [], []
    for name in arguments.question or ("slice", "one-of-50k"):
        with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
            found = measure(name, 1 if arguments.quick else arguments.rounds, Path(directory))
        mine = Times(tuple(found["ocdbt_py from ocdbt_py"].seconds))
        for side, reads in found.items():
            taken = Times(tuple(reads.seconds))
            read = int(np.median(reads.read))
            rows.append([f"{name}: {side}", f"{1000 * taken.median:.2f}", f"{read:,}", str(Ratio.between(taken, mine))])
            records.append(
                {
                    "workload": name,
                    "title": QUESTIONS[name].title,
                    "operation": "read",
                    "side": side,
                    "seconds": reads.seconds,
                    "read_bytes": reads.read,
                    "needed_bytes": reads.needed,
                }
            )
    print_table(
        f"Parts, cold, fresh processes in turn ({machine()['cpu']}, {machine()['cores']} cores)",
        ["question, who reads whose", "ms, median", "bytes read", "ours from ours is faster"],
        rows,
    )
    write_json(arguments.json, {"benchmark": "slices", "runs": records})


if __name__ == "__main__":
    main()
