"""Values from one database into another: by reference where the one lies below the other, else by their bytes.

A reference names its file by a path below the database, in two parts; putting the way from the upper database down to
the lower one in front of the first part ("base path") is all it takes, and chains of merges need nothing more
("Transitive base path"). A value that is inline in the source is a new value in the target.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from ocdbt_py.engine.mutations import Deferred, Value
from ocdbt_py.format.datafile import DataFileId, Location
from ocdbt_py.storage.location import Place

Fetch = Callable[[Sequence[tuple[Location, int, int]]], list[bytes]]


def relative_base(target: Place, source: Place) -> bytes | None:
    """The way from ``target`` down to ``source``, with a slash at its end; None where files cannot be referred to."""
    if target.storage != source.storage or not (source.path + "/").startswith(target.path + "/"):
        return None
    below = source.path[len(target.path) + 1 :]
    return f"{below}/".encode("utf-8", "surrogateescape") if below else b""


def copied(value: bytes | Location, reach: bytes | None, fetch: Fetch) -> Value:
    """What to put into the target for a value of the source, ``reach`` being :func:`relative_base`."""
    if not isinstance(value, Location):
        return value
    if reach is not None:
        base, relative = value.file
        return Location(DataFileId(reach + base, relative), value.offset, value.length)
    return Deferred(partial(_load, value, fetch))


def _load(value: Location, fetch: Fetch) -> bytes:
    return fetch([(value, 0, value.length)])[0] if value.length else b""
