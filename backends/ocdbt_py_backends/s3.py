"""Buckets of Amazon S3, and of servers that speak its protocol, through s3fs.

s3fs finds the credentials and keeps the connections; the requests are made with its client and not with s3fs itself,
which repeats a conditional write whose answer was lost, drops parameters that its botocore does not know, and gives no
bytes and ETag of one response.

* A token is an ETag, as the server spells it. That of a small object is a hash of its content: equal content has an
  equal token, which no reader of a manifest minds.
* ``If-Match`` and ``If-None-Match`` decide about writes: 412 is a conflict, as is 409 (two at once), and 404 where
  there is nothing left to match. Only Amazon's own endpoint is known to honour them
  (:attr:`~ocdbt_py.storage.protocol.Capabilities.conditions_unproven`).
* What an error means is decided by status and code. Its sentence never quotes the server, which may quote the request.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from ocdbt_py.errors import InvalidArgumentError, OcdbtError, UnsupportedError
from ocdbt_py.storage.location import Settings, safe_path
from ocdbt_py.storage.protocol import ABSENT, ANY, UNCHANGED, Capabilities, Condition, Listed, Read, Token, Unchanged
from ocdbt_py_backends.body import Body
from ocdbt_py_backends.event_loop import gather
from ocdbt_py_backends.object_requests import SLOTS, OutOfRange, Upload
from ocdbt_py_backends.object_store import ObjectStore, bucket_capabilities

try:
    import s3fs
    from botocore.exceptions import ClientError

    from ocdbt_py_backends.s3_client import begin_session, without_certificates
    from ocdbt_py_backends.s3_errors import failure, status_of
except ModuleNotFoundError as error:
    raise UnsupportedError(
        f'S3 takes the package {error.name}, which is missing: pip install "ocdbt-py[s3]"'
    ) from error

__all__ = ["S3Storage"]

_CONFIG: dict[str, Any] = {
    "max_pool_connections": SLOTS,
    "retries": {"total_max_attempts": 1},  # those of the base class know what must not be repeated
    "connect_timeout": 10,
    "read_timeout": 40,
    # Nodes, manifests and values have checksums of their own; not every server of this protocol takes another one.
    "request_checksum_calculation": "when_required",
    "response_checksum_validation": "when_required",
}
"""Of the clients of filesystems that we make, where the user does not say otherwise."""

_JOINED_BYTES = 1 << 20
"""Up to this size a body is sent as one piece of bytes, which costs less than reading it piece by piece."""

_MARK = "ocdbt-upload"
"""Metadata of an object uploaded in parts, by which the upload that made it is known."""

_DELETES = 4
"""So many objects are deleted at a time where each takes a request of its own."""

_AMAZON = re.compile(r"(?:.*\.)?amazonaws\.com(?:\.cn)?")
_NOT_IN_XML = re.compile(r"[\x00-\x08\x0b-\x1f\ufffe\uffff]")
_RANGE = re.compile(r"bytes (?:\d+-\d+|\*)/(\d+)")


class S3Storage(ObjectStore):
    """The buckets that ``fs``, an ``S3FileSystem``, can reach. Paths are ``bucket/key``."""

    def __init__(self, fs: Any) -> None:
        super().__init__(fs)
        self._endpoint: str | None = None

    @classmethod
    def from_url(cls, url: str, storage_options: Mapping[str, Any], settings: Settings) -> tuple[S3Storage, str]:
        """``storage_options`` are those of ``S3FileSystem``; ``settings`` mean nothing here."""
        options = {"use_listings_cache": False, **storage_options}
        options["config_kwargs"] = {**_CONFIG, **(options.get("config_kwargs") or {})}
        options["client_kwargs"] = without_certificates(options)
        path = _path(url)
        try:
            return cls(s3fs.S3FileSystem(**options)), path
        except (KeyError, TypeError, ValueError) as error:
            raise _unusable(error) from error

    @classmethod
    def from_fs(cls, fs: Any, path: str, settings: Settings) -> tuple[S3Storage, str]:
        return cls(fs), _path(path)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_endpoint": None}

    @property
    def capabilities(self) -> Capabilities:
        return bucket_capabilities(
            conditions_unproven=not _AMAZON.fullmatch(self._host()),
            endpoint=self._host(),
        )

    def describe(self, path: str) -> str:
        return self._url(path)

    @staticmethod
    def _url(path: str) -> str:
        return "s3://" + safe_path(path)

    def _identity(self) -> tuple[Any, ...]:
        host = self._host()
        return ("s3", "amazonaws.com" if _AMAZON.fullmatch(host) else host)

    def _host(self) -> str:
        """Host and port of the endpoint, which options, environment and profile may name: the client knows."""
        if self._endpoint is None:
            self._run(self._attempts(lambda: self._client(""), ""))
        assert self._endpoint is not None
        return self._endpoint

    async def _client(self, bucket: str) -> Any:
        try:
            begin_session(self.fs)
            await self.fs.set_session()
            client = await self.fs.get_s3(bucket or None)
        except (TypeError, ValueError) as error:
            raise _unusable(error) from error
        self._endpoint = urlsplit(client.meta.endpoint_url).netloc.rpartition("@")[2]
        return client

    async def _call(self, method: str, path: str, **arguments: Any) -> Any:
        """One request about an object or a prefix, with what the filesystem adds to every request of its kind."""
        bucket, key = _split(path)
        name = "Prefix" if method == "list_objects_v2" else "Key"
        if method != "delete_objects":
            arguments[name] = key
        client = await self._client(bucket)
        function = getattr(client, method)
        defaults = self.fs._get_s3_method_kwargs(function)
        if "Metadata" in arguments:
            arguments["Metadata"] = {**defaults.get("Metadata", {}), **arguments["Metadata"]}
        return await function(**{**defaults, "Bucket": bucket, **arguments})

    # --- requests

    async def _get(self, path: str, start: int, stop: int | None, unless: Token | None) -> Read | Unchanged:
        arguments = {}
        if start or stop is not None:
            arguments["Range"] = f"bytes={start}-" if stop is None else f"bytes={start}-{stop - 1}"
        if isinstance(unless, str):
            arguments["IfNoneMatch"] = unless
        try:
            answer = await self._call("get_object", path, **arguments)
        except ClientError as error:
            if status_of(error) == 304:
                return UNCHANGED
            if status_of(error) == 416:
                raise OutOfRange from error
            raise
        async with answer["Body"] as body:
            data = await body.read()
        part = _RANGE.fullmatch(answer.get("ContentRange") or "")
        if part is None:  # the whole, asked for or not
            return Read(data[start:stop] if arguments else data, answer["ETag"], len(data))
        return Read(data, answer["ETag"], int(part[1]))

    async def _put(self, path: str, body: Body, condition: Token | Condition) -> Token:
        arguments = await self._conditions("PutObject", condition)
        content = body.joined() if len(body) <= _JOINED_BYTES else body.reader()
        answer = await self._call("put_object", path, Body=content, **arguments)
        token: str = answer["ETag"]
        return token

    async def _begin(self, path: str) -> Upload:
        condition = await self._conditions("CompleteMultipartUpload", ABSENT)
        mark = secrets.token_hex(16)
        answer = await self._call("create_multipart_upload", path, Metadata={_MARK: mark})
        return _Parts(self, path, answer["UploadId"], mark, condition)

    async def _delete(self, paths: Sequence[str]) -> None:
        if len(paths) > 1 and not any(map(_NOT_IN_XML.search, paths)):
            bucket = _split(paths[0])[0]
            keys = [{"Key": _split(path)[1]} for path in paths]
            try:
                answer = await self._call("delete_objects", f"{bucket}/", Delete={"Objects": keys, "Quiet": True})
            except ClientError as error:
                if status_of(error) not in (400, 405, 411, 501):
                    raise
                # not every server has it, or takes the checksum that this botocore sends
            else:
                _check_deleted(answer)
                return
        await gather([partial(self._call, "delete_object", path) for path in paths], _DELETES)

    def delete(self, path: str) -> None:
        super().delete(path)
        if path.endswith("/") and self._run(self._attempts(partial(self._head, path), path)):
            # A server that keeps objects as files goes on listing their directories. An object of the name stands for
            # each; it is asked for first, since deleting what never was leaves a mark in a bucket with a history.
            for directory in self._directories(path):
                self._run(self._attempts(partial(self._delete, [directory]), path))

    def _directories(self, path: str) -> Iterator[str]:
        for item in self.list(path):
            if item.size is None:
                yield from self._directories(item.path)
        yield path

    async def _page(self, prefix: str, deep: bool, after: Any) -> tuple[list[Listed], Any]:
        bucket, _ = _split(prefix)
        arguments = {} if deep else {"Delimiter": "/"}
        if after is not None:
            arguments["ContinuationToken"] = after
        answer = await self._call("list_objects_v2", prefix, **arguments)
        found = [Listed(f"{bucket}/{item['Key']}", item["Size"]) for item in answer.get("Contents") or ()]
        found += [Listed(f"{bucket}/{item['Prefix']}", None) for item in answer.get("CommonPrefixes") or ()]
        return found, answer["NextContinuationToken"] if answer.get("IsTruncated") else None

    async def _head(self, path: str) -> Any:
        """What a HEAD tells of an object; None where there is none to be seen."""
        try:
            return await self._call("head_object", path)
        except ClientError as error:
            if status_of(error) not in (403, 404):
                raise
            return None

    async def _conditions(self, operation: str, condition: Token | Condition) -> dict[str, Any]:
        """The arguments that say it, which an old botocore does not know."""
        if condition is ANY:
            return {}
        client = await self._client("")
        if (
            not {"IfMatch", "IfNoneMatch"}
            <= client.meta.service_model.operation_model(operation).input_shape.members.keys()
        ):
            raise UnsupportedError(
                "This release of botocore knows no conditional writes to S3: pip install --upgrade aiobotocore s3fs"
            )
        return {"IfNoneMatch": "*"} if condition is ABSENT else {"IfMatch": condition}

    def _failure(self, error: Exception, path: str, condition: Token | Condition) -> OcdbtError:
        place = self.describe(path) if path else "S3"
        return failure(error, place, path, condition, self._endpoint) or self._changed(path)


class _Parts:
    """An :class:`~ocdbt_py_backends.object_requests.Upload`."""

    def __init__(self, store: S3Storage, path: str, upload: str, mark: str, condition: Mapping[str, Any]) -> None:
        self._store = store
        self._path = path
        self._upload = upload
        self._mark = mark
        self._condition = condition
        self._done: dict[int, dict[str, Any]] = {}

    async def part(self, number: int, body: Body) -> None:
        answer = await self._store._call(
            "upload_part", self._path, UploadId=self._upload, PartNumber=number, Body=body.reader()
        )
        self._done[number] = {"PartNumber": number, "ETag": answer["ETag"]}
        # an upload for which the options name an algorithm is completed by naming the sums again
        checksum = f"Checksum{self._store.fs.s3_additional_kwargs.get('ChecksumAlgorithm')}"
        if checksum in answer:
            self._done[number][checksum] = answer[checksum]

    async def complete(self) -> None:
        parts = [self._done[number] for number in sorted(self._done)]
        try:
            await self._store._call(
                "complete_multipart_upload",
                self._path,
                UploadId=self._upload,
                MultipartUpload={"Parts": parts},
                **self._condition,
            )
        except ClientError as error:
            if status_of(error) not in (404, 409, 412):
                raise
            found = await self._store._head(self._path)
            if found is not None and found["Metadata"].get(_MARK) == self._mark:
                return  # the answer to an earlier attempt was lost
            if status_of(error) == 404:
                raise
            raise self._store._changed(self._path) from error

    async def abort(self) -> None:
        try:
            await self._store._call("abort_multipart_upload", self._path, UploadId=self._upload)
        except ClientError as error:
            if status_of(error) != 404:
                raise


def _unusable(error: Exception) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"With these options s3fs makes no client ({type(error).__name__}, the cause of this error, says why); "
        "storage_options are the arguments of S3FileSystem"
    )


def _path(url: str) -> str:
    path: str = s3fs.S3FileSystem._strip_protocol(url)
    bucket = path.partition("/")[0]
    if "@" in bucket:
        raise InvalidArgumentError("An S3 URL holds no credentials: pass storage_options={'key': ..., 'secret': ...}")
    if not bucket:
        raise InvalidArgumentError("An S3 URL begins with a bucket: s3://bucket/name")
    return path


def _split(path: str) -> tuple[str, str]:
    """Bucket and key; what an access point is called may have a slash in it."""
    bucket, slash, key = path.partition("/")
    if bucket.startswith("arn:"):
        bucket, key = s3fs.S3FileSystem._find_bucket_key(None, path)
    if not slash:
        raise InvalidArgumentError(f"{path!r} names a bucket; what is listed or stored lies in one")
    try:
        key.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(f"{S3Storage._url(path)}: names in S3 are UTF-8", path=path) from error
    return bucket, key


def _check_deleted(answer: Mapping[str, Any]) -> None:
    """The answer is 200 also when objects were not deleted."""
    for failed in answer.get("Errors") or ():
        if failed.get("Code") != "NoSuchKey":
            raise ClientError({"Error": failed, "ResponseMetadata": answer["ResponseMetadata"]}, "DeleteObjects")
