"""Local files: what every storage must do, and what only files have to fear: links, pipes, modes, other processes."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ocdbt_py.errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidArgumentError,
    PathNotFoundError,
    StorageError,
    StoragePermissionError,
    UnsupportedError,
    WaitTimeoutError,
)
from ocdbt_py.storage.location import Settings
from ocdbt_py.storage.protocol import ABSENT, ANY, UNCHANGED, Condition, Read, Storage
from ocdbt_py.testing.files import content, in_threads, increment, put
from ocdbt_py.testing.storage_suite import StorageSuite
from ocdbt_py_backends import local, local_lock
from ocdbt_py_backends.local import LocalStorage

SPAWN = multiprocessing.get_context("spawn")
QUICK = Settings(durable=False)


class TestDurable(StorageSuite):
    @pytest.fixture
    def storage_and_root(self, tmp_path: Path) -> tuple[Storage, str]:
        return LocalStorage(), f"{tmp_path}/place"


class TestNotDurable(StorageSuite):
    @pytest.fixture
    def storage_and_root(self, tmp_path: Path) -> tuple[Storage, str]:
        return LocalStorage(QUICK), f"{tmp_path}/place"


class TestWithLockFiles(StorageSuite):
    @pytest.fixture
    def storage_and_root(self, tmp_path: Path) -> tuple[Storage, str]:
        return LocalStorage(Settings(durable=False, locking="lockfile")), f"{tmp_path}/place"


class TestWithoutLocks(StorageSuite):
    @pytest.fixture
    def storage_and_root(self, tmp_path: Path) -> tuple[Storage, str]:
        return LocalStorage(Settings(durable=False, locking="none")), f"{tmp_path}/place"


class TestWithFlock(StorageSuite):
    """Where the kernel knows no open-file-description locks."""

    @pytest.fixture
    def storage_and_root(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Storage, str]:
        monkeypatch.setattr(local_lock, "_OFD_SETLK", -1)  # an unknown command is EINVAL
        monkeypatch.setattr(local_lock, "_OFD_SETLKW", -1)
        return LocalStorage(QUICK), f"{tmp_path}/place"


class TestWithoutUnnamedFilesAndHardLinks(StorageSuite):
    """On filesystems that have neither."""

    @pytest.fixture
    def storage_and_root(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Storage, str]:
        def no_link(*args: object, **options: object) -> None:
            raise PermissionError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", no_link)
        monkeypatch.delattr(os, "O_TMPFILE")
        return LocalStorage(QUICK), f"{tmp_path}/place"


@pytest.fixture
def storage() -> LocalStorage:
    return LocalStorage(QUICK)


def names(directory: Path) -> list[str]:
    """Everything there, also what a storage's listing leaves out."""
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*"))


# --- tokens, and TensorStore's reading of them


def test_the_token_is_device_inode_and_time_of_modification(storage: LocalStorage, tmp_path: Path) -> None:
    token = storage.write(f"{tmp_path}/f", [b"x"])
    status = os.stat(tmp_path / "f")
    assert token == (status.st_dev, status.st_ino, status.st_mtime_ns)


def test_every_write_has_a_token_of_its_own_also_of_the_same_bytes(storage: LocalStorage, tmp_path: Path) -> None:
    path = f"{tmp_path}/f"
    tokens = [storage.write(path, [b"same"]) for _ in range(30)]
    storage.delete(path)
    tokens.append(storage.write(path, [b"same"], ABSENT))
    assert len(set(tokens)) == 31


def test_the_time_grows_even_when_the_clock_does_not(storage: LocalStorage, tmp_path: Path) -> None:
    path = f"{tmp_path}/f"
    storage.write(path, [b"x"])
    future = os.stat(path).st_mtime_ns + 10**18
    os.utime(path, ns=(future, future))
    for turn in range(1, 4):
        storage.write(path, [b"x"])
        assert os.stat(path).st_mtime_ns == future + turn


