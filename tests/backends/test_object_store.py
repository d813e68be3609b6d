"""What all object stores share, on a bucket in memory."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ocdbt_py.errors import InvalidArgumentError
from ocdbt_py.storage.protocol import Condition, Listed, Read, Storage, Token
from ocdbt_py.storage.protocol import Unchanged as UnchangedAnswer
from ocdbt_py.testing.storage_suite import StorageSuite
from ocdbt_py_backends import object_writing
from ocdbt_py_backends.body import Body
from ocdbt_py_backends.object_requests import READ_BYTES, SLOTS
from tests.backends.buckets import BUCKETS, Bucket, BucketStorage

MiB = 1 << 20


class TestBucketStorage(StorageSuite):
    @pytest.fixture
    def storage_and_root(self, request: pytest.FixtureRequest) -> Iterator[tuple[Storage, str]]:
        BUCKETS[request.node.nodeid] = Bucket()
        yield BucketStorage(request.node.nodeid), "bucket/root"
        del BUCKETS[request.node.nodeid]


class TestBucketStorageInParts(TestBucketStorage):
    """Whatever is written by ``create`` or ``put`` goes in parts."""

    @pytest.fixture(autouse=True)
    def parts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(object_writing, "PART_BYTES", 64)
        monkeypatch.setattr(BucketStorage, "single_bytes", 0)


# --- memory


class Sink(BucketStorage):
    """Takes bodies as a client library does, and gives zeros."""

    async def _put(self, path: str, body: Body, condition: Token | Condition) -> Token:
        return await self._drain(body)

    async def _begin(self, path: str) -> Any:
        return SinkUpload(self)

    async def _get(self, path: str, start: int, stop: int | None, unless: Token | None) -> Read | UnchangedAnswer:
        assert stop is not None
        await asyncio.sleep(0)
        return Read(bytes(stop - start), 1, 1 << 40)

    async def _drain(self, body: Body) -> int:
        reader, seen = body.reader(), 0
        while piece := reader.read(64 << 10):
            seen += len(piece)
            await asyncio.sleep(0)
        assert seen == len(body)
        return seen


class SinkUpload:
    def __init__(self, storage: Sink) -> None:
        self.storage = storage
        self.seen = 0

    async def part(self, number: int, body: Body) -> None:
        seen = await self.storage._drain(body)
        self.seen += seen

    async def complete(self) -> None:
        assert self.seen == 200 * MiB

    async def abort(self) -> None:
        raise AssertionError("nothing failed")


def peak_of(action: Callable[[], object]) -> int:
    """Bytes that were allocated at the worst moment, beside what was there before."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_putting_and_reading_take_little_memory_beside_the_data() -> None:
    storage = Sink("sink")
    data = memoryview(bytearray(200 * MiB))

    def stream() -> None:
        writer = storage.create("b/f")
        for start in range(0, len(data), 30 * MiB):
            writer.write([data[start : start + 30 * MiB]])
        writer.close()

    assert peak_of(lambda: storage.put("b/f", [data[: 77 * MiB], data[77 * MiB :]])) < 4 * MiB
    assert peak_of(lambda: storage.put("b/f", [data[: 60 * MiB]])) < 4 * MiB
    assert peak_of(stream) < 36 * MiB
    fillings = [("b/f", 0, data[: 150 * MiB]), ("b/f", 1 << 30, data[150 * MiB :])]
    assert peak_of(lambda: storage.read_many_into(fillings)) < (SLOTS + 1) * READ_BYTES
    many = [(f"b/{n}", 0, 20 * MiB) for n in range(5)]
    assert peak_of(lambda: storage.read_many(many)) < 100 * MiB + 64 * MiB


# --- names and directories


def test_objects_that_stand_for_directories_are_not_files(storage: BucketStorage, bucket: Bucket) -> None:
    for path in ("b/d/", "b/d/e/", "b/d/f"):
        bucket.objects[path] = (b"", 1)
    assert list(storage.list("b/")) == [Listed("b/d/", None)]
    assert set(storage.list("b/d/")) == {Listed("b/d/e/", None), Listed("b/d/f", 0)}
    assert list(storage.list("b/", deep=True)) == [Listed("b/d/f", 0)]
    storage.delete("b/d/")
    assert bucket.objects == {}


def test_a_large_directory_is_listed_and_deleted_in_pages(storage: BucketStorage, bucket: Bucket) -> None:
    for n in range(2500):
        bucket.objects[f"b/d/{n}"] = (b"", n)
    assert len(list(storage.list("b/d/"))) == 2500
    storage.delete("b/d/")
    assert bucket.objects == {}
    assert [request[1] for request in bucket.requests if request[0] == "delete"] == [1000, 1000, 500]


@pytest.mark.parametrize("path", ["bucket", "bucket/", "", "/"])
def test_a_bucket_is_no_object_and_is_not_deleted(storage: BucketStorage, bucket: Bucket, path: str) -> None:
    for attempt in (
        lambda: storage.read(path),
        lambda: storage.write(path, [b"x"]),
        lambda: storage.put(path, [b"x"]),
        lambda: storage.create(path),
        lambda: storage.delete(path),
    ):
        with pytest.raises(InvalidArgumentError):
            attempt()
    assert bucket.requests == []
