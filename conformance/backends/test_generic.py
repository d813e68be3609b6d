"""Every other filesystem of fsspec: FTP and WebDAV on real servers, archives, and one as another package brings it."""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import socket
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.registry import _registry, known_implementations
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

import ocdbt_py
from conformance.memory import beside_the_data
from conformance.servers.server import Server
from ocdbt_py.errors import (
    AlreadyExistsError,
    CorruptDataError,
    InvalidArgumentError,
    PathNotFoundError,
    StorageError,
    UnsupportedError,
)
from ocdbt_py.storage.location import resolve
from ocdbt_py.storage.protocol import UNCHANGED, Listed, Read, Storage
from ocdbt_py.testing.files import content, in_threads, put
from ocdbt_py.testing.storage_suite import StorageSuite
from ocdbt_py.testing.storage_suite.names import CONTROL_NAME, NOT_UTF8_NAME
from ocdbt_py_backends.generic import GenericStorage
from ocdbt_py_backends.generic_filesystem import is_writable
from ocdbt_py_backends.local import LocalStorage
from ocdbt_py_backends.sightings import Sightings

# fsspec's FTP filesystem closes in __del__ what it has not got when the server lets nobody in.
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <function FTPFileSystem.__del__")


class ShelfFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """What a package of others might bring: the least that fsspec asks of a filesystem that can be written."""

    protocol = "shelf"
    shelves: ClassVar[dict[str, dict[str, bytes]]] = {}

    def __init__(self, room: str, **options: Any) -> None:
        super().__init__(**options)
        self.files = self.shelves.setdefault(room, {})

    def ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        below = f"{self._strip_protocol(path)}/".lstrip("/")
        found: dict[str, dict[str, Any]] = {}
        for name, data in self.files.items():
            if name == below.rstrip("/"):
                found[name] = {"name": name, "size": len(data), "type": "file"}
            if name.startswith(below):
                child, _, rest = name.removeprefix(below).partition("/")
                kind = {"size": 0, "type": "directory"} if rest else {"size": len(data), "type": "file"}
                found[below + child] = {"name": below + child, **kind}
        if not found:
            raise FileNotFoundError(path)
        return [*found.values()] if detail else [*found]

    def rm_file(self, path: str) -> None:
        del self.files[self._strip_protocol(path)]

    def rmdir(self, path: str) -> None:
        pass

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if mode == "rb" and path not in self.files:
            raise FileNotFoundError(path)
        return ShelfFile(self, path, mode) if mode == "wb" else io.BytesIO(self.files[path])


class ShelfFile(AbstractBufferedFile):  # type: ignore[misc]
    def _initiate_upload(self) -> None:
        self.parts: list[bytes] = []

    def _upload_chunk(self, final: bool = False) -> bool:
        self.parts.append(self.buffer.getvalue())
        if final:
            self.fs.files[self.path] = b"".join(self.parts)
        return True


