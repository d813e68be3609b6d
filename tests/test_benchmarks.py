"""The benchmarks' own arithmetic: who runs when, and what a ratio is."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks.harness import PrimedMemory, Ratio, Times, print_table, run_child, take_turns


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
