"""Handlers of the v1 API: what saves and loads one kind of object in one directory.

Those of this package never write in a save: they say what an item consists of, and all that is saved together is
judged, copied and published together. They read from a :class:`~ocdbt_py.storage.location.Place`, on any storage.

Handlers of the user's, and objects that save themselves (:class:`StatefulCheckpointable`), know paths, in two steps as
Orbax has it: ``await handler.save(directory, value)`` gives something to await in turn. They get a directory of this
computer's; both steps are awaited when the save begins, and the files become the item's.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, ClassVar, Protocol, cast, runtime_checkable

import numpy as np

from ocdbt_py.checkpoint.contents import Item, Tree, json_item
from ocdbt_py.checkpoint.encoding import Encoding
from ocdbt_py.checkpoint.flatten import flatten
from ocdbt_py.checkpoint.layout import JSON_FILES, child, read_file
from ocdbt_py.checkpoint.memory import memory_limit
from ocdbt_py.checkpoint.names import leaf_names
from ocdbt_py.checkpoint.opening import read_json_item
from ocdbt_py.checkpoint.tree_saving import TreeSave
from ocdbt_py.errors import InvalidArgumentError, InvalidTypeError, PathNotFoundError, UnsupportedError
from ocdbt_py.interop.orbax import restoring
from ocdbt_py.interop.orbax.directories import directory_place
from ocdbt_py.interop.orbax.jax_access import the_jax
from ocdbt_py.interop.orbax.matching import opened
from ocdbt_py.interop.orbax.v1 import abstract_leaves
from ocdbt_py.interop.orbax.v1.context import Context, current_context
from ocdbt_py.interop.orbax.v1.registration import (
    CheckpointableHandlerRegistry,
    global_registry,
    local_registry,
    register_handler,
)
from ocdbt_py.storage.location import Place

__all__ = [
    "AbstractCheckpointable",
    "Checkpointable",
    "CheckpointableHandler",
    "CheckpointableHandlerRegistry",
    "JsonHandler",
    "MetricsHandler",
    "OwnHandler",
    "PathAwaitingCreation",
    "ProtoHandler",
    "PyTreeHandler",
    "StatefulCheckpointable",
    "StatefulCheckpointableHandler",
    "global_registry",
    "local_registry",
    "register_handler",
]

Checkpointable = Any
"""An object that some handler saves."""

AbstractCheckpointable = Any
"""What says how such an object is to come back."""

_V1 = "orbax.checkpoint.experimental.v1._src.handlers"
_V0 = tuple(f"orbax.checkpoint.{version}_src.handlers" for version in ("", "v0."))


class PathAwaitingCreation:
    """A directory that may not be there yet; ``/`` gives what lies below. Here it always is."""

    def __init__(self, path: Any) -> None:
        self.path = path

    def __truediv__(self, other: Any) -> PathAwaitingCreation:
        return PathAwaitingCreation(self.path / str(other))

    async def await_creation(self) -> Any:
        """The path, once the directory is there."""
        self.path.mkdir(parents=True, exist_ok=True)
        return self.path


class CheckpointableHandler(Protocol):
    """Saves and loads objects of one kind. Subclass it, and register the subclass."""

    async def save(self, directory: PathAwaitingCreation, checkpointable: Any) -> Awaitable[None]:
        """Take hold of what is to be saved; what this returns, awaited, writes it."""

    async def load(self, directory: Path, abstract_checkpointable: Any = None) -> Awaitable[Any]:
        """Judge the request; what this returns, awaited, is the object."""

    async def metadata(self, directory: Path) -> Any:
        """A description of what lies in the directory, that can be given to :meth:`load`."""

    def is_handleable(self, checkpointable: Any) -> bool:
        """Whether this handler saves such an object."""

    def is_abstract_handleable(self, abstract_checkpointable: Any) -> bool | None:
        """Whether it loads what is described so; None: that does not tell."""


@runtime_checkable
class StatefulCheckpointable(Protocol):
    """An object that saves itself, and loads into itself."""

    async def save(self, directory: PathAwaitingCreation) -> Awaitable[None]:
        """As a handler's."""

    async def load(self, directory: Path) -> Awaitable[None]:
        """As a handler's; the object itself changes."""


class OwnHandler(CheckpointableHandler):
    """A handler of ours. For those who call it themselves, it has the methods of Orbax's too."""

    TYPESTR: ClassVar[str]

    def contents(self, value: Any, context: Context) -> Item:
        """What the item consists of."""
        raise NotImplementedError

    def read(self, place: Place, abstract: Any, context: Context) -> Any:
        """The object that lies at a place."""
        raise NotImplementedError

    def describe(self, place: Place) -> Any:
        """What :meth:`metadata` gives."""
        return None

    async def save(self, directory: PathAwaitingCreation, checkpointable: Any) -> Awaitable[None]:
        item = self.contents(checkpointable, current_context())

        async def write() -> None:
            place = directory_place(await directory.await_creation())
            for below, tree in item.trees.items():
                _write_tree(child(place, below) if below else place, tree)
            for name, data in item.files.items():
                place.storage.write(f"{place.path}/{name}", [data])

        return write()

    async def load(self, directory: Path, abstract_checkpointable: Any = None) -> Awaitable[Any]:
        context = current_context()

        async def read() -> Any:
            return self.read(directory_place(directory), abstract_checkpointable, context)

        return read()

    async def metadata(self, directory: Path) -> Any:
        return self.describe(directory_place(directory))


