"""The handlers there are: for trees, arrays, JSON, protocol buffers and random keys (``ocp.handlers``).

Each is tied to the arguments it saves and restores with, and to the text that Orbax records for items of its kind.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ocdbt_py.checkpoint.contents import Item, Tree, json_item
from ocdbt_py.checkpoint.encoding import Encoding
from ocdbt_py.checkpoint.flatten import flatten
from ocdbt_py.checkpoint.layout import child, read_file
from ocdbt_py.checkpoint.metadata import JSON_HANDLER, PYTREE_HANDLER
from ocdbt_py.errors import InvalidArgumentError, InvalidTypeError, PathNotFoundError, UnsupportedError
from ocdbt_py.interop.orbax import args as ocp_args
from ocdbt_py.interop.orbax.args import ArrayRestore as ArrayRestoreArgs
from ocdbt_py.interop.orbax.args import ArraySave as ArraySaveArgs
from ocdbt_py.interop.orbax.args import Composite as CompositeArgs
from ocdbt_py.interop.orbax.args import JaxRandomKeyRestore as JaxRandomKeyRestoreArgs
from ocdbt_py.interop.orbax.args import JaxRandomKeySave as JaxRandomKeySaveArgs
from ocdbt_py.interop.orbax.args import JsonRestore as JsonRestoreArgs
from ocdbt_py.interop.orbax.args import JsonSave as JsonSaveArgs
from ocdbt_py.interop.orbax.args import NumpyRandomKeyRestore as NumpyRandomKeyRestoreArgs
from ocdbt_py.interop.orbax.args import NumpyRandomKeySave as NumpyRandomKeySaveArgs
from ocdbt_py.interop.orbax.args import ProtoRestore as ProtoRestoreArgs
from ocdbt_py.interop.orbax.args import ProtoSave as ProtoSaveArgs
from ocdbt_py.interop.orbax.args import PyTreeRestore as PyTreeRestoreArgs
from ocdbt_py.interop.orbax.args import PyTreeSave as PyTreeSaveArgs
from ocdbt_py.interop.orbax.args import StandardRestore as StandardRestoreArgs
from ocdbt_py.interop.orbax.args import StandardSave as StandardSaveArgs
from ocdbt_py.interop.orbax.composite import Composite as CompositeResults
from ocdbt_py.interop.orbax.composite_handler import CompositeCheckpointHandler
from ocdbt_py.interop.orbax.item_handler import AsyncCheckpointHandler, CheckpointHandler, ItemHandler
from ocdbt_py.interop.orbax.registration import (
    CheckpointHandlerRegistry,
    DefaultCheckpointHandlerRegistry,
    also_read_by,
    create_default_handler_registry,
    register_with_handler,
)
from ocdbt_py.interop.orbax.save_args import apply_save_args
from ocdbt_py.storage.location import Place

__all__ = [
    "ArrayCheckpointHandler",
    "ArrayRestoreArgs",
    "ArraySaveArgs",
    "AsyncCheckpointHandler",
    "CheckpointHandler",
    "CheckpointHandlerRegistry",
    "CompositeArgs",
    "CompositeCheckpointHandler",
    "CompositeResults",
    "DefaultCheckpointHandlerRegistry",
    "JaxRandomKeyCheckpointHandler",
    "JaxRandomKeyRestoreArgs",
    "JaxRandomKeySaveArgs",
    "JsonCheckpointHandler",
    "JsonRestoreArgs",
    "JsonSaveArgs",
    "NumpyRandomKeyCheckpointHandler",
    "NumpyRandomKeyRestoreArgs",
    "NumpyRandomKeySaveArgs",
    "ProtoCheckpointHandler",
    "ProtoRestoreArgs",
    "ProtoSaveArgs",
    "PyTreeCheckpointHandler",
    "PyTreeRestoreArgs",
    "PyTreeSaveArgs",
    "StandardCheckpointHandler",
    "StandardRestoreArgs",
    "StandardSaveArgs",
    "create_default_handler_registry",
]

_HANDLERS = "orbax.checkpoint._src.handlers"
_V1_HANDLERS = "orbax.checkpoint.experimental.v1._src.handlers"


class PyTreeCheckpointHandler(ItemHandler):
    """Trees of arrays, numbers, ``str`` and None. Always stored as a database, merged where several processes write.

    ``use_zarr3`` and ``use_compression`` say how arrays are stored. What bounds memory or concurrency in Orbax
    (``…_concurrent_gb``, ``memory_limit_options``) has no counterpart: 64 MiB suffice beside the arrays.
    ``use_ocdbt=False``, a directory for each array, is refused.
    """

    TYPESTR = PYTREE_HANDLER

    def __init__(
        self,
        aggregate_filename: str | None = None,
        *,
        save_concurrent_gb: int | None = None,
        restore_concurrent_gb: int | None = None,
        save_device_host_concurrent_gb: int | str | None = None,
        memory_limit_options: Any = None,
        use_ocdbt: bool = True,
        use_zarr3: bool = False,
        use_compression: bool = True,
        multiprocessing_options: Any = None,
        pytree_metadata_options: Any = None,
        enable_pinned_host_transfer: bool | None = None,
        is_prioritized_key_fn: Callable[[Any], bool] | None = None,
    ) -> None:
        _refuse_without_ocdbt(use_ocdbt)
        self._encoding_of = _encodings(use_zarr3=use_zarr3, use_compression=use_compression)

    def contents(self, args: Any) -> Item:
        if args.item is None or _is_empty(args.item):
            raise InvalidArgumentError("There is nothing to save: the tree is empty")
        tree, chunk_bytes = apply_save_args(args.item, args.save_args)
        custom_metadata = getattr(args, "custom_metadata", None)
        return Item(self.typestr(), {"": Tree(tree, self._encoding_of(chunk_bytes), custom_metadata)})

    def read(self, place: Place, args: Any) -> Any:
        from ocdbt_py.interop.orbax import restoring

        return restoring.restore_pytree(place, args if args is not None else ocp_args.PyTreeRestore())

    def describe(self, place: Place) -> Any:
        from ocdbt_py.interop.orbax import metadata

        return metadata.item_metadata(place)


class StandardCheckpointHandler(PyTreeCheckpointHandler):
    """Trees of arrays and numbers, and nothing else."""

    TYPESTR = f"{_HANDLERS}.standard_checkpoint_handler.StandardCheckpointHandler"

    def __init__(
        self,
        *,
        save_concurrent_gb: int = 96,
        restore_concurrent_gb: int = 96,
        multiprocessing_options: Any = None,
        pytree_metadata_options: Any = None,
        use_ocdbt: bool = True,
    ) -> None:
        super().__init__(use_ocdbt=use_ocdbt)

    def contents(self, args: Any) -> Item:
        item = args.item
        if item is None:
            raise InvalidArgumentError("There is nothing to save: item is None")
        if _is_number(item) or isinstance(item, _jax_array()):
            raise InvalidArgumentError("StandardSave is for trees; save a single array or number with ArraySave")
        refuse_non_arrays(item)
        return super().contents(args)

    def read(self, place: Place, args: Any) -> Any:
        return super().read(place, args if args is not None else ocp_args.StandardRestore())


def refuse_non_arrays(tree: Any) -> None:
    """StandardSave takes arrays, int and float; bool is an int. Raises :class:`InvalidArgumentError`."""
    flat = flatten(tree)
    allowed = (int, float, np.ndarray, *_jax_array())
    for path, leaf in zip(flat.paths, flat.leaves, strict=True):
        is_container = leaf is None or (isinstance(leaf, dict | list | tuple | Mapping) and not len(leaf))
        if not is_container and not isinstance(leaf, allowed) and not hasattr(type(leaf), "__array__"):
            name = ".".join(key.name for key in path)
            raise InvalidArgumentError(
                f"The leaf {name!r} is of type {type(leaf).__name__}; StandardSave takes arrays, int and float, and "
                "PyTreeSave also str"
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | complex | np.number)


def _is_empty(tree: Any) -> bool:
    return isinstance(tree, dict | list | tuple) and not tree


def _jax_array() -> tuple[type[Any], ...]:
    """``jax.Array``, if anybody can have one."""
    jax = sys.modules.get("jax")
    found = getattr(jax, "Array", None)
    return (found,) if found is not None else ()


def _refuse_without_ocdbt(use_ocdbt: bool) -> None:
    if not use_ocdbt:
        raise UnsupportedError(
            "use_ocdbt=False stores each array in a directory of its own, and this package writes databases only; "
            "leave it out (both are read, by Orbax too)"
        )


def _encodings(*, use_zarr3: bool, use_compression: bool) -> Callable[[int | None], Encoding]:
    def encoding(chunk_bytes: int | None) -> Encoding:
        return Encoding("auto" if use_compression else None, chunk_bytes, 3 if use_zarr3 else 2)

    return encoding


# --- small things


class JsonCheckpointHandler(ItemHandler):
    """What JSON can hold, in one file. A value that it cannot is refused when the save begins."""

    TYPESTR = JSON_HANDLER

    def __init__(self, filename: str | None = None, *, multiprocessing_options: Any = None) -> None:
        self._filename = filename or "metadata"

    def contents(self, args: Any) -> Item:
        return json_item(args.item, self.typestr(), self._filename)

    def read(self, place: Place, args: Any) -> Any:
        return _json(place, self._filename)


def _json(place: Place, name: str) -> Any:
    data = read_file(place, name)
    if data is None:
        raise PathNotFoundError(f"There is no {name} at {place.url}", path=name, url=place.url)
    return json.loads(data)


class ProtoCheckpointHandler(ItemHandler):
    """A protocol buffer, as text."""

    TYPESTR = f"{_HANDLERS}.proto_checkpoint_handler.ProtoCheckpointHandler"

    def __init__(self, filename: str = "proto.pbtxt", *, multiprocessing_options: Any = None) -> None:
        self._filename = filename

    def contents(self, args: Any) -> Item:
        return Item(self.typestr(), files={self._filename: _text_format().MessageToString(args.item).encode()})

    def read(self, place: Place, args: Any) -> Any:
        if args is None or args.item is None:
            raise InvalidArgumentError("A protocol buffer needs ProtoRestore(its class) to be read")
        data = read_file(place, self._filename)
        if data is None:
            raise PathNotFoundError(f"There is no {self._filename} at {place.url}", url=place.url)
        return _text_format().Parse(data.decode(), args.item())


def _text_format() -> Any:
    try:
        from google.protobuf import text_format  # type: ignore[import-untyped,unused-ignore]
    except ImportError as error:
        raise UnsupportedError("Saving a protocol buffer needs its library: pip install protobuf") from error
    return text_format


class ArrayCheckpointHandler(ItemHandler):
    """One array or number: a tree with one leaf."""

    TYPESTR = f"{_HANDLERS}.array_checkpoint_handler.ArrayCheckpointHandler"

    def __init__(self, checkpoint_name: str | None = None) -> None:
        self._name = checkpoint_name or "checkpoint"

    def contents(self, args: Any) -> Item:
        return Item(self.typestr(), {"": array_tree(self._name, args.item, args.save_args)})

    def read(self, place: Place, args: Any) -> Any:
        item = getattr(args, "item", None)
        return _read_array(place, self._name, item, getattr(args, "restore_args", None))


def array_tree(name: str, value: Any, save_args: Any) -> Tree:
    """A tree with one array. Raises :class:`InvalidTypeError` where it is none."""
    if not (_is_number(value) or isinstance(value, (np.ndarray, *_jax_array()))):
        raise InvalidTypeError(f"ArraySave takes an array or a number, not {type(value).__name__}")
    tree, chunk_bytes = apply_save_args({name: value}, None if save_args is None else {name: save_args})
    return Tree(tree, Encoding("auto", chunk_bytes))


def _read_array(place: Place, name: str, item: Any, restore_args: Any) -> Any:
    from ocdbt_py.interop.orbax import restoring

    wanted = ocp_args.PyTreeRestore(
        None if item is None else {name: item}, None if restore_args is None else {name: restore_args}
    )
    return restoring.restore_pytree(place, wanted)[name]


class JaxRandomKeyCheckpointHandler(ItemHandler):
    """A JAX random key: its data, and whether it was typed."""

    TYPESTR = f"{_HANDLERS}.random_key_checkpoint_handler.JaxRandomKeyCheckpointHandler"

    def __init__(self, key_name: str | None = None) -> None:
        self._name = key_name or "jax_random_key"

    def contents(self, args: Any) -> Item:
        import jax

        key = args.item
        if not isinstance(key, jax.Array):
            raise InvalidTypeError(f"JaxRandomKeySave takes a jax.Array, not {type(key).__name__}")
        record: dict[str, Any] = {"typed": bool(jax.numpy.issubdtype(key.dtype, jax.dtypes.prng_key))}
        if record["typed"]:
            record["impl"] = str(jax.random.key_impl(key))  # beyond Orbax, which takes the default one
            key = jax.random.key_data(key)
        return Item(
            self.typestr(),
            {self._name: array_tree("checkpoint", key, args.save_args)},
            {f"{self._name}_metadata/metadata": json.dumps(record).encode()},
        )

    def read(self, place: Place, args: Any) -> Any:
        record = _json(child(place, f"{self._name}_metadata"), "metadata")
        data = _read_array(child(place, self._name), "checkpoint", None, getattr(args, "restore_args", None))
        if not record.get("typed"):
            return data
        import jax

        return jax.random.wrap_key_data(data, impl=record.get("impl"))


class NumpyRandomKeyCheckpointHandler(ItemHandler):
    """The state of a NumPy generator, as ``numpy.random.get_state`` gives it: a tuple, or a dict."""

    TYPESTR = f"{_HANDLERS}.random_key_checkpoint_handler.NumpyRandomKeyCheckpointHandler"

    def __init__(self, key_name: str | None = None) -> None:
        self._name = key_name or "np_random_key"

    def contents(self, args: Any) -> Item:
        if not isinstance(args.item, tuple | dict):
            raise InvalidTypeError(f"NumpyRandomKeySave takes a tuple or a dict, not {type(args.item).__name__}")
        record = {"legacy": isinstance(args.item, tuple)}
        return Item(
            self.typestr(),
            {self._name: Tree(args.item)},
            {f"{self._name}_metadata/metadata": json.dumps(record).encode()},
        )

    def read(self, place: Place, args: Any) -> Any:
        from ocdbt_py.interop.orbax import restoring

        record = _json(child(place, f"{self._name}_metadata"), "metadata")
        state = restoring.restore_pytree(child(place, self._name), ocp_args.PyTreeRestore())
        return tuple(state) if record.get("legacy") else state


for _handler, _save, _restore in (
    (StandardCheckpointHandler, ocp_args.StandardSave, ocp_args.StandardRestore),
    (PyTreeCheckpointHandler, ocp_args.PyTreeSave, ocp_args.PyTreeRestore),
    (JsonCheckpointHandler, ocp_args.JsonSave, ocp_args.JsonRestore),
    (ArrayCheckpointHandler, ocp_args.ArraySave, ocp_args.ArrayRestore),
    (ProtoCheckpointHandler, ocp_args.ProtoSave, ocp_args.ProtoRestore),
    (JaxRandomKeyCheckpointHandler, ocp_args.JaxRandomKeySave, ocp_args.JaxRandomKeyRestore),
    (NumpyRandomKeyCheckpointHandler, ocp_args.NumpyRandomKeySave, ocp_args.NumpyRandomKeyRestore),
):
    register_with_handler(_handler, for_save=True)(_save)
    register_with_handler(_handler, for_restore=True)(_restore)
also_read_by(f"{_V1_HANDLERS}.pytree_handler.PyTreeHandler", PyTreeCheckpointHandler)
