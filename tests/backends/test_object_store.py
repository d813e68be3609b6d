"""What all object stores share, on a bucket in memory that counts requests, delays them, and fails on purpose."""

from __future__ import annotations

import asyncio
import io
import multiprocessing
import os
import pickle
import signal
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, TypeVar

import fsspec.asyn
import pytest

from ocdbt_py.errors import (
    AlreadyExistsError,
    ConflictError,
    CorruptDataError,
    InvalidArgumentError,
    OcdbtError,
    PathNotFoundError,
    StorageError,
    StoragePermissionError,
)
from ocdbt_py.storage.protocol import (
    ABSENT,
    ANY,
    UNCHANGED,
    Capabilities,
    Condition,
    Listed,
    Read,
    Storage,
    Token,
    Writer,
)
from ocdbt_py.storage.protocol import Unchanged as UnchangedAnswer
from ocdbt_py.testing.storage_suite import StorageSuite, content, in_threads, put
from ocdbt_py_backends import object_store
from ocdbt_py_backends.body import Body
from ocdbt_py_backends.object_store import ATTEMPTS, GAP, READ_BYTES, SLOTS, ObjectStore, OutOfRange

T = TypeVar("T")
MiB = 1 << 20


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


@pytest.fixture
def storage(request: pytest.FixtureRequest) -> Iterator[BucketStorage]:
    BUCKETS[request.node.nodeid] = Bucket()
    yield BucketStorage(request.node.nodeid)
    del BUCKETS[request.node.nodeid]


