"""Python's cyclic garbage collector, kept out of the way while a large tree is handled."""

from __future__ import annotations

import gc

__all__ = ["collector_paused"]


def collector_paused() -> _Pause:
    """No collection of cycles within.

    A tree of a hundred thousand leaves is as many new objects, none of them garbage, and the collector would look at
    all of them again and again: a third of the time of a restore. Reference counting goes on as ever.
    """
    return _Pause()


class _Pause:
    """Nothing is made between the end of the pause and its caller's: the first new object sets the collector going."""

    __slots__ = ("_was_enabled",)

    def __enter__(self) -> None:
        self._was_enabled = gc.isenabled()
        gc.disable()

    def __exit__(self, *_: object) -> None:
        if self._was_enabled:
            gc.enable()
