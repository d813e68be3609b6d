"""Proxies on loopback that do to a server's traffic what networks do, at random but with a seed.

:class:`HTTPProxy` decides about each request, :class:`TCPProxy` about each piece of any stream. They run in a
thread of the tests' own process, so that a test can count what was done and switch it off.
"""

from __future__ import annotations

import asyncio
import random
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

LOCALHOST = "127.0.0.1"
HEAD_BYTES = 1 << 20
PIECE_BYTES = 1 << 16
LONGEST_DELAY = 0.1
STATUSES = (500, 503, 429)

PASS = "pass"
DELAY = "delay"
"""Pass it on after a while."""
REFUSE = "refuse"
"""Answer with one of :data:`STATUSES`, and do not pass it on."""
DROP = "drop"
"""Close the connection and do not pass it on."""
CUT = "cut"
"""Pass it on, and close the connection in the middle of the answer."""
LOSE = "lose"
"""Pass it on, and close the connection instead of answering."""

RATES: Mapping[str, float] = {DELAY: 0.05, REFUSE: 0.04, DROP: 0.02, CUT: 0.02, LOSE: 0.03}
NO_FAULTS: Mapping[str, float] = {}


@dataclass
class Request:
    """The head of an HTTP request, to be changed at will, and its body."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes = b""

    @property
    def applies(self) -> bool:
        """Whether it changes anything."""
        return self.method not in ("GET", "HEAD")

    def without_headers(self, *names: str) -> Request:
        kept = [(name, value) for name, value in self.headers if name.lower() not in names]
        return Request(self.method, self.target, kept, self.body)

    def encoded(self) -> bytes:
        return _head(f"{self.method} {self.target} HTTP/1.1", self.headers) + self.body


@dataclass
class Answer:
    """The bytes of an HTTP answer, where its body begins, and whether the connection ends with it."""

    status: int
    whole: bytes
    body_at: int
    last: bool = field(default=False)


class Proxy(ABC):
    """``with`` it, it listens at ``port`` and passes on to ``target``, ``host:port`` or ``http://host:port``.

    ``rates`` maps a fault to its probability and may be replaced at any time; ``counts`` has what was done so far.
    """

    def __init__(self, target: str, *, seed: int = 0, rates: Mapping[str, float] = RATES) -> None:
        self.rates = rates
        self.counts: Counter[str] = Counter()
        self._scheme = "http://" if target.startswith("http://") else ""
        self._host, _, port = target.removeprefix(self._scheme).rpartition(":")
        self._target_port = int(port)
        self._random = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._done.set)
        self._thread.join()

    @property
    def endpoint(self) -> str:
        """Where the proxy itself listens, spelled as the target is."""
        return f"{self._scheme}{LOCALHOST}:{self.port}"

    @abstractmethod
    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Deal with one connection."""

    def choose(self) -> str:
        chosen = self._random.random()
        for fault, rate in self.rates.items():
            chosen -= rate
            if chosen < 0:
                return fault
        return PASS

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(self._host, self._target_port, limit=HEAD_BYTES)

    async def delay(self) -> None:
        await asyncio.sleep(self._random.uniform(0, LONGEST_DELAY))

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._listen())

    async def _listen(self) -> None:
        self._done = asyncio.Event()
        server = await asyncio.start_server(self._connected, LOCALHOST, 0, limit=HEAD_BYTES, backlog=200)
        self.port: int = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._done.wait()
        server.close()
        # the runner cancels what still serves a connection

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            # Either side may end a connection at any moment; that is what this is about.
            with suppress(OSError, EOFError, asyncio.CancelledError):
                await self.serve(reader, writer)
        finally:
            writer.transport.abort()


