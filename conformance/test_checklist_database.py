"""The key-value store: groups G, H, I and J of the reference list, through the public API and TensorStore beside it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import tensorstore as ts

import ocdbt_py
from conformance.corpus import Case, ocdbt_cases
from ocdbt_py import MISSING, Config, WriteOptions
from ocdbt_py.database import open_place
from ocdbt_py.storage.location import Place, resolve
from ocdbt_py.storage.protocol import Capabilities
from ocdbt_py.testing.faulty import FaultyStorage

Contents = dict[bytes, bytes]


def theirs(path: Path, **options: Any) -> Any:
    spec = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{path}/"}, **options}
    return ts.KvStore.open(spec, context=ts.Context({"file_io_sync": False})).result()


def _spelled(nanoseconds: int) -> str:
    second, fraction = divmod(nanoseconds, 10**9)
    return f"{datetime.fromtimestamp(second, UTC):%Y-%m-%dT%H:%M:%S}.{fraction:09d}Z"


def read_by_tensorstore(path: Path, **options: Any) -> Contents:
    store = theirs(path, **options)
    return {key: store[key] for key in store.list().result()}


def files_below(path: Path) -> list[str]:
    return sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "db"


@pytest.fixture
def db(path: Path) -> Iterator[ocdbt_py.Database]:
    with ocdbt_py.open(path, "x", durable=False) as database:
        yield database


# --- G: basics


def test_what_is_not_there_reads_as_missing_once_it_is_created(path: Path) -> None:
    with pytest.raises(ocdbt_py.NotFoundError):
        ocdbt_py.open(path)
    assert read_by_tensorstore(path) == {}  # to TensorStore the database that is not there is empty
    with ocdbt_py.open(path, "a") as db:
        assert (db.get("a"), list(db), len(db)) == (None, [], 0)
        assert [entry.key for entry in db.scan()] == []


def test_the_first_write_is_generation_2_or_1_if_the_configuration_is_assumed(tmp_path: Path) -> None:
    for name, options, generation in (("a", WriteOptions(), 2), ("b", WriteOptions(assume_config=True), 1)):
        with ocdbt_py.open(tmp_path / name, "x", write_options=options, durable=False) as db:
            db["a"] = b"value"
            assert db.version.generation == generation
            assert dict(db.items()) == {b"a": b"value"}
        store = theirs(tmp_path / f"{name} theirs", assume_config=options.assume_config)
        store["a"] = b"value"
        dumped = ts.ocdbt.dump(store.base).result()
        assert dumped["versions"][-1]["generation_number"] == generation
        assert "location" in dumped["versions"][-1]["root"]


def test_keys_written_one_after_the_other_are_listed_in_order(db: ocdbt_py.Database) -> None:
    db["b"] = b"2"
    db["a"] = b"1"
    assert list(db.items()) == [(b"a", b"1"), (b"b", b"2")]


def test_nodes_of_one_byte_hold_one_key_each(tmp_path: Path) -> None:
    config = Config(max_decoded_node_bytes=1)
    written: Contents = {}
    store = theirs(tmp_path / "theirs", config={"max_decoded_node_bytes": 1})
    with ocdbt_py.open(tmp_path / "ours", "x", config=config, durable=False) as db:
        for key in (b"testa", b"testb", b"testc"):
            db[key] = store[key] = written[key] = b"value of " + key
            assert dict(db.items()) == written
    assert read_by_tensorstore(tmp_path / "ours") == dict(ocdbt_py.open(tmp_path / "theirs").items()) == written


def test_a_prefix_is_deleted_and_its_neighbours_stay(path: Path) -> None:
    kept, gone = ["a/b", "a/d"], ["a/c/x", "a/c/y", "a/c/z/e", "a/c/z/f"]
    with ocdbt_py.open(path, "x", config=Config(max_decoded_node_bytes=1), durable=False) as db:
        for key in (*kept, *gone):
            db[key] = key.encode()
        db.delete_range(prefix="a/c")
        assert [db[key] for key in kept] == [b"a/b", b"a/d"]
        assert not any(key in db for key in gone)
    assert read_by_tensorstore(path) == {b"a/b": b"a/b", b"a/d": b"a/d"}


CONFIGS: dict[str, tuple[Config, dict[str, Any]]] = {
    "no limit": (Config(max_decoded_node_bytes=0), {}),
    "tiny nodes": (Config(max_decoded_node_bytes=1, max_inline_value_bytes=0, version_tree_arity_log2=1), {}),
    "raw": (Config(max_decoded_node_bytes=1 << 20, version_tree_arity_log2=1, compression=None), {}),
    "nothing inline": (Config(max_inline_value_bytes=0), {}),
    "one byte inline": (Config(max_inline_value_bytes=1), {}),
    "all inline": (Config(max_inline_value_bytes=1 << 20), {}),
    "arity 16": (Config(version_tree_arity_log2=16), {}),
    "zstd": (Config(compression="zstd"), {}),
    "numbered": (Config(manifest_kind="numbered", version_tree_arity_log2=1), {}),
    "small files": (Config(max_decoded_node_bytes=1), {"target_data_file_size": 1024}),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_operation_works_under_every_configuration(path: Path, name: str) -> None:
    """Read, write, delete, conditions, parts, ranges, copies and transactions, against a dict; TensorStore reads it."""
    config, options = CONFIGS[name]
    model: Contents = {}
    with ocdbt_py.open(path, "x", config=config, write_options=WriteOptions(**options), durable=False) as db:
        for i in range(12):
            key, value = b"k%02d" % i, b"%d" % i * (i * i)
            db[key] = model[key] = value
        assert dict(db.items()) == model
        assert db.read("k11", 3, 7) == model[b"k11"][3:7]
        assert db.read("k11", -5) == model[b"k11"][-5:]
        assert db.read_many(["k03", ("k09", 1, 3), "no"], default=b"?") == [model[b"k03"], b"99", b"?"]
        assert [entry.key for entry in db.scan("k03", "k06")] == [b"k03", b"k04", b"k05"]

        token = db.stat("k05").generation
        db.write("k05", b"new", if_equal=token)
        model[b"k05"] = b"new"
        for call in (
            lambda: db.write("k05", b"x", if_equal=token),
            lambda: db.write("k05", b"x", if_equal=MISSING),
            lambda: db.delete("k05", if_equal=token),
        ):
            with pytest.raises(ocdbt_py.ConflictError):
                call()
        del db["k00"], model[b"k00"]
        with pytest.raises(KeyError):
            del db["k00"]
        db.delete_range("k01", "k03")
        del model[b"k01"], model[b"k02"]
        db.copy_from(db.snapshot(), prefix="k0", to="copy/")
        model |= {b"copy/" + key[2:]: value for key, value in model.items() if key.startswith(b"k0")}
        with db.transaction() as t:
            t["t"] = t["k10"] + t["copy/5"]
            t.delete_range(prefix="copy/")
            t["copy/again"] = b"x" * 2000
        model[b"t"] = model[b"k10"] + model[b"copy/5"]
        model = {key: value for key, value in model.items() if not key.startswith(b"copy/")}
        model[b"copy/again"] = b"x" * 2000
        assert dict(db.items()) == model
        assert list(db) == sorted(model)
        assert len(db) == len(model)
    assert read_by_tensorstore(path) == model
    assert ocdbt_py.check(path).ok


def test_a_write_whose_condition_fails_adds_no_version(db: ocdbt_py.Database) -> None:
    db.write("a", b"value", if_equal=MISSING)
    with pytest.raises(ocdbt_py.ConflictError):
        db.write("a", b"other", if_equal=MISSING)
    assert db.version.generation == 2
    assert db["a"] == b"value"


def test_an_old_version_has_the_value_and_the_generation_of_its_own_write(path: Path) -> None:
    with ocdbt_py.open(path, "x", write_options=WriteOptions(assume_config=True), durable=False) as db:
        first = db.write("a", b"1")
        second = db.write("a", b"2")
        old, new = db.at(1), db.at(2)
        between = db.at(_spelled(old.version.commit_time_ns))
        after = db.at("2200-01-01T00:00:00Z")
        for view, value, generation in ((old, b"1", first), (between, b"1", first), (new, b"2", second)):
            assert view.lookup("a") == (value, view.stat("a"))
            assert view.stat("a").generation == generation
        assert after["a"] == b"2"
    store = theirs(path, version=1)
    assert store["a"] == b"1"


@pytest.mark.parametrize(
    "change",
    [
        lambda db: db.write("a", b"x"),
        lambda db: db.delete("a"),
        lambda db: db.delete_range("a", "b"),
        lambda db: db.update({"a": b"x"}),
        lambda db: db.clear(),
        lambda db: db.pop("a"),
        lambda db: db.copy_from(db),
        lambda db: db.transaction(),
    ],
    ids=["write", "delete", "delete_range", "update", "clear", "pop", "copy_from", "transaction"],
)
def test_an_old_version_is_never_written(db: ocdbt_py.Database, change: Callable[[Any], object]) -> None:
    db["a"] = b"1"
    with pytest.raises(ocdbt_py.InvalidArgumentError, match="read only"):
        change(db.at(2))
    assert db.version.generation == 2


@pytest.mark.parametrize("limit", [0, 100], ids=["in a file", "inline"])
def test_parts_of_a_value_are_neither_clipped_nor_guessed(path: Path, limit: int) -> None:
    with ocdbt_py.open(path, "x", config=Config(max_inline_value_bytes=limit), durable=False) as db:
        db["k"] = b"01234"
        assert (db.read("k", 2, 2), db.read("k", 5), db.read("k", -3)) == (b"", b"", b"234")
        store = theirs(path)
        for start, stop in ((0, 100), (6, None), (-100, None)):
            with pytest.raises(ocdbt_py.InvalidArgumentError, match="out of range"):
                db.read("k", start, stop)
            with pytest.raises(ValueError, match="OUT_OF_RANGE"):
                store.read("k", byte_range=slice(start, stop)).result()


def test_whether_a_value_changed_is_known_without_reading_it(path: Path) -> None:
    """In place of a read on the condition that the generation is another."""
    place = resolve(path)
    counting = FaultyStorage(place.storage)
    with open_place(replace(place, storage=counting), "x") as db:
        db["k"] = b"v" * 1000
        token = db.stat("k").generation
        before = counting.operations["read_many"]
        assert db.stat("k").generation == token
        db["other"] = b"1"
        assert db.stat("k").generation == token
        db["k"] = b"w" * 1000
        assert db.stat("k").generation != token
        assert counting.operations["read_many"] == before
        with pytest.raises(KeyError):
            db.stat("missing")


def test_which_calls_add_a_version(db: ocdbt_py.Database, path: Path, tmp_path: Path) -> None:
    db["a"] = b"1"

    def versions(call: Callable[[], object]) -> int:
        before = db.version.generation
        call()
        return db.version.generation - before

    def read_only() -> None:
        with db.transaction() as t:
            assert t["a"] == b"1"

    assert versions(lambda: db.delete("absent")) == 1
    assert versions(lambda: db.write("a", b"1")) == 1  # the same value again
    assert versions(lambda: db.delete_range("x", "y")) == 0
    assert versions(read_only) == 0
    assert versions(lambda: db.transaction().commit()) == 0

    store = theirs(tmp_path / "theirs")
    store["a"] = b"1"

    def newest() -> int:
        return int(ts.ocdbt.dump(store.base).result()["versions"][-1]["generation_number"])

    assert newest() == 2
    store.write("absent", None).result()
    store["a"] = b"1"
    assert newest() == 4
    store.delete_range(ts.KvStore.KeyRange("x", "y")).result()
    with ts.Transaction(atomic=True) as transaction:
        store.with_transaction(transaction)["a"]
    assert newest() == 4


def test_the_longest_key(db: ocdbt_py.Database, path: Path) -> None:
    db[b"k" * 65535] = b"v"
    with pytest.raises(ocdbt_py.InvalidArgumentError, match="65536"):
        db[b"k" * 65536] = b"v"
    store = theirs(path)
    assert store[b"k" * 65535] == b"v"
    with pytest.raises(ValueError, match="65535"):
        store.write(b"k" * 65536, b"v").result()


def test_the_generation_follows_an_inline_value_and_the_place_of_another(db: ocdbt_py.Database) -> None:
    inline = db.write("inline", b"1")
    outside = db.write("outside", b"1" * 500)
    assert db.write("inline", b"2") != inline
    assert db.write("inline", b"1") == inline
    assert db.write("outside", b"1" * 500) != outside
    assert len(inline) == len(outside)


# --- H: configuration and places


def test_prefixes_name_the_files_of_each_kind(tmp_path: Path) -> None:
    prefixes: dict[str, Any] = {
        "value_data_prefix": "x/",
        "btree_node_data_prefix": "b/",
        "version_tree_node_data_prefix": "v/",
    }
    config = Config(max_inline_value_bytes=0, version_tree_arity_log2=1)
    store = theirs(tmp_path / "theirs", config={"max_inline_value_bytes": 0, "version_tree_arity_log2": 1}, **prefixes)
    with ocdbt_py.open(
        tmp_path / "ours", "x", config=config, write_options=WriteOptions(**prefixes), durable=False
    ) as db:
        for expected in ({"manifest.ocdbt", "x", "b"}, {"manifest.ocdbt", "x", "b", "v"}):
            db["a"] = b"value"
            store["a"] = b"value"
            for path in (tmp_path / "ours", tmp_path / "theirs"):
                assert {name.partition("/")[0] for name in files_below(path)} == expected
    assert read_by_tensorstore(tmp_path / "ours") == {b"a": b"value"}


class Divided(FaultyStorage):
    """Two directories as one: what is named ``manifest.*`` lies in ``manifests``, all else beside it in ``data``."""

    def _real(self, path: str) -> str:
        name = path.rpartition("/")[2]
        return path.replace("/db/", "/manifests/" if name.startswith("manifest.") else "/data/", 1)

    def read(self, path: str, *arguments: Any, **named: Any) -> Any:
        return super().read(self._real(path), *arguments, **named)

    def read_many(self, ranges: Any) -> list[bytes]:
        return super().read_many([(self._real(path), start, stop) for path, start, stop in ranges])

    def write(self, path: str, *arguments: Any, **named: Any) -> Any:
        return super().write(self._real(path), *arguments, **named)

    def put(self, path: str, buffers: Any) -> None:
        super().put(self._real(path), buffers)

    def grow(self, path: str) -> Any:
        return super().grow(self._real(path))

    def hold(self, path: str, timeout: float, note: Any = None) -> Any:
        return super().hold(self._real(path), timeout, note)

    def list(self, prefix: str, *, deep: bool = False) -> Iterator[Any]:
        for directory in ("data", "manifests"):
            for item in super().list(prefix.replace("/db/", f"/{directory}/", 1), deep=deep):
                yield item._replace(path=item.path.replace(f"/{directory}/", "/db/", 1))

    def sync(self, paths: Any) -> None:
        super().sync([self._real(path) for path in paths])


@pytest.mark.parametrize("kind", ["single", "numbered"])
def test_manifests_may_lie_in_another_store(tmp_path: Path, kind: str) -> None:
    """For TensorStore an option; for us a storage that knows where they are."""
    manifests = {"driver": "file", "path": f"{tmp_path}/manifests/"}
    store = theirs(tmp_path / "data", manifest=manifests, config={"manifest_kind": kind})
    store["a"] = b"theirs" * 50
    numbered = ["manifest.0000000000000001", "manifest.0000000000000002"] if kind == "numbered" else []
    assert files_below(tmp_path / "manifests") == [*numbered, "manifest.ocdbt"]
    assert not any("manifest" in name for name in files_below(tmp_path / "data"))
    place = resolve(tmp_path / "db")
    divided = replace(place, storage=Divided(place.storage))
    with open_place(divided, "r+") as db:
        assert dict(db.items()) == {b"a": b"theirs" * 50}
        db["b"] = b"ours" * 50
    assert {key: store[key] for key in store.list().result()} == {b"a": b"theirs" * 50, b"b": b"ours" * 50}
    assert not any("manifest" in name for name in files_below(tmp_path / "data"))
    assert not (tmp_path / "db").exists()


class Recorded(FaultyStorage):
    """Writes down what is asked of it, in TensorStore's words."""

    def __init__(self, place: Place, *, cas: bool) -> None:
        super().__init__(place.storage)
        self.base = place.path
        self.cas = cas
        self.log: list[str] = []

    @property
    def capabilities(self) -> Capabilities:
        return replace(super().capabilities, cas=self.cas, hold=False)

    def _note(self, what: str, path: str) -> None:
        name = path.removeprefix(self.base + "/")
        self.log.append(f"{what} {'d/' if name.startswith('d/') else name}")

    def read(self, path: str, *arguments: Any, **named: Any) -> Any:
        self._note("read", path)
        return super().read(path, *arguments, **named)

    def write(self, path: str, *arguments: Any, **named: Any) -> Any:
        self._note("write", path)
        return super().write(path, *arguments, **named)

    def put(self, path: str, buffers: Any) -> None:
        self._note("write", path)
        super().put(path, buffers)

    def grow(self, path: str) -> Any:
        self._note("write", path)
        return super().grow(path)

    def list(self, prefix: str, *, deep: bool = False) -> Iterator[Any]:
        self._note("list", prefix)
        return super().list(prefix, deep=deep)


