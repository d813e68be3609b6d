"""Azure Blob Storage, Data Lake Gen2 included, through adlfs' filesystem and the client of Microsoft's library in it.

A token is an ETag, which the service makes anew for every write, whatever was written. A file of up to
:data:`AzureStorage.single_bytes` is one Put Blob; a larger one is staged as blocks, several at a time, and comes into
being whole by one conditional Put Block List. Ids of blocks are random, so that the blob itself tells whether a commit
whose answer was lost was ours. What an abandoned upload has staged is seen by nobody, and cannot be deleted: the
service drops it after a week.

Microsoft's library repeats requests by itself, conditional ones too, and so does the HTTP client below it. Here neither
does, whoever made the filesystem: each request says so (:data:`_ONCE`, :func:`_unrepeatable`), and the class
:class:`~ocdbt_py_backends.object_requests.Requests` decides.

In an account with a hierarchical namespace directories are blobs as well (and so are the empty ones by which some tools
mark a directory elsewhere). They are not listed as files, and go when a directory is deleted.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

from ocdbt_py.errors import InvalidArgumentError, OcdbtError, UnsupportedError
from ocdbt_py.storage.location import Settings, safe_path
from ocdbt_py.storage.protocol import ABSENT, ANY, UNCHANGED, Capabilities, Condition, Listed, Read, Token, Unchanged
from ocdbt_py_backends.body import Body
from ocdbt_py_backends.event_loop import gather
from ocdbt_py_backends.object_requests import OutOfRange, Upload
from ocdbt_py_backends.object_store import ObjectStore, bucket_capabilities

try:
    from adlfs import AzureBlobFileSystem
    from aiohttp import ServerDisconnectedError
    from azure.core import MatchConditions
    from azure.core.exceptions import HttpResponseError, ResourceNotFoundError
    from azure.storage.blob.aio import BlobPrefix

    from ocdbt_py_backends.azure_errors import failure, is_of_container
except ModuleNotFoundError as error:
    raise UnsupportedError(
        f'Azure takes packages that are not installed ({error.name}): pip install "ocdbt-py[azure]"'
    ) from error

_SERVICES = (".core.windows.net", ".core.chinacloudapi.cn", ".core.usgovcloudapi.net")
"""What the hosts of the service itself end in."""

_ONCE = {"retry_total": 0}
"""An option of every request: the library is not to repeat it."""

_SCHEME = re.compile(r"\A(?:az|abfss?)://")
_HOST = re.compile(r"([^.@]+)\.(?:dfs|blob)\.([^@]+)")
_QUERY = re.compile(r"\?(?:.*&)?(?:sig|versionid|snapshot)=", re.IGNORECASE)
_UNFIT = re.compile(r"[\x00-\x1f\\\ud800-\udfff]|(?:\A|/)\.\.?(?:/|\Z)")
"""What no name of a blob has: the service takes a backslash for a slash, a client takes dots for steps in a tree."""

_PIECE = 1 << 20
"""Bodies are sent in pieces of this size."""

_DELETES = 8
"""Deletions at a time. One request could delete 256 blobs, but not with every kind of account and credentials."""


class AzureStorage(ObjectStore):
    """The containers of one storage account. Paths are ``container/name``."""

    single_bytes: ClassVar[int] = 1 << 20  # the library copies the body of a Put Blob, but not a block

    @classmethod
    def from_url(cls, url: str, storage_options: Mapping[str, Any], settings: Settings) -> tuple[AzureStorage, str]:
        """``az://container/path``, ``abfs[s]://container/path`` or ``abfs[s]://container@account.dfs.HOST/path``.

        ``storage_options`` are those of ``AzureBlobFileSystem``: ``account_name`` with ``account_key``, ``sas_token``
        or ``credential``; or ``connection_string``; ... ``settings`` mean nothing here.
        """
        path, account, host = _parse(url)
        options = {"use_listings_cache": False, **host, **storage_options}
        try:
            fs = AzureBlobFileSystem(**options)
        except ValueError as error:
            raise InvalidArgumentError(
                "The storage account is unknown or its credentials are malformed: pass storage_options with "
                "account_name and account_key, sas_token or credential, or with connection_string"
            ) from error
        return cls._of_account(fs, account), path

    @classmethod
    def from_fs(cls, fs: Any, path: str, settings: Settings) -> tuple[AzureStorage, str]:
        path, account, _ = _parse(path)
        return cls._of_account(fs, account), path

    @classmethod
    def _of_account(cls, fs: Any, account: str | None) -> AzureStorage:
        known = fs.service_client.account_name
        if account and known and account != known:
            raise InvalidArgumentError(f"The URL names the account {account}, the options or fs the account {known}")
        return cls(fs)

    @property
    def _host(self) -> str:
        """Host and port; where the account is not part of them, the account too. No query."""
        host: str = self._given.service_client.primary_hostname
        return host

    def _identity(self) -> tuple[Any, ...]:
        return "azure", self._host

    @property
    def capabilities(self) -> Capabilities:
        return bucket_capabilities(
            conditions_unproven=not re.split("[:/]", self._host)[0].endswith(_SERVICES),
            endpoint=self._host,
        )

    def describe(self, path: str) -> str:
        return "az://" + safe_path(path)

    def __repr__(self) -> str:
        return f"AzureStorage({self._host!r})"

    def delete(self, path: str) -> None:
        super().delete(path)
        if path.endswith("/"):
            # a directory can be removed once nothing is below it
            request = partial(self._directories, path)
            for level in self._run(self._attempts(request, path)):
                self._run(self._attempts(partial(self._delete, level), path))

    # --- requests

    def _blob(self, path: str) -> Any:
        container, _, name = path.partition("/")
        if _UNFIT.search(name):
            raise InvalidArgumentError(
                f"{self.describe(path)!r} cannot be the name of a blob: it has a backslash, a control character or a "
                "part that is only dots, or is not Unicode"
            )
        return self.fs.service_client.get_blob_client(container, name)

    async def _get(self, path: str, start: int, stop: int | None, unless: Token | None) -> Read | Unchanged:
        wanted: dict[str, Any] = {}
        if start or stop is not None:  # otherwise the whole blob, which may be empty: no range fits that
            wanted.update(offset=start, length=None if stop is None else stop - start)
        if isinstance(unless, str):  # as all of ours are
            wanted.update(etag=unless, match_condition=MatchConditions.IfModified)
        try:
            stream = await self._blob(path).download_blob(max_concurrency=1, **wanted, **_ONCE)
            data = await stream.readall()
        except HttpResponseError as error:
            if error.status_code == 304:
                return UNCHANGED
            if error.status_code == 416:
                raise OutOfRange from error
            raise
        size = int(stream.properties.content_range.rpartition("/")[2])
        return Read(data, stream.properties.etag, size)

    async def _put(self, path: str, body: Body, condition: Token | Condition) -> Token:
        if not 0 < len(body) <= self.single_bytes:  # an empty request could be repeated; an empty list of blocks not
            upload = _Blocks(self, path)
            if len(body):
                await upload.part(1, body)
            return await upload.commit(condition)
        sent = await self._blob(path).upload_blob(
            body.joined(), length=len(body), overwrite=True, **_conditions(condition)
        )
        token: Token = sent["etag"]
        return token

    async def _begin(self, path: str) -> Upload:
        return _Blocks(self, path)

    async def _delete(self, paths: Sequence[str]) -> None:
        async def one(path: str) -> None:
            try:
                await self._blob(path).delete_blob(**_ONCE)
            except ResourceNotFoundError as error:
                if is_of_container(error):
                    raise

        await gather([partial(one, path) for path in paths], _DELETES)

    async def _page(self, prefix: str, deep: bool, after: Any) -> tuple[list[Listed], Any]:
        items, after = await self._items(prefix, deep, after)
        container = prefix.partition("/")[0]
        return [
            Listed(f"{container}/{item.name}", None if isinstance(item, BlobPrefix) else item.size)
            for item in items
            if not _is_directory(item)
        ], after

    async def _items(self, prefix: str, deep: bool, after: Any) -> tuple[list[Any], Any]:
        """One page of blobs and prefixes."""
        container, slash, start = prefix.partition("/")
        if not container or not slash:
            raise UnsupportedError("The containers of a storage account are not listed: name one, and a / after it")
        client = self.fs.service_client.get_container_client(container)
        listing = client.list_blobs if deep else client.walk_blobs
        pages = listing(name_starts_with=start or None, include=["metadata"], **_ONCE).by_page(after)
        items = [item async for item in await anext(pages)]
        return items, pages.continuation_token or None

    async def _directories(self, path: str) -> list[list[str]]:
        """The blobs at ``path`` (``container/a/b/``) and below that stand for directories, by level, deepest first."""
        container, _, name = path.rstrip("/").partition("/")
        found: dict[int, list[str]] = {}
        after = None
        while True:
            items, after = await self._items(path, True, after)
            for item in filter(_is_directory, items):
                found.setdefault(item.name.rstrip("/").count("/"), []).append(f"{container}/{item.name}")
            if after is None:
                break
        try:
            if _is_directory(await self._blob(f"{container}/{name}").get_blob_properties(**_ONCE)):
                found[-1] = [f"{container}/{name}"]
        except ResourceNotFoundError:
            pass
        return [found[depth] for depth in sorted(found, reverse=True)]

    def _failure(self, error: Exception, path: str, condition: Token | Condition) -> OcdbtError:
        return failure(error, self.describe(path), path, condition, self._host) or self._changed(path)


class _Blocks:
    """An :class:`~ocdbt_py_backends.object_requests.Upload`: blocks, and the list of them that makes the blob."""

    def __init__(self, store: AzureStorage, path: str) -> None:
        self._store = store
        self._path = path
        self._blob = store._blob(path)
        self._prefix = secrets.token_hex(16)
        self._last = 0

    async def part(self, number: int, body: Body) -> None:
        self._last = max(self._last, number)
        await self._blob.stage_block(self._id(number), _pieces(body), length=len(body), **_ONCE)

    async def complete(self) -> None:
        try:
            await self.commit(ABSENT)
        except HttpResponseError as error:
            # the list may also be refused because another writer's commit dropped our blocks
            if error.status_code not in (400, 409, 412):
                raise
            there = await self._committed()
            if there is None:
                raise
            if there != self._ids():
                raise self._store._changed(self._path) from error

    async def commit(self, condition: Token | Condition) -> Token:
        done = await self._blob.commit_block_list(self._ids(), **_conditions(condition))
        token: Token = done["etag"]
        return token

    async def abort(self) -> None:
        """The service drops blocks that no list names."""

    async def _committed(self) -> list[str] | None:
        """What the blob is made of, or None where there is none."""
        try:
            blocks, _ = await self._blob.get_block_list("committed", **_ONCE)
        except ResourceNotFoundError:
            return None
        return [block.id for block in blocks]

    def _ids(self) -> list[str]:
        return [self._id(number) for number in range(1, self._last + 1)]

    def _id(self, number: int) -> str:
        return f"{self._prefix}-{number:06}"


async def _pieces(body: Body) -> AsyncIterator[memoryview]:
    for piece in body.pieces(_PIECE):
        yield piece


def _conditions(condition: Token | Condition) -> dict[str, Any]:
    """Options of a write."""
    if condition is ANY:
        return _ONCE
    if condition is ABSENT:
        return {"match_condition": MatchConditions.IfMissing, "raw_request_hook": _unrepeatable, **_ONCE}
    return {
        "etag": condition,
        "match_condition": MatchConditions.IfNotModified,
        "raw_request_hook": _unrepeatable,
        **_ONCE,
    }


def _unrepeatable(request: Any) -> None:
    """Send the body as a stream.

    aiohttp repeats a PUT whose connection broke, when it was not a new one, unless it cannot have the body again.
    """
    http = request.http_request
    http.set_streamed_data_body(_Once(http.data.encode() if isinstance(http.data, str) else http.data))


class _Once:
    """A body that can be had once. aiohttp before 3.14 asks twice."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        body, self._body = self._body, None
        if body is None:
            raise ServerDisconnectedError
        yield body


