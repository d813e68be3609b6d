"""A tree taken apart, every leaf judged: what will be stored of it, and by which process.

Of several processes, all prepare the same tree. What lies in the memory of one (NumPy arrays, numbers, strings, JAX
arrays that are not spread over processes) is process 0's to write, and need not be the same elsewhere; of a JAX array
that is spread, each writes its own blocks. Only what is spread must agree, and how it is stored: whether an array is
compressed, the first process decides that holds some of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ocdbt_py.array.allocation import ALIGNMENT
from ocdbt_py.array.metadata import encode_metadata
from ocdbt_py.array.spec import ArraySpec, array_keys
from ocdbt_py.checkpoint.contents import Tree
from ocdbt_py.checkpoint.encoding import WORTH_TRYING, Encoding
from ocdbt_py.checkpoint.flatten import Path, flatten
from ocdbt_py.checkpoint.lanes import BLOCK_BYTES
from ocdbt_py.checkpoint.leaf_texts import Described, LeafTexts
from ocdbt_py.checkpoint.leaves import JaxArrays, StoredLeaf, stored_leaf
from ocdbt_py.checkpoint.metadata import STRINGS, ValueType, check_custom_metadata, encode_strings
from ocdbt_py.checkpoint.names import check_names, check_string_names, leaf_names
from ocdbt_py.checkpoint.new_database import NewDatabase
from ocdbt_py.checkpoint.packing import deleted
from ocdbt_py.checkpoint.putting import Others
from ocdbt_py.checkpoint.shards import Sharded
from ocdbt_py.errors import OcdbtError, StructureError, UnsupportedError

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


class _Judged(NamedTuple):
    """What is known of a leaf; leaves alike share one."""

    kind: _Kind
    spec: ArraySpec | None
    """None of leaves that are no arrays, and of arrays of which the processes have not agreed yet."""


class _Packing(NamedTuple):
    """How arrays alike are packed: the number of their form, and the bytes that each takes in a block."""

    number: int
    room: int


@dataclass(repr=False, eq=False)
class Prepared:
    """A tree as it will be stored: columns of its leaves, and what few of them have."""

    encoding: Encoding
    custom_metadata: Mapping[str, Any] | None
    index: int
    count: int
    names: Sequence[str] = ()
    paths: Sequence[Path] = ()
    judged: list[_Judged] = field(default_factory=list)
    arrays: list[Any] = field(default_factory=list)
    """Of NumPy, :class:`Sharded`, or of JAX where they lie like others before; None of leaves that are no arrays."""
    strings: dict[str, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    """What must be the same in all processes, a line a leaf; not kept where there is one."""

    # --- with the other processes

    def summary(self) -> bytes:
        """What the others need to know of this process's tree."""
        from hashlib import sha256

        digest = sha256("\n".join(self.lines).encode("utf-8", "surrogateescape")).hexdigest()
        columns = zip(self.arrays, self.judged, strict=True)
        votes = "".join([self._vote(array) for array, (_, spec) in columns if array is not None and spec is None])
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
        small: dict[np.dtype[Any], list[Any]] = {}
        lists: dict[int, list[Any] | None] = {}  # of what is judged alike
        for judged, array in zip(self.judged, self.arrays, strict=True):
            try:
                found = lists[id(judged)]
            except KeyError:
                spec = judged.spec
                found = None
                if spec is not None and not isinstance(array, Sharded) and WORTH_TRYING <= array.nbytes < _SMALL:
                    found = small.setdefault(spec.dtype, [])
                lists[id(judged)] = found
            if found is not None:
                found.append(array)
        together = self.encoding.compresses_together
        return {dtype: together(arrays) for dtype, arrays in small.items() if len(arrays) >= _MANY}

    def agree(self, summaries: Sequence[bytes]) -> bool:
        """Settle how arrays are stored, from everybody's summary; False if their trees are not the same."""
        said = [json.loads(summary) for summary in summaries]
        if any(digest != said[0][0] for digest, _ in said):
            return False
        ballots = [ballot for _, ballot in said]
        pending = 0
        for i, (name, array, judged) in enumerate(zip(self.names, self.arrays, self.judged, strict=True)):
            if array is not None and judged.spec is None:
                votes = (ballot[pending] for ballot in ballots)
                is_compressed = next((vote for vote in votes if vote != "-"), "r") == "z"
                self.judged[i] = judged._replace(spec=self._spec(name, array, is_compressed))
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
        for i, (name, array, judged) in enumerate(zip(self.names, self.arrays, self.judged, strict=True)):
            if array is None or isinstance(array, Sharded):
                continue
            if judged.kind.is_jax:
                self.arrays[i] = array = _elements(name, array)
            if not judged.kind.is_jax or array.flags.writeable:
                self.arrays[i] = np.array(array, order="K", subok=False)

    def release(self) -> None:
        """Let go of the arrays."""
        self.arrays.clear()

    @cached_property
    def _texts(self) -> LeafTexts:
        return LeafTexts(self.names, self.paths, self.judged, _described, self.index == 0)

    def files(self) -> dict[str, bytes]:
        """The small files of the pytree, which process 0 writes."""
        strings = {STRINGS: encode_strings(self.strings)} if self.strings else {}
        use_zarr3 = self.encoding.zarr_format == 3
        return strings | self._texts.files(use_zarr3=use_zarr3, custom_metadata=self.custom_metadata)

    def array_metadatas(self) -> dict[str, bytes]:
        """The small file that each process writes, all the same; none where no leaf is a JAX array."""
        return self._texts.array_metadatas(self.index)

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
        return sum(1 + int(np.prod(spec.grid)) for _, spec in self.judged if spec is not None)

    def put_into(self, database: NewDatabase) -> None:
        """Keys and values that this process writes.

        Which arrays are worth compressing is found out now, while the first ones are written already.
        """
        is_primary = self.index == 0
        pays = self._small_pay() if self.encoding.is_sampled else {}
        packings: dict[int, _Packing | None] = {}  # of what is judged alike
        others = Others(database)
        bases: list[bytes] = []
        kinds: list[int] = []
        values: list[Any] = []
        nbytes = 0
        columns = zip(array_keys(self.names, ""), self.judged, self.arrays, strict=True)
        for at, (base, judged, array) in enumerate(columns):
            try:
                packing = packings[id(judged)]
            except KeyError:
                packing = packings[id(judged)] = self._packing(judged, array, pays, database)
            if packing is None or (type(array) is np.ndarray and not array.flags.c_contiguous):
                if array is not None and (is_primary or self._writes(array)):
                    self._put(at, base, pays, others)
                continue
            # nearly all arrays of a tree that has many
            number, room = packing
            nbytes += room
            if nbytes > BLOCK_BYTES:
                database.put_packed(bases, kinds, values)
                bases, kinds, values, nbytes = [], [], [], room
                self._texts.advance(at)
            bases.append(base)
            kinds.append(number)
            values.append(array)
        if bases:
            database.put_packed(bases, kinds, values, is_last=True)
        others.finish()

    def _packing(
        self, judged: _Judged, array: Any, pays: Mapping[np.dtype[Any], bool], database: NewDatabase
    ) -> _Packing | None:
        """How this array, and those that were judged alike, are packed; None if they are not."""
        spec = judged.spec
        if spec is None or isinstance(array, Sharded) or self.index or not array.dtype.isnative:
            return None
        size = spec.chunk_nbytes
        is_judged = not self.encoding.is_sampled or size < WORTH_TRYING or pays.get(spec.dtype) is False
        if not (is_judged and spec.is_plain and spec.sharding is None):
            return None
        chunk_file = spec.chunk_key((0,) * spec.ndim).encode()
        number = database.add_form(encode_metadata(spec), spec.metadata_key.encode(), chunk_file, size)
        return None if number is None else _Packing(number, size + -size % ALIGNMENT)

    def _put(self, at: int, base: bytes, pays: Mapping[np.dtype[Any], bool], others: Others) -> None:
        """One array that is not packed."""
        name, (kind, spec), array = self.names[at], self.judged[at], self.arrays[at]
        assert spec is not None
        if not isinstance(array, Sharded):
            array = _elements(name, array)
        size = array.nbytes
        if self.encoding.is_sampled and size >= WORTH_TRYING and self.decides(kind.is_jax):
            known = pays.get(spec.dtype) if size < _SMALL and isinstance(array, np.ndarray) else None
            if self._pays(array) if known is None else known:
                spec = self._spec(name, array, True)
                self.judged[at] = _Judged(kind, spec)
        if isinstance(array, Sharded):
            others.put_blocks(name, array.blocks, spec, with_document=self.index == 0)
        else:
            others.put(name, base, array, spec)


