"""What saves and restores one item: Orbax's interface, and how the handlers of this package meet it.

A handler of ours never writes. It says what an item consists of (:meth:`ItemHandler.contents`: trees and small files),
and everything that is saved together is judged, copied and published together. Restoring, it reads from a
:class:`~ocdbt_py.storage.location.Place`, so any storage will do.

Handlers of the user's know directories: ``save(directory, args=…)`` and ``restore(directory, args=…)``. They get a
local one: its files become the item's when the save begins, and restoring from elsewhere copies them there first.
"""

from __future__ import annotations

import abc
import asyncio
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from ocdbt_py.checkpoint.contents import DIRECT, Contents, Item
from ocdbt_py.checkpoint.save import BegunSave
from ocdbt_py.errors import OcdbtError
from ocdbt_py.interop.orbax.directories import directory_place, local_path
from ocdbt_py.interop.orbax.registration import CheckpointArgs, get_registered_args_cls, typestr_of
from ocdbt_py.storage.location import Place

__all__ = [
    "AsyncCheckpointHandler",
    "CheckpointHandler",
    "ItemHandler",
    "arguments",
    "contents_of",
    "described",
    "restored",
]


class CheckpointHandler(abc.ABC):
    """Saves and restores one kind of item in a directory. Subclass it, and register arguments with the subclass."""

    @abc.abstractmethod
    def save(self, directory: Any, *args: Any, **kwargs: Any) -> None:
        """Write the item's files into ``directory``."""

    @abc.abstractmethod
    def restore(self, directory: Any, *args: Any, **kwargs: Any) -> Any:
        """The item, from its files."""

    def metadata(self, directory: Any) -> Any:
        """A description of the item that is cheap to come by; None where there is none."""
        return None

    def finalize(self, directory: Any) -> None:
        """Called once all files are written."""
        return

    def close(self) -> None:
        """Nothing will be asked of the handler any more."""
        return

    @classmethod
    def typestr(cls) -> str:
        """What ``_CHECKPOINT_METADATA`` says of items of this kind."""
        return f"{cls.__module__}.{cls.__qualname__}"


class AsyncCheckpointHandler(CheckpointHandler):
    """A handler whose :meth:`async_save` returns futures of what it writes in the background."""

    @abc.abstractmethod
    async def async_save(self, directory: Any, *args: Any, **kwargs: Any) -> list[Any] | None:
        """Begin to write; futures with ``result()``."""


class ItemHandler(AsyncCheckpointHandler):
    """A handler of ours: it makes contents, and reads from places."""

    TYPESTR: ClassVar[str]

    @abc.abstractmethod
    def contents(self, args: Any) -> Item:
        """What the item consists of. Judges as much as can be judged without looking at the arrays."""

    @abc.abstractmethod
    def read(self, place: Place, args: Any) -> Any:
        """The item that lies at a place."""

    def describe(self, place: Place) -> Any:
        """Its metadata; None where it has none."""
        return None

    @classmethod
    def typestr(cls) -> str:
        return cls.TYPESTR if "TYPESTR" in vars(cls) else f"{cls.__module__}.{cls.__qualname__}"

    def save(self, directory: Any, *args: Any, **kwargs: Any) -> None:
        """Write the item alone, as the checkpoint at ``directory``."""
        save_args = arguments(self, args, kwargs, for_save=True)
        BegunSave(directory_place(directory), Contents({DIRECT: self.contents(save_args)})).write()

    async def async_save(self, directory: Any, *args: Any, **kwargs: Any) -> list[Any] | None:
        """The same; nothing is left to wait for."""
        self.save(directory, *args, **kwargs)
        return []

    def restore(self, directory: Any, *args: Any, **kwargs: Any) -> Any:
        return self.read(directory_place(directory), arguments(self, args, kwargs, for_save=False))

    def metadata(self, directory: Any) -> Any:
        return self.describe(directory_place(directory))


def arguments(handler: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, for_save: bool) -> CheckpointArgs:
    """The arguments object of a call: the one that was given, or the handler's own made of what was given."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, CheckpointArgs):
            return value
    save_cls, restore_cls = get_registered_args_cls(handler)
    kwargs = {name: value for name, value in kwargs.items() if name != "args"}
    return (save_cls if for_save else restore_cls)(*args, **kwargs)


# --- any handler, the user's too


def contents_of(handler: Any, args: Any) -> Item:
    """What an item consists of, whoever handles it."""
    if isinstance(handler, ItemHandler):
        return handler.contents(args)
    with tempfile.TemporaryDirectory(prefix="ocdbt-item-") as directory:
        path = Path(directory)
        _write_foreign(handler, path, args)
        written = [file for file in path.rglob("*") if file.is_file()]
        files = {file.relative_to(path).as_posix(): file.read_bytes() for file in written}
    return Item(typestr_of(handler), files=files)


def _write_foreign(handler: Any, path: Path, args: Any) -> None:
    """Have a handler of the user's write into a directory, to the end."""
    if not hasattr(handler, "async_save"):
        handler.save(path, args=args)
    else:
        failed: list[BaseException] = []

        def run() -> None:
            try:
                futures = asyncio.run(handler.async_save(path, args=args))
                for future in futures or ():
                    future.result()
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=run, name="ocdbt-item")  # the caller may be inside an event loop
        thread.start()
        thread.join()
        if failed:
            raise failed[0]
    if hasattr(handler, "finalize"):
        handler.finalize(path)


def restored(handler: Any, place: Place, args: Any) -> Any:
    """The item at a place, whoever handles it."""
    if isinstance(handler, ItemHandler):
        return handler.read(place, args)
    with local_path(place) as path:
        return handler.restore(path, args=args)


def described(handler: Any, place: Place) -> Any:
    """What is known of the item at a place without reading it; None where nothing is, or it cannot be told."""
    try:
        if isinstance(handler, ItemHandler):
            return handler.describe(place)
        with local_path(place) as path:
            return handler.metadata(path)
    except (FileNotFoundError, NotImplementedError, OcdbtError):
        return None
