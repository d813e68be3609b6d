"""What is at a path of any filesystem of fsspec, and in a directory; and how directories come and go.

A file's directories are made when they turn out to be missing. Filesystems differ in what they say of a file that is
listed, or of a directory that goes with the last file in it: what is there is asked for, before and after.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from fsspec.asyn import AsyncFileSystem

from ocdbt_py.errors import PathNotFoundError
from ocdbt_py_backends.generic_attempts import Attempts

__all__ = ["DEEPEST", "Directories"]

DEEPEST = 200
"""Levels of directories below one another."""

T = TypeVar("T")


class Directories:
    """``frozen``: nothing changes, and what the filesystem remembers is still so."""

    def __init__(self, attempts: Attempts, *, frozen: bool) -> None:
        self._translated = attempts.translated
        self._frozen = frozen

    def info(self, fs: Any, path: str) -> dict[str, Any]:
        if not self._frozen:
            fs.invalidate_cache()
        info: dict[str, Any] = fs.info(path)
        return info

    def there(self, fs: Any, path: str) -> dict[str, Any] | None:
        """As :meth:`info`; None where nothing is."""
        try:
            return self.info(fs, path)
        except Exception as error:
            if isinstance(self._translated(error, path, reading=True), PathNotFoundError):
                return None
            raise

    def entries(self, fs: Any, directory: str) -> Sequence[tuple[str, int | None]]:
        """Names in a directory, and sizes of those that are files."""
        there = self.there(fs, directory) if directory.strip("/") else None
        if directory.strip("/") and (there is None or there.get("type") != "directory"):
            return []  # some filesystems list a file as if it were in itself
        try:
            found = fs.ls(directory or fs.root_marker, detail=True)
        except Exception as error:
            if isinstance(self._translated(error, directory, reading=True), PathNotFoundError):
                return []
            raise
        entries: list[tuple[str, int | None]] = []
        for info in found:
            whole = info["name"].rstrip("/")
            name = whole.rpartition("/")[2]
            if not name or whole.strip("/") == directory.strip("/"):
                continue  # the directory itself
            if info.get("type") == "directory":
                entries.append((name, None))
            elif info.get("size") is not None:
                entries.append((name, info["size"]))
        return entries

    def with_parents(self, fs: Any, path: str, function: Callable[[], T]) -> T:
        """The result of ``function``, which is tried again with the directories above ``path`` made."""
        parent = path.rpartition("/")[0]
        try:
            return function()
        except Exception:
            if not parent.strip("/") or self.there(fs, parent) is not None:
                raise
        fs.makedirs(parent, exist_ok=True)
        return function()

    def remove(self, fs: Any, path: str) -> None:
        try:
            fs.rm_file(path)
        except Exception:
            if self.there(fs, path) is not None:
                raise

    def delete(self, fs: Any, directory: str, levels: int) -> None:
        there = self.there(fs, directory)
        if there is None or there.get("type") != "directory":
            return
        for name, size in self.entries(fs, directory):
            path = f"{directory}/{name}"
            if size is None and levels:
                self.delete(fs, path, levels - 1)
            else:
                self.remove(fs, path)
        try:
            fs.rmdir(directory)
        except Exception:
            there = self.there(fs, directory)  # a bucket's directory is gone with its last file
            if there is not None and not isinstance(fs, AsyncFileSystem):
                raise
