"""Where a pytree's arrays lie when they are not in one database: mappings that are read as a database is.

    Overlay                                    a few values in memory, before those of another
    :mod:`~ocdbt_py.checkpoint.directories`    a directory for each array, and a file for each chunk
    :mod:`~ocdbt_py.checkpoint.unmerged`       a database for each process

A view says what stands at a key: its bytes, or the file they are in and where. What a database makes of that (many
values in few requests, into the caller's memory, in order, parts of them) comes from the same code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from heapq import merge
from operator import itemgetter
from typing import Any

from ocdbt_py.database_reading import Readable, Run
from ocdbt_py.engine.mutations import KeyRange
from ocdbt_py.engine.nodes import Nodes
from ocdbt_py.engine.tree import Found
from ocdbt_py.format.datafile import Location
from ocdbt_py.storage.location import Place
from ocdbt_py.storage.protocol import Buffer

__all__ = ["Overlay", "View", "pairs", "runs"]

_RUN = 1024


class View(Readable):
    """Keys whose values lie in files below a place. Safe for threads; picklable."""

    def __init__(self, place: Place) -> None:
        super().__init__(b"", place.url)
        self.place = place
        self._files = Nodes(place.storage, place.path, cache_bytes=0)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_files"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._files = Nodes(self.place.storage, self.place.path, cache_bytes=0)

    def __len__(self) -> int:
        return sum(map(len, self._batches(b"")))

    def _fetch(self, ranges: Sequence[tuple[Location, int, int]]) -> list[bytes]:
        return self._files.values(ranges)

    def _fill(self, fillings: Sequence[tuple[Location, int, memoryview]]) -> None:
        self._files.fill(fillings)


class Overlay(View):
    """``values``, and below them what ``others`` holds, if there are others."""

    def __init__(self, place: Place, values: Mapping[bytes, Buffer], others: Readable | None) -> None:
        super().__init__(place)
        self._values_here = {key: bytes(value) for key, value in values.items()}
        self._others = others

    def _find(self, keys: list[bytes]) -> list[Found]:
        found: list[Found] = [self._values_here.get(key) for key in keys]
        below = [i for i, value in enumerate(found) if value is None]
        if self._others is not None and below:
            for i, value in zip(below, self._others._find([keys[i] for i in below]), strict=True):
                found[i] = value
        return found

    def _runs(self, inside: KeyRange) -> Iterator[Run]:
        here = sorted(item for item in self._values_here.items() if inside.covers(item[0], item[0] + b"\0"))
        return runs([iter(here)] if self._others is None else [iter(here), pairs(self._others, inside)])

    def _fetch(self, ranges: Sequence[tuple[Location, int, int]]) -> list[bytes]:
        return [] if self._others is None else self._others._fetch(ranges)

    def _fill(self, fillings: Sequence[tuple[Location, int, memoryview]]) -> None:
        if self._others is not None:
            self._others._fill(fillings)


def pairs(readable: Readable, inside: KeyRange) -> Iterator[tuple[bytes, bytes | Location]]:
    """What stands at each key in a range, in order."""
    for run in readable._runs(inside):
        for i, key in enumerate(run.keys):
            yield key, run.value(i)


def runs(sources: Sequence[Iterator[tuple[bytes, bytes | Location]]]) -> Iterator[Run]:
    """What several sources hold, each in the order of its keys; of equal keys that of the first source counts."""
    keys: list[bytes] = []
    values: list[bytes | Location] = []
    last = None
    for key, value in merge(*sources, key=itemgetter(0)):  # equal keys come in the order of their sources
        if key == last:
            continue
        last = key
        keys.append(key)
        values.append(value)
        if len(keys) == _RUN:
            yield Run(keys, values.__getitem__)
            keys, values = [], []
    if keys:
        yield Run(keys, values.__getitem__)
