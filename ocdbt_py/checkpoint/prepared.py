"""A tree taken apart, every leaf judged: what will be stored of it, and by which process.

Of several processes, all prepare the same tree. What lies in the memory of one (NumPy arrays, numbers, strings, JAX
arrays that are not spread over processes) is process 0's to write, and need not be the same elsewhere; of a JAX array
that is spread, each writes its own blocks. Only what is spread must agree, and how it is stored: whether an array is
compressed, the first process decides that holds some of it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ocdbt_py.array.metadata import encode_metadata
from ocdbt_py.array.spec import ArraySpec, array_key, array_keys
from ocdbt_py.checkpoint.contents import Tree
from ocdbt_py.checkpoint.encoding import WORTH_TRYING, Encoding
from ocdbt_py.checkpoint.flatten import Path, flatten
from ocdbt_py.checkpoint.lanes import BATCH_BYTES, Chunk
from ocdbt_py.checkpoint.leaves import JaxArrays, StoredLeaf, stored_leaf
from ocdbt_py.checkpoint.metadata import (
    ARRAY_METADATAS,
    METADATA,
    SHARDING,
    STRINGS,
    ValueType,
    check_custom_metadata,
    encode_array_metadatas,
    encode_shardings,
    encode_strings,
    encode_tree_metadata,
)
from ocdbt_py.checkpoint.names import check_names, check_string_names, leaf_names
from ocdbt_py.checkpoint.new_database import LONGEST_IN_TREE, NewDatabase
from ocdbt_py.checkpoint.shards import Block, Sharded
from ocdbt_py.errors import OcdbtError, StructureError, UnsupportedError
from ocdbt_py.storage.protocol import Buffer

__all__ = ["Prepared", "prepare"]

_SHOWN = 5

_SMALL = 64 << 10
_MANY = 16
"""So many arrays of one dtype, each of less than so many bytes, are all compressed or none."""


class _Kind(NamedTuple):
    """What leaves alike have in common, beside how they are stored."""

    value_type: str
    is_jax: bool
    write_shape: tuple[int, ...] | None
    """Of JAX arrays, as is what follows."""
    sharding: Mapping[str, Any] | None
    random_key_impl: str | None


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


@dataclass(slots=True, repr=False, eq=False)
class Prepared:
    """A tree as it will be stored: columns of its leaves, and what few of them have."""

    encoding: Encoding
    custom_metadata: Mapping[str, Any] | None
    index: int
    count: int
    names: Sequence[str] = ()
    paths: Sequence[Path] = ()
    kinds: list[_Kind] = field(default_factory=list)
    arrays: list[NDArray[Any] | Sharded | None] = field(default_factory=list)
    """None of leaves that are no arrays."""
    specs: list[ArraySpec | None] = field(default_factory=list)
    """None of those, too, and of arrays of which the processes have not agreed yet."""
    strings: dict[str, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    """What must be the same in all processes, a line a leaf; not kept where there is one."""

    # --- with the other processes

    def summary(self) -> bytes:
        """What the others need to know of this process's tree."""
        from hashlib import sha256

        digest = sha256("\n".join(self.lines).encode("utf-8", "surrogateescape")).hexdigest()
        columns = zip(self.arrays, self.specs, strict=True)
        votes = "".join([self._vote(array) for array, spec in columns if array is not None and spec is None])
        return json.dumps([digest, votes]).encode()

    def decides(self, is_jax: bool) -> bool:
        """Whether how such an array is stored is this process's decision alone, or nobody asks for it."""
        return self.count == 1 or not is_jax

    def _vote(self, array: NDArray[Any] | Sharded) -> str:
        if isinstance(array, Sharded):
            if not array.blocks or not (array.is_spread or self.index == 0):
                return "-"
        elif self.index:
            return "-"
        return "z" if self._pays(array) else "r"

    def _pays(self, array: NDArray[Any] | Sharded) -> bool:
        """Whether to compress it, for all that this process has of it."""
        if isinstance(array, Sharded):
            return bool(array.blocks) and self.encoding.compresses(array.blocks[0].array)
        return self.encoding.compresses(array)

    def _small_pay(self) -> Mapping[np.dtype[Any], bool]:
        """Whether to compress the small arrays of a dtype that has many: one judgement for them all."""
        small: dict[np.dtype[Any], list[NDArray[Any]]] = {}
        for array in self.arrays:
            if isinstance(array, np.ndarray) and WORTH_TRYING <= array.nbytes < _SMALL:
                small.setdefault(array.dtype, []).append(array)
        together = self.encoding.compresses_together
        return {dtype: together(arrays) for dtype, arrays in small.items() if len(arrays) >= _MANY}

    def agree(self, summaries: Sequence[bytes]) -> bool:
        """Settle how arrays are stored, from everybody's summary; False if their trees are not the same."""
        said = [json.loads(summary) for summary in summaries]
        if any(digest != said[0][0] for digest, _ in said):
            return False
        ballots = [ballot for _, ballot in said]
        pending = 0
        for i, (name, array, spec) in enumerate(zip(self.names, self.arrays, self.specs, strict=True)):
            if array is not None and spec is None:
                votes = (ballot[pending] for ballot in ballots)
                is_compressed = next((vote for vote in votes if vote != "-"), "r") == "z"
                self.specs[i] = self._spec(name, array, is_compressed)
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
        for i, (array, kind) in enumerate(zip(self.arrays, self.kinds, strict=True)):
            if isinstance(array, np.ndarray) and (not kind.is_jax or array.flags.writeable):
                self.arrays[i] = np.array(array, order="K", subok=False)

    def release(self) -> None:
        """Let go of the arrays."""
        self.arrays.clear()

    def files(self) -> dict[str, bytes]:
        """The small files of the pytree, which process 0 writes."""
        files = {}
        if self.strings:
            files[STRINGS] = encode_strings(self.strings)
        if any(map(attrgetter("is_jax"), self.kinds)):
            shardings = zip(self.names, map(attrgetter("sharding"), self.kinds), strict=True)
            files[SHARDING] = encode_shardings({name: sharding for name, sharding in shardings if sharding is not None})
        files |= self.array_metadatas()
        value_types = map(attrgetter("value_type"), self.kinds)
        write_shapes = map(attrgetter("write_shape"), self.kinds)
        files[METADATA] = encode_tree_metadata(
            zip(self.paths, value_types, write_shapes, strict=True),
            use_zarr3=self.encoding.zarr_format == 3,
            custom_metadata=self.custom_metadata,
        )
        return files

    def array_metadatas(self) -> dict[str, bytes]:
        """The small file that each process writes, all the same; none where no leaf is a JAX array."""
        records = [
            (name, kind.write_shape, spec.chunks, kind.random_key_impl)
            for name, kind, spec in zip(self.names, self.kinds, self.specs, strict=True)
            if kind.write_shape is not None and spec is not None
        ]
        return {f"{ARRAY_METADATAS}/process_{self.index}": encode_array_metadatas(records)} if records else {}

    @property
    def has_arrays(self) -> bool:
        """Whether any leaf is one, so that there is a database."""
        return any(array is not None for array in self.arrays)

    def _writes(self, array: NDArray[Any] | Sharded) -> bool:
        """Whether this process writes something of it."""
        return self.index == 0 or (isinstance(array, Sharded) and array.is_spread)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays that this process writes."""
        return sum(array.nbytes for array in self.arrays if array is not None and self._writes(array))

    @property
    def num_keys(self) -> int:
        """Documents and chunks of all arrays, whoever writes them."""
        return sum(1 + int(np.prod(spec.grid)) for spec in self.specs if spec is not None)

    def put_into(self, database: NewDatabase) -> None:
        """Keys and values that this process writes.

        Which arrays are worth compressing is found out now, while the first ones are written already.
        """
        forms: dict[int, _Form] = {}  # of each spec; arrays alike share one
        is_sampled, is_primary = self.encoding.is_sampled, self.index == 0
        small_pay = self._small_pay() if is_sampled else {}
        keys: list[bytes] = []
        values: list[Buffer] = []
        nbytes = 0
        columns = zip(self.names, array_keys(self.names, ""), self.kinds, self.arrays, self.specs, strict=True)
        for at, (name, base, kind, array, spec) in enumerate(columns):
            if array is None or not (is_primary or self._writes(array)):
                continue
            assert spec is not None
            size = array.nbytes
            if is_sampled and size >= WORTH_TRYING and self.decides(kind.is_jax):
                pays = small_pay.get(array.dtype) if size < _SMALL and isinstance(array, np.ndarray) else None
                if self._pays(array) if pays is None else pays:
                    self.specs[at] = spec = self._spec(name, array, True)
            if isinstance(array, Sharded):
                if is_primary:
                    database.put_document(array_key(name, spec.metadata_key), encode_metadata(spec))
                for block in array.blocks:
                    _put_block(database, name, block, spec)
                continue
            if spec.chunks != spec.shape:
                database.put_document(array_key(name, spec.metadata_key), encode_metadata(spec))
                _put_block(database, name, Block((0,) * spec.ndim, array), spec)
                continue
            # nearly all arrays: one chunk, and no detours on the way to it
            form = forms.get(id(spec))
            if form is None:
                form = forms[id(spec)] = _Form(spec)
            form.documents.append(base + form.document_file)
            data = form.bytes_of(array) if form.is_plain else None
            if data is not None:
                keys.append(base + form.chunk_file)
                values.append(data)
                nbytes += size
                if nbytes >= BATCH_BYTES:
                    database.put_all(keys, values, nbytes)
                    keys, values, nbytes = [], [], 0
            else:
                database.put(base + form.chunk_file, Chunk(array, spec, form.first, size))
        database.put_all(keys, values, nbytes)
        for form in forms.values():
            database.put_documents(form.documents, form.document)


def prepare(tree: Tree, index: int = 0, count: int = 1) -> Prepared:
    """Take a tree apart and judge all of it, in process ``index`` of ``count``."""
    flat = flatten(tree.tree)
    names = leaf_names(flat.paths)
    check_names(names, flat.paths)
    custom_metadata = check_custom_metadata(tree.custom_metadata)
    prepared = Prepared(tree.encoding, custom_metadata, index, count, names, flat.paths)
    kinds, arrays, specs = prepared.kinds, prepared.arrays, prepared.specs
    shared: dict[tuple[Any, ...], _Kind] = {}
    judged: dict[tuple[Any, ...], tuple[_Kind, ArraySpec | None]] = {}  # arrays of NumPy, by shape and dtype
    jax_arrays = JaxArrays()
    array: NDArray[Any] | Sharded | None
    for name, value in zip(names, flat.leaves, strict=True):
        # nearly all leaves are like one before
        alike = None
        if type(value) is np.ndarray:
            array, alike = value, judged.get((value.shape, value.dtype))
        elif (taken := jax_arrays.taken(value)) is not None:
            array, alike = taken
        if alike is not None:
            kind, spec = alike
        else:
            leaf = stored_leaf(name, value)
            array, kind = leaf.array, _kind(leaf, shared)
            spec = None if array is None else _judge(name, array, kind, prepared)
            if leaf.string is not None:
                prepared.strings[name] = leaf.string
            if count > 1:
                prepared.lines.append(_line(name, leaf))
            elif type(value) is np.ndarray:
                judged[value.shape, value.dtype] = kind, spec
            elif kind.is_jax and isinstance(array, np.ndarray) and jax_arrays.expects(value):
                jax_arrays.judged[array.shape, array.dtype] = kind, spec
        kinds.append(kind)
        arrays.append(array)
        specs.append(spec)
    check_string_names(prepared.strings)
    if flat.paths == [()] and kinds[0].value_type in ValueType.EMPTY:
        raise UnsupportedError("There is nothing to save: Orbax does not store a tree without leaves")
    return prepared


def _kind(leaf: StoredLeaf, shared: dict[tuple[Any, ...], _Kind]) -> _Kind:
    array, write_shape = leaf.array, None
    is_jax = leaf.value_type == ValueType.JAX_ARRAY
    if is_jax and array is not None:
        write_shape = array.write_shape if isinstance(array, Sharded) else array.shape
    key = (leaf.value_type, write_shape, id(leaf.sharding), leaf.random_key_impl)
    return shared.setdefault(key, _Kind(leaf.value_type, is_jax, write_shape, leaf.sharding, leaf.random_key_impl))


def _judge(name: str, array: NDArray[Any] | Sharded, kind: _Kind, prepared: Prepared) -> ArraySpec | None:
    """How an array is stored, as far as one process can tell."""
    if isinstance(array, Sharded) and array.is_spread and prepared.count == 1:
        raise UnsupportedError(
            f"The leaf {name!r} cannot be saved: this jax.Array lies on devices of other processes too. Call save in "
            "all of them, after jax.distributed.initialize() or with processes="
        )
    return prepared._spec(name, array, prepared.encoding.compresses_all) if prepared.decides(kind.is_jax) else None


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
