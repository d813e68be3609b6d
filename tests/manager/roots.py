"""What these tests save, and where: storages that rename and such that do not, saves that wait, a clock that stands."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ocdbt_py.backends import MemoryStorage
from ocdbt_py.checkpoint.contents import Contents, pytree_item
from ocdbt_py.checkpoint.layout import TEMPORARY, child
from ocdbt_py.checkpoint.restore import restore_place
from ocdbt_py.errors import NotFoundError
from ocdbt_py.manager.options import CheckpointManagerOptions
from ocdbt_py.manager.root import Root
from ocdbt_py.storage.location import Place
from ocdbt_py.testing.faulty import FaultyStorage
from tests.checkpoint.places import Bucket

NewPlace = Callable[..., Place]
"""Called with a storage or nothing; an absent directory, below one of its own."""

STORAGES = pytest.mark.parametrize("kind", [FaultyStorage, Bucket], ids=["renaming", "bucket"])


def storage_of(kind: type[FaultyStorage]) -> FaultyStorage:
    return kind(MemoryStorage())


def tree_of(step: int) -> dict[str, Any]:
    return {"w": np.full(300, step, np.float32), "step": step}


def contents_of(step: int) -> Callable[[], Contents]:
    return lambda: Contents({"default": pytree_item(tree_of(step))}, {"of": step})


def put(root: Root, *steps: int, force: bool = False) -> None:
    """Save steps, each to its end."""
    for step in steps:
        assert root.save(step, contents_of(step), force=force)
        root.wait_until_finished()


def sync(**options: Any) -> CheckpointManagerOptions:
    return CheckpointManagerOptions(enable_async_checkpointing=False, **options)


def whole(place: Place, count: int = 40) -> set[int]:
    """The steps below a root that can be restored, and hold what was saved as them; found by trying."""
    found = set()
    for step in range(count):
        try:
            tree = restore_place(child(place, str(step)), item="default")
        except NotFoundError:
            continue
        np.testing.assert_equal(tree, tree_of(step))
        found.add(step)
    return found


def leftovers(place: Place) -> list[str]:
    """Names below a root that are neither steps nor the root's metadata."""
    start = len(place.path) + 1
    names = {item.path[start:].rstrip("/") for item in place.storage.list(f"{place.path}/")}
    return sorted(name for name in names if TEMPORARY in name or not name.isdigit()) if names else []


class Gate:
    """Progress that stops a save in the middle until it is opened."""

    def __init__(self) -> None:
        self.is_open = threading.Event()
        self.error: Exception | None = None

    def set_size(self, size: int) -> None:
        pass

    def relative_update(self, count: int) -> None:
        assert self.is_open.wait(60)
        if self.error is not None:
            raise self.error


class Clock:
    """A clock that stands until it is set."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now
        self.slept: list[float] = []

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float, /) -> None:
        self.slept.append(seconds)
        self.now += seconds
