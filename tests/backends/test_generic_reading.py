"""Many ranges of a file in few requests, from filesystems where each costs much: an FTP server, an archive."""

from __future__ import annotations

import io
import threading
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.zip import ZipFileSystem
from fsspec.spec import AbstractFileSystem

from ocdbt_py.errors import CorruptDataError, PathNotFoundError, StorageError
from ocdbt_py.storage.protocol import Storage
from ocdbt_py_backends import generic_attempts, generic_reading
from ocdbt_py_backends.generic import GenericStorage

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # it uses asyncore
    from pyftpdlib.authorizers import DummyAuthorizer
    from pyftpdlib.handlers import DTPHandler, FTPHandler
    from pyftpdlib.ioloop import IOLoop
    from pyftpdlib.servers import FTPServer

MIB = 1 << 20
CONTENT = bytes(range(251)) * (24 * MIB // 251 + 1)


class Ftp:
    """A server that notes what it is asked for, and breaks connections while it sends."""

    def __init__(self, directory: Path) -> None:
        self.logins = 0
        self.transfers: list[int] = []
        """Where each began."""
        self.connections = 0
        self.breaks_after: int | None = None
        """A transfer, and the whole conversation, once it has sent so much."""
        outer = self

        class Sending(DTPHandler):  # type: ignore[misc]
            def __init__(self, *arguments: Any) -> None:
                super().__init__(*arguments)
                outer.connections += 1
                self.sent = 0

            def send(self, data: bytes) -> int:
                sent: int = super().send(data)
                self.sent += sent
                if outer.breaks_after is not None and self.sent >= outer.breaks_after:
                    self.cmd_channel.close()
                return sent

        class Talking(FTPHandler):  # type: ignore[misc]
            dtp_handler = Sending
            use_sendfile = False  # what is sent so is not seen

            def on_login(self, username: str) -> None:
                outer.logins += 1

            def ftp_RETR(self, file: str) -> Any:
                outer.transfers.append(self._restart_position)
                return super().ftp_RETR(file)

        Talking.authorizer = DummyAuthorizer()
        Talking.authorizer.add_user("user", "pass", str(directory), perm="elradfmw")
        self._server = FTPServer(("127.0.0.1", 0), Talking, ioloop=IOLoop())
        self.options = {"host": "127.0.0.1", "port": self._server.address[1], "username": "user", "password": "pass"}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while not self._stopping.is_set():
            self._server.serve_forever(timeout=0.02, blocking=False)
        self._server.close_all()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()


@pytest.fixture
def ftp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ftp]:
    monkeypatch.setattr(generic_attempts, "_FIRST_PAUSE", 0.0)
    (tmp_path / "file").write_bytes(CONTENT)
    server = Ftp(tmp_path)
    yield server
    server.stop()


@pytest.fixture
def storage(ftp: Ftp) -> Storage:
    return GenericStorage(fsspec.filesystem("ftp", skip_instance_cache=True, **ftp.options), "ftp://server")


def filled(storage: Storage, *ranges: tuple[int, int]) -> list[bytes]:
    buffers = [bytearray(stop - start) for start, stop in ranges]
    fillings = [("/file", start, memoryview(buffer)) for (start, _), buffer in zip(ranges, buffers, strict=True)]
    storage.read_many_into(fillings)
    return [bytes(buffer) for buffer in buffers]


def parts(*ranges: tuple[int, int]) -> list[bytes]:
    return [CONTENT[start:stop] for start, stop in ranges]


def test_ranges_that_follow_one_another_come_in_one_transfer(ftp: Ftp, storage: Storage) -> None:
    ranges = [(begin, begin + MIB) for begin in range(3 * MIB, 20 * MIB, MIB)]
    assert filled(storage, *ranges) == parts(*ranges)
    assert ftp.transfers == [3 * MIB]
    assert storage.read_many([("/file", *each) for each in ranges]) == parts(*ranges)
    assert filled(storage, (0, len(CONTENT))) == [CONTENT]
    assert ftp.transfers == [3 * MIB, 3 * MIB, 0]
    assert (ftp.connections, ftp.logins) == (3, 1)


def test_a_gap_is_received_and_a_wide_one_is_not(ftp: Ftp, storage: Storage) -> None:
    near = [(0, 100), (500_000, 500_100), (1_400_000, 1_500_000)]
    assert filled(storage, *near) == parts(*near)
    assert ftp.transfers == [0]
    wide = [(0, 100), (8 * MIB, 8 * MIB + 100)]
    assert filled(storage, *wide) == parts(*wide)
    assert ftp.transfers == [0, 0, 8 * MIB]
    assert ftp.logins == 1


def test_very_long_reads_let_others_have_a_turn(ftp: Ftp, storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generic_reading, "_TURN_BYTES", 10 * MIB)
    assert filled(storage, (1, len(CONTENT))) == [CONTENT[1:]]
    assert ftp.transfers == [1, 8 * MIB + 1, 16 * MIB + 1]