def test_the_time_grows_where_the_filesystem_cuts_it_to_seconds(
    storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    utime = os.utime

    def coarse(fd: int, *, ns: tuple[int, int]) -> None:
        utime(fd, ns=(ns[0] // 10**9 * 10**9, ns[1] // 10**9 * 10**9))

    monkeypatch.setattr(os, "utime", coarse)
    times = [(storage.write(f"{tmp_path}/f", [b"x"]), os.stat(tmp_path / "f").st_mtime_ns)[1] for _ in range(4)]
    assert times == sorted(set(times))
    assert all(time % 10**9 == 0 for time in times)


def test_all_local_storages_are_equal(storage: LocalStorage) -> None:
    assert storage == LocalStorage()
    assert hash(storage) == hash(LocalStorage())
    assert storage != object()


# --- what lies in the way


def test_what_is_no_file_is_not_read_and_nobody_waits_for_it(storage: LocalStorage, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name, reason in [("d", "is a directory"), ("pipe", "a file is expected")]:
        with pytest.raises(StorageError, match=reason):
            storage.read(f"{tmp_path}/{name}")
    assert [found.path for found in storage.list(f"{tmp_path}/")] == [f"{tmp_path}/d/"]
    with pytest.raises(StorageError, match="is a directory"):
        storage.write(f"{tmp_path}/d", [b"x"])
    with pytest.raises(StorageError):
        storage.delete(f"{tmp_path}/d")
    assert names(tmp_path) == ["d", "pipe"]


def test_a_parent_that_is_a_file_is_named(storage: LocalStorage, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    for attempt in (
        lambda path: storage.write(path, [b"x"]),
        storage.create,
        lambda path: storage.hold(path, 1).__enter__(),
        lambda path: storage.rename(f"{tmp_path}/file", path),
    ):
        for below in ("file/f", "file/d/f"):
            with pytest.raises(StorageError, match=r"/file.* one of its parents is a file") as caught:
                attempt(f"{tmp_path}/{below}")
            assert caught.value.kind == "not-a-directory"
    assert names(tmp_path) == ["file"]


@pytest.fixture
def unprivileged() -> Any:
    """Modes of files mean nothing to root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    yield
    os.seteuid(0)


def test_refused_access_is_a_permission_error(storage: LocalStorage, tmp_path: Path, request: Any) -> None:
    for directory in (tmp_path, *tmp_path.parents[:2]):
        directory.chmod(0o755)
    closed = tmp_path / "closed"
    storage.write(f"{closed}/f", [b"x"])
    (tmp_path / "secret").write_bytes(b"x")
    (tmp_path / "secret").chmod(0)
    closed.chmod(0)
    request.getfixturevalue("unprivileged")
    for attempt in (
        lambda: storage.read(f"{closed}/f"),
        lambda: storage.read(f"{tmp_path}/secret"),
        lambda: list(storage.list(f"{closed}/")),
        lambda: list(storage.list(f"{tmp_path}/", deep=True)),
        lambda: storage.write(f"{closed}/f", [b"x"]),
        lambda: storage.create(f"{closed}/g"),
        lambda: storage.delete(f"{closed}/f"),
        lambda: storage.rename(f"{closed}", f"{tmp_path}/open"),
    ):
        with pytest.raises(StoragePermissionError) as caught:
            attempt()
        assert isinstance(caught.value, PermissionError)
        assert str(tmp_path) in str(caught.value)


def test_a_full_disk_is_a_storage_error_that_leaves_nothing(
    storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write(f"{tmp_path}/f", [b"old"])

    def full(fd: int, buffers: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "writev", full)
    with pytest.raises(StorageError, match="No space left") as caught:
        storage.write(f"{tmp_path}/f", [b"new"])
    assert isinstance(caught.value.__cause__, OSError)
    writer = storage.create(f"{tmp_path}/g")
    with pytest.raises(StorageError, match="No space left"):
        writer.write([b"new"])
    writer.abort()
    assert names(tmp_path) == ["f"]
    assert content(storage, f"{tmp_path}/f") == b"old"


def test_the_system_may_write_and_read_in_pieces(
    storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writev, pread, preadv = os.writev, os.pread, os.preadv
    monkeypatch.setattr(os, "writev", lambda fd, buffers: writev(fd, [bytes(buffers[0])[:3]]))
    monkeypatch.setattr(os, "pread", lambda fd, length, start: pread(fd, min(length, 5), start))
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, start: preadv(fd, [buffers[0][:5]], start))
    data = bytes(range(200))
    put(storage, f"{tmp_path}/f", data[:7], b"", memoryview(data)[7:8], data[8:])
    assert content(storage, f"{tmp_path}/f") == data
    assert storage.read_many([(f"{tmp_path}/f", 3, 190)]) == [data[3:190]]
    target = bytearray(100)
    storage.read_many_into([(f"{tmp_path}/f", 50, memoryview(target))])
    assert target == data[50:150]


def test_neighbouring_ranges_take_one_read_and_distant_ones_their_own(
    storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, size = f"{tmp_path}/f", 1 << 20
    data = os.urandom(size)
    put(storage, path, data)
    pread, reads = os.pread, []

    def record(fd: int, length: int, start: int) -> bytes:
        reads.append((start, start + length))
        return pread(fd, length, start)

    monkeypatch.setattr(os, "pread", record)
    for ranges, expected in [
        ([(300, 400), (0, 100), (100, 200), (150, 160)], [(0, 400)]),
        ([(0, 5000), (1000, 2000), (6000, 7000)], [(0, 7000)]),
        ([(0, 10), (5000, 5010)], [(0, 10), (5000, 5010)]),
        (
            [(0, 400_000), (400_000, 800_000), (800_000, 800_001)],
            [(0, 400_000), (400_000, 800_000), (800_000, 800_001)],
        ),
        ([(0, 10), (0, 400_000), (300_000, 300_010)], [(0, 10), (0, 400_000), (300_000, 300_010)]),
    ]:
        reads.clear()
        assert storage.read_many([(path, *r) for r in ranges]) == [data[start:stop] for start, stop in ranges]
        assert reads == expected


def test_links_are_followed_but_not_in_circles(storage: LocalStorage, tmp_path: Path) -> None:
    put(storage, f"{tmp_path}/real/d/f", b"x")
    put(storage, f"{tmp_path}/elsewhere/g", b"x")
    (tmp_path / "linked").symlink_to("real")
    (tmp_path / "real/aside").symlink_to("../elsewhere")
    (tmp_path / "real/d/up").symlink_to("..")
    (tmp_path / "nothing").symlink_to("absent")
    for name in ("real", "linked"):
        assert sorted(found.path for found in storage.list(f"{tmp_path}/{name}/", deep=True)) == [
            f"{tmp_path}/{name}/aside/g",
            f"{tmp_path}/{name}/d/f",
        ]
    assert sorted(found.path for found in storage.list(f"{tmp_path}/")) == [
        f"{tmp_path}/{name}/" for name in ("elsewhere", "linked", "real")
    ]
    with pytest.raises(StorageError):
        storage.delete(f"{tmp_path}/linked/")
    storage.delete(f"{tmp_path}/real/")
    assert names(tmp_path) == ["elsewhere", "elsewhere/g", "linked", "nothing"]


def test_the_root_of_the_filesystem_is_not_deleted(storage: LocalStorage) -> None:
    with pytest.raises(InvalidArgumentError):
        storage.delete("/")


def test_listings_leave_out_locks_and_temporary_files(storage: LocalStorage, tmp_path: Path) -> None:
    for name in ("manifest.ocdbt", "manifest.ocdbt.__lock", "manifest.ocdbt_0123456789abcdef.__lock"):
        (tmp_path / name).write_bytes(b"x")
    assert [found.path for found in storage.list(f"{tmp_path}/manifest.")] == [f"{tmp_path}/manifest.ocdbt"]


def test_several_threads_may_delete_one_tree(storage: LocalStorage, tmp_path: Path) -> None:
    for number in range(100):
        put(storage, f"{tmp_path}/d/{number % 7}/{number}", b"x")
    assert in_threads([lambda: storage.delete(f"{tmp_path}/d/")] * 4) == [None] * 4
    assert names(tmp_path) == []


# --- what waits for the disk


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths in the order of their fsync, as they were named at that time."""
    fsync, found = os.fsync, []

    def record(fd: int) -> None:
        found.append(os.readlink(f"/proc/self/fd/{fd}"))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", record)
    return found


def test_a_durable_write_syncs_the_file_before_it_has_its_name_and_the_directory_after(
    tmp_path: Path, synced: list[str]
) -> None:
    LocalStorage().write(f"{tmp_path}/f", [b"x"])
    assert synced == [f"{tmp_path}/f.__lock", f"{tmp_path}"]


def test_the_entries_of_new_directories_are_durable_too(tmp_path: Path, synced: list[str]) -> None:
    storage = LocalStorage()
    put(storage, f"{tmp_path}/a/b/f", b"x")
    assert synced == [f"{tmp_path}", f"{tmp_path}/a"]


@pytest.mark.parametrize("count", [2, 40])
def test_sync_reaches_every_file_and_directory_once(tmp_path: Path, synced: list[str], count: int) -> None:
    storage = LocalStorage()
    paths = [f"{tmp_path}/f", *(f"{tmp_path}/d/{number}" for number in range(count))]
    for path in paths:
        put(storage, path, b"x")
    synced.clear()
    storage.sync([*paths, *paths])
    assert sorted(synced) == sorted([*paths, f"{tmp_path}", f"{tmp_path}/d"])


def test_sync_fails_when_any_file_fails(tmp_path: Path) -> None:
    storage = LocalStorage()
    paths = [f"{tmp_path}/{number}" for number in range(40)]
    for path in paths:
        put(storage, path, b"x")
    for path in (paths[0], paths[20], paths[39]):
        with pytest.raises(PathNotFoundError):
            storage.sync([other if other != path else f"{path} is absent" for other in paths])


def test_long_writes_are_cut_and_their_room_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reserve, asked = os.posix_fallocate, []

    def noted(fd: int, start: int, length: int) -> None:
        asked.append((start, length))
        if len(asked) == 2:
            raise OSError(errno.EOPNOTSUPP, "this filesystem cannot")
        reserve(fd, start, length)

    monkeypatch.setattr(os, "posix_fallocate", noted)
    monkeypatch.setattr(local, "_RUN", 1 << 20)
    data = os.urandom(3 << 20)
    writer = LocalStorage().create(f"{tmp_path}/f")
    writer.write([b"short"])
    writer.write([data[:7], b"", data[7 : 2 << 20], data[2 << 20 :], b"end"])
    writer.close()
    assert (tmp_path / "f").read_bytes() == b"short" + data + b"end"
    assert asked == [(5, 1 << 20), (5 + (1 << 20), 1 << 20), (5 + (2 << 20), 1 << 20), (5 + (3 << 20), 3)]


def test_nothing_waits_for_the_disk_where_that_was_not_asked_for(tmp_path: Path, synced: list[str]) -> None:
    storage = LocalStorage(QUICK)
    storage.write(f"{tmp_path}/a/f", [b"x"])
    put(storage, f"{tmp_path}/b/f", b"x")
    storage.sync([f"{tmp_path}/a/f", f"{tmp_path}/b/f"])
    storage.rename(f"{tmp_path}/a", f"{tmp_path}/c")
    storage.delete(f"{tmp_path}/b/f")
    storage.delete(f"{tmp_path}/c/")
    assert synced == []


def test_a_write_that_may_not_survive_a_crash_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage, fsync = LocalStorage(), os.fsync

    def fail_for_directories(fd: int) -> None:
        if Path(os.readlink(f"/proc/self/fd/{fd}")) == tmp_path:
            raise OSError(errno.EIO, "Input/output error")
        fsync(fd)

    monkeypatch.setattr(os, "fsync", fail_for_directories)
    with pytest.raises(StorageError) as caught:
        storage.write(f"{tmp_path}/f", [b"x"])
    assert caught.value.kind == "not-durable"
    assert names(tmp_path) == ["f"]


# --- locks


def test_modes_that_lock_nothing_promise_nothing() -> None:
    capabilities = LocalStorage(Settings(locking="none")).capabilities
    assert not capabilities.cas
    assert not capabilities.hold
    assert capabilities.create
    assert not LocalStorage(QUICK).capabilities.durable
    assert LocalStorage().capabilities.durable
    with pytest.raises(UnsupportedError), LocalStorage(Settings(locking="none")).hold("/f", 1):
        pass


def test_a_left_over_lock_is_emptied_while_held_and_removed(storage: LocalStorage, tmp_path: Path) -> None:
    lock = tmp_path / "f.__lock"
    lock.write_bytes(b"what an interrupted writer left")
    with storage.hold(f"{tmp_path}/f", 0) as hold:
        assert lock.read_bytes() == b""
        hold.write([b"x"])
    assert names(tmp_path) == ["f"]


def test_what_was_begun_is_gone_with_the_hold_unless_put_in_place(storage: LocalStorage, tmp_path: Path) -> None:
    with storage.hold(f"{tmp_path}/f", 0) as hold:
        put_in_place = hold.begin([b"x"])
        assert not (tmp_path / "f").exists()
        put_in_place(ABSENT)
        assert (tmp_path / "f").read_bytes() == b"x"
    with storage.hold(f"{tmp_path}/f", 0) as hold:
        hold.begin([b"never"])
    assert names(tmp_path) == ["f"]
    assert (tmp_path / "f").read_bytes() == b"x"


def test_a_hold_is_for_one_write(storage: LocalStorage, tmp_path: Path) -> None:
    with storage.hold(f"{tmp_path}/f", 0) as hold:
        hold.write([b"x"])
        with pytest.raises(InvalidArgumentError, match="one write"):
            hold.write([b"y"])
    assert (tmp_path / "f").read_bytes() == b"x"


@pytest.mark.parametrize("condition", [ANY, ABSENT])
def test_the_lock_becomes_the_file_and_is_not_made_beside_it(
    storage: LocalStorage, tmp_path: Path, condition: Condition
) -> None:
    with storage.hold(f"{tmp_path}/f", 0) as hold:
        put_in_place = hold.begin([b"x"])
        assert names(tmp_path) == ["f.__lock"]
        lock = (tmp_path / "f.__lock").stat().st_ino
        put_in_place(condition)
        assert names(tmp_path) == ["f"]
        with storage.hold(f"{tmp_path}/f", 0):  # nobody has to wait any longer
            assert names(tmp_path) == ["f", "f.__lock"]
    assert (tmp_path / "f").stat().st_ino == lock


def test_a_lock_is_never_a_second_name_of_the_file_that_its_next_holder_would_empty(
    storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def crash(*arguments: Any, **named: Any) -> None:
        link(*arguments, **named)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "link", crash)
    monkeypatch.setattr(os, "unlink", lambda name: None)
    with pytest.raises(KeyboardInterrupt):
        storage.write(f"{tmp_path}/f", [b"x"], ABSENT)
    monkeypatch.undo()
    with storage.hold(f"{tmp_path}/f", 0):
        assert (tmp_path / "f").read_bytes() == b"x"


def test_a_lock_file_of_a_dead_writer_is_waited_for_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = LocalStorage(Settings(durable=False, locking="lockfile"))
    (tmp_path / "f.__lock").touch()
    monkeypatch.setattr(local_lock, "LOCKFILE_PATIENCE", 0.05)
    with pytest.raises(WaitTimeoutError, match=r"f\.__lock.*remove it"):
        storage.write(f"{tmp_path}/f", [b"x"])
    threading.Timer(0.02, (tmp_path / "f.__lock").unlink).start()
    with storage.hold(f"{tmp_path}/f", 20):
        pass
    assert names(tmp_path) == []


def test_a_filesystem_without_locks_says_what_else_can_be_done(
    storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(fd: int, command: int, argument: bytes) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "fcntl", no_locks)
    with pytest.raises(StorageError, match="locking='lockfile'"):
        storage.write(f"{tmp_path}/f", [b"x"])


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of a newer Python, about threads of others
def test_a_forked_child_does_not_keep_the_lock(storage: LocalStorage, tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    release = fork.Event()
    with storage.hold(f"{tmp_path}/f", 0):
        child = fork.Process(target=release.wait, args=(20,))
        child.start()
        lock = os.open(tmp_path / "f.__lock", os.O_WRONLY)
    try:
        assert local_lock._lock(lock, wait=False)
    finally:
        os.close(lock)
        release.set()
        child.join()


def _increment(path: str, times: int) -> None:
    increment(LocalStorage(QUICK), path, times)


def _increment_held(path: str, times: int) -> None:
    storage = LocalStorage(QUICK)
    for _ in range(times):
        with storage.hold(path, 60) as hold:
            found = storage.read(path)
            assert isinstance(found, Read)
            hold.write([b"%d" % (int(found.data) + 1)], found.token)


def _hold_for_ever(path: str, held: Any) -> None:
    with LocalStorage(QUICK).hold(path, 10):
        held.set()
        signal.pause()


def _run(targets: list[tuple[Callable[..., None], tuple[Any, ...]]]) -> None:
    processes = [SPAWN.Process(target=target, args=arguments) for target, arguments in targets]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * len(processes)


def test_no_increment_by_four_processes_is_lost(storage: LocalStorage, tmp_path: Path) -> None:
    path = f"{tmp_path}/counter"
    storage.write(path, [b"0"])
    _run([(_increment, (path, 50)), (_increment_held, (path, 50))] * 2)
    assert content(storage, path) == b"200"
    assert names(tmp_path) == ["counter"]


def test_the_lock_of_a_killed_process_is_free(storage: LocalStorage, tmp_path: Path) -> None:
    held = SPAWN.Event()
    process = SPAWN.Process(target=_hold_for_ever, args=(f"{tmp_path}/f", held))
    process.start()
    assert held.wait(20)
    with pytest.raises(WaitTimeoutError), storage.hold(f"{tmp_path}/f", 0.01):
        pass
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with storage.hold(f"{tmp_path}/f", 20) as hold:
        hold.write([b"x"], ABSENT)
    assert names(tmp_path) == ["f"]


def test_two_opens_of_one_lock_exclude_each_other_in_one_process(storage: LocalStorage, tmp_path: Path) -> None:
    with storage.hold(f"{tmp_path}/f", 0), pytest.raises(WaitTimeoutError), storage.hold(f"{tmp_path}/f", 0):
        pass


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of a newer Python, about threads of others
def test_a_crash_leaves_nothing_of_a_file_under_way(storage: LocalStorage, tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")

    def die() -> None:
        storage.create(f"{tmp_path}/d/f").write([b"x" * 1000])
        os.kill(os.getpid(), signal.SIGKILL)

    process = fork.Process(target=die)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert names(tmp_path) == ["d"]


def test_conflicts_and_reads_leave_no_descriptor_open(storage: LocalStorage, tmp_path: Path) -> None:
    def opened() -> list[str]:
        found = []
        for fd in os.listdir("/proc/self/fd"):
            with suppress(FileNotFoundError):
                found.append(os.readlink(f"/proc/self/fd/{fd}"))
        return [target for target in found if target.startswith(f"{tmp_path}/")]

    put(storage, f"{tmp_path}/f", b"x")
    for _ in range(20):
        with pytest.raises(ConflictError):
            storage.write(f"{tmp_path}/f", [b"x"], ABSENT)
        with pytest.raises(AlreadyExistsError):
            put(storage, f"{tmp_path}/f", b"x")
        with pytest.raises(PathNotFoundError):
            storage.read(f"{tmp_path}/g")
        with pytest.raises(StorageError):
            storage.read(f"{tmp_path}")
        token = storage.write(f"{tmp_path}/f", [b"x"])
        assert storage.read(f"{tmp_path}/f", unless=token) is UNCHANGED
        next(storage.list(f"{tmp_path}/"))
        storage.create(f"{tmp_path}/h").abort()
    deadline = time.monotonic() + 30
    while opened():  # what was replaced last is let go of by another thread
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert names(tmp_path) == ["f"]


@pytest.mark.parametrize("sizes", [(1000,), (7, 1, 400, 0, 592), (10,) * 100, (999, 2)])
def test_much_is_read_by_several_threads_each_its_share(
    storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, ...]
) -> None:
    monkeypatch.setattr(local, "_READ_A_THREAD", 100)
    monkeypatch.setattr(local, "processors", lambda: 3)
    data = bytes(range(250)) * 8
    for name in "ab":
        put(storage, f"{tmp_path}/{name}", data)
    buffers = [bytearray(size) for size in sizes]
    fillings = [(f"{tmp_path}/{'ab'[i % 2]}", 500 + i, memoryview(buffer)) for i, buffer in enumerate(buffers)]
    shares = local._shares(fillings)
    assert [sum(len(buffer) for _, _, buffer in share) for share in shares[:-1]] == [-(-sum(sizes) // 3)] * 2
    storage.read_many_into(fillings)
    assert buffers == [data[500 + i : 500 + i + size] for i, size in enumerate(sizes)]