def _is_directory(item: Any) -> bool:
    """Whether a blob of a listing stands for a directory."""
    metadata = {} if isinstance(item, BlobPrefix) else item.metadata or {}
    return any(key.lower() == "hdi_isfolder" and value.lower() == "true" for key, value in metadata.items())


def _parse(url: str) -> tuple[str, str | None, dict[str, str]]:
    """``container/path``, the account if the URL (or path) names one, and what that means as options of adlfs."""
    rest = _SCHEME.sub("", url).strip("/")
    if _QUERY.search(rest):
        raise InvalidArgumentError(
            "A URL of a blob has no query here: pass a token as storage_options={'sas_token': ...}; only the current "
            "version of a blob can be read"
        )
    first, _, below = rest.partition("/")
    container, at, host = first.rpartition("@")
    found = _HOST.fullmatch(host if at else first)
    if found is None:
        if at:
            raise InvalidArgumentError(
                f"{container}@{host} is not a container and its account: write CONTAINER@ACCOUNT.dfs.core.windows.net"
            )
        return rest, None, {}
    account, suffix = found.groups()
    options = {"account_name": account}
    if suffix != "core.windows.net":
        options["account_host"] = f"{account}.blob.{suffix}"
    return (f"{container}/{below}".rstrip("/") if at else below), account, options
