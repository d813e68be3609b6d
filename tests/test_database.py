from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

import ocdbt_py
from ocdbt_py import MISSING, Config, WriteOptions

ROOT = Path(__file__).parent.parent


@pytest.fixture(params=["local", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "db") if request.param == "local" else f"memory://{uuid.uuid4().hex}/db"


@pytest.fixture
def db(url: str) -> Iterator[ocdbt_py.Database]:
    with ocdbt_py.open(url, "x") as database:
        yield database


# --- opening


def test_opening_what_is_not_there_says_so_and_how_to_create_it(url: str) -> None:
    for mode in ("r", "r+"):
        with pytest.raises(FileNotFoundError, match='"a" or "x" creates one') as caught:
            ocdbt_py.open(url, mode)
        assert isinstance(caught.value, ocdbt_py.NotFoundError)
        assert caught.value.kind == "database-not-found"


def test_opening_a_directory_that_holds_something_else_names_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ocdbt_py.NotFoundError, match=r"it holds notes\.txt"):
        ocdbt_py.open(tmp_path)


def test_unmerged_parts_of_processes_are_no_database(tmp_path: Path) -> None:
    ocdbt_py.open(tmp_path / "ocdbt.process_0", "x").close()
    with pytest.raises(ocdbt_py.NotFoundError, match="not yet merged") as caught:
        ocdbt_py.open(tmp_path)
    assert caught.value.kind == "unmerged"


def test_a_creates_once_and_x_only_if_nothing_is_there(url: str) -> None:
    with ocdbt_py.open(url, "a") as db:
        assert db.version.generation == 1
        assert len(db) == 0
        db["k"] = b"v"
    with ocdbt_py.open(url, "a") as db:
        assert db["k"] == b"v"
    with pytest.raises(FileExistsError, match="is a database already"):
        ocdbt_py.open(url, "x")
    with ocdbt_py.open(url, "r+") as db:
        assert db.version.generation == 2


def test_an_empty_directory_is_not_a_database(tmp_path: Path) -> None:
    (tmp_path / "db").mkdir()
    with ocdbt_py.open(tmp_path / "db", "x") as db:
        assert db.version.generation == 1


def test_a_read_only_handle_refuses_to_write(db: ocdbt_py.Database, url: str) -> None:
    with ocdbt_py.open(url) as reader, pytest.raises(ocdbt_py.InvalidArgumentError, match="read only"):
        reader["k"] = b"v"
    assert "k" not in db


def test_after_close_every_call_is_refused(db: ocdbt_py.Database) -> None:
    db["k"] = b"v"
    keys = db.keys()
    db.close()
    for call in (
        lambda: db["k"],
        lambda: db.get("k"),
        lambda: "k" in db,
        lambda: len(db),
        lambda: list(keys),
        lambda: db.write("k", b""),
        lambda: db.version,
        lambda: db.config,
        lambda: db.at(1),
        lambda: list(db.versions()),
        db.snapshot,
        db.refresh,
        db.clear,
    ):
        with pytest.raises(ocdbt_py.InvalidArgumentError, match="closed"):
            call()


def test_an_unknown_mode_is_refused(url: str) -> None:
    with pytest.raises(ocdbt_py.InvalidArgumentError, match="mode"):
        ocdbt_py.open(url, "w")  # type: ignore[arg-type]


def test_the_configuration_is_stored_and_can_only_be_demanded(url: str) -> None:
    wanted = Config(
        uuid="00112233-4455-6677-8899-AABBCCDDEEFF",
        manifest_kind="numbered",
        max_inline_value_bytes=7,
        max_decoded_node_bytes=1000,
        version_tree_arity_log2=2,
        compression="zstd:3",
    )
    with ocdbt_py.open(url, "x", config=wanted) as db:
        assert db.config == wanted
        assert db.config.uuid == "00112233445566778899aabbccddeeff"
        db["k"] = b"v" * 100
    for field, other in (
        ("max_inline_value_bytes", Config(max_inline_value_bytes=8)),
        ("manifest_kind", Config(manifest_kind="single")),
        ("compression", Config(compression=None)),
    ):
        with pytest.raises(ocdbt_py.ConfigMismatchError, match=field):
            ocdbt_py.open(url, config=other)
    with ocdbt_py.open(url, config=Config(compression="zstd:3")) as db:
        assert db["k"] == b"v" * 100


