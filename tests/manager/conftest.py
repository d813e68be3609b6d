"""Roots in memory, a new one for each test."""

from __future__ import annotations

from itertools import count

import fsspec
import pytest

from ocdbt_py.backends import MemoryStorage
from ocdbt_py.storage.location import Place
from ocdbt_py.storage.protocol import Storage
from tests.manager.roots import NewPlace

_numbers = count()


@pytest.fixture
def new_place() -> NewPlace:
    def make(storage: Storage | None = None) -> Place:
        path = f"/runs-{next(_numbers)}/run"
        storage = storage or MemoryStorage(fsspec.filesystem("memory"))
        return Place(storage, path, storage.describe(path))

    return make


@pytest.fixture
def place(new_place: NewPlace) -> Place:
    return new_place()
