"""Small arrays on their way into a database: packed, many of them in one piece of memory.

To hand each to the system by itself takes as long as to copy it, and whoever writes in another thread would ask for the
interpreter with every few of them, which the thread that goes on with the tree gives away every five milliseconds. So
that thread packs: it looks at each array once, for its checksum and its copy, and keeps nothing of it. The writing
threads get blocks that need no more of Python than a call.

An array here is one chunk, stored as it lies in memory, and a document in the tree, which all arrays alike share.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ocdbt_py.array.allocation import ALIGNMENT
from ocdbt_py.checkpoint.lanes import BLOCK_BYTES, Block
from ocdbt_py.errors import InvalidArgumentError
from ocdbt_py.format.checksum import crc32c

__all__ = ["PACKED_BYTES", "Form", "Packed", "deleted", "pack"]

PACKED_BYTES = 8 << 10
"""Of an array; longer ones are better left where they are, for the threads to read."""


_TOGETHER = 64
"""So many are looked at, for their checksums, and then copied: they are in the cache by then."""


class Form(NamedTuple):
    """What arrays alike have in common: what follows their names in the keys, and where in the tree the document is."""

    document_file: bytes
    chunk_file: bytes
    nbytes: int
    document_at: int
    document_length: int


class Packed(NamedTuple):
    """Documents and chunks of some arrays, by turns: their keys, and what is known of the values.

    ``offsets`` are those of documents in what stands in the tree, and of chunks in ``block``; ``checksums`` are of
    chunks alone.
    """

    keys: Sequence[bytes]
    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]
    checksums: Sequence[int]
    block: Block


def pack(
    bases: Sequence[bytes],
    kinds: Sequence[int],
    values: Sequence[Any],
    forms: Sequence[Form],
    buffer: BytesIO,
    *,
    checksums: bool,
    is_last: bool,
) -> Packed:
    """Arrays whose keys begin with ``bases``, each of one of ``forms``, which all have documents of one name.

    ``values`` are arrays of NumPy or JAX. They go into ``buffer``, which is empty, and fill it, up to zeros at the
    end, unless it is the last.
    """
    which = np.array(kinds, np.intp)
    lengths = np.array([form.nbytes for form in forms], np.int64)[which]
    gaps = -lengths % ALIGNMENT
    steps = lengths + gaps
    gaps[-1] = 0 if is_last else BLOCK_BYTES - int(steps[:-1].sum() + lengths[-1])
    zeros = [bytes(gap) for gap in gaps.tolist()] if gaps.any() else None
    computed: list[int] = []
    for start in range(0, len(values), _TOGETHER):
        run = slice(start, start + _TOGETHER)
        pieces = _buffers(bases[run], values[run])
        if checksums:
            computed += map(crc32c, pieces)
        if zeros is not None:
            pieces = [piece for pair in zip(pieces, zeros[run], strict=True) for piece in pair]
        buffer.writelines(pieces)  # from the cache, by now
    documents = [(form.document_at, form.document_length) for form in forms]
    rows = np.empty((len(bases), 2, 2), np.int64)
    rows[:, 0] = np.array(documents, np.int64)[which]
    rows[:, 1, 0] = np.cumsum(steps) - steps
    rows[:, 1, 1] = lengths
    keys = [b""] * (2 * len(bases))
    document_file, chunk_files = forms[0].document_file, [form.chunk_file for form in forms]
    keys[::2] = [base + document_file for base in bases]
    keys[1::2] = [base + chunk_files[kind] for base, kind in zip(bases, kinds, strict=True)]
    return Packed(keys, rows[:, :, 0].ravel(), rows[:, :, 1].ravel(), computed, Block(buffer, int(lengths.sum())))


def _buffers(bases: Sequence[bytes], values: Sequence[Any]) -> Sequence[Any]:
    """What the elements can be read from, in one piece; held no longer than this is."""
    if set(map(type, values)) == {np.ndarray}:
        return values
    try:
        views = [memoryview(value) for value in values]  # which takes half as long as to make an array
    except (BufferError, ValueError):  # a dtype that views know nothing of, or another device
        pass
    else:
        if all(map(_IS_IN_ONE_PIECE, views)):
            return views
    return [_elements(base, value) for base, value in zip(bases, values, strict=True)]


_IS_IN_ONE_PIECE = attrgetter("c_contiguous")


def _elements(base: bytes, value: Any) -> NDArray[Any]:
    try:
        return np.ascontiguousarray(value)
    except RuntimeError as error:
        raise deleted(base[:-1].decode("utf-8", "surrogateescape")) from error


def deleted(name: str) -> InvalidArgumentError:
    """The error for a ``jax.Array`` that somebody took away from under us."""
    return InvalidArgumentError(
        f"The leaf {name!r} cannot be saved: this jax.Array was deleted or donated while others were written; "
        "save_async keeps what it was given"
    )
