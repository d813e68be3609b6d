"""A tree taken apart, every leaf judged: what will be stored of it, and by which process.

Of several processes, all prepare the same tree. What lies in the memory of one (NumPy arrays, numbers, strings, JAX
arrays that are not spread over processes) is process 0's to write, and need not be the same elsewhere; of a JAX array
that is spread, each writes its own blocks. Only what is spread must agree, and how it is stored: whether an array is
compressed, the first process decides that holds some of it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ocdbt_py.array.metadata import encode_metadata
from ocdbt_py.array.spec import ArraySpec, array_key
from ocdbt_py.checkpoint.contents import Tree
from ocdbt_py.checkpoint.encoding import WORTH_TRYING, Encoding
from ocdbt_py.checkpoint.flatten import flatten
from ocdbt_py.checkpoint.lanes import Chunk
from ocdbt_py.checkpoint.leaves import StoredLeaf, stored_leaf
from ocdbt_py.checkpoint.metadata import (
    ARRAY_METADATAS,
    METADATA,
    SHARDING,
    STRINGS,
    ArrayRecord,
    LeafRecord,
    ValueType,
    check_custom_metadata,
    encode_array_metadatas,
    encode_shardings,
    encode_strings,
    encode_tree_metadata,
)
from ocdbt_py.checkpoint.names import check_names, check_string_names, leaf_names
from ocdbt_py.checkpoint.new_database import NewDatabase
from ocdbt_py.checkpoint.shards import Block, Sharded
from ocdbt_py.errors import OcdbtError, StructureError, UnsupportedError
from ocdbt_py.storage.protocol import Buffer

__all__ = ["Prepared", "prepare"]

_SHOWN = 5


class _Array(NamedTuple):
    name: str
    array: NDArray[Any] | Sharded
    spec: ArraySpec | None
    """None until the processes have agreed on it."""
    random_key_impl: str | None
    is_jax: bool


class _Form(NamedTuple):
    """What arrays alike, each of one chunk, have in common."""

    document: bytes
    document_file: bytes
    chunk_file: bytes
    first: tuple[int, ...]
    is_plain: bool

    @classmethod
    def of(cls, spec: ArraySpec) -> _Form:
        index = (0,) * spec.ndim
        is_plain = spec.is_plain and spec.sharding is None
        return cls(encode_metadata(spec), spec.metadata_key.encode(), spec.chunk_key(index).encode(), index, is_plain)


@dataclass(slots=True)
class Prepared:
    """A tree as it will be stored."""

    encoding: Encoding
    custom_metadata: Mapping[str, Any] | None
    index: int
    count: int
    records: list[LeafRecord] = field(default_factory=list)
    arrays: list[_Array] = field(default_factory=list)
    strings: dict[str, str] = field(default_factory=dict)
    shardings: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    """What must be the same in all processes, a line a leaf; not kept where there is one."""

    # --- with the other processes

    def summary(self) -> bytes:
        """What the others need to know of this process's tree."""
        digest = hashlib.sha256("\n".join(self.lines).encode("utf-8", "surrogateescape")).hexdigest()
        votes = "".join([self._vote(array) for array in self.arrays if array.spec is None])
        return json.dumps([digest, votes]).encode()

    def decides(self, is_jax: bool) -> bool:
        """Whether how such an array is stored is this process's decision alone, or nobody asks for it."""
        return self.count == 1 or not is_jax

    def _vote(self, array: _Array) -> str:
        held = array.array
        if isinstance(held, Sharded):
            if not held.blocks or not (held.is_spread or self.index == 0):
                return "-"
        elif self.index:
            return "-"
        return "z" if self._pays(held) else "r"

    def _pays(self, array: NDArray[Any] | Sharded) -> bool:
        """Whether to compress it, for all that this process has of it."""
        if isinstance(array, Sharded):
            return bool(array.blocks) and self.encoding.compresses(array.blocks[0].array)
        return self.encoding.compresses(array)

    def agree(self, summaries: Sequence[bytes]) -> bool:
        """Settle how arrays are stored, from everybody's summary; False if their trees are not the same."""
        said = [json.loads(summary) for summary in summaries]
        if any(digest != said[0][0] for digest, _ in said):
            return False
        ballots = [ballot for _, ballot in said]
        pending = 0
        for i, array in enumerate(self.arrays):
            if array.spec is None:
                votes = (ballot[pending] for ballot in ballots)
                is_compressed = next((vote for vote in votes if vote != "-"), "r") == "z"
                self.arrays[i] = array._replace(spec=self._spec(array.name, array.array, is_compressed))
                pending += 1
        return True

    def _spec(self, name: str, array: NDArray[Any] | Sharded, is_compressed: bool) -> ArraySpec:
        write_shape = array.write_shape if isinstance(array, Sharded) else None
        try:
            return self.encoding.spec_for(
                array.shape, array.dtype, is_compressed=is_compressed, write_shape=write_shape
            )
        except OcdbtError as error:
            raise type(error)(f"The leaf {name!r} cannot be saved: {error.message}") from None

    def differences(self, everybody: Sequence[bytes]) -> StructureError:
        """What is not the same, from everybody's :attr:`lines`."""
        first, *others = (set(lines.decode("utf-8", "surrogateescape").split("\n")) for lines in everybody)
        rows = []
        for index, lines in enumerate(others, 1):
            rows += [f"process 0, not {index}: {line}" for line in sorted(first - lines)[:_SHOWN]]
            rows += [f"process {index}, not 0: {line}" for line in sorted(lines - first)[:_SHOWN]]
        return StructureError(
            "The processes do not save the same tree; each must pass the same leaves, and the same parts of arrays "
            "that lie in several:\n  " + "\n  ".join(rows[: 4 * _SHOWN])
        )

    # --- what is written

    def detach(self) -> None:
        """See to it that nothing that is done to the arrays can change what is written.

        Those of JAX never change: what we hold of them are views of the buffers, and not the ``jax.Array``, which
        would be gone once it is donated or deleted. All others are copied.
        """
        for i, each in enumerate(self.arrays):
            if isinstance(each.array, np.ndarray) and (not each.is_jax or each.array.flags.writeable):
                self.arrays[i] = each._replace(array=np.array(each.array, order="K", subok=False))

    def files(self) -> dict[str, bytes]:
        """The small files of the pytree, which process 0 writes."""
        files = {}
        if self.strings:
            files[STRINGS] = encode_strings(self.strings)
        if any(array.is_jax for array in self.arrays):
            files[SHARDING] = encode_shardings(self.shardings)
        files |= self.array_metadatas()
        use_zarr3 = self.encoding.zarr_format == 3
        files[METADATA] = encode_tree_metadata(self.records, use_zarr3=use_zarr3, custom_metadata=self.custom_metadata)
        return files

    def array_metadatas(self) -> dict[str, bytes]:
        """The small file that each process writes, all the same; none where no leaf is a JAX array."""
        records = []
        for name, array, spec, random_key_impl, is_jax in self.arrays:
            if is_jax:
                assert spec is not None
                write_shape = array.write_shape if isinstance(array, Sharded) else array.shape
                records.append(ArrayRecord(name, write_shape, spec.chunks, random_key_impl))
        return {f"{ARRAY_METADATAS}/process_{self.index}": encode_array_metadatas(records)} if records else {}

    def _mine(self) -> list[_Array]:
        """The arrays of which this process writes something."""
        if self.index == 0:
            return self.arrays
        return [each for each in self.arrays if isinstance(each.array, Sharded) and each.array.is_spread]

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays that this process writes."""
        return sum(each.array.nbytes for each in self._mine())

    @property
    def num_keys(self) -> int:
        """Documents and chunks of all arrays, whoever writes them."""
        return sum(1 + int(np.prod(array.spec.grid)) for array in self.arrays if array.spec is not None)

    def put_into(self, database: NewDatabase) -> None:
        """Keys and values that this process writes.

        Which arrays are worth compressing is found out now, while the first ones are written already.
        """
        forms: dict[int, _Form] = {}  # of each spec; arrays alike share one
        is_sampled, is_primary = self.encoding.is_sampled, self.index == 0
        for at, each in enumerate(self.arrays):
            name, array, spec, _, is_jax = each
            if not is_primary and not (isinstance(array, Sharded) and array.is_spread):
                continue
            assert spec is not None
            if is_sampled and array.nbytes >= WORTH_TRYING and self.decides(is_jax) and self._pays(array):
                spec = self._spec(name, array, True)
                self.arrays[at] = each._replace(spec=spec)
            if isinstance(array, Sharded):
                if is_primary:
                    database.put_document(array_key(name, spec.metadata_key), encode_metadata(spec))
                for block in array.blocks:
                    _put_block(database, name, block, spec)
            elif spec.chunks == spec.shape:  # nearly all arrays: one chunk, and no detours on the way to it
                form = forms.get(id(spec))
                if form is None:
                    form = forms[id(spec)] = _Form.of(spec)
                base = array_key(name, "")
                database.put_document(base + form.document_file, form.document)
                value: Buffer | Chunk
                if form.is_plain and array.flags.c_contiguous:
                    value = array.reshape(-1).view(np.uint8).data
                else:
                    value = Chunk(array, spec, form.first, array.nbytes)
                database.put(base + form.chunk_file, value)
            else:
                database.put_document(array_key(name, spec.metadata_key), encode_metadata(spec))
                _put_block(database, name, Block((0,) * spec.ndim, array), spec)


def prepare(tree: Tree, index: int = 0, count: int = 1) -> Prepared:
    """Take a tree apart and judge all of it, in process ``index`` of ``count``."""
    flat = flatten(tree.tree)
    names = leaf_names(flat.paths)
    check_names(names, flat.paths)
    custom_metadata = check_custom_metadata(tree.custom_metadata)
    prepared = Prepared(tree.encoding, custom_metadata, index, count)
    judged: dict[tuple[Any, ...], ArraySpec] = {}
    for name, path, value in zip(names, flat.paths, flat.leaves, strict=True):
        if type(value) is np.ndarray and (alike := judged.get((value.shape, value.dtype))) is not None:
            prepared.arrays.append(_Array(name, value, alike, None, False))
            prepared.records.append(LeafRecord(path, ValueType.NUMPY_ARRAY))
            continue
        leaf = stored_leaf(name, value)
        write_shape = None
        if leaf.string is not None:
            prepared.strings[name] = leaf.string
        elif leaf.array is not None:
            array = _judge(name, leaf, prepared)
            prepared.arrays.append(array)
            if leaf.sharding is not None:
                prepared.shardings[name] = leaf.sharding
            if array.is_jax:
                write_shape = leaf.array.write_shape if isinstance(leaf.array, Sharded) else leaf.array.shape
        prepared.records.append(LeafRecord(path, leaf.value_type, write_shape))
        if count > 1:
            prepared.lines.append(_line(name, leaf))
        elif type(value) is np.ndarray:
            assert array.spec is not None
            judged[value.shape, value.dtype] = array.spec
    check_string_names(prepared.strings)
    if flat.paths == [()] and prepared.records[0].value_type in ValueType.EMPTY:
        raise UnsupportedError("There is nothing to save: Orbax does not store a tree without leaves")
    return prepared


def _judge(name: str, leaf: StoredLeaf, prepared: Prepared) -> _Array:
    """How an array is stored, as far as one process can tell."""
    array, encoding = leaf.array, prepared.encoding
    assert array is not None
    is_jax = leaf.value_type == ValueType.JAX_ARRAY
    spec = None
    if isinstance(array, Sharded) and array.is_spread and prepared.count == 1:
        raise UnsupportedError(
            f"The leaf {name!r} cannot be saved: this jax.Array lies on devices of other processes too. Call save in "
            "all of them, after jax.distributed.initialize() or with processes="
        )
    if prepared.decides(is_jax):
        spec = prepared._spec(name, array, encoding.compresses_all)
    return _Array(name, array, spec, leaf.random_key_impl, is_jax)


def _line(name: str, leaf: StoredLeaf) -> str:
    """What must be the same of a leaf in all processes."""
    if isinstance(leaf.array, Sharded) and leaf.array.is_spread:
        return f"{name!r}: {leaf.array.dtype}{list(leaf.array.shape)} in parts of {list(leaf.array.write_shape)}"
    is_array = leaf.value_type in ValueType.ARRAYS and leaf.value_type != ValueType.SCALAR
    return f"{name!r}: {'array' if is_array else leaf.value_type}" + (
        " of JAX" if leaf.value_type == "jax.Array" else ""
    )


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
