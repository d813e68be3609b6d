"""Which handler saves an object, and which loads it again.

To save: the handler of the object's name, if it has one of its own, else the last registered that can. To load: what
``_CHECKPOINT_METADATA`` says wrote it, if that is registered here, unless the name has a handler of its own. Where
nothing of this tells, what lies there decides: a tree or JSON is recognised without anybody's word.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ocdbt_py.checkpoint.layout import Kind, identify
from ocdbt_py.errors import InvalidArgumentError
from ocdbt_py.interop.orbax.v1.errors import NoEntryError
from ocdbt_py.interop.orbax.v1.handlers import JsonHandler, PyTreeHandler, StatefulCheckpointable
from ocdbt_py.interop.orbax.v1.handling import typestr
from ocdbt_py.interop.orbax.v1.registration import CheckpointableHandlerRegistry
from ocdbt_py.storage.location import Place

__all__ = ["handler_for_load", "handler_for_save"]


def handler_for_save(registry: CheckpointableHandlerRegistry, value: Any, name: str) -> Any:
    """Raises :class:`NoEntryError` where none can, :class:`InvalidArgumentError` for None."""
    if value is None:
        raise InvalidArgumentError(f"There is nothing to save under the name {name!r}: it is None")
    able = _able(registry, lambda handler: handler.is_handleable(value))
    if able is not None and isinstance(value, StatefulCheckpointable):
        return able
    if registry.has(name):
        return _made(registry.get(name))
    if able is None:
        raise NoEntryError(
            f"No handler can save {name!r}, of type {type(value).__name__}. Register one for it: "
            f"handlers.register_handler, or context.checkpointables.registry. There are {registry}"
        )
    return able


def handler_for_load(
    registry: CheckpointableHandlerRegistry, abstract: Any, name: str, recorded: str | None, place: Place
) -> Any:
    """``recorded``: what wrote the item at ``place``, as far as that is known."""
    own = _made(registry.get(name)) if registry.has(name) else None
    writer = _of_typestr(registry, recorded) if recorded else None
    is_stateful = abstract is not None and isinstance(abstract, StatefulCheckpointable)
    if is_stateful and writer is not None and writer.is_abstract_handleable(abstract):
        return writer
    for handler in (own, writer):
        if handler is not None and (abstract is None or handler.is_abstract_handleable(abstract)):
            return handler
    able = None if abstract is None else _able(registry, lambda handler: handler.is_abstract_handleable(abstract))
    if able is not None:
        return able
    if own is not None:
        return own
    if identify(place).kind is Kind.JSON:
        return writer or JsonHandler()
    return PyTreeHandler()


def _able(registry: CheckpointableHandlerRegistry, can: Callable[[Any], bool | None]) -> Any:
    """The last registered, for objects of any name, that can."""
    for kind, name in reversed(registry.get_all_entries()):
        if name is None:
            handler = _made(kind)
            if can(handler):
                return handler
    return None


def _of_typestr(registry: CheckpointableHandlerRegistry, recorded: str) -> Any:
    for kind, _ in reversed(registry.get_all_entries()):
        if recorded == typestr(kind) or recorded in registry.get_secondary_typestrs(kind):
            return _made(kind)
    return None


def _made(kind: type[Any]) -> Any:
    try:
        return kind()
    except TypeError as error:
        raise InvalidArgumentError(f"The handler {kind.__name__} must be made without arguments: {error}") from error
