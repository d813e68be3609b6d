"""How long it takes until the first call is possible: ``python -m benchmarks.imports [--rounds N] [--json FILE]``.

The clock starts in a fresh interpreter, after its own start, and stops when the functions a program would call are
there: :func:`ocdbt_py.open`, ``save`` and ``restore``, against ``import tensorstore`` and ``import orbax.checkpoint``.
NumPy, which all of them need, is a row of its own.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from benchmarks.harness import ROOT, Ratio, machine, print_table, take_turns, write_json

OURS = "ocdbt_py (open, save, restore)"
STATEMENTS = {
    "ocdbt_py alone": "import ocdbt_py",
    OURS: "import ocdbt_py; ocdbt_py.open, ocdbt_py.save, ocdbt_py.restore",
    "numpy": "import numpy",
    "tensorstore": "import tensorstore",
    "orbax.checkpoint": "import orbax.checkpoint",
}


def seconds(statement: str) -> float:
    script = f"import time; start = time.perf_counter(); {statement}; print(time.perf_counter() - start)"
    # a clone need not be installed; -P keeps the folder of the benchmarks off the path
    paths = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'backends')!r}]; "
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}  # what is installed has been compiled
    command = [sys.executable, "-P", "-c", paths + script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="as --rounds 3")
    parser.add_argument("--rounds", type=int, default=7, help="that count, after one that does not")
    parser.add_argument("--json", metavar="FILE", help="write the figures to FILE too")
    arguments = parser.parse_args()
    rounds = 3 if arguments.quick else arguments.rounds
    times = take_turns(
        {name: (lambda statement=statement: seconds(statement)) for name, statement in STATEMENTS.items()},  # type: ignore[misc]
        rounds,
    )
    ratios = {name: Ratio.between(taken, times[OURS]) for name, taken in times.items()}
    print_table(
        f"Import, fresh processes in turn, {rounds} rounds ({machine()['cpu']})",
        ["import", "seconds, median [min..max]", "ours is faster, ratio of medians [min..max]"],
        [[name, str(taken), "" if name == OURS else str(ratios[name])] for name, taken in times.items()],
    )
    write_json(
        arguments.json,
        {
            "benchmark": "imports",
            "runs": [
                {
                    "workload": "imports",
                    "title": "import in a fresh interpreter",
                    "operation": "import",
                    "side": "ocdbt_py" if name == OURS else name,
                    "seconds": taken.seconds,
                }
                for name, taken in times.items()
            ],
        },
    )


if __name__ == "__main__":
    main()
