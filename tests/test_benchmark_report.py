"""What the benchmarks' report says follows from the figures, and its files are well-formed."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as driver
from benchmarks import report
from benchmarks.dot_chart import Row, as_svg
from benchmarks.goals import GOALS, AtMost, Faster, by_key
from tests.measured_machine import MACHINE

ROOT = Path(__file__).parent.parent


def run(workload: str, operation: str, side: str, seconds: list[float], **more: Any) -> dict[str, Any]:
    found = {"workload": workload, "operation": operation, "side": side, "seconds": seconds, "title": workload.title()}
    return found | {"extra_mib": [3.5]} | more


def document(*runs: dict[str, Any], **machine: Any) -> dict[str, Any]:
    return {"machine": MACHINE | machine, "runs": list(runs)}


FIGURES = document(
    run("f32", "save", "ocdbt_py", [1.0, 2.0, 3.0], stored_bytes=5_000_000, leaves="1 leaf"),
    run("f32", "save", "orbax", [4.0, 2.0, 30.0], stored_bytes=6_000_000),
    run("f32", "restore", "ocdbt_py-numpy", [1.0], pass_seconds=[0.5]),
    run("f32", "restore", "orbax", [8.0], pass_seconds=[1.0], stored_bytes=7_000_000),
)


def test_a_goal_is_about_the_ratio_of_medians() -> None:
    goal = Faster("g", "t", ("f32", "save", "ocdbt_py"), ("f32", "save", "orbax"), 2.0)
    verdict = goal.judge(by_key(FIGURES["runs"]))
    assert verdict is not None
    assert (verdict.found, verdict.is_reached) == ("2× [1..10]", True)


def test_a_goal_that_is_missed_by_little_is_missed() -> None:
    goal = Faster("g", "t", ("f32", "save", "ocdbt_py"), ("f32", "save", "orbax"), 2.01)
    verdict = goal.judge(by_key(FIGURES["runs"]))
    assert verdict is not None
    assert not verdict.is_reached


def test_the_pass_over_the_data_counts_on_both_sides() -> None:
    goal = Faster("g", "t", ("f32", "restore", "ocdbt_py-numpy"), ("f32", "restore", "orbax"), 6.0, with_pass=True)
    verdict = goal.judge(by_key(FIGURES["runs"]))
    assert verdict is not None
    assert (verdict.found, verdict.is_reached) == ("6×", True)


def test_beside_a_goal_stands_what_raw_files_would_reach() -> None:
    records = by_key([*FIGURES["runs"], run("f32", "save", "raw-files", [0.5, 0.5, 1.0])])
    goal = Faster("g", "t", ("f32", "save", "ocdbt_py"), ("f32", "save", "orbax"), 2.0)
    verdicts = [goal.judge(records), replace(goal, has_floor=True).judge(records)]
    assert [verdict.possible for verdict in verdicts if verdict is not None] == ["", "8×"]


def test_a_goal_whose_figures_are_missing_is_not_judged() -> None:
    records, missing = by_key(FIGURES["runs"]), ("f32", "save", "dcp")
    assert Faster("g", "t", ("f32", "save", "ocdbt_py"), missing, 2.0).judge(records) is None
    assert AtMost("g", "t", (missing,), lambda run: 0.0, 1.0, "ms").judge(records) is None


@pytest.mark.parametrize(("limit", "is_reached"), [(2.0, True), (1.99, False)])
def test_a_limit_holds_when_it_is_met_exactly(limit: float, is_reached: bool) -> None:
    goal = AtMost("g", "t", (("f32", "save", "ocdbt_py"),), lambda run: sorted(run["seconds"])[1], limit, "s")
    verdict = goal.judge(by_key(FIGURES["runs"]))
    assert verdict is not None
    assert (verdict.found, verdict.is_reached) == ("2 s", is_reached)


def test_every_limit_computes_from_what_benchmarks_record() -> None:
    figures = {"extra_mib": [12.0], "read_bytes": [1100], "needed_bytes": 1000}
    for goal in GOALS:
        if isinstance(goal, AtMost):
            verdict = goal.judge({key: run(*key, [0.25]) | figures for key in goal.needs})
            assert verdict is not None, goal.text


def test_goals_have_texts_of_their_own() -> None:
    assert len({goal.text for goal in GOALS}) == len(GOALS)


def test_later_results_replace_earlier_ones() -> None:
    again = document(run("f32", "save", "orbax", [7.0]))
    found = by_key(report.merged([FIGURES, again])["runs"])
    assert found["f32", "save", "orbax"]["seconds"] == [7.0]
    assert found["f32", "save", "ocdbt_py"]["seconds"] == [1.0, 2.0, 3.0]


def test_results_of_two_machines_are_not_mixed() -> None:
    with pytest.raises(SystemExit, match=r"several machines.*64"):
        report.merged([FIGURES, document(cores=64)])


def test_tables_name_the_machine_and_each_goal_that_was_measured() -> None:
    made = report.tables(FIGURES)
    assert "A chip, 2 cores, 8 GiB of memory, Linux 6, Python 3.11, numpy 2.0; 2026-01-02" in made
    assert "| GPT-2, float32: save, Orbax | ≥ 1.5× | 2× [1..10] | reached |" in made
    assert "| GPT-2, float32: copy, Orbax | ≥ 4× | 8× | reached |" in made
    assert "DCP" not in made


def test_a_peer_stands_beside_our_figures_for_the_same_arrays() -> None:
    lines = report.figures_table(FIGURES["runs"])
    assert "| save | Orbax | 4 s [2..30] |  | 3.5 | 6 | 2× |" in lines
    assert "| restore | Orbax | 8 s | 9 s | 3.5 | 7 | 8× |" in lines


def test_every_row_of_a_table_has_as_many_cells_as_its_head() -> None:
    for table in (report.goals_table(by_key(FIGURES["runs"])), report.figures_table(FIGURES["runs"])):
        assert len({line.count("|") for line in table}) == 1


def test_the_plot_is_well_formed_and_has_a_dot_for_each_ratio() -> None:
    root = ElementTree.fromstring(report.chart(FIGURES))
    tips = [title.text for title in root.iter("{http://www.w3.org/2000/svg}title")]
    assert tips == ["save: 2 times faster than Orbax", "restore: 8 times faster than Orbax"]


def test_dots_lie_on_a_logarithmic_axis() -> None:
    made = as_svg("<t>", [Row("h", "a & b", {"p": 0.1, "q": 1.0, "r": 10.0})])
    dots = ElementTree.fromstring(made).findall("{http://www.w3.org/2000/svg}circle")
    across = [float(dot.attrib["cx"]) for dot in dots if len(dot)]
    assert across[1] - across[0] == pytest.approx(across[2] - across[1], abs=0.2)


def test_tables_replace_what_stands_between_the_marks() -> None:
    text = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
    made = report.insert(text, "new \\1")
    assert made == f"before\n{report.BEGIN}\n\nnew \\1\n{report.END}\nafter\n"
    assert report.insert(made, "new \\1") == made
    with pytest.raises(SystemExit, match="There is no"):
        report.insert("no marks", "new")


def test_all_benchmarks_are_gathered_by_one_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands: list[list[str]] = []

    def measure(command: list[str], **_: Any) -> None:
        commands.append(command)
        name = command[2].removeprefix("benchmarks.")
        Path(command[4]).write_text(json.dumps(document(run(name, "import", "ocdbt_py", [1.0]))))

    monkeypatch.setattr("subprocess.run", measure)
    monkeypatch.setattr("sys.argv", ["benchmarks", "--quick", "--only", "imports", "kv", "--output", str(tmp_path)])
    driver.main()
    assert [command[2:3] + command[-1:] for command in commands] == [
        ["benchmarks.imports", "--quick"],
        ["benchmarks.kv", "--quick"],
    ]
    results = json.loads((tmp_path / "results.json").read_text())
    assert [run["workload"] for run in results["runs"]] == ["imports", "kv"]
    assert "### Kv" in (tmp_path / "results.md").read_text()
    ElementTree.parse(tmp_path / "results.svg")


def test_the_document_shows_the_results_that_lie_beside_it() -> None:
    page = ROOT / "docs" / "performance.md"
    results = json.loads(page.with_suffix(".json").read_text())
    text = page.read_text()
    assert report.insert(text, report.tables(results)) == text
    assert page.with_suffix(".svg").read_text() == report.chart(results)
