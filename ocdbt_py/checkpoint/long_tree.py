"""A pytree of very many leaves, opened for whoever wants one of them by its name.

What all of them are takes long to read and parse, the entry of one is found in the text in a moment: on a disk by
reading parts of it, in which it may be. So the rest is left where it is until somebody asks for more than a few leaves,
for their names, or for one that is not found so.
"""

from __future__ import annotations

from functools import cached_property

from ocdbt_py.checkpoint.array_source import open_arrays
from ocdbt_py.checkpoint.collecting import collector_paused
from ocdbt_py.checkpoint.layout import Kind, Layout, holds_database
from ocdbt_py.checkpoint.metadata import AGGREGATE, METADATA, decode_tree_metadata, find_leaf_metadata
from ocdbt_py.checkpoint.stored import StoredTree, check_distinct, gone, read_present
from ocdbt_py.checkpoint.tree_text import Part, UsualText
from ocdbt_py.errors import CorruptDataError, NotFoundError, PathNotFoundError
from ocdbt_py.storage.location import Place
from ocdbt_py.storage.protocol import Read

__all__ = ["LongTree"]

_LONG = 16 << 10
"""Bytes of ``_METADATA``; a shorter one is parsed sooner than searched with care."""

_SEARCHES = 16
"""Leaves that are looked for one by one, before all of them are parsed."""


class LongTree:
    """A pytree of so many leaves that parsing what they are takes longer than reading one: opened, and not yet parsed.

    Safe for threads.
    """

    def __init__(self, layout: Layout, text: UsualText, size: int) -> None:
        self._layout = layout
        self._text = text
        self._size = size
        self._arrays = open_arrays(layout, None)
        self._searches = 0

    @classmethod
    def open(cls, layout: Layout) -> LongTree | StoredTree:
        """Anything that :meth:`StoredTree.open` opens; a long tree is pinned, but its metadata may still be corrupt."""
        is_usual = layout.kind is Kind.PYTREE and AGGREGATE not in layout.names and holds_database(layout.names)
        if not is_usual:
            return StoredTree.open(layout)
        part, size = _parts(layout.place)
        text = UsualText.of(part, size) if size >= _LONG else None
        return StoredTree.open(layout, part(0, size)) if text is None else cls(layout, text, size)

    def leaf(self, name: str) -> StoredTree | None:
        """A tree of the one leaf of this name; None where it takes all of the metadata to tell if there is one."""
        if self._searches == _SEARCHES or "whole" in vars(self):
            return None
        self._searches += 1
        metadata = find_leaf_metadata(self._text, name)
        return None if metadata is None else StoredTree.with_arrays(self._layout, metadata, self._arrays)

    @cached_property
    def whole(self) -> StoredTree:
        """All of it."""
        try:
            with collector_paused():
                metadata = decode_tree_metadata(self._text.part(0, self._size))
                check_distinct(metadata.names, METADATA)
                return StoredTree.with_arrays(self._layout, metadata, self._arrays)
        except CorruptDataError as error:
            raise error.located(url=self._layout.place.url) from None


def _parts(place: Place) -> tuple[Part, int]:
    """How parts of ``_METADATA`` are read, all of one content, and how many bytes it has."""
    if not place.storage.capabilities.map:  # but on a local disk each request takes its time
        data = read_present(place, METADATA)
        return (lambda start, stop: data[start:stop]), len(data)

    def read(start: int, stop: int) -> Read:
        try:
            found = place.storage.read(f"{place.path}/{METADATA}", start, stop)
        except NotFoundError:
            raise gone(place, METADATA) from None
        assert isinstance(found, Read)
        return found

    def part(start: int, stop: int) -> bytes:
        found = read(start, stop)
        if found.token != opened.token:
            raise PathNotFoundError(f"{place.url} was replaced since it was opened; open it again", url=place.url)
        return found.data

    opened = read(0, 0)
    return part, opened.size