def test_after_a_transfer_was_stopped_the_conversation_goes_on(ftp: Ftp, storage: Storage) -> None:
    for start in (0, 5 * MIB, len(CONTENT) - 10):
        assert filled(storage, (start, start + 10)) == parts((start, start + 10))
        assert [each.size for each in storage.list("/")] == [len(CONTENT)]
        storage.put(f"/file {start}", [b"x"])
        storage.delete(f"/file {start}")
    assert ftp.logins == 1


def test_a_transfer_that_breaks_goes_on_where_it_broke(ftp: Ftp, storage: Storage) -> None:
    ftp.breaks_after = 5 * MIB
    assert filled(storage, (0, len(CONTENT))) == [CONTENT]
    assert ftp.transfers == [0, 4 * MIB, 8 * MIB, 12 * MIB, 16 * MIB, 20 * MIB]
    assert len(ftp.transfers) > generic_attempts.ATTEMPTS
    assert ftp.logins == len(ftp.transfers)


def test_a_server_that_gets_nowhere_is_given_up(ftp: Ftp, storage: Storage) -> None:
    ftp.breaks_after = MIB
    with pytest.raises(StorageError, match="the connection broke") as caught:
        filled(storage, (0, len(CONTENT)))
    assert caught.value.kind == "interrupted"
    assert ftp.transfers == [0] * generic_attempts.ATTEMPTS
    ftp.breaks_after = None
    assert filled(storage, (0, len(CONTENT))) == [CONTENT]


def test_a_file_that_is_too_short_or_not_there_is_named(ftp: Ftp, storage: Storage) -> None:
    size = len(CONTENT)
    for start, stop in ((0, size + 1), (size - 10, size + 10), (size + 5, size + 10)):
        with pytest.raises(CorruptDataError, match=f"ftp://server/file ends at byte {size}"):
            filled(storage, (start, stop))
        with pytest.raises(CorruptDataError, match=f"ends at byte {size}"):
            storage.read_many([("/file", start, stop)])
    with pytest.raises(PathNotFoundError, match="ftp://server/none"):
        storage.read_many([("/none", 0, 10)])
    assert filled(storage, (size - 10, size)) == [CONTENT[-10:]]
    assert ftp.logins == 1


def test_an_interrupted_transfer_leaves_no_answer_for_the_next_one(
    ftp: Ftp, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(generic_reading, "scatter", interrupted)
        with pytest.raises(KeyboardInterrupt):
            storage.read_many([("/file", 0, MIB), ("/file", 2 * MIB, 3 * MIB)])
    assert [each.size for each in storage.list("/")] == [len(CONTENT)]
    assert storage.read_many([("/file", MIB, MIB + 5)]) == [CONTENT[MIB : MIB + 5]]


def test_a_member_of_an_archive_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("file", CONTENT)
    fs = fsspec.filesystem("zip", fo=str(tmp_path / "a.zip"))
    opened: list[str] = []
    really_open = ZipFileSystem._open

    def noted(self: ZipFileSystem, path: str, *arguments: Any, **options: Any) -> Any:
        opened.append(path)
        return really_open(self, path, *arguments, **options)

    monkeypatch.setattr(ZipFileSystem, "_open", noted)
    ranges = [(5, 100), (1000, 9 * MIB), (10 * MIB, len(CONTENT))]
    assert storage_of(fs).read_many([("file", *each) for each in ranges]) == parts(*ranges)
    assert opened == ["file"]
    with pytest.raises(CorruptDataError, match="ends at byte"):
        storage_of(fs).read_many([("file", 0, len(CONTENT) + 1)])


def storage_of(fs: Any) -> Storage:
    return GenericStorage(fs, "archive://")


class Ranges(AbstractFileSystem):  # type: ignore[misc]
    """A filesystem with a way of its own to read a range; now and then the answer is cut."""

    protocol = "ranges"
    cachable = False

    def __init__(self, cut: int) -> None:
        super().__init__()
        self.cut = cut
        self.asked: list[tuple[int, int]] = []

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        return {"name": path, "type": "file", "size": len(CONTENT)}

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        assert start is not None
        assert end is not None
        type(self).cuts += 1
        self.asked.append((start, end))
        return CONTENT[start : end - (type(self).cuts <= self.cut)]

    cuts = 0

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        return io.BytesIO(b"another")


@pytest.mark.parametrize("cut", [0, 2, 100])
def test_a_filesystem_that_reads_ranges_itself_is_asked_for_them(cut: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generic_attempts, "_FIRST_PAUSE", 0.0)
    monkeypatch.setattr(Ranges, "cuts", 0)
    fs = Ranges(cut)
    if cut == 100:
        with pytest.raises(StorageError, match="cut short"):
            filled(storage_of(fs), (1, 9 * MIB))
        return
    assert filled(storage_of(fs), (1, 9 * MIB)) == parts((1, 9 * MIB))
    assert cut or fs.asked == [(1, 4 * MIB + 1), (4 * MIB + 1, 8 * MIB + 1), (8 * MIB + 1, 9 * MIB)]
