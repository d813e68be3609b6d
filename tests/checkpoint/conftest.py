"""Places in memory, a new one for each test."""

from __future__ import annotations

from itertools import count

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from ocdbt_py.backends import MemoryStorage
from ocdbt_py.storage.location import Place
from ocdbt_py.storage.protocol import Storage
from tests.checkpoint.places import NewPlace

_numbers = count()


@pytest.fixture
def memory() -> MemoryFileSystem:
    return fsspec.filesystem("memory")


@pytest.fixture
def new_place(memory: MemoryFileSystem) -> NewPlace:
    def make(storage: Storage | None = None) -> Place:
        path = f"/checkpoints-{next(_numbers)}/7"
        storage = storage or MemoryStorage(memory)
        return Place(storage, path, storage.describe(path))

    return make


@pytest.fixture
def place(new_place: NewPlace) -> Place:
    return new_place()
