"""What goes wrong with local files, in our terms: the border between ``OSError`` and :mod:`ocdbt_py.errors`."""

from __future__ import annotations

from types import TracebackType

from ocdbt_py.errors import (
    OcdbtError,
    PathNotFoundError,
    StorageError,
    StoragePermissionError,
)
from ocdbt_py.storage.refusals import taken


class Translated:
    """The border: inside ``OSError``, outside ours. ``reading``: what lies below a file is absent, no obstacle."""

    __slots__ = ("_path", "_reading")

    def __init__(self, path: str, *, reading: bool = False) -> None:
        self._path = path
        self._reading = reading

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, OSError) and not isinstance(error, OcdbtError):
            raise translated(error, self._path, reading=self._reading) from error


def translated(error: OSError, path: str, *, reading: bool) -> OcdbtError:
    """What to raise in place of it."""
    where = error.filename if isinstance(error.filename, str) else path
    match error:
        case FileNotFoundError():
            return PathNotFoundError(f"There is no {where}", path=path)
        case NotADirectoryError() if reading:
            return PathNotFoundError(f"There is no {where}: one of its parents is a file", path=path)
        case NotADirectoryError():
            return StorageError(
                f"{where} cannot be made, for one of its parents is a file, or it is no directory itself",
                kind="not-a-directory",
                path=path,
            )
        case IsADirectoryError():
            return StorageError(f"{path} is a directory, where a file is expected", kind="not-a-file", path=path)
        case FileExistsError():
            return taken(path, path)
        case PermissionError():
            return StoragePermissionError(f"{where}: {error.strerror}; check owner and mode", path=path)
        case _:
            return StorageError(f"{where}: {error.strerror or error}", path=path)
