"""Writers that are killed, and disks that are full or fail: what was acknowledged stays, and is whole."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import resource
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

import ocdbt_py
from ocdbt_py.database import open_place
from ocdbt_py.engine.manifests import KEPT_NUMBERED
from ocdbt_py.errors import StorageError, StoragePermissionError
from ocdbt_py.storage.location import Settings, resolve
from ocdbt_py.testing.faulty import FaultyStorage
from ocdbt_py_backends.local_lock import SUFFIX
from ocdbt_py_backends.local_notes import notes_directory
from ocdbt_py_backends.local_syncing import _Waiter

# Writers are forked from a process that has imported everything and started nothing.
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["ocdbt_py.database", "ocdbt_py_backends.local", "tests.engine.test_kill"])

PATIENCE = 30.0
KILLS = 25
KINDS = ["single", "numbered"]

CONFIG = {
    kind: ocdbt_py.Config(manifest_kind=kind, max_decoded_node_bytes=500, version_tree_arity_log2=2) for kind in KINDS
}

BEFORE = {f"{i:02}".encode(): b"%d" % i * 60 for i in range(12)}
AFTER = {**BEFORE, b"05": b"new" * 100, b"x": b""}


def change(db: ocdbt_py.Database) -> None:
    db.update({"05": b"new" * 100, "x": b""})


def prepare(directory: Path, kind: str) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    with ocdbt_py.open(directory, "x", config=CONFIG[kind], durable=False) as db:
        db.update(BEFORE)


def contents(directory: Path) -> dict[bytes, bytes]:
    """What the database holds; its last versions are whole too, and none is left out."""
    with ocdbt_py.open(directory) as db:
        found = dict(db.items())
        versions = list(db.versions())
        assert [version.generation for version in versions] == list(range(len(versions), 0, -1))
        for version in versions[:20]:
            assert len(dict(db.at(version).items())) == version.num_keys
        return found


def files(directory: Path) -> set[str]:
    """All but locks and temporary files, which no listing shows."""
    return {str(path) for path in directory.rglob("*") if not path.name.endswith(SUFFIX)}


class Tripwire:
    """Does something instead of the system call numbered ``at`` of those that change a file or wait for the disk."""

    CALLS = ("open", "writev", "utime", "fsync", "fdatasync", "link", "rename", "unlink")

    def __init__(self, action: Callable[[], None]) -> None:
        self._action = action
        self._lock = threading.Lock()
        self.at = 0
        self.calls: list[str] = []

    @contextmanager
    def armed(self, at: int) -> Iterator[None]:
        self.at, self.calls = at, []
        original = {name: getattr(os, name) for name in self.CALLS}
        for name, function in original.items():
            setattr(os, name, self._counted(name, function))
        try:
            yield
        finally:
            for name, function in original.items():
                setattr(os, name, function)

    def _counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if name == "open" and not args[1] & (os.O_WRONLY | os.O_RDWR):
                return function(*args, **kwargs)
            with self._lock:
                self.calls.append(name)
                here = len(self.calls) == self.at
            if here:
                self._action()
            return function(*args, **kwargs)

        return call


# --- killed


LONG = 120
"""Digits repeated so often lie in a data file; fewer stay in the node, and others may commit them along with theirs."""


def write_on(directory: Path, name: str, first: int, pause: float, times: int, told: Connection) -> None:
    """Commit after commit, each told when it is acknowledged, and each with digits so many ``times``."""
    with ocdbt_py.open(directory, "r+") as db:
        number = first
        while True:
            db.update({f"{name}-{number:06}": b"%d" % number * times, f"{name}-last": b"%d" % number})
            told.send(number)
            number += 1
            time.sleep(pause)


class Killable:
    """A process that runs :func:`write_on`."""

    def __init__(self, directory: Path, name: str, first: int, pause: float = 0.0, times: int = LONG) -> None:
        self._told, told = FORKSERVER.Pipe(duplex=False)
        self._process = FORKSERVER.Process(target=write_on, args=(directory, name, first, pause, times, told))
        self._process.start()
        told.close()
        self.acknowledged = first - 1

    def wait_for_more(self, count: int) -> None:
        for _ in range(count):
            assert self._told.poll(PATIENCE)
            self.acknowledged = self._told.recv()

    def kill(self) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.join()
        assert self._process.exitcode == -signal.SIGKILL
        try:
            while True:
                self.acknowledged = self._told.recv()
        except EOFError:
            self._told.close()


def last_whole(found: dict[bytes, bytes], name: str, times: int = LONG) -> int:
    """The number of the last commit, all of which are there whole and in order."""
    last = int(found.get(b"%s-last" % name.encode(), b"0"))
    mine = {key: value for key, value in found.items() if key.startswith(name.encode()) and not key.endswith(b"last")}
    assert mine == {b"%s-%06d" % (name.encode(), number): b"%d" % number * times for number in range(1, last + 1)}
    return last


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_writer_leaves_all_that_was_acknowledged_and_blocks_nobody(tmp_path: Path, kind: str) -> None:
    directory = tmp_path / "db"
    ocdbt_py.open(directory, "x", config=CONFIG[kind]).close()
    delays = random.Random(5)
    survivor = Killable(directory, "survivor", 1, pause=0.005)
    survivor.wait_for_more(1)
    last = 0
    for _ in range(KILLS):
        victim = Killable(directory, "victim", last + 1)
        victim.wait_for_more(1)
        time.sleep(delays.uniform(0, 0.02))
        victim.kill()
        with ocdbt_py.open(directory) as db:
            last = last_whole(dict(db.items()), "victim")
        assert last in (victim.acknowledged, victim.acknowledged + 1)
        survivor.wait_for_more(1)
    survivor.kill()
    found = contents(directory)
    assert last_whole(found, "victim") == last
    survived = last_whole(found, "survivor")
    assert survived in (survivor.acknowledged, survivor.acknowledged + 1)
    with ocdbt_py.open(directory, "r+") as db:
        assert db.version.generation == 1 + last + survived
        db["next"] = b"x"
    assert contents(directory) == {**found, b"next": b"x"}


@pytest.mark.parametrize("kind", KINDS)
def test_writers_killed_while_others_commit_along_with_theirs_lose_nothing_acknowledged(
    tmp_path: Path, kind: str
) -> None:
    directory = tmp_path / "db"
    ocdbt_py.open(directory, "x", config=CONFIG[kind], durable=False).close()
    acknowledged: dict[str, int] = {}
    for group in range(4):
        writers = {f"{group}{name}": Killable(directory, f"{group}{name}", 1, times=1) for name in "abcd"}
        while writers:
            for writer in writers.values():
                writer.wait_for_more(5)
            name, writer = writers.popitem()
            writer.kill()
            acknowledged[name] = writer.acknowledged
    found = contents(directory)
    for name, number in acknowledged.items():
        assert last_whole(found, name, times=1) in (number, number + 1)
    with ocdbt_py.open(directory, "r+") as db:
        assert db.version.generation < 1 + sum(acknowledged.values())  # they did commit along with each other
        db["next"] = b"x"
    assert contents(directory) == {**found, b"next": b"x"}
    assert not os.path.exists(notes_directory(f"{directory}/manifest.ocdbt"))


def change_and_die(directory: Path, at: int) -> None:
    with ocdbt_py.open(directory, "r+") as db:
        len(db)
        with Tripwire(lambda: os.kill(os.getpid(), signal.SIGKILL)).armed(at):
            change(db)


@pytest.mark.parametrize("kind", KINDS)
def test_killed_before_any_call_of_the_system_the_old_or_the_new_version_is_there(tmp_path: Path, kind: str) -> None:
    directory = tmp_path / "db"
    changed: list[bool] = []
    while True:
        prepare(directory, kind)
        process = FORKSERVER.Process(target=change_and_die, args=(directory, len(changed) + 1))
        process.start()
        process.join()
        found = contents(directory)
        assert found in (BEFORE, AFTER)
        changed.append(found == AFTER)
        with ocdbt_py.open(directory, "r+") as db:  # nobody is blocked
            db["y"] = b"1"
        assert contents(directory) == {**found, b"y": b"1"}
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert changed == sorted(changed)
    assert changed.count(False) >= 8
    assert changed[-1]


# --- disks that fail


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO], ids=["the disk is full", "the disk fails"])
def test_whatever_the_system_refuses_the_old_version_stays_and_nothing_is_left(
    tmp_path: Path, kind: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Waiter, "take", lambda waiter, job: None)  # one call after the other, the same each time

    def refuse() -> None:
        raise OSError(number, os.strerror(number))

    directory = tmp_path / "db"
    tripwire = Tripwire(refuse)
    refused: list[str] = []
    while True:
        prepare(directory, kind)
        before = files(directory)
        with ocdbt_py.open(directory, "r+") as db:
            with tripwire.armed(len(refused) + 1):
                try:
                    change(db)
                    error = None
                except StorageError as caught:
                    error = caught
            if len(tripwire.calls) <= len(refused):
                break
            done = [*refused]
            refused.append(tripwire.calls[len(done)])
            data_is_safe = done.count("fsync") >= 2  # the file and its directory
            # what fails then is the cleaning up
            in_place = ("rename" if kind == "single" else "link") in done
            assert contents(directory) == (AFTER if in_place else BEFORE)
            if not in_place:
                assert os.strerror(number) in str(error)
                left = files(directory) - before
                assert len(left) <= data_is_safe
                assert all("/d/" in name for name in left)
            change(db)
        assert contents(directory) == AFTER
    assert set(refused) >= {"open", "writev", "utime", "fsync", "rename"}
    assert kind == "single" or set(refused) >= {"link", "unlink"}


def test_an_old_numbered_manifest_that_cannot_be_removed_is_no_failure(tmp_path: Path) -> None:
    class Keeping(FaultyStorage):
        def delete(self, path: str) -> None:
            raise StorageError(f"{path} is to stay, as this test wants it")

    directory = tmp_path / "db"
    prepare(directory, "numbered")
    place = resolve(directory, settings=Settings(durable=False))
    with open_place(replace(place, storage=Keeping(place.storage)), "r+") as db:
        for number in range(KEPT_NUMBERED + 2):
            db["n"] = b"%d" % number
    assert len(list(directory.glob("manifest.0*"))) == KEPT_NUMBERED + 4
    with open_place(place, "r+") as db:
        db["n"] = b"last"
    assert len(list(directory.glob("manifest.0*"))) == KEPT_NUMBERED + 1
    assert contents(directory) == {**BEFORE, b"n": b"last"}


def commit_within_a_limit(directory: Path, kind: str) -> None:
    """The kernel takes what fits and refuses the rest, as a full disk does."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))

    prepare(directory, kind)
    before = files(directory)
    manifest = max(directory.glob("manifest.*"))
    with ocdbt_py.open(directory, "r+") as db:
        for size, value in (
            (100_000, b"x" * 200_000),  # the value does not fit
            (manifest.stat().st_size, b"y"),  # the data file fits, the manifest does not
        ):
            limit(size)
            with pytest.raises(StorageError, match=os.strerror(errno.EFBIG)):
                db["k"] = value
            assert contents(directory) == BEFORE
            assert {str(path) for path in directory.rglob("*")} == before
        limit(100_000)
        db["k"] = b"x" * 90_000
        limit(hard)
        db["l"] = b"x" * 200_000
    assert contents(directory) == {**BEFORE, b"k": b"x" * 90_000, b"l": b"x" * 200_000}


