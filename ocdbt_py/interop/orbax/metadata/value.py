"""What is known of one leaf without reading it, in Orbax's classes: ``ocp.metadata.value``.

They can stand in a target: a leaf comes back as its description says.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ocdbt_py.interop.orbax.metadata.sharding import ShardingMetadata

__all__ = ["ArrayMetadata", "Metadata", "ScalarMetadata", "StorageMetadata", "StringMetadata"]


@dataclass(eq=False)
class Metadata:
    """A leaf. ``directory``: of its item; a ``pathlib.Path``, or a URL as ``str``."""

    name: str
    directory: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Metadata)

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class StorageMetadata:
    """How an array is stored: the shape of a chunk, and of what one writer wrote at a time."""

    chunk_shape: tuple[int, ...] | None
    write_shape: tuple[int, ...] | None = None
    zarr_metadata: Any = field(default=None, compare=False, repr=False)


@dataclass(eq=False)
class ArrayMetadata(Metadata):
    """An array. ``sharding``: None where it was none of JAX's, or nothing says how it lay."""

    shape: tuple[int, ...]
    sharding: ShardingMetadata | None
    dtype: Any
    storage: StorageMetadata | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ArrayMetadata) and (self.shape, self.sharding, self.dtype, self.storage) == (
            other.shape,
            other.sharding,
            other.dtype,
            other.storage,
        )

    @classmethod
    def from_shape_dtype_struct(cls, s: Any, name: str | None = None, directory: Any = None) -> ArrayMetadata:
        """The description of a ``jax.ShapeDtypeStruct``."""
        return cls(name, directory, s.shape, s.sharding, s.dtype)  # type: ignore[arg-type]


@dataclass(eq=False)
class ScalarMetadata(ArrayMetadata):
    """A number."""

    shape: tuple[int, ...] = ()
    sharding: ShardingMetadata | None = None
    dtype: Any = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ScalarMetadata) and self.dtype == other.dtype


@dataclass(eq=False)
class StringMetadata(Metadata):
    """A string."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StringMetadata)
