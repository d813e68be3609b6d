"""Commits: many writers, what a transaction promises, and how values reach files (groups K, L and O)."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore as ts

import ocdbt_py
from conformance.structures import Walk
from ocdbt_py.array.spec import ArraySpec
from ocdbt_py.array.write import encode_array
from ocdbt_py.engine.data_files import DataFiles
from ocdbt_py.engine.mutations import KeyRange, Mutations, stage
from ocdbt_py.format.btree import InteriorNode, LeafNode
from ocdbt_py.format.datafile import Location, common_prefix_length
from ocdbt_py.storage.location import Settings, resolve
from ocdbt_py.testing.faulty import FaultyStorage
from ocdbt_py_backends import local_files

WRITERS = 16
STEPS = 5


def theirs(path: Path, **options: Any) -> Any:
    spec = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{path}/"}, **options}
    return ts.KvStore.open(spec, context=ts.Context({"file_io_sync": False})).result()


def together(works: Iterable[Callable[[], object]]) -> None:
    """Each in a thread of its own; an error of any is raised."""
    errors: list[BaseException] = []

    def run(work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


# --- K: concurrency


@pytest.mark.parametrize("kind", ["single", "numbered"])
def test_no_increment_of_sixteen_writers_is_lost(tmp_path: Path, kind: str) -> None:
    with ocdbt_py.open(tmp_path, "x", config=ocdbt_py.Config(manifest_kind=kind), durable=False) as db:
        db["counter"] = b"0"

    def count(writer: int) -> None:
        with ocdbt_py.open(tmp_path, "r+", durable=False, cache_bytes=0) as mine:
            for i in range(STEPS):
                mine.run(lambda t: t.__setitem__("counter", b"%d" % (int(t["counter"]) + 1)))
                mine[f"{writer}/{i}"] = b"x" * 150

    together(lambda writer=writer: count(writer) for writer in range(WRITERS))  # type: ignore[misc]
    with ocdbt_py.open(tmp_path) as db:
        assert db["counter"] == b"%d" % (WRITERS * STEPS)
        assert len(db) == 1 + WRITERS * STEPS
        assert db.version.generation <= 2 + 2 * WRITERS * STEPS
    store = theirs(tmp_path)
    assert len(store.list().result()) == 1 + WRITERS * STEPS
    assert ocdbt_py.check(tmp_path).ok


def test_of_conflicting_conditional_writes_one_wins(tmp_path: Path) -> None:
    with ocdbt_py.open(tmp_path, "x", durable=False) as db:
        token = db.write("k", b"start")
    won: list[int] = []
    lost: list[str] = []

    def attempt(writer: int) -> None:
        with ocdbt_py.open(tmp_path, "r+", durable=False) as mine:
            try:
                mine.write("k", b"%d" % writer, if_equal=token)
            except ocdbt_py.ConflictError as conflict:
                lost.append(conflict.kind)
            else:
                won.append(writer)

    together(lambda writer=writer: attempt(writer) for writer in range(WRITERS))  # type: ignore[misc]
    (winner,) = won
    assert lost == ["condition"] * (WRITERS - 1)
    with ocdbt_py.open(tmp_path) as db:
        assert db["k"] == b"%d" % winner
        assert db.version.generation == 3


@pytest.mark.parametrize("kind", ["single", "numbered"])
def test_tensorstore_and_we_write_one_directory_at_once(tmp_path: Path, kind: str) -> None:
    with ocdbt_py.open(tmp_path, "x", config=ocdbt_py.Config(manifest_kind=kind), durable=False) as db:
        db["counter"] = b"0"

    def we(writer: int) -> None:
        with ocdbt_py.open(tmp_path, "r+", durable=False) as mine:
            for i in range(10):
                mine.run(lambda t: t.__setitem__("counter", b"%d" % (int(t["counter"]) + 1)))
                mine[f"ours/{writer}/{i}"] = b"x" * 150

    def they(writer: int) -> None:
        store = theirs(tmp_path)
        for i in range(10):
            while True:
                now = store.read("counter").result()
                value = b"%d" % (int(now.value) + 1)
                if store.write("counter", value, if_equal=now.stamp.generation).result().generation:
                    break
            store[f"theirs/{writer}/{i}"] = b"x" * 150

    together([*(lambda w=w: we(w) for w in range(3)), *(lambda w=w: they(w) for w in range(3))])
    with ocdbt_py.open(tmp_path) as db:
        assert db["counter"] == b"60"
        assert (len(db.keys("ours/")), len(db.keys("theirs/"))) == (30, 30)
        ours = dict(db.items())
    store = theirs(tmp_path)
    assert {key: store[key] for key in store.list().result()} == ours
    assert ocdbt_py.check(tmp_path).ok


def test_tensorstore_and_we_take_turns(tmp_path: Path) -> None:
    model: dict[bytes, bytes] = {}
    history = []
    config = ocdbt_py.Config(max_decoded_node_bytes=200, version_tree_arity_log2=1)
    with ocdbt_py.open(tmp_path, "x", config=config, durable=False) as db:
        store = theirs(tmp_path)
        history.append((db.version.generation, dict(model)))
        for i in range(12):
            key, value = b"%02d" % (i * 5 % 12), b"%d" % i * 60
            model[key] = value
            if i % 2:
                db[key] = value
            else:
                store[key] = value
            if i % 5 == 4:
                gone = sorted(model)[0]
                del model[gone]
                (db.delete if i % 2 == 0 else lambda k: store.write(k, None).result())(gone)
            assert dict(db.items()) == {k: store[k] for k in store.list().result()} == model
            history.append((db.version.generation, dict(model)))
        for generation, contents in history:
            assert dict(db.at(generation).items()) == contents
            old = theirs(tmp_path, version=generation)
            assert {k: old[k] for k in old.list().result()} == contents
    assert ocdbt_py.check(tmp_path).ok


def test_an_array_of_many_chunks_is_written_twice_at_once(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (128, 128, 128), np.uint8)
    spec = ArraySpec(
        shape=array.shape,
        chunks=(8, 8, 8),
        dtype=array.dtype,
        order="C",
        fill_value=None,
        compressor=None,
        dimension_separator=".",
    )
    with ocdbt_py.open(tmp_path, "x", config=ocdbt_py.Config(max_inline_value_bytes=1), durable=False) as db:
        together([lambda: db.update(encode_array("a", array, spec))] * 2)
        assert len(db) == 1 + 16**3
        assert json.loads(db["a/.zarray"])["chunks"] == [8, 8, 8]
    kvstore = {"driver": "ocdbt", "base": f"file://{tmp_path}/", "path": "a/"}
    found = ts.open({"driver": "zarr", "kvstore": kvstore}).result().read().result()
    np.testing.assert_array_equal(found, array)


def contents_after(*steps: Callable[[Mutations], None]) -> tuple[list[bytes], list[KeyRange]]:
    mutations = Mutations()
    for step in steps:
        step(mutations)
    staged = mutations.stage(100, "d/", DataFiles(resolve("memory://staging").storage, "/staging", 0))
    return staged.keys, staged.ranges


def test_a_later_range_swallows_writes_and_merges_with_its_neighbour() -> None:
    assert contents_after(
        lambda m: m.put(b"b", b"1"), lambda m: m.put(b"d", b"1"), lambda m: m.delete_range(b"a", b"c")
    ) == ([b"d"], [KeyRange(b"a", b"c")])
    assert contents_after(lambda m: m.delete_range(b"a", b"c"), lambda m: m.delete_range(b"b", b"d")) == (
        [],
        [KeyRange(b"a", b"d")],
    )


# --- L: files


@pytest.mark.parametrize("target", [0, 1024])
def test_values_fill_files_up_to_their_target_size(tmp_path: Path, target: int) -> None:
    storage = resolve(tmp_path, settings=Settings(durable=False)).storage
    files = DataFiles(storage, str(tmp_path), target)
    values = {b"%04d" % i: b"%03d." % i * 65 for i in range(1000)}
    staged = stage(values, [], 100, "d/", files)
    files.flush()
    locations = [staged.puts.value(i) for i in range(1000)]
    names = {location.file.path for location in locations if isinstance(location, Location)}
    if target:
        assert all(isinstance(each, Location) and each.offset <= target for each in locations)
        assert len(names) >= 250
    else:
        assert len(names) == 1
    for key, where in zip(sorted(values), locations, strict=True):
        assert isinstance(where, Location)
        found = storage.read_many(
            [(f"{tmp_path}/{where.file.path.decode()}", where.offset, where.offset + where.length)]
        )
        assert found == [values[key]]


def test_neighbouring_parts_are_read_together_and_far_ones_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []
    pread = local_files.read_at

    def counted(fd: int, start: int, length: int) -> bytes:
        reads.append((start, start + length))
        found: bytes = pread(fd, start, length)
        return found

    monkeypatch.setattr("ocdbt_py_backends.local.read_at", counted)
    (tmp_path / "f").write_bytes(bytes(range(256)) * 4000)
    storage = resolve(tmp_path).storage
    far = 1_000_000
    asked = [(0, 1), (2, 3), (far, far + 1), (7, 8), (4, 5), (2, 3)]
    found = storage.read_many([(f"{tmp_path}/f", start, stop) for start, stop in asked])
    assert found == [bytes([start % 256]) for start, _ in asked]
    assert sorted(reads) == [(0, 8), (far, far + 1)]


@pytest.mark.parametrize("size", [150, 15_000], ids=["files that grow", "new files"])
def test_the_manifest_is_written_when_every_file_it_needs_is_durable(tmp_path: Path, size: int) -> None:
    place = resolve(tmp_path / "db")
    steps: list[str] = []

    class Watched(FaultyStorage):
        def _step(self, name: str, **how: Any) -> Any:
            steps.append(name)
            return super()._step(name, **how)

    options = ocdbt_py.WriteOptions(
        value_data_prefix="v/",
        btree_node_data_prefix="b/",
        target_data_file_size=400,
        version_tree_node_data_prefix="n/",
    )
    config = ocdbt_py.Config(max_decoded_node_bytes=100, version_tree_arity_log2=1)
    watched = replace(place, storage=Watched(place.storage))
    with ocdbt_py.database.open_place(watched, "x", config=config, write_options=options) as db:
        db["k"] = b""
        steps.clear()
        db.update({f"{i}": b"x" * size for i in range(10)})
    assert steps.pop() == "hold.write"
    written, last = ("growing.append", "growing.sync") if size == 150 else ("put", "sync")
    assert steps.count(written) > 5
    assert "hold.write" not in steps
    assert steps.count("growing.sync") == steps.count("growing.append")
    assert steps[-1] == last


@pytest.mark.parametrize("size", [(4 << 20) - 200, (4 << 20) + 5])
def test_only_files_over_4_mib_are_padded(tmp_path: Path, size: int) -> None:
    with ocdbt_py.open(tmp_path, "x", durable=False) as db:
        db["k"] = bytes(size)
        location = db.stat("k").location
        assert location is not None
        used = size + db.version.num_tree_bytes
    (file,) = (file for file in (tmp_path / "d").iterdir() if file.name == location.file.removeprefix("d/"))
    assert file.stat().st_size == (-(-used // 4096) * 4096 if size > 4 << 20 else used)
    assert theirs(tmp_path)["k"] == bytes(size)


# --- O: form


def test_what_we_write_has_the_form_of_what_tensorstore_writes(tmp_path: Path) -> None:
    """Each node leaves out what its keys share, its parent names its first key, and all numbers are exact."""
    config = ocdbt_py.Config(max_decoded_node_bytes=150, version_tree_arity_log2=1)
    with ocdbt_py.open(tmp_path, "x", config=config, durable=False) as db:
        for i in range(25):
            db.update({f"{i % 7}/{'deep/' * (i % 3)}{i:02}": b"%d" % i * (10 * i % 130)})
    walk = Walk(tmp_path)
    assert not walk.faults
    roots = {version.root for version in walk.versions.values()}
    parents = 0
    for structure in walk.btree_nodes.values():
        node = structure.node
        if not isinstance(node, InteriorNode):
            continue
        for i, key in enumerate(node.keys):
            location = node.location(i)
            prefix = key[: int(node.subtree_prefix_lengths[i])]
            place = (location.file.path.decode(), location.offset, location.length)
            child = walk.btree_nodes[place, prefix].node
            assert isinstance(child, LeafNode | InteriorNode)
            assert location not in roots
            keys = child.keys
            shared = common_prefix_length(keys[0], keys[-1])
            if isinstance(child, InteriorNode):
                shared = min(shared, int(child.subtree_prefix_lengths.min()))
            assert (key, len(prefix)) == (keys[0], shared)
            parents += 1
    assert parents > 50
    for place_and_prefix, statistics in walk.stated.items():
        assert statistics == {walk.computed[place_and_prefix]}
    assert ocdbt_py.check(tmp_path).ok


def test_a_node_of_2_to_the_20_entries_is_one_and_one_entry_more_makes_two(tmp_path: Path) -> None:
    config = ocdbt_py.Config(max_decoded_node_bytes=10**9)
    with ocdbt_py.open(tmp_path, "x", config=config, durable=False) as db:
        db.update({b"%07d" % i: b"" for i in range(1 << 20)})
        assert ocdbt_py.check(tmp_path).btree_nodes == 1
        db.clear()
        db.update({b"%07d" % i: b"" for i in range((1 << 20) + 1)})
        leaves = [len(leaf.keys) for leaf, _, _ in db._engine.latest().scan()]
    assert leaves == [524289, 524288]
