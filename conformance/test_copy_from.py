"""Databases merged into one: by reference where the source lies below, by value elsewhere, as TensorStore does it.

The parts are written with values and nodes in files of different names, so that a test can say which of them were
touched: no byte of a value is read, or written, by a merge by reference.
"""

from __future__ import annotations

import itertools
import shutil
import uuid
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tensorstore as ts

import ocdbt_py
from conformance.oracle import Dump, contents_of, fast_context, in_one_commit, json_config, open_store
from ocdbt_py.database import open_place
from ocdbt_py.storage.location import Settings, resolve
from ocdbt_py.testing.faulty import FaultyStorage

Contents = dict[bytes, bytes]
Write = Callable[[Path, Contents], None]
Merge = Callable[[Path, Iterable[Path]], None]

CONFIG = ocdbt_py.Config(max_decoded_node_bytes=300, max_inline_value_bytes=20)
VALUES, NODES = "values/", "nodes/"
OPTIONS = ocdbt_py.WriteOptions(value_data_prefix=VALUES, btree_node_data_prefix=NODES)
THEIR_OPTIONS = {"value_data_prefix": VALUES, "btree_node_data_prefix": NODES}
LONG = 1000


def written_by_us(directory: Path, contents: Contents) -> None:
    with ocdbt_py.open(directory, "a", config=CONFIG, write_options=OPTIONS, durable=False) as db:
        db.update(contents)


def written_by_tensorstore(directory: Path, contents: Contents) -> None:
    in_one_commit(open_store(directory, config=json_config(CONFIG), **THEIR_OPTIONS), contents)


def merged_by_us(directory: Path, parts: Iterable[Path]) -> None:
    with (
        ocdbt_py.open(directory, "a", config=CONFIG, write_options=OPTIONS, durable=False) as db,
        db.transaction() as transaction,
    ):
        for part in parts:
            with ocdbt_py.open(part) as source:
                transaction.copy_from(source)


def copied_by_tensorstore(sources: Iterable[Any], target: Any) -> None:
    transaction = ts.Transaction(atomic=True)
    for source in sources:
        source.experimental_copy_range_to(target.with_transaction(transaction)).result()
    transaction.commit_sync()


def merged_by_tensorstore(directory: Path, parts: Iterable[Path]) -> None:
    context = fast_context()
    store = open_store(directory, context, config=json_config(CONFIG), **THEIR_OPTIONS)
    copied_by_tensorstore([open_store(part, context) for part in parts], store)


either_writes = pytest.mark.parametrize("write", [written_by_us, written_by_tensorstore])


