"""Files behind any web server, which are only read: with the session and the options of fsspec's ``HTTPFileSystem``.

* **Names.** A path is ``host/a/b`` with the names as they are; in a URL they are percent-encoded, a slash excepted, so
  that ``%2F`` in a URL means a slash. The query of the place's URL goes with every request, as TensorStore's driver has
  it (tokens that sign a whole directory work so). It, and a user in the URL, are credentials, and shown nowhere.
* **Tokens.** The ETag; where there is none, the time of the last change and the size; where that is so recent that
  another change may have the same, or is not told either, a hash of what was read.
* **Ranges.** A server may ignore them. Then the wanted part is cut from the answer as it comes, and many ranges of one
  file are taken from one answer.

A web server lists nothing in a way one could rely on, and so nothing here lists.
"""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from bisect import bisect_left
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from email.utils import parsedate_to_datetime
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import Any, NoReturn
from urllib.parse import quote, unquote, unquote_to_bytes

import fsspec

from ocdbt_py.errors import (
    InvalidArgumentError,
    OcdbtError,
    PathNotFoundError,
    StorageError,
    StoragePermissionError,
    UnsupportedError,
)
from ocdbt_py.storage.coalesce import Fetch, fetches
from ocdbt_py.storage.location import Settings, safe_url
from ocdbt_py.storage.protocol import (
    UNCHANGED,
    ByteRange,
    Capabilities,
    Condition,
    Listed,
    Read,
    Token,
    Unchanged,
    Writer,
)
from ocdbt_py.storage.refusals import too_short
from ocdbt_py_backends.body import Body
from ocdbt_py_backends.event_loop import gather
from ocdbt_py_backends.object_requests import GAP, READ_BYTES, SLOTS, OutOfRange, Upload
from ocdbt_py_backends.object_store import ObjectStore

try:
    import aiohttp
    from yarl import URL

    from ocdbt_py_backends.web import PATIENCE, connection_failure, encoded
except ModuleNotFoundError as error:
    raise UnsupportedError(
        f'HTTP takes the package {error.name}, which is missing: pip install "ocdbt-py[http]"'
    ) from error

__all__ = ["HTTPStorage"]

_CONTENT_RANGE = re.compile(r"bytes ([0-9]+)-([0-9]+)/([0-9]+)")
_CHANGED = "Last-Modified"
_SETTLED = 2
"""So many seconds after a change, a second one has another time, where servers tell whole seconds."""

_CHUNK = 256 << 10
_VISIBLE = "".join(map(chr, range(0x21, 0x7F)))