@pytest.fixture
def bucket(storage: BucketStorage) -> Bucket:
    return storage.bucket


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uploads of more than 400 bytes go in parts of 100."""
    monkeypatch.setattr(object_store, "PART_BYTES", 100)
    monkeypatch.setattr(BucketStorage, "single_bytes", 400)


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
        monkeypatch.setattr(object_store, "PART_BYTES", 64)
        monkeypatch.setattr(BucketStorage, "single_bytes", 0)


def write_and_close(writer: Writer, data: bytes) -> None:
    writer.write([data])
    writer.close()


# --- attempts


@pytest.mark.parametrize("kind", ["throttled", "unreachable", "unavailable", "interrupted", "timeout"])
def test_what_may_pass_is_tried_again(storage: BucketStorage, bucket: Bucket, kind: str) -> None:
    storage.write("b/f", [b"x"])
    bucket.faults = {name: [kind] * (ATTEMPTS - 1) for name in ("get", "put", "delete", "page")}
    storage.write("b/f", [b"y"])
    assert content(storage, "b/f") == b"y"
    assert [item.path for item in storage.list("b/")] == ["b/f"]
    storage.delete("b/f")
    assert [bucket.count(name) for name in ("get", "put", "delete", "page")] == [6, 7, 6, 6]


def test_attempts_are_bounded_and_the_last_error_is_shown(storage: BucketStorage, bucket: Bucket) -> None:
    bucket.faults["get"] = ["throttled"] * (ATTEMPTS - 1) + ["unavailable"] * 5
    with pytest.raises(StorageError, match=r"bucket://b/f: unavailable it is \(tried 6 times\)") as caught:
        storage.read("b/f")
    assert caught.value.kind == "unavailable"
    assert isinstance(caught.value.__cause__, Refusal)
    assert caught.value.__cause__.kind == "unavailable"
    assert bucket.count("get") == ATTEMPTS


def test_pauses_grow_to_a_limit(storage: BucketStorage, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses = []
    sleep = asyncio.sleep

    async def pause(seconds: float) -> None:
        if seconds:
            pauses.append(seconds)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", pause)
    bucket.faults["get"] = ["throttled"] * ATTEMPTS
    with pytest.raises(StorageError):
        storage.read("b/f")
    most = [0.001, 0.002, 0.004, 0.004, 0.004]
    assert all(limit / 2 <= seconds <= limit for seconds, limit in zip(pauses, most, strict=True))


@pytest.mark.parametrize("kind", ["denied", "credentials", "no-such-bucket"])
def test_what_stays_is_not_tried_again(storage: BucketStorage, bucket: Bucket, kind: str) -> None:
    bucket.faults["get"] = [kind]
    with pytest.raises(StorageError) as caught:
        storage.read("b/f")
    assert caught.value.kind == ("permission" if kind == "denied" else kind)
    assert "tried" not in str(caught.value)
    assert bucket.count("get") == 1


def test_a_request_that_is_not_answered_ends(
    storage: BucketStorage, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write("b/f", [b"x"])
    monkeypatch.setattr(BucketStorage, "patience", 0.01)
    bucket.delay = 3600
    with pytest.raises(StorageError, match="no answer in time") as caught:
        storage.read("b/f", 0, 1)
    assert caught.value.kind == "timeout"
    assert bucket.cancelled == bucket.count("get") == ATTEMPTS
    with pytest.raises(StorageError) as caught:
        storage.write("b/f", [b"y"], ABSENT)
    assert caught.value.kind == "ambiguous"


@pytest.mark.parametrize("kind", ["unavailable", "interrupted", "timeout"])
@pytest.mark.parametrize("condition", ["absent", "token"])
def test_a_conditional_write_whose_answer_was_lost_is_ambiguous(
    storage: BucketStorage, bucket: Bucket, kind: str, condition: str
) -> None:
    token = storage.write("b/f", [b"x"]) if condition == "token" else ABSENT
    made = bucket.count("put")
    bucket.faults["put"] = ["throttled", f"lost:{kind}"]
    with pytest.raises(StorageError, match="whether the write took place is not known") as caught:
        storage.write("b/f", [b"y"], token)
    assert caught.value.kind == "ambiguous"
    assert isinstance(caught.value.__cause__, Refusal)
    assert bucket.count("put") == made + 2
    assert content(storage, "b/f") == b"y"


@pytest.mark.parametrize("kind", ["throttled", "unreachable"])
def test_a_conditional_write_that_was_not_begun_is_tried_again(
    storage: BucketStorage, bucket: Bucket, kind: str
) -> None:
    bucket.faults["put"] = [kind] * 3
    token = storage.write("b/f", [b"x"], ABSENT)
    with pytest.raises(ConflictError):
        storage.write("b/f", [b"y"], ABSENT)
    storage.write("b/f", [b"z"], token)
    assert bucket.count("put") == 6


# --- new objects whose answer was lost


@pytest.mark.parametrize("faults", [["lost:interrupted"], ["timeout", "lost:unavailable", "throttled"]])
def test_a_new_file_whose_answer_was_lost_is_ours(
    storage: BucketStorage, bucket: Bucket, faults: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "READ_BYTES", 7)
    for path, buffers in (("b/f", [b"one", b"two" * 5]), ("b/empty", [])):
        bucket.faults["put"] = list(faults)
        storage.put(path, buffers)
        assert content(storage, path) == b"".join(buffers)
    bucket.faults["put"] = list(faults)
    put(storage, "b/created", b"x")
    assert content(storage, "b/created") == b"x"


@pytest.mark.parametrize("others", [b"other", b"mine, but longer", b""])
def test_a_new_file_whose_answer_was_lost_is_not_taken_for_anothers(
    storage: BucketStorage, bucket: Bucket, others: bytes
) -> None:
    storage.write("b/f", [others])
    bucket.faults["put"] = ["interrupted"]
    with pytest.raises(AlreadyExistsError):
        storage.put("b/f", [b"mine!"])
    assert content(storage, "b/f") == others


def test_a_file_of_equal_content_counts_as_ours(storage: BucketStorage, bucket: Bucket) -> None:
    storage.put("b/f", [b"same"])
    storage.put("b/f", [b"same"])
    assert bucket.objects["b/f"] == (b"same", 1)
    with pytest.raises(ConflictError):
        storage.write("b/f", [b"same"], ABSENT)


def test_a_new_file_of_which_nothing_is_known_stays_ambiguous(storage: BucketStorage, bucket: Bucket) -> None:
    bucket.faults["put"] = ["interrupted"] * ATTEMPTS
    with pytest.raises(StorageError, match="tried 6 times") as caught:
        storage.put("b/f", [b"x"])
    assert caught.value.kind == "ambiguous"
    bucket.faults = {"put": ["lost:interrupted", *["unavailable"] * ATTEMPTS], "get": ["denied"]}
    with pytest.raises(StorageError) as caught:
        storage.put("b/f", [b"x"])
    assert caught.value.kind == "ambiguous"


# --- many requests


def test_neighbouring_ranges_share_a_request_and_long_ones_are_cut(storage: BucketStorage, bucket: Bucket) -> None:
    data = os.urandom(3 * READ_BYTES)
    storage.write("b/f", [data])
    ranges = [("b/f", start, start + 10) for start in range(0, 1000, 20)]
    assert storage.read_many(ranges) == [data[start:stop] for _, start, stop in ranges]
    assert bucket.count("get") == 1
    far = [("b/f", 0, 10), ("b/f", 10 + GAP, 20 + GAP), ("b/f", 21 + 2 * GAP, 30 + 2 * GAP)]
    assert storage.read_many(far) == [data[start:stop] for _, start, stop in far]
    assert bucket.count("get") == 3
    target = bytearray(len(data) - 1)
    storage.read_many_into([("b/f", 1, memoryview(target))])
    assert target == data[1:]
    assert storage.read_many([("b/f", 0, len(data))]) == [data]
    assert bucket.count("get") == 9
    assert max(stop - start for _, _, start, stop in bucket.requests[1:]) == READ_BYTES


def test_requests_at_a_time_are_bounded_also_among_threads(storage: BucketStorage, bucket: Bucket) -> None:
    for n in range(60):
        storage.write(f"b/{n}", [b"%d" % n])
    bucket.delay = 0.002
    wanted = [(f"b/{n}", 0, len(f"{n}")) for n in range(60)]
    results = in_threads([lambda: storage.read_many(wanted)] * 3)
    assert results == [[b"%d" % n for n in range(60)]] * 3
    assert bucket.most_running == SLOTS


def test_the_first_error_ends_the_other_requests(storage: BucketStorage, bucket: Bucket) -> None:
    bucket.delay = 0.05
    bucket.faults["get"] = ["absent"] * 2 + ["denied"]

    def slow_others(method: str) -> None:
        bucket.delay = 3600 if bucket.count("get") > 3 else 0.05

    bucket.during = slow_others
    with pytest.raises((PathNotFoundError, StoragePermissionError)) as caught:
        storage.read_many([(f"b/{n}", 0, 1) for n in range(100)])
    assert isinstance(caught.value.__cause__, Refusal)
    assert caught.value.__cause__.kind in {"absent", "denied"}
    assert bucket.running == 0
    assert bucket.count("get") == SLOTS
    assert bucket.cancelled >= SLOTS - 3


def test_a_file_too_short_is_corrupt_wherever_its_end_lies(storage: BucketStorage, bucket: Bucket) -> None:
    storage.write("b/f", [bytes(100)])
    for start, stop in [(50, 101), (100, 101), (1 << 40, (1 << 40) + 1)]:
        with pytest.raises(CorruptDataError, match="ends at byte 100"):
            storage.read_many([("b/f", start, stop)])


def test_no_server_is_asked_for_an_absurd_offset(storage: BucketStorage, bucket: Bucket) -> None:
    storage.write("b/f", [b"abc"])
    found = storage.read("b/f", 1 << 63, 1 << 64)
    assert isinstance(found, Read)
    assert (found.data, found.size) == (b"", 3)
    assert bucket.requests[1:] == [("get", "b/f", 0, 1)]


# --- parts


@pytest.mark.usefixtures("small_parts")
def test_a_large_file_goes_in_parts_some_at_a_time(storage: BucketStorage, bucket: Bucket) -> None:
    data = os.urandom(1050)
    bucket.delay = 0.001
    bucket.faults["part"] = ["interrupted", "throttled"]
    bucket.faults["complete"] = ["lost:timeout"]
    storage.put("b/f", [data[:1], memoryview(data)[1:330], data[330:]])
    assert content(storage, "b/f") == data
    assert bucket.count("part") == 11 + 2
    assert {request[2] for request in bucket.requests if request[0] == "part"} == {100, 50}
    assert bucket.most_running == storage.parallel_parts
    assert bucket.uploads == {}
    assert bucket.count("put") == 0


@pytest.mark.usefixtures("small_parts")
def test_parts_are_larger_where_there_would_be_too_many(
    storage: BucketStorage, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "_MOST_PARTS", 3)
    storage.put("b/f", [bytes(1050)])
    assert sorted(request[1:] for request in bucket.requests if request[0] == "part") == [(1, 400), (2, 400), (3, 250)]


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("method", ["part", "complete"])
def test_a_failed_upload_leaves_nothing(storage: BucketStorage, bucket: Bucket, method: str) -> None:
    bucket.faults = {method: ["denied"], "abort": ["unavailable"]}
    with pytest.raises(StoragePermissionError):
        storage.put("b/f", [bytes(1000)])
    assert (bucket.objects, bucket.uploads) == ({}, {})
    bucket.faults = {method: ["denied"]}
    writer = storage.create("b/f")
    with pytest.raises(StoragePermissionError):
        write_and_close(writer, bytes(1000))
    writer.abort()
    assert (bucket.objects, bucket.uploads) == ({}, {})


@pytest.mark.usefixtures("small_parts")
def test_an_upload_to_a_name_that_was_taken_leaves_nothing(storage: BucketStorage, bucket: Bucket) -> None:
    writer = storage.create("b/f")
    writer.write([bytes(1000)])
    storage.put("b/f", [b"first"])
    for attempt in (writer.close, lambda: storage.put("b/f", [bytes(1000)])):
        with pytest.raises(AlreadyExistsError):
            attempt()
    assert content(storage, "b/f") == b"first"
    assert bucket.uploads == {}


@pytest.mark.usefixtures("small_parts")
def test_a_stream_is_cut_into_equal_parts_however_it_is_written(storage: BucketStorage, bucket: Bucket) -> None:
    data = os.urandom(1234)
    writer = storage.create("b/f")
    cuts = [0, 1, 99, 100, 100, 350, 351, 900, 1234]
    for start, stop in pairwise(cuts):
        piece = bytearray(data[start:stop])
        writer.write([piece[:5], memoryview(piece)[5:]])
        piece[:] = bytes(len(piece))
    writer.close()
    assert content(storage, "b/f") == data
    assert sorted(request[1:] for request in bucket.requests if request[0] == "part") == [
        *((number, 100) for number in range(1, 13)),
        (13, 34),
    ]


@pytest.mark.usefixtures("small_parts")
def test_an_aborted_stream_leaves_nothing(storage: BucketStorage, bucket: Bucket) -> None:
    writer = storage.create("b/f")
    writer.write([bytes(250)])
    assert len(bucket.uploads) == 1
    writer.abort()
    writer.abort()
    assert bucket.uploads == {}
    with pytest.raises(InvalidArgumentError):
        writer.write([b"x"])
    with pytest.raises(InvalidArgumentError):
        writer.close()


def test_an_interrupted_upload_leaves_nothing(storage: BucketStorage, bucket: Bucket, small_parts: None) -> None:
    bucket.delay = 0.01

    def interrupt(method: str) -> None:
        if method == "part" and bucket.count("part") == 4:
            bucket.delay = 3600
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        elif method == "abort":
            bucket.delay = 0

    bucket.during = interrupt
    with pytest.raises(KeyboardInterrupt):
        storage.put("b/f", [bytes(1000)])
    assert (bucket.objects, bucket.uploads, bucket.running) == ({}, {}, 0)
    assert bucket.count("abort") == 1


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


# --- loops, threads, processes


def test_a_call_in_the_loop_itself_is_refused_and_not_waited_for(storage: BucketStorage) -> None:
    async def call() -> None:
        storage.read("b/f")

    with pytest.raises(InvalidArgumentError, match="event loop"):
        fsspec.asyn.sync(storage.fs.loop, call)


def test_a_call_in_another_running_loop_is_answered(storage: BucketStorage) -> None:
    storage.write("b/f", [b"x"])

    async def call() -> bytes:
        return content(storage, "b/f")

    assert asyncio.run(call()) == b"x"


def test_a_wait_ends_when_the_loop_does(bucket: Bucket, storage: BucketStorage) -> None:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    own = BucketStorage(storage.name, BucketFileSystem(loop=loop, skip_instance_cache=True))
    own.write("b/f", [b"x"])
    bucket.delay = 3600
    bucket.during = lambda method: loop.stop()
    with pytest.raises(StorageError, match="event loop"):
        own.read("b/f")
    thread.join()
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0.001))
    loop.close()


def test_an_interrupt_ends_a_wait_and_the_request(storage: BucketStorage, bucket: Bucket) -> None:
    bucket.delay = 3600
    bucket.during = lambda method: signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        storage.read("b/f")
    assert (bucket.running, bucket.cancelled) == (0, 1)


def test_a_pickle_is_equal_and_has_connections_of_its_own(storage: BucketStorage) -> None:
    storage.write("b/f", [b"x"])
    again = pickle.loads(pickle.dumps(storage))
    assert again == storage
    assert hash(again) == hash(storage)
    assert again != BucketStorage("another")
    assert content(again, "b/f") == b"x"
    assert repr(again) == "BucketStorage()"


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of a newer Python, about threads of others
def test_a_forked_child_uses_a_filesystem_of_its_own(storage: BucketStorage) -> None:
    storage.write("b/f", [b"x"])
    of_parent = storage.fs

    def child() -> None:
        same = [storage.fs is of_parent, storage.fs is not storage.fs, content(storage, "b/f") != b"x"]
        same += [result != b"x" for result in in_threads([lambda: content(storage, "b/f")] * 4)]
        again = pickle.loads(pickle.dumps(storage))
        os._exit(sum(same) + (content(again, "b/f") != b"x"))

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert storage.fs is of_parent
    assert content(storage, "b/f") == b"x"


def test_many_threads_share_a_storage(storage: BucketStorage, bucket: Bucket) -> None:
    bucket.delay = 0.0005

    def work(n: int) -> list[bytes]:
        storage.put(f"b/{n}", [b"%d" % n] * 100)
        time.sleep(0)
        return storage.read_many([(f"b/{n}", start, start + 5) for start in range(50)])

    results = in_threads([partial(work, n) for n in range(16)])
    assert results == [[(b"%d" % n * 100)[start : start + 5] for start in range(50)] for n in range(16)]


# --- bodies


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