class PyTreeHandler(OwnHandler):
    """Trees of arrays, numbers and ``str``, as the options of the context have it."""

    TYPESTR = f"{_V1}.pytree_handler.PyTreeHandler"

    def __init__(self, *, context: Context | None = None) -> None:
        self._context = context

    def contents(self, value: Any, context: Context) -> Item:
        saving = (self._context or context).array.saving
        _check_leaves(value)
        tree, chunk_bytes = _as_stored(value, saving)
        encoding = Encoding("auto" if saving.use_compression else None, chunk_bytes, 3 if saving.use_zarr3 else 2)
        return Item(self.TYPESTR, {"": Tree(tree, encoding)})

    def read(self, place: Place, abstract: Any, context: Context) -> Any:
        options = self._context or context
        wanted = abstract_leaves.restore_args(
            abstract,
            pads=options.array.loading.enable_padding_and_truncation,
            is_partial=options.pytree.loading.partial_load,
        )
        return restoring.restore_pytree(place, wanted)

    def describe(self, place: Place) -> Any:
        return abstract_leaves.described(place)

    def is_handleable(self, checkpointable: Any) -> bool:
        return all(map(_is_leaf, flatten(checkpointable).leaves))

    def is_abstract_handleable(self, abstract_checkpointable: Any) -> bool | None:
        return all(map(abstract_leaves.is_abstract, opened(abstract_checkpointable).leaves))


class JsonHandler(OwnHandler):
    """What JSON can hold, in one file."""

    TYPESTR = f"{_V1}.json_handler.JsonHandler"

    def __init__(self, filename: str | None = None) -> None:
        self._filename = filename or "data.json"

    def contents(self, value: Any, context: Context) -> Item:
        return json_item(value, self.TYPESTR, self._filename)

    def read(self, place: Place, abstract: Any, context: Context) -> Any:
        data = None if self._filename in JSON_FILES else read_file(place, self._filename)
        return read_json_item(place) if data is None else json.loads(data)

    def is_handleable(self, checkpointable: Any) -> bool:
        try:
            json.dumps(checkpointable)
        except (TypeError, ValueError, RecursionError):
            return False
        return True

    def is_abstract_handleable(self, abstract_checkpointable: Any) -> bool | None:
        return None


class MetricsHandler(JsonHandler):
    """The metrics of a step."""

    TYPESTR = f"{_V1}.json_handler.MetricsHandler"

    def __init__(self) -> None:
        super().__init__("metrics")


class ProtoHandler(OwnHandler):
    """A protocol buffer, as text. To be loaded, its class is given."""

    TYPESTR = f"{_V1}.proto_handler.ProtoHandler"

    def __init__(self, filename: str = "proto.pbtxt") -> None:
        self._filename = filename

    def contents(self, value: Any, context: Context) -> Item:
        return Item(self.TYPESTR, files={self._filename: _protobuf().text_format.MessageToString(value).encode()})

    def read(self, place: Place, abstract: Any, context: Context) -> Any:
        if abstract is None:
            raise InvalidArgumentError("A protocol buffer is loaded with its class; give that as the abstract object")
        data = read_file(place, self._filename)
        if data is None:
            raise PathNotFoundError(f"There is no {self._filename} at {place.url}", url=place.url)
        return _protobuf().text_format.Parse(data.decode(), abstract())

    def is_handleable(self, checkpointable: Any) -> bool:
        return _is_message(type(checkpointable))

    def is_abstract_handleable(self, abstract_checkpointable: Any) -> bool | None:
        return isinstance(abstract_checkpointable, type) and _is_message(abstract_checkpointable)


class StatefulCheckpointableHandler:
    """Objects that save themselves. To be loaded, one is given, which takes in what was saved."""

    TYPESTR = f"{_V1}.stateful_checkpointable_handler.StatefulCheckpointableHandler"

    async def save(self, directory: PathAwaitingCreation, checkpointable: Any) -> Awaitable[None]:
        return cast(Awaitable[None], await checkpointable.save(directory))

    async def load(self, directory: Path, abstract_checkpointable: Any = None) -> Awaitable[Any]:
        if abstract_checkpointable is None:
            raise InvalidArgumentError(
                "What saves itself also loads into itself; give such an object as the abstract object"
            )
        pending = await abstract_checkpointable.load(directory)

        async def finish() -> Any:
            await pending
            return abstract_checkpointable

        return finish()

    async def metadata(self, directory: Path) -> Any:
        return None

    def is_handleable(self, checkpointable: Any) -> bool:
        return isinstance(checkpointable, StatefulCheckpointable) and not isinstance(checkpointable, type)

    def is_abstract_handleable(self, abstract_checkpointable: Any) -> bool | None:
        return self.is_handleable(abstract_checkpointable)


