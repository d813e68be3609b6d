"""Versions: how they are named, found and listed (groups B and C of the reference list), with TensorStore beside."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tensorstore as ts

import ocdbt_py
from ocdbt_py.database import open_place
from ocdbt_py.engine.commit import Sources
from ocdbt_py.storage.location import Settings, resolve
from ocdbt_py.testing.faulty import FaultyStorage

START = 1_700_000_000_123_456_789
GAP = 1_000
LAST = 2**63 - 1


def theirs(path: Path, version: int | str | None = None) -> Any:
    """TensorStore's handle; a version that cannot be is refused at once, one that is not there at the first use."""
    spec: dict[str, Any] = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{path}/"}}
    return ts.KvStore.open(spec if version is None else {**spec, "version": version}).result()


def spelled(nanoseconds: int) -> str:
    second, fraction = divmod(nanoseconds, 10**9)
    return f"{datetime.fromtimestamp(second, UTC):%Y-%m-%dT%H:%M:%S}.{fraction:09d}Z"


class History(NamedTuple):
    """Eleven versions: the first is empty, version ``g`` holds ``key_<g-2>`` alone."""

    path: Path
    times: list[int]

    def contents(self, generation: int) -> dict[bytes, bytes]:
        i = generation - 2
        return {} if i < 0 else {b"key_%d" % i: b"value_%d" % i}


@pytest.fixture(params=[1, 2], ids="arity {}".format)
def history(request: pytest.FixtureRequest, tmp_path: Path) -> History:
    times = [START + GAP * i for i in range(11)]
    clock = iter(times)
    config = ocdbt_py.Config(version_tree_arity_log2=request.param)
    place = resolve(tmp_path / "db", settings=Settings(durable=False))
    with open_place(place, "x", config=config, sources=Sources(clock=lambda: next(clock))) as db:
        for i in range(10):
            with db.transaction() as t:
                if i:
                    del t[f"key_{i - 1}"]
                t[f"key_{i}"] = b"value_%d" % i
    return History(tmp_path / "db", times)


# --- the history


def test_the_history_is_what_was_committed(history: History) -> None:
    with ocdbt_py.open(history.path) as db:
        found = [(version.generation, version.commit_time_ns) for version in db.versions()]
        assert found == [(g, history.times[g - 1]) for g in range(11, 0, -1)]
        assert [version.num_keys for version in db.versions()] == [1] * 10 + [0]


def test_each_version_is_found_by_number_and_by_time(history: History) -> None:
    with ocdbt_py.open(history.path) as db:
        for generation, time in enumerate(history.times, 1):
            for name in (generation, f"v{generation}", spelled(time), spelled(time + 1), spelled(time + GAP - 1)):
                assert db.at(name).version.generation == generation
            assert db.at(db.at(generation).version).version.commit_time_ns == time


def test_each_version_holds_what_was_in_it_for_tensorstore_too(history: History) -> None:
    for generation, time in enumerate(history.times, 1):
        for name in (generation, spelled(time)):
            with ocdbt_py.open(history.path, version=name) as db:
                assert dict(db.items()) == history.contents(generation)
            store = theirs(history.path, name)
            assert {key: store[key] for key in store.list().result()} == history.contents(generation)


def test_what_is_beyond_the_history_is_not_there(history: History) -> None:
    for absent in (12, 2**64 - 1, "v12", spelled(START - 1), "1970-01-01T00:00:00Z"):
        with pytest.raises(ocdbt_py.NotFoundError, match="newest is v11"):
            ocdbt_py.open(history.path, version=absent)
    with ocdbt_py.open(history.path, version=spelled(LAST)) as db:  # a time in the future is now
        assert db.version.generation == 11
    for absent in (12, spelled(START - 1)):
        with pytest.raises(ValueError, match="NOT_FOUND"):
            theirs(history.path, absent).list().result()


def test_no_version_is_number_0(history: History) -> None:
    for bad in (0, "v0", -1):
        with pytest.raises(ocdbt_py.InvalidArgumentError):
            ocdbt_py.open(history.path, version=bad)
    with pytest.raises(ValueError, match="in the range"):
        theirs(history.path, 0)


def since(db: ocdbt_py.Database, holds: Callable[[ocdbt_py.Version], bool]) -> list[ocdbt_py.Version]:
    return list(itertools.takewhile(holds, db.versions()))


def test_the_newest_versions_are_listed_without_reading_the_older_ones(history: History) -> None:
    """From a generation or a time on: the list comes newest first, so it is read until there."""
    place = resolve(history.path)
    reads = []
    for first in range(12, -1, -1):
        counting = FaultyStorage(place.storage)
        with open_place(replace(place, storage=counting)) as db:
            opened = counting.operations["read_many"]
            newest = since(db, lambda version, first=first: version.generation >= first)  # type: ignore[misc]
            assert [version.generation for version in newest] == list(range(11, max(first, 1) - 1, -1))
            reads.append(counting.operations["read_many"] - opened)
            if 1 <= first <= 11:
                for bound in (history.times[first - 1], history.times[first - 1] - 1):
                    assert since(db, lambda version, bound=bound: version.commit_time_ns >= bound) == newest  # type: ignore[misc]
    assert reads == sorted(reads)
    assert reads[0] < reads[-1]


# --- names


NAMES = {
    "v1": 1,
    "v11": 11,
    "v18446744073709551615": "absent",
    "1970-01-01T00:00:00Z": "absent",  # 0 ns
    "1970-01-01T00:00:00.00Z": "absent",
    "1970-01-01T00:00:00.000000001Z": "absent",
    "2262-04-11T23:47:16.854775807Z": 11,  # 2^63 - 1 ns
    "2262-04-11T23:47:16.854775808Z": "refused",
    "1969-12-31T23:59:59.999999999Z": "refused",
    "2999-01-01T00:00:00Z": "refused",
    "1970-01-01T00:00:00": "refused",
    "a": "refused",
    "v": "refused",
    "v0": "refused",
}


def ours(history: History, name: str) -> int | str:
    answers: list[int | str] = []
    for url, version in ((str(history.path), name), (f"{history.path}|ocdbt:@{name}/", None)):
        try:
            answers.append(ocdbt_py.open(url, version=version).version.generation)
        except ocdbt_py.NotFoundError:
            answers.append("absent")
        except ocdbt_py.InvalidArgumentError:
            answers.append("refused")
    assert answers[0] == answers[1]
    return answers[0]


@pytest.mark.parametrize("name", NAMES)
def test_a_version_is_named_by_number_or_time_as_in_tensorstores_urls(name: str, history: History) -> None:
    assert ours(history, name) == NAMES[name]
    try:
        store = ts.KvStore.open(f"file://{history.path}/|ocdbt:@{name}/").result()
        found: int | str = int(store.list().result()[0].removeprefix(b"key_")) + 2 if name != "v1" else 1
    except ValueError as error:
        found = "absent" if "NOT_FOUND" in str(error) else "refused"
    assert found == NAMES[name]


def test_a_time_is_as_exact_as_it_is_spelled(history: History) -> None:
    """``.1Z`` and ``.100000000Z`` are one time, and a nanosecond less is another version."""
    time = history.times[4]
    with ocdbt_py.open(history.path) as db:
        assert db.at(spelled(time)).version.generation == 5
        assert db.at(spelled(time - 1)).version.generation == 4
        whole = spelled(time // 10**9 * 10**9 + 10**9)
        assert whole.endswith(".000000000Z")
        for shorter in (whole, whole.replace(".000000000", ".0"), whole.replace(".000000000", "")):
            assert db.at(shorter).version.generation == 11
