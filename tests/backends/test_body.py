"""Bodies of uploads are cut and read without being joined."""

from __future__ import annotations

import asyncio
import io
import os
from typing import Any

from ocdbt_py_backends.body import Body


def test_a_body_is_cut_and_read_without_being_joined() -> None:
    data = os.urandom(1000)
    body = Body([data[:300], b"", memoryview(data)[300:301], bytearray(data[301:])])
    assert (len(body), body.joined()) == (1000, data)
    assert [len(piece) for piece in body.pieces(250)] == [250, 50, 1, 250, 250, 199]
    assert b"".join(body.pieces(250)) == data
    parts = list(body.parts(300))
    assert [len(part) for part in parts] == [300, 300, 300, 100]
    assert b"".join(part.joined() for part in parts) == data
    assert list(Body([]).parts(10)) == []


def test_the_reader_of_a_body_reads_and_seeks_as_a_file_does() -> None:
    data = os.urandom(1000)
    reader: Any = Body([data[:300], data[300:301], data[301:]]).reader()
    plain = io.BytesIO(data)
    for size in (0, 1, 298, 5, 700, 10, 1):
        assert reader.read(size) == plain.read(size)
    for offset, whence in [(0, 0), (299, 0), (-10, 2), (5, 0), (3, 1), (0, 2), (2000, 0)]:
        assert reader.seek(offset, whence) == plain.seek(offset, whence)
        assert reader.tell() == plain.tell()
        assert reader.read(4) == plain.read(4)
    reader.seek(0)
    assert reader.read() == data
    assert reader.read(-1) == b""
    assert len(reader) == 1000


def test_what_sends_a_body_again_gets_all_of_it_again() -> None:
    data = os.urandom(600 << 10)
    reader = Body([data[:1000], data[1000:]]).reader()

    async def sent() -> list[bytes]:
        return [bytes(piece) async for piece in reader]

    reader.read(7)
    first = asyncio.run(sent())
    assert b"".join(first) == data
    assert max(map(len, first)) <= 256 << 10
    assert asyncio.run(sent()) == first


def test_short_buffers_are_sent_together() -> None:
    values = [bytes([i]) * 1000 for i in range(100)]
    pieces = list(Body([*values, bytes(200_000), *values]).pieces(90_000))
    assert b"".join(pieces) == b"".join([*values, bytes(200_000), *values])
    assert [len(piece) for piece in pieces] == [65_000 + 25_000, 10_000, 90_000, 90_000, 20_000, 90_000, 10_000]
