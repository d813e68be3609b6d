"""What the benchmarks found, for readers: ``python -m benchmarks.report RESULTS.json … [--into DOCUMENT.md]``.

Makes one document of several, tables of goals and figures in Markdown, and a plot in SVG. With ``--into`` the tables
replace what stands in a document between two marks, and results and plot are put beside it, under its name.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.dot_chart import Row, as_svg
from benchmarks.goals import GOALS, Records, by_key
from benchmarks.harness import with_range
from benchmarks.sides import SIDES

__all__ = ["chart", "figures_table", "goals_table", "insert", "machine_line", "merged", "render", "tables"]

BEGIN, END = "<!-- tables: made by benchmarks.report -->", "<!-- end of tables -->"
MIB = 1 << 20


def merged(documents: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The runs of all as those of one; of the same measurement the last one counts. All are of one machine."""
    found: dict[tuple[str, str, str], Mapping[str, Any]] = {}
    machines: list[Mapping[str, Any]] = []
    for document in documents:
        found |= by_key(document["runs"])
        machines.append(document["machine"])
    named = {(each["cpu"], each["cores"]) for each in machines}
    if len(named) != 1:
        raise SystemExit(f"These results are of several machines: {', '.join(f'{cpu}, {n}' for cpu, n in named)}")
    return {"machine": machines[-1], "runs": list(found.values())}


def machine_line(machine: Mapping[str, Any]) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB of memory, {machine['system']}, "
        f"Python {machine['python']}, {packages}; {machine['date']}"
    )


# --- tables


def goals_table(records: Records) -> list[str]:
    """Every goal whose figures are there."""
    lines = ["| | goal | found [rounds] | | raw files |", "| --- | ---: | ---: | --- | ---: |"]
    group = ""
    for goal in GOALS:
        verdict = goal.judge(records)
        if verdict is None:
            continue
        if goal.group != group:
            group = goal.group
            lines.append(f"| **{group}** | | | | |")
        reached = "reached" if verdict.is_reached else "**not reached**"
        lines.append(f"| {goal.text} | {goal.goal} | {verdict.found} | {reached} | {verdict.possible} |")
    return lines


