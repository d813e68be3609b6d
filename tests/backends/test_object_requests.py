"""Requests are made again while that may help, some at a time, in whatever thread or process."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import pickle
import signal
import threading
import time
from functools import partial

import fsspec.asyn
import pytest

from ocdbt_py.errors import (
    ConflictError,
    CorruptDataError,
    InvalidArgumentError,
    PathNotFoundError,
    StorageError,
    StoragePermissionError,
)
from ocdbt_py.storage.protocol import ABSENT, Read
from ocdbt_py.testing.files import content, in_threads
from ocdbt_py_backends.object_requests import ATTEMPTS, GAP, READ_BYTES, SLOTS
from tests.backends.buckets import Bucket, BucketFileSystem, BucketStorage, Refusal

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
