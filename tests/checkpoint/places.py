"""Where these tests keep checkpoints: storages of several abilities, and how a test asks for a place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ocdbt_py.checkpoint.contents import direct
from ocdbt_py.checkpoint.encoding import Encoding
from ocdbt_py.checkpoint.save import BegunSave
from ocdbt_py.storage.location import Place
from ocdbt_py.storage.protocol import Capabilities
from ocdbt_py.testing.faulty import FaultyStorage

NewPlace = Callable[..., Place]
"""Called with a storage or nothing; an absent directory, below one of its own."""


class Bucket(FaultyStorage):
    """As an object store: no directory is renamed, nobody waits, and several requests are best made at once."""

    @property
    def capabilities(self) -> Capabilities:
        return replace(self.inner.capabilities, rename=False, hold=False, map=False, parallel=4, file_bytes=20_000)

    def rename(self, source: str, target: str) -> None:
        raise AssertionError(f"{source} renamed to {target}, but this storage cannot")


def save_at(
    place: Place, tree: Any, encoding: Encoding | None = None, *, custom_metadata: Any = None, **options: Any
) -> None:
    """:func:`ocdbt_py.save` at a place, uncompressed if nothing else is said."""
    BegunSave(place, direct(tree, encoding or Encoding(None), custom_metadata), **options).write()
