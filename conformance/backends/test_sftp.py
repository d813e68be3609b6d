"""SFTP, against OpenSSH's server."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import paramiko
import pytest

import ocdbt_py
from conformance.memory import beside_the_data
from conformance.servers.server import Server
from ocdbt_py.errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidArgumentError,
    StorageError,
    UnsupportedError,
)
from ocdbt_py.storage.location import resolve
from ocdbt_py.storage.protocol import ABSENT, UNCHANGED, Listed, Read, Storage
from ocdbt_py.testing.files import content, in_threads, put
from ocdbt_py.testing.storage_suite import StorageSuite
from ocdbt_py_backends import sftp_attempts, sftp_connection
from ocdbt_py_backends.sftp import SFTPStorage
from ocdbt_py_backends.sftp_conversation import FAILURE, Refused
from ocdbt_py_backends.sftp_packets import Lost
from ocdbt_py_backends.sftp_session import Session
from ocdbt_py_backends.sightings import Sightings

Place = tuple[SFTPStorage, str, Path]


class TestSFTPStorage(StorageSuite):
    @pytest.fixture
    def storage_and_root(self, sftp_server: Server) -> tuple[Storage, str]:
        place = resolve(sftp_server.url("suite"), storage_options=dict(sftp_server.storage_options))
        return place.storage, place.path


class TestSFTPStorageOfAFilesystem(StorageSuite):
    """fsspec's own filesystem, that somebody else made."""

    @pytest.fixture
    def storage_and_root(self, sftp_server: Server) -> tuple[Storage, str]:
        path = str(sftp_server.local(sftp_server.url("suite")))
        place = resolve(path, fs=filesystem(sftp_server))
        return place.storage, place.path


def filesystem(server: Server) -> Any:
    host, port = server.endpoint.split(":")
    return fsspec.filesystem("sftp", host=host, port=int(port), skip_instance_cache=True, **server.storage_options)


@pytest.fixture
def place(sftp_server: Server) -> Place:
    """A storage, an empty directory in it, and the same directory on the local disk."""
    url = sftp_server.url()
    found = resolve(url, storage_options=dict(sftp_server.storage_options))
    assert isinstance(found.storage, SFTPStorage)
    put(found.storage, f"{found.path}/first", b"connects")
    found.storage.delete(f"{found.path}/first")
    return found.storage, found.path, sftp_server.local(url)


def cut(storage: SFTPStorage) -> None:
    """End the connection without a word."""
    storage._attempts.connection._fs.client.get_transport().sock.shutdown(2)


# --- what is there


def test_tokens_tell_contents_of_one_second_and_one_size_apart(place: Place) -> None:
    storage, root, local = place
    token = storage.write(f"{root}/f", [b"one"])
    for data in (b"two", b"six"):
        before = (local / "f").stat()
        (local / "f").write_bytes(data)
        os.utime(local / "f", (before.st_atime, before.st_mtime))
        found = storage.read(f"{root}/f", unless=token)
        assert isinstance(found, Read)
        assert found.data == data
        token = found.token


