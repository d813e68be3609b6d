"""The file ``checkpoint`` of releases up to 0.5: a tree in msgpack, with small leaves in it and the names of others.

    {"params": {"w": "PLACEHOLDER://params.w"}, "step": 7, "rate": <array>}

A leaf that lies elsewhere is a string that says so; of which kind it is, is not recorded. The others stand here:
numbers, strings, None, and arrays. Those become what any array is, a document and a chunk under their keys, so that
reading does not tell them from others (:class:`~ocdbt_py.checkpoint.views.Overlay`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ocdbt_py.array.dtypes import dtype_from_name
from ocdbt_py.array.metadata import encode_metadata
from ocdbt_py.array.spec import MAX_RANK, ArraySpec, array_key
from ocdbt_py.checkpoint.flatten import Key, KeyKind, Path
from ocdbt_py.checkpoint.metadata import AGGREGATE, LeafRecord, TreeMetadata, ValueType
from ocdbt_py.checkpoint.msgpack import StoredArray, decode_msgpack
from ocdbt_py.checkpoint.names import leaf_name, leaf_names
from ocdbt_py.errors import CorruptDataError, InvalidArgumentError, UnsupportedError
from ocdbt_py.storage.protocol import Buffer

__all__ = ["Aggregate", "decode_aggregate"]

_ELSEWHERE = ("PLACEHOLDER://", "AGGREGATED://")
_CHUNKED = "__msgpack_chunked_array__"
"""The key that marks a dict as an array of more than 1 GiB, in pieces."""

_STEPS_A_BYTE: Final = 8
_SMALL: Final = 1 << 20
"""Of a deep tree with many leaves the paths alone would exhaust the memory; so many steps in all are enough for any."""

_EMPTY: Final[dict[type, str]] = {dict: ValueType.DICT, list: ValueType.LIST, tuple: ValueType.TUPLE}


@dataclass(frozen=True)
class Aggregate:
    """``records``: all leaves, those that lie elsewhere as arrays. ``inline``: the names of those that stand here.

    ``values``: documents and chunks of the arrays and numbers among these, by key; ``strings``: by leaf name.
    """

    records: list[LeafRecord]
    inline: frozenset[str]
    values: Mapping[bytes, Buffer]
    strings: Mapping[str, str]

    @property
    def metadata(self) -> TreeMetadata:
        """As if a ``_METADATA`` had said it."""
        return TreeMetadata(self.records, leaf_names(record.path for record in self.records), None, False, True, None)

    def over(self, metadata: TreeMetadata) -> TreeMetadata:
        """``metadata``, with the leaves that stand here as they are here: they win, as in Orbax."""
        here = {_names(record.path): record for record in self.records if leaf_name(record.path) in self.inline}
        if not here:
            return metadata
        leaves = [
            record._replace(value_type=here[_names(record.path)].value_type) if _names(record.path) in here else record
            for record in metadata.leaves
        ]
        return metadata._replace(leaves=leaves)


def decode_aggregate(data: bytes, path: str = AGGREGATE) -> Aggregate:
    """The file, of any release."""
    records: list[LeafRecord] = []
    values: dict[bytes, Buffer] = {}
    strings: dict[str, str] = {}
    inline = set()
    steps = _SMALL + _STEPS_A_BYTE * len(data)
    for where, leaf in _leaves(decode_msgpack(data, path)):
        steps -= len(where)
        if steps < 0:
            raise CorruptDataError(f"The tree in {path} is too deep for its {len(data)} bytes", path=path)
        kind, array = _kind(leaf)
        records.append(LeafRecord(where, kind))
        if isinstance(leaf, str) and kind == ValueType.STRING:
            strings[leaf_name(where)] = leaf
        elif array is not None:
            values.update(_entries(leaf_name(where), array, path))
        if array is not None or kind == ValueType.STRING:
            inline.add(leaf_name(where))
    return Aggregate(records, frozenset(inline), values, strings)


def _leaves(tree: Any) -> Iterator[tuple[Path, Any]]:
    """In the order of the file; empty containers are leaves."""
    pending: list[Iterator[tuple[Path, Any]]] = [iter([((), tree)])]
    while pending:
        found = next(pending[-1], None)
        if found is None:
            pending.pop()
        elif (children := _children(*found)) is not None:
            pending.append(children)
        else:
            yield found


def _children(where: Path, value: Any) -> Iterator[tuple[Path, Any]] | None:
    """What is in a container, one at a time; None for a leaf, which an empty one is too."""
    if not value or isinstance(value, StoredArray):
        return None
    if isinstance(value, dict) and _CHUNKED not in value:
        return (((*where, Key(name, KeyKind.DICT)), child) for name, child in value.items())
    if isinstance(value, list | tuple):
        return (((*where, Key(str(i), KeyKind.SEQUENCE)), child) for i, child in enumerate(value))
    return None


def _kind(leaf: Any) -> tuple[str, StoredArray | dict[str, Any] | None]:
    """Which kind of leaf it is, and the array that it is itself."""
    if leaf is None:
        return ValueType.NONE, None
    if isinstance(leaf, str):
        return (ValueType.NUMPY_ARRAY if leaf.startswith(_ELSEWHERE) else ValueType.STRING), None
    if isinstance(leaf, StoredArray):
        return (ValueType.SCALAR if leaf.is_number else ValueType.NUMPY_ARRAY), leaf
    if isinstance(leaf, bool | int | float | complex):
        number = np.asarray(leaf)  # at most 64 bits: nothing longer can be spelled
        return ValueType.SCALAR, StoredArray((), number.dtype.name, memoryview(number.tobytes()), True)
    if isinstance(leaf, dict) and leaf:
        return ValueType.NUMPY_ARRAY, leaf
    return _EMPTY.get(type(leaf), "bytes"), None


def _entries(name: str, array: StoredArray | dict[str, Any], path: str) -> Iterator[tuple[bytes, Buffer]]:
    """The document and the chunk of an array that stands in the file."""

    def broken(what: str) -> CorruptDataError:
        return CorruptDataError(f"The array {name!r} in {path} {what}", path=path)

    pieces = [array] if isinstance(array, StoredArray) else _pieces(array)
    shape = array.shape if isinstance(array, StoredArray) else _numbered(array.get("shape"))
    if not pieces or not all(isinstance(piece, StoredArray) and piece.dtype == pieces[0].dtype for piece in pieces):
        raise broken("is cut into pieces that do not fit together")
    if len(shape) > MAX_RANK or not all(type(size) is int and size >= 0 for size in shape):
        raise broken(f"has a shape that no array has: {str(shape)[:80]}")
    try:
        dtype = dtype_from_name(pieces[0].dtype)
    except UnsupportedError as error:
        raise UnsupportedError(f"The array {name!r} in {path}: {error.message}", path=path) from error
    nbytes = sum(len(piece.data) for piece in pieces)
    if nbytes != math.prod(shape) * dtype.itemsize:
        raise broken(f"has {nbytes} bytes, which are not {shape} elements of {dtype}")
    try:
        spec = ArraySpec(shape, tuple(max(size, 1) for size in shape), dtype)
    except InvalidArgumentError as error:
        raise broken(f"cannot be: {error.message}") from error
    yield array_key(name, spec.metadata_key), encode_metadata(spec)
    if nbytes:
        chunk = array_key(name, spec.chunk_key((0,) * spec.ndim))
        yield chunk, pieces[0].data if len(pieces) == 1 else b"".join(piece.data for piece in pieces)


def _pieces(array: dict[str, Any]) -> list[Any]:
    return list(_numbered(array.get("chunks")))


def _numbered(found: Any) -> tuple[Any, ...]:
    """A tuple that was written as a dict of its positions; an empty one if it is none."""
    if not isinstance(found, dict):
        return ()
    return tuple(found.get(str(i)) for i in range(len(found)))


def _names(path: Path) -> tuple[str, ...]:
    return tuple(key.name for key in path)
