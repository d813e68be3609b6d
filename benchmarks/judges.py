"""Both implementations read what ocdbt_py saved: ``python -m benchmarks.judges STATE PATH``, outside any clock.

TensorStore opens every array below the path, and Orbax restores the checkpoint; every value is compared with the
state's, bit for bit. What differs ends the benchmark.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np

from benchmarks.harness import timed
from benchmarks.sides import flat, nested
from benchmarks.states import STATES, State, Values

AT_ONCE = 500


def tensorstore_reads(state: State, path: str) -> None:
    import tensorstore as ts

    values = Values(state)
    context = ts.Context({"cache_pool": {"total_bytes_limit": 100_000_000}})
    base = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{path}/"}}
    names = list(values.shapes)
    for first in range(0, len(names), AT_ONCE):
        some = names[first : first + AT_ONCE]
        opened = [
            ts.open({"driver": "zarr", "kvstore": {**base, "path": f"{name}/"}}, context=context) for name in some
        ]
        reads = [each.result().read() for each in opened]
        for name, read in zip(some, reads, strict=True):
            _compare("TensorStore", name, read.result(), values)


def orbax_restores(state: State, path: str) -> None:
    import logging

    import orbax.checkpoint as ocp

    logging.disable(logging.WARNING)
    values = Values(state)
    zero = np.zeros((), values.dtype)
    target = nested({name: np.broadcast_to(zero, shape) for name, shape in values.shapes.items()})
    with ocp.StandardCheckpointer() as checkpointer:
        restored = dict(flat(checkpointer.restore(path, target)))
    if restored.keys() != values.shapes.keys():
        raise SystemExit("Orbax restores other leaves")
    for name, found in restored.items():
        _compare("Orbax", name, np.asarray(found), values)


def _compare(judge: str, name: str, found: Any, values: Values) -> None:
    expected = values.array(name)
    if found.shape != expected.shape or found.dtype != expected.dtype or found.tobytes() != expected.tobytes():
        raise SystemExit(f"{judge} reads other values of {name} than ocdbt_py saved")


def main() -> None:
    state, path = STATES[sys.argv[1]], sys.argv[2]

    def judge() -> None:
        tensorstore_reads(state, path)
        orbax_restores(state, path)

    seconds, _ = timed(judge)
    print(json.dumps({"seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
