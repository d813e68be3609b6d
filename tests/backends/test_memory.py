"""Files in memory: what every storage must do, and that fsspec sees the same files."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from ocdbt_py.errors import PathNotFoundError, StorageError
from ocdbt_py.storage.protocol import ABSENT, UNCHANGED, Listed, Read, Storage
from ocdbt_py.testing.files import content, put
from ocdbt_py.testing.storage_suite import StorageSuite
from ocdbt_py_backends.memory import MemoryStorage


@pytest.fixture
def root(tmp_path: Path) -> str:
    """A directory of this test alone: the files are shared by the whole process."""
    return f"{tmp_path}"


class TestMemoryStorage(StorageSuite):
    @pytest.fixture
    def storage_and_root(self, tmp_path: Path) -> tuple[Storage, str]:
        return MemoryStorage(), f"{tmp_path}"


class TestMemoryStorageOfItsOwn(StorageSuite):
    """A ``MemoryFileSystem`` that shares its files with no other."""

    @pytest.fixture
    def storage_and_root(self) -> tuple[Storage, str]:
        return MemoryStorage(MemoryFileSystem(global_store=False, skip_instance_cache=True)), "/place"


def test_fsspec_sees_our_files_and_we_see_its(root: str) -> None:
    storage, fs = MemoryStorage(), fsspec.filesystem("memory")
    put(storage, f"{root}/d/ours", b"ours")
    fs.pipe_file(f"{root}/d/theirs", b"theirs")
    assert fs.cat_file(f"{root}/d/ours") == b"ours"
    assert content(storage, f"{root}/d/theirs") == b"theirs"
    assert sorted(fs.find(root)) == sorted(found.path for found in storage.list(f"{root}/", deep=True))
    storage.rename(f"{root}/d", f"{root}/e")
    assert sorted(fs.ls(f"{root}/e", detail=False)) == [f"{root}/e/ours", f"{root}/e/theirs"]
    with fs.open(f"{root}/e/ours") as file:
        assert file.read() == b"ours"


def test_an_empty_directory_made_by_fsspec_is_listed_moved_and_deleted(root: str) -> None:
    storage, fs = MemoryStorage(), fsspec.filesystem("memory")
    fs.makedirs(f"{root}/a/b")
    assert list(storage.list(f"{root}/")) == [Listed(f"{root}/a/", None)]
    put(storage, f"{root}/c/f", b"x")
    storage.rename(f"{root}/c", f"{root}/a/b")
    assert content(storage, f"{root}/a/b/f") == b"x"
    storage.rename(f"{root}/a", f"{root}/z")
    assert fs.isdir(f"{root}/z/b")
    storage.delete(f"{root}/z/")
    assert not fs.exists(f"{root}/z")


def test_every_write_has_a_token_of_its_own_also_of_the_same_bytes(root: str) -> None:
    storage = MemoryStorage()
    path = f"{root}/f"
    tokens = [storage.write(path, [b"same"]) for _ in range(30)]
    storage.delete(path)
    tokens.append(storage.write(path, [b"same"], ABSENT))
    assert len(set(tokens)) == 31


def test_a_file_replaced_through_fsspec_has_another_token(root: str) -> None:
    storage, fs = MemoryStorage(), fsspec.filesystem("memory")
    token = storage.write(f"{root}/f", [b"same"])
    fs.pipe_file(f"{root}/f", b"same")
    replaced = storage.read(f"{root}/f", unless=token)
    assert isinstance(replaced, Read)
    with fs.open(f"{root}/f", "wb") as file:
        empty = storage.read(f"{root}/f", unless=replaced.token)
        assert isinstance(empty, Read)
        file.write(b"same")
    assert storage.read(f"{root}/f", unless=empty.token) is not UNCHANGED


def test_separate_filesystems_are_separate_storages() -> None:
    one, two = (MemoryStorage(MemoryFileSystem(global_store=False, skip_instance_cache=True)) for _ in range(2))
    put(one, "/f", b"x")
    with pytest.raises(PathNotFoundError):
        two.read("/f")
    with one.hold("/f", 0), two.hold("/f", 0):
        pass
    assert one != two
    assert MemoryStorage() == MemoryStorage(fsspec.filesystem("memory"))


def test_nothing_is_made_below_a_file_or_in_place_of_a_directory(root: str) -> None:
    storage, fs = MemoryStorage(), fsspec.filesystem("memory")
    put(storage, f"{root}/f", b"x")
    fs.mkdir(f"{root}/d")
    with pytest.raises(StorageError, match="is a file"):
        storage.write(f"{root}/f/g", [b"x"])
    with pytest.raises(StorageError, match="is a file"):
        storage.create(f"{root}/f/g/h")
    with pytest.raises(StorageError, match="is a directory"):
        storage.write(f"{root}/d", [b"x"])


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of a newer Python, about threads of others
def test_what_another_thread_held_is_free_in_a_forked_child(root: str) -> None:
    storage = MemoryStorage()
    fork = multiprocessing.get_context("fork")
    with storage.hold(f"{root}/f", 0):
        child = fork.Process(target=lambda: os._exit(0 if storage.write(f"{root}/f", [b"x"], ABSENT) else 1))
        child.start()
        child.join(20)
    assert child.exitcode == 0