def figures_table(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """All sides of one workload, without the columns for which it has no figures."""
    records = by_key(runs)
    operations = list(dict.fromkeys(run["operation"] for run in runs))
    rows = [_row(run, records) for run in sorted(runs, key=lambda run: operations.index(run["operation"]))]
    titles = [title for title in rows[0] if any(row[title] for row in rows)]
    return [
        f"| {' | '.join(titles)} |",
        f"| --- | --- | {' | '.join(['---:'] * (len(titles) - 2))} |",
        *[f"| {' | '.join(row[title] for title in titles)} |" for row in rows],
    ]


def _row(run: Mapping[str, Any], records: Records) -> dict[str, str]:
    ours = _counterpart(run, records)
    passed = run.get("pass_seconds") or []
    return {
        "operation": run.get("what", run["operation"]),
        "side": _named(run),
        "median [min..max]": _duration(run["seconds"]),
        "and a pass": _duration([a + b for a, b in zip(run["seconds"], passed, strict=True)]) if passed else "",
        "CPU s": _median(run.get("cpu_seconds")),
        "extra MiB": _median(run.get("extra_mib")),
        "peak MiB": f"{run['peak_mib']:.0f}" if run.get("peak_mib") else "",
        "bytes read": f"{statistics.median(run['read_bytes']):,.0f}" if run.get("read_bytes") else "",
        "MB stored": f"{run['stored_bytes'] / 1e6:.0f}" if run.get("stored_bytes") else "",
        "ours is faster": f"{_ratio(run, ours):.3g}×" if ours else "",
    }


def _counterpart(run: Mapping[str, Any], records: Records) -> Mapping[str, Any] | None:
    """Our figures for what a peer did: of the side that held the same kind of arrays, if both were measured."""
    workload, operation, side = run["workload"], run["operation"], run["side"]
    if side.startswith("ocdbt_py"):
        return None
    numpy_like = side not in ("orbax", "orbax-raw", "orbax-zarr3", "orbax-zarr3-raw")
    names = ("ocdbt_py-numpy", "ocdbt_py") if numpy_like else ("ocdbt_py", "ocdbt_py-numpy")
    for name in (*names, "ocdbt_py from ocdbt_py"):
        if (workload, operation, name) in records:
            return records[workload, operation, name]
    return None


def _named(run: Mapping[str, Any]) -> str:
    """A side as readers know it. Nothing is compressed or not where keys are written, or a module imported."""
    side: str = run["side"]
    if side not in SIDES or "stored_bytes" not in run:
        return {"tensorstore": "TensorStore"}.get(side, side)
    return SIDES[side].title


def _ratio(slower: Mapping[str, Any], faster: Mapping[str, Any]) -> float:
    return float(statistics.median(slower["seconds"]) / statistics.median(faster["seconds"]))


def _duration(seconds: Sequence[float]) -> str:
    """Seconds, or milliseconds where they are few."""
    median = statistics.median(seconds)
    unit, factor = (" ms", 1000) if median < 0.1 else (" s", 1)
    return with_range(factor * median, [factor * each for each in seconds], unit)


def _median(values: Sequence[float] | None) -> str:
    if not values:
        return ""
    median = statistics.median(values)
    return f"{median:.0f}" if median >= 10 else f"{median:.2g}"


def tables(document: Mapping[str, Any]) -> str:
    """All of it as Markdown."""
    runs = document["runs"]
    parts = [f"Measured on: {machine_line(document['machine'])}.", "", "### Goals", ""]
    parts += goals_table(by_key(runs))
    for workload in dict.fromkeys(run["workload"] for run in runs):
        of_workload = [run for run in runs if run["workload"] == workload]
        first = of_workload[0]
        details = [first[key] for key in ("leaves",) if first.get(key) and first[key] not in first["title"]]
        rounds = len(first["seconds"])
        parts += ["", f"### {first['title']}", ""]
        parts += [f"`{workload}`: {'; '.join([*details, f'{rounds} round' + 's' * (rounds > 1)])}.", ""]
        parts += figures_table(of_workload)
    return "\n".join(parts) + "\n"


# --- the plot

PLOTTED = {
    "orbax": "Orbax",
    "orbax-zarr3": "Orbax",
    "orbax from ocdbt_py": "Orbax",
    "orbax.checkpoint": "Orbax",
    "orbax-raw": "Orbax, uncompressed",
    "orbax-zarr3-raw": "Orbax, uncompressed",
    "orbax-numpy": "Orbax, NumPy",
    "tensorstore": "TensorStore",
    "tensorstore from TensorStore": "TensorStore",
    "dcp": "torch DCP",
    "torch.save": "torch.save",
    "safetensors": "safetensors",
    "safetensors-torch": "safetensors",
    "safetensors from safetensors": "safetensors",
    "npz": "npz",
    "npz from npz": "npz",
    "pickle": "pickle",
}
"""Side -> whose dot it is; other sides have none."""


def chart(document: Mapping[str, Any]) -> str:
    """How many times faster ours is, by workload and operation."""
    records = by_key(document["runs"])
    rows: dict[tuple[str, str], dict[str, float]] = {}
    for run in document["runs"]:
        what = run.get("what", run["operation"])
        ours = {what: _counterpart(run, records)}
        if what == "restore":
            ours["restore, ours mapped"] = records.get((run["workload"], "map", "ocdbt_py-numpy"))
        for label, mine in ours.items():
            if mine is not None and run["side"] in PLOTTED:
                rows.setdefault((run["title"], label), {})[PLOTTED[run["side"]]] = _ratio(run, mine)
    machine = document["machine"]
    title = f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}, {machine['date']}"
    return as_svg(title, [Row(heading, label, ratios) for (heading, label), ratios in rows.items()])


# --- files


def insert(text: str, made: str) -> str:
    """The text with what stands between the marks replaced."""
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"There is no {BEGIN} … {END} in the document")
    return pattern.sub(lambda _: f"{BEGIN}\n\n{made}\n{END}", text)


def render(
    description: str | None,
    merged: Callable[[Iterable[Mapping[str, Any]]], dict[str, Any]],
    tables: Callable[[Mapping[str, Any]], str],
    chart: Callable[[Mapping[str, Any]], str] | None = None,
) -> None:
    """The program of a report: of the results given it makes one document, and of that the tables and the plot."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0] if description else None)
    parser.add_argument("results", nargs="+", metavar="RESULTS.json")
    parser.add_argument("--into", metavar="DOCUMENT.md", help="put the tables there (else they are printed)")
    arguments = parser.parse_args()
    document = merged(json.loads(Path(name).read_text()) for name in arguments.results)
    if arguments.into is None:
        print(tables(document))
        return
    target = Path(arguments.into)
    target.write_text(insert(target.read_text(), tables(document)))
    target.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")
    if chart is not None:
        target.with_suffix(".svg").write_text(chart(document))


def main() -> None:
    render(__doc__, merged, tables, chart)


if __name__ == "__main__":
    main()