# As Orbax has it: of those that can, the one registered last is taken.
for _kind, _v0_handlers in (
    (ProtoHandler, ("proto_checkpoint_handler.ProtoCheckpointHandler",)),
    (JsonHandler, ("json_checkpoint_handler.JsonCheckpointHandler",)),
    (StatefulCheckpointableHandler, ()),
    (
        PyTreeHandler,
        (
            "pytree_checkpoint_handler.PyTreeCheckpointHandler",
            "standard_checkpoint_handler.StandardCheckpointHandler",
        ),
    ),
):
    global_registry().add(_kind, secondary_typestrs=[f"{base}.{name}" for base in _V0 for name in _v0_handlers])
global_registry().add(MetricsHandler, checkpointable_name="metrics")
global_registry().add(PyTreeHandler, checkpointable_name="state")


# --- trees


def _write_tree(place: Place, tree: Tree) -> None:
    """Write a pytree's files where nobody sees them yet; what makes it whole comes last."""
    save = TreeSave("", tree, 0, 1)
    save.write(place, checksums=False, max_memory=memory_limit(None), progress=None)
    for name, data in save.publication(place)[0].items():
        place.storage.write(f"{place.path}/{name}", [data])


def _is_leaf(leaf: Any) -> bool:
    """Whether it can be stored: an array, a number, a ``str``, None or an empty container."""
    if leaf is None or isinstance(leaf, bool | int | float | str | np.ndarray | np.generic):
        return True
    if isinstance(leaf, dict | list | tuple):
        return not leaf
    return hasattr(type(leaf), "__array__") or hasattr(type(leaf), "__dlpack__")


def _check_leaves(tree: Any) -> None:
    """Raise :class:`InvalidTypeError` for a leaf that cannot be stored, :class:`InvalidArgumentError` for no leaf."""
    flat = flatten(tree)
    for name, leaf in zip(leaf_names(flat.paths), flat.leaves, strict=True):
        if not _is_leaf(leaf):
            raise InvalidTypeError(
                f"The leaf {name!r} is of type {type(leaf).__name__}, which cannot be saved in a tree; arrays, numbers "
                "and str can. Save it as a checkpointable of its own, with a handler for it"
            )
    if flat.paths == [()] and not _has_dtype(flat.leaves[0]) and not isinstance(flat.leaves[0], str):
        raise InvalidArgumentError("There is nothing to save: the tree is empty")


def _as_stored(tree: Any, saving: Any) -> tuple[Any, int | None]:
    """The tree with its leaves in the dtypes they are to be stored in, and the size of chunks, None for any.

    All arrays of a tree are cut alike here, so the smallest size that is asked for holds for all.
    """
    default, creator = saving.storage_options, saving.scoped_storage_options_creator
    if creator is None and default.dtype is None:
        return tree, default.chunk_byte_size
    sizes: list[int] = []

    def stored(path: Any, leaf: Any) -> Any:
        options = (creator(path, leaf) if creator is not None else None) or default
        if options.shard_axes:
            raise UnsupportedError("The option shard_axes is not supported here; any cut into chunks reads the same")
        if options.chunk_byte_size is not None:
            sizes.append(options.chunk_byte_size)
        if options.dtype is None or isinstance(leaf, str):
            return leaf
        return leaf.astype(options.dtype) if hasattr(leaf, "astype") else np.asarray(leaf).astype(options.dtype)[()]

    if creator is not None:
        paths = the_jax("scoped_storage_options_creator, which is given JAX's paths,").tree_util
        return paths.tree_map_with_path(stored, tree), min(sizes, default=None)
    flat = flatten(tree)
    leaves = [leaf if not _has_dtype(leaf) else stored(None, leaf) for leaf in flat.leaves]
    return flat.rebuild(leaves), min(sizes, default=None)


def _has_dtype(leaf: Any) -> bool:
    return leaf is not None and not isinstance(leaf, str | dict | list | tuple)


# --- protocol buffers


def _protobuf() -> Any:
    try:
        from google.protobuf import message, text_format  # type: ignore[import-untyped,unused-ignore]
    except ImportError as error:
        raise UnsupportedError("A protocol buffer needs its library: pip install protobuf") from error
    return type("_Protobuf", (), {"message": message, "text_format": text_format})


def _is_message(kind: type[Any]) -> bool:
    """Whether it is a class of protocol buffers; nothing is imported to find out."""
    return any(base.__module__.startswith("google.") and base.__name__ == "Message" for base in kind.__mro__)
