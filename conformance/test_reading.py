"""We read every database that TensorStore wrote, every version of it, as TensorStore reads it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

import ocdbt_py
from conformance.corpus import Case, ocdbt_cases
from conformance.observe import config_of, digest, engine_of, tree_levels

CASES = ocdbt_cases()


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


def test_the_newest_version_has_the_contents_that_were_written(case: Case) -> None:
    with ocdbt_py.open(case.db) as db:
        assert digest(db.items()) == case.expected["contents_digest"]
        assert len(db) == len(list(db)) == case.expected["versions"][-1]["num_keys"]
        assert db.version.generation == case.expected["latest_generation"]


def test_every_version_has_its_contents_by_number_and_by_time(case: Case) -> None:
    with ocdbt_py.open(case.db, max_staleness=60) as db:
        for expected in case.expected["versions"]:
            old = db.at(expected["generation"])
            if "contents_digest" in expected:
                assert digest(old.items()) == expected["contents_digest"]
            moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=expected["commit_time"] // 1000)
            by_time = db.at(moment)
            # within one microsecond there may be a later one
            assert by_time.version.commit_time_ns // 1000 == expected["commit_time"] // 1000
            second, fraction = divmod(expected["commit_time"], 10**9)
            text = f"{datetime.fromtimestamp(second, UTC):%Y-%m-%dT%H:%M:%S}.{fraction:09d}Z"
            assert db.at(text).version.generation == expected["generation"]


def test_the_history_lists_every_version_newest_first(case: Case) -> None:
    with ocdbt_py.open(case.db) as db:
        found = [
            (v.generation, v.commit_time_ns, v.num_keys, v.num_tree_bytes, v.num_indirect_value_bytes)
            for v in db.versions()
        ]
    fields = ("generation", "commit_time", "num_keys", "num_tree_bytes", "num_indirect_value_bytes")
    assert found == [tuple(v[f] for f in fields) for v in reversed(case.expected["versions"])]


def test_the_tree_has_the_shape_that_tensorstore_sees(case: Case) -> None:
    with ocdbt_py.open(case.db) as db:
        engine = engine_of(db)
        levels = tree_levels(engine, engine.latest())
    found = [[[entries, key.hex(), location.length] for entries, key, location in level] for level in levels]
    assert found == case.expected["tree_levels"]


def test_the_configuration_is_the_stored_one_and_can_be_demanded(case: Case) -> None:
    wanted = config_of(case.expected["config"])
    with ocdbt_py.open(case.db, config=wanted) as db:
        assert db.config == wanted


def test_parts_of_values_are_those_bytes(case: Case) -> None:
    with ocdbt_py.open(case.db) as db:
        for key, value in list(db.items())[:50]:
            half = len(value) // 2
            assert db.read(key, half) == value[half:]
            assert db.read(key, 0, half) == value[:half]
            assert db.read(key, half, half) == b""
            if half:
                assert db.read(key, -half) == value[-half:]
            assert db.stat(key).size == len(value)
            with pytest.raises(ocdbt_py.InvalidArgumentError):
                db.read(key, 0, len(value) + 1)


def test_a_version_that_is_not_there_is_not_found(case: Case) -> None:
    with ocdbt_py.open(case.db) as db, pytest.raises(ocdbt_py.NotFoundError, match="newest is v"):
        db.at(case.expected["latest_generation"] + 1)
