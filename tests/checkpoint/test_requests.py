"""What a save and a restore ask of a storage where every request costs milliseconds, and what memory they take."""

from __future__ import annotations

import threading
import tracemalloc
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ocdbt_py.backends import LocalStorage, MemoryStorage
from ocdbt_py.checkpoint.checkpoint import Checkpoint
from ocdbt_py.checkpoint.encoding import Encoding
from ocdbt_py.checkpoint.restore import restore_place
from ocdbt_py.storage.location import Place, Settings
from ocdbt_py.storage.protocol import ANY, Buffer, Capabilities, Condition, Storage, Token
from tests.checkpoint.places import Bucket, NewPlace, save_at

OPENING = {"list": 1, "read": 2}
"""The names in the directory; ``_METADATA`` and the manifest, each once."""


class Store(Bucket):
    """A bucket that likes files of 32 MiB."""

    @property
    def capabilities(self) -> Capabilities:
        return replace(super().capabilities, file_bytes=32 << 20)


@pytest.fixture
def store() -> Store:
    return Store(MemoryStorage())


def asked(storage: Store, work: Callable[[], object]) -> Counter[str]:
    """The calls that some work makes."""
    storage.operations.clear()
    storage.bytes_read.clear()
    work()
    return storage.operations.copy()


def leaves(count: int) -> dict[str, Any]:
    return {f"leaf_{i:05}": np.full(1024, i, np.float32) for i in range(count)}


def opened(place: Place) -> Checkpoint:
    return Checkpoint._reopen(place, None, False)


def test_a_save_of_small_leaves_takes_a_request_for_each_file(store: Store, new_place: NewPlace) -> None:
    place = new_place(store)
    calls = asked(store, lambda: save_at(place, leaves(5000)))
    # claim, manifest, checksums, _METADATA, commit time, marker; 20 MB of values and the tree
    assert calls == {"list": 1, "write": 6, "put": 1, "sync": 1}


class Reluctant(Store):
    """Takes no data before the tree's metadata are there."""

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self.is_described = threading.Event()

    def put(self, path: str, buffers: Sequence[Buffer]) -> None:
        assert self.is_described.wait(30), f"nothing but {path} goes up"
        super().put(path, buffers)

    def write(self, path: str, buffers: Sequence[Buffer], if_version: Token | Condition = ANY) -> Token:
        token = super().write(path, buffers, if_version)
        if path.endswith("/_METADATA"):
            self.is_described.set()
        return token


def test_what_describes_a_new_tree_goes_up_beside_its_values(new_place: NewPlace) -> None:
    place = new_place(Reluctant(MemoryStorage()))
    save_at(place, leaves(5000))
    np.testing.assert_equal(restore_place(place)["leaf_00017"], np.full(1024, 17, np.float32))


def test_an_overwrite_asks_for_no_more_than_the_exchange_takes(store: Store, new_place: NewPlace) -> None:
    place = new_place(store)
    save_at(place, {**leaves(3), "text": "a"})
    calls = asked(store, lambda: save_at(place, leaves(4), overwrite=True))
    # the marker, the old strings, the old data
    assert calls == {"list": 2, "write": 6, "put": 1, "sync": 1, "delete": 3}


def test_small_leaves_are_restored_by_one_call(store: Store, new_place: NewPlace) -> None:
    place = new_place(store)
    save_at(place, leaves(5000))
    calls = asked(store, lambda: restore_place(place))
    assert calls == {**OPENING, "read_many": 2, "read_many_into": 1}  # the tree's root and its leaves; the values
    data = sum(count for path, count in store.bytes_read.items() if "/d/" in path)
    assert data < 5000 * 4096 * 1.01


def test_one_leaf_of_many_costs_the_tree_and_its_own_bytes(store: Store, new_place: NewPlace) -> None:
    place = new_place(store)
    save_at(place, leaves(50_000))
    found = []
    calls = asked(store, lambda: found.append(opened(place)))
    assert calls == OPENING
    (checkpoint,) = found
    calls = asked(store, lambda: np.testing.assert_equal(checkpoint["leaf_00123"][:], np.full(1024, 123, np.float32)))
    assert calls == {"read_many": 2, "read_many_into": 1}
    in_tree = sum(count for path, count in store.bytes_read.items() if "/d/" in path) - 4096
    assert in_tree < 40_000  # the root, and the one node that has the leaf
    calls = asked(store, lambda: np.testing.assert_equal(checkpoint["leaf_00124"][1000:], 124))
    assert calls == {"read_many_into": 1}
    assert sum(store.bytes_read.values()) == 24 * 4


def test_a_slice_of_a_large_leaf_reads_the_ranges_it_needs_at_once(store: Store, new_place: NewPlace) -> None:
    place = new_place(store)
    array = np.arange(1 << 20, dtype=np.float32).reshape(16, 64, 1024)
    save_at(place, {"w": array})
    checkpoint = opened(place)
    lazy = checkpoint["w"]
    for index, ranges, elements in (
        (np.s_[3], 1, 1 << 16),
        (np.s_[2:4, 5], 2, 2048),
        (np.s_[:, 7, 100:200], 16, 1600),
        (np.s_[-1, -1, -1], 1, 1),
    ):
        calls = asked(store, lambda index=index: np.testing.assert_equal(lazy[index], array[index]))  # type: ignore[misc]
        assert calls == {"read_many_into": 1}
        assert sum(store.bytes_read.values()) == elements * 4
        assert len(checkpoint.explain("w", index)) == ranges


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Place:
    path = str(tmp_path_factory.mktemp("large") / "7")
    return Place(LocalStorage(Settings(durable=False)), path, path)


@pytest.mark.parametrize("kind", [Store, LocalStorage])
@pytest.mark.parametrize(
    ("compression", "chunk_bytes"),
    [(None, None), (None, 3 << 20), ("zstd:1", 3 << 20)],
    ids=["one chunk", "chunks", "compressed chunks"],
)
def test_a_large_leaf_takes_little_memory_beside_itself(
    kind: Any, compression: str | None, chunk_bytes: int | None, disk: Place
) -> None:
    storage: Storage = Store(disk.storage) if kind is Store else disk.storage
    place = replace(disk, storage=storage)
    array = np.random.default_rng(0).integers(0, 1 << 62, 200 << 17, dtype=np.int64)

    def traced(work: Callable[[], Any]) -> tuple[Any, int]:
        tracemalloc.start()
        try:
            return work(), tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    try:
        _, peak = traced(lambda: save_at(place, {"w": array}, Encoding(compression, chunk_bytes)))
        assert peak < 64 << 20
        tree, peak = traced(lambda: restore_place(place))
        assert peak < array.nbytes + (64 << 20) + (4 << 20)
        assert np.array_equal(tree["w"], array)
    finally:
        disk.storage.delete(f"{disk.path}/")
