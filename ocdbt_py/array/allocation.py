"""Memory for arrays that are to be filled.

Most of the time that reading a large array takes goes into pages that the system hands out for the first time. So a
large one gets pages of its own, which several threads fill beside each other and the system has back when it is gone,
and asks for huge ones, as NumPy does. With those a restore takes a third of the time; only where a virtual machine's
host has taken back what was free, and must find it again, half as much again.

All but small ones begin where JAX can use them without a copy.
"""

from __future__ import annotations

import math
import mmap
from contextlib import suppress
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ocdbt_py.errors import UnsupportedError

__all__ = ["ALIGNMENT", "allocate"]

ALIGNMENT: Final = 64
"""Bytes; JAX copies what does not begin on a multiple of it, in memory or in a file that is mapped."""

_SMALL: Final = 16 << 10
"""Bytes that are copied sooner than laid out well."""

_LARGE: Final = 2 << 20
"""Bytes of a huge page on most machines."""

_HAS_PAGES: Final = hasattr(mmap, "MAP_PRIVATE") and hasattr(mmap, "MAP_ANONYMOUS")


def allocate(name: str, shape: tuple[int, ...], dtype: np.dtype[Any], *, zero: bool = False) -> NDArray[Any]:
    """A new array, of zeros or of anything; ``name`` is for the error where there is no room."""
    nbytes = math.prod(shape) * dtype.itemsize
    try:
        if nbytes < _SMALL or (zero and not _has_own_pages(nbytes)):
            return np.zeros(shape, dtype) if zero else np.empty(shape, dtype)
        if _has_own_pages(nbytes):
            return np.ndarray(shape, dtype, _own_pages(nbytes))
        memory = np.empty(nbytes + ALIGNMENT, np.uint8)
        return np.ndarray(shape, dtype, memory, -memory.ctypes.data % ALIGNMENT)
    except (MemoryError, OSError, OverflowError, ValueError) as error:
        raise UnsupportedError(
            f"Array {name!r}: {shape} elements of {dtype} do not fit into memory. Read slices of it"
        ) from error


def _own_pages(nbytes: int) -> mmap.mmap:
    pages = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a system that is built without them
            pages.madvise(mmap.MADV_HUGEPAGE)
    return pages


def _has_own_pages(nbytes: int) -> bool:
    return _HAS_PAGES and nbytes >= _LARGE