@pytest.fixture
def shelf(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A place of its own in the home-made filesystem, under the name that its package would register."""
    fsspec.register_implementation("shelf", ShelfFileSystem, clobber=True)
    yield Server("shelf", "shelf://tests", "", storage_options={"room": request.node.nodeid})
    ShelfFileSystem.shelves.clear()
    _registry.pop("shelf")


class TestFTP(StorageSuite):
    refused_names = (CONTROL_NAME, NOT_UTF8_NAME)

    @pytest.fixture
    def storage_and_root(self, ftp_server: Server) -> tuple[Storage, str]:
        place = resolve(ftp_server.url("suite"), storage_options=dict(ftp_server.storage_options))
        return place.storage, place.path


class TestWebDAV(StorageSuite):
    refused_names = ("question?hash#at@colon:", CONTROL_NAME, NOT_UTF8_NAME)
    altered_names = ("percent%20encoded%", "semi;comma,'quote\"backtick`$HOME", " leading and trailing ")

    @pytest.fixture
    def storage_and_root(self, webdav_server: Server) -> tuple[Storage, str]:
        place = resolve(webdav_server.url("suite"), storage_options=dict(webdav_server.storage_options))
        return place.storage, place.path


class TestFilesystemOfOthers(StorageSuite):
    @pytest.fixture
    def storage_and_root(self, shelf: Server) -> tuple[Storage, str]:
        place = resolve(shelf.url("suite"), storage_options=dict(shelf.storage_options))
        return place.storage, place.path


class TestDirectoryOfAFilesystem(StorageSuite):
    """fsspec's ``dir`` is looked through, to what is below."""

    refused_names = (CONTROL_NAME, NOT_UTF8_NAME)

    @pytest.fixture
    def storage_and_root(self, ftp_server: Server) -> tuple[Storage, str]:
        host, port = ftp_server.endpoint.split(":")
        ftp = fsspec.filesystem("ftp", host=host, port=int(port), **ftp_server.storage_options)
        place = resolve("within", fs=DirFileSystem(f"/{ftp_server.url('dir').rpartition('/')[2]}", ftp))
        return place.storage, place.path


WRITABLE = ["ftp_server", "webdav_server", "shelf"]


@pytest.fixture(params=WRITABLE)
def server(request: pytest.FixtureRequest) -> Server:
    found: Server = request.getfixturevalue(request.param)
    return found


TREE = {"w": np.arange(3000, dtype=np.float32), "deep": {"b": np.ones((2, 3)), "n": 3, "s": "text"}}


def check_tree(tree: Any) -> None:
    assert tree.keys() == TREE.keys()
    np.testing.assert_array_equal(tree["w"], TREE["w"])
    np.testing.assert_array_equal(tree["deep"]["b"], np.ones((2, 3)))
    assert (tree["deep"]["n"], tree["deep"]["s"]) == (3, "text")


def test_what_is_listed_has_the_prefix_at_the_root_too(server: Server) -> None:
    place = resolve(server.url("root"), storage_options=dict(server.storage_options))
    put(place.storage, f"{place.path}/f", b"x")
    assert list(place.storage.list(place.path)) == [Listed(f"{place.path}/", None)]
    assert list(place.storage.list(place.path, deep=True)) == [Listed(f"{place.path}/f", 1)]


# --- what is built on it


def test_a_checkpoint_is_saved_and_restored(server: Server) -> None:
    url, options = server.url("checkpoint"), dict(server.storage_options)
    ocdbt_py.save(url, TREE, storage_options=options)
    check_tree(ocdbt_py.restore(url, storage_options=options))
    checkpoint = ocdbt_py.Checkpoint(url, storage_options=options)
    np.testing.assert_array_equal(checkpoint["w"][10:20], np.arange(10, 20))
    with pytest.raises(AlreadyExistsError):
        ocdbt_py.save(url, TREE, storage_options=options)
    ocdbt_py.save(url, {"w": np.zeros(3)}, overwrite=True, storage_options=options)
    np.testing.assert_array_equal(ocdbt_py.restore(url, storage_options=options)["w"], np.zeros(3))
    if server.directory is not None:  # a copy of the files is a checkpoint too
        np.testing.assert_array_equal(ocdbt_py.restore(str(server.local(url)))["w"], np.zeros(3))


def test_a_database_is_written_by_one_writer_who_says_so(server: Server) -> None:
    url, options = server.url("database"), dict(server.storage_options)
    for mode in ("a", "x"):
        with pytest.raises(UnsupportedError, match="single_writer=True") as caught:
            ocdbt_py.open(url, mode, storage_options=options)
        assert server.url("").rpartition("/")[0] in str(caught.value)
    with ocdbt_py.open(url, "a", single_writer=True, storage_options=options) as db:
        db.update({f"key {number}": b"%d" % number * 1000 for number in range(100)})
        with ocdbt_py.open(url, storage_options=options) as reader:
            for number in range(5):
                db["n"] = b"%d" % number  # the same size, within a second
                assert reader["n"] == b"%d" % number
            assert len(reader) == 101
    with pytest.raises(UnsupportedError, match="single_writer=True"):
        ocdbt_py.open(url, "r+", storage_options=options)
    assert ocdbt_py.check(url, storage_options=options).ok


# --- archives


@pytest.fixture
def archives(tmp_path: Path) -> dict[str, str]:
    """URLs of one checkpoint and one database below it, in archives."""
    ocdbt_py.save(str(tmp_path / "checkpoint"), TREE)
    with ocdbt_py.open(str(tmp_path / "database"), "a") as db:
        db.update({f"key {number}": b"%d" % number * 1000 for number in range(100)})
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped, tarfile.open(tmp_path / "a.tar", "w") as tarred:
        for directory in ("checkpoint", "database"):
            tarred.add(tmp_path / directory, f"in/{directory}")
            for file in (tmp_path / directory).rglob("*"):
                zipped.write(file, f"in/{file.relative_to(tmp_path)}")
    return {
        kind: f"{kind}://in/{{}}::file://{tmp_path}/a.{kind}" if kind == "zip" else f"tar://in/{{}}::{tmp_path}/a.tar"
        for kind in ("zip", "tar")
    }


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_what_is_in_an_archive_is_read_and_not_written(archives: dict[str, str], kind: str) -> None:
    url = archives[kind]
    check_tree(ocdbt_py.restore(url.format("checkpoint")))
    with ocdbt_py.open(url.format("database")) as db:
        assert db["key 42"] == b"42" * 1000
        assert len(db) == 100
        assert db.read("key 42", 10, 12) == b"42"
    with pytest.raises(UnsupportedError, match="cannot be written"):
        ocdbt_py.open(url.format("database"), "r+", single_writer=True)
    with pytest.raises(UnsupportedError, match="cannot be written"):
        ocdbt_py.save(url.format("another"), TREE)
    storage, path = resolve(url.format("database")).storage, resolve(url.format("database")).path
    for attempt in (
        lambda: storage.write(f"{path}/f", [b"x"]),
        lambda: storage.put(f"{path}/f", [b"x"]),
        lambda: storage.create(f"{path}/f"),
        lambda: storage.delete(f"{path}/manifest.ocdbt"),
    ):
        with pytest.raises(UnsupportedError, match="only be read"):
            attempt()
    found = storage.read(f"{path}/manifest.ocdbt")
    assert isinstance(found, Read)
    assert storage.read(f"{path}/manifest.ocdbt", unless=found.token) is UNCHANGED
    assert {item.path for item in storage.list(f"{path}/")} == {f"{path}/d/", f"{path}/manifest.ocdbt"}
    assert len({*storage.list(f"{path}/", deep=True)}) >= 2
    with pytest.raises(PathNotFoundError):
        storage.read(f"{path}/none")
    with pytest.raises(CorruptDataError):
        storage.read_many([(f"{path}/manifest.ocdbt", 0, 1 << 20)])


def test_an_archive_on_a_server_is_read(archives: dict[str, str], ftp_server: Server) -> None:
    inner = archives["zip"].rpartition("file://")[2]
    assert ftp_server.directory is not None
    (ftp_server.directory / "a.zip").write_bytes(Path(inner).read_bytes())
    url = f"zip://in/checkpoint::{ftp_server.root}/a.zip"
    options = {"ftp": dict(ftp_server.storage_options)}
    check_tree(ocdbt_py.restore(url, storage_options=options))
    assert resolve(url, storage_options=options).url == url


def test_places_that_fsspec_makes_are_found() -> None:
    place = resolve("data:;base64,aGVsbG8=", fs=fsspec.filesystem("data"))
    assert not place.storage.capabilities.writable


# --- which can be written


@pytest.mark.parametrize(
    ("protocol", "writable"),
    [
        *[(name, False) for name in ("zip", "tar", "http", "github", "data", "reference", "jlab")],
        *[(name, True) for name in ("ftp", "webdav", "memory", "file", "sftp", "webhdfs", "s3", "gs", "abfs")],
    ],
)
def test_only_what_can_be_written_says_so(protocol: str, writable: bool) -> None:
    assert is_writable(object.__new__(fsspec.get_filesystem_class(protocol))) is writable


def test_what_has_no_way_to_write_is_read_only() -> None:
    class Readable(AbstractFileSystem):  # type: ignore[misc]
        protocol = "readable"

        def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
            return io.BytesIO(b"x")

    assert not GenericStorage(Readable(), "readable://").capabilities.writable
    assert not GenericStorage(AbstractFileSystem(), "abstract://").capabilities.writable


# --- how it goes about it


def test_tokens_tell_contents_of_one_second_and_one_size_apart(ftp_server: Server) -> None:
    url = ftp_server.url()
    place = resolve(url, storage_options=dict(ftp_server.storage_options))
    token = place.storage.write(f"{place.path}/f", [b"one"])
    local = ftp_server.local(url) / "f"
    before = local.stat()
    local.write_bytes(b"two")
    os.utime(local, (before.st_atime, before.st_mtime))
    found = place.storage.read(f"{place.path}/f", unless=token)
    assert isinstance(found, Read)
    assert found.data == b"two"


def test_asking_for_what_has_not_changed_for_long_moves_no_body(
    ftp_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = resolve(ftp_server.url(), storage_options=dict(ftp_server.storage_options))
    storage = place.storage
    assert isinstance(storage, GenericStorage)
    storage._reading.sightings = Sightings(0.0)
    token = storage.write(f"{place.path}/f", [b"one"])
    for _ in range(2):
        assert storage.read(f"{place.path}/f", unless=token) is UNCHANGED

    def cat_nothing(fs: Any, path: str, *args: Any, **options: Any) -> bytes:
        raise AssertionError(f"{path} was read")

    monkeypatch.setattr(type(storage._attempts.fs), "cat_file", cat_nothing)
    assert storage.read(f"{place.path}/f", unless=token) is UNCHANGED


def test_a_file_that_changes_while_it_is_read_is_read_again(shelf: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    place = resolve(shelf.url(), storage_options=dict(shelf.storage_options))
    storage, path = place.storage, f"{place.path}/f"
    storage.write(path, [b"before"])
    files = ShelfFileSystem.shelves[shelf.storage_options["room"]]
    cat, later = AbstractFileSystem.cat_file, [b"afterwards"]

    def cat_and_change(fs: Any, *args: Any, **options: Any) -> bytes:
        data: bytes = cat(fs, *args, **options)
        if later:
            files[path] = later.pop()
        return data

    monkeypatch.setattr(ShelfFileSystem, "cat_file", cat_and_change)
    assert content(storage, path) == b"afterwards"
    later.extend(b"x" * size for size in range(20, 40))
    with pytest.raises(StorageError, match="changes while it is read"):
        storage.read(path)


def test_threads_take_turns_on_one_connection(ftp_server: Server) -> None:
    place = resolve(ftp_server.url(), storage_options=dict(ftp_server.storage_options))
    storage, path = place.storage, f"{place.path}/f"
    data = bytes(range(256)) * 2000
    storage.put(path, [data])
    reads = [partial(storage.read_many, [(path, start, start + 5000)]) for start in range(8)]
    puts = [partial(put, storage, f"{place.path}/{number}", b"x" * number) for number in range(8)]
    results = in_threads([*reads, *puts])
    assert results == [[data[start : start + 5000]] for start in range(8)] + [None] * 8
    assert {found.size for found in storage.list(f"{place.path}/")} == {*range(8), len(data)}


def test_a_connection_that_broke_is_made_again(ftp_server: Server) -> None:
    place = resolve(ftp_server.url(), storage_options=dict(ftp_server.storage_options))
    storage, path = place.storage, f"{place.path}/f"
    assert isinstance(storage, GenericStorage)

    def cut() -> None:
        assert isinstance(storage, GenericStorage)
        storage._attempts.fs.ftp.sock.shutdown(socket.SHUT_RDWR)

    put(storage, path, b"x" * 100)
    cut()
    assert content(storage, path) == b"x" * 100
    cut()
    assert storage.read_many([(path, 1, 3)]) == [b"xx"]
    cut()
    storage.write(path, [b"another"])
    cut()
    assert [found.size for found in storage.list(f"{place.path}/")] == [7]
    writer = storage.create(f"{place.path}/g")
    writer.write([b"x" * (5 << 20)])
    cut()
    storage.delete(path)  # which makes another connection
    with pytest.raises(StorageError, match="write it again"):
        writer.close()
    assert list(storage.list(f"{place.path}/", deep=True)) == []


@pytest.mark.filterwarnings("ignore:.*fork")  # about threads of others, by a newer Python or by JAX, if it is there
def test_a_forked_child_connects_anew(ftp_server: Server) -> None:
    place = resolve(ftp_server.url(), storage_options=dict(ftp_server.storage_options))
    storage, path = place.storage, f"{place.path}/f"
    put(storage, path, b"x")
    child = multiprocessing.get_context("fork").Process(
        target=lambda: os._exit(0 if content(storage, path) == b"x" else 1)
    )
    child.start()
    child.join(30)
    assert child.exitcode == 0
    assert content(storage, path) == b"x"


def test_the_pickled_storage_is_equal_and_shows_no_password(server: Server) -> None:
    place = resolve(server.url(), storage_options=dict(server.storage_options))
    again = pickle.loads(pickle.dumps(place.storage))
    assert again == place.storage
    assert hash(again) == hash(place.storage)
    for secret in ("password", "auth"):
        if secret in server.storage_options:
            shown = server.storage_options[secret]
            assert (shown if isinstance(shown, str) else shown[1]) not in repr(again)
    assert place.storage != resolve("data:,x", fs=fsspec.filesystem("data")).storage


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not tell a process's peak of memory")
@pytest.mark.parametrize("fixture", ["ftp_server", "webdav_server"])
def test_200_mib_go_and_come_in_64_mib_of_memory_beside_them(fixture: str, request: pytest.FixtureRequest) -> None:
    server: Server = request.getfixturevalue(fixture)
    put_peak, read_peak = beside_the_data(server.url(), server.storage_options)
    assert put_peak <= 64 << 20
    assert read_peak <= 64 << 20


# --- refusals


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = {"class": "no_such_package.fs.FileSystem", "err": "Install no_such_package to use needy://"}
    monkeypatch.setitem(known_implementations, "needy", entry)
    for url in ("needy://a/b", "zip://a::needy://b.zip"):
        with pytest.raises(UnsupportedError, match="Install no_such_package") as caught:
            resolve(url)
        assert isinstance(caught.value.__cause__, ImportError)
    monkeypatch.setitem(known_implementations, "needy", {"class": "no_such_package.fs.FileSystem"})
    with pytest.raises(UnsupportedError, match="install no_such_package"):
        resolve("needy://a/b")


def test_the_link_that_nothing_serves_is_named() -> None:
    with pytest.raises(UnsupportedError, match="entry point unheard"):
        resolve("zip://a::unheard://b.zip")


def test_wrong_options_are_refused(ftp_server: Server) -> None:
    with pytest.raises(InvalidArgumentError, match="storage_options"):
        resolve("webdav://a")


def test_an_archive_that_is_not_there_or_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(PathNotFoundError, match=r"none\.zip"):
        resolve(f"zip://a::file://{tmp_path}/none.zip")
    (tmp_path / "no.zip").write_bytes(b"no archive")
    with pytest.raises(StorageError, match=r"no\.zip.*BadZipFile"):
        resolve(f"zip://a::file://{tmp_path}/no.zip")


def test_a_server_that_refuses_the_password_says_so(ftp_server: Server) -> None:
    with pytest.raises(StorageError, match="the credentials were refused") as caught:
        resolve(ftp_server.url(), storage_options={"username": "user", "password": "s3cret"})
    assert caught.value.kind == "credentials"
    assert "s3cret" not in str(caught.value)


def test_a_directory_shown_by_dir_is_the_filesystem_below(tmp_path: Path) -> None:
    for place, path in (
        (resolve("a", fs=DirFileSystem(str(tmp_path), fsspec.filesystem("file"))), f"{tmp_path}/a"),
        (resolve(f"dir://a::file://{tmp_path}"), f"{tmp_path}/a"),
        (resolve(f"dir::file://{tmp_path}"), f"{tmp_path}"),
    ):
        assert (type(place.storage), place.path) == (LocalStorage, path)
