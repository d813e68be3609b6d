"""An array that is still in the store: metadata at hand, bytes fetched when asked for, and only those.

Who wants all of it need not ask: NumPy takes it by ``__array__``, torch and others by DLPack, dask by its slices. JAX
takes neither in ``device_put``; its table of types that it canonicalizes is the only way in, so the class is put there.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ocdbt_py.array.chunks import Index, select
from ocdbt_py.array.read import Missing, Values, plan, read_array
from ocdbt_py.array.spec import ArraySpec
from ocdbt_py.errors import InvalidArgumentError

__all__ = ["LazyArray"]


class LazyArray:
    """A stored array that is read by indexing it.

    Indexes are NumPy's basic ones: integers, slices with any step, ``...``, ``None``; results are NumPy arrays (or
    scalars) with memory of their own. Each access reads anew and keeps nothing, so threads may share one. It pickles if
    ``values`` does.
    """

    __slots__ = ("_missing", "_values", "name", "spec")

    def __init__(self, values: Values, name: str, spec: ArraySpec, *, missing: Missing = "error") -> None:
        self._values = values
        self.name = name
        self.spec = spec
        self._missing: Missing = missing

    @property
    def shape(self) -> tuple[int, ...]:
        return self.spec.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        # JAX asks for it before it looks into its table, whichever of the two was imported or made first
        _introduce_to_jax()
        return self.spec.dtype

    @property
    def ndim(self) -> int:
        return self.spec.ndim

    @property
    def size(self) -> int:
        """Elements."""
        return self.spec.size

    @property
    def nbytes(self) -> int:
        """Bytes in memory; those stored may be fewer."""
        return self.spec.nbytes

    @property
    def chunks(self) -> tuple[int, ...]:
        """Shape of the pieces it is stored in."""
        return self.spec.chunks

    def __getitem__(self, index: Index) -> Any:
        array = read_array(self._values, self.name, self.spec, index, missing=self._missing)
        return array[()] if array.ndim == 0 and select(index, self.shape).scalar else array

    def read(self, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """All of it, as a new array or into ``out``, which has the same shape and dtype."""
        return read_array(self._values, self.name, self.spec, out=out, missing=self._missing)

    def plan(self, index: Index = ...) -> Iterator[tuple[bytes, int, int | None]]:
        """The requests that ``self[index]`` makes: (key, start, stop), stop None for the value's end."""
        return plan(self._values, self.name, self.spec, index, missing=self._missing)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        """For ``np.asarray``. Reading always makes a new array, so ``copy=False`` is refused, as NumPy has it."""
        array = self._copied(copy)
        return array if dtype is None else array.astype(dtype, copy=False)

    def __dlpack__(self, *, copy: bool | None = None, **options: Any) -> Any:
        """For ``torch.as_tensor`` and every ``from_dlpack``: all of it, read anew. Types that NumPy does not have,
        bfloat16 among them, it cannot hand over so (BufferError).
        """
        return self._copied(copy).__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0  # the host's memory

    def _copied(self, copy: bool | None) -> NDArray[Any]:
        if copy is False:
            raise InvalidArgumentError(
                f"Array {self.name!r} is in a store: reading it makes a copy, and copy=False forbids it"
            )
        return self.read()

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of unsized object")
        return self.shape[0]

    def __iter__(self) -> Iterator[Any]:
        """Reads row after row; an array of rank 0 has none (TypeError)."""
        if not self.shape:
            raise TypeError("iteration over a 0-d array")
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"<LazyArray {self.name!r} shape={self.shape} dtype={self.dtype} chunks={self.chunks}>"

    def _repr_html_(self) -> str:
        from html import escape

        codec = self.spec.compressor.id if self.spec.compressor else "none"
        rows = {
            "name": self.name,
            "shape": self.shape,
            "dtype": self.dtype,
            "bytes": f"{self.nbytes:,}",
            "chunks": self.chunks,
            "compression": codec,
        }
        cells = (f"<tr><th>{title}</th><td>{escape(str(value))}</td></tr>" for title, value in rows.items())
        return f"<table>{''.join(cells)}</table>"


_introduced = False


def _introduce_to_jax() -> None:
    """Have JAX read a lazy array where it takes arrays as values, once JAX is there."""
    global _introduced
    if _introduced or (module := sys.modules.get("jax.interpreters.xla")) is None:
        return
    # not yet there while JAX is being imported
    if (handlers := getattr(module, "canonicalize_dtype_handlers", None)) is not None:
        handlers[LazyArray] = _for_jax
        _introduced = True


def _for_jax(lazy: LazyArray) -> NDArray[Any]:
    import jax

    return np.asarray(lazy, dtype=jax.dtypes.canonicalize_dtype(lazy.dtype))