class HTTPProxy(Proxy):
    """In front of an HTTP server. ``rewrite`` may change a request before it is passed on, or answer it (a status)."""

    def __init__(
        self,
        target: str,
        *,
        seed: int = 0,
        rates: Mapping[str, float] = RATES,
        rewrite: Callable[[Request], Request | int] = lambda request: request,
    ) -> None:
        super().__init__(target, seed=seed, rates=rates)
        self._rewrite = rewrite

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            request = await self._request(reader, writer)
            fault = self.choose()
            self.counts[f"{fault} a write" if request.applies else fault] += 1
            if fault == DROP:
                return
            if fault == DELAY:
                await self.delay()
            rewritten = self._random.choice(STATUSES) if fault == REFUSE else self._rewrite(request)
            answer = _refusal(rewritten) if isinstance(rewritten, int) else await self._pass_on(rewritten)
            if fault == LOSE:
                return
            if fault == CUT:
                writer.write(answer.whole[: (answer.body_at + len(answer.whole)) // 2 - 1])
                await writer.drain()
                writer.close()  # what was written still arrives
                await writer.wait_closed()
                return
            writer.write(answer.whole)
            await writer.drain()
            if answer.last:
                writer.close()
                await writer.wait_closed()
                return

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request:
        first, headers, _ = await _read_head(reader)
        method, target, _ = first.split(" ")
        request = Request(method, target, headers)
        if _value(headers, "expect"):
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request = request.without_headers("expect")
        request.body = await _read_body(reader, headers) or b""
        return request

    async def _pass_on(self, request: Request) -> Answer:
        reader, writer = await self.connect()
        try:
            writer.write(request.encoded())
            await writer.drain()
            first, headers, head = await _read_head(reader)
            status = int(first.split(" ")[1])
            if request.method == "HEAD" or status in (204, 304):
                return Answer(status, head, len(head))
            body = await _read_body(reader, headers)
            if body is None:
                return Answer(status, head + await reader.read(), len(head), last=True)
            return Answer(status, head + body, len(head), last=_value(headers, "connection").lower() == "close")
        finally:
            writer.transport.abort()


class TCPProxy(Proxy):
    """In front of any server: what comes from the client at once is decided about as one."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await self.connect()
        back = asyncio.create_task(_pump(from_server, writer))
        try:
            while piece := await reader.read(PIECE_BYTES):
                fault = self.choose()
                self.counts[fault] += 1
                if fault == DROP:
                    return
                if fault == DELAY:
                    await self.delay()
                if fault == LOSE:
                    back.cancel()  # nothing goes back any more
                to_server.write(piece)
                await to_server.drain()
                if fault == LOSE:
                    to_server.write_eof()  # and what went there is still read
                    await asyncio.sleep(LONGEST_DELAY)
                    return
        finally:
            back.cancel()
            to_server.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while piece := await reader.read(PIECE_BYTES):
            writer.write(piece)
            await writer.drain()
    writer.transport.abort()


def _head(first: str, headers: list[tuple[str, str]]) -> bytes:
    lines = [first, *(f"{name}: {value}" for name, value in headers)]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _value(headers: list[tuple[str, str]], wanted: str) -> str:
    return next((value for name, value in headers if name.lower() == wanted), "")


async def _read_head(reader: asyncio.StreamReader) -> tuple[str, list[tuple[str, str]], bytes]:
    """The first line, the headers, and the bytes of both."""
    whole = await reader.readuntil(b"\r\n\r\n")
    first, *lines = whole.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    return first, [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)], whole


async def _read_body(reader: asyncio.StreamReader, headers: list[tuple[str, str]]) -> bytes | None:
    """The body as it is on the wire; None where no header says how long it is."""
    if "chunked" in _value(headers, "transfer-encoding").lower():
        whole = bytearray()
        while True:
            line = await reader.readuntil(b"\r\n")
            whole += line
            size = int(line.split(b";")[0], 16)
            if not size:
                break
            whole += await reader.readexactly(size + 2)
        while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
            whole += line
        return bytes(whole + line)
    length = _value(headers, "content-length")
    return await reader.readexactly(int(length)) if length else None


def _refusal(status: int) -> Answer:
    head = _head(f"HTTP/1.1 {status} Refused", [("Content-Length", "0")])
    return Answer(status, head, len(head))
