"""Several items saved together, each by its handler: which one that is, and what of a checkpoint is restored.

A handler for an item is found in this order: the one given for the item's name and the type of its arguments, the one
given for that type, the one registered globally for the type. The last is remembered: an item that was saved as one
kind is not restored as another by the same handler or manager. Without arguments, an item's kind is the remembered one,
else the one that the checkpoint itself records.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ocdbt_py.checkpoint.contents import Contents, Item
from ocdbt_py.checkpoint.layout import child
from ocdbt_py.checkpoint.save import BegunSave
from ocdbt_py.errors import InvalidArgumentError
from ocdbt_py.interop.orbax import args as ocp_args
from ocdbt_py.interop.orbax.composite import Composite
from ocdbt_py.interop.orbax.directories import directory_place, exists, subdirectories
from ocdbt_py.interop.orbax.errors import ItemNotFoundError, MissingDirectoryError
from ocdbt_py.interop.orbax.item_handler import (
    AsyncCheckpointHandler,
    CheckpointHandler,
    contents_of,
    described,
    restored,
)
from ocdbt_py.interop.orbax.options import (
    AsyncOptions,
    AtomicityOptions,
    FileOptions,
    MultiprocessingOptions,
)
from ocdbt_py.interop.orbax.registration import (
    CheckpointArgs,
    CheckpointHandlerRegistry,
    DefaultCheckpointHandlerRegistry,
    get_registered_args_cls,
    get_registered_handler_cls,
    handler_of_typestr,
    has_registered_args,
    register_with_handler,
    typestr_of,
)
from ocdbt_py.storage.location import Place

__all__ = ["CompositeCheckpointHandler", "CompositeOptions"]


@dataclass
class CompositeOptions:
    """Options of what is done for each item; here they are the checkpointer's business."""

    multiprocessing_options: MultiprocessingOptions = field(default_factory=MultiprocessingOptions)
    temporary_path_class: Any = None
    file_options: FileOptions | None = None
    atomicity_options: AtomicityOptions | None = None
    async_options: AsyncOptions | None = None


class _Unregistered(CheckpointHandler):
    """A handler whose class has no arguments registered: it gets what was given, as it was given."""

    def __init__(self, handler: Any) -> None:
        self.handler = handler

    def save(self, directory: Any, *args: Any, **kwargs: Any) -> None:
        given = kwargs["args"]
        self.handler.save(directory, *given.args, **given.kwargs)

    def restore(self, directory: Any, *args: Any, **kwargs: Any) -> Any:
        given = kwargs["args"]
        return self.handler.restore(directory, *given.args, **given.kwargs)

    def metadata(self, directory: Any) -> Any:
        return self.handler.metadata(directory) if hasattr(self.handler, "metadata") else None

    def finalize(self, directory: Any) -> None:
        if hasattr(self.handler, "finalize"):
            self.handler.finalize(directory)

    def close(self) -> None:
        if hasattr(self.handler, "close"):
            self.handler.close()


@register_with_handler(_Unregistered, for_save=True, for_restore=True)
class _Given(CheckpointArgs):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args = args
        self.kwargs = kwargs


def with_registered_args(handler: Any) -> Any:
    """``handler``, or what makes it usable with arguments objects."""
    return handler if has_registered_args(handler) else _Unregistered(handler)


