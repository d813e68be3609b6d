"""Stored leaves into the forms that :class:`~ocdbt_py.interop.orbax.restore_args.RestoreArgs` ask for.

A leaf comes back as the type that its arguments name, or as it was saved: a ``jax.Array`` on a sharding, a NumPy array,
a Python number, a string. All leaves of a restore are read together, and all arrays that go to devices are put there in
one call. Where a sharding spreads over several processes, each reads its own shards.
"""

from __future__ import annotations

import enum
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdbt_py.array.dtypes import dtype_from_name
from ocdbt_py.array.spec import ArraySpec
from ocdbt_py.checkpoint.devices import Shards, to_devices
from ocdbt_py.checkpoint.metadata import ValueType
from ocdbt_py.checkpoint.stored import READING, Reading, StoredTree, python_number
from ocdbt_py.checkpoint.target import Form, Wanted
from ocdbt_py.errors import InvalidArgumentError, StructureError
from ocdbt_py.interop.orbax.jax_access import is_key_dtype, jax_if_installed, jax_if_loaded, the_jax
from ocdbt_py.interop.orbax.metadata.reading import SavedShardings, random_key_impls
from ocdbt_py.interop.orbax.metadata.sharding import ShardingMetadata
from ocdbt_py.interop.orbax.restore_args import ArrayRestoreArgs, RestoreArgs

__all__ = ["LeafKind", "leaf_kind", "read_leaves"]


class LeafKind(enum.Enum):
    """What a leaf can come back as."""

    JAX = "a jax.Array"
    NUMPY = "a NumPy array"
    NUMBER = "a Python number"
    STRING = "a str"
    SKIPPED = "..."
    EMPTY = "nothing"


_BY_NAME = {
    ValueType.JAX_ARRAY: LeafKind.JAX,
    ValueType.NUMPY_ARRAY: LeafKind.NUMPY,
    ValueType.SCALAR: LeafKind.NUMBER,
    ValueType.STRING: LeafKind.STRING,
}


def leaf_kind(wanted: Any) -> LeafKind:
    """What ``restore_type`` means: a type, or the word for one that ``_METADATA`` has."""
    if isinstance(wanted, str):
        found = LeafKind.EMPTY if wanted in ValueType.EMPTY else _BY_NAME.get(wanted)
        if found is not None:
            return found
    elif isinstance(wanted, type):
        jax = jax_if_loaded()
        if issubclass(wanted, int | float | bytes | np.number):
            return LeafKind.NUMBER
        if issubclass(wanted, np.ndarray):
            return LeafKind.NUMPY
        if jax is not None and issubclass(wanted, jax.Array):
            return LeafKind.JAX
        if issubclass(wanted, str):
            return LeafKind.STRING
        if wanted is type(...):
            return LeafKind.SKIPPED
    raise InvalidArgumentError(
        f"restore_type={wanted!r} is no type that leaves come back as; it is jax.Array, np.ndarray, int, float or str"
    )


def read_leaves(stored: StoredTree, wanted: Mapping[int, RestoreArgs], reading: Reading = READING) -> dict[int, Any]:
    """The leaves ``wanted``, each as its arguments say.

    Raises :class:`StructureError` where a leaf is of another shape or kind, :class:`InvalidArgumentError` where there
    is no sharding for a ``jax.Array``, and what reading raises.
    """
    kinds = {i: _kind(stored, i, args) for i, args in wanted.items()}
    taken = [i for i, kind in kinds.items() if kind is not LeafKind.SKIPPED]
    on_devices = [i for i, kind in kinds.items() if kind is LeafKind.JAX]
    shardings = _Shardings(stored)
    targets = {i: shardings.of(stored.names[i], wanted[i]) for i in on_devices}
    specs = stored.specs(on_devices)
    spread = {}
    for i, spec in specs.items():
        _check_shape(stored.names[i], spec, wanted[i])
        sharding = _plain_sharding(targets[i])
        if not sharding.is_fully_addressable and _shape(spec, wanted[i]) == spec.shape:
            spread[i] = Shards.of(sharding, spec)
    values = stored.values(taken, reading, parts={i: each.cover.reads for i, each in spread.items()})
    found: dict[int, Any] = {i: ... for i, kind in kinds.items() if kind is LeafKind.SKIPPED}
    for i in taken:
        if kinds[i] is not LeafKind.JAX:
            found[i] = _plain(stored.names[i], kinds[i], values[i], wanted[i])
    placed = [
        (
            Wanted(Form.JAX, None, _shape(specs[i], wanted[i]), _dtype(wanted[i], specs[i].dtype), targets[i]),
            spread[i]._replace(found=values[i]) if i in spread else fitted(values[i], _shape(specs[i], wanted[i])),
        )
        for i in on_devices
    ]
    impls = random_key_impls(stored.place) if on_devices else {}
    for i, array in zip(on_devices, to_devices(placed), strict=True):
        impl = impls.get(stored.names[i])
        found[i] = array if impl is None else _as_key(stored.names[i], array, impl)
    return found