def test_a_new_database_has_the_defaults_of_the_format(db: ocdbt_py.Database) -> None:
    found = db.config
    assert found.manifest_kind == "single"
    assert (found.max_inline_value_bytes, found.max_decoded_node_bytes, found.version_tree_arity_log2) == (
        100,
        8388608,
        4,
    )
    assert found.compression == "zstd"


@pytest.mark.parametrize(
    "bad",
    [
        {"uuid": "xyz"},
        {"manifest_kind": "both"},
        {"max_inline_value_bytes": 1 << 21},
        {"max_decoded_node_bytes": -1},
        {"version_tree_arity_log2": 0},
        {"compression": "gzip"},
        {"compression": "zstd:23"},
        {"compression": "zstd:x"},
    ],
)
def test_a_configuration_that_cannot_be_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ocdbt_py.InvalidArgumentError, match=next(iter(bad))):
        Config(**bad)  # type: ignore[arg-type]


def test_with_assume_config_nothing_is_written_at_open_and_the_first_commit_is_generation_1(url: str) -> None:
    with ocdbt_py.open(url, "x", write_options=WriteOptions(assume_config=True)) as db:
        with pytest.raises(ocdbt_py.NotFoundError):
            ocdbt_py.open(url)
        assert db.get("k") is None
        assert (len(db), list(db), db.version.generation) == (0, [], 0)
        assert db.setdefault("k", b"v") == b"v"
        assert db.version.generation == 1


def test_the_first_commit_of_a_numbered_database_makes_it(url: str) -> None:
    numbered = Config(manifest_kind="numbered")
    with ocdbt_py.open(url, "x", config=numbered, write_options=WriteOptions(assume_config=True)) as db:
        db["k"] = b"v"
        db["k"] = b"w"
    with ocdbt_py.open(url, config=numbered) as db:
        assert [version.generation for version in db.versions()] == [2, 1]


def test_an_assumed_configuration_that_is_not_the_stored_one_is_an_error(url: str) -> None:
    with ocdbt_py.open(url, "a", write_options=WriteOptions(assume_config=True)) as db:
        ocdbt_py.open(url, "x", config=Config(max_inline_value_bytes=3)).close()
        with pytest.raises(ocdbt_py.ConfigMismatchError, match="max_inline_value_bytes"):
            db["k"] = b"v"
    with ocdbt_py.open(url) as db:
        assert len(db) == 0


# --- one key


def test_it_is_a_mapping_of_bytes_with_keys_in_byte_order(db: ocdbt_py.Database) -> None:
    db.update({"b": b"2", b"a": b"1", "é": b"3", "": b"0"})
    assert db["b"] == db[b"b"] == b"2"
    assert db.get("x") is None
    assert db.get("x", b"?") == b"?"
    assert "a" in db
    assert b"x" not in db
    assert 5 not in db
    assert list(db) == [b"", b"a", b"b", "é".encode()]
    assert dict(db.items()) == {b"": b"0", b"a": b"1", b"b": b"2", "é".encode(): b"3"}
    assert list(db.values()) == [b"0", b"1", b"2", b"3"]
    assert len(db) == 4
    del db["a"]
    assert list(db) == [b"", b"b", "é".encode()]


def test_an_absent_key_is_a_key_error_that_names_key_and_database(db: ocdbt_py.Database) -> None:
    for call in (lambda: db["k"], lambda: db.read("k"), lambda: db.stat("k"), lambda: db.lookup("k")):
        with pytest.raises(KeyError, match="b'k' is not in") as caught:
            call()
        assert isinstance(caught.value, ocdbt_py.NotFoundError)
        assert caught.value.key == b"k"
    before = db.version
    with pytest.raises(KeyError):
        del db["k"]
    assert db.version == before


