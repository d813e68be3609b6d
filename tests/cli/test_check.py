from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ocdbt_py

Run = Callable[..., Any]


def test_a_sound_database_is_said_to_be_sound(run: Run, database: Path) -> None:
    done = run("check", database)
    assert done.code == 0
    assert done.lines[0].startswith(f"{database}: 3 versions, 2 B-tree nodes, 0 version tree nodes, 2 data files of ")
    assert done.lines[1:] == ["sound"]


def test_damage_is_a_line_each_and_exit_code_1(run: Run, database: Path) -> None:
    with ocdbt_py.open(database) as db:
        location = db.stat("a/long").location
    assert location is not None
    (database / location.file).unlink()
    done = run("check", database)
    assert done.code == 1
    assert done.lines[0].startswith(f"damage: file-missing: Data file {location.file} is not there")
    assert done.lines[-1] == "damaged: 1 finding"
    document = run("check", database, "--json").document
    assert document["command"] == "check"
    assert document["url"] == str(database)
    assert document["ok"] is False
    assert document["unreadable"] == [3, 2]
    (finding,) = document["findings"]
    assert (finding["severity"], finding["kind"], finding["key"]) == ("damage", "file-missing", "a/long")


def test_notes_are_summed_up_unless_asked_for(run: Run, database: Path) -> None:
    (database / "d" / ("0" * 32)).write_bytes(b"12345")
    done = run("check", database)
    assert done.code == 0
    assert done.lines[0] == "note: orphan-file: a data file that no version refers to: 1, 5 bytes"
    assert (
        run("check", database, "--notes").lines[0].startswith(f"note: orphan-file: No version refers to d/{'0' * 32}")
    )


def test_a_hostile_name_does_not_steer_the_terminal(run: Run, database: Path) -> None:
    (database / "\x1b[1m").write_bytes(b"")
    done = run("check", database, "--notes")
    assert "\\x1b[1m (0 bytes) is not part of the database" in done.out
    assert "\x1b" not in done.out


def test_nothing_there_is_exit_code_2(run: Run, tmp_path: Path) -> None:
    done = run("check", tmp_path / "nothing")
    assert done.code == 2
    assert "There is no OCDBT database" in done.err
