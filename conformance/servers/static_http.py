"""A web server that serves the files of a directory and lists nothing.

    static_http.py --port 0 --directory DIRECTORY          prints the URL it listens on

    with serving(directory, Manner(ranges=False)) as server:        in a thread of this process
        ... server.url ... server.log

GET and HEAD, with ranges, ETags and the time of the last change, and answers 304 to who has a file already. What it
does of that, :class:`Manner` says; every request is in the ``log``.
"""

from __future__ import annotations

import argparse
import gzip
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.utils import formatdate, parsedate_to_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO, cast
from urllib.parse import unquote_to_bytes

LOCALHOST = "127.0.0.1"
PIECE = 64 << 10


@dataclass
class Manner:
    """How a server behaves. ``statuses`` answers requests for a name with an error, ``redirects`` leads them to a URL.

    ``totals``: a range comes with the size of the file; ``longest``: it is cut to so many bytes, as a server may.
    ``lengths``: tells sizes, else sends bodies in chunks. ``zips``: compresses whole files, whatever was asked for.
    ``cuts``: so many answers break off in the middle of the body. ``demands``: the Authorization header to be sent.
    """

    ranges: bool = True
    totals: bool = True
    longest: int | None = None
    etags: bool = True
    times: bool = True
    lengths: bool = True
    zips: bool = False
    cuts: int = 0
    demands: str | None = None
    statuses: Mapping[str, int] = field(default_factory=dict)
    redirects: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """One request, and what came of it. ``name`` is the path without its first slash, decoded."""

    method: str
    name: str
    query: str
    headers: Mapping[str, str]
    status: int
    sent: int
    """Bytes of the body, as far as the connection took them."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = PIECE
    disable_nagle_algorithm = True

    @property
    def site(self) -> StaticServer:
        return cast(StaticServer, self.server)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        name = os.fsdecode(unquote_to_bytes(path)).removeprefix("/")
        status, self.sent = 500, 0
        self.site.begin()
        try:
            status, headers, body = self.answer(name)
            self.reply(status, headers, body)
        except ConnectionError:
            self.close_connection = True
        finally:
            request = Request(self.command, name, query, dict(self.headers.items()), status, self.sent)
            self.site.end(request)

    def answer(self, name: str) -> tuple[int, dict[str, str], memoryview]:
        """Status, headers and body; what is not there has no body."""
        manner = self.site.manner
        if name in manner.redirects:
            return 302, {"Location": manner.redirects[name]}, memoryview(b"")
        if manner.demands is not None and self.headers.get("Authorization") != manner.demands:
            return 401, {}, memoryview(b"")
        if name in manner.statuses:
            return manner.statuses[name], {}, memoryview(b"")
        file = self.site.directory / name
        if ".." in name.split("/") or not file.is_file():
            return 404, {}, memoryview(b"no such file")
        with file.open("rb") as opened:
            return self.answer_with(opened)

    def answer_with(self, file: BinaryIO) -> tuple[int, dict[str, str], memoryview]:
        manner = self.site.manner
        found = os.fstat(file.fileno())
        headers = {"Date": formatdate(usegmt=True), "Content-Type": "application/octet-stream"}
        etag = f'"{found.st_ino:x}-{found.st_mtime_ns:x}-{found.st_size:x}"'
        if manner.etags:
            headers["ETag"] = etag
            if self.headers.get("If-None-Match") == etag:
                return 304, headers, memoryview(b"")
        if manner.times:
            headers["Last-Modified"] = formatdate(int(found.st_mtime), usegmt=True)
            since = self.headers.get("If-Modified-Since")
            if since and "If-None-Match" not in self.headers and int(found.st_mtime) <= seconds(since):
                return 304, headers, memoryview(b"")
        if manner.zips:
            return 200, {**headers, "Content-Encoding": "gzip"}, memoryview(gzip.compress(file.read()))
        asked = re.fullmatch(r"bytes=([0-9]+)-([0-9]*)", self.headers.get("Range", ""))
        if manner.ranges:
            headers["Accept-Ranges"] = "bytes"
        if not asked or not manner.ranges:
            return 200, headers, memoryview(file.read())
        size = found.st_size
        start, stop = int(asked[1]), min(int(asked[2]) + 1 if asked[2] else size, size)
        if start >= size:
            return 416, {**headers, "Content-Range": f"bytes */{size}"}, memoryview(b"")
        stop = min(stop, start + (manner.longest or size))
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size if manner.totals else '*'}"
        file.seek(start)
        return 206, headers, memoryview(file.read(stop - start))

    def reply(self, status: int, headers: Mapping[str, str], body: memoryview) -> None:
        manner = self.site.manner
        has_body = status != 304
        chunked = has_body and not manner.lengths
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        elif has_body:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.flush()
        if self.command == "HEAD" or not has_body:
            return
        with self.site.changed:
            cut = manner.cuts > 0 and status < 300 and len(body) > 1
            manner.cuts -= cut
        for start in range(0, len(body) // 2 if cut else len(body), PIECE):
            piece = body[start : min(start + PIECE, len(body) // 2 if cut else len(body))]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), bytes(piece)) if chunked else piece)
            self.wfile.flush()
            self.sent += len(piece)
        if cut:
            self.close_connection = True
        elif chunked:
            self.wfile.write(b"0\r\n\r\n")


class StaticServer(ThreadingHTTPServer):
    """Serves ``directory``; ``manner`` may be changed at any time."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, directory: Path, manner: Manner, port: int = 0) -> None:
        super().__init__((LOCALHOST, port), Handler)
        self.directory = directory
        self.manner = manner
        self.log: list[Request] = []
        self.changed = threading.Condition()
        self._under_way = 0

    @property
    def url(self) -> str:
        return f"http://{LOCALHOST}:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is no error; anything else is seen in the log as a status 500."""

    def begin(self) -> None:
        with self.changed:
            self._under_way += 1

    def end(self, request: Request) -> None:
        with self.changed:
            self._under_way -= 1
            self.log.append(request)
            self.changed.notify_all()

    def served(self) -> list[Request]:
        """The log up to the last request that was answered, and begin a new one."""
        with self.changed:
            self.changed.wait_for(lambda: not self._under_way, timeout=30)
            found, self.log = self.log, []
        return found


def seconds(date: str) -> float:
    with suppress(ValueError):
        return parsedate_to_datetime(date).timestamp()
    return 0.0


@contextmanager
def serving(directory: Path, manner: Manner | None = None) -> Iterator[StaticServer]:
    """A server in a thread."""
    with StaticServer(directory, manner or Manner()) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--directory", type=Path, required=True)
    given = parser.parse_args()
    server = StaticServer(given.directory, Manner(), given.port)
    print(server.url, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
