"""Data files go out in as few calls as will do, several at a time where that pays, and hold a bounded amount."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import tracemalloc
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from ocdbt_py.backends import MemoryStorage
from ocdbt_py.engine.data_files import PAGE, PENDING_BYTES, RUN_BYTES, DataFiles
from ocdbt_py.errors import AlreadyExistsError, StorageError
from ocdbt_py.format.datafile import Location
from ocdbt_py.storage.protocol import Buffer, Capabilities, Writer
from ocdbt_py.testing.faulty import Crash, Fault, FaultyStorage

PATIENCE = 30.0
PARALLEL = 4


def capabilities(**changes: object) -> Capabilities:
    wanted: dict[str, object] = {"parallel": PARALLEL, "file_bytes": 1000, **changes}
    return replace(MemoryStorage().capabilities, **wanted)  # type: ignore[arg-type]


class Gated(FaultyStorage):
    """No file is put before ``gate`` opens; what is under way meanwhile is counted."""

    def __init__(self, **changes: object) -> None:
        super().__init__(MemoryStorage(), capabilities=capabilities(**changes))
        self.gate = threading.Event()
        self.under_way = 0
        self.most = 0
        self.full = threading.Semaphore(0)

    def put(self, path: str, buffers: object) -> None:
        with self._lock:
            self.under_way += 1
            self.most = max(self.most, self.under_way)
        self.full.release()
        assert self.gate.wait(PATIENCE)
        super().put(path, buffers)  # type: ignore[arg-type]
        with self._lock:
            self.under_way -= 1


@pytest.fixture
def base() -> str:
    return f"/{uuid.uuid4().hex}"


def write(files: DataFiles, values: list[bytes]) -> None:
    for value in values:
        files.append("d/", value)
    files.flush()


def contents(base: str) -> dict[str, bytes]:
    storage = MemoryStorage()
    return {item.path: storage.read_many([(item.path, 0, item.size or 0)])[0] for item in storage.list(f"{base}/d/")}


def test_a_file_that_never_grew_long_is_put_in_one_call(base: str) -> None:
    storage = FaultyStorage(MemoryStorage())
    files = DataFiles(storage, base, 0)
    for i in range(100):
        files.append("d/", b"%d" % i)
    files.flush()
    assert dict(storage.operations) == {"put": 1, "sync": 1}
    assert list(contents(base).values()) == [b"".join(b"%d" % i for i in range(100))]


def test_a_long_file_is_written_in_runs_unless_its_bytes_are_there_anyway(base: str) -> None:
    piece = bytes(PENDING_BYTES // 2)
    for borrowed, calls in ((False, {"create": 1, "writer.write": 2, "writer.close": 1}), (True, {"put": 1})):
        storage = FaultyStorage(MemoryStorage())
        files = DataFiles(storage, base, 0)
        for _ in range(3):
            files.append("d/", piece, borrowed=borrowed)
        files.flush()
        assert dict(storage.operations) == {**calls, "sync": 1}


def test_a_long_file_is_written_in_whole_runs_whatever_the_lengths_of_its_values(base: str) -> None:
    class Recording(MemoryStorage):
        def create(self, path: str) -> Writer:
            writer = super().create(path)
            wrote = writer.write

            def write(buffers: Sequence[Buffer]) -> None:
                lengths.append(sum(map(len, buffers)))
                wrote(buffers)

            writer.write = write  # type: ignore[method-assign]
            return writer

    lengths: list[int] = []
    values = [bytes([number]) * (number * 300_007) for number in range(1, 12)]
    files = DataFiles(Recording(), base, 0, pending_bytes=4 * RUN_BYTES)
    places = [files.append("d/", value) for value in values[:5]]
    places += [files.append_pieces("d/", [value[:100_001], value[100_001:]]) for value in values[5:8]]
    files.drain_runs()
    places += [files.append("d/", value, borrowed=True) for value in values[8:]]
    files.drain_runs()
    assert len(lengths) > 3
    assert not any(length % RUN_BYTES for length in lengths)
    files.flush()
    (content,) = contents(base).values()
    assert [content[place.offset : place.offset + place.length] for place in places] == values


def test_files_are_cut_where_the_storage_likes_and_put_a_bounded_number_at_a_time(base: str) -> None:
    storage = Gated()
    files = DataFiles(storage, base, 0)
    places = {}

    def fill() -> None:
        for i in range(40):
            value = b"%03d" % i * 100
            places[value] = files.append("d/", value, borrowed=True)
        files.flush()

    filling = threading.Thread(target=fill)
    filling.start()
    for _ in range(PARALLEL):
        assert storage.full.acquire(timeout=PATIENCE)
    assert not storage.full.acquire(timeout=0.05)
    assert filling.is_alive()
    storage.gate.set()
    filling.join(PATIENCE)
    assert storage.most == PARALLEL
    found = contents(base)
    assert sorted(map(len, found.values())) == [1200] * 10
    for value, where in places.items():
        path = f"{base}/{where.file.path.decode()}"
        assert found[path][where.offset : where.offset + where.length] == value


def test_a_value_begins_on_the_multiple_asked_for(base: str) -> None:
    for storage in (MemoryStorage(), FaultyStorage(MemoryStorage(), capabilities=capabilities())):
        files = DataFiles(storage, base, 0)
        places = [files.append("d/", b"x" * size, alignment=64) for size in (1, 64, 63, 999, 5)]
        files.flush()
        assert all(place.offset % 64 == 0 for place in places)
        found = contents(base)
        for place in places:
            assert found[f"{base}/{place.file.path.decode()}"][place.offset :].startswith(b"x" * place.length)


@pytest.mark.parametrize("fault", ["fail", "ambiguous", "crash"])
def test_the_first_error_of_a_file_in_the_background_is_raised_and_abort_removes_all(base: str, fault: Fault) -> None:
    for at in range(1, 6):
        storage = FaultyStorage(MemoryStorage(), at=at, fault=fault, capabilities=capabilities())
        files = DataFiles(storage, base, 0)
        with pytest.raises((StorageError, Crash)) as caught:
            write(files, [b"x" * 1000] * 5)
        assert f"step {at}" in str(caught.value)
        if fault != "crash":
            files.abort()
            assert contents(base) == {}


def test_what_is_drained_is_on_its_way_while_more_is_appended(base: str) -> None:
    storage = Gated(file_bytes=1 << 20)
    files = DataFiles(storage, base, 0)
    files.append("d/", b"values")
    files.drain()
    assert storage.full.acquire(timeout=PATIENCE)
    assert files.pending_bytes == 0
    files.append("d/", b"nodes")
    storage.gate.set()
    files.flush()
    assert sorted(contents(base).values()) == [b"nodes", b"values"]


def test_abort_waits_for_what_is_under_way_and_removes_it(base: str) -> None:
    storage = Gated()
    files = DataFiles(storage, base, 0)
    for _ in range(PARALLEL):
        files.append("d/", b"x" * 1000)
    aborting = threading.Thread(target=files.abort)
    aborting.start()
    storage.gate.set()
    aborting.join(PATIENCE)
    assert not aborting.is_alive()
    assert storage.operations["put"] == PARALLEL
    assert contents(base) == {}


def test_a_file_of_somebody_else_is_not_removed(base: str) -> None:
    for storage in (MemoryStorage(), FaultyStorage(MemoryStorage(), capabilities=capabilities())):
        storage.delete(f"{base}/")
        storage.put(f"{base}/d/same", [b"theirs"])
        files = DataFiles(storage, base, 0, names=lambda: "same")
        with pytest.raises(AlreadyExistsError):
            write(files, [b"ours" * 1000])
        files.abort()
        assert contents(base) == {f"{base}/d/same": b"theirs"}


def test_long_files_end_on_a_page(base: str) -> None:
    storage = FaultyStorage(MemoryStorage(), capabilities=capabilities(file_bytes=5 << 20))
    files = DataFiles(storage, base, 0)
    files.append("d/", bytes((5 << 20) + 1))
    files.flush()
    (content,) = contents(base).values()
    assert len(content) == (5 << 20) + PAGE


def test_what_is_held_for_files_on_their_way_is_bounded(base: str) -> None:
    class Discarding(Gated):
        def put(self, path: str, buffers: object) -> None:
            assert self.gate.wait(PATIENCE)

    storage = Discarding(file_bytes=32 << 20)
    files = DataFiles(storage, base, 0)
    lent = bytes(32 << 20)
    opening = threading.Timer(0.5, storage.gate.set)
    tracemalloc.start()
    try:
        opening.start()
        for _ in range(100):
            files.append("d/", os.urandom(2 << 20))
        for _ in range(8):
            files.append("d/", memoryview(lent), borrowed=True)
        files.flush()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        opening.join()
    assert PENDING_BYTES // 2 < peak < 64 << 20


EXIT = """
import atexit, os, sys
sys.path[:0] = {path!r}
import ocdbt_py
from dataclasses import replace
from ocdbt_py.database import open_place
from ocdbt_py.storage.location import resolve
from ocdbt_py.testing.faulty import FaultyStorage