def prepare(tree: Tree, index: int = 0, count: int = 1) -> Prepared:
    """Take a tree apart and judge all of it, in process ``index`` of ``count``."""
    flat = flatten(tree.tree, can_rebuild=False)
    names = leaf_names(flat.paths)
    check_names(names, flat.paths)
    custom_metadata = check_custom_metadata(tree.custom_metadata)
    prepared = Prepared(tree.encoding, custom_metadata, index, count, names, flat.paths)
    shared: dict[tuple[Any, ...], _Kind] = {}
    known: dict[tuple[Any, ...], _Judged] = {}  # arrays of NumPy, by shape and dtype
    jax_arrays = JaxArrays()
    for name, value in zip(names, flat.leaves, strict=True):
        # nearly all leaves are like one before
        array: Any = value
        judged = known.get((value.shape, value.dtype)) if type(value) is np.ndarray else jax_arrays.known(value)
        if judged is None:
            leaf = stored_leaf(name, value)
            array, kind = leaf.array, _kind(leaf, shared)
            judged = _Judged(kind, None if array is None else _judge(name, array, kind, prepared))
            if leaf.string is not None:
                prepared.strings[name] = leaf.string
            if count > 1:
                prepared.lines.append(_line(name, leaf))
            elif type(value) is np.ndarray:
                known[value.shape, value.dtype] = judged
            elif kind.is_jax and isinstance(array, np.ndarray) and jax_arrays.expects(value):
                jax_arrays.judged[array.shape, array.dtype] = judged
        prepared.arrays.append(array)
        prepared.judged.append(judged)
    check_string_names(prepared.strings)
    if flat.paths == [()] and prepared.judged[0].kind.value_type in ValueType.EMPTY:
        raise UnsupportedError("There is nothing to save: Orbax does not store a tree without leaves")
    return prepared


def _kind(leaf: StoredLeaf, shared: dict[tuple[Any, ...], _Kind]) -> _Kind:
    array, write_shape = leaf.array, None
    is_jax = leaf.value_type == ValueType.JAX_ARRAY
    if is_jax and array is not None:
        write_shape = array.write_shape if isinstance(array, Sharded) else array.shape
    key = (leaf.value_type, write_shape, id(leaf.sharding), leaf.random_key_impl)
    return shared.setdefault(key, _Kind(leaf.value_type, is_jax, write_shape, leaf.sharding, leaf.random_key_impl))


def _described(judged: _Judged) -> Described:
    kind, spec = judged
    chunks = None if spec is None else spec.chunks
    return Described(kind.value_type, kind.write_shape, chunks, kind.sharding, kind.random_key_impl)


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


def _elements(name: str, array: Any) -> NDArray[Any]:
    """Of an array of NumPy or JAX, where they lie; those of JAX stay there as long as they are held."""
    try:
        return np.asarray(array)
    except RuntimeError as error:
        raise deleted(name) from error
