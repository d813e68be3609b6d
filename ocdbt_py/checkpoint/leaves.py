"""Leaves of a user's tree into what is stored: an array, a string, or nothing but a word in the metadata.

Every leaf is judged before anything is written. Arrays are taken as they lie: NumPy's own, JAX's (on CPU without a
copy; those on several devices in parts, :mod:`ocdbt_py.checkpoint.shards`), and whatever else offers ``__array__`` or
DLPack. Python and NumPy numbers become arrays of rank 0. What Orbax could not restore is refused here, with the leaf's
name and the way out.

JAX is looked for only among the modules that are loaded: without it there are no JAX arrays.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ocdbt_py.array.dtypes import dtype_name
from ocdbt_py.checkpoint.metadata import ValueType
from ocdbt_py.checkpoint.shards import Sharded, describe_sharding, sharded
from ocdbt_py.errors import InvalidArgumentError, InvalidTypeError, OcdbtError, UnsupportedError

__all__ = ["JaxArrays", "StoredLeaf", "stored_leaf"]


class StoredLeaf(NamedTuple):
    """What becomes of a leaf: its kind, and its array or its string. A JAX array on several devices stays in parts.

    ``sharding`` describes where a JAX array lay, as ``_sharding`` does; ``random_key_impl`` is for typed PRNG keys.
    """

    value_type: str
    array: NDArray[Any] | Sharded | None = None
    string: str | None = None
    sharding: Mapping[str, Any] | None = None
    random_key_impl: str | None = None


_INT64 = np.iinfo(np.int64)
_NONE = StoredLeaf(ValueType.NONE)


def stored_leaf(name: str, value: Any) -> StoredLeaf:
    """How the leaf ``name`` is stored, or an error that names it and says what to do."""
    try:
        leaf = _stored(value)
        if leaf.array is not None:
            dtype_name(leaf.array.dtype)  # refuses what cannot be stored
    except OcdbtError as error:
        raise type(error)(f"The leaf {name!r} cannot be saved: {error.message}") from None
    return leaf


def _stored(value: Any) -> StoredLeaf:
    if type(value) is np.ndarray:
        return StoredLeaf(ValueType.NUMPY_ARRAY, value)
    if value is None:
        return _NONE
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, np.generic):
        return _numpy_scalar(value)
    if isinstance(value, bool | int | float):
        return _python_scalar(value)
    jax = sys.modules.get("jax")
    if jax is not None and isinstance(value, getattr(jax, "Array", ())):
        return _jax_array(jax, value)
    if isinstance(value, dict | list | tuple | Mapping):
        return _empty(value)
    return _foreign(value)


def _string(value: str) -> StoredLeaf:
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidArgumentError(f"the string {text[:40]!r} is not Unicode text") from None
    return StoredLeaf(ValueType.STRING, string=text)


def _numpy_scalar(value: np.generic) -> StoredLeaf:
    return StoredLeaf(ValueType.SCALAR, np.asarray(value))


def _python_scalar(value: bool | float) -> StoredLeaf:
    if isinstance(value, bool):
        return StoredLeaf(ValueType.SCALAR, np.array(value, np.bool_))
    if isinstance(value, float):
        return StoredLeaf(ValueType.SCALAR, np.array(value, np.float64))
    if not _INT64.min <= value <= _INT64.max:
        raise InvalidArgumentError(
            f"Python integers are stored in 64 bits, and {value if abs(value) < 1 << 200 else 'this one'} needs more; "
            "save it as a str, or as a float"
        )
    return StoredLeaf(ValueType.SCALAR, np.array(value, np.int64))


def _empty(value: Any) -> StoredLeaf:
    """An empty container: with children it would not be a leaf."""
    if len(value):
        raise InvalidTypeError(f"a {type(value).__name__} is not a container that can be taken apart; make it a dict")
    if isinstance(value, list):
        return StoredLeaf(ValueType.LIST)
    if isinstance(value, tuple):
        # Orbax has a word for an empty namedtuple, but writes it only with rich types
        return _NONE if hasattr(value, "_fields") else StoredLeaf(ValueType.TUPLE)
    return StoredLeaf(ValueType.DICT)


def _jax_array(jax: Any, value: Any) -> StoredLeaf:
    if isinstance(value, jax.core.Tracer):
        raise InvalidTypeError("it is being traced by JAX; save outside of jit, grad and vmap")
    if value.is_deleted():
        raise InvalidArgumentError("this jax.Array was deleted or donated; save before that, or save a copy")
    random_key_impl = None
    if not isinstance(value.dtype, np.dtype):
        if not jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
            raise UnsupportedError(f"arrays of JAX's dtype {value.dtype} have no form on disk")
        random_key_impl = str(jax.random.key_impl(value))
        value = jax.random.key_data(value)
    sharding = value.sharding
    return StoredLeaf(
        ValueType.JAX_ARRAY,
        np.asarray(value) if len(sharding.device_set) == 1 else sharded(value),
        sharding=describe_sharding(sharding),
        random_key_impl=random_key_impl,
    )


class JaxArrays:
    """Arrays of JAX that lie where one before lay, on one device: judged by shape and dtype, and not asked for more."""

    def __init__(self) -> None:
        self._type: Any = None
        self._sharding: Any = None
        self.judged: dict[tuple[tuple[int, ...], np.dtype[Any]], Any] = {}
        """What is known of those, for the caller to fill."""

    def expects(self, value: Any) -> bool:
        """Whether others like ``value``, which was judged, are taken from now on."""
        if not isinstance(value.dtype, np.dtype):
            return False  # random keys
        if type(value) is not self._type or value.sharding != self._sharding:
            self._type, self._sharding = type(value), value.sharding
            self.judged.clear()
        return True

    def known(self, value: Any) -> Any:
        """What is known of those like ``value``; None if it is no such array, or was deleted."""
        if type(value) is not self._type:
            return None
        sharding = value.sharding
        if (sharding is not self._sharding and sharding != self._sharding) or value.is_deleted():
            return None
        return self.judged.get((value.shape, value.dtype))


def _foreign(value: Any) -> StoredLeaf:
    kind = type(value)
    shown = f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(value, complex):
        raise UnsupportedError("Orbax has no form for a Python complex; save numpy.complex128(x)")
    if value is ...:
        raise InvalidTypeError("... stands for a leaf in a target of restore; there is no value to save")
    if isinstance(value, np.ma.MaskedArray):
        raise UnsupportedError("a masked array would lose its mask; save x.data and x.mask")
    if not (hasattr(kind, "__array__") or hasattr(kind, "__dlpack__")):
        raise UnsupportedError(
            f"{shown} is neither a container nor an array, number, str or None; convert it, or register the type as a "
            "pytree node with JAX"
        )
    try:
        array = np.asarray(value) if hasattr(kind, "__array__") else np.from_dlpack(value)
    except Exception as error:
        # foreign code may raise anything, and it is about this leaf
        raise InvalidTypeError(f"{shown} did not give its data: {error}") from error
    return StoredLeaf(ValueType.NUMPY_ARRAY, array)
