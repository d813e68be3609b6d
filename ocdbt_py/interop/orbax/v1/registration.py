"""Which handler saves and loads which object: the registries of the v1 API.

A handler is registered for objects of any name that it says it can handle, or for the objects of one name. Of those
that can, the one registered last is taken. The global registry has the handlers of this package, and what
:func:`register_handler` adds; a context may have another (``context.checkpointables.registry``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

from ocdbt_py.errors import AlreadyExistsError, UnsupportedError
from ocdbt_py.interop.orbax.v1.errors import NoEntryError

__all__ = [
    "CheckpointableHandlerRegistry",
    "RegisteredTwiceError",
    "global_registry",
    "local_registry",
    "read_only_registry",
    "register_handler",
]

H = TypeVar("H", bound=type[Any])


class RegisteredTwiceError(AlreadyExistsError, ValueError):
    """A name or a type has a handler already."""


class RegistryEntry(NamedTuple):
    """A class of handlers, and the one name that it is for; None: for all."""

    handler_type: type[Any]
    checkpointable_name: str | None


class CheckpointableHandlerRegistry:
    """Handlers in the order in which they were registered."""

    def __init__(self) -> None:
        self._entries: list[RegistryEntry] = []
        self._secondary: dict[type[Any], tuple[str, ...]] = {}

    def add(
        self,
        handler_type: type[Any],
        *,
        checkpointable_name: str | None = None,
        secondary_typestrs: Sequence[str] | None = None,
    ) -> CheckpointableHandlerRegistry:
        """Register a handler; ``secondary_typestrs``: other classes whose items it reads.

        Raises :class:`RegisteredTwiceError` if the name, or without one the type, is registered already.
        """
        for entry in self._entries:
            if checkpointable_name is not None and entry.checkpointable_name == checkpointable_name:
                raise RegisteredTwiceError(f"The name {checkpointable_name!r} has a handler: {entry.handler_type}")
            if checkpointable_name is None and entry == (handler_type, None):
                raise RegisteredTwiceError(f"{handler_type} is registered already")
        self._entries.append(RegistryEntry(handler_type, checkpointable_name))
        if secondary_typestrs:
            self._secondary[handler_type] = tuple(secondary_typestrs)
        return self

    def get(self, checkpointable_name: str) -> type[Any]:
        """The handler of one name; :class:`NoEntryError` if it has none of its own."""
        for entry in self._entries:
            if entry.checkpointable_name == checkpointable_name:
                return entry.handler_type
        raise NoEntryError(f"No handler is registered for the name {checkpointable_name!r}")

    def has(self, checkpointable_name: str) -> bool:
        """Whether a name has a handler of its own."""
        return any(entry.checkpointable_name == checkpointable_name for entry in self._entries)

    def get_all_entries(self) -> Sequence[RegistryEntry]:
        """All of them, the last registered last."""
        return tuple(self._entries)

    def get_secondary_typestrs(self, handler_type: type[Any]) -> Sequence[str]:
        """Other classes whose items this handler reads."""
        return self._secondary.get(handler_type, ())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({[(kind.__name__, name) for kind, name in self.get_all_entries()]})"


class _ReadOnly(CheckpointableHandlerRegistry):
    """What a context begins with: what is global when it is asked, and nothing can be added."""

    def add(
        self,
        handler_type: type[Any],
        *,
        checkpointable_name: str | None = None,
        secondary_typestrs: Sequence[str] | None = None,
    ) -> CheckpointableHandlerRegistry:
        raise UnsupportedError(
            "The registry that a context begins with cannot be changed; make one with local_registry(), add to it, and "
            "set context.checkpointables.registry"
        )

    def get(self, checkpointable_name: str) -> type[Any]:
        return _global.get(checkpointable_name)

    def has(self, checkpointable_name: str) -> bool:
        return _global.has(checkpointable_name)

    def get_all_entries(self) -> Sequence[RegistryEntry]:
        return _global.get_all_entries()

    def get_secondary_typestrs(self, handler_type: type[Any]) -> Sequence[str]:
        return _global.get_secondary_typestrs(handler_type)


_global = CheckpointableHandlerRegistry()


def global_registry() -> CheckpointableHandlerRegistry:
    """The registry of the whole program."""
    return _global


def read_only_registry() -> CheckpointableHandlerRegistry:
    """The global registry, for reading."""
    return _ReadOnly()


def local_registry(
    other_registry: CheckpointableHandlerRegistry | None = None, *, include_global_registry: bool = True
) -> CheckpointableHandlerRegistry:
    """A new registry with what is global now, and then the entries of another."""
    made = CheckpointableHandlerRegistry()
    sources = [
        source for source in (_global if include_global_registry else None, other_registry) if source is not None
    ]
    for source in sources:
        for kind, name in source.get_all_entries():
            known = made.has(name) if name is not None else (kind, None) in made.get_all_entries()
            if not known:
                made.add(kind, checkpointable_name=name, secondary_typestrs=source.get_secondary_typestrs(kind))
    return made


def register_handler(
    cls: H, *, checkpointable_name: str | None = None, secondary_typestrs: Sequence[str] | None = None
) -> H:
    """Register a class of handlers for the whole program; can be used as a decorator."""
    _global.add(cls, checkpointable_name=checkpointable_name, secondary_typestrs=secondary_typestrs)
    return cls