def parts_of(count: int) -> list[Contents]:
    """What each of several processes writes: long values, one in line, an empty one."""
    return [
        {
            **{f"p{part}/{i:02}".encode(): b"%d %d " % (part, i) * (LONG // 4) for i in range(20)},
            b"p%d/short" % part: b"in line",
            b"p%d/empty" % part: b"",
        }
        for part in range(count)
    ]


def write_parts(directory: Path, write: Write, count: int = 3) -> tuple[list[Path], Contents]:
    paths = []
    contents: Contents = {}
    for number, part in enumerate(parts_of(count)):
        paths.append(directory / f"ocdbt.process_{number}")
        write(paths[-1], part)
        contents.update(part)
    return paths, contents


def open_counted(storage: FaultyStorage, directory: Path, mode: ocdbt_py.database.Mode = "r") -> ocdbt_py.Database:
    """A database whose every request goes through ``storage``, which counts."""
    place = resolve(directory)
    return open_place(replace(place, storage=storage), mode, write_options=OPTIONS)


def counting(directory: Path) -> FaultyStorage:
    return FaultyStorage(resolve(directory, settings=Settings(durable=False)).storage)


def value_bytes_read(storage: FaultyStorage) -> int:
    return sum(count for path, count in storage.bytes_read.items() if f"/{VALUES}" in path)


def locations(db: ocdbt_py.Database) -> dict[bytes, object]:
    return {entry.key: entry.location for entry in db.scan()}


def tree_of(directory: Path) -> list[list[object]]:
    dump = Dump(directory)
    return dump.tree_form(dump.versions(dump.manifest())[-1])


# --- by reference


@either_writes
def test_what_several_processes_wrote_becomes_one_version_and_no_value_moves(write: Write, tmp_path: Path) -> None:
    paths, contents = write_parts(tmp_path, write)
    storage = counting(tmp_path)
    with open_counted(storage, tmp_path, "x") as db:
        with db.transaction() as transaction:
            for path in paths:
                transaction.copy_from(open_counted(storage, path))
        assert [version.num_keys for version in db.versions()] == [len(contents), 0]
        assert db.version.num_indirect_value_bytes == sum(len(v) for v in contents.values() if len(v) > 20)
        assert value_bytes_read(storage) == 0
        assert not (tmp_path / VALUES).exists()
        assert dict(db.items()) == contents
        assert value_bytes_read(storage) == db.version.num_indirect_value_bytes
    assert contents_of(open_store(tmp_path)) == contents


@either_writes
def test_tensorstore_merges_the_same_parts_into_the_same_tree(write: Write, tmp_path: Path) -> None:
    paths, contents = write_parts(tmp_path / "ours", write)
    shutil.copytree(tmp_path / "ours", tmp_path / "theirs")
    merged_by_us(tmp_path / "ours", paths)
    merged_by_tensorstore(tmp_path / "theirs", [tmp_path / "theirs" / path.name for path in paths])
    assert tree_of(tmp_path / "ours") == tree_of(tmp_path / "theirs")
    with ocdbt_py.open(tmp_path / "ours") as ours, ocdbt_py.open(tmp_path / "theirs") as theirs:
        assert locations(ours) == locations(theirs)
        assert dict(ours.items()) == dict(theirs.items()) == contents


@either_writes
@pytest.mark.parametrize(("inner", "outer"), list(itertools.product([merged_by_us, merged_by_tensorstore], repeat=2)))
def test_merges_of_merges_refer_down_through_all_levels(
    write: Write, inner: Merge, outer: Merge, tmp_path: Path
) -> None:
    below = tmp_path / "hosts/host_0"
    paths, contents = write_parts(below, write)
    inner(below, paths)
    top = {b"top": b"t" * LONG}
    write(tmp_path / "other", top)
    outer(tmp_path, [below, tmp_path / "other"])
    with ocdbt_py.open(tmp_path) as db:
        assert dict(db.items()) == contents | top
        files = {entry.location.file for entry in db.scan() if entry.location is not None}
    assert {file.partition(VALUES)[0] for file in files} == {
        "other/",
        *(f"hosts/host_0/ocdbt.process_{number}/" for number in range(3)),
    }
    assert all((tmp_path / file).is_file() for file in files)
    assert contents_of(open_store(tmp_path)) == contents | top


def test_a_merge_repeated_refers_to_the_same_places(tmp_path: Path) -> None:
    paths, contents = write_parts(tmp_path, written_by_us)
    merged_by_us(tmp_path, paths)
    with ocdbt_py.open(tmp_path) as db:
        first = locations(db)
        merged_by_us(tmp_path, paths)
        assert db.version.generation == 3
        assert locations(db) == first
        assert dict(db.items()) == contents


def test_the_database_and_its_parts_can_be_written_on_independently(tmp_path: Path) -> None:
    (path,), contents = write_parts(tmp_path, written_by_us, 1)
    merged_by_us(tmp_path, [path])
    with ocdbt_py.open(tmp_path, "r+", durable=False) as db, ocdbt_py.open(path, "r+", durable=False) as part:
        part.clear()
        part["p0/00"] = b"part" * LONG
        assert dict(db.items()) == contents
        db["p0/01"] = b"whole" * LONG
        del db["p0/02"]
        assert dict(part.items()) == {b"p0/00": b"part" * LONG}
        expected = {**contents, b"p0/01": b"whole" * LONG}
        del expected[b"p0/02"]
        assert dict(db.items()) == expected
    assert contents_of(open_store(tmp_path)) == expected


def test_within_one_database_a_copy_under_another_prefix_shares_the_values(tmp_path: Path) -> None:
    _, contents = write_parts(tmp_path, written_by_us, 1)
    directory = tmp_path / "ocdbt.process_0"
    shutil.copytree(directory, tmp_path / "theirs")
    storage = counting(directory)
    with open_counted(storage, directory, "r+") as db:
        db.copy_from(db, "p0/", "again/")
        assert value_bytes_read(storage) == 0
        assert dict(db.items()) == contents | {b"again/" + key[3:]: value for key, value in contents.items()}
        for key in contents:
            assert db.stat(b"again/" + key[3:]).location == db.stat(key).location
    store = open_store(tmp_path / "theirs", **THEIR_OPTIONS)
    copied_by_tensorstore([store + "p0/"], store + "again/")
    assert tree_of(directory) == tree_of(tmp_path / "theirs")


# --- which kind a value becomes


@pytest.mark.parametrize("limit", [0, 10, 500, 5000])
def test_inline_values_are_put_anew_and_others_stay_references_whatever_the_limit(limit: int, tmp_path: Path) -> None:
    contents = {b"empty": b"", b"inline": b"i" * 20, b"long": b"l" * 100, b"longer": b"L" * LONG}
    for place in ("ours", "theirs"):
        written_by_us(tmp_path / "whole" / place / "part", contents)
    ours, theirs = tmp_path / "whole/ours", tmp_path / "whole/theirs"
    config = ocdbt_py.Config(max_inline_value_bytes=limit)
    with (
        ocdbt_py.open(ours, "x", config=config, durable=False) as db,
        ocdbt_py.open(ours / "part") as part,
    ):
        db.copy_from(part)
        assert dict(db.items()) == contents
        files = {entry.key: entry.location.file.partition("/")[0] for entry in db.scan() if entry.location is not None}
    assert files == {b"long": "part", b"longer": "part", **({b"inline": "d"} if limit < 20 else {})}
    context = fast_context()
    store = open_store(theirs, context, config=json_config(config))
    copied_by_tensorstore([open_store(theirs / "part", context)], store)
    assert tree_of(ours) == tree_of(theirs)


# --- which keys


def test_a_prefix_is_cut_off_and_another_put_in_its_place(tmp_path: Path) -> None:
    written_by_us(tmp_path / "part", {b"a/1": b"1", b"a/2": b"2" * LONG, b"ab": b"ab", b"b/1": b"3"})
    with ocdbt_py.open(tmp_path, "x", durable=False) as db, ocdbt_py.open(tmp_path / "part") as part:
        db.copy_from(part, "a/", "x/y/")
        assert dict(db.items()) == {b"x/y/1": b"1", b"x/y/2": b"2" * LONG}
        db.copy_from(part, prefix=b"b/")
        assert db["1"] == b"3"
        db.copy_from(part, to="all/")
        assert list(db.keys("all/")) == [b"all/a/1", b"all/a/2", b"all/ab", b"all/b/1"]


def test_prefixes_in_the_urls_of_both_databases_count(tmp_path: Path) -> None:
    written_by_us(tmp_path / "part", {b"s/x/1": b"1" * LONG, b"s/2": b"2", b"x/3": b"3"})
    ocdbt_py.open(tmp_path, "x", durable=False).close()
    with (
        ocdbt_py.open(f"{tmp_path}|ocdbt:t/", "r+", durable=False) as db,
        ocdbt_py.open(f"{tmp_path / 'part'}|ocdbt:s/") as part,
    ):
        db.copy_from(part, "x/", "y/")
        assert dict(db.items()) == {b"y/1": b"1" * LONG}
    assert contents_of(open_store(tmp_path)) == {b"t/y/1": b"1" * LONG}


@either_writes
def test_an_empty_source_or_a_prefix_without_keys_adds_no_version(write: Write, tmp_path: Path) -> None:
    write(tmp_path / "empty", {})
    write(tmp_path / "part", {b"a": b"1"})
    with (
        ocdbt_py.open(tmp_path, "x", durable=False) as db,
        ocdbt_py.open(tmp_path / "empty") as empty,
        ocdbt_py.open(tmp_path / "part") as part,
    ):
        db.copy_from(empty)
        db.copy_from(part, "b")
        with db.transaction() as transaction:
            transaction.copy_from(empty)
            transaction.copy_from(part, "b")
        assert db.version.generation == 1
    merged_by_tensorstore(tmp_path, [tmp_path / "empty"])
    assert len(Dump(tmp_path).manifest()["versions"]) == 1


def test_an_old_version_of_the_source_is_what_it_held_then(tmp_path: Path) -> None:
    """TensorStore takes the newest even from a store opened at a version."""
    with (
        ocdbt_py.open(tmp_path / "part", "x", durable=False) as part,
        ocdbt_py.open(tmp_path, "x", durable=False) as db,
    ):
        part.update({"a": b"1" * LONG, "b": b"2"})
        then = part.snapshot()
        part.update({"a": b"new", "c": b"3"})
        db.copy_from(then)
        assert dict(db.items()) == {b"a": b"1" * LONG, b"b": b"2"}
        db.copy_from(part.at(3))
        assert dict(db.items()) == {b"a": b"new", b"b": b"2", b"c": b"3"}


def test_a_transaction_reads_its_copies_and_the_last_word_holds(tmp_path: Path) -> None:
    written_by_us(tmp_path / "one", {b"a": b"0123456789" * 100, b"b": b"one", b"c": b"one"})
    written_by_us(tmp_path / "two", {b"b": b"two", b"d": b"two"})
    with (
        ocdbt_py.open(tmp_path, "x", durable=False) as db,
        ocdbt_py.open(tmp_path / "one") as one,
        ocdbt_py.open(tmp_path / "two") as two,
    ):
        with db.transaction() as transaction:
            transaction["a"] = b"before"
            transaction.copy_from(one)
            assert transaction.read("a", 8, 12) == b"8901"
            transaction["c"] = b"after"
            transaction.copy_from(two)
            del transaction["d"]
            assert {key: len(value) for key, value in transaction.items()} == {b"a": 1000, b"b": 3, b"c": 5}
        assert dict(db.items()) == {b"a": b"0123456789" * 100, b"b": b"two", b"c": b"after"}


# --- by value


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("{local}/run", "{memory}/run"),
        ("{memory}/run", "{local}/run"),
        ("{local}/one", "{local}/two"),
        ("{local}/run10", "{local}/run1"),  # the text of one path begins with the other; it does not lie below
        ("{local}/run", "{local}/run/part"),
        ("{memory}/one", "{memory}/two"),
    ],
)
def test_from_a_place_that_does_not_lie_below_the_bytes_are_copied(source: str, target: str, tmp_path: Path) -> None:
    names = {"local": str(tmp_path), "memory": f"memory://{uuid.uuid4().hex}"}
    contents = {b"a/%02d" % i: b"%d" % i * (i * 30) for i in range(30)}
    with (
        ocdbt_py.open(source.format(**names), "x", durable=False) as other,
        ocdbt_py.open(target.format(**names), "x", config=CONFIG, durable=False) as db,
    ):
        other.update(contents)
        db.copy_from(other, "a/", "b/")
        assert dict(db.items()) == {b"b" + key[1:]: value for key, value in contents.items()}
        assert db.version.generation == 2
        place = resolve(target.format(**names))
        own = {item.path[len(place.path) + 1 :] for item in place.storage.list(place.path + "/", deep=True)}
        assert {entry.location.file for entry in db.scan() if entry.location is not None} <= own
        assert {entry.key for entry in db.scan() if entry.location is not None} == {
            b"b" + key[1:] for key, value in contents.items() if len(value) > 20
        }