def test_asking_for_what_has_not_changed_for_long_moves_no_body(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    storage, root, _ = place
    storage._reading.sightings = Sightings(0.0)
    token = storage.write(f"{root}/f", [b"one"])
    for _ in range(2):
        assert storage.read(f"{root}/f", unless=token) is UNCHANGED

    def open_nothing(session: Session, path: str) -> bytes:
        raise AssertionError(f"{path} was opened")

    with monkeypatch.context() as patch:
        patch.setattr(Session, "open", open_nothing)
        assert storage.read(f"{root}/f", unless=token) is UNCHANGED
    storage.write(f"{root}/f", [b"another"])
    assert content(storage, f"{root}/f") == b"another"
    assert storage.read(f"{root}/f", unless=token) is not UNCHANGED


def test_large_files_are_read_in_part(place: Place) -> None:
    storage, root, local = place
    data = os.urandom(3 << 20)
    storage.put(f"{root}/f", [data])
    assert (local / "f").read_bytes() == data
    found = storage.read(f"{root}/f", 1 << 20, (1 << 20) + 200_000)
    assert isinstance(found, Read)
    assert (found.data, found.size) == (data[1 << 20 : (1 << 20) + 200_000], len(data))
    assert storage.read(f"{root}/f", unless=found.token) is UNCHANGED
    (local / "f").write_bytes(data[:-1])
    assert storage.read(f"{root}/f", 0, 1, unless=found.token) is not UNCHANGED


def test_symbolic_links_are_followed_but_not_in_circles(place: Place) -> None:
    storage, root, local = place
    put(storage, f"{root}/a/f", b"x")
    put(storage, f"{root}/b/g", b"yy")
    (local / "file").symlink_to("a/f")
    (local / "nothing").symlink_to("a/none")
    (local / "a" / "up").symlink_to("..")
    (local / "a" / "across").symlink_to("../b")
    (local / "b" / "back").symlink_to("../a")
    assert {(found.path, found.size) for found in storage.list(f"{root}/")} == {
        (f"{root}/a/", None),
        (f"{root}/b/", None),
        (f"{root}/file", 1),
    }
    deep = {found.path.removeprefix(f"{root}/") for found in storage.list(f"{root}/", deep=True)}
    assert {"file", "a/f", "b/g", "a/across/g"} <= deep
    storage.delete(f"{root}/a/")
    assert content(storage, f"{root}/b/g") == b"yy"


def test_what_a_crash_left_is_not_listed_and_goes_with_its_directory(place: Place) -> None:
    storage, root, local = place
    put(storage, f"{root}/d/f", b"x")
    writer = storage.create(f"{root}/d/g")
    writer.write([b"x" * (5 << 20)])  # and no more: neither close nor abort
    assert len(list((local / "d").iterdir())) == 2
    assert list(storage.list(f"{root}/", deep=True)) == [Listed(f"{root}/d/f", 1)]
    storage.delete(f"{root}/d/")
    assert not (local / "d").exists()


def test_many_names_are_listed(place: Place) -> None:
    storage, root, local = place
    (local / "d").mkdir(parents=True)
    names = {f"{root}/d/{'n' * 100}{number}" for number in range(2000)}
    for name in names:
        (local / "d" / name.rpartition("/")[2]).touch()
    assert {found.path for found in storage.list(f"{root}/d/")} == names


def test_a_directory_is_no_file(place: Place) -> None:
    storage, root, _ = place
    put(storage, f"{root}/d/f", b"x")
    for attempt in (
        lambda: storage.read(f"{root}/d"),
        lambda: storage.read_many([(f"{root}/d", 0, 1)]),
        lambda: storage.write(f"{root}/d/f/g", [b"x"]),
        lambda: storage.delete(f"{root}/d"),
    ):
        with pytest.raises(StorageError):
            attempt()
    with pytest.raises(InvalidArgumentError, match="root"):
        storage.delete("/")


# --- connections


def test_a_connection_that_broke_is_made_again(place: Place) -> None:
    storage, root, _ = place
    writer = storage.create(f"{root}/f")
    writer.write([b"a" * (5 << 20)])
    cut(storage)
    writer.write([b"b" * (5 << 20)])
    cut(storage)
    writer.close()
    cut(storage)
    assert storage.read_many([(f"{root}/f", (5 << 20) - 1, (5 << 20) + 1)]) == [b"ab"]
    cut(storage)
    assert [found.path for found in storage.list(f"{root}/")] == [f"{root}/f"]


@pytest.mark.parametrize("half", [False, True], ids=["done", "half done"])
def test_a_rename_whose_answer_was_lost_is_found_out(place: Place, monkeypatch: pytest.MonkeyPatch, half: bool) -> None:
    storage, root, local = place
    rename = Session.rename
    losses: list[str] = []

    def lose(session: Session, source: str, target: str) -> None:
        if losses:
            rename(session, source, target)
            return
        losses.append(target)
        if half:  # a server renames by giving the second name, and then taking away the first
            os.link(local / source.rpartition("/")[2], local / target.rpartition("/")[2])
        else:
            rename(session, source, target)
        session.close()
        raise Lost("the connection broke")

    monkeypatch.setattr(Session, "rename", lose)
    storage.write(f"{root}/f", [b"once"], ABSENT)
    assert (len(losses), os.listdir(local)) == (1, ["f"])
    with pytest.raises(ConflictError):
        storage.write(f"{root}/f", [b"once"], ABSENT)
    losses.clear()
    put(storage, f"{root}/g", b"x" * 100_000)
    assert sorted(os.listdir(local)) == ["f", "g"]
    with pytest.raises(AlreadyExistsError):
        put(storage, f"{root}/g", b"x" * 100_000)


def test_where_it_cannot_be_found_out_the_error_says_so(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    storage, root, _ = place

    def lose(session: Session, source: str, target: str) -> None:
        session.close()
        raise Lost("the connection broke")

    monkeypatch.setattr(sftp_attempts, "ATTEMPTS", 2)
    monkeypatch.setattr(Session, "rename", lose)
    with pytest.raises(StorageError, match="the connection broke") as caught:
        storage.write(f"{root}/f", [b"x"], ABSENT)
    assert caught.value.kind == "ambiguous"


def test_a_write_that_happened_and_may_not_survive_says_so(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    storage, root, _ = place

    def lose(session: Session, paths: Any) -> None:
        session.close()
        raise Lost("the connection broke")

    monkeypatch.setattr(sftp_attempts, "ATTEMPTS", 2)
    monkeypatch.setattr(Session, "sync", lose)
    with pytest.raises(StorageError, match="survives a crash") as caught:
        storage.write(f"{root}/f", [b"x"], ABSENT)
    assert caught.value.kind == "not-durable"
    assert content(storage, f"{root}/f") == b"x"


@pytest.mark.parametrize("given", [True, False])
def test_small_packets_do_not_wait_for_acknowledgements(sftp_server: Server, given: bool) -> None:
    url = sftp_server.url()
    if given:
        found = resolve(str(sftp_server.local(url)), fs=filesystem(sftp_server))
    else:
        found = resolve(url, storage_options=dict(sftp_server.storage_options))
    assert isinstance(found.storage, SFTPStorage)
    put(found.storage, f"{found.path}/f", b"x")
    sock = found.storage._attempts.connection._fs.client.get_transport().sock
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


@pytest.mark.parametrize("disabled", [False, True])
def test_ciphers_of_one_pass_are_preferred_and_may_be_disabled(sftp_server: Server, disabled: bool) -> None:
    options = dict(sftp_server.storage_options)
    if disabled:
        one_pass = [name for name in paramiko.Transport._preferred_ciphers if "-gcm" in name]
        options["disabled_algorithms"] = {"ciphers": one_pass}
    found = resolve(sftp_server.url(), storage_options=options)
    assert isinstance(found.storage, SFTPStorage)
    put(found.storage, f"{found.path}/f", b"x")
    transport = found.storage._attempts.connection._fs.client.get_transport()
    assert ("-gcm" in transport.remote_cipher) is not disabled


def test_more_threads_than_sessions_share_them(place: Place) -> None:
    storage, root, _ = place
    storage.put(f"{root}/f", [bytes(range(256)) * 4000])

    def read(start: int) -> bytes:
        return b"".join(storage.read_many([(f"{root}/f", start, start + 100_000), (f"{root}/f", 0, 1)]))

    expected = [(bytes(range(256)) * 4000)[start : start + 100_000] + b"\0" for start in range(16)]
    assert in_threads([lambda start=start: read(start) for start in range(16)]) == expected  # type: ignore[misc]
    assert len(storage._attempts.connection._sessions) <= sftp_connection.SESSIONS


@pytest.mark.filterwarnings("ignore:.*fork")  # about threads of others, by a newer Python or by JAX, if it is there
def test_a_forked_child_connects_anew_and_leaves_the_parents_connection_alone(place: Place) -> None:
    storage, root, _ = place
    put(storage, f"{root}/f", b"x")

    def use() -> None:
        ok = content(storage, f"{root}/f") == b"x"
        storage.put(f"{root}/g", [b"y" * 1000])
        os._exit(0 if ok else 1)

    transport = storage._attempts.connection._transport()
    child = multiprocessing.get_context("fork").Process(target=use)
    child.start()
    child.join(30)
    assert child.exitcode == 0
    assert content(storage, f"{root}/g") == b"y" * 1000
    assert storage._attempts.connection._transport() is transport


# --- other servers


def test_a_server_without_openssh_s_extensions(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    storage, root, _ = place
    greet = Session._greet

    def greet_plainly(session: Session) -> None:
        greet(session)
        session.extensions.clear()

    monkeypatch.setattr(Session, "_greet", greet_plainly)
    cut(storage)
    storage.write(f"{root}/d/f", [b"new"])
    storage.sync([f"{root}/d/f"])
    with pytest.raises(ConflictError):
        storage.write(f"{root}/d/f", [b"another"], ABSENT)
    with pytest.raises(UnsupportedError, match="posix-rename"):
        storage.write(f"{root}/d/f", [b"another"])
    assert [found.path for found in storage.list(f"{root}/", deep=True)] == [f"{root}/d/f"]
    put(storage, f"{root}/empty/f", b"x")
    storage.delete(f"{root}/empty/f")
    with pytest.raises(AlreadyExistsError):
        storage.rename(f"{root}/empty", f"{root}/d")
    storage.rename(f"{root}/d", f"{root}/empty")
    assert content(storage, f"{root}/empty/f") == b"new"


def test_a_full_disk_is_told_from_other_failures(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    storage, root, local = place

    def fail(session: Session, *_: Any) -> None:
        raise Refused(FAILURE, "Failure")

    monkeypatch.setattr(Session, "write", fail)
    with pytest.raises(StorageError, match="gives no reason"):
        storage.put(f"{root}/f", [b"x"])
    monkeypatch.setattr(Session, "free_bytes", lambda session, path: 0)
    with pytest.raises(StorageError, match="No space is left") as caught:
        storage.put(f"{root}/f", [b"x"])
    assert caught.value.kind == "no-space"
    assert os.listdir(local) == []


def test_the_server_tells_how_much_is_free(place: Place) -> None:
    storage, root, _ = place
    free = storage._attempts.do(root, lambda session: session.free_bytes(root))
    assert free is not None
    assert free > 1 << 20


# --- databases


def test_a_database_on_sftp_has_numbered_manifests(sftp_server: Server) -> None:
    url, options = sftp_server.url(), dict(sftp_server.storage_options)
    with ocdbt_py.open(url, "a", storage_options=options) as db:
        db.update({"a": b"1", "b": b"2" * 5000})
        assert db.config.manifest_kind == "numbered"
    with ocdbt_py.open(url, "r+", storage_options=options) as db, ocdbt_py.open(url, storage_options=options) as reader:
        for number in range(10):
            db["a"] = b"%d" % number
            assert reader["a"] == b"%d" % number
    with ocdbt_py.open(str(sftp_server.local(url))) as local:
        assert dict(local.items()) == {b"a": b"9", b"b": b"2" * 5000}


def test_a_server_that_renames_onto_what_is_there_is_found_out_before_writing(
    sftp_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Session, "rename", Session.replace)
    url, options = sftp_server.url(), dict(sftp_server.storage_options)
    with pytest.raises(UnsupportedError, match="single_writer=True") as caught:
        ocdbt_py.open(url, "a", storage_options=options)
    assert sftp_server.endpoint in str(caught.value)
    with ocdbt_py.open(url, "a", single_writer=True, storage_options=options) as db:
        db["a"] = b"1"
        assert db["a"] == b"1"


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not tell a process's peak of memory")
def test_200_mib_go_and_come_in_64_mib_of_memory_beside_them(sftp_server: Server) -> None:
    put_peak, read_peak = beside_the_data(sftp_server.url(), sftp_server.storage_options)
    assert put_peak <= 64 << 20
    assert read_peak <= 64 << 20


# --- places


@pytest.mark.parametrize(
    ("url", "options", "path", "shown"),
    [
        ("sftp://host/a/b", {}, "/a/b", "sftp://host/a/b"),
        ("ssh://host//a/./b/", {}, "/a/b", "sftp://host/a/b"),
        ("sftp://host:2222/a b%20c?d#e", {}, "/a b%20c?d#e", "sftp://host:2222/a b%20c?d#e"),
        ("sftp://user:s%40cret@host:22/a", {}, "/a", "sftp://host/a"),
        ("sftp://[::1]:23/a", {}, "/a", "sftp://[::1]:23/a"),
        ("sftp:///a", {"host": "host", "port": 24, "password": "s@cret"}, "/a", "sftp://host:24/a"),
        ("sftp://host", {}, "", "sftp://host"),
    ],
)
def test_a_place_on_a_server_is_named_without_connecting(
    url: str, options: dict[str, Any], path: str, shown: str
) -> None:
    place = resolve(url, storage_options=options)
    assert isinstance(place.storage, SFTPStorage)
    assert (place.path, place.url) == (path, shown)
    again = pickle.loads(pickle.dumps(place.storage))
    assert again == place.storage
    assert "cret" not in repr(again)


def test_user_and_password_of_a_url_are_the_servers() -> None:
    place = resolve("sftp://us%20er:s%40cret@host/a")
    assert isinstance(place.storage, SFTPStorage)
    options = place.storage._make[2]
    assert (options["username"], options["password"]) == ("us er", "s@cret")
    assert place.storage != resolve("sftp://another@host/a").storage


@pytest.mark.parametrize("url", ["sftp:///a", "sftp://host:x/a", "sftp://host/a/../b"])
def test_a_place_that_makes_no_sense_is_refused(url: str) -> None:
    with pytest.raises(InvalidArgumentError):
        resolve(url)


def _password(options: dict[str, Any]) -> None:
    del options["key_filename"]
    options["password"] = "s3cret"


def _no_credentials(options: dict[str, Any]) -> None:
    del options["key_filename"]


def _no_such_key(options: dict[str, Any]) -> None:
    options["key_filename"] += "-none"


def _only_known_servers(options: dict[str, Any]) -> None:
    options["host_key_policy"] = "reject"


@pytest.mark.parametrize(
    ("spoil", "kind", "expected"),
    [
        (_password, "credentials", "the credentials were refused"),
        (_no_credentials, "credentials", "no credentials were given or found"),
        (_no_such_key, "credentials", "the file with the key is not there"),
        (_only_known_servers, "host-key", "the server's key is not known"),
    ],
)
def test_a_server_that_lets_nobody_in_is_told_apart(
    sftp_server: Server, spoil: Callable[[dict[str, Any]], None], kind: str, expected: str
) -> None:
    options = dict(sftp_server.storage_options)
    spoil(options)
    place = resolve(sftp_server.url(), storage_options=options)
    with pytest.raises(StorageError, match=expected) as caught:
        place.storage.read(f"{place.path}/f")
    assert caught.value.kind == kind
    assert caught.value.__cause__ is not None
    assert "s3cret" not in str(caught.value)