def test_where_files_can_only_be_created_manifests_are_numbered(path: Path) -> None:
    place = resolve(path)
    recorded = Recorded(place, cas=False)
    with open_place(replace(place, storage=recorded), "x") as db:
        db["a"] = b"v"
        assert db.config.manifest_kind == "numbered"
    first, second = "manifest.0000000000000001", "manifest.0000000000000002"
    log = recorded.log
    assert log[0] == "read manifest.ocdbt"
    writes = [entry for entry in log if entry.startswith("write")]
    assert writes == ["write manifest.ocdbt", f"write {first}", "write d/", f"write {second}"]
    assert "list manifest." in log[log.index(f"write {second}") + 1 :]  # who was first shows only in the history
    assert read_by_tensorstore(path) == {b"a": b"v"}


def test_with_an_assumed_configuration_a_first_write_takes_three_requests(path: Path) -> None:
    place = resolve(path)
    recorded = Recorded(place, cas=True)
    with open_place(replace(place, storage=recorded), "a", write_options=WriteOptions(assume_config=True)) as db:
        opened = len(recorded.log)
        db["a"] = b"v"
    assert recorded.log[:opened] == ["read manifest.ocdbt"]
    assert recorded.log[opened:] == ["read manifest.ocdbt", "write d/", "write manifest.ocdbt"]


