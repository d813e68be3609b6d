"""All benchmarks in one command: ``python -m benchmarks [--quick] [--output DIRECTORY]``; ``make bench`` runs it.

Each runs as a program of its own, as it can be run alone, and its results are gathered: ``results.json``, and from it
``results.md`` and ``results.svg``, in the directory named, ``build/benchmarks`` by default.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.harness import ROOT
from benchmarks.report import chart, merged, tables

BENCHMARKS = ("imports", "kv", "slices", "pytrees", "paper")
QUICK = BENCHMARKS[:-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="a smaller selection, in under five minutes")
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, help="some of them")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "benchmarks")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    found = []
    for name in arguments.only or (QUICK if arguments.quick else BENCHMARKS):
        file = arguments.output / f"{name}.json"
        command = [sys.executable, "-m", f"benchmarks.{name}", "--json", str(file)]
        began = time.monotonic()
        subprocess.run([*command, "--quick"] if arguments.quick else command, cwd=ROOT, check=True)
        print(f"{name}: {time.monotonic() - began:.0f} s in all\n", file=sys.stderr)
        found.append(json.loads(file.read_text()))
    document = merged(found)
    (arguments.output / "results.json").write_text(json.dumps(document, indent=1) + "\n")
    (arguments.output / "results.md").write_text(tables(document))
    (arguments.output / "results.svg").write_text(chart(document))
    print(f"{arguments.output}/results.md, .svg and .json are written")


if __name__ == "__main__":
    main()
