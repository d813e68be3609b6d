"""The arguments of saves and restores, one class for each kind of item: ``ocp.args``.

These say what and how; who does it is registered beside them (:mod:`ocdbt_py.interop.orbax.handlers`), so that a
manager given nothing but arguments finds its handler.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ocdbt_py.errors import InvalidArgumentError
from ocdbt_py.interop.orbax.composite import Composite as _Composite
from ocdbt_py.interop.orbax.registration import (
    CheckpointArgs,
    get_registered_args_cls,
    get_registered_handler_cls,
    has_registered_args,
    register_with_handler,
)

__all__ = [
    "ArrayRestore",
    "ArraySave",
    "CheckpointArgs",
    "Composite",
    "JaxRandomKeyRestore",
    "JaxRandomKeySave",
    "JsonRestore",
    "JsonSave",
    "NumpyRandomKeyRestore",
    "NumpyRandomKeySave",
    "ProtoRestore",
    "ProtoSave",
    "PyTreeRestore",
    "PyTreeSave",
    "StandardRestore",
    "StandardSave",
    "get_registered_args_cls",
    "get_registered_handler_cls",
    "has_registered_args",
    "register_with_handler",
]


class Composite(_Composite, CheckpointArgs):
    """Arguments of several items by name; what comes back has the same names."""

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Composite({dict(self)!r})"


def _tree_of(value: Any) -> Any:
    """The tree itself, of what ``metadata()`` gave."""
    return value.tree if _is_tree_metadata(value) else value


def _is_tree_metadata(value: Any) -> bool:
    return type(value).__name__ == "TreeMetadata" and hasattr(value, "tree")


def _refuse_metadata(value: Any) -> None:
    if _is_tree_metadata(value):
        raise InvalidArgumentError("This is the description of a saved tree, TreeMetadata; there are no values to save")


@dataclass
class StandardSave(CheckpointArgs):
    """A pytree of arrays and numbers. ``custom_metadata``: a JSON dict kept in the item itself."""

    item: Any
    save_args: Any = None
    custom_metadata: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        _refuse_metadata(self.item)


@dataclass
class StandardRestore(CheckpointArgs):
    """The form a pytree comes back in; without ``item`` as it was saved.

    ``strict=False`` cuts or pads arrays to the target's shape. ``fallback_sharding``: for arrays whose saved sharding
    needs devices that are not there.
    """

    item: Any = None
    strict: bool = True
    support_layout: bool = False
    fallback_sharding: Any = None

    def __post_init__(self) -> None:
        self.item = _tree_of(self.item)


@dataclass
class PyTreeSave(CheckpointArgs):
    """A pytree of arrays, numbers, ``str`` and None."""

    item: Any
    save_args: Any = None
    ocdbt_target_data_file_size: int | None = None
    custom_metadata: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        _refuse_metadata(self.item)


@dataclass
class PyTreeRestore(CheckpointArgs):
    """The form a pytree comes back in: ``restore_args`` by leaf, ``transforms`` by path, or only a part of it."""

    item: Any = None
    restore_args: Any = None
    transforms: Any = None
    transforms_default_to_original: bool = True
    legacy_transform_fn: Callable[..., Any] | None = None
    partial_restore: bool = False

    def __post_init__(self) -> None:
        self.item = _tree_of(self.item)
        self.restore_args = _tree_of(self.restore_args)
        self.transforms = _tree_of(self.transforms)


@dataclass
class JsonSave(CheckpointArgs):
    """Whatever JSON can hold."""

    item: Any


@dataclass
class JsonRestore(CheckpointArgs):
    """``item`` does nothing."""

    item: Any = None


@dataclass
class ArraySave(CheckpointArgs):
    """One array or number."""

    item: Any
    save_args: Any = None


@dataclass
class ArrayRestore(CheckpointArgs):
    """One array, as ``restore_args`` ask for it."""

    item: Any = None
    restore_args: Any = None


@dataclass
class ProtoSave(CheckpointArgs):
    """A protocol buffer, written as text."""

    item: Any


@dataclass
class ProtoRestore(CheckpointArgs):
    """``item``: the class of the message."""

    item: Any


@dataclass
class JaxRandomKeySave(CheckpointArgs):
    """A JAX random key, typed or not."""

    item: Any
    save_args: Any = None


@dataclass
class JaxRandomKeyRestore(CheckpointArgs):
    """A JAX random key, on the sharding that ``restore_args`` ask for."""

    restore_args: Any = None


@dataclass
class NumpyRandomKeySave(CheckpointArgs):
    """The state of a NumPy generator: what ``numpy.random.get_state`` gives, in either form."""

    item: Any


@dataclass
class NumpyRandomKeyRestore(CheckpointArgs):
    """No choices."""
