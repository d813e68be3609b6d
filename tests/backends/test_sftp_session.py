"""The conversation with an SFTP server that is slow of speech: answers cut, out of order, short, or nonsense."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable

import pytest

from ocdbt_py_backends import sftp_conversation, sftp_session
from ocdbt_py_backends.body import Body
from ocdbt_py_backends.sftp_conversation import Refused
from ocdbt_py_backends.sftp_packets import Lost
from ocdbt_py_backends.sftp_session import Session

INIT, VERSION, OPEN, CLOSE, READ, WRITE, STAT, REMOVE = 1, 2, 3, 4, 5, 6, 17, 13
STATUS, HANDLE, DATA, ATTRS = 101, 102, 103, 105
OK, EOF, FAILURE = 0, 1, 4


class Server:
    """A channel with a server behind it that has one file, gives ``piece`` bytes a receive, and at most ``most`` bytes
    a read. It answers when the client waits, in the order that ``order`` makes of what is due.
    """

    def __init__(self, piece: int = 7, most: int = 1 << 20) -> None:
        self.content = bytearray()
        self.piece, self.most = piece, most
        self.order: Callable[[list[bytes]], list[bytes]] = list
        self.due: list[bytes] = []
        self.most_due = 0
        self.closed = False
        self._asked = b""
        self._answers = b""

    def send(self, data: memoryview) -> int:
        sent = bytes(data[: self.piece])
        self._asked += sent
        while len(self._asked) >= 4 and len(self._asked) >= 4 + (length := struct.unpack(">I", self._asked[:4])[0]):
            self._take(self._asked[4 : 4 + length])
            self._asked = self._asked[4 + length :]
        return len(sent)

    def recv(self, size: int) -> bytes:
        if not self._answers:
            self.most_due = max(self.most_due, len(self.due))
            self._answers = b"".join(self.order(self.due))
            self.due = []
        taken, self._answers = self._answers[: self.piece], self._answers[self.piece :]
        return taken

    def close(self) -> None:
        self.closed = True

    def answer(self, kind: int, request: int, content: bytes) -> None:
        self.due.append(struct.pack(">IBI", 5 + len(content), kind, request) + content)

    def status(self, request: int, code: int) -> None:
        self.answer(STATUS, request, struct.pack(">II", code, 0) + struct.pack(">I", 0))

    def _take(self, packet: bytes) -> None:
        kind, number = struct.unpack(">BI", packet[:5])
        rest = packet[5:]
        match kind:
            case k if k == INIT:
                names = b"".join(struct.pack(">I", len(text)) + text for text in (b"some@one", b"1"))
                self.due.append(struct.pack(">IBI", 5 + len(names), VERSION, 3) + names)
            case k if k == OPEN:
                self.answer(HANDLE, number, struct.pack(">I", 1) + b"h")
            case k if k == READ:
                offset, size = struct.unpack(">QI", rest[5:])
                data = self.content[offset : offset + min(size, self.most)]
                if data:
                    self.answer(DATA, number, struct.pack(">I", len(data)) + data)
                else:
                    self.status(number, EOF)
            case k if k == WRITE:
                (offset,) = struct.unpack(">Q", rest[5:13])
                written = rest[17:]
                self.content[offset : offset + len(written)] = written
                self.status(number, OK)
            case k if k == REMOVE:
                self.status(number, FAILURE)
            case k if k == STAT:
                self.answer(ATTRS, number, struct.pack(">IQ", 1, len(self.content)))
            case _:
                self.status(number, OK)


@pytest.fixture
def server() -> Server:
    return Server()


def test_the_greeting_tells_what_the_server_can(server: Server) -> None:
    session = Session(server)
    assert session.extensions == {b"some@one": b"1"}
    assert not session.can_sync
    assert not session.can_replace
    assert session.free_bytes("/") is None


@pytest.mark.parametrize("order", [list, lambda due: due[::-1]], ids=["in order", "backwards"])
@pytest.mark.parametrize("most", [1 << 20, 1000], ids=["whole", "short"])
def test_reads_come_together_in_whatever_order_and_pieces(
    monkeypatch: pytest.MonkeyPatch, order: Callable[[list[bytes]], list[bytes]], most: int
) -> None:
    monkeypatch.setattr(sftp_conversation, "_LEAST_REQUEST", 3000)
    server = Server(piece=777, most=most)
    server.order = order
    server.content += os.urandom(50_000)
    session = Session(server)
    handle = session.open("/f")
    target = bytearray(40_000)
    places = [(handle, 100, memoryview(target)[:39_000]), (handle, 7, memoryview(target)[39_000:])]
    assert session.read_into(places) == [39_000, 1000]
    assert target == server.content[100:39_100] + server.content[7:1007]
    assert server.most_due > 5
    assert session.read_into([(handle, 49_990, memoryview(bytearray(100)))]) == [10]
    assert session.read_into([(handle, 60_000, memoryview(bytearray(100)))]) == [0]


def test_reads_are_asked_for_together_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sftp_conversation, "_LEAST_REQUEST", 1000)
    monkeypatch.setattr(sftp_session, "ASKED_BYTES", 10_000)
    server = Server(piece=5000)
    server.content += os.urandom(50_500)
    session = Session(server)
    target = bytearray(50_500)
    assert session.read_into([(session.open("/f"), 0, memoryview(target))]) == [50_500]
    assert target == server.content
    assert 5 <= server.most_due <= 11


def test_writes_go_out_together_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sftp_conversation, "_LEAST_REQUEST", 1000)
    monkeypatch.setattr(sftp_session, "IN_FLIGHT_BYTES", 10_000)
    server = Server(piece=5000)
    session = Session(server)
    data = os.urandom(50_500)
    session.write(session.open_for_writing("/f", new=True), 0, Body([data[:7], data[7:2000], data[2000:]]))
    assert server.content == data
    assert 5 <= server.most_due <= 11


def test_an_answer_that_nobody_waits_for_any_more_is_dropped(server: Server) -> None:
    session = Session(server)
    server.content += b"content"
    handle = session.open("/f")
    session._ask_read(handle, 0, memoryview(bytearray(7)))
    session.begin()
    session.close_handle(handle)
    assert session.stat("/f").size == 7
    assert session._answers == {}


def test_each_request_has_its_own_error(server: Server) -> None:
    session = Session(server)
    errors = session.remove(["/f", "/g"])
    assert [error.code for error in errors if isinstance(error, Refused)] == [FAILURE, FAILURE]
    assert session.alive


def nothing(due: list[bytes]) -> list[bytes]:
    return []


def too_long(due: list[bytes]) -> list[bytes]:
    return [struct.pack(">IBI", 1 << 31, DATA, 2)]


def another_kind(due: list[bytes]) -> list[bytes]:
    return [struct.pack(">IBI", 5 + 5, HANDLE, 2) + struct.pack(">I", 1) + b"h"]


def cut_off(due: list[bytes]) -> list[bytes]:
    return [struct.pack(">IBI", 5 + 4, ATTRS, 2) + struct.pack(">I", 1)]


@pytest.mark.parametrize("order", [nothing, too_long, another_kind, cut_off])
def test_a_conversation_that_makes_no_sense_is_lost(
    server: Server, order: Callable[[list[bytes]], list[bytes]]
) -> None:
    session = Session(server)
    session.open("/f")
    server.order = order
    with pytest.raises(Lost):
        session.stat("/f")


def test_after_an_interrupt_a_session_is_not_used_again(server: Server) -> None:
    session = Session(server)

    def interrupt(due: list[bytes]) -> list[bytes]:
        raise KeyboardInterrupt

    server.order = interrupt
    with pytest.raises(KeyboardInterrupt):
        session.stat("/f")
    assert not session.usable
    assert server.closed
