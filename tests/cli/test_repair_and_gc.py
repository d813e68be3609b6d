"""``repair`` finishes a save that was interrupted, ``gc`` removes it, and neither does anything without ``--apply``."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ocdbt_py

Run = Callable[..., Any]

COUNT = 2


@pytest.fixture
def interrupted(tmp_path: Path) -> Path:
    """The URL of a checkpoint that two processes wrote and nobody merged."""
    url = tmp_path / "c"
    processes = [ocdbt_py.FileProcesses(tmp_path / "meeting", index, COUNT) for index in range(COUNT)]
    tree = {"w": np.arange(3000), "text": "hi"}
    save = ocdbt_py.save
    threads = [threading.Thread(target=save, args=(url, tree), kwargs={"processes": each}) for each in processes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    staged = url.with_name("c.orbax-checkpoint-tmp")
    url.rename(staged)
    (staged / "manifest.ocdbt").unlink()
    return url


def files(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("verb", ["repair", "gc"])
def test_without_apply_nothing_changes(run: Run, interrupted: Path, verb: str) -> None:
    before = files(interrupted.parent)
    done = run(verb, interrupted)
    assert (done.code, done.err) == (0, "")
    assert done.lines[0].startswith(f"{interrupted}.orbax-checkpoint-tmp: ")
    assert done.lines[0].endswith("parts of 2 processes")
    assert done.lines[1].endswith("nothing was changed, --apply does it")
    document = run(verb, interrupted, "--json").document
    staged = {path: data for path, data in before.items() if ".orbax-checkpoint-tmp" in path}
    assert (document["command"], document["applied"], document["processes"]) == (verb, False, COUNT)
    assert (document["files"], document["nbytes"]) == (len(staged), sum(map(len, staged.values())))
    assert document["begun"].endswith("Z")
    assert files(interrupted.parent) == before


def test_repair_finishes_the_save(run: Run, interrupted: Path) -> None:
    done = run("repair", interrupted, "--apply")
    assert (done.code, done.err) == (0, "")
    assert done.lines[-1].endswith("is finished")
    found = ocdbt_py.restore(interrupted)
    assert (found["w"].tolist(), found["text"]) == (list(range(3000)), "hi")
    assert ocdbt_py.check(interrupted).ok
    again = run("repair", interrupted, "--apply")
    assert (again.code, again.lines) == (0, [f"No save to {interrupted} was interrupted; nothing to do"])


def test_gc_removes_the_save_and_nothing_else(run: Run, interrupted: Path) -> None:
    (interrupted.parent / "other").write_text("stays")
    assert run("gc", interrupted, "--apply", "--json").document["applied"] is True
    assert not interrupted.with_name("c.orbax-checkpoint-tmp").exists()
    assert (interrupted.parent / "other").exists()
    done = run("gc", interrupted, "--apply")
    assert done.code == 2
    assert "No save" in done.err


def test_a_finished_checkpoint_beside_what_was_to_replace_it_stays(run: Run, interrupted: Path) -> None:
    old = interrupted.with_name("old")
    ocdbt_py.save(old, {"w": np.zeros(2)})
    old.rename(interrupted)
    run("gc", interrupted, "--apply")
    assert ocdbt_py.restore(interrupted)["w"].tolist() == [0, 0]


def test_what_lacks_a_part_is_not_finished_and_says_so(run: Run, interrupted: Path) -> None:
    (interrupted.with_name("c.orbax-checkpoint-tmp") / "ocdbt.process_0").rename(interrupted.parent / "aside")
    for words in ((), ("--apply",)):
        done = run("repair", interrupted, *words)
        assert done.code == 2
        assert "process 0 did not write all of its part" in done.err
    assert run("gc", interrupted).code == 0


def test_an_inner_chunk_that_nobody_wrote_keeps_the_save_unfinished(run: Run, interrupted: Path) -> None:
    staged = interrupted.with_name("c.orbax-checkpoint-tmp")
    with ocdbt_py.open(staged / "ocdbt.process_0", "r+") as part:
        del part["w/0"]
    before = files(staged)
    for words in ((), ("--apply",)):
        done = run("repair", interrupted, *words)
        assert done.code == 2
        assert "cannot be finished" in done.err
    assert {path: data for path, data in files(staged).items() if path in before} == before
