"""Small commits of one process append to one data file, and nothing they wrote is ever touched again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from ocdbt_py.database import Database, open_place
from ocdbt_py.engine.commit import Sources
from ocdbt_py.engine.growing_files import LONGEST
from ocdbt_py.errors import StorageError
from ocdbt_py.storage.location import Place, Settings, resolve
from ocdbt_py.testing.faulty import FaultyStorage


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = resolve(tmp_path / "db", settings=Settings(durable=False))
    open_place(place, "x").close()
    return place


@pytest.fixture
def db(place: Place) -> Iterator[Database]:
    with open_place(place, "r+") as db:
        yield db


def data_files(place: Place) -> dict[str, int]:
    """Names and sizes."""
    return {file.name: file.stat().st_size for file in Path(place.path, "d").iterdir()}


def expect_history(place: Place, count: int) -> None:
    """Version by version, keys ``0`` to ``count - 1`` came."""
    with open_place(place) as again:
        for number in range(count):
            assert list(again.at(number + 2).keys()) == sorted(b"%d" % n for n in range(number + 1))


def test_small_commits_share_a_file(place: Place, db: Database) -> None:
    sizes = []
    for number in range(5):
        db[f"{number}"] = b"v" * 200  # longer than what lies in a node
        (size,) = data_files(place).values()
        sizes.append(size)
    assert sizes == sorted(set(sizes))
    expect_history(place, 5)


def test_what_stands_in_a_file_stays(place: Place, db: Database) -> None:
    db["0"] = b"0"
    (file,) = Path(place.path, "d").iterdir()
    before = file.read_bytes()
    for number in range(1, 5):
        db[f"{number}"] = b"0"
        after = file.read_bytes()
        assert after.startswith(before)
        assert len(after) > len(before)
        before = after


def test_handles_do_not_share_files(place: Place, db: Database) -> None:
    with open_place(place, "r+") as other:
        db["0"] = b"0"
        other["1"] = b"1"
        db["2"] = b"2"
        other["3"] = b"3"
    assert len(data_files(place)) == 2
    expect_history(place, 4)


def test_a_file_that_is_long_enough_gets_no_more(place: Place, db: Database) -> None:
    for number in range(12):
        db[f"{number}"] = os.urandom(60_000)
    sizes = sorted(data_files(place).values())
    assert len(sizes) == 3
    assert all(LONGEST <= size < LONGEST + 70_000 for size in sizes[1:])


def test_a_commit_of_much_has_a_file_of_its_own(place: Place, db: Database) -> None:
    db["0"] = b"0"
    db["long"] = b"l" * 70_000
    db.update({f"{number}": b"v" * 200 for number in range(100)})
    db["1"] = b"1"
    assert len(data_files(place)) == 3


def test_who_names_the_files_has_one_for_each_commit(place: Place) -> None:
    names = iter("abc")
    with open_place(place, "r+", sources=Sources(names=lambda: next(names))) as db:
        for number in range(3):
            db[f"{number}"] = b"0"
    assert sorted(data_files(place)) == ["a", "b", "c"]


def test_a_file_that_was_removed_moved_or_appended_to_is_left_alone(place: Place, db: Database) -> None:
    directory = Path(place.path, "d")
    db["0"] = b"0"
    (first,) = directory.iterdir()
    with first.open("ab") as somebody_else:
        somebody_else.write(b"x")
    left = first.read_bytes()
    db["1"] = b"1"
    assert first.read_bytes() == left
    (second,) = set(directory.iterdir()) - {first}
    shutil.copy(second, tmp := directory / "copy")
    second.unlink()
    tmp.rename(second)  # the same bytes, and another file
    left = second.read_bytes()
    db["2"] = b"2"
    assert second.read_bytes() == left
    assert len(data_files(place)) == 3
    expect_history(place, 3)


def test_a_database_that_was_moved_is_not_written_to_under_its_new_name(place: Place, db: Database) -> None:
    db["0"] = b"0"
    moved = f"{place.path}-moved"
    os.rename(place.path, moved)
    shutil.copytree(moved, place.path)
    before = {file.name: file.read_bytes() for file in Path(moved, "d").iterdir()}
    db["1"] = b"1"
    assert {file.name: file.read_bytes() for file in Path(moved, "d").iterdir()} == before
    expect_history(place, 2)


def test_a_forked_child_begins_a_file_of_its_own(place: Place, db: Database) -> None:
    db["0"] = b"0"
    pid = os.fork()
    if not pid:
        try:
            db["1"] = b"1"
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    db["2"] = b"2"
    assert len(data_files(place)) == 2
    expect_history(place, 3)


@pytest.mark.parametrize("step", ["growing.append", "growing.sync", "hold.write"])
def test_after_a_failure_another_file_is_begun_and_the_old_one_kept(place: Place, step: str) -> None:
    faulty = FaultyStorage(place.storage, fault="fail")
    with open_place(replace(place, storage=faulty), "r+") as db:
        db["0"] = b"0"
        (first,) = Path(place.path, "d").iterdir()
        steps = {"growing.append": 1, "growing.sync": 2, "hold.write": 3}
        faulty.at = faulty.steps + steps[step]
        with pytest.raises(StorageError):
            db["1"] = b"1"
        assert faulty.operations[step] == 2
        assert dict(db.items()) == {b"0": b"0"}
        db["1"] = b"1"
        assert first.exists()
        expect_history(place, 2)


def test_no_more_files_are_open_than_databases(place: Place) -> None:
    def opened() -> list[str]:
        found = []
        for fd in os.listdir("/proc/self/fd"):
            with suppress(FileNotFoundError):
                found.append(os.readlink(f"/proc/self/fd/{fd}"))
        return [target for target in found if target.startswith(place.path)]

    with open_place(place, "r+") as db:
        for number in range(100):
            db[f"{number}"] = b"0"
        assert len(opened()) <= 1 + 2  # and replaced manifests, whose end another thread may be waiting for
        assert len([target for target in opened() if "/d/" in target]) == 1
    with open_place(place, "r+") as other:
        other["x"] = b"0"
    del db, other
    assert not [target for target in opened() if "/d/" in target]
