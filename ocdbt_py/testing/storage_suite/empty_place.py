"""Where the tests of a storage take place: an empty directory in it, which its author names."""

from __future__ import annotations

from typing import ClassVar

import pytest

from ocdbt_py.storage.protocol import Storage

__all__ = ["EmptyPlace"]


class EmptyPlace:
    """What every part of the suite has."""

    rounds: ClassVar[int] = 15
    """Of each of many writers. A server that keeps contenders waiting needs fewer; it takes two to meet at all."""

    @pytest.fixture
    def storage_and_root(self) -> tuple[Storage, str]:
        """A writable storage, and the path of an empty directory in it, which need not exist; no trailing slash."""
        raise NotImplementedError

    @pytest.fixture
    def storage(self, storage_and_root: tuple[Storage, str]) -> Storage:
        return storage_and_root[0]

    @pytest.fixture
    def root(self, storage_and_root: tuple[Storage, str]) -> str:
        return storage_and_root[1]
