"""A new object is put once and whole, in one request or in parts, whatever goes wrong on the way."""

from __future__ import annotations

import os
import signal
import threading
from itertools import pairwise

import pytest

from ocdbt_py.errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidArgumentError,
    StorageError,
    StoragePermissionError,
)
from ocdbt_py.storage.protocol import ABSENT, Writer
from ocdbt_py.testing.files import content, put
from ocdbt_py_backends import object_writing
from ocdbt_py_backends.object_requests import ATTEMPTS
from tests.backends.buckets import Bucket, BucketStorage


def write_and_close(writer: Writer, data: bytes) -> None:
    writer.write([data])
    writer.close()


# --- new objects whose answer was lost


@pytest.mark.parametrize("faults", [["lost:interrupted"], ["timeout", "lost:unavailable", "throttled"]])
def test_a_new_file_whose_answer_was_lost_is_ours(
    storage: BucketStorage, bucket: Bucket, faults: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_writing, "READ_BYTES", 7)
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
    monkeypatch.setattr(object_writing, "_MOST_PARTS", 3)
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
