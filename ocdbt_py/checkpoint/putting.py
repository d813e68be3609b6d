"""Arrays that are not packed, on their way into a database: each a document and one chunk, or several.

What is stored as it lies in memory is lent to the database, for its threads to read; other chunks are made by these.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdbt_py.array.metadata import encode_metadata
from ocdbt_py.array.spec import ArraySpec, array_key
from ocdbt_py.checkpoint.lanes import Chunk
from ocdbt_py.checkpoint.new_database import LONGEST_IN_TREE, NewDatabase
from ocdbt_py.checkpoint.shards import Block

__all__ = ["Others"]


class Others:
    """Puts them. Documents that arrays alike share are put at the end, together."""

    def __init__(self, database: NewDatabase) -> None:
        self._database = database
        self._forms: dict[int, _Form] = {}  # of each spec; arrays alike share one

    def put_blocks(self, name: str, blocks: Iterable[Block], spec: ArraySpec, *, with_document: bool) -> None:
        """An array in parts, of which these are ours."""
        if with_document:
            self._database.put_document(array_key(name, spec.metadata_key), encode_metadata(spec))
        for block in blocks:
            _put_block(self._database, name, block, spec)

    def put(self, name: str, base: bytes, array: NDArray[Any], spec: ArraySpec) -> None:
        """A whole one, with keys that begin with ``base``."""
        if spec.chunks != spec.shape:
            self.put_blocks(name, [Block((0,) * spec.ndim, array)], spec, with_document=True)
            return
        form = self._forms.get(id(spec))
        if form is None:
            form = self._forms[id(spec)] = _Form(spec)
        form.documents.append(base + form.document_file)
        data = form.bytes_of(array) if form.is_plain else None
        self._database.put(
            base + form.chunk_file, Chunk(array, spec, form.first, array.nbytes) if data is None else data
        )

    def finish(self) -> None:
        """All have been put."""
        for form in self._forms.values():
            self._database.put_documents(form.documents, form.document)


class _Form:
    """What arrays alike, each of one chunk, have in common once they are stored, and the keys of their documents."""

    def __init__(self, spec: ArraySpec) -> None:
        self.first = (0,) * spec.ndim
        self.dtype = spec.dtype
        self.document = encode_metadata(spec)
        self.document_file = spec.metadata_key.encode()
        self.chunk_file = spec.chunk_key(self.first).encode()
        self.is_plain = spec.is_plain and spec.sharding is None and spec.chunk_nbytes > LONGEST_IN_TREE
        self.is_cast = spec.dtype.kind in "iuf" and spec.dtype.isbuiltin == 1  # of others memoryviews know nothing
        self.documents: list[bytes] = []

    def bytes_of(self, array: NDArray[Any]) -> memoryview | None:
        """Of an array as they are stored; None where they lie otherwise."""
        if array.dtype is not self.dtype and not array.dtype.isnative:
            return None
        if not self.is_cast:
            return array.reshape(-1).view(np.uint8).data if array.flags.c_contiguous else None
        data = array.data
        return data.cast("B") if data.c_contiguous else None


def _put_block(database: NewDatabase, name: str, block: Block, spec: ArraySpec) -> None:
    """The chunks of one block, which begins on a whole chunk."""
    first = [start // size for start, size in zip(block.start, spec.key_shape, strict=True)]
    grid = [-(-extent // size) for extent, size in zip(block.array.shape, spec.key_shape, strict=True)]
    left = block.array.nbytes
    each = math.prod(spec.key_shape) * spec.dtype.itemsize
    for index in np.ndindex(*grid):
        key = array_key(name, spec.chunk_key([a + b for a, b in zip(first, index, strict=True)]))
        nbytes = min(each, left)
        left -= nbytes
        database.put(key, Chunk(block.array, spec, index, nbytes))