def test_a_configuration_that_is_not_the_stored_one_is_refused_before_anything_is_written(path: Path) -> None:
    ocdbt_py.open(path, "x", config=Config(version_tree_arity_log2=2)).close()
    files = files_below(path)
    for mode in ("r", "r+", "a"):
        for options in (WriteOptions(), WriteOptions(assume_config=True, target_data_file_size=1)):
            with pytest.raises(ocdbt_py.ConfigMismatchError, match="max_inline_value_bytes"):
                ocdbt_py.open(path, mode, config=Config(max_inline_value_bytes=1), write_options=options)
    assert files_below(path) == files
    with pytest.raises(ValueError, match="Configuration mismatch"):
        theirs(path, config={"max_inline_value_bytes": 1}).write("a", b"v").result()


def test_what_an_assumed_configuration_leaves_open_is_taken_from_the_database(path: Path) -> None:
    """TensorStore takes it from its defaults, and then refuses the database."""
    ocdbt_py.open(path, "x", config=Config(version_tree_arity_log2=2)).close()
    with ocdbt_py.open(path, "a", write_options=WriteOptions(assume_config=True), durable=False) as db:
        db["a"] = b"v"
        assert db["a"] == b"v"
        assert db.config.version_tree_arity_log2 == 2
    with pytest.raises(ValueError, match="Observed config does not match assumed config"):
        theirs(path, assume_config=True).read("a").result()


