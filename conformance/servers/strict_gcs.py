"""A small, strict, in-memory server of Google Cloud Storage's JSON API.

The emulators that can be installed ignore some preconditions. This one refuses a write unless every precondition holds,
and decides and stores under one lock.

    strict_gcs.py --port 0 --buckets test --forbidden closed          prints the URL it listens on

Served: buckets (make, get, list, delete); uploads (media, multipart, resumable with continuation); get of metadata and,
with Range, of media; list (prefix, delimiter, startOffset, endOffset, maxResults, pageToken); delete; rewriteTo and
copyTo of whole objects; ifGenerationMatch and ifGenerationNotMatch on all of them. A bearer token ``refused`` is a
wrong one (401), and whatever is in a forbidden bucket is out of reach (403).
"""

from __future__ import annotations

import argparse
import base64
import functools
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

LOCALHOST = "127.0.0.1"
REFUSED_TOKEN = "refused"
CHECKSUMMED_BYTES = 1 << 16
"""CRC-32C in Python is slow: larger objects have only an MD5."""

CHUNK_UNIT = 256 << 10
"""Chunks of a resumable upload are a multiple of this, but for the last."""

Query = Mapping[str, str]
Json = dict[str, Any]
Headers = Sequence[tuple[str, str]]


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


CRC_TABLE = _crc_table()


def crc32c(data: bytes) -> str:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ CRC_TABLE[(crc ^ byte) & 255]
    return base64.b64encode((crc ^ 0xFFFFFFFF).to_bytes(4, "big")).decode()


