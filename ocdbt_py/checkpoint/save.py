"""Save a pytree as a checkpoint that Orbax restores.

One pass takes the tree apart and judges every leaf, before anything is written. Then the arrays go into one database,
the small JSON files beside it, and the directory is published whole (:mod:`ocdbt_py.checkpoint.staging`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from ocdbt_py.array.codecs import Encoder
from ocdbt_py.array.spec import ArraySpec, array_key
from ocdbt_py.array.write import encode_array, encode_chunk
from ocdbt_py.array.zarr2 import encode_zarray
from ocdbt_py.checkpoint.collecting import collector_paused
from ocdbt_py.checkpoint.encoding import Encoding
from ocdbt_py.checkpoint.flatten import flatten
from ocdbt_py.checkpoint.leaves import stored_leaf
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
    encode_checkpoint_metadata,
    encode_shardings,
    encode_strings,
    encode_tree_metadata,
)
from ocdbt_py.checkpoint.names import check_names, check_string_names, leaf_names
from ocdbt_py.checkpoint.new_database import NewDatabase
from ocdbt_py.checkpoint.opening import resolve_checkpoint
from ocdbt_py.checkpoint.staging import stage
from ocdbt_py.errors import OcdbtError, UnsupportedError
from ocdbt_py.format.manifest import MANIFEST_NAME
from ocdbt_py.storage.location import Place, Settings
from ocdbt_py.storage.protocol import Buffer

__all__ = ["save", "save_place"]


def save(
    url: Any,
    tree: Any,
    *,
    overwrite: bool = False,
    compression: str | None = "auto",
    chunk_bytes: int | None = None,
    custom_metadata: Mapping[str, Any] | None = None,
    durable: bool = True,
    progress: Any = None,
    storage_options: dict[str, Any] | None = None,
    fs: Any = None,
) -> None:
    """Save ``tree`` as a checkpoint at ``url``, which must be absent or an empty directory.

    Leaves: NumPy arrays and numbers, JAX arrays on one host, whatever has ``__array__`` or DLPack, ``bool``, ``int``
    (64 bits), ``float``, ``str``, None. Containers: those of JAX's registry, and dict, list, tuple, namedtuple,
    dataclass.

    ``overwrite`` replaces a checkpoint, never another directory. ``compression``: ``"auto"`` (arrays for which it
    pays), ``"zstd"``, ``"zstd:LEVEL"`` or None. ``chunk_bytes`` cuts arrays into chunks of at most so many bytes.
    ``custom_metadata``: a dict that JSON can hold. ``durable=False`` leaves out fsync. ``progress``: an fsspec
    ``Callback``, told of the bytes of arrays.

    The whole checkpoint is seen or none. Raises, with nothing written: :class:`AlreadyExistsError`,
    :class:`UnsupportedError` (a leaf that Orbax could not restore), :class:`InvalidArgumentError` (names that collide,
    arguments). On any later error what was written is removed.

    >>> save("memory://example", {"rates": [0.1, 0.2], "step": 3}, overwrite=True)
    """
    place = resolve_checkpoint(url, storage_options, fs, Settings(durable=durable))
    encoding = Encoding(compression, chunk_bytes)
    save_place(place, tree, encoding, overwrite=overwrite, custom_metadata=custom_metadata, progress=progress)


@collector_paused()
def save_place(
    place: Place,
    tree: Any,
    encoding: Encoding,
    *,
    overwrite: bool = False,
    custom_metadata: Mapping[str, Any] | None = None,
    progress: Any = None,
) -> None:
    """:func:`save` at a place that is resolved already."""
    custom = check_custom_metadata(custom_metadata)
    prepared = _prepare(tree, encoding)
    begun_at = time.time_ns()
    with stage(place, overwrite=overwrite, begun=encode_checkpoint_metadata(begun_at, None, custom)) as staging:
        files = {}
        if prepared.arrays:
            database = NewDatabase(place.storage, staging.place.path)
            try:
                for key, value in _pieces(prepared, progress):
                    database.put(key, value)
                files[MANIFEST_NAME] = database.finish()
            except BaseException:
                database.abort()
                raise
        files |= prepared.files()
        staging.publish(files, encode_checkpoint_metadata(begun_at, time.time_ns(), custom))


@dataclass(slots=True)
class _Prepared:
    """A tree as it will be stored, every leaf judged."""

    records: list[LeafRecord] = field(default_factory=list)
    arrays: list[tuple[str, NDArray[Any], ArraySpec]] = field(default_factory=list)
    strings: dict[str, str] = field(default_factory=dict)
    shardings: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    jax_arrays: list[ArrayRecord] = field(default_factory=list)

    def files(self) -> dict[str, bytes]:
        """The small files of the pytree."""
        files = {}
        if self.strings:
            files[STRINGS] = encode_strings(self.strings)
        if self.jax_arrays:
            files[SHARDING] = encode_shardings(self.shardings)
            files[f"{ARRAY_METADATAS}/process_0"] = encode_array_metadatas(self.jax_arrays)
        files[METADATA] = encode_tree_metadata(self.records)
        return files


def _prepare(tree: Any, encoding: Encoding) -> _Prepared:
    """Take the tree apart and judge all of it."""
    flat = flatten(tree)
    names = leaf_names(flat.paths)
    check_names(names, flat.paths)
    prepared = _Prepared()
    for name, path, value in zip(names, flat.paths, flat.leaves, strict=True):
        leaf = stored_leaf(name, value)
        write_shape = None
        if leaf.string is not None:
            prepared.strings[name] = leaf.string
        elif leaf.array is not None:
            spec = _spec(name, leaf.array, encoding)
            prepared.arrays.append((name, leaf.array, spec))
            if leaf.sharding is not None:
                write_shape = leaf.array.shape
                prepared.shardings[name] = leaf.sharding
                prepared.jax_arrays.append(ArrayRecord(name, write_shape, spec.chunks, leaf.random_key_impl))
        prepared.records.append(LeafRecord(path, leaf.value_type, write_shape))
    check_string_names(prepared.strings)
    if flat.paths == [()] and prepared.records[0].value_type in ValueType.EMPTY:
        raise UnsupportedError("There is nothing to save: Orbax does not store a tree without leaves")
    return prepared


def _spec(name: str, array: NDArray[Any], encoding: Encoding) -> ArraySpec:
    try:
        return encoding.spec(array)
    except OcdbtError as error:
        raise type(error)(f"The leaf {name!r} cannot be saved: {error.message}") from None


def _pieces(prepared: _Prepared, progress: Any) -> Iterator[tuple[bytes, Buffer]]:
    """Keys and values of all arrays, encoded as they are asked for."""
    if progress is not None:
        progress.set_size(sum(array.nbytes for _, array, _ in prepared.arrays))
    encoder = Encoder()
    documents: dict[int, bytes] = {}  # of each spec; arrays alike share one
    for name, array, spec in prepared.arrays:
        if spec.chunks == spec.shape:  # nearly all arrays: one chunk, and no detours on the way to it
            document = documents.get(id(spec))
            if document is None:
                document = documents[id(spec)] = encode_zarray(spec)
            first = (0,) * spec.ndim
            yield array_key(name, spec.metadata_key), document
            yield array_key(name, spec.chunk_key(first)), encode_chunk(array, spec, first, encoder)
        else:
            yield from encode_array(name, array, spec, encoder=encoder)
        if progress is not None:
            progress.relative_update(array.nbytes)
