"""A commit is whole or not at all, wherever the process ends or the storage fails."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

import ocdbt_py
from ocdbt_py.database import Database, open_place
from ocdbt_py.storage.location import Place, resolve
from ocdbt_py.testing.faulty import Crash, Fault, FaultyStorage

CONFIGS = {
    "one node": ocdbt_py.Config(),
    "a tree, rolling over": ocdbt_py.Config(max_decoded_node_bytes=100, version_tree_arity_log2=1),
    "numbered": ocdbt_py.Config(max_decoded_node_bytes=100, manifest_kind="numbered", version_tree_arity_log2=1),
}

BEFORE = {f"{i:02}".encode(): b"%d" % i * 60 for i in range(12)}
AFTER = {**{key: value for key, value in BEFORE.items() if key != b"03"}, b"05": b"new" * 100, b"x": b""}


def change(db: Database) -> None:
    with db.transaction() as t:
        del t["03"]
        t["05"] = b"new" * 100
        t["x"] = b""


@pytest.fixture(params=["local", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return resolve(tmp_path / "db" if request.param == "local" else f"memory://{uuid.uuid4().hex}/db")


def contents(place: Place) -> dict[bytes, bytes]:
    with open_place(place) as db:
        found = dict(db.items())
        assert len(db) == len(found) == db.version.num_keys
        for version in db.versions():  # the history is whole too
            assert len(list(db.at(version))) == version.num_keys
        return found


def prepare(place: Place, config: ocdbt_py.Config) -> None:
    for item in place.storage.list(place.path + "/", deep=True):
        place.storage.delete(item.path)
    with open_place(place, "x", config=config) as db:
        db["00"] = b""
        db.update(BEFORE)


def steps_of(place: Place, action: Callable[[Database], None]) -> int:
    counting = FaultyStorage(place.storage)
    with open_place(replace(place, storage=counting), "r+") as db:
        opened = counting.steps
        action(db)
    assert opened == 0
    return counting.steps


def files_of(place: Place) -> set[str]:
    return {item.path for item in place.storage.list(place.path + "/", deep=True)}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("power_fails", [False, True], ids=["the process ends", "the power fails"])
def test_after_a_crash_at_any_step_the_old_or_the_new_version_is_there(
    place: Place, config: ocdbt_py.Config, power_fails: bool
) -> None:
    prepare(place, config)
    seen = []
    for step in range(1, steps_of(place, change) + 2):
        prepare(place, config)
        faulty = FaultyStorage(place.storage, at=step, fault="crash")
        db = open_place(replace(place, storage=faulty), "r+")
        try:
            change(db)
            acknowledged = True
        except Crash:
            acknowledged = False
        if power_fails:
            faulty.lose_unsynced()
        found = contents(place)
        assert found in (BEFORE, AFTER)
        if acknowledged:
            assert found == AFTER
        seen.append(found == AFTER)
        with open_place(place, "r+") as again:  # and it can be written on
            again["y"] = b"1"
        assert contents(place) == {**found, b"y": b"1"}
    assert seen == sorted(seen)
    assert not seen[0]
    assert seen[-1]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_after_a_failed_step_nothing_changed_nothing_is_left_and_the_handle_works(
    place: Place, config: ocdbt_py.Config
) -> None:
    prepare(place, config)
    last = steps_of(place, change)
    for step in range(1, last + 1):
        prepare(place, config)
        files = files_of(place)
        faulty = FaultyStorage(place.storage, at=step, fault="fail")
        with open_place(replace(place, storage=faulty), "r+") as db:
            try:
                change(db)
            except ocdbt_py.StorageError:
                assert contents(place) == BEFORE
                if faulty.operations["hold.write"] + faulty.operations["write"] == 0:
                    assert files_of(place) == files
                change(db)
            assert contents(place) == AFTER


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("power_fails", [False, True], ids=["the process ends", "the power fails"])
def test_a_crash_takes_nothing_from_what_the_same_handle_committed_before(
    place: Place, config: ocdbt_py.Config, power_fails: bool
) -> None:
    def change_twice(db: Database) -> None:
        change(db)
        db["second"] = b"2" * 200

    both = {**AFTER, b"second": b"2" * 200}
    prepare(place, config)
    first = steps_of(place, change)
    prepare(place, config)
    seen = []
    for step in range(first + 1, steps_of(place, change_twice) + 1):
        prepare(place, config)
        faulty = FaultyStorage(place.storage, at=step, fault="crash")
        db = open_place(replace(place, storage=faulty), "r+")
        with pytest.raises(Crash):
            change_twice(db)
        if power_fails:
            faulty.lose_unsynced()
        seen.append(contents(place))
        assert seen[-1] in (AFTER, both)
    assert seen[0] == AFTER


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_lost_answer_to_the_manifests_write_is_found_in_the_history(place: Place, config: ocdbt_py.Config) -> None:
    prepare(place, config)
    for step in range(1, steps_of(place, change) + 1):
        prepare(place, config)
        generation = len(list(open_place(place).versions()))
        faulty = FaultyStorage(place.storage, at=step, fault="ambiguous")
        with open_place(replace(place, storage=faulty), "r+") as db:
            try:
                change(db)
                assert contents(place) == AFTER
                assert db.version.generation == generation + 1
            except ocdbt_py.StorageError:
                assert faulty.operations["hold.write"] + faulty.operations["write"] == 0
                assert contents(place) == BEFORE


@pytest.mark.parametrize("fault", ["crash", "fail", "ambiguous"])
def test_creation_is_whole_or_not_at_all(place: Place, fault: Fault) -> None:
    for step in range(1, 4):
        faulty = FaultyStorage(place.storage, at=step, fault=fault)
        with suppress(Crash, ocdbt_py.StorageError):
            open_place(replace(place, storage=faulty), "x").close()
        try:
            with open_place(place) as db:
                assert db.version.generation == 1
        except ocdbt_py.NotFoundError:
            assert files_of(place) == set()
        for path in files_of(place):
            place.storage.delete(path)
