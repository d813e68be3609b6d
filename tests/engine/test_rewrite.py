"""A large leaf is changed where a commit changes it, and comes out as if it had been written anew."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

import ocdbt_py
from ocdbt_py.engine.columns import INLINE
from ocdbt_py.engine.mutations import Mutations
from ocdbt_py.format.btree import LeafNode, encode_leaf_node
from ocdbt_py.format.config import Zstd

MANY = 3000  # keys, in one leaf


def content_of(count: int) -> dict[bytes, bytes]:
    return {b"block_%d/item_%d/w" % (i // 100, i % 100): b"value %d" % i for i in range(count)}


def leaf_of(content: dict[bytes, bytes]) -> bytes:
    """The object that holds all of it, made from nothing."""
    keys = sorted(content)
    values = [content[key] for key in keys]
    lengths = np.array([len(value) for value in values], np.int64)
    leaf = LeafNode(
        keys=keys,
        lengths=lengths,
        file_ids=np.full(len(keys), INLINE, np.int64),
        offsets=np.cumsum(lengths) - lengths,
        inline=b"".join(values),
        files=(),
    )
    return encode_leaf_node(leaf, compression=Zstd(0))


def root_of(directory: Path, database: ocdbt_py.Database) -> bytes:
    root = database._tree().version.root
    assert root is not None
    data = (directory / root.file.path.decode()).read_bytes()
    return data[root.offset : root.offset + root.length]


@pytest.mark.parametrize("reopened", [False, True], ids=["in one session", "reopened"])
def test_a_leaf_of_many_keys_is_written_as_if_from_nothing(tmp_path: Path, reopened: bool) -> None:
    content = content_of(MANY)
    db = ocdbt_py.open(tmp_path, "x", durable=False)
    db.update(content)
    choose = random.Random(7)
    for step in range(40):
        if reopened:
            db = ocdbt_py.open(tmp_path, "r+", durable=False)
        keys = sorted(content)
        changes: dict[bytes, bytes | None] = {choose.choice(keys): b"new %d" % step for _ in range(step % 3)}
        changes |= {choose.choice(keys) + b"/%d" % step: b"more" for _ in range(step % 2)}
        changes |= dict.fromkeys(choose.sample(keys, step % 4))
        changes |= {b"": b"first"} if step == 10 else {b"zzz": b"last"} if step == 20 else {}
        mutations = Mutations()
        if step % 5 == 0:
            start, stop = sorted(choose.sample(keys[-200:], 2))
            mutations.delete_range(start, stop)
            content = {key: value for key, value in content.items() if not start <= key < stop}
        for key, value in changes.items():
            if value is None:
                mutations.delete(key)
                content.pop(key, None)
            else:
                mutations.put(key, value)
                content[key] = value
        db._commit(mutations)
        assert root_of(tmp_path, db) == leaf_of(content)
    assert dict(db) == content


def test_a_split_leaf_holds_every_key(tmp_path: Path) -> None:
    content = content_of(MANY)
    config = ocdbt_py.Config(max_decoded_node_bytes=40_000)
    db = ocdbt_py.open(tmp_path, "x", durable=False, config=config)
    db.update(content)
    assert db._tree().version.root_height == 1
    assert dict(ocdbt_py.open(tmp_path)) == dict(db) == content
    db.update(dict.fromkeys(content, b"other"))
    assert dict(ocdbt_py.open(tmp_path)) == dict(db) == dict.fromkeys(content, b"other")


def test_one_key_of_a_large_leaf_is_found_without_cutting_the_others(tmp_path: Path) -> None:
    content = content_of(MANY)
    with ocdbt_py.open(tmp_path, "x", durable=False) as db:
        db.update(content)
    with ocdbt_py.open(tmp_path) as db:
        for key in [*list(content)[::97], b"", b"block_1", b"zzz"]:
            assert db.get(key) == content.get(key)
    with ocdbt_py.open(tmp_path) as db:
        assert list(db.keys(prefix=b"block_7/")) == sorted(key for key in content if key.startswith(b"block_7/"))
        assert next(db.scan(b"block_28/item_7/w", b"block_29")).key == b"block_28/item_7/w"


def test_the_last_keys_of_a_large_leaf_are_deleted_alone(tmp_path: Path) -> None:
    content = content_of(MANY)
    with ocdbt_py.open(tmp_path, "x", durable=False) as db:
        db.update(content)
        db.delete_range(b"block_9/")
        left = {key: value for key, value in content.items() if key < b"block_9/"}
        assert root_of(tmp_path, db) == leaf_of(left)


@pytest.mark.parametrize("max_decoded_node_bytes", [0, 500])
def test_nodes_that_commits_replace_are_not_kept_in_memory(tmp_path: Path, max_decoded_node_bytes: int) -> None:
    config = ocdbt_py.Config(max_decoded_node_bytes=max_decoded_node_bytes)
    with ocdbt_py.open(str(tmp_path), "a", config=config, durable=False) as database:
        database.update(content_of(100))
        for number in range(30):
            database[b"block_0/item_7/w"] = b"value %d" % number
        nodes = database._engine.nodes
        assert len(nodes._cache) < 15
        assert nodes._held == sum(size for _, size in nodes._cache.values())
        assert database[b"block_0/item_7/w"] == b"value 29"
        with ocdbt_py.open(str(tmp_path), version=5) as before:
            assert before[b"block_0/item_7/w"] == b"value 2"
