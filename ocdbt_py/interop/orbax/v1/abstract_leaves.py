"""What stands for a leaf that is not there: in an abstract tree, and in the metadata of a saved one.

    jax.ShapeDtypeStruct, jax.Array, ArrayMetadata    a jax.Array on its sharding; without one, on the saved one
    np.ndarray (also the class), NumpyMetadata        a NumPy array
    int, float, bool, str, or a value of these        that type
    ...                                               is not read

The metadata of a tree is an abstract tree itself: given to ``load``, it asks for the tree as it was saved. (Its classes
are no dataclasses: those are containers.)
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np

from ocdbt_py.interop.orbax.args import PyTreeRestore
from ocdbt_py.interop.orbax.jax_access import jax_if_loaded
from ocdbt_py.interop.orbax.matching import opened
from ocdbt_py.interop.orbax.metadata import reading, value
from ocdbt_py.interop.orbax.restore_args import ArrayRestoreArgs, RestoreArgs
from ocdbt_py.storage.location import Place

__all__ = ["AbstractArray", "AbstractShardedArray", "ArrayMetadata", "NumpyMetadata", "described", "is_abstract"]


@runtime_checkable
class AbstractArray(Protocol):
    """A NumPy array that is not there."""

    shape: tuple[int, ...] | None
    dtype: Any


@runtime_checkable
class AbstractShardedArray(Protocol):
    """A ``jax.Array`` that is not there."""

    shape: tuple[int, ...] | None
    dtype: Any
    sharding: Any


class NumpyMetadata:
    """A saved NumPy array."""

    def __init__(
        self, shape: tuple[int, ...] | None, dtype: Any, storage_metadata: value.StorageMetadata | None = None
    ) -> None:
        self.shape = shape
        self.dtype = dtype
        self.storage_metadata = storage_metadata

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other) == vars(self)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"


class ArrayMetadata(NumpyMetadata):
    """A saved ``jax.Array``."""

    def __init__(
        self,
        shape: tuple[int, ...] | None,
        dtype: Any,
        sharding_metadata: Any = None,
        storage_metadata: value.StorageMetadata | None = None,
    ) -> None:
        super().__init__(shape, dtype, storage_metadata)
        self.sharding_metadata = sharding_metadata

    @property
    def sharding(self) -> Any:
        """The sharding that was saved, on this process's devices; ``ValueError`` if these are not there."""
        return None if self.sharding_metadata is None else self.sharding_metadata.to_jax_sharding()


def described(place: Place) -> Any:
    """The tree at a place, with metadata for its leaves: numbers as zeros of their type, ``"string"`` for any other."""
    tree = opened(reading.item_metadata(place).tree)
    return tree.rebuild([_described(leaf) for leaf in tree.leaves])


def _described(leaf: Any) -> Any:
    if isinstance(leaf, value.ScalarMetadata):
        return {"b": False, "i": 0, "u": 0, "c": 0j}.get(np.dtype(leaf.dtype).kind, 0.0)
    if isinstance(leaf, value.ArrayMetadata):
        if leaf.sharding is None and getattr(leaf.storage, "write_shape", None) is None:
            return NumpyMetadata(leaf.shape, leaf.dtype, leaf.storage)
        return ArrayMetadata(leaf.shape, leaf.dtype, leaf.sharding, leaf.storage)
    return "string" if isinstance(leaf, value.StringMetadata) else leaf


def is_abstract(leaf: Any) -> bool:
    """Whether a leaf of an abstract tree says how it is to come back."""
    if leaf is None or leaf is ... or isinstance(leaf, bool | int | float | str | np.generic):
        return True
    if isinstance(leaf, dict | list | tuple):
        return not leaf
    if isinstance(leaf, type):
        return issubclass(leaf, bool | int | float | str | np.ndarray | np.number) or _is_jax_array(leaf)
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def restore_args(abstract: Any, *, pads: bool, is_partial: bool) -> PyTreeRestore:
    """The request of an abstract tree; None: as saved. ``pads``: arrays are cut or padded to the shapes in it."""
    if abstract is None:
        return PyTreeRestore()
    flat = opened(abstract)
    return PyTreeRestore(
        item=flat.rebuild([_example(leaf) for leaf in flat.leaves]),
        restore_args=flat.rebuild([_args(leaf, pads) for leaf in flat.leaves]),
        partial_restore=is_partial,
    )


def _example(leaf: Any) -> Any:
    """A leaf in the place of its class."""
    if not isinstance(leaf, type):
        return leaf
    return leaf() if issubclass(leaf, bool | int | float | str | np.number) else np.zeros(())


def _args(leaf: Any, pads: bool) -> Any:
    if leaf is None or (isinstance(leaf, dict | list | tuple) and not leaf):
        return leaf  # no leaf for JAX: the two trees must have one structure
    if leaf is ...:
        return RestoreArgs()
    if isinstance(leaf, type):
        if _is_jax_array(leaf):
            return ArrayRestoreArgs(strict=not pads)
        return RestoreArgs(restore_type=np.ndarray if issubclass(leaf, np.ndarray) else leaf)
    if isinstance(leaf, bool | int | float | str | np.generic):
        return RestoreArgs(restore_type=type(leaf))
    if hasattr(leaf, "sharding"):
        return ArrayRestoreArgs(
            sharding=_on_devices(leaf.sharding), shape=leaf.shape, dtype=leaf.dtype, strict=not pads
        )
    return RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)


def _is_jax_array(kind: type[Any]) -> bool:
    jax = jax_if_loaded()
    return jax is not None and issubclass(kind, jax.Array)


def _on_devices(sharding: Any) -> Any:
    """A sharding whose mesh has devices: an abstract one is the mesh in use."""
    jax = jax_if_loaded()
    if jax is None or not isinstance(sharding, jax.sharding.NamedSharding):
        return sharding
    if isinstance(sharding.mesh, getattr(jax.sharding, "AbstractMesh", ())) and hasattr(jax.sharding, "get_mesh"):
        return jax.sharding.NamedSharding(jax.sharding.get_mesh(), sharding.spec)
    return sharding
