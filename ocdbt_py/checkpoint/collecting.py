"""Python's cyclic garbage collector, kept out of the way while a large tree is handled."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["collector_paused"]


@contextmanager
def collector_paused() -> Iterator[None]:
    """No collection of cycles within.

    A tree of a hundred thousand leaves is as many new objects, none of them garbage, and the collector would look at
    all of them again and again: a third of the time of a restore. Reference counting goes on as ever.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