class Failure(Exception):
    """An answer with an error code."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


@dataclass(frozen=True)
class Blob:
    """One generation of an object."""

    data: bytes
    generation: int
    content_type: str
    metadata: Json
    time: float = field(default_factory=time.time)

    @functools.cached_property
    def md5(self) -> str:
        return base64.b64encode(hashlib.md5(self.data).digest()).decode()

    @property
    def etag(self) -> str:
        return f"CK{self.generation}="

    def resource(self, bucket: str, name: str) -> Json:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(self.time)) + f".{int(self.time % 1 * 1000):03}Z"
        found = {
            "kind": "storage#object",
            "id": f"{bucket}/{name}/{self.generation}",
            "name": name,
            "bucket": bucket,
            "generation": str(self.generation),
            "metageneration": "1",
            "size": str(len(self.data)),
            "contentType": self.content_type,
            "md5Hash": self.md5,
            "etag": self.etag,
            "timeCreated": moment,
            "updated": moment,
            "storageClass": "STANDARD",
            "metadata": self.metadata,
        }
        if len(self.data) <= CHECKSUMMED_BYTES:
            found["crc32c"] = crc32c(self.data)
        return found

    def headers(self) -> Headers:
        return [
            ("X-Goog-Generation", str(self.generation)),
            ("X-Goog-Metageneration", "1"),
            ("ETag", f'"{self.etag}"'),
            ("X-Goog-Hash", f"md5={self.md5}"),
            ("X-Goog-Stored-Content-Length", str(len(self.data))),
            ("Cache-Control", "no-cache"),
        ]


@dataclass
class Upload:
    """A resumable upload that has begun, and is remembered when its object was made: an answer may be lost."""

    bucket: str
    name: str
    query: Query
    meta: Json
    data: bytearray = field(default_factory=bytearray)
    made: Blob | None = None


class Store:
    """All buckets. What is decided and done about an object is one step under ``lock``."""

    def __init__(self, buckets: Iterable[str], forbidden: Iterable[str] = ()) -> None:
        self.lock = threading.RLock()
        self.buckets: dict[str, dict[str, Blob]] = {name: {} for name in buckets}
        self.forbidden = frozenset(forbidden)
        self.uploads: dict[str, Upload] = {}
        self._generation = 0

    def next_generation(self) -> int:
        self._generation = max(self._generation + 1, int(time.time() * 1e6))
        return self._generation

    def bucket(self, name: str) -> dict[str, Blob]:
        if name in self.forbidden:
            raise Failure(403, "forbidden")
        if name not in self.buckets:
            raise Failure(404, "The specified bucket does not exist.")
        return self.buckets[name]

    @staticmethod
    def check(blob: Blob | None, query: Query, *, reading: bool = False) -> None:
        generation = blob.generation if blob else 0
        if int(query.get("ifGenerationMatch", generation)) != generation:
            raise Failure(412, "conditionNotMet")
        if int(query.get("ifGenerationNotMatch", -1)) == generation:
            raise Failure(304 if reading else 412, "conditionNotMet")
        if "ifMetagenerationMatch" in query and (blob is None or query["ifMetagenerationMatch"] != "1"):
            raise Failure(412, "conditionNotMet")

    def put(self, bucket: str, name: str, data: bytes, query: Query, meta: Json) -> Blob:
        if not name or len(name.encode()) > 1024 or "\r" in name or "\n" in name:
            raise Failure(400, "invalid object name")
        with self.lock:
            blobs = self.bucket(bucket)
            self.check(blobs.get(name), query)
            content_type = meta.get("contentType") or "application/octet-stream"
            blob = blobs[name] = Blob(data, self.next_generation(), content_type, meta.get("metadata", {}))
            return blob

    def get(self, bucket: str, name: str, query: Query) -> Blob:
        with self.lock:
            blob = self.bucket(bucket).get(name)
            if blob and int(query.get("generation", blob.generation)) != blob.generation:
                blob = None
            if blob is None and "ifGenerationMatch" not in query:
                raise Failure(404, "notFound")
            self.check(blob, query, reading=True)
            if blob is None:
                raise Failure(404, "notFound")
            return blob

    def delete(self, bucket: str, name: str, query: Query) -> None:
        with self.lock:
            blobs = self.bucket(bucket)
            if name not in blobs:
                raise Failure(404, "notFound")
            self.check(blobs[name], query)
            del blobs[name]

    def page(self, bucket: str, query: Query) -> Json:
        with self.lock:
            blobs = sorted(self.bucket(bucket).items(), key=lambda item: item[0].encode())
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        start, end = query.get("startOffset", "").encode(), query.get("endOffset", "").encode()
        after, most = query.get("pageToken", ""), int(query.get("maxResults") or 1000)
        items: list[Json] = []
        prefixes: list[str] = []
        last = ""
        for name, blob in blobs:
            if not name.startswith(prefix) or name.encode() < start or (end and name.encode() >= end):
                continue
            head, found, _ = name[len(prefix) :].partition(delimiter) if delimiter else (name, "", "")
            key = prefix + head + delimiter if found else name
            if key in prefixes or (after and key.encode() <= after.encode()):
                continue
            if len(items) + len(prefixes) >= most:
                return {"kind": "storage#objects", "items": items, "prefixes": prefixes, "nextPageToken": last}
            last = key
            if found:
                prefixes.append(key)
            else:
                items.append(blob.resource(bucket, name))
        return {"kind": "storage#objects", "items": items, "prefixes": prefixes}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # a small answer is one packet, and waits for no acknowledgement
    disable_nagle_algorithm = True
    store: ClassVar[Store]

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        whole = bytearray()
        while size := int(self.rfile.readline().split(b";")[0], 16):
            whole += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return bytes(whole)

    def reply(self, code: int, body: bytes | memoryview | Json = b"", headers: Headers = (), kind: str = "") -> None:
        content = json.dumps(body).encode() if isinstance(body, dict) else body
        self.send_response(code)
        for name, value in headers:
            self.send_header(name, value)
        if code not in (204, 304):
            self.send_header("Content-Type", kind or "application/json; charset=UTF-8")
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD" and code not in (204, 304):
            self.wfile.write(content)

    def answer(self) -> None:
        data = self.body()
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        try:
            if self.headers.get("Authorization", "").endswith(REFUSED_TOKEN):
                raise Failure(401, "authError")
            self.route(url.path, query, data)
        except Failure as failure:
            errors = [{"reason": failure.reason, "message": failure.reason}]
            self.reply(failure.code, {"error": {"code": failure.code, "message": failure.reason, "errors": errors}})
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        except Exception as error:  # a mistake in here must be seen
            self.reply(500, {"error": {"code": 500, "message": repr(error)}})

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = answer

    def route(self, path: str, query: Query, data: bytes) -> None:
        if path == "/":
            return self.reply(200, {"ok": True})
        if found := re.fullmatch(r"/(?:resumable/)?upload/storage/v1/b/([^/]+)/o", path):
            return self.upload(unquote(found[1]), query, data)
        path = re.sub(r"^/(download/)?storage/v1", "", path)
        if path == "/b":
            return self.all_buckets(data)
        if found := re.fullmatch(r"/b/([^/]+)", path):
            return self.one_bucket(unquote(found[1]))
        if (found := re.fullmatch(r"/b/([^/]+)/o", path)) and self.command == "GET":
            return self.reply(200, self.store.page(unquote(found[1]), query))
        if found := re.fullmatch(r"/b/([^/]+)/o/([^/]+)/(rewriteTo|copyTo)/b/([^/]+)/o/([^/]+)", path):
            return self.copy([unquote(part) for part in found.groups()], query)
        if found := re.fullmatch(r"/b/([^/]+)/o/([^/]+)", path):
            return self.one_object(unquote(found[1]), unquote(found[2]), query)
        raise Failure(404, "no such route")

    def all_buckets(self, data: bytes) -> None:
        with self.store.lock:
            if self.command == "POST":
                name = json.loads(data)["name"]
                if name in self.store.buckets:
                    raise Failure(409, "conflict")
                self.store.buckets[name] = {}
                return self.reply(200, {"kind": "storage#bucket", "id": name, "name": name})
            items = [{"id": name, "name": name} for name in sorted(self.store.buckets)]
        return self.reply(200, {"kind": "storage#buckets", "items": items})

    def one_bucket(self, name: str) -> None:
        with self.store.lock:
            blobs = self.store.bucket(name)
            if self.command != "DELETE":
                return self.reply(200, {"kind": "storage#bucket", "id": name, "name": name, "location": "US"})
            if blobs:
                raise Failure(409, "the bucket is not empty")
            del self.store.buckets[name]
        return self.reply(204)

    def copy(self, names: Sequence[str], query: Query) -> None:
        bucket, name, how, to_bucket, to_name = names
        source = self.store.get(bucket, name, {})
        meta = {"contentType": source.content_type, "metadata": source.metadata}
        resource = self.store.put(to_bucket, to_name, source.data, query, meta).resource(to_bucket, to_name)
        if how == "copyTo":
            return self.reply(200, resource)
        size = str(len(source.data))
        rewritten = {"kind": "storage#rewriteResponse", "done": True, "resource": resource}
        return self.reply(200, {**rewritten, "totalBytesRewritten": size, "objectSize": size})

    def one_object(self, bucket: str, name: str, query: Query) -> None:
        if self.command == "DELETE":
            self.store.delete(bucket, name, query)
            return self.reply(204)
        blob = self.store.get(bucket, name, query)
        headers = blob.headers()
        if query.get("alt") != "media":
            return self.reply(200, blob.resource(bucket, name), headers)
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "").strip())
        whole = len(blob.data)
        malformed = not asked or not (asked[1] or asked[2]) or (asked[1] and asked[2] and int(asked[2]) < int(asked[1]))
        if asked is None or malformed:  # which is as if none had been asked for
            return self.reply(200, blob.data, headers, blob.content_type)
        if asked[1]:
            start, stop = int(asked[1]), min(int(asked[2]) + 1, whole) if asked[2] else whole
        else:
            start, stop = max(0, whole - int(asked[2])), whole
        if start >= whole:
            return self.reply(416, b"", [*headers, ("Content-Range", f"bytes */{whole}")])
        headers = [*headers, ("Content-Range", f"bytes {start}-{stop - 1}/{whole}")]
        return self.reply(206, memoryview(blob.data)[start:stop], headers, blob.content_type)

    def upload(self, bucket: str, query: Query, data: bytes) -> None:
        if "upload_id" in query:
            return self.resume(query["upload_id"], data)
        self.store.bucket(bucket)
        kind = query.get("uploadType")
        if kind == "resumable":
            return self.begin(bucket, query, json.loads(data) if data else {})
        if kind == "media":
            name, meta, payload = query.get("name", ""), {"contentType": self.headers.get("Content-Type")}, data
        elif kind == "multipart":
            meta, payload = self.two_parts(data)
            name = meta.get("name") or query.get("name", "")
        else:
            raise Failure(400, "no such uploadType")
        return self.reply(200, self.store.put(bucket, name, payload, query, meta).resource(bucket, name))

    def two_parts(self, data: bytes) -> tuple[Json, bytes]:
        """The JSON and the content of a multipart body. GCS takes bare line feeds as well."""
        boundary = re.search(r'boundary="?([^";]+)"?', self.headers.get("Content-Type", ""))
        pieces = data.split(b"--" + boundary[1].encode()) if boundary else []
        if len(pieces) < 4:
            raise Failure(400, "malformed multipart body")
        parts = []
        for piece in pieces[1:3]:
            piece = piece.removeprefix(b"\r\n") if piece.startswith(b"\r\n") else piece.removeprefix(b"\n")
            head, _, content = piece.partition(b"\r\n\r\n" if b"\r\n\r\n" in piece[:512] else b"\n\n")
            content = content.removesuffix(b"\r\n") if content.endswith(b"\r\n") else content.removesuffix(b"\n")
            parts.append((BytesParser().parsebytes(head + b"\n\n"), content))
        meta: Json = json.loads(parts[0][1])
        meta.setdefault("contentType", parts[1][0].get("Content-Type"))
        return meta, parts[1][1]

    def begin(self, bucket: str, query: Query, meta: Json) -> None:
        name = meta.get("name") or query.get("name", "")
        with self.store.lock:  # refused at once, and decided again at the end
            self.store.check(self.store.bucket(bucket).get(name), query)
            upload = hashlib.md5(b"%d" % self.store.next_generation()).hexdigest()
            self.store.uploads[upload] = Upload(bucket, name, query, meta)
        place = f"http://{self.headers['Host']}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={upload}"
        return self.reply(200, b"", [("Location", place), ("X-GUploader-UploadID", upload)])

    def resume(self, name: str, data: bytes) -> None:
        with self.store.lock:
            upload = self.store.uploads.get(name)
            if upload is None:
                raise Failure(404, "no such upload")
            if self.command == "DELETE":
                del self.store.uploads[name]
                return self.reply(499)
            if upload.made is not None:
                return self.reply(200, upload.made.resource(upload.bucket, upload.name))
            whole = f"bytes 0-{len(data) - 1}/{len(data)}" if data else "bytes */0"
            found = re.fullmatch(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)", self.headers.get("Content-Range", whole))
            if not found:
                raise Failure(400, "malformed Content-Range")
            if data:
                first = int(found[1] or 0)
                if first > len(upload.data):
                    raise Failure(503, "a chunk is missing")
                upload.data[first:] = data
            total = None if found[3] == "*" else int(found[3])
            if total is None or len(upload.data) < total:
                if total is None and len(data) % CHUNK_UNIT:
                    raise Failure(400, f"a chunk is a multiple of {CHUNK_UNIT} bytes")
                have = [("Range", f"bytes=0-{len(upload.data) - 1}")] if upload.data else []
                return self.reply(308, b"", have)
            blob = self.store.put(upload.bucket, upload.name, bytes(upload.data), upload.query, upload.meta)
            upload.made, upload.data = blob, bytearray()
        return self.reply(200, blob.resource(upload.bucket, upload.name))


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--buckets", default="", help="comma-separated: buckets that are there from the start")
    parser.add_argument("--forbidden", default="", help="comma-separated: buckets that nobody may enter")
    given = parser.parse_args()
    Handler.store = Store(filter(None, given.buckets.split(",")), filter(None, given.forbidden.split(",")))
    server = Server((LOCALHOST, given.port), Handler)
    print(f"http://{LOCALHOST}:{server.server_address[1]}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
