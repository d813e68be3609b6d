"""The benchmarks' own arithmetic: who runs when, and what a ratio is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ocdbt_py
from benchmarks import paper
from benchmarks.harness import (
    PrimedMemory,
    Ratio,
    Times,
    print_table,
    run_child,
    run_children,
    take_turns,
    write_markdown,
)
from benchmarks.model_state import MODELS, Model, Values
from benchmarks.paper_sides import SIDES, Job, Piece, Side


def test_sides_take_turns_after_a_round_that_does_not_count() -> None:
    order: list[str] = []

    def side(name: str) -> Callable[[], float]:
        def run() -> float:
            order.append(name)
            return float(len(order))

        return run

    times = take_turns({"a": side("a"), "b": side("b")}, rounds=2)
    assert order == ["a", "b"] * 3
    assert (times["a"].seconds, times["b"].seconds) == ((3.0, 5.0), (4.0, 6.0))


def test_a_ratio_is_of_medians_and_its_range_of_single_rounds() -> None:
    slower, faster = Times((4.0, 9.0, 6.0)), Times((2.0, 3.0, 1.0))
    assert Ratio.between(slower, faster) == Ratio(of_medians=3.0, lowest=2.0, highest=6.0)
    assert str(Ratio.between(slower, faster)) == "3x [2..6]"
    assert str(slower) == "6.000 [4.000..9.000]"


def test_a_child_that_fails_ends_the_benchmark(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"benchmarks\.no_such_module"):
        run_child("benchmarks.no_such_module", [], PrimedMemory(1))
    assert "no_such_module" in capfd.readouterr().err


def test_tables_have_columns_below_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("title", ["what", "s"], [["a", "1.5"], ["longer", ""]])
    assert capsys.readouterr().out.splitlines() == ["title", "what      s", "a       1.5", "longer"]


def test_the_same_table_is_written_for_documents(tmp_path: Path) -> None:
    write_markdown(str(tmp_path / "table.md"), "title", ["what", "s"], [["a", "1.5"]])
    assert (tmp_path / "table.md").read_text() == "title\n\n| what | s |\n| --- | ---: |\n| a | 1.5 |\n"


def test_one_of_several_children_that_fails_ends_the_benchmark(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"benchmarks\.no_such_module"):
        run_children("benchmarks.no_such_module", [[], []], PrimedMemory(0))
    assert "no_such_module" in capfd.readouterr().err


def test_the_model_has_a_sixteenth_of_the_parameters() -> None:
    model = MODELS["llama8b-1/16"]
    assert len(model.leaves()) == 291
    assert model.nbytes / 2 == pytest.approx(8.03e9 / 16, rel=0.01)
    assert all(shape[0] % 16 == 0 for each in MODELS.values() for shape in each.leaves().values())


def test_rows_of_a_leaf_are_the_same_however_it_is_cut() -> None:
    values = Values(Model(1, 64, 16, 96, 200_000))  # longer than the pattern
    whole = values.rows("embedding", 0, 200_000)
    parts = [values.rows("embedding", start, start + 50_000) for start in range(0, 200_000, 50_000)]
    assert np.array_equal(np.concatenate(parts), whole)
    assert not np.array_equal(values.rows("head", 0, 200_000), whole)


def test_values_that_are_not_those_saved_end_the_benchmark() -> None:
    model = "llama8b-1/256"
    job = Job("torch.save", "load", model, "", 4, 0, 1, 0, True, 1)
    right = [Piece("norm", 0, Values(MODELS[model]).rows("norm", 0, 256))]

    def side(pieces: list[Piece]) -> Side:
        return Side(lambda: None, lambda: None, lambda found: iter(pieces))

    assert paper.verify(job, side(right), None) == 512
    wrong = [piece._replace(bits=piece.bits ^ np.uint16(1)) for piece in right]
    with pytest.raises(SystemExit, match="other values of norm"):
        paper.verify(job, side(wrong), None)


def test_a_side_that_is_not_installed_is_left_out_with_a_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(paper.NEEDED, "torch.save", ("no_such_module",))
    assert paper.taking_part(["ocdbt_py-mapped", "torch.save"], durable=True) == ["ocdbt_py-mapped"]
    assert capsys.readouterr().err == "torch.save is left out: no_such_module not installed\n"
    assert paper.taking_part(["ocdbt_py-mapped", "orbax"], durable=False) == ["ocdbt_py-mapped"]


def test_a_round_saves_and_loads_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def in_this_process(module: str, arguments: list[list[str]], memory: PrimedMemory) -> list[dict[str, Any]]:
        job = Job(**json.loads(arguments[0][1]))
        return [paper.measured(job, SIDES[job.side](job))]

    monkeypatch.setattr(paper, "run_children", in_this_process)
    figures: paper.Figures = {}
    measurement = paper.Measurement("llama8b-1/4096", ["ocdbt_py-mapped"], tmp_path, PrimedMemory(0), True, 1)
    measurement.round("alone", figures)
    rows, records = paper.report(figures)
    assert [record["operation"] for record in records] == [each.title for each in paper.OPERATIONS["alone"]]
    assert all(len(row) == len(paper.HEADER) for row in rows)
    assert all(record["stored_bytes"] > MODELS["llama8b-1/4096"].nbytes for record in records)
    assert not list(tmp_path.iterdir())
    json.dumps(records)


def test_an_operation_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    measurement = paper.Measurement("llama8b-1/4096", ["ocdbt_py-mapped"], tmp_path, PrimedMemory(0), True, 1)
    seconds, cpu, _ = measurement.run(paper.OPERATIONS["alone"][0], "ocdbt_py-mapped", tmp_path / "state")
    assert seconds > 0
    assert cpu > 0
    restored = ocdbt_py.restore(tmp_path / "state")
    expected = Values(MODELS["llama8b-1/4096"]).rows("norm", 0, 64)
    assert np.array_equal(restored["norm"].view(np.uint16), expected)