place = resolve({target!r})
remote = FaultyStorage(place.storage, capabilities=replace(place.storage.capabilities, parallel=4, file_bytes=1000))
db = open_place(replace(place, storage=remote), "a")
db.update({{b"%d" % i: b"v" * 900 for i in range(20)}})
def last():
    db.update({{b"late %d" % i: b"w" * 900 for i in range(20)}})
atexit.register(last)
child = os.fork()
if not child:
    db.update({{b"child %d" % i: b"c" * 900 for i in range(20)}})
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_files_are_put_in_the_background_after_a_fork_and_while_the_interpreter_exits(tmp_path: Path) -> None:
    import ocdbt_py

    target = str(tmp_path / "db")
    subprocess.run([sys.executable, "-c", EXIT.format(path=sys.path, target=target)], check=True, timeout=60)
    with ocdbt_py.open(target) as db:
        assert len(db) == 60
        assert db["late 7"] == b"w" * 900
        assert db["child 7"] == b"c" * 900


@pytest.mark.parametrize("alignment", [1, 64])
def test_many_values_stand_where_each_would_alone(base: str, alignment: int) -> None:
    values = [b"%d" % i * i for i in range(1, 150)]
    found = []
    for together in (False, True):
        storage = MemoryStorage()
        files = DataFiles(storage, f"{base}/{together}", 0, names=lambda: "x")
        files.append("d/", b"before", alignment=alignment)
        if together:
            file, offsets, lengths = files.append_all("d/", values, alignment=alignment)
            places = [Location(file, *where) for where in zip(offsets.tolist(), lengths.tolist(), strict=True)]
        else:
            places = [files.append("d/", value, alignment=alignment) for value in values]
        places.append(files.append("d/", b"after", alignment=alignment))
        files.flush()
        found.append((places, list(contents(f"{base}/{together}").values())))
    assert found[0] == found[1]
