"""Hold a step while somebody reads it: a copy beside the steps, which no policy deletes.

An evaluator that takes longer over a step than the trainer keeps it would find files gone. The copy lies in
``ROOT/_SNAPSHOTS/STEP``, as Orbax's does; its name is no step's, so managers pass it over.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ocdbt_py.checkpoint.layout import child
from ocdbt_py.errors import NotFoundError
from ocdbt_py.storage.background import each
from ocdbt_py.storage.location import Place
from ocdbt_py.storage.protocol import Read

__all__ = ["SNAPSHOTS", "remove_snapshots", "snapshot"]

SNAPSHOTS = "_SNAPSHOTS"
"""The directory of snapshots below a root."""

_AT_ONCE = 16 << 20


@contextmanager
def snapshot(step: Place, directory: Place) -> Iterator[Place]:
    """A copy of a step below ``directory``, removed at the end.

    Raises :class:`NotFoundError`, with nothing left behind, where the step is deleted while it is copied.
    """
    copy = child(directory, step.path.rpartition("/")[2])
    copy.storage.delete(f"{copy.path}/")  # of an evaluator that was killed
    try:
        _copy(step, copy)
        yield copy
    finally:
        copy.storage.delete(f"{copy.path}/")


def remove_snapshots(directory: Place) -> None:
    """Remove what an evaluator that was killed has left."""
    if directory.storage.capabilities.list:
        for item in list(directory.storage.list(f"{directory.path}/")):
            directory.storage.delete(item.path)


def _copy(source: Place, target: Place) -> None:
    paths = [item.path for item in source.storage.list(f"{source.path}/", deep=True)]
    if not paths:
        raise NotFoundError(f"{source.url} is gone: it was deleted before it could be copied", url=source.url)

    def copy(path: str) -> None:
        writer = target.storage.create(target.path + path.removeprefix(source.path))
        try:
            start, size = 0, 1
            while start < size or not start:
                found = source.storage.read(path, start, start + _AT_ONCE)
                assert isinstance(found, Read)
                writer.write([found.data])
                start, size = start + len(found.data), found.size
                if not found.data:
                    break
            writer.close()
        except BaseException:
            writer.abort()
            raise

    each(copy, paths, source.storage.capabilities.parallel)
