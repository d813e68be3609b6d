"""Large trees are written by several threads: all of it arrives, and nothing is left of what fails."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ocdbt_py.array.allocation import ALIGNMENT
from ocdbt_py.backends import LocalStorage
from ocdbt_py.checkpoint import new_database
from ocdbt_py.checkpoint.checksums import CHECKSUMS, decode_checksums
from ocdbt_py.checkpoint.lanes import Batch, Lanes, lane_count
from ocdbt_py.checkpoint.restore import restore
from ocdbt_py.checkpoint.save import save
from ocdbt_py.engine.data_files import DataFiles
from ocdbt_py.errors import StorageError
from ocdbt_py.format.checksum import crc32c
from ocdbt_py.storage.location import Settings
from ocdbt_py.storage.protocol import Buffer, Writer

NOISE = np.random.default_rng(3).integers(0, 255, 30 << 20, np.uint8)
TREE: dict[str, Any] = {
    "large": NOISE[: 9 << 20],
    "turned": NOISE[: 6 << 20].reshape(2048, 3072).T,
    "compressed": np.arange(3_000_000),
    "several": [NOISE[i << 20 : (i + 1) << 20] for i in range(12)],
    "small": {str(i): np.arange(i) for i in range(300)},
    "flag": True,
}


@pytest.fixture(autouse=True)
def three_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a machine with three processors."""
    monkeypatch.setattr(new_database, "lane_count", lambda max_memory: 3)
    yield
    assert not lanes()


def lanes() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "ocdbt-lane"]


def data_files(path: Path) -> list[str]:
    return [f"d/{file.name}" for file in (path / "d").iterdir()]


@pytest.mark.parametrize("compression", ["auto", "zstd", None])
def test_what_several_threads_wrote_is_one_checkpoint(tmp_path: Path, compression: str | None) -> None:
    save(tmp_path / "c", TREE, compression=compression)
    np.testing.assert_equal(restore(tmp_path / "c", verify=True), TREE)
    assert 2 < len(data_files(tmp_path / "c")) <= 4  # a file for each thread, and one with the tree
    table = decode_checksums((tmp_path / "c" / CHECKSUMS).read_bytes(), CHECKSUMS)
    assert table.keys() <= set(data_files(tmp_path / "c"))
    offsets = {offset for values in table.values() for offset in values}
    assert not any(offset % ALIGNMENT for offset in offsets)


def test_a_small_tree_is_written_by_the_caller_into_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    monkeypatch.setattr(Lanes, "_begin_thread", lambda self: started.append(self))
    save(tmp_path / "c", {**TREE["small"], "x": np.ones(200_000)}, compression=None)
    assert not started
    assert len(data_files(tmp_path / "c")) == 1


def test_where_no_thread_can_be_had_the_caller_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        save(tmp_path / "c", TREE, durable=False)
    np.testing.assert_equal(restore(tmp_path / "c", verify=True), TREE)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_nothing_is_left_where_one_thread_failed(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create, calls, lock = LocalStorage.create, [0], threading.Lock()

    def failing(self: LocalStorage, path: str) -> Writer:
        with lock:
            calls[0] += 1
            if calls[0] == number:
                raise StorageError("the disk is full")
        return create(self, path)

    monkeypatch.setattr(LocalStorage, "create", failing)
    with pytest.raises(StorageError, match="the disk is full"):
        save(tmp_path / "c", TREE)
    assert list(tmp_path.iterdir()) == []


class Told:
    """A callback of fsspec, as far as it is used."""

    def __init__(self) -> None:
        self.size = self.sum = 0

    def set_size(self, size: int) -> None:
        self.size = size

    def relative_update(self, nbytes: int) -> None:
        self.sum += nbytes


@pytest.mark.parametrize("chunk_bytes", [None, 1_000_000])
def test_progress_is_told_of_every_byte(chunk_bytes: int | None, tmp_path: Path) -> None:
    told: Any = Told()
    save(tmp_path / "c", TREE, chunk_bytes=chunk_bytes, progress=told)
    assert told.sum == told.size > 40 << 20


def test_an_error_of_the_callback_ends_the_save(tmp_path: Path) -> None:
    class Tired(Told):
        def relative_update(self, nbytes: int) -> None:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        save(tmp_path / "c", TREE, progress=Tired())
    assert list(tmp_path.iterdir()) == []


def begun_lanes(path: Path, count: int, written: Callable[[int], object]) -> Lanes:
    storage = LocalStorage(Settings(durable=False))

    def files(pending_bytes: int = 1 << 20) -> DataFiles:
        return DataFiles(storage, str(path), 0, pending_bytes=pending_bytes)

    return Lanes(
        files(),
        files,
        "d/",
        64,
        count=count,
        max_memory=1 << 20,
        checksums=True,
        longest_short=0,
        written=written,
    )


def test_an_abort_returns_when_no_memory_is_looked_at(tmp_path: Path) -> None:
    writing = begun_lanes(tmp_path, 2, lambda nbytes: None)
    for i in range(20):
        writing.put(Batch([b"%d" % i], [NOISE.data], len(NOISE)))
    writing.abort()
    assert not lanes()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_the_largest_batch_that_waits_is_written_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    has_begun, all_wait = threading.Event(), threading.Event()

    def when_all_wait(value: Buffer) -> int:
        has_begun.set()
        assert all_wait.wait(10)
        return crc32c(value)

    monkeypatch.setattr("ocdbt_py.checkpoint.lanes.crc32c", when_all_wait)
    monkeypatch.setattr("ocdbt_py.checkpoint.lanes.BATCH_BYTES", 1)
    order: list[int] = []
    writing = begun_lanes(tmp_path, 1, order.append)
    for length in (1, 2, 4, 3):
        writing.put(Batch([b"%d" % length], [NOISE[:length].data], length))
        assert has_begun.wait(10)
    all_wait.set()
    writing.complete(Batch())
    assert len(writing.placed()) == 4
    writing.finish()
    assert order == [1, 4, 3, 2]


def test_a_value_in_a_lane_has_its_own_checksum(tmp_path: Path) -> None:
    save(tmp_path / "c", {"a": NOISE[: 9 << 20], "b": NOISE[9 << 20 : 18 << 20]}, compression=None)
    table = decode_checksums((tmp_path / "c" / CHECKSUMS).read_bytes(), CHECKSUMS)
    found = sorted(value for values in table.values() for value in values.values())
    assert found == sorted((9 << 20, crc32c(NOISE[i : i + (9 << 20)].data)) for i in (0, 9 << 20))


def test_long_and_short_values_of_one_batch_have_their_own_checksums(tmp_path: Path) -> None:
    leaves = [NOISE[: 3 << 20], NOISE[5 : (9 << 20) + 6], NOISE[1 << 20 : 2 << 20], NOISE[: (4 << 20) + 1]]
    save(tmp_path / "c", leaves, compression=None)
    np.testing.assert_equal(restore(tmp_path / "c", verify=True), leaves)
    table = decode_checksums((tmp_path / "c" / CHECKSUMS).read_bytes(), CHECKSUMS)
    found = sorted(value for values in table.values() for value in values.values())
    assert found == sorted((len(leaf), crc32c(leaf.data)) for leaf in leaves)


def test_there_are_no_more_threads_than_memory_for_their_chunks() -> None:
    assert lane_count(16 << 20) == lane_count(4 << 20) == 1
    assert 1 <= lane_count(64 << 20) <= 4
