"""Save and restore of whole pytrees against Orbax: ``python -m benchmarks.pytrees [--rounds N] [--json FILE]``.

Two trees: 3,000 arrays of 1 KiB, where the cost of a leaf counts, and 20 arrays of 4 MiB, where bytes count. Three
sides take turns: ``ocdbt_py`` with its defaults, Orbax's ``StandardCheckpointer`` with its defaults (zstd), and Orbax
without compression. What is equal on all sides: the same arrays, of normally distributed float32; saved from
``jax.Array`` leaves (or NumPy's with ``--leaves numpy``) and restored to the same kind; fsync before a save returns;
the clock starts after imports and after the input is built, and stops when the checkpoint is committed or the arrays
are ready. Every restored tree is compared with the input, outside the clock.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import PrimedMemory, Ratio, Times, machine, print_table, run_child, timed, write_json

SIDES = {"ocdbt_py": "ocdbt_py", "orbax": "Orbax", "orbax-raw": "Orbax, uncompressed"}
OPERATIONS = ("save", "restore")


@dataclass(frozen=True, slots=True)
class Workload:
    title: str
    arrays: int
    elements: int


WORKLOADS = {
    "small": Workload("3,000 x 1 KiB", 3000, 256),
    "large": Workload("20 x 4 MiB", 20, 1 << 20),
}


# --- the child: one side, one operation


def make_tree(workload: Workload) -> dict[str, Any]:
    """Nested by tens, as the layers of a model are."""
    import numpy as np

    values = np.random.default_rng(0).standard_normal((workload.arrays, workload.elements), dtype=np.float32)
    tree: dict[str, Any] = {}
    for number, value in enumerate(values):
        tree.setdefault(f"layer_{number // 10}", {})[f"weight_{number % 10}"] = value.copy()
    return tree


def ours(path: str, tree: Any, target: Any) -> tuple[Callable[[], Any], Callable[[], Any]]:
    import ocdbt_py

    # names load on first use; that is importing, not saving
    save, restore = ocdbt_py.save, ocdbt_py.restore
    return lambda: save(path, tree), lambda: restore(path, target)


def orbax(path: str, tree: Any, target: Any, *, compress: bool) -> tuple[Callable[[], Any], Callable[[], Any]]:
    import logging

    import orbax.checkpoint as ocp

    logging.disable(logging.WARNING)

    def standard_save() -> None:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path, tree)
            checkpointer.wait_until_finished()

    def standard_restore() -> Any:
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(path, target)

    def raw_checkpointer() -> Any:
        return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_compression=False))

    def raw_save() -> None:
        with raw_checkpointer() as checkpointer:
            checkpointer.save(path, args=ocp.args.PyTreeSave(tree))

    def raw_restore() -> Any:
        with raw_checkpointer() as checkpointer:
            arguments = ocp.checkpoint_utils.construct_restore_args(target)
            return checkpointer.restore(path, args=ocp.args.PyTreeRestore(target, restore_args=arguments))

    return (standard_save, standard_restore) if compress else (raw_save, raw_restore)


def child(side: str, operation: str, workload: str, leaves: str, path: str) -> None:
    import jax
    import numpy as np

    source = make_tree(WORKLOADS[workload])
    tree = target = source
    if leaves == "jax":
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        tree = jax.tree.map(lambda value: jax.device_put(value.copy(), device), source)
        target = jax.tree.map(
            lambda value: jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=device),  # type: ignore[no-untyped-call]
            source,
        )
        jax.block_until_ready(tree)  # type: ignore[no-untyped-call]
    if side == "ocdbt_py":
        save, restore = ours(path, tree, target)
    else:
        save, restore = orbax(path, tree, target, compress=side == "orbax")
    answer: dict[str, Any] = {}
    if operation == "save":
        answer["seconds"], _ = timed(save)
        answer["bytes"] = sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file())
    else:
        answer["seconds"], restored = timed(lambda: jax.block_until_ready(restore()))  # type: ignore[no-untyped-call]
        kinds = {type(leaf) for leaf in jax.tree.leaves(restored)}
        if kinds != {type(leaf) for leaf in jax.tree.leaves(tree)}:
            raise SystemExit(f"{side} restored {kinds}")
        if not jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(np.asarray(a), b), restored, source)):
            raise SystemExit(f"{side} restored other values")
    print(json.dumps(answer), flush=True)


# --- the driver


def measure(workload: str, leaves: str, rounds: int, directory: Path, memory: PrimedMemory) -> dict[str, Any]:
    """Seconds by operation and side, and bytes stored by side."""
    seconds: dict[tuple[str, str], list[float]] = {(operation, side): [] for operation in OPERATIONS for side in SIDES}
    stored: dict[str, int] = {}
    for number in range(rounds + 1):  # the first round fills the caches of all sides and does not count
        for side in SIDES:
            path = directory / f"{workload}-{side}"
            shutil.rmtree(path, ignore_errors=True)
            for operation in OPERATIONS:
                answer = run_child(
                    "benchmarks.pytrees", ["--child", side, operation, workload, leaves, str(path)], memory
                )
                stored[side] = answer.get("bytes", stored.get(side, 0))
                if number:
                    seconds[operation, side].append(answer["seconds"])
            shutil.rmtree(path)
            print(f"{WORKLOADS[workload].title}, round {number} of {rounds}: {side}", file=sys.stderr)
    return {"seconds": {key: Times(tuple(taken)) for key, taken in seconds.items()}, "bytes": stored}


def report(figures: dict[str, dict[str, Any]]) -> tuple[list[list[str]], list[dict[str, Any]]]:
    """Rows of the table, and of the document."""
    rows, records = [], []
    for workload, found in figures.items():
        for operation in OPERATIONS:
            mine = found["seconds"][operation, "ocdbt_py"]
            for side, name in SIDES.items():
                taken = found["seconds"][operation, side]
                ratio = Ratio.between(taken, mine)
                rows.append(
                    [
                        f"{WORKLOADS[workload].title}  {operation:<7}  {name}",
                        str(taken),
                        f"{found['bytes'][side] / 1e6:.1f}",
                        "" if side == "ocdbt_py" else str(ratio),
                    ]
                )
                records.append(
                    {
                        "workload": workload,
                        "operation": operation,
                        "side": side,
                        "seconds": taken.seconds,
                        "stored_bytes": found["bytes"][side],
                        "ratio": asdict(ratio),
                    }
                )
    return rows, records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--leaves", choices=("jax", "numpy"), default="jax")
    parser.add_argument("--workload", choices=tuple(WORKLOADS), action="append", help="only this one; repeatable")
    parser.add_argument("--directory", help="where to save (default: a temporary directory)")
    parser.add_argument("--prime-mib", type=int, default=1024, metavar="MIB", help="touched memory to give back")
    parser.add_argument("--json", metavar="FILE", help="write the figures to FILE too")
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(*arguments.child)
        return
    memory = PrimedMemory(arguments.prime_mib)
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        figures = {
            workload: measure(workload, arguments.leaves, arguments.rounds, Path(directory), memory)
            for workload in arguments.workload or WORKLOADS
        }
    rows, records = report(figures)
    kind = "jax.Array" if arguments.leaves == "jax" else "NumPy"
    print_table(
        f"Pytrees, {kind} leaves, fsync on all sides, fresh processes in turn, {arguments.rounds} rounds "
        f"({machine()['cpu']}, {machine()['cores']} cores)",
        ["tree, operation, side", "seconds, median [min..max]", "MB stored", "ours is faster [min..max]"],
        rows,
    )
    write_json(arguments.json, {"benchmark": "pytrees", "leaves": arguments.leaves, "fsync": True, "runs": records})


if __name__ == "__main__":
    main()
