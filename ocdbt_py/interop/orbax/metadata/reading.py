"""The description of a saved tree, read from its metadata alone: ``item_metadata``.

Of an array that is its ``.zarray`` or ``zarr.json`` and its entry in ``_sharding``; no chunk is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ocdbt_py.checkpoint.flatten import unflatten_paths
from ocdbt_py.checkpoint.layout import Kind, identify, read_file
from ocdbt_py.checkpoint.metadata import ARRAY_METADATAS, METADATA, ValueType, decode_json
from ocdbt_py.checkpoint.stored import StoredTree
from ocdbt_py.errors import CorruptDataError, OcdbtError, PathNotFoundError
from ocdbt_py.interop.orbax.directories import path_of
from ocdbt_py.interop.orbax.metadata.sharding import ShardingMetadata, sharding_metadata
from ocdbt_py.interop.orbax.metadata.tree import TreeMetadata
from ocdbt_py.interop.orbax.metadata.value import (
    ArrayMetadata,
    Metadata,
    ScalarMetadata,
    StorageMetadata,
    StringMetadata,
)
from ocdbt_py.storage.location import Place

__all__ = ["SavedShardings", "item_metadata", "leaf_metadata", "random_key_impls"]


def item_metadata(place: Place) -> TreeMetadata:
    """The tree saved at ``place``: for each leaf an :class:`ArrayMetadata`, :class:`ScalarMetadata` or
    :class:`StringMetadata`, and None and empty containers as they are.

    Raises :class:`PathNotFoundError`, a ``FileNotFoundError``, where there is no ``_METADATA``, and
    :class:`CorruptDataError`.
    """
    layout = identify(place)
    if layout.kind is not Kind.PYTREE:
        raise PathNotFoundError(f"There is no {METADATA} in {place.url}; it holds {layout.kind.value}", url=place.url)
    stored = StoredTree.open(layout)
    tree = unflatten_paths([record.path for record in stored.leaves], leaf_metadata(stored))
    return TreeMetadata(tree=tree, custom_metadata=stored.metadata.custom_metadata, use_zarr3=stored.metadata.use_zarr3)


def leaf_metadata(stored: StoredTree) -> list[Any]:
    """The description of each leaf."""
    place = stored.place
    directory = path_of(place.url)
    specs = stored.specs(range(len(stored.leaves)))
    write_shapes = _write_shapes(place)
    shardings = SavedShardings(stored)
    made: list[Any] = []
    for i, (record, name) in enumerate(zip(stored.leaves, stored.names, strict=True)):
        match record.value_type:
            case ValueType.SCALAR:
                made.append(ScalarMetadata(name, directory, dtype=specs[i].dtype))
            case ValueType.JAX_ARRAY | ValueType.NUMPY_ARRAY:
                sharding = shardings.described(name) if record.value_type == ValueType.JAX_ARRAY else None
                storage = StorageMetadata(specs[i].chunks, write_shapes.get(i))
                made.append(ArrayMetadata(name, directory, specs[i].shape, sharding, specs[i].dtype, storage))
            case ValueType.STRING:
                made.append(StringMetadata(name, directory))
            case kind if kind in ValueType.EMPTY:
                made.append(stored.plain(i))
            case _:
                made.append(Metadata(name, directory))
    return made


def _write_shapes(place: Place) -> dict[int, tuple[int, ...]]:
    """What one writer wrote at a time, by leaf, where it was recorded; it is for information only."""
    data = read_file(place, METADATA)
    found = {}
    try:
        entries = {} if data is None else decode_json(data, METADATA)["tree_metadata"]
        for i, entry in enumerate(entries.values()):
            shape = entry["value_metadata"].get("write_shape")
            if shape is not None:
                found[i] = tuple(int(size) for size in shape)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise CorruptDataError(f"{METADATA} has a write_shape that is none", path=METADATA, url=place.url) from None
    return found


class SavedShardings:
    """The shardings that ``_sharding`` has, each of a kind made once: a tree has thousands of leaves on one mesh."""

    def __init__(self, stored: StoredTree) -> None:
        self._stored = stored
        self._described: dict[str, ShardingMetadata] = {}
        self._made: dict[int, Any] = {}

    def described(self, name: str) -> ShardingMetadata | None:
        """How the leaf lay; None if that is not recorded."""
        entry = self._stored.sharding(name)
        if entry is None:
            return None
        text = repr(entry)
        if text not in self._described:
            try:
                self._described[text] = sharding_metadata(entry)
            except OcdbtError as error:
                raise error.located(url=self._stored.place.url) from None
        return self._described[text]

    def made(self, described: ShardingMetadata) -> Any:
        """The sharding, on this process's devices. Raises :class:`InvalidArgumentError` if these are not there."""
        if id(described) not in self._made:
            self._made[id(described)] = described.to_jax_sharding()
        return self._made[id(described)]


def random_key_impls(place: Place) -> Mapping[str, str]:
    """The typed PRNG keys of a tree: leaf name -> generator. The first file that tells of them counts, as in Orbax."""
    storage = place.storage
    if storage.capabilities.list:
        directory = f"{place.path}/{ARRAY_METADATAS}/"
        names = sorted(item.path.removeprefix(f"{place.path}/") for item in storage.list(directory))
    else:
        names = [f"{ARRAY_METADATAS}/process_0"]
    for name in names:
        data = read_file(place, name)
        if data is None:
            continue
        found = {}
        try:
            for entry in decode_json(data, name)["array_metadatas"]:
                record = entry["array_metadata"]
                impl = (record.get("ext_metadata") or {}).get("random_key_impl")
                if impl is not None:
                    found[str(record["param_name"])] = str(impl)
        except (AttributeError, KeyError, TypeError):
            raise CorruptDataError(f"{name} does not say what its arrays are", path=name, url=place.url) from None
        return found
    return {}