GOOD = [
    {"uuid": "000102030405060708090A0B0C0D0E0F"},
    {"max_inline_value_bytes": 0},
    {"max_inline_value_bytes": 1048576},
    {"max_decoded_node_bytes": 0},
    {"max_decoded_node_bytes": 2**32 - 1},
    {"version_tree_arity_log2": 1},
    {"version_tree_arity_log2": 16},
    {"compression": None},
    {"compression": -131072},
    {"compression": 22},
]
BAD = [
    {"uuid": "00"},
    {"manifest_kind": "other"},
    {"max_inline_value_bytes": -1},
    {"max_inline_value_bytes": 1048577},
    {"max_decoded_node_bytes": -1},
    {"max_decoded_node_bytes": 2**32},
    {"version_tree_arity_log2": 0},
    {"version_tree_arity_log2": 17},
    {"compression": -131073},
    {"compression": 23},
    {"unknown": 1},
]


def json_of(fields: dict[str, Any]) -> dict[str, Any]:
    level = fields.get("compression")
    return fields if level is None else {"compression": {"id": "zstd", "level": level}}


def config_of(fields: dict[str, Any]) -> Config:
    level = fields.get("compression")
    return Config(**fields) if level is None else Config(compression=f"zstd:{level}")


@pytest.mark.parametrize("fields", GOOD, ids=str)
def test_a_configuration_that_can_be_is_taken_by_both(path: Path, fields: dict[str, Any]) -> None:
    with ocdbt_py.open(path, "x", config=config_of(fields), durable=False) as db:
        db["a"] = b"v"
    assert theirs(path, config=json_of(fields))["a"] == b"v"