class HTTPStorage(ObjectStore):
    """The files of web servers, by one scheme and with one query. Paths are ``host/name``, ``host:port/name``."""

    def __init__(self, fs: Any, scheme: str, query: str = "", authorization: str = "") -> None:
        super().__init__(fs)
        self._scheme = scheme
        self._query = query
        self._authorization = authorization
        self._has_ranges: bool | None = None  # as far as the answers have told

    @classmethod
    def from_url(cls, url: str, storage_options: Mapping[str, Any], settings: Settings) -> tuple[HTTPStorage, str]:
        """``storage_options`` are those of ``HTTPFileSystem``: ``client_kwargs``, ``headers``, ``auth``, ``ssl`` ...;
        ``settings`` mean nothing here.
        """
        return cls.from_fs(fsspec.filesystem("http", **storage_options), url, settings)

    @classmethod
    def from_fs(cls, fs: Any, path: str, settings: Settings) -> tuple[HTTPStorage, str]:
        scheme, separator, rest = path.partition("://")
        if not separator:
            raise InvalidArgumentError(
                f"{safe_url(path)!r} is no URL, which an HTTP filesystem takes: http://host/path"
            )
        rest, _, query = rest.partition("#")[0].partition("?")
        authority, _, name = rest.partition("/")
        user_info, _, authority = authority.rpartition("@")
        try:
            host = URL(f"{scheme}://{authority}/")
            if not host.raw_host:
                raise ValueError
            port = host.port
        except ValueError:
            # not its cause: a password with a slash in it looks like a port, which that quotes
            raise InvalidArgumentError(f"{safe_url(path)!r} names no host") from None
        place = f"[{host.raw_host}]" if ":" in host.raw_host else host.raw_host
        if not host.is_default_port():
            place += f":{port}"
        authorization = ""
        if user_info:
            user_info += "" if ":" in user_info else ":"
            authorization = "Basic " + b64encode(unquote_to_bytes(user_info)).decode()
        names = unquote(name, errors="surrogateescape").rstrip("/").split("/")
        place = "/".join([place, *_resolved(names)])
        return cls(fs, scheme.lower(), quote(query, safe=_VISIBLE), authorization), place

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(ranges=self._has_ranges is not False)

    def describe(self, path: str) -> str:
        host, slash, name = path.partition("/")
        return f"{self._scheme}://{host}{slash}{encoded(name, keep='/')}"

    def _identity(self) -> tuple[Any, ...]:
        return self._scheme, self._query

    # --- reading

    async def _get(self, path: str, start: int, stop: int | None, unless: Token | None) -> Read | Unchanged:
        headers = _condition(unless)
        if stop is None:  # what is read to its end is what may change: no cache on the way is to answer
            headers["Cache-Control"] = "no-cache"
        # also for a whole file: the answer tells whether there are ranges, before many are wanted
        ranged = {**headers, "Range": f"bytes={start}-{'' if stop is None else stop - 1}"}
        async with self._answer(path, ranged, also=(416,)) as answer:
            if answer.status == 304:
                return UNCHANGED
            if answer.status == 416 and start:
                raise OutOfRange
            found = await self._part(answer, start, stop)
        if found is None:
            async with self._answer(path, headers) as answer:
                if answer.status == 304:
                    return UNCHANGED
                found = await self._slice(answer, start, stop)
        return UNCHANGED if found.token == unless else found

    async def _part(self, answer: aiohttp.ClientResponse, start: int, stop: int | None) -> Read | None:
        """What was asked for as a range. None: that must be asked for in another way."""
        if answer.status == 200:
            # some do so only where all is asked for
            self._has_ranges = None if not start and answer.headers.get("Accept-Ranges") == "bytes" else False
            return await self._slice(answer, start, stop)
        place = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        if answer.status != 206 or place is None or "Content-Encoding" in answer.headers:
            return None  # no bytes, no size told, or a part of what the bytes were encoded to
        first, last, size = map(int, place.groups())
        if first != start or last + 1 < min(size, size if stop is None else stop):
            return None
        self._has_ranges = True
        data = await answer.read()
        return Read(data, _token(answer, data, start, size), size)

    async def _slice(self, answer: aiohttp.ClientResponse, start: int, stop: int | None) -> Read:
        """The same of an answer that has the whole file; no more of it is read than need be."""
        size = None if "Content-Encoding" in answer.headers else answer.content_length
        found = bytearray()
        at = 0
        async for chunk in answer.content.iter_chunked(_CHUNK):
            end = at + len(chunk)
            found += chunk[max(0, start - at) : len(chunk) if stop is None else max(0, stop - at)]
            at = end
            if size is not None and stop is not None and at >= stop:
                answer.close()
                break
        size = at if size is None else size
        data = bytes(found)
        return Read(data, _token(answer, data, start, size), size)

    def _fetch(self, ranges: Sequence[ByteRange], take: Callable[[Any, bytes], None]) -> None:
        if self._has_ranges is not False:
            super()._fetch(ranges, take)
            return
        wanted = fetches(ranges, gap=GAP, most=READ_BYTES)
        jobs = [partial(self._stream, path, list(some), take) for path, some in groupby(wanted, attrgetter("path"))]
        if jobs:
            self._run(gather(jobs, SLOTS))

    async def _stream(self, path: str, wanted: list[Fetch], take: Callable[[Any, bytes], None]) -> None:
        """All ranges wanted of one file, from one answer."""
        wanted.sort(key=attrgetter("start"))
        last = max(fetch.stop for fetch in wanted)

        async def read() -> None:
            async with self._answer(path, {}) as answer:
                at = 0
                under_way: list[tuple[Fetch, bytearray]] = []  # always the first of those wanted
                async for chunk in answer.content.iter_chunked(_CHUNK):
                    end = at + len(chunk)
                    begun = bisect_left(wanted, end, key=attrgetter("start"))
                    under_way += [(fetch, bytearray()) for fetch in wanted[len(under_way) : begun]]
                    for fetch, found in under_way:
                        found += chunk[max(0, fetch.start - at) : max(0, fetch.stop - at)]
                        if fetch.stop <= end:
                            take(fetch, bytes(found))
                            wanted.remove(fetch)  # an attempt after this one need not bring it again
                    under_way = [each for each in under_way if each[0].stop > end]
                    at = end
                    if not wanted:
                        answer.close()
                        return
            fetch = wanted[0]
            raise too_short(self.describe(path), path, fetch.start, fetch.stop, at)

        await self._attempts(read, path, nbytes=last)

    @asynccontextmanager
    async def _answer(
        self, path: str, headers: Mapping[str, str], also: Sequence[int] = ()
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer to one GET; statuses that are errors raise, unless ``also`` good."""
        fs = self.fs
        session = await fs.set_session()
        headers = {**headers, "Accept-Encoding": "identity"}
        if self._authorization and "auth" not in {*fs.kwargs, *fs.client_kwargs}:
            headers["Authorization"] = self._authorization
        ours = {name.lower() for name in headers}
        given = {name: value for name, value in (fs.kwargs.get("headers") or {}).items() if name.lower() not in ours}
        options: dict[str, Any] = {} if "timeout" in fs.client_kwargs else {"timeout": PATIENCE}
        try:
            answer = await session.get(self._url(path), **{**options, **fs.kwargs, "headers": {**given, **headers}})
        except (aiohttp.ClientResponseError, aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as error:
            # not its cause: they quote the URL
            raise StorageError(
                f"{self.describe(path)}: the server leads to where nothing can be read ({type(error).__name__})",
                kind="redirect",
                path=path,
            ) from None
        async with answer:
            if answer.status not in (200, 206, 304, *also):
                raise _Refused(answer.status)
            yield answer

    def _url(self, path: str) -> URL:
        if {".", ".."} & set(path.split("/")):
            raise InvalidArgumentError(
                f"{self.describe(path)}: servers take . and .. for a way, not for names", path=path
            )
        query = self._query and f"?{self._query}"
        return URL(f"{self.describe(path)}{query}", encoded=True)

    # --- what is not done here

    def create(self, path: str) -> Writer:
        self._refuse(path)

    async def _put(self, path: str, body: Body, condition: Token | Condition) -> Token:
        self._refuse(path)

    async def _begin(self, path: str) -> Upload:
        self._refuse(path)

    async def _delete(self, paths: Sequence[str]) -> None:
        self._refuse(paths[0])

    async def _page(self, prefix: str, deep: bool, after: Any) -> tuple[list[Listed], Any]:
        raise UnsupportedError(f"{self.describe(prefix)}: what a web server has below it cannot be listed")

    def _refuse(self, path: str) -> NoReturn:
        raise UnsupportedError(
            f"{self.describe(path)}: nothing is written over HTTP; write where the server has its files from"
        )

    # --- what went wrong

    def _failure(self, error: Exception, path: str, condition: Token | Condition) -> OcdbtError:
        place = self.describe(path)
        if isinstance(error, _Refused):
            return _refusal(error.status, place, path)
        if isinstance(error, aiohttp.ClientError | OSError):
            return connection_failure(error, path.partition("/")[0], place, path)
        return StorageError(f"{place}: the request failed ({type(error).__name__})", path=path)


class _Refused(Exception):
    """An answer with a status that is an error."""

    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status


def _refusal(status: int, place: str, path: str) -> OcdbtError:
    match status:
        case 404 | 410:
            return PathNotFoundError(f"There is no {place}", path=path)
        case 401 | 407:
            kind, sentence = (
                "credentials",
                "the credentials were refused, or none were given; give headers, auth or client_kwargs in "
                "storage_options, as fsspec's HTTPFileSystem takes them",
            )
        case 403:
            return StoragePermissionError(
                f"{place}: the server does not let you read it; check the credentials, or whether a signed URL is too "
                "old (some, S3 among them, also say so of a file that is not there)",
                path=path,
            )
        case 408:
            kind, sentence = "timeout", "the server waited too long for the request; check the network"
        case 429:
            kind, sentence = "throttled", "the server takes no more requests for now; try again later"
        case _ if status >= 500:
            kind, sentence = "unavailable", "the server is out of order for now; try again later"
        case _:
            kind, sentence = StorageError.default_kind, "the server refused the request"
    return StorageError(f"{place}: {sentence} (HTTP {status})", kind=kind, path=path)


def _resolved(names: Sequence[str]) -> list[str]:
    """Without ``.`` and ``..``, which are ways and not names."""
    found: list[str] = []
    for name in names:
        if name == "..":
            found = found[:-1]
        elif name != ".":
            found.append(name)
    return found


def _token(answer: aiohttp.ClientResponse, data: bytes, start: int, size: int) -> Token:
    etag = answer.headers.get("ETag")
    if etag:
        return etag
    changed = answer.headers.get(_CHANGED)
    with suppress(ValueError, TypeError, KeyError):
        age = parsedate_to_datetime(answer.headers["Date"]) - parsedate_to_datetime(str(changed))
        if age.total_seconds() >= _SETTLED:
            return _CHANGED, changed, size
    return hashlib.sha256(data).hexdigest(), start, size


def _condition(unless: Token | None) -> dict[str, str]:
    """Headers that ask for nothing where the file is still that of the token, as far as a server can know."""
    match unless:
        case str():
            return {"If-None-Match": unless}
        case (str(kind), str(changed), int()) if kind == _CHANGED:
            return {"If-Modified-Since": changed}
    return {}
