"""A bucket in memory that counts requests, delays them, and fails on purpose."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import fsspec.asyn

from ocdbt_py.errors import OcdbtError, PathNotFoundError, StorageError, StoragePermissionError
from ocdbt_py.storage.protocol import ABSENT, ANY, UNCHANGED, Capabilities, Condition, Listed, Read, Token
from ocdbt_py.storage.protocol import Unchanged as UnchangedAnswer
from ocdbt_py_backends.body import Body
from ocdbt_py_backends.object_requests import OutOfRange
from ocdbt_py_backends.object_store import ObjectStore

T = TypeVar("T")


class Refusal(Exception):
    """What the bucket answers; not of our errors."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


class Bucket:
    """Objects, unfinished uploads, and every request that was made."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, int]] = {}
        self.uploads: dict[int, dict[int, bytes]] = {}
        self.requests: list[tuple[Any, ...]] = []
        self.faults: dict[str, list[str]] = {}
        """For a method, what happens to its next requests: ``kind`` refuses, ``lost:kind`` obeys and then fails."""
        self.delay = 0.0
        self.running = 0
        self.most_running = 0
        self.cancelled = 0
        self.serial = 0
        self.during: Callable[[str], None] = lambda method: None

    def count(self, method: str) -> int:
        return sum(request[0] == method for request in self.requests)


BUCKETS: dict[str, Bucket] = {}


class BucketFileSystem(fsspec.asyn.AsyncFileSystem):  # type: ignore[misc]
    protocol = "bucket"


class BucketStorage(ObjectStore):
    first_pause = 0.001
    longest_pause = 0.004

    def __init__(self, name: str, fs: Any = None) -> None:
        super().__init__(fs or BucketFileSystem())
        self.name = name

    @property
    def bucket(self) -> Bucket:
        return BUCKETS[self.name]

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(cas=True, create=True, atomic_write=True, ranges=True, list=True, writable=True)

    def describe(self, path: str) -> str:
        return f"bucket://{path}".encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")

    def _identity(self) -> tuple[Any, ...]:
        return (self.name,)

    async def _serve(self, method: str, answer: Callable[[], T], *details: Any) -> T:
        bucket = self.bucket
        bucket.requests.append((method, *details))
        fault = bucket.faults[method].pop(0) if bucket.faults.get(method) else ""
        bucket.running += 1
        bucket.most_running = max(bucket.most_running, bucket.running)
        try:
            bucket.during(method)
            await asyncio.sleep(bucket.delay)
            if fault and not fault.startswith("lost:"):
                raise Refusal(fault)
            found = answer()
            if fault:
                raise Refusal(fault.removeprefix("lost:"))
            return found
        except asyncio.CancelledError:
            bucket.cancelled += 1
            raise
        finally:
            bucket.running -= 1

    async def _get(self, path: str, start: int, stop: int | None, unless: Token | None) -> Read | UnchangedAnswer:
        def answer() -> Read | UnchangedAnswer:
            if path not in self.bucket.objects:
                raise Refusal("absent")
            data, serial = self.bucket.objects[path]
            if unless == serial:
                return UNCHANGED
            if start >= len(data) and (start or stop is not None):
                raise OutOfRange
            return Read(data[start:stop], serial, len(data))

        return await self._serve("get", answer, path, start, stop)

    def _store(self, path: str, data: bytes, condition: Token | Condition) -> int:
        present = self.bucket.objects.get(path)
        if condition is not ANY and (present and present[1]) != (None if condition is ABSENT else condition):
            raise Refusal("condition")
        self.bucket.serial += 1
        self.bucket.objects[path] = (data, self.bucket.serial)
        return self.bucket.serial

    async def _put(self, path: str, body: Body, condition: Token | Condition) -> Token:
        return await self._serve("put", lambda: self._store(path, body.joined(), condition), path, len(body))

    async def _begin(self, path: str) -> BucketUpload:
        def answer() -> BucketUpload:
            self.bucket.serial += 1
            self.bucket.uploads[self.bucket.serial] = {}
            return BucketUpload(self, path, self.bucket.serial)

        return await self._serve("begin", answer, path)

    async def _delete(self, paths: Sequence[str]) -> None:
        def answer() -> None:
            for path in paths:
                self.bucket.objects.pop(path, None)

        await self._serve("delete", answer, len(paths))

    async def _page(self, prefix: str, deep: bool, after: Any) -> tuple[list[Listed], Any]:
        def answer() -> tuple[list[Listed], Any]:
            found: dict[str, Listed] = {}
            for path, (data, _) in sorted(self.bucket.objects.items()):
                if path.startswith(prefix):
                    end = path.find("/", len(prefix))
                    name = path if deep or end < 0 else path[: end + 1]
                    found[name] = Listed(name, len(data) if name == path and (deep or end < 0) else None)
            rest = [item for item in found.values() if after is None or item.path > after]
            return rest[:700], rest[699].path if len(rest) > 700 else None

        return await self._serve("page", answer, prefix)

    def _failure(self, error: Exception, path: str, condition: Token | Condition) -> OcdbtError:
        assert isinstance(error, Refusal), repr(error)
        if error.kind == "absent":
            return PathNotFoundError(f"There is no {self.describe(path)}", path=path)
        if error.kind == "condition":
            return self._changed(path)
        if error.kind == "denied":
            return StoragePermissionError(f"{self.describe(path)}: denied", path=path)
        return StorageError(f"{self.describe(path)}: {error.kind} it is", kind=error.kind, path=path)


class BucketUpload:
    def __init__(self, storage: BucketStorage, path: str, upload: int) -> None:
        self.storage, self.path, self.upload = storage, path, upload

    async def part(self, number: int, body: Body) -> None:
        def answer() -> None:
            self.storage.bucket.uploads[self.upload][number] = body.joined()

        await self.storage._serve("part", answer, number, len(body))

    async def complete(self) -> None:
        def answer() -> None:
            if self.upload not in self.storage.bucket.uploads:  # asked again
                return
            parts = self.storage.bucket.uploads[self.upload]
            assert sorted(parts) == list(range(1, len(parts) + 1))
            self.storage._store(self.path, b"".join(parts[number] for number in sorted(parts)), ABSENT)
            del self.storage.bucket.uploads[self.upload]

        await self.storage._serve("complete", answer)

    async def abort(self) -> None:
        await self.storage._serve("abort", lambda: self.storage.bucket.uploads.pop(self.upload, None))
