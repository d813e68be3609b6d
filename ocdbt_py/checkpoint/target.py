"""What a target asks of each leaf: of which kind, shape and dtype it is to be, and on which devices.

A target is a tree like the one wanted, its leaves examples or descriptions. :func:`wanted` reads a leaf of it,
:class:`Differences` collects where target and checkpoint do not agree, and says it all in one error.
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ocdbt_py.array.dtypes import dtype_name
from ocdbt_py.checkpoint.metadata import ValueType
from ocdbt_py.checkpoint.names import nearest
from ocdbt_py.checkpoint.stored import ArrayInfo
from ocdbt_py.errors import InvalidTypeError, StructureError

__all__ = ["Differences", "Form", "Wanted", "fits", "wanted"]


class Form(enum.Enum):
    """In which form a leaf is wanted."""

    SKIPPED = "..."
    AS_SAVED = "None"
    EMPTY = "an empty container"
    STRING = "str"
    NUMBER = "a Python number"
    NUMPY_NUMBER = "a NumPy number"
    NUMPY = "a NumPy array"
    JAX = "a jax.Array"
    RANDOM_KEY = "a typed PRNG key"


class Wanted(NamedTuple):
    """One leaf of a target. ``dtype`` is NumPy's, or JAX's own of a typed key; ``leaf`` the target's leaf itself."""

    form: Form
    leaf: Any
    shape: tuple[int, ...] = ()
    dtype: Any = None
    sharding: Any = None

    def __str__(self) -> str:
        match self.form:
            case Form.STRING | Form.NUMBER | Form.NUMPY_NUMBER:
                return type(self.leaf).__name__
            case Form.EMPTY | Form.AS_SAVED | Form.SKIPPED:
                return repr(self.leaf)
            case _:
                return f"{self.dtype}[{','.join(map(str, self.shape))}]"


def wanted(name: str, leaf: Any) -> Wanted:
    """What the leaf ``name`` of a target asks for."""
    if leaf is ...:
        return Wanted(Form.SKIPPED, leaf)
    if leaf is None:
        return Wanted(Form.AS_SAVED, leaf)
    jax = sys.modules.get("jax")
    if jax is not None and isinstance(leaf, (jax.ShapeDtypeStruct, jax.Array)):
        form = Form.JAX if isinstance(leaf.dtype, np.dtype) else Form.RANDOM_KEY
        return Wanted(form, leaf, tuple(leaf.shape), leaf.dtype, leaf.sharding)
    if isinstance(leaf, str):
        return Wanted(Form.STRING, leaf)
    if isinstance(leaf, np.generic):
        return Wanted(Form.NUMPY_NUMBER, leaf, (), leaf.dtype)
    if isinstance(leaf, bool | int | float | complex):
        return Wanted(Form.NUMBER, leaf)
    if isinstance(leaf, np.ndarray):
        return Wanted(Form.NUMPY, leaf, leaf.shape, leaf.dtype)
    if isinstance(leaf, dict | list | tuple | Mapping) and not len(leaf):
        return Wanted(Form.EMPTY, leaf)
    if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
        raise InvalidTypeError(
            f"The leaf {name!r} of the target is of type {type(leaf).__name__}, which says no shape and dtype; use "
            "jax.ShapeDtypeStruct, a NumPy array, a number, a str, None (as saved) or ... (not read)"
        )
    try:
        return Wanted(Form.NUMPY, leaf, tuple(leaf.shape), np.dtype(leaf.dtype))
    except TypeError as error:
        raise InvalidTypeError(f"The leaf {name!r} of the target, a {type(leaf).__name__}: {error}") from None


def fits(want: Wanted, value_type: str, info: ArrayInfo) -> bool:
    """Whether a stored leaf can be given as it is wanted.

    Arrays are cast, but not to another shape, nor from complex to real; numbers become no narrower kind.
    """
    is_array = value_type in ValueType.ARRAYS
    match want.form:
        case Form.SKIPPED | Form.AS_SAVED:
            return True
        case Form.STRING:
            return value_type == ValueType.STRING
        case Form.EMPTY:
            return value_type in ValueType.EMPTY
        case Form.NUMBER:
            return is_array and info.shape == () and _rank(info.dtype) <= _rank(np.asarray(want.leaf).dtype)
        case Form.RANDOM_KEY:
            return is_array and info.dtype == np.uint32 and info.shape[:-1] == want.shape and info.shape != ()
        case _:
            return is_array and info.shape == want.shape and (info.dtype.kind != "c" or want.dtype.kind == "c")


def _rank(dtype: np.dtype[Any]) -> int:
    """bool, integers, floats (extension types among them), complex: each fits into the next."""
    if dtype.kind in "biuc":
        return {"b": 0, "i": 1, "u": 1, "c": 3}[dtype.kind]
    return 1 if dtype_name(dtype).startswith("int") else 2


class Differences:
    """Where a target and a checkpoint do not agree."""

    def __init__(self) -> None:
        self._rows: list[tuple[str, str, str]] = []
        self._missing: list[str] = []
        self._unexpected: list[str] = []

    def missing(self, name: str, target: Wanted) -> None:
        self._rows.append((name, "-", str(target)))
        self._missing.append(name)

    def unexpected(self, name: str, stored: str) -> None:
        self._rows.append((name, stored, "-"))
        self._unexpected.append(name)

    def mismatched(self, name: str, stored: str, target: Wanted) -> None:
        self._rows.append((name, stored, str(target)))

    def __bool__(self) -> bool:
        return bool(self._rows)

    def error(self, url: str, stored_names: Sequence[str]) -> StructureError:
        """All of them, in three columns; missing leaves with the name that may have been meant."""
        guesses = {}
        for name in self._missing[:_GUESSED]:
            guess = nearest(name, self._unexpected) or nearest(name, stored_names)
            if guess is not None and guess != name:
                guesses[name] = f"  nearest name: {guess}"
        heading = ("leaf", "in the checkpoint", "in the target")
        lines = [heading, *((repr(name)[1:-1], stored, target) for name, stored, target in self._rows)]
        widths = [max(len(line[column]) for line in lines) for column in (0, 1)]
        table = "\n".join(
            f"  {leaf:<{widths[0]}}  {stored:<{widths[1]}}  {target}".rstrip() + guesses.get(leaf, "")
            for leaf, stored, target in lines
        )
        count = len(self._rows)
        return StructureError(
            f"Target and checkpoint differ in {count} {'leaf' if count == 1 else 'leaves'}:\n{table}\n"
            "Change the target, leave leaves out of it with ... or select=, or give strict=False",
            url=url,
        )


_GUESSED = 50
"""Guesses cost milliseconds each."""
