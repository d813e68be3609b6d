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
import tempfile
from pathlib import Path

from benchmarks.harness import PrimedMemory, machine, print_table, write_json
from benchmarks.operations import HEADER, Figures, Measurement, Operation, records, rows
from benchmarks.states import STATES

FULL, QUICK = "llama8b-1/16", "llama8b-1/256"
SHARDS = 4

ORBAX = ("orbax-zarr3", "orbax-zarr3-raw")
BEGINNING = ("ocdbt_py", "ocdbt_py-mapped", *ORBAX, "dcp")
TOGETHER = ("ocdbt_py", *ORBAX, "dcp")
ALONE = (*BEGINNING, "torch.save", "safetensors-torch", "raw-files")

OPERATIONS = {
    "alone": (
        Operation("1 process: save", "save", ALONE, 1, SHARDS),
        Operation("1 process: load", "load", ALONE, 1, SHARDS),
        Operation("1 process: async save returns", "begin", BEGINNING, 1, SHARDS),
    ),
    "together": (
        Operation("4 processes: save", "save", TOGETHER, SHARDS, SHARDS),
        Operation("4 processes: load", "load", TOGETHER, SHARDS, SHARDS),
        Operation("4 shards loaded as 1", "load", TOGETHER, 1, 1),
        Operation("4 shards loaded as 2", "load", TOGETHER, 1, 2, {"dcp": 2}),
        Operation("4 shards loaded as 16", "load", ("ocdbt_py", *ORBAX), 1, 16),
    ),
}
"""Each begins with the save of what the next ones load."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help=f"as --model {QUICK} --rounds 1")
    parser.add_argument("--model", choices=[name for name in STATES if name.startswith("llama8b")], default=FULL)
    parser.add_argument("--rounds", type=int, default=5, help="that count, after one that does not")
    parser.add_argument("--no-warm-up", action="store_true", help="leave out the round that does not count")
    parser.add_argument("--side", choices=ALONE, action="append", help="only this one; repeatable")
    parser.add_argument("--group", choices=tuple(OPERATIONS), action="append", help="one process, or 4; repeatable")
    parser.add_argument("--no-fsync", action="store_true", help="leave it out everywhere")
    parser.add_argument("--dcp-threads", type=int, default=2, help="that write; the paper's configurations say 16")
    parser.add_argument("--directory", help="where to save (default: a temporary directory)")
    parser.add_argument("--prime-mib", type=int, default=2048, metavar="MIB", help="touched memory to give back")
    parser.add_argument("--prime-small-mib", type=int, default=3072, metavar="MIB", help="the same, in small pages")
    parser.add_argument("--json", metavar="FILE", help="write the figures to FILE too")
    arguments = parser.parse_args()
    model, rounds = (QUICK, 1) if arguments.quick else (arguments.model, arguments.rounds)
    durable = not arguments.no_fsync
    memory = PrimedMemory(arguments.prime_mib, arguments.prime_small_mib)
    workload = "paper" if durable else "paper-nosync"
    figures: Figures = {}
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        measurement = Measurement(
            workload, model, arguments.side or ALONE, Path(directory), memory, durable, arguments.dcp_threads
        )
        for group in arguments.group or tuple(OPERATIONS):
            measurement.rounds(OPERATIONS[group], rounds, figures, warm=not (arguments.quick or arguments.no_warm_up))
    title = f"Orbax's paper: {model}, {STATES[model]}{'' if durable else ', no fsync'}"
    print_table(
        f"{title}, fresh processes in turn, {rounds} rounds ({machine()['cpu']}, {machine()['cores']} cores)",
        HEADER,
        rows(figures),
    )
    settings = {"title": title, "leaves": str(STATES[model]), "fsync": durable, "dcp_threads": arguments.dcp_threads}
    write_json(arguments.json, {"benchmark": "paper", "runs": records(figures, settings)})


if __name__ == "__main__":
    main()