@pytest.mark.parametrize("fields", BAD, ids=str)
def test_a_configuration_that_cannot_be_is_refused_by_both(path: Path, fields: dict[str, Any]) -> None:
    with pytest.raises((ocdbt_py.InvalidArgumentError, TypeError)):
        config_of(fields)
    with pytest.raises(ValueError, match="config"):
        theirs(path, config=json_of(fields))


@pytest.mark.parametrize(
    "options",
    [{"target_data_file_size": -1}, {"locking": "flock"}, {"value_data_prefix": "../"}, {"unknown": 1}],
    ids=str,
)
def test_a_way_to_write_that_cannot_be_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises((ocdbt_py.InvalidArgumentError, TypeError)):
        WriteOptions(**options)


def test_a_configuration_is_shown_with_every_field(path: Path) -> None:
    config = Config(uuid="00" * 16, compression=None)
    with ocdbt_py.open(path, "x", config=config) as db:
        assert repr(db.config) == (
            f"Config(uuid='{'00' * 16}', manifest_kind='single', max_inline_value_bytes=100, "
            "max_decoded_node_bytes=8388608, version_tree_arity_log2=4, compression=None)"
        )


# --- I: numbered manifests


def test_numbered_manifests_are_kept_for_129_generations(path: Path) -> None:
    with ocdbt_py.open(path, "x", config=Config(manifest_kind="numbered"), durable=False) as db:
        for i in range(132):
            db["k"] = b"%d" % i
            names = sorted(file.name for file in path.iterdir() if file.is_file())
            numbers = range(max(1, i + 2 - 128), i + 3)
            assert names == [*(f"manifest.{number:016x}" for number in numbers), "manifest.ocdbt"]
            if i == 0:
                assert len(list((path / "d").iterdir())) == 1
        assert len(list(db.versions())) == 133
    assert read_by_tensorstore(path) == {b"k": b"131"}


