"""Save and restore of whole pytrees: ``python -m benchmarks.pytrees [--quick] [--workload NAME …] [--json FILE]``.

Trees of many small arrays, where the cost of a leaf counts, and large states, where bytes count; ocdbt_py against
Orbax, TensorStore driven as Orbax drives it, torch's three, and files of NumPy arrays (:mod:`benchmarks.sides`).

Equal on all sides: the same bits; fsync before a save has ended, or, in the workloads that say so, nowhere (Orbax takes
no part then, for it always does); the clock starts after imports, after three small arrays were saved and loaded, and
after the input is built, and stops when the checkpoint is committed or the arrays are ready. ``restore`` gives each
side's own arrays; ``map`` gives views of ocdbt_py's files. After either, one pass over all bytes is timed too, and then
every load is compared with the input. What ocdbt_py saved is read by TensorStore and by Orbax in the first round
(:mod:`benchmarks.judges`). What is not installed is left out, with a word.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.harness import PrimedMemory, machine, print_table, write_json
from benchmarks.operations import HEADER, Figures, Measurement, Operation, records, rows
from benchmarks.states import STATES

FILES = ("safetensors", "npz", "pickle")
TORCH = ("dcp", "torch.save")
OURS = ("ocdbt_py", "ocdbt_py-numpy")
PEERS = ("tensorstore", *TORCH, *FILES, "raw-files")
SMALL = (*OURS, "orbax", "orbax-numpy", *PEERS)
LARGE = (*OURS, "ocdbt_py-zstd", "orbax", "orbax-raw", *PEERS)
FEW = ("ocdbt_py-numpy", "ocdbt_py-zstd", "orbax", "orbax-raw", "tensorstore", "safetensors")
WITHOUT_ORBAX = (*OURS, *PEERS)


@dataclass(frozen=True, slots=True)
class Workload:
    title: str
    state: str
    sides: tuple[str, ...]
    rounds: int
    durable: bool = True
    begins: tuple[str, ...] = ()
    """The sides whose asynchronous saves are timed until the call returns."""
    is_warm: bool = True

    @property
    def operations(self) -> Sequence[Operation]:
        """The first save is what the loads read."""
        all_four = (
            Operation("save", "save", self.sides),
            Operation("restore", "load", self.sides),
            Operation("map", "map", ("ocdbt_py-numpy",)),
            Operation("async save returns", "begin", self.begins),
        )
        return [replace(operation, is_warm=self.is_warm) for operation in all_four]


BEGINNING = (*OURS, "orbax", "dcp")
WORKLOADS = {
    "10k": Workload("10,000 leaves of 1-4 KiB", "small-10k", SMALL, 3, begins=BEGINNING),
    "50k": Workload("50,000 leaves of 1-4 KiB", "small-50k", WITHOUT_ORBAX, 3, begins=("ocdbt_py",)),
    "50k-orbax": Workload("50,000 leaves of 1-4 KiB, with Orbax", "small-50k", (*OURS, "orbax", "tensorstore"), 1),
    "f32": Workload("GPT-2, float32", "gpt2", LARGE, 3, begins=BEGINNING),
    "f32-nosync": Workload("GPT-2, float32, no fsync", "gpt2", WITHOUT_ORBAX, 3, durable=False),
    "bf16": Workload("Llama layer, bfloat16", "llama-wide", LARGE, 3, begins=BEGINNING),
    "bf16-nosync": Workload("Llama layer, bfloat16, no fsync", "llama-wide", WITHOUT_ORBAX, 3, durable=False),
    "one": Workload("one leaf of 4 GiB", "one-4g", FEW, 2),
    "one-1g": Workload("one leaf of 1 GiB", "one-1g", FEW, 2),
    "first": Workload("200 leaves of 1-4 KiB, first call of a process", "small-200", SMALL, 3, is_warm=False),
    "tiny": Workload("200 leaves of 1-4 KiB", "small-200", (*SMALL, "ocdbt_py-zstd"), 1, begins=BEGINNING),
}
FULL = ("10k", "50k", "50k-orbax", "f32", "f32-nosync", "bf16", "bf16-nosync", "one", "first")
QUICK = ("10k", "f32")
SLOW = ("orbax-numpy",)
"""What a quick run leaves out."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help=f"only {', '.join(QUICK)}, one round each")
    parser.add_argument("--workload", choices=tuple(WORKLOADS), action="append", help="only this one; repeatable")
    parser.add_argument("--side", action="append", help="only this one; repeatable")
    parser.add_argument("--rounds", type=int, help="that count, instead of each workload's own number")
    parser.add_argument("--no-warm-up", action="store_true", help="leave out the round that does not count")
    parser.add_argument("--directory", help="where to save (default: a temporary directory)")
    parser.add_argument("--prime-mib", type=int, default=2048, metavar="MIB", help="touched memory to give back")
    parser.add_argument("--prime-small-mib", type=int, default=3072, metavar="MIB", help="the same, in small pages")
    parser.add_argument("--json", metavar="FILE", help="write the figures to FILE too")
    arguments = parser.parse_args()
    figures: Figures = {}
    found = []
    memory = PrimedMemory(arguments.prime_mib, arguments.prime_small_mib)
    for name in arguments.workload or (QUICK if arguments.quick else FULL):
        workload = WORKLOADS[name]
        sides = [side for side in arguments.side or workload.sides if not (arguments.quick and side in SLOW)]
        with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
            own: Figures = {}
            measurement = Measurement(name, workload.state, sides, Path(directory), memory, workload.durable)
            warm = not (arguments.quick or arguments.no_warm_up)
            rounds = arguments.rounds or (1 if arguments.quick else workload.rounds)
            measurement.rounds(workload.operations, rounds, own, warm=warm)
        settings = {"title": workload.title, "leaves": str(STATES[workload.state]), "fsync": workload.durable}
        found += records(own, settings)
        figures |= own
    print_table(
        f"Pytrees, fresh processes in turn ({machine()['cpu']}, {machine()['cores']} cores)", HEADER, rows(figures)
    )
    write_json(arguments.json, {"benchmark": "pytrees", "runs": found})


if __name__ == "__main__":
    main()
