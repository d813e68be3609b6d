"""What ``benchmarks.backends`` found: ``python -m benchmarks.stores_report RESULTS.json … [--into DOCUMENT.md]``.

Makes one document of several and a table of it, which with ``--into`` replaces what stands in a page between two marks;
the document is put beside the page, under its name. Of the same measurement the last one counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from benchmarks.backends import SERVERS, workloads
from benchmarks.harness import Ratio, Times, with_range
from benchmarks.report import machine_line, render

__all__ = ["merged", "table"]

Key: TypeAlias = tuple[str, str, str]
"""Server, workload, operation."""

TITLES = {
    "seaweedfs": "S3, SeaweedFS",
    "moto": "S3, moto",
    "gcs": "Google's API, strict stand-in",
    "azurite": "Azure, Azurite",
    "sftp": "SFTP, OpenSSH",
    "ftp": "FTP, pyftpdlib",
}
GOALS = {("small", "TensorStore"): 5.0, ("large", "copy"): 0.8}
"""Workload and peer -> how many times faster ours shall be at least."""


def merged(documents: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The runs of all as those of one, in the order of servers and workloads. All are of one machine."""
    runs: dict[tuple[str, ...], Mapping[str, Any]] = {}
    machines: list[Mapping[str, Any]] = []
    for document in documents:
        machines.append(document["machine"])
        for run in document["runs"]:
            runs[run["server"], run["workload"], run["operation"], run["side"]] = run
    if len({(each["cpu"], each["cores"]) for each in machines}) != 1:
        raise SystemExit("These results are of several machines")
    known, works = list(SERVERS), list(workloads(1))
    order = sorted(runs, key=lambda key: (works.index(key[1]), key[2] != "save", known.index(key[0])))
    return {"machine": machines[-1], "benchmark": "backends", "runs": [runs[key] for key in order]}


def table(document: Mapping[str, Any], megabytes: int = 1000) -> str:
    """Seconds of ours, and how many times as long the others take."""
    found: dict[Key, dict[str, Times]] = {}
    for run in document["runs"]:
        sides = found.setdefault((run["server"], run["workload"], run["operation"]), {})
        sides[run["side"]] = Times(tuple(run["seconds"]))
    lines = [
        f"Measured on: {machine_line(document['machine'])}.",
        "",
        "| | rounds | ocdbt_py | TensorStore | plain copy | goal |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    titles = {name: workload.title for name, workload in workloads(megabytes).items()}
    heading = ""
    for (server, workload, operation), sides in found.items():
        if heading != f"{titles[workload]}: {operation}":
            heading = f"{titles[workload]}: {operation}"
            lines.append(f"| **{heading}** | | | | | |")
        mine = sides["ocdbt_py"]
        cells = [TITLES[server], str(len(mine.seconds)), with_range(mine.median, mine.seconds, " s")]
        cells += [_against(sides.get(side), mine) for side in ("TensorStore", "copy")]
        lines.append(f"| {' | '.join([*cells, _verdict(workload, sides)])} |")
    return "\n".join(lines) + "\n"


def _against(other: Times | None, mine: Times) -> str:
    return "" if other is None else f"{Ratio.between(other, mine)}, {other.median:.3g} s"


def _verdict(workload: str, sides: Mapping[str, Times]) -> str:
    for (of, side), goal in GOALS.items():
        if of == workload and side in sides:
            reached = Ratio.between(sides[side], sides["ocdbt_py"]).of_medians >= goal
            return f"≥ {goal:g}× {side}: {'reached' if reached else '**not reached**'}"
    return ""


def main() -> None:
    render(__doc__, merged, table)


if __name__ == "__main__":
    main()
