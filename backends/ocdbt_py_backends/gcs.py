"""Google Cloud Storage: its JSON API, over the session and with the credentials of gcsfs.

The token of an object is its generation, a number that no other content of that name ever has; conditions on it are
decided atomically by the service (``ifGenerationMatch``, where 0 is an absent object, and ``ifGenerationNotMatch``).

gcsfs lends its aiohttp session, its credentials and its endpoint, and makes none of the requests: what it offers for
them repeats a write whose answer was lost, so that a write that succeeded comes back as one that conflicts, and turns
answers into exceptions that no longer tell them apart.

Files too large for one request go through a resumable upload, whose parts come in order. It knows what has arrived, and
is asked for that wherever an answer was lost.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, TypeGuard
from urllib.parse import urlsplit

from ocdbt_py.errors import (
    InvalidArgumentError,
    OcdbtError,
    StorageError,
    UnsupportedError,
)
from ocdbt_py.storage.location import Settings, safe_path
from ocdbt_py.storage.protocol import (
    ABSENT,
    ANY,
    UNCHANGED,
    Capabilities,
    Condition,
    Listed,
    Read,
    Token,
    Unchanged,
)
from ocdbt_py_backends.body import Body
from ocdbt_py_backends.event_loop import gather
from ocdbt_py_backends.object_requests import OutOfRange, Upload
from ocdbt_py_backends.object_store import ObjectStore, bucket_capabilities

try:
    import google.auth.exceptions
    from gcsfs.core import GCSFileSystem  # the plain one: what gcsfs itself exports may ask a control service first
    from yarl import URL

    from ocdbt_py_backends.gcs_errors import REMEDY, Refused, failure
    from ocdbt_py_backends.gcs_upload import Answer, ResumableUpload
    from ocdbt_py_backends.web import PATIENCE, encoded, payload
except ModuleNotFoundError as error:
    raise UnsupportedError(
        f'Google Cloud Storage takes the package {error.name}, which is missing: pip install "ocdbt-py[gcs]"'
    ) from error

__all__ = ["GCSStorage"]

_PAGE = 1000
_DELETES = 12
_LONGEST_NAME = 1024

_FILE_BYTES = 32 << 20
_PARALLEL = 4

_CONTENT_RANGE = re.compile(r"bytes (?:([0-9]+)-[0-9]+|\*)/([0-9]+)")
_GENERATION = re.compile(r"[0-9]+")

_TO_READ = {
    "Accept-Encoding": "identity",  # a range is one of the bytes that are stored
    "Cache-Control": "no-cache",  # public objects may come from a cache that is an hour old
}
_CONTENT_TYPE = {"Content-Type": "application/octet-stream"}


class GCSStorage(ObjectStore):
    """Buckets of Google Cloud Storage, or of another server with its JSON API. Paths are ``bucket/name``."""

    parallel_parts: ClassVar[int] = 1

    @classmethod
    def from_url(cls, url: str, storage_options: Mapping[str, Any], settings: Settings) -> tuple[GCSStorage, str]:
        """``storage_options`` are those of ``gcsfs.GCSFileSystem``; ``settings`` mean nothing here.

        No token is looked for where an endpoint is plain ``http://``: it would go over the wire for anybody to read.
        """
        options = {"use_listings_cache": False, **storage_options}
        endpoint = options.get("endpoint_url") or os.environ.get("STORAGE_EMULATOR_HOST") or "default"
        if endpoint != "default" and not endpoint.startswith("https://"):
            options.setdefault("token", "anon")
        try:
            fs = GCSFileSystem(**options)
        except (google.auth.exceptions.GoogleAuthError, KeyError, TypeError, ValueError, OSError) as error:
            raise StorageError(
                f"The credentials for Google Cloud Storage cannot be used ({type(error).__name__}): {REMEDY}",
                kind="credentials",
            ) from error
        return cls.from_fs(fs, url, settings)

    @classmethod
    def from_fs(cls, fs: Any, path: str, settings: Settings) -> tuple[GCSStorage, str]:
        return cls(fs), fs._strip_protocol(path).strip("/")

    @property
    def capabilities(self) -> Capabilities:
        universe = os.environ.get("GOOGLE_CLOUD_UNIVERSE_DOMAIN", "googleapis.com")
        return bucket_capabilities(
            writable=self._given.credentials.access != "read_only",
            conditions_unproven=not self._host.endswith(f".{universe}"),
            endpoint=urlsplit(self._given._location).netloc.rpartition("@")[2],
            file_bytes=_FILE_BYTES,
            parallel=_PARALLEL,
        )

    def describe(self, path: str) -> str:
        return "gs://" + safe_path(path)

    def _identity(self) -> tuple[Any, ...]:
        return "gs", self._given._location

    @property
    def _host(self) -> str:
        return urlsplit(self._given._location).hostname or ""

    # --- requests

    async def _get(self, path: str, start: int, stop: int | None, unless: Token | None) -> Read | Unchanged:
        headers = dict(_TO_READ)
        if start or stop is not None:
            headers["Range"] = f"bytes={start}-{'' if stop is None else stop - 1}"
        query = {"alt": "media"}
        if _is_generation(unless):
            query["ifGenerationNotMatch"] = unless
        answer = await self._request("GET", self._object(path), query, headers, also=(304, 416))
        if answer.status == 304:
            return UNCHANGED
        generation = answer.headers.get("X-Goog-Generation")
        place = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        if answer.status == 416 and (generation is None or place is None):
            raise OutOfRange
        if generation is None:
            raise UnsupportedError(
                f"{self.describe(path)}: {self._host} does not tell the generation of an object, without which "
                "nothing there can be shared; use another server"
            )
        if answer.status == 416:
            assert place is not None
            return Read(b"", generation, int(place[2]))
        if answer.status == 206:
            if place is None or place[1] is None or int(place[1]) != start:
                raise StorageError(f"{self.describe(path)}: {self._host} sent another range than asked for", path=path)
            return Read(answer.body, generation, int(place[2]))
        return Read(answer.body[start:stop], generation, len(answer.body))

    async def _put(self, path: str, body: Body, condition: Token | Condition) -> Token:
        query = {"uploadType": "media", "name": self._name(path)}
        if condition is ABSENT:
            query["ifGenerationMatch"] = "0"
        elif condition is not ANY:
            if not _is_generation(condition):
                raise self._changed(path)
            query["ifGenerationMatch"] = condition
        answer = await self._request("POST", self._uploads(path), query, _CONTENT_TYPE, body)
        token: str = json.loads(answer.body)["generation"]
        return token

    async def _begin(self, path: str) -> Upload:
        query = {"uploadType": "resumable", "name": self._name(path), "ifGenerationMatch": "0"}
        headers = {"X-Upload-Content-Type": _CONTENT_TYPE["Content-Type"]}
        try:
            answer = await self._request("POST", self._uploads(path), query, headers, Body([]))
        except Refused as error:
            if error.status != 412:
                raise
            raise self._taken(path) from error
        return ResumableUpload(self._request, self.describe(path), path, answer.headers["Location"])

    async def _delete(self, paths: Sequence[str]) -> None:
        async def delete(path: str) -> None:
            try:
                await self._request("DELETE", self._object(path), {}, {})
            except Refused as error:
                if error.status != 404:
                    raise

        # The batches of the service are shorter, and other servers have none.
        await gather([partial(delete, path) for path in paths], _DELETES)

    async def _page(self, prefix: str, deep: bool, after: Any) -> tuple[list[Listed], Any]:
        bucket, _, start = prefix.partition("/")
        query = {"prefix": start, "maxResults": str(_PAGE), "fields": "items(name,size),prefixes,nextPageToken"}
        if not deep:
            query["delimiter"] = "/"
        if after is not None:
            query["pageToken"] = after
        found = json.loads((await self._request("GET", f"storage/v1/b/{encoded(bucket)}/o", query, {})).body)
        page = [Listed(f"{bucket}/{item['name']}", int(item["size"])) for item in found.get("items", ())]
        page += [Listed(f"{bucket}/{name}", None) for name in found.get("prefixes", ())]
        return page, found.get("nextPageToken")

    async def _request(
        self,
        method: str,
        url: str,
        query: Mapping[str, str],
        headers: Mapping[str, str],
        body: Body | None = None,
        also: Sequence[int] = (),
    ) -> Answer:
        """One request, of a path of the API or a URL it gave. Statuses that are errors raise, unless ``also`` good."""
        fs = self.fs
        session = await fs._set_session()
        if not url.startswith("http"):
            url = f"{fs._location}/{url}"
        query = fs._get_params(query)
        if query:
            url += ("&" if "?" in url else "?") + "&".join(f"{name}={encoded(value)}" for name, value in query.items())
        headers = dict(headers)
        if body is not None:
            headers["Content-Length"] = str(len(body))
        if fs.credentials.credentials is None:
            headers = fs._get_headers(headers)
        else:  # it may have to fetch a new token first, and blocks for that
            headers = await asyncio.to_thread(fs._get_headers, headers)
        async with session.request(
            method,
            URL(url, encoded=True),
            headers=headers,
            data=payload(body),
            timeout=PATIENCE,
            allow_redirects=False,
        ) as response:
            content = await response.read()
            if response.status >= 300 and response.status not in also:
                raise Refused(response.status, content)
            return Answer(response.status, response.headers, content)

    def _object(self, path: str) -> str:
        return f"storage/v1/b/{encoded(path.partition('/')[0])}/o/{encoded(self._name(path))}"

    def _uploads(self, path: str) -> str:
        return f"upload/storage/v1/b/{encoded(path.partition('/')[0])}/o"

    def _name(self, path: str) -> str:
        """The object's name in its bucket, if it can be one."""
        name = path.partition("/")[2]
        try:
            fits = len(name.encode()) <= _LONGEST_NAME and not set(name) & {"\r", "\n"} and name not in (".", "..")
        except UnicodeEncodeError:
            fits = False
        if not fits:
            raise InvalidArgumentError(
                f"{self.describe(path)!r} cannot be a name in Google Cloud Storage, where names are UTF-8 without line "
                f"breaks, of at most {_LONGEST_NAME} bytes",
                path=path,
            )
        return name

    def _failure(self, error: Exception, path: str, condition: Token | Condition) -> OcdbtError:
        return failure(error, self.describe(path), path, self._host) or self._changed(path)


def _is_generation(token: Token | Condition | None) -> TypeGuard[str]:
    return isinstance(token, str) and _GENERATION.fullmatch(token) is not None