# --- J: copies


def test_a_prefix_is_copied_to_another(db: ocdbt_py.Database, path: Path) -> None:
    db.update({"x/a": b"value_a", "x/b": b"value_b" * 100})
    db.copy_from(db, prefix="x/", to="y/")
    expected = {
        b"x/a": b"value_a",
        b"x/b": b"value_b" * 100,
        b"y/a": b"value_a",
        b"y/b": b"value_b" * 100,
    }
    assert dict(db.items()) == read_by_tensorstore(path) == expected
    assert db.stat("x/b").location == db.stat("y/b").location  # by reference


def test_copies_in_a_transaction_are_read_there_and_seen_outside_after_the_commit(path: Path) -> None:
    with ocdbt_py.open(path, "x", config=Config(max_inline_value_bytes=0), durable=False) as db:
        db.update({"x/a": b"value_a", "x/b": b"value_b"})
        with db.transaction() as t:
            for to in ("y/", "z/", "z/"):
                t.copy_from(db.snapshot(), prefix="x/", to=to)
            assert t["y/a"] == b"value_a"
            assert t.read("y/a", 1, 3) == b"al"
            assert list(t) == [b"x/a", b"x/b", b"y/a", b"y/b", b"z/a", b"z/b"]
            assert len(db) == 2
        assert read_by_tensorstore(path) == {
            b"%c/%c" % (to, name): b"value_%c" % name for to in b"xyz" for name in b"ab"
        }


