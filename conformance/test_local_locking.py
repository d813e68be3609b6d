"""Our local files beside TensorStore's file driver: one lock protocol, one idea of when a file has changed."""

from __future__ import annotations

import multiprocessing
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import tensorstore as ts

from ocdbt_py.storage.location import Settings
from ocdbt_py.storage.protocol import ABSENT, UNCHANGED, Read
from ocdbt_py.testing.files import content, increment, put
from ocdbt_py_backends.local import LocalStorage

SPAWN = multiprocessing.get_context("spawn")
TIMES = 40


def _open(directory: str) -> ts.KvStore:
    return ts.KvStore.open({"driver": "file", "path": f"{directory}/"}).result()


def increment_with_ours(directory: str) -> None:
    increment(LocalStorage(Settings(durable=False)), f"{directory}/counter", TIMES)


def increment_while_held(directory: str) -> None:
    storage = LocalStorage()
    for _ in range(TIMES):
        with storage.hold(f"{directory}/counter", 60) as hold:
            found = storage.read(f"{directory}/counter")
            assert isinstance(found, Read)
            hold.write([b"%d" % (int(found.data) + 1)], found.token)


def increment_with_tensorstore(directory: str) -> None:
    store = _open(directory)
    for _ in range(TIMES):
        while True:
            found = store.read("counter").result()
            done = store.write("counter", b"%d" % (int(found.value) + 1), if_equal=found.stamp.generation).result()
            if done.generation:  # empty: the condition did not hold
                break


def test_no_increment_is_lost_when_both_write_one_file(tmp_path: Path) -> None:
    (tmp_path / "counter").write_bytes(b"0")
    writers: list[Callable[[str], None]] = [
        increment_with_ours,
        increment_while_held,
        increment_with_tensorstore,
        increment_with_tensorstore,
    ]
    processes = [SPAWN.Process(target=writer, args=(str(tmp_path),)) for writer in writers]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * len(processes)
    assert (tmp_path / "counter").read_bytes() == b"%d" % (TIMES * len(writers))
    assert os.listdir(tmp_path) == ["counter"]


def test_our_token_and_tensorstores_generation_change_together(tmp_path: Path) -> None:
    storage, store = LocalStorage(), _open(str(tmp_path))
    path = f"{tmp_path}/f"
    token = storage.write(path, [b"x"])
    generations: list[bytes] = []
    for writer in ("tensorstore", "ours", "tensorstore", "ours", "ours"):
        if writer == "ours":
            storage.write(path, [b"x"], token)
        else:
            assert store.write("f", b"x", if_equal=generations[-1] if generations else None).result().generation
        found = storage.read(path, unless=token)
        assert isinstance(found, Read)
        token = found.token
        generations.append(store.read("f").result().stamp.generation)
        status = os.stat(path)
        assert token == (status.st_dev, status.st_ino, status.st_mtime_ns)
        assert generations[-1] == b"\0" + struct.pack("<QQQ", *token)
    assert len(set(generations)) == len(generations)
    assert storage.read(path, unless=token) is UNCHANGED


def test_tensorstore_waits_for_our_lock_and_we_for_its_writes(tmp_path: Path) -> None:
    storage, store = LocalStorage(), _open(str(tmp_path))
    with storage.hold(f"{tmp_path}/f", 1) as hold:
        put_in_place = hold.begin([b"ours"])
        # while TensorStore waits it is asked nothing else: the wait takes up a thread that reads may need
        pending = store.write("f", b"theirs")
        with pytest.raises(TimeoutError):
            pending.result(timeout=0.05)
        put_in_place(ABSENT)
        with pytest.raises(TimeoutError):  # it waits for what the lock has become, and then starts over
            pending.result(timeout=0.05)
        assert content(storage, f"{tmp_path}/f") == b"ours"
    pending.result(timeout=60)
    assert content(storage, f"{tmp_path}/f") == b"theirs"
    assert os.listdir(tmp_path) == ["f"]


def test_neither_lists_the_others_files_under_way(tmp_path: Path) -> None:
    storage, store = LocalStorage(), _open(str(tmp_path))
    writer = storage.create(f"{tmp_path}/new")
    writer.write([b"x"])
    put(storage, f"{tmp_path}/f", b"x")
    with storage.hold(f"{tmp_path}/f", 1):
        assert sorted(os.listdir(tmp_path)) == ["f", "f.__lock"]
        assert store.list().result() == [b"f"]
        assert [found.path for found in storage.list(f"{tmp_path}/", deep=True)] == [f"{tmp_path}/f"]
    writer.close()
    assert sorted(store.list().result()) == [b"f", b"new"]