class CompositeCheckpointHandler(AsyncCheckpointHandler):
    """Saves and restores items by name, in a directory each. Give names and handlers, or a registry, or nothing."""

    def __init__(
        self,
        *item_names: str,
        composite_options: CompositeOptions | None = None,
        handler_registry: CheckpointHandlerRegistry | None = None,
        **items_and_handlers: Any,
    ) -> None:
        if handler_registry is not None and (items_and_handlers or item_names):
            raise InvalidArgumentError("Give handler_registry, or item names and handlers, not both")
        self._registry = DefaultCheckpointHandlerRegistry(handler_registry)
        # Names given without a handler: they, and no others, are tied to one by the first arguments.
        self._waiting: set[str] | None = None
        self._settled = {name for name, _ in self._registry.get_all_entries() if name is not None}
        if item_names or items_and_handlers:
            self._waiting = {*item_names} - items_and_handlers.keys()
            for name, handler in items_and_handlers.items():
                if handler is None:
                    self._waiting.add(name)
                else:
                    self._tie(name, with_registered_args(handler))

    def _tie(self, name: str, handler: Any) -> None:
        for args_cls in dict.fromkeys(get_registered_args_cls(handler)):
            self._registry.add(name, args_cls, handler)

    # --- which handler

    def known(self) -> dict[str, Any]:
        """Handlers by item; None for names that wait for their first arguments."""
        handlers: dict[str, Any] = {}
        for (name, _), handler in self._registry.get_all_entries().items():
            if name is not None:
                handlers[name] = handler  # where there are two, the later one
        return handlers | dict.fromkeys(self._waiting or ())

    def args_classes(self, name: str) -> tuple[type[CheckpointArgs], type[CheckpointArgs]]:
        """The classes of arguments of an item whose handler was given."""
        for (item, _), handler in self._registry.get_all_entries().items():
            if item == name:
                return get_registered_args_cls(handler)
        raise InvalidArgumentError(f"There is no handler for item {name!r}; give args=, which tells its kind")

    def handler_for(self, name: str, args: Any) -> Any:
        """The handler of an item with these arguments; with None, the one that is known already."""
        if args is None:
            for (item, _), handler in self._registry.get_all_entries().items():
                if item == name:
                    return handler
            raise InvalidArgumentError(
                f"Item {name!r} has None for arguments, and nothing else tells of which kind it is; give arguments, "
                "such as StandardSave or StandardRestore"
            )
        if self._registry.has(name, args):
            return self._registry.get(name, args)
        if self._registry.has(None, args):
            handler = self._registry.get(None, args)
            self._registry.add(name, args, handler)
            return handler
        handler = get_registered_handler_cls(args)()
        if self._waiting is not None and name in self._waiting:
            self._waiting.discard(name)
        elif self._waiting is None and name not in self._settled:
            self._settled.add(name)
        else:
            known = sorted({f"{item}: {cls.__name__}" for item, cls in self._registry.get_all_entries() if item})
            raise InvalidArgumentError(
                f"{type(args).__name__} does not go with item {name!r}; its handler was settled before "
                f"({', '.join(known) or 'none'})"
            )
        self._tie(name, handler)
        return handler

    # --- saving

    def contents(self, args: Mapping[str, Any]) -> dict[str, Item]:
        """What each item consists of."""
        empty = [name for name, value in args.items() if value is None]
        if empty:
            raise InvalidArgumentError(f"Item {empty[0]!r} has None for arguments; there is nothing to save")
        return {name: contents_of(self.handler_for(name, args[name]), args[name]) for name in sorted(args)}

    def save(self, directory: Any, *args: Any, **kwargs: Any) -> None:
        """Write the items as the checkpoint at ``directory``."""
        given = _composite(args, kwargs)
        BegunSave(directory_place(directory), Contents(self.contents(given))).write()

    async def async_save(self, directory: Any, *args: Any, **kwargs: Any) -> list[Any] | None:
        """The same; nothing is left to wait for."""
        self.save(directory, *args, **kwargs)
        return []

    # --- restoring

    def restore(self, directory: Any, *args: Any, **kwargs: Any) -> Composite:
        """Items of the checkpoint at ``directory``: those that arguments are given for, or all."""
        return self.read(directory_place(directory), _composite(args, kwargs))

    def read(self, place: Place, args: Mapping[str, Any] | None) -> Composite:
        """The same, from a place. Raises ``KeyError`` for an item that is not there."""
        there = subdirectories(place)
        wanted = dict(args) if args else dict(self._by_default(place, there))
        found = {}
        for name in sorted(wanted):
            if name not in there:
                raise ItemNotFoundError(
                    f"There is no item {name!r} in {place.url}; there are {', '.join(there) or 'none'}", url=place.url
                )
            found[name] = restored(self.handler_for(name, wanted[name]), child(place, name), wanted[name])
        return Composite(**found)

    def _by_default(self, place: Place, there: list[str]) -> Iterator[tuple[str, Any]]:
        """Arguments for all items of a checkpoint, where the kind of each is known or recorded."""
        known, recorded = self.known(), None
        for name in there:
            if name in known:
                handler = known[name]
            else:
                recorded = recorded if recorded is not None else _recorded(place)
                handler = handler_of_typestr(recorded.get(name) or "")
            if handler is None:
                raise InvalidArgumentError(
                    f"Nothing tells of which kind item {name!r} of {place.url} is; give arguments for it, such as "
                    "StandardRestore()"
                )
            _, restore_cls = get_registered_args_cls(handler)
            try:
                yield name, restore_cls()
            except TypeError as error:
                raise InvalidArgumentError(
                    f"Item {name!r} of {place.url} is restored with {restore_cls.__name__}, which needs arguments: "
                    f"{error}"
                ) from error

    # --- metadata

    def metadata(self, directory: Any) -> Any:
        """``StepMetadata`` of a checkpoint, with the metadata of each item whose handler is known."""
        from ocdbt_py.interop.orbax import metadata

        place = directory_place(directory)
        if not exists(place):
            raise MissingDirectoryError(f"There is nothing at {place.url}; check the path", url=place.url)
        step = metadata.step_metadata(place)
        there, known = subdirectories(place), self.known()
        typestrs = _by_item(step.item_handlers, place)
        for name in there:
            if typestrs.get(name) is None:
                typestrs[name] = typestr_of(known[name]) if known.get(name) is not None else None
        step.item_handlers = dict(typestrs)  # type: ignore[arg-type]  # None where it is not known
        step.item_metadata = Composite(
            **{name: described(known[name], child(place, name)) if known.get(name) else None for name in there}
        )
        return step

    def close(self) -> None:
        """Close all handlers."""
        for handler in {id(found): found for found in self.known().values() if found is not None}.values():
            if hasattr(handler, "close"):
                handler.close()


def _composite(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    for value in (*args, *kwargs.values()):
        if isinstance(value, Mapping):
            return value
    return {}


def _recorded(place: Place) -> dict[str, str | None]:
    from ocdbt_py.interop.orbax import metadata

    return _by_item(metadata.step_metadata(place).item_handlers, place)


def _by_item(handlers: Any, place: Place) -> dict[str, str | None]:
    if handlers is None:
        return {}
    if not isinstance(handlers, dict):
        raise InvalidArgumentError(
            f"{place.url} was saved as one item in a directory of its own; restore it with a Checkpointer of its "
            "handler, such as StandardCheckpointer()",
            url=place.url,
        )
    return dict(handlers)


register_with_handler(CompositeCheckpointHandler, for_save=True, for_restore=True)(ocp_args.Composite)