def test_a_database_below_is_merged_by_reference_and_others_by_value(tmp_path: Path) -> None:
    parent, child, far = tmp_path / "db", tmp_path / "db" / "child", tmp_path / "far"
    values = {b"a": b"1", b"b": b"2" * 1000}
    databases = [ocdbt_py.open(path, "x", durable=False) for path in (parent, child, far)]
    for name, db in zip((b"parent/", b"child/", b"far/"), databases, strict=True):
        db.update({name + key: value for key, value in values.items()})
    above, below, away = databases
    before = {name: (child / name).read_bytes() for name in files_below(child)}
    above.copy_from(below)
    location = above.stat("child/b").location
    assert location is not None
    assert location.file.startswith("child/d/")
    above.copy_from(away)
    location = above.stat("far/b").location
    assert location is not None
    assert location.file.startswith("d/")
    generation = above.version.generation
    above.copy_from(ocdbt_py.open(tmp_path / "empty", "x", durable=False))
    assert above.version.generation == generation
    everything = {name + key: value for name in (b"parent/", b"child/", b"far/") for key, value in values.items()}
    assert dict(above.items()) == read_by_tensorstore(parent) == everything
    assert {name: (child / name).read_bytes() for name in files_below(child)} == before
    below.copy_from(above, prefix="parent/", to="parent/")
    shutil.rmtree(far)
    assert below["parent/b"] == values[b"b"]


MERGED = [case for case in ocdbt_cases() if case.name in ("copy_range_merge", "copy_range_nested")]


@pytest.mark.parametrize("case", MERGED, ids=str)
def test_a_merged_database_and_its_parts_are_written_on_independently(tmp_path: Path, case: Case) -> None:
    merged = tmp_path / "db"
    shutil.copytree(case.db, merged)
    parts = [manifest.parent for manifest in merged.rglob("manifest.ocdbt") if manifest.parent != merged]
    assert parts
    whole = dict(ocdbt_py.open(merged).items())
    for part in parts:
        with ocdbt_py.open(part, "r+", durable=False) as db:
            db["written later"] = b"x" * 500
    with ocdbt_py.open(merged, "r+", durable=False) as db:
        assert dict(db.items()) == whole
        db["written later"] = b"y" * 500
    for part in parts:
        assert read_by_tensorstore(part)[b"written later"] == b"x" * 500
    assert read_by_tensorstore(merged) == {**whole, b"written later": b"y" * 500}
    assert ocdbt_py.check(merged).ok
