"""Directories as Orbax's signatures have them, a ``str`` or anything like a path, and the places they are here.

A place is looked at through its storage. Only handlers of the user's need a directory of this computer's: on a local
disk they get the real one, else a copy that is gone afterwards.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ocdbt_py.checkpoint.layout import read_file
from ocdbt_py.checkpoint.opening import resolve_checkpoint
from ocdbt_py.storage.location import DEFAULT_SETTINGS, Place, Settings

__all__ = ["below", "directory_place", "exists", "local_path", "path_of", "subdirectories"]


def directory_place(
    directory: Any,
    storage_options: Mapping[str, Any] | None = None,
    fs: Any = None,
    settings: Settings = DEFAULT_SETTINGS,
) -> Place:
    """The place that a directory is; a :class:`Place` is one already."""
    return directory if isinstance(directory, Place) else resolve_checkpoint(directory, storage_options, fs, settings)


def path_of(directory: Any) -> Any:
    """What ``manager.directory`` is: a path object, of the kind that Orbax gives where its library is loaded.

    A URL that no path object can hold stays a ``str``.
    """
    if not isinstance(directory, str):
        return directory
    epath = sys.modules.get("etils.epath")
    if epath is not None and ("://" not in directory or directory.startswith(("gs://", "s3://", "az://"))):
        return epath.Path(directory)
    return directory if "://" in directory or "::" in directory else Path(directory)


def below(place: Place) -> set[str]:
    """Names of what a directory holds; those of directories end with a slash. None where there is no directory."""
    start = len(place.path) + 1
    return {entry.path[start:] for entry in place.storage.list(f"{place.path}/")}


def subdirectories(place: Place) -> list[str]:
    """Names of the directories in a directory, sorted."""
    return sorted(name[:-1] for name in below(place) if name.endswith("/"))


def exists(place: Place) -> bool:
    """Whether there is a directory, or on an object store anything below it; an empty one counts."""
    if any(True for _ in place.storage.list(f"{place.path}/")):
        return True
    return any(entry.path == f"{place.path}/" for entry in place.storage.list(place.path))


@contextmanager
def local_path(place: Place) -> Iterator[Path]:
    """A directory of this computer's with the files of a place, to read from."""
    if os.path.isabs(place.url):
        yield Path(place.path)
        return
    with tempfile.TemporaryDirectory(prefix="ocdbt-item-") as directory:
        for entry in place.storage.list(f"{place.path}/", deep=True):
            name = entry.path.removeprefix(f"{place.path}/")
            if not name or name.endswith("/"):
                continue
            file = Path(directory, *name.split("/"))
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(read_file(place, name) or b"")
        yield Path(directory)
