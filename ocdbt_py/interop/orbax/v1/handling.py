"""What is done with any handler, of ours or of the user's: an item's contents, the object at a place, its description.

Handlers of the user's are run to their end in a thread, since the caller may be inside an event loop.
"""

from __future__ import annotations

import asyncio
import contextvars
import tempfile
import threading
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from ocdbt_py.checkpoint.contents import Item
from ocdbt_py.interop.orbax.directories import local_path
from ocdbt_py.interop.orbax.v1.context import Context
from ocdbt_py.interop.orbax.v1.handlers import OwnHandler, PathAwaitingCreation
from ocdbt_py.storage.location import Place

__all__ = ["contents_of", "describe_item", "read_item", "typestr"]

R = TypeVar("R")


def typestr(handler: Any) -> str:
    """What ``_CHECKPOINT_METADATA`` says of items of this handler: ours are known by the names of Orbax's."""
    kind = handler if isinstance(handler, type) else type(handler)
    known = kind.__dict__.get("TYPESTR")
    return known if isinstance(known, str) else f"{kind.__module__}.{kind.__qualname__}"


def contents_of(handler: Any, value: Any, context: Context) -> Item:
    """What an item consists of, whoever handles it."""
    if isinstance(handler, OwnHandler):
        item = handler.contents(value, context)
        return Item(typestr(handler), item.trees, item.files)
    with tempfile.TemporaryDirectory(prefix="ocdbt-item-") as name:
        directory = Path(name)
        _run(lambda: _in_two_steps(handler.save(PathAwaitingCreation(context.file.path_class(name)), value)))
        files = {
            file.relative_to(directory).as_posix(): file.read_bytes() for file in directory.rglob("*") if file.is_file()
        }
    return Item(typestr(handler), files=files)


def read_item(handler: Any, place: Place, abstract: Any, context: Context) -> Any:
    """The object at a place, whoever handles it."""
    if isinstance(handler, OwnHandler):
        return handler.read(place, abstract, context)
    with local_path(place) as path:
        directory = context.file.path_class(path)
        return _run(lambda: _in_two_steps(handler.load(directory, abstract)))


def describe_item(handler: Any, place: Place, context: Context) -> Any:
    """What is known of the object at a place without reading it."""
    if isinstance(handler, OwnHandler):
        return handler.describe(place)
    with local_path(place) as path:
        return _run(lambda: handler.metadata(context.file.path_class(path)))


async def _in_two_steps(first: Awaitable[Awaitable[R]]) -> R:
    return await (await first)


def _run(work: Callable[[], Coroutine[Any, Any, R]]) -> R:
    """Run a coroutine to its end, in a thread: the caller may be inside an event loop."""
    results: list[R] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            results.append(asyncio.run(work()))
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(run,), name="ocdbt-handler")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return results[0]
