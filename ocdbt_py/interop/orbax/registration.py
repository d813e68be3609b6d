"""Which handler saves and restores which arguments: Orbax's two registries.

The global one is by type: :func:`register_with_handler` ties a class of arguments to a class of handlers, and a
checkpoint's ``item_handlers`` name the handler's type, so that one day later, without arguments, it can be found again.
A :class:`DefaultCheckpointHandlerRegistry` is one manager's or checkpointer's: by the name of an item and the type of
its arguments.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar

from ocdbt_py.errors import InvalidArgumentError, InvalidTypeError

__all__ = [
    "AlreadyExistsError",
    "CheckpointArgs",
    "CheckpointHandlerRegistry",
    "DefaultCheckpointHandlerRegistry",
    "NoEntryError",
    "create_default_handler_registry",
    "get_registered_args_cls",
    "get_registered_handler_cls",
    "handler_of_typestr",
    "has_registered_args",
    "register_with_handler",
    "typestr_of",
]


@dataclass
class CheckpointArgs:
    """Base of the arguments of one item. Subclass it, and register the subclass with its handler."""


_Args = TypeVar("_Args", bound=type[CheckpointArgs])
_HandlerType: TypeAlias = type[Any]

_by_save_args: dict[type[CheckpointArgs], _HandlerType] = {}
_by_restore_args: dict[type[CheckpointArgs], _HandlerType] = {}
_by_typestr: dict[str, _HandlerType] = {}


def register_with_handler(
    handler_cls: _HandlerType, for_save: bool = False, for_restore: bool = False
) -> Callable[[_Args], _Args]:
    """Decorate a subclass of :class:`CheckpointArgs`: ``handler_cls`` saves, restores, or both, what it describes."""
    if not for_save and not for_restore:
        raise InvalidArgumentError("Say what the arguments are for: for_save=True, for_restore=True, or both")

    def decorate(cls: _Args) -> _Args:
        if not issubclass(cls, CheckpointArgs):
            raise InvalidTypeError(f"{cls} must subclass CheckpointArgs to be registered with a handler")
        if for_save:
            _by_save_args[cls] = handler_cls
        if for_restore:
            _by_restore_args[cls] = handler_cls
        _by_typestr[typestr_of(handler_cls)] = handler_cls
        return cls

    return decorate


def typestr_of(handler: Any) -> str:
    """The text that ``_CHECKPOINT_METADATA`` has for a handler, or for a class of handlers."""
    cls = handler if isinstance(handler, type) else type(handler)
    typestr = getattr(handler, "typestr", None)
    return str(typestr()) if callable(typestr) else f"{cls.__module__}.{cls.__qualname__}"


def handler_of_typestr(typestr: str) -> _HandlerType | None:
    """The class of handlers that a checkpoint names; None if none is registered by that name."""
    return _by_typestr.get(typestr)


def also_read_by(typestr: str, handler_cls: _HandlerType) -> None:
    """Items of this type, which is never written, are restored by ``handler_cls``."""
    _by_typestr.setdefault(typestr, handler_cls)


def get_registered_handler_cls(arg: type[CheckpointArgs] | CheckpointArgs) -> _HandlerType:
    """The class of handlers for arguments, or for their class."""
    cls = arg if isinstance(arg, type) else type(arg)
    if not issubclass(cls, CheckpointArgs):
        raise InvalidTypeError(f"{cls} is no subclass of CheckpointArgs")
    found = _by_save_args.get(cls) or _by_restore_args.get(cls)
    if found is None:
        raise InvalidArgumentError(f"No handler is registered for {cls}; decorate it with register_with_handler")
    return found


def get_registered_args_cls(handler: Any) -> tuple[type[CheckpointArgs], type[CheckpointArgs]]:
    """The classes of arguments with which a handler, or a class of handlers, saves and restores."""
    cls = handler if isinstance(handler, type) else type(handler)
    found = []
    for purpose, registered in (("save", _by_save_args), ("restore", _by_restore_args)):
        args_cls = next((args for args, handler_cls in registered.items() if handler_cls is cls), None)
        if args_cls is None:
            raise InvalidArgumentError(f"No arguments to {purpose} with are registered for {cls}")
        found.append(args_cls)
    return found[0], found[1]


def has_registered_args(handler: Any) -> bool:
    """Whether a handler can be used with ``args=``."""
    try:
        get_registered_args_cls(handler)
    except InvalidArgumentError:
        return False
    return True


class AlreadyExistsError(InvalidArgumentError):
    """The registry has an entry for this item and these arguments."""


class NoEntryError(InvalidArgumentError, KeyError):
    """The registry has no entry for this item and these arguments."""


_Entries: TypeAlias = MutableMapping[tuple[str | None, type[CheckpointArgs]], Any]


class CheckpointHandlerRegistry(Protocol):
    """What ``handler_registry=`` has to be."""

    def add(self, item: str | None, args: Any, handler: Any = None) -> None: ...

    def get(self, item: str | None, args: Any) -> Any: ...

    def has(self, item: str | None, args: Any) -> bool: ...

    def get_all_entries(self) -> _Entries: ...


class DefaultCheckpointHandlerRegistry:
    """Handlers by the name of an item and the type of its arguments; the name None stands for all items.

    >>> from ocdbt_py.interop.orbax import args
    >>> registry = DefaultCheckpointHandlerRegistry()
    >>> registry.add("state", args.StandardSave)
    >>> registry.has("state", args.StandardSave), registry.has("state", args.JsonSave)
    (True, False)
    """

    def __init__(self, other_registry: CheckpointHandlerRegistry | None = None) -> None:
        self._entries: _Entries = dict(other_registry.get_all_entries()) if other_registry is not None else {}

    def add(self, item: str | None, args: Any, handler: Any = None) -> None:
        """Have ``handler`` (an instance, a class, or None: the one that is registered globally) for an item."""
        cls = _class_of(args)
        if (item, cls) in self._entries:
            raise AlreadyExistsError(f"The registry has a handler for item {item!r} and {cls.__name__} already")
        found = get_registered_handler_cls(args) if handler is None else handler
        if isinstance(found, type):
            try:
                found = found()
            except TypeError as error:
                raise InvalidArgumentError(
                    f"{found.__name__} cannot be made without arguments; add an instance of it for item {item!r}"
                ) from error
        self._entries[item, cls] = found

    def get(self, item: str | None, args: Any) -> Any:
        """The handler for an item and its arguments. Raises :class:`NoEntryError`."""
        try:
            return self._entries[item, _class_of(args)]
        except KeyError:
            raise NoEntryError(
                f"The registry has no handler for item {item!r} and {_class_of(args).__name__}; add() one"
            ) from None

    def has(self, item: str | None, args: Any) -> bool:
        """Whether there is a handler for an item and its arguments."""
        return (item, _class_of(args)) in self._entries

    def get_all_entries(self) -> _Entries:
        """All handlers, by name and class of arguments."""
        return self._entries

    def __repr__(self) -> str:
        return f"{type(self).__name__}({dict(self._entries)!r})"


def create_default_handler_registry(**items_to_handlers: Any) -> DefaultCheckpointHandlerRegistry:
    """A registry of handlers by the name of their item."""
    registry = DefaultCheckpointHandlerRegistry()
    for item, handler in items_to_handlers.items():
        for args_cls in dict.fromkeys(get_registered_args_cls(handler)):
            registry.add(item, args_cls, handler)
    return registry


def _class_of(args: Any) -> type[CheckpointArgs]:
    return args if isinstance(args, type) else type(args)
