"""The page about storage servers says what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import stores_report
from benchmarks.report import insert
from tests.measured_machine import MACHINE

DOCS = Path(__file__).parent.parent / "docs"


def document(*runs: tuple[str, str, str, str, list[float]], **machine: Any) -> dict[str, Any]:
    names = ("server", "workload", "operation", "side", "seconds")
    return {"machine": MACHINE | machine, "runs": [dict(zip(names, run, strict=True)) for run in runs]}


FIGURES = document(
    ("ftp", "large", "restore", "ocdbt_py", [1.0, 2.0]),
    ("ftp", "large", "restore", "copy", [0.9, 2.0]),
    ("gcs", "small", "save", "ocdbt_py", [2.0]),
    ("gcs", "small", "save", "TensorStore", [9.0]),
    ("gcs", "small", "save", "copy", [1.0]),
)


def test_a_row_has_our_seconds_the_ratios_and_whether_the_goal_is_reached() -> None:
    lines = stores_report.table(stores_report.merged([FIGURES])).splitlines()
    assert "| **5,000 x 4 KiB: save** | | | | | |" in lines
    gcs, ftp = (next(line for line in lines if line.startswith(f"| {title}")) for title in ("Google", "FTP"))
    assert gcs.endswith("| 1 | 2 s | 4.5×, 9 s | 0.5×, 1 s | ≥ 5× TensorStore: **not reached** |")
    assert ftp == "| FTP, pyftpdlib | 2 | 1.5 s [1..2] |  | 0.967× [0.9..1], 1.45 s | ≥ 0.8× copy: reached |"
    assert {line.count("|") for line in lines[2:]} == {7}


def test_later_measurements_replace_earlier_ones_of_the_same_machine() -> None:
    later = document(("ftp", "large", "restore", "copy", [0.3, 0.3]))
    runs = stores_report.merged([FIGURES, later])["runs"]
    assert [run["seconds"] for run in runs if (run["server"], run["side"]) == ("ftp", "copy")] == [[0.3, 0.3]]
    assert len(runs) == len(FIGURES["runs"])
    with pytest.raises(SystemExit, match="several machines"):
        stores_report.merged([FIGURES, document(cpu="Another")])


def test_the_page_shows_the_results_that_lie_beside_it() -> None:
    page = (DOCS / "stores.md").read_text()
    found = json.loads((DOCS / "stores.json").read_text())
    assert insert(page, stores_report.table(found)) == page
