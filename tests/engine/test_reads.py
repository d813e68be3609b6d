"""What reading costs: requests, bytes and memory, counted at the storage."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import ocdbt_py
from ocdbt_py.database import Database, open_place
from ocdbt_py.engine.commit import Sources
from ocdbt_py.format.btree import LeafNode
from ocdbt_py.storage.location import Settings, resolve
from ocdbt_py.testing.faulty import FaultyStorage

COUNT = 5000


def key(i: int) -> str:
    return f"group_{i // 100:03}/item_{i % 100:02}"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reads") / "db"
    # leaves of about a hundred entries, and two levels above them
    config = ocdbt_py.Config(max_decoded_node_bytes=12_000, max_inline_value_bytes=64)
    with ocdbt_py.open(path, "x", config=config, durable=False) as db:
        db.update({key(i): b"%d" % i * 50 for i in range(COUNT)})
    return path


@pytest.fixture
def counting(directory: Path) -> FaultyStorage:
    return FaultyStorage(resolve(directory, settings=Settings(durable=False)).storage)


@pytest.fixture
def db(directory: Path, counting: FaultyStorage) -> Iterator[Database]:
    with open_place(replace(resolve(directory), storage=counting)) as database:
        yield database


def requests(counting: FaultyStorage) -> int:
    return counting.operations["read"] + counting.operations["read_many"]


def test_a_lookup_reads_one_node_a_level_and_the_value(db: Database, counting: FaultyStorage) -> None:
    height = db._engine.latest().version.root_height
    assert height >= 1
    before = requests(counting)
    assert db[key(4321)] == b"4321" * 50
    assert requests(counting) - before == 1 + (height + 1) + 1  # the manifest again, the path, the value
    before = requests(counting)
    assert db[key(4321)] == b"4321" * 50
    assert requests(counting) - before == 1 + 1


def test_many_lookups_share_their_path_and_fetch_their_values_in_one_request(
    db: Database, counting: FaultyStorage
) -> None:
    wanted = [key(i) for i in range(2000, 2100)]
    before = counting.operations.copy()
    assert db.read_many(wanted) == [b"%d" % i * 50 for i in range(2000, 2100)]
    height = db._engine.latest().version.root_height
    # the path with a few neighbouring leaves, and all values together
    assert counting.operations["read_many"] - before["read_many"] <= 1 + height + 4 + 1


def test_opening_a_version_reads_the_manifest_once(db: Database, counting: FaultyStorage) -> None:
    counting.operations.clear()
    with open_place(replace(db._place, storage=counting), version=1) as old:
        assert len(old) == 0
    assert counting.operations == {"read": 1}


def test_part_of_a_value_moves_only_that_part(db: Database, counting: FaultyStorage) -> None:
    assert len(db[key(4321)]) == 200
    before = sum(counting.bytes_read.values())
    assert db.read(key(4321), 10, 13) == b"214"
    assert sum(counting.bytes_read.values()) - before == 3


def test_a_prefix_reads_only_the_subtrees_it_may_be_in(db: Database, counting: FaultyStorage) -> None:
    list(db.keys())
    everything = counting.operations["read_many"]
    counting.operations.clear()
    with open_place(replace(db._place, storage=counting)) as cold:
        assert len(list(cold.keys(prefix="group_017/"))) == 100
    assert counting.operations["read_many"] < everything / 5


def test_a_read_takes_no_lock_and_writes_nothing(db: Database, counting: FaultyStorage, directory: Path) -> None:
    before = sorted(path.name for path in directory.rglob("*"))
    list(db.items())
    db.stat(key(3))
    len(db)
    list(db.versions())
    db.snapshot().get("absent")
    assert counting.steps == 0
    assert counting.operations["hold"] == 0
    assert sorted(path.name for path in directory.rglob("*")) == before


def test_the_cache_is_bounded_and_nothing_is_wrong_without_one(directory: Path) -> None:
    with ocdbt_py.open(directory, cache_bytes=200_000) as small, ocdbt_py.open(directory, cache_bytes=0) as none:
        assert list(small.items()) == list(none.items())
        assert 0 < small._engine.nodes._held <= 200_000
        assert none._engine.nodes._held == 0
        assert len(none._engine.nodes._cache) == 0


def test_a_writer_that_goes_on_for_long_keeps_no_more_than_the_tree_needs(tmp_path: Path) -> None:
    with ocdbt_py.open(tmp_path / "db", "x", durable=False) as db:
        db.update({f"{i}": b"short" for i in range(10)})
        for i in range(50):
            db.update({"long": b"%d" % i * 200, "inline": b"%d" % i * 20})
        (leaf,) = [node for (_, _), (node, _) in list(db._engine.nodes._cache.items())[-1:]]
    assert isinstance(leaf, LeafNode)
    assert len(leaf.files) == 1
    assert len(leaf.inline) == 10 * 5 + 40


def test_a_scan_of_a_large_database_needs_little_memory(tmp_path: Path) -> None:
    config = ocdbt_py.Config(max_decoded_node_bytes=20_000)
    with ocdbt_py.open(tmp_path / "db", "x", config=config, durable=False) as db:
        db.update({f"{i:06}": bytes(1000) for i in range(40_000)})  # 40 MB of values
    with ocdbt_py.open(tmp_path / "db", cache_bytes=1 << 20) as db:
        next(iter(db.items()))
        tracemalloc.start()
        total = sum(len(value) for _, value in db.items())
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert total == 40_000_000
    assert peak < 8 << 20


def test_a_clock_that_goes_backwards_does_not_reorder_history(tmp_path: Path) -> None:
    times = iter([1_000, 500, 500, 2_000])
    sources = Sources(clock=lambda: next(times))
    with open_place(resolve(tmp_path / "db"), "x", sources=sources) as db:
        for i in range(3):
            db[f"{i}"] = b""
        assert [version.commit_time_ns for version in db.versions()] == [2_000, 1_002, 1_001, 1_000]
