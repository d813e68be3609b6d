"""A bucket of its own for each test of what all object stores share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ocdbt_py_backends import object_writing
from tests.backends.buckets import BUCKETS, Bucket, BucketStorage


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
    monkeypatch.setattr(object_writing, "PART_BYTES", 100)
    monkeypatch.setattr(BucketStorage, "single_bytes", 400)
