"""What several processes wrote, each into a database of its own, read as the one database it was to become.

    ocdbt.process_0/    documents, and its own chunks
    ocdbt.process_1/    its own chunks

Their writers would have put the entries of all into one version of a database above them. Here they are looked up in
each; of equal keys the last one counts, as it would had they been copied one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from ocdbt_py.checkpoint.layout import child
from ocdbt_py.checkpoint.views import View, pairs, runs
from ocdbt_py.database import Database, open_place
from ocdbt_py.database_reading import Run
from ocdbt_py.engine.mutations import KeyRange
from ocdbt_py.engine.tree import Found
from ocdbt_py.errors import PathNotFoundError
from ocdbt_py.format.datafile import DataFileId, Location
from ocdbt_py.storage.location import Place

__all__ = ["Unmerged"]


class Unmerged(View):
    """The databases in the directories ``names`` of ``place``, as they are now. One that was never begun is empty."""

    def __init__(self, place: Place, names: Iterable[str]) -> None:
        super().__init__(place)
        self._parts: list[tuple[bytes, Database]] = []
        for name in sorted(names, reverse=True):  # the last one first: it counts
            try:
                part = open_place(child(place, name), max_staleness=math.inf).snapshot()
            except PathNotFoundError:
                continue
            self._parts.append((f"{name}/".encode("utf-8", "surrogateescape"), part))

    def _find(self, keys: list[bytes]) -> list[Found]:
        found: list[Found] = [None] * len(keys)
        missing = list(range(len(keys)))
        for name, part in self._parts:
            for i, value in zip(missing, part._find([keys[i] for i in missing]), strict=True):
                found[i] = None if value is None else _from_above(name, value)
            missing = [i for i in missing if found[i] is None]
        return found

    def _runs(self, inside: KeyRange) -> Iterator[Run]:
        return runs([_pairs_from_above(name, part, inside) for name, part in self._parts])


def _pairs_from_above(name: bytes, part: Database, inside: KeyRange) -> Iterator[tuple[bytes, bytes | Location]]:
    for key, value in pairs(part, inside):
        yield key, _from_above(name, value)


def _from_above(name: bytes, value: bytes | Location) -> bytes | Location:
    """A value of a database in the directory ``name`` as one level up it is."""
    if not isinstance(value, Location):
        return value
    file, offset, length = value
    return Location(DataFileId(name + file.base_path, file.relative_path), offset, length)