@pytest.mark.parametrize("kind", KINDS)
def test_a_write_that_the_kernel_cuts_short_leaves_the_old_version_and_no_file(tmp_path: Path, kind: str) -> None:
    process = FORKSERVER.Process(target=commit_within_a_limit, args=(tmp_path / "db", kind))
    process.start()
    process.join()
    assert process.exitcode == 0


def commit_while_read_only(directory: Path, kind: str) -> None:
    if os.getuid() == 0:  # whom no mode stops
        os.setuid(65534)
    prepare(directory, kind)
    before = files(directory)
    with ocdbt_py.open(directory, "r+") as db:
        for places in ([directory], [directory / "d"], [directory, directory / "d"]):
            for place in places:
                place.chmod(0o555)
            with pytest.raises(StoragePermissionError, match="check owner and mode"):
                change(db)
            assert dict(db.items()) == contents(directory) == BEFORE
            for place in places:
                place.chmod(0o755)
            assert files(directory) == before
        change(db)
    assert contents(directory) == AFTER


@pytest.mark.parametrize("kind", KINDS)
def test_a_directory_that_became_read_only_is_a_permission_error_until_it_is_writable_again(kind: str) -> None:
    with tempfile.TemporaryDirectory() as parent:  # pytest's own is closed to other users
        os.chmod(parent, 0o777)
        process = FORKSERVER.Process(target=commit_while_read_only, args=(Path(parent) / "db", kind))
        process.start()
        process.join()
        assert process.exitcode == 0