@pytest.mark.parametrize("size", [0, 1, 100, 101, 5000])
def test_parts_of_a_value_inline_or_not(db: ocdbt_py.Database, size: int) -> None:
    value = np.random.default_rng(size).bytes(size)
    db["k"] = value
    assert db["k"] == value
    assert db.read("k", size) == b""
    assert db.read("k", size // 2) == value[size // 2 :]
    assert db.read("k", 0, size // 2) == value[: size // 2]
    if size:
        assert db.read("k", -1) == value[-1:]
    for start, stop in ((0, size + 1), (size + 1, None), (-size - 1, None), (2, 1), (-1, size)):
        with pytest.raises(ocdbt_py.InvalidArgumentError, match="out of range"):
            db.read("k", start, stop)


def test_stat_tells_size_and_where_a_long_value_lies(db: ocdbt_py.Database) -> None:
    db.update({"short": b"1", "long": b"2" * 1000})
    short, long = db.stat("short"), db.stat("long")
    assert (short.size, short.location) == (1, None)
    assert long.location is not None
    assert long.location.file.startswith("d/")
    assert (long.size, long.location.length) == (1000, 1000)
    assert db.lookup("long") == (b"2" * 1000, long)


def test_values_may_be_any_buffer_and_are_stored_in_c_order(db: ocdbt_py.Database) -> None:
    array = np.arange(12, dtype="<i4").reshape(3, 4)
    db.update({"array": array, "view": memoryview(b"abc"), "mutable": bytearray(b"xyz"), "across": array.T})
    assert db["array"] == array.tobytes()
    assert db["across"] == array.T.tobytes()
    assert db["view"] == b"abc"
    assert db["mutable"] == b"xyz"
    with pytest.raises(TypeError, match="not str"):
        db["text"] = "text"  # type: ignore[assignment]
    with pytest.raises(TypeError, match="not int"):
        db["number"] = 5  # type: ignore[assignment]
    with pytest.raises(TypeError, match="bytes or str"):
        db[5] = b"five"  # type: ignore[index]


# --- many keys


def test_many_values_and_parts_come_from_one_call(db: ocdbt_py.Database) -> None:
    db.update({f"{i:03}": b"%d" % i * (i + 1) for i in range(200)})
    assert db.read_many(["007", ("150", 3, 6), "007", ("199", -3, None)]) == [b"7" * 8, b"150", b"7" * 8, b"199"]
    assert db.read_many([]) == []
    with pytest.raises(KeyError, match=r"2 of 3 keys are not in the database: b'x', b'y'"):
        db.read_many(["x", "007", "y"])
    assert db.read_many(["x", "000"], default=None) == [None, b"0"]


def test_scans_and_views_take_ranges_and_prefixes(db: ocdbt_py.Database) -> None:
    keys = [b"a/1", b"a/2", b"a\xff", b"b", b"b/1", b"c"]
    db.update({key: key for key in keys})
    assert [entry.key for entry in db.scan()] == keys
    assert [entry.key for entry in db.scan("a/2", "b/1")] == [b"a/2", b"a\xff", b"b"]
    assert [entry.key for entry in db.scan(prefix="a")] == [b"a/1", b"a/2", b"a\xff"]
    assert [entry.key for entry in db.scan("a/2", prefix="a/")] == [b"a/2"]
    assert list(db.scan("c", prefix="a")) == []
    assert list(db.keys(prefix="b")) == [b"b", b"b/1"]
    assert list(db.items(prefix="b/")) == [(b"b/1", b"b/1")]
    assert len(db.keys(prefix="a")) == 3
    assert "a/1" in db.keys(prefix="a/")
    assert b"b" not in db.keys(prefix="a")
    assert (b"c", b"c") in db.items()
    assert b"b/1" in db.values()


def test_an_iteration_sees_the_version_of_its_first_step(db: ocdbt_py.Database) -> None:
    db.update({f"{i}": b"old" for i in range(10)})
    items = iter(db.items())
    assert next(items) == (b"0", b"old")
    db.update({f"{i}": b"new" for i in range(20)})
    assert [value for _, value in items] == [b"old"] * 9
    assert len(db) == 20


# --- writing


def test_an_update_is_one_commit(db: ocdbt_py.Database) -> None:
    db.update({"a": b"1"}, b=b"2")
    db.update([("c", b"3")])
    assert dict(db.items()) == {b"a": b"1", b"b": b"2", b"c": b"3"}
    assert db.version.generation == 3
    db.update({})
    assert db.version.generation == 3


def test_a_range_is_deleted_in_one_commit_and_an_empty_one_in_none(db: ocdbt_py.Database) -> None:
    db.update({f"{i:02}": b"" for i in range(30)})
    db.delete_range("05", "10")
    db.delete_range(prefix="2")
    assert [int(key) for key in db] == [*range(5), *range(10, 20)]
    before = db.version
    db.delete_range("50", "60")
    assert db.version == before
    with pytest.raises(ocdbt_py.InvalidArgumentError, match="clear"):
        db.delete_range()
    db.clear()
    assert len(db) == 0
    assert list(db) == []


def test_an_unconditional_delete_of_an_absent_key_is_a_version_as_in_tensorstore(db: ocdbt_py.Database) -> None:
    before = db.version.generation
    db.delete("k")
    assert db.version.generation == before + 1


def test_conditional_writes_change_nothing_when_the_value_is_another(db: ocdbt_py.Database) -> None:
    first = db.write("k", b"1", if_equal=MISSING)
    assert first == db.stat("k").generation
    with pytest.raises(ocdbt_py.ConflictError, match="exists") as caught:
        db.write("k", b"2", if_equal=MISSING)
    assert caught.value.kind == "condition"
    second = db.write("k", b"2" * 1000, if_equal=first)
    assert second == db.stat("k").generation != first
    with pytest.raises(ocdbt_py.ConflictError, match="has another value"):
        db.delete("k", if_equal=first)
    assert db["k"] == b"2" * 1000
    db.delete("k", if_equal=second)
    with pytest.raises(ocdbt_py.ConflictError, match="is gone"):
        db.write("k", b"3", if_equal=second)


def test_pop_popitem_and_setdefault_are_one_commit_each(db: ocdbt_py.Database) -> None:
    db.update({"a": b"1", "b": b"2"})
    before = db.version.generation
    assert db.setdefault("a", b"9") == b"1"
    assert db.setdefault("c", b"3") == b"3"
    assert db.pop("b") == b"2"
    assert db.popitem() == (b"a", b"1")
    assert db.version.generation == before + 3
    assert db.pop("x", None) is None
    assert list(db.items()) == [(b"c", b"3")]
    with pytest.raises(KeyError):
        db.pop("x")
    db.popitem()
    with pytest.raises(KeyError, match="empty"):
        db.popitem()


def test_threads_that_pop_get_each_item_once(url: str) -> None:
    with ocdbt_py.open(url, "x", durable=False) as db:
        db.update({f"{i:02}": b"%d" % i for i in range(24)})
        popped: list[bytes] = []

        def work() -> None:
            while True:
                try:
                    popped.append(db.popitem()[1])
                except KeyError:
                    return

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(map(int, popped)) == list(range(24))


def test_a_copy_in_a_transaction_does_not_need_its_source_to_stay_open(tmp_path: Path) -> None:
    with ocdbt_py.open(tmp_path / "a", "x") as source:
        source["k"] = b"v" * 1000
    with ocdbt_py.open(tmp_path / "b", "x") as db:
        with db.transaction() as t, ocdbt_py.open(tmp_path / "a") as source:
            t.copy_from(source, to="from a/")
            source.close()
            assert t["from a/k"] == b"v" * 1000
        assert db["from a/k"] == b"v" * 1000


# --- versions


def test_old_versions_stay_as_they_were(db: ocdbt_py.Database) -> None:
    for i in range(40):
        db[f"{i:02}"] = b"%d" % i
    history = list(db.versions())
    assert [version.generation for version in history] == list(range(41, 0, -1))
    for version in history:
        for spelled in (version, version.generation, f"v{version.generation}"):
            old = db.at(spelled)
            assert len(old) == version.generation - 1 == version.num_keys
    assert len({version.commit_time_ns for version in history}) == 41


def test_a_time_means_the_newest_version_committed_by_then(db: ocdbt_py.Database) -> None:
    db["a"] = b"1"
    first = db.version
    db["a"] = b"2"
    assert db.at(datetime.now(UTC) + timedelta(days=1))["a"] == b"2"
    assert db.at(first.commit_time).version.commit_time == first.commit_time
    with pytest.raises(ocdbt_py.NotFoundError, match="committed by then"):
        db.at("2001-01-01T00:00:00Z")
    for bad in (
        "yesterday",
        "v0",
        "2001-01-01",
        "2001-13-01T00:00:00Z",
        "2999-01-01T00:00:00Z",
        datetime(2030, 1, 1),
        0,
        -3,
    ):
        with pytest.raises(ocdbt_py.InvalidArgumentError):
            db.at(bad)
    with pytest.raises(TypeError):
        db.at(2.5)  # type: ignore[arg-type]


def test_times_with_offsets_and_fractions_are_understood(db: ocdbt_py.Database) -> None:
    moment = db.version.commit_time_ns
    second, fraction = divmod(moment, 10**9)
    utc = datetime.fromtimestamp(second, UTC)
    there = utc + timedelta(hours=5, minutes=30)
    assert db.at(f"{utc:%Y-%m-%dT%H:%M:%S}.{fraction:09d}Z").version.generation == 1
    assert db.at(f"{there:%Y-%m-%dT%H:%M:%S}.{fraction:09d}+05:30").version.generation == 1
    with pytest.raises(ocdbt_py.NotFoundError):
        db.at(f"{utc:%Y-%m-%dT%H:%M:%S}.{fraction - 1:09d}Z" if fraction else f"{utc:%Y}-01-01T00:00:00Z")


def test_a_version_or_a_snapshot_is_read_only_and_never_moves(db: ocdbt_py.Database, url: str) -> None:
    db["a"] = b"1"
    snapshot = db.snapshot()
    with ocdbt_py.open(url, version="v2") as pinned:
        db["a"] = b"2"
        for view in (snapshot, pinned, db.at(2)):
            assert view["a"] == b"1"
            view.refresh()
            assert view["a"] == b"1"
            with pytest.raises(ocdbt_py.InvalidArgumentError, match="read only"):
                view["a"] = b"3"
    with pytest.raises(ocdbt_py.InvalidArgumentError, match="read only"):
        ocdbt_py.open(url, "r+", version=2)


def test_tensorstores_url_form_names_version_and_prefix(db: ocdbt_py.Database, url: str) -> None:
    db.update({"p/a": b"1", "p/b": b"2", "q": b"3"})
    db["p/a"] = b"changed"
    with ocdbt_py.open(f"{url}|ocdbt:@v2/p/") as old:
        assert list(old.items()) == [(b"a", b"1"), (b"b", b"2")]
        assert len(old) == 2
        assert [entry.key for entry in old.scan("b")] == [b"b"]
    with ocdbt_py.open(f"{url}|ocdbt:p/", "r+") as part:
        part.clear()
        part["c"] = b"4"
    assert dict(db.items()) == {b"p/c": b"4", b"q": b"3"}


# --- the handle


def test_a_reader_may_trust_what_it_saw_for_a_while(db: ocdbt_py.Database, url: str) -> None:
    with ocdbt_py.open(url, max_staleness=3600) as relaxed, ocdbt_py.open(url) as strict:
        assert len(relaxed) == len(strict) == 0
        db["k"] = b"v"
        assert len(relaxed) == 0
        assert len(strict) == 1
        assert relaxed.refresh().generation == 2
        assert len(relaxed) == 1


def test_handles_are_equal_to_themselves_alone(db: ocdbt_py.Database, url: str) -> None:
    other = ocdbt_py.open(url)
    assert db == db
    assert db != other
    assert len({db, other}) == 2


def test_a_handle_and_a_view_can_be_pickled(db: ocdbt_py.Database) -> None:
    db["k"] = b"1"
    old = db.snapshot()
    db["k"] = b"2"
    again = pickle.loads(pickle.dumps(db))
    again["l"] = b"3"
    assert db["l"] == b"3"
    assert pickle.loads(pickle.dumps(old))["k"] == b"1"


def test_a_repr_shows_place_and_version_and_nothing_secret(db: ocdbt_py.Database) -> None:
    assert "ocdbt_py.Database" in repr(db)
    assert "at v1, read only" in repr(db.at(1))
    assert repr(db.versions().__next__()).startswith("Version(generation=1")


# --- bad input


def manifest_and_data(tmp_path: Path) -> tuple[Path, Path]:
    with ocdbt_py.open(tmp_path / "db", "x") as db:
        db.update({"long": b"v" * 1000, "short": b"v"})
        location = db.stat("long").location
    assert location is not None
    return tmp_path / "db" / "manifest.ocdbt", tmp_path / "db" / location.file


@pytest.mark.parametrize("keep", [0, 1, 15, 16, 60, -1])
def test_a_truncated_manifest_is_corrupt_and_named(tmp_path: Path, keep: int) -> None:
    manifest, _ = manifest_and_data(tmp_path)
    damaged = manifest.read_bytes()[:keep]
    manifest.write_bytes(damaged)
    for mode in ("r", "r+", "a", "x"):
        with pytest.raises(ocdbt_py.CorruptDataError, match=r"manifest\.ocdbt"):
            ocdbt_py.open(tmp_path / "db", mode)
    assert manifest.read_bytes() == damaged


def test_a_missing_data_file_is_corrupt_and_named(tmp_path: Path) -> None:
    _, data = manifest_and_data(tmp_path)
    data.unlink()
    with ocdbt_py.open(tmp_path / "db", "r+") as db:
        for call in (lambda: db["short"], lambda: list(db), lambda: db.write("k", b"v")):
            with pytest.raises(ocdbt_py.CorruptDataError, match=data.name):
                call()


def test_a_data_file_that_was_cut_short_is_corrupt_for_values_too(tmp_path: Path) -> None:
    _, data = manifest_and_data(tmp_path)
    with ocdbt_py.open(tmp_path / "db") as db:
        assert len(db) == len(list(db)) == 2  # the nodes are cached from here on
        data.write_bytes(data.read_bytes()[:500])
        assert db.read("long", 0, 500) == b"v" * 500
        with pytest.raises(ocdbt_py.CorruptDataError, match=data.name):
            db["long"]
        assert db["short"] == b"v"


def test_a_database_that_was_replaced_is_noticed(tmp_path: Path) -> None:
    with ocdbt_py.open(tmp_path / "db", "x") as db:
        shutil.rmtree(tmp_path / "db")
        with pytest.raises(ocdbt_py.NotFoundError):
            len(db)
        ocdbt_py.open(tmp_path / "db", "x").close()
        with pytest.raises(ocdbt_py.ConfigMismatchError, match="uuid"):
            db["k"] = b"v"


def test_without_locks_a_single_manifest_needs_the_word_that_nobody_else_writes(tmp_path: Path) -> None:
    unlocked = WriteOptions(locking="none")
    with ocdbt_py.open(tmp_path / "new", "a", write_options=unlocked) as db:
        db["k"] = b"v"
        assert db.config.manifest_kind == "numbered"
    ocdbt_py.open(tmp_path / "old", "x").close()
    with pytest.raises(ocdbt_py.UnsupportedError, match="single_writer=True"):
        ocdbt_py.open(tmp_path / "old", "r+", write_options=unlocked)
    with ocdbt_py.open(tmp_path / "old", "r+", write_options=unlocked, single_writer=True) as db:
        db["k"] = b"v"
        assert db.config.manifest_kind == "single"


def test_a_path_below_a_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ocdbt_py.OcdbtError, match="file"):
        ocdbt_py.open(tmp_path / "file" / "db", "a")
    assert (tmp_path / "file").read_text() == ""


def test_an_unwritable_directory_is_a_permission_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "locked").mkdir(mode=0o555)
    script = f"""
import os, ocdbt_py
ocdbt_py.open({str(tmp_path / "open")!r}, "a").close()  # what is loaded now need not be readable later
if os.getuid() == 0:
    os.setuid(65534)
try:
    ocdbt_py.open({str(tmp_path / "locked" / "db")!r}, "a")
except PermissionError as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("StoragePermissionError"), done.stderr
    assert "locked" in done.stdout
    assert list((tmp_path / "locked").iterdir()) == []
