"""The command line as a whole: exit codes, errors, options of every verb, and the process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ocdbt_py
from ocdbt_py.backends import LocalStorage
from ocdbt_py.cli import VERBS, main
from ocdbt_py.storage.location import resolve

Run = Callable[..., Any]

ROOT = Path(__file__).parents[2]


def process(*words: object, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'backends'}"}
    command = [sys.executable, "-m", "ocdbt_py", *map(str, words)]
    return subprocess.run(command, env=environment, text=True, encoding="utf-8", timeout=60, check=False, **options)


def test_the_command_is_this_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, name = project["scripts"]["ocdbt"].partition(":")
    assert callable(getattr(import_module(module), name))


def test_the_process_answers_in_utf8_and_with_an_exit_code(tmp_path: Path) -> None:
    ocdbt_py.save(tmp_path / "c", {"größe": np.arange(3)}, durable=False)
    done = process("ls", tmp_path / "c", capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "größe\n", "")
    assert process("ls", tmp_path / "absent", capture_output=True).returncode == 2


def test_listing_a_checkpoint_loads_neither_jax_nor_fsspec_nor_tensorstore_nor_rich(checkpoint: Path) -> None:
    script = (
        "import sys; from ocdbt_py.cli import main; code = main(sys.argv[1:]); "
        "sys.exit(code or bool({'jax', 'fsspec', 'tensorstore', 'rich'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'backends'}"}
    words = [sys.executable, "-c", script, "ls", str(checkpoint)]
    assert subprocess.run(words, env=environment, capture_output=True, timeout=60, check=False).returncode == 0


def test_a_reader_that_goes_away_ends_the_command_quietly(tmp_path: Path) -> None:
    with ocdbt_py.open(tmp_path / "db", "a", durable=False) as db:
        db.update({f"key {i:06}": b"" for i in range(20_000)})
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'backends'}"}
    words = [sys.executable, "-m", "ocdbt_py", "ls", str(tmp_path / "db")]
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.readline() == b"key 000000\n"
        child.stdout.close()
        assert child.stderr.read() == b""
        assert child.wait(60) == 141


def test_help_names_every_verb_and_imports_none(run: Run) -> None:
    done = run("--help")
    assert done.code == 0
    assert all(f"    {verb} " in done.out for verb in VERBS)
    assert run("--version").out == f"ocdbt_py {ocdbt_py.__version__}\n"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_in_80_columns(run: Run, verb: str) -> None:
    done = run(verb, "--help")
    assert done.code == 0
    assert done.out.startswith(f"usage: ocdbt {verb} ")
    assert "--json" in done.out
    assert "--storage-option KEY=VALUE" in done.out
    assert max(map(len, done.lines)) <= 80


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_answers_in_one_json_document_that_names_verb_and_place(
    run: Run, checkpoint: Path, tmp_path: Path, verb: str
) -> None:
    rest: dict[str, list[object]] = {"cat": ["step"], "get": ["step", "-o", tmp_path / "step"]}
    done = run(verb, checkpoint, *rest.get(verb, []), "--json")
    assert (done.code, done.err) == (0, "")
    assert list(done.document)[:2] == ["command", "url"]
    assert (done.document["command"], done.document["url"]) == (verb, str(checkpoint))


@pytest.mark.parametrize(
    "words",
    [(), ("lss", "x"), ("ls",), ("ls", "x", "y", "z"), ("cat", "x"), ("get", "x", "k"), ("log", "x", "-n", "a")],
)
def test_a_wrong_call_is_exit_code_2_with_usage(run: Run, words: tuple[str, ...]) -> None:
    done = run(*words)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("usage: ocdbt")


def test_nothing_there_is_exit_code_2_and_one_line(run: Run, tmp_path: Path) -> None:
    done = run("ls", tmp_path / "absent")
    assert (done.code, done.out) == (2, "")
    assert done.err == f"ocdbt ls: There is nothing at {tmp_path / 'absent'}; check the path\n"
    (tmp_path / "file.txt").write_text("text")
    assert run("tree", tmp_path).code == 2


def test_a_root_of_steps_names_the_steps(run: Run, tmp_path: Path) -> None:
    for step in (1, 2):
        ocdbt_py.save(tmp_path / str(step), {"a": np.zeros(2)}, durable=False)
    done = run("ls", tmp_path)
    assert done.code == 2
    assert "1, 2" in done.err


def test_damage_is_exit_code_1_and_one_line(run: Run, database: Path) -> None:
    (database / "manifest.ocdbt").write_bytes(b"not a manifest")
    done = run("ls", database)
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert "manifest.ocdbt" in done.err


def test_a_storage_that_fails_is_exit_code_3(run: Run, database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise ocdbt_py.StoragePermissionError("The storage refused access")

    monkeypatch.setattr(LocalStorage, "read", refuse)
    done = run("ls", database)
    assert (done.code, done.err) == (3, "ocdbt ls: The storage refused access\n")


def test_an_error_of_ours_is_exit_code_70_and_tells_how_to_see_more(
    run: Run, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(arguments: object) -> None:
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr("ocdbt_py.cli.ls.run", broken)
    done = run("ls", database)
    assert (done.code, done.err) == (70, "ocdbt ls: ZeroDivisionError: two lines; OCDBT_DEBUG=1 shows where\n")


def test_with_the_debug_variable_errors_come_with_their_traceback(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OCDBT_DEBUG", "1")
    with pytest.raises(ocdbt_py.NotFoundError):
        main(["ls", str(tmp_path / "absent")])


def test_storage_options_reach_the_storage_with_their_types(
    run: Run, monkeypatch: pytest.MonkeyPatch, database: Path
) -> None:
    seen: list[Any] = []

    def recording(url: object, *, storage_options: object) -> Any:
        seen.append(storage_options)
        return resolve(url)

    monkeypatch.setattr("ocdbt_py.cli.target.resolve", recording)
    options = ["anon=true", "key=AKIA=x", "retries=3", 'client={"a": 1}', "empty="]
    assert run("ls", database, *(f"--storage-option={option}" for option in options)).code == 0
    assert seen == [{"anon": True, "key": "AKIA=x", "retries": 3, "client": {"a": 1}, "empty": ""}]


@pytest.mark.parametrize("option", ["secret", "=secret"])
def test_a_malformed_storage_option_is_refused_without_repeating_it(run: Run, database: Path, option: str) -> None:
    done = run("ls", database, f"--storage-option={option}")
    assert done.code == 2
    assert "secret" not in done.err


def test_a_database_in_memory_is_reached_by_its_url(run: Run) -> None:
    url = "memory://cli-test/db"
    ocdbt_py.open(url, "a")["k"] = b"v"
    assert run("ls", url).lines == ["k"]
    assert json.loads(run("info", url, "--json").out)["kind"] == "database"
