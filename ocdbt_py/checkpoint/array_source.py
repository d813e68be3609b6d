"""Where the arrays of a tree are: in a database, in those that processes left, or in a directory for each array."""

from __future__ import annotations

import math
from typing import NamedTuple

from ocdbt_py.checkpoint.layout import PROCESS_PREFIX, Layout, holds_database
from ocdbt_py.checkpoint.metadata import METADATA
from ocdbt_py.database import open_place
from ocdbt_py.database_reading import Readable
from ocdbt_py.errors import CorruptDataError
from ocdbt_py.format.manifest import MANIFEST_NAME
from ocdbt_py.storage.location import Place

__all__ = ["ArraySource", "open_arrays"]


class ArraySource(NamedTuple):
    """``is_whole``: nothing is missing that its writers wrote, so that a chunk which is not there was left out."""

    values: Readable
    is_whole: bool = True


def open_arrays(layout: Layout, use_ocdbt: bool | None) -> ArraySource:
    """What is there now; ``use_ocdbt`` is what the metadata says, None where it says nothing."""
    place = layout.place
    if use_ocdbt is False:
        return _directory(place)
    if holds_database(layout.names):
        return ArraySource(open_place(place, max_staleness=math.inf).snapshot())
    parts = [name[:-1] for name in layout.names if name.startswith(PROCESS_PREFIX) and name.endswith("/")]
    if parts:
        from ocdbt_py.checkpoint.unmerged import Unmerged

        return ArraySource(Unmerged(place, parts), is_whole=False)
    if use_ocdbt is None:
        return _directory(place)
    raise CorruptDataError(
        f"{METADATA} lists arrays, but there is no database beside it ({MANIFEST_NAME}); the directory was copied "
        "without it",
        path=MANIFEST_NAME,
        url=place.url,
    )


def _directory(place: Place) -> ArraySource:
    from ocdbt_py.checkpoint.directories import Directory

    return ArraySource(Directory(place))
