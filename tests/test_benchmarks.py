"""The benchmarks measure what they say: who runs when, what a ratio is, and that every load is compared."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ocdbt_py
from benchmarks import harness, imports, judges, kv, operations, paper, pytrees, slices
from benchmarks.harness import (
    PrimedMemory,
    Ratio,
    Times,
    print_table,
    run_child,
    run_children,
    take_turns,
)
from benchmarks.operations import Measurement, Operation, Runs
from benchmarks.sides import SIDES, Job, Piece, Side, prepare, taking_part
from benchmarks.states import STATES, State, Values, llama


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
    assert str(Ratio.between(slower, faster)) == "3× [2..6]"
    assert str(slower) == "6.000 [4.000..9.000]"


@pytest.mark.parametrize(
    ("slower", "faster"), [((6.0,), (3.0,)), ((6.0, 6.0), (3.0, 3.0)), ((4.0, 8.0), (3.0,)), ((6.0,), (2.0, 4.0))]
)
def test_a_range_is_shown_only_of_rounds_that_belong_together_and_differ(
    slower: tuple[float, ...], faster: tuple[float, ...]
) -> None:
    assert str(Ratio.between(Times(slower), Times(faster))) == "2×"


def test_a_child_that_fails_ends_the_benchmark(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"benchmarks\.no_such_module"):
        run_child("benchmarks.no_such_module", [], PrimedMemory(1))
    assert "no_such_module" in capfd.readouterr().err


def test_tables_have_columns_below_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("title", ["what", "s"], [["a", "1.5"], ["longer", ""]])
    assert capsys.readouterr().out.splitlines() == ["title", "what      s", "a       1.5", "longer"]


def test_one_of_several_children_that_fails_ends_the_benchmark(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"benchmarks\.no_such_module"):
        run_children("benchmarks.no_such_module", [[], []], PrimedMemory(0))
    assert "no_such_module" in capfd.readouterr().err


def test_memory_is_primed_with_no_more_than_an_operation_can_take() -> None:
    memory = PrimedMemory(8)
    memory.up_to(2).hold()
    assert memory.up_to(2)._size == 2 << 20
    assert memory.up_to(100)._size == 8 << 20


def test_the_model_has_a_sixteenth_of_the_parameters() -> None:
    model = STATES["llama8b-1/16"]
    assert len(model.leaves) == 291
    assert model.nbytes / 2 == pytest.approx(8.03e9 / 16, rel=0.01)
    llamas = [state for name, state in STATES.items() if name.startswith("llama8b")]
    assert all(shape[0] % 16 == 0 for each in llamas for shape in each.leaves.values())


def test_states_are_of_the_sizes_that_the_goals_speak_of() -> None:
    assert STATES["gpt2"].nbytes == pytest.approx(498e6, rel=0.001)
    assert (STATES["small-10k"].nbytes / 10_000, len(STATES["small-50k"].leaves)) == (
        pytest.approx(2400, rel=0.1),
        50_000,
    )
    assert STATES["one-4g"].nbytes == 4 << 30
    assert str(STATES["one-1g"]) == "1 leaf, 1,074 MB of float32"


def test_rows_of_a_leaf_are_the_same_however_it_is_cut() -> None:
    values = Values(llama(1, 64, 16, 96, 200_000))  # longer than the pattern
    whole = values.rows("embedding", 0, 200_000)
    parts = [values.rows("embedding", start, start + 50_000) for start in range(0, 200_000, 50_000)]
    assert np.array_equal(np.concatenate(parts), whole)
    assert not np.array_equal(values.rows("head", 0, 200_000), whole)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_are_normally_distributed_in_either_dtype(dtype: str) -> None:
    array = Values(State({"w": (10_000,)}, dtype)).array("w").astype(np.float64)
    assert (array.mean(), array.std()) == (pytest.approx(0, abs=0.05), pytest.approx(1, abs=0.05))


def test_values_that_are_not_those_saved_end_the_benchmark() -> None:
    job = Job("torch.save", "load", "llama8b-1/256", "", shards=4)
    right = [Piece("norm", 0, Values(STATES[job.state]).rows("norm", 0, 256))]

    def side(pieces: list[Piece]) -> Side:
        return Side({}, lambda found: iter(pieces))

    assert operations.verify(job, side(right), None) == 512
    wrong = [piece._replace(bits=piece.bits ^ np.uint16(1)) for piece in right]
    with pytest.raises(SystemExit, match="other values of norm"):
        operations.verify(job, side(wrong), None)


def test_a_side_that_is_not_installed_is_left_out_with_a_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SIDES, "torch.save", SIDES["torch.save"]._replace(needs=("no_such_module",)))
    assert taking_part(["ocdbt_py-mapped", "torch.save"]) == ["ocdbt_py-mapped"]
    assert capsys.readouterr().err == "torch.save is left out: no_such_module not installed\n"
    assert taking_part(["ocdbt_py-mapped", "orbax"], durable=False) == ["ocdbt_py-mapped"]


def test_every_side_that_a_benchmark_names_exists() -> None:
    named = {side for workload in pytrees.WORKLOADS.values() for side in (*workload.sides, *workload.begins)}
    named |= {side for group in paper.OPERATIONS.values() for operation in group for side in operation.sides}
    assert named == set(SIDES)


@pytest.mark.parametrize("side", ["ocdbt_py-numpy", "ocdbt_py-mapped", "tensorstore", "npz", "pickle", "raw-files"])
@pytest.mark.parametrize("state", ["small-3-float32", "llama8b-1/4096"])
def test_a_side_loads_what_it_saved(tmp_path: Path, side: str, state: str) -> None:
    path = str(tmp_path / "state")
    prepare(Job(side, "save", state, path)).operations["save"]()
    answer = operations.measured(job := Job(side, "load", state, path), prepare(job))
    assert answer["verified"] == STATES[state].nbytes


def test_judges_notice_another_value(tmp_path: Path) -> None:
    path, state = str(tmp_path / "state"), STATES["small-3-float32"]
    side = prepare(Job("ocdbt_py-numpy", "save", "small-3-float32", path))
    side.operations["save"]()
    judges.tensorstore_reads(state, path)
    judges.orbax_restores(state, path)
    other = ocdbt_py.restore(path)
    other["block_0"]["item_1"]["w"][7] = 0
    ocdbt_py.save(path, other, overwrite=True)
    with pytest.raises(SystemExit, match=r"TensorStore reads other values of block_0\.item_1\.w"):
        judges.tensorstore_reads(state, path)
    with pytest.raises(SystemExit, match=r"Orbax reads other values of block_0\.item_1\.w"):
        judges.orbax_restores(state, path)


def test_a_judge_of_databases_notices_a_key_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "db")
    kv.Ours(path).put_all(10)()
    kv.judge(path)
    monkeypatch.setattr(kv.TensorStores, "keys", lambda self: [kv.key(1)])
    with pytest.raises(SystemExit, match="other entries"):
        kv.judge(path)


def test_a_round_saves_and_loads_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_before = []

    def in_this_process(
        module: str, arguments: list[list[str]], memory: PrimedMemory, files: Path | None
    ) -> list[dict[str, Any]]:
        job = Job(**json.loads(arguments[0][0]))
        read_before.append((job.operation, files == Path(job.path)))
        return [operations.measured(job, prepare(job))]

    monkeypatch.setattr(operations, "run_children", in_this_process)
    figures: operations.Figures = {}
    measurement = Measurement("paper", "llama8b-1/4096", ["ocdbt_py-mapped"], tmp_path, PrimedMemory(0))
    measurement.round(paper.OPERATIONS["alone"], figures)
    records = operations.records(figures, {"fsync": True})
    assert [record["operation"] for record in records] == [each.title for each in paper.OPERATIONS["alone"]]
    assert all(len(row) == len(operations.HEADER) for row in operations.rows(figures))
    assert all(record["stored_bytes"] > STATES["llama8b-1/4096"].nbytes for record in records)
    assert not list(tmp_path.iterdir())
    assert read_before == [("save", False), ("load", True), ("begin", False)]
    json.dumps(records)


def test_files_are_read_wherever_they_lie(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name, size in (("f", 5 << 20), ("a/g", 0), ("a/b/h", 3)):
        (tmp_path / name).write_bytes(bytes(size))
    before = slices.bytes_read()
    harness.read_all(tmp_path)
    assert slices.bytes_read() - before >= (5 << 20) + 3


def test_an_operation_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    measurement = Measurement("paper", "llama8b-1/4096", ["ocdbt_py-mapped"], tmp_path, PrimedMemory(0))
    runs = Runs()
    measurement.run(Operation("save", "save", ()), "ocdbt_py-mapped", tmp_path / "state", runs)
    assert runs.seconds[0] > 0
    assert runs.cpu[0] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["state"]  # and what it was warmed up with is gone
    restored = ocdbt_py.restore(tmp_path / "state")
    expected = Values(STATES["llama8b-1/4096"]).rows("norm", 0, 64)
    assert np.array_equal(restored["norm"].view(np.uint16), expected)


def test_a_part_is_read_by_all_from_what_they_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "READERS", {"ocdbt_py": ("ocdbt_py-numpy",), "npz": ("npz",)})
    monkeypatch.setattr(slices, "WRITERS", {"ocdbt_py-numpy": "ocdbt_py", "npz": "npz"})
    found = slices.measure("tiny", 1, tmp_path)
    assert found.keys() == {"ocdbt_py from ocdbt_py", "npz from npz"}
    assert all(reads.seconds[0] > 0 and reads.read[0] >= reads.needed for reads in found.values())


def test_database_operations_run_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["kv", "--quick", "--only", "commits_on_10k", "--json", str(tmp_path / "kv.json")]
    monkeypatch.setattr("sys.argv", arguments)
    kv.main()
    document = json.loads((tmp_path / "kv.json").read_text())
    assert [(run["operation"], run["side"]) for run in document["runs"]] == [
        ("commits_on_10k", "ocdbt_py"),
        ("commits_on_10k", "tensorstore"),
    ]
    assert document["machine"]["packages"]["numpy"] == np.__version__


def test_pytrees_are_measured_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "pytrees.json"
    sides = ["--side", "ocdbt_py-numpy", "--side", "npz"]
    arguments = ["--workload", "tiny", "--no-warm-up", *sides, "--json", str(file), "--directory", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["pytrees", *arguments])
    pytrees.main()
    runs = {(run["operation"], run["side"]): run for run in json.loads(file.read_text())["runs"]}
    assert runs.keys() == {
        (operation, side) for operation in ("save", "restore") for side in ("ocdbt_py-numpy", "npz")
    } | {("map", "ocdbt_py-numpy"), ("async save returns", "ocdbt_py-numpy")}
    assert all(run["seconds"][0] > 0 for run in runs.values())
    assert len(runs["restore", "npz"]["pass_seconds"]) == 1
    assert list(tmp_path.iterdir()) == [file]


def test_imports_are_measured_in_fresh_interpreters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = {imports.OURS: imports.STATEMENTS[imports.OURS], "a tenth": "time.sleep(0.1)"}
    monkeypatch.setattr(imports, "STATEMENTS", ours)
    monkeypatch.setattr("sys.argv", ["imports", "--rounds", "1", "--json", str(tmp_path / "imports.json")])
    imports.main()
    runs = json.loads((tmp_path / "imports.json").read_text())["runs"]
    assert [run["side"] for run in runs] == ["ocdbt_py", "a tenth"]
    assert 0.1 <= runs[1]["seconds"][0] < 10