def _kind(stored: StoredTree, i: int, args: RestoreArgs) -> LeafKind:
    """As what a leaf is to come back, if it can."""
    saved = stored.leaves[i].value_type
    kind = leaf_kind(saved if args.restore_type is None else args.restore_type)
    if kind is LeafKind.SKIPPED:
        return kind
    if kind is LeafKind.JAX and jax_if_installed() is None:
        kind = LeafKind.NUMPY
    if kind is LeafKind.EMPTY or (kind is LeafKind.STRING) != (saved == ValueType.STRING):
        raise StructureError(
            f"The leaf {stored.names[i]!r} was saved as {saved[:40]}, and cannot come back as {kind.value}",
            url=stored.place.url,
        )
    return kind


class _Shardings:
    """Where arrays are to lie: as their arguments say, or else as they lay when they were saved."""

    def __init__(self, stored: StoredTree) -> None:
        self._url = stored.place.url
        self._saved = SavedShardings(stored)
        self._warned = False

    def of(self, name: str, args: RestoreArgs) -> Any:
        if isinstance(args, ArrayRestoreArgs) and args.mesh is not None and args.mesh_axes is not None:
            return the_jax("A mesh").sharding.NamedSharding(args.mesh, args.mesh_axes)
        if isinstance(args, ArrayRestoreArgs) and args.sharding is not None:
            if isinstance(args.sharding, ShardingMetadata):
                return self._saved.made(args.sharding)
            return args.sharding
        described = self._saved.described(name)
        if described is None:
            raise InvalidArgumentError(
                f"The leaf {name!r} is to be a jax.Array, and nothing says on which devices: give a sharding in "
                "ArrayRestoreArgs, or a target that has one",
                url=self._url,
            )
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"No sharding was given for {name!r}, so it goes where it lay when it was saved. On other devices than "
                "those that fails; give shardings with restore_args or a target",
                stacklevel=6,
            )
        return self._saved.made(described)


def _plain_sharding(sharding: Any) -> Any:
    """The sharding alone, of one that is given together with the layout of elements in a device's memory."""
    return sharding if hasattr(sharding, "is_fully_addressable") else sharding.sharding


def _shape(spec: ArraySpec, args: RestoreArgs) -> tuple[int, ...]:
    shape = getattr(args, "global_shape", None)
    return spec.shape if shape is None or is_key_dtype(args.dtype) else tuple(shape)


def _check_shape(name: str, spec: ArraySpec, args: RestoreArgs) -> None:
    shape = _shape(spec, args)
    if shape != spec.shape and (getattr(args, "strict", True) or len(shape) != len(spec.shape)):
        raise StructureError(
            f"The leaf {name!r} has the shape {spec.shape} in the checkpoint, and {shape} in the target; strict=False "
            "cuts it, or pads it with zeros, along axes that are there in both"
        )


def _dtype(args: RestoreArgs, stored: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype to come back in; typed keys are read as they are stored, and become keys afterwards."""
    if args.dtype is None or is_key_dtype(args.dtype):
        return stored
    return dtype_from_name(args.dtype) if isinstance(args.dtype, str) else np.dtype(args.dtype)


def fitted(array: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """An array in another shape of its rank: cut, or padded with zeros, at the end of each axis."""
    if array.shape == shape:
        return array
    made = np.zeros(shape, array.dtype)
    both = tuple(slice(min(sizes)) for sizes in zip(array.shape, shape, strict=True))
    made[both] = array[both]
    return made


def _plain(name: str, kind: LeafKind, value: Any, args: RestoreArgs) -> Any:
    """A leaf that goes to no device."""
    if kind is LeafKind.STRING:
        return value
    dtype = _dtype(args, value.dtype)
    with np.errstate(invalid="ignore", over="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", getattr(np, "exceptions", np).ComplexWarning)
        array = value.astype(dtype, copy=False)
    if kind is LeafKind.NUMPY:
        return array
    if array.ndim:
        raise StructureError(f"The leaf {name!r} is an array of the shape {array.shape}, and no number")
    number = python_number(array)
    return args.restore_type(number) if isinstance(args.restore_type, type) else number


def _as_key(name: str, array: Any, impl: str) -> Any:
    try:
        return the_jax("A random key").random.wrap_key_data(array, impl=impl)
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(
            f"The leaf {name!r} was a random key of the generator {impl[:40]!r}, and JAX makes none of it here: "
            f"{str(error)[:200]}. Restore it as np.ndarray"
        ) from None
