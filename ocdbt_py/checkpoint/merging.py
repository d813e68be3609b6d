"""What several processes wrote, each into a database of its own, as one database: by reference, no value moves.

    PYTREE/manifest.ocdbt, d/                    the whole, which readers open
    PYTREE/ocdbt.process_N/manifest.ocdbt, d/    what process N wrote; the whole refers to files in here

Values that stand in the tree are copied along with it. Merging reads finished databases and writes new files, so doing
it again is harmless.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from ocdbt_py.checkpoint.layout import child
from ocdbt_py.checkpoint.new_database import NewDatabase
from ocdbt_py.database import Database, open_place
from ocdbt_py.errors import CorruptDataError
from ocdbt_py.format.datafile import DataFileId, Location
from ocdbt_py.storage.location import Place

__all__ = ["Merged", "can_merge", "merge"]


class Merged(NamedTuple):
    """A database that is whole once its manifest is written; ``data_files`` are paths."""

    manifest: bytes
    data_files: list[str]


def merge(place: Place, parts: Iterable[str], num_keys: int) -> Merged:
    """All of the databases ``parts`` below ``place``, which have ``num_keys`` keys between them, none twice."""
    database = NewDatabase(place.storage, place.path)
    try:
        found = 0
        for name in parts:
            found += _add(database, place, name)
        manifest = database.finish()
        _judge(place, found, database.num_keys, num_keys)
    except BaseException:
        database.abort()
        raise
    return Merged(manifest, database.files)


def can_merge(place: Place, parts: Iterable[str], num_keys: int) -> None:
    """Raise what :func:`merge` would, without writing anything."""
    found = [entry.key for name in parts for entry in _open(place, name).scan()]
    _judge(place, len(found), len(set(found)), num_keys)


def _judge(place: Place, found: int, different: int, num_keys: int) -> None:
    if not found == different == num_keys:
        raise CorruptDataError(
            f"The processes wrote {found} documents and chunks, {different} of them different, where the tree has "
            f"{num_keys}: they did not divide the arrays alike",
            url=place.url,
        )


def _open(place: Place, name: str) -> Database:
    return open_place(child(place, name), max_staleness=math.inf).snapshot()


def _add(database: NewDatabase, place: Place, name: str) -> int:
    """Put everything of one part; how much it was."""
    part = _open(place, name)
    base = f"{name}/".encode()
    inline = []
    count = 0
    for entry in part.scan():
        count += 1
        at = entry.location
        if at is None:
            inline.append(entry.key)
        else:
            file = at.file.encode("utf-8", "surrogateescape")
            database.refer(entry.key, Location(DataFileId(base, file), at.offset, at.length))
    for key, value in zip(inline, part.read_many(inline), strict=True):
        database.put_document(key, value)
    return count
