"""A directory of files as a mapping: a key is the path below the directory, ``params.w/0.0``.

What is there, and how long, comes from listings, each made once: of the directories that are asked for, or, where they
are many, of everything below what they have in common. So a reader sees what was there at its first look. Where a
storage cannot list, each file is asked for, and a small one comes with the answer.

A key that would lead out of the directory is :class:`CorruptDataError`: names come from a checkpoint's own metadata.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from posixpath import commonpath

from ocdbt_py.checkpoint.views import View, runs
from ocdbt_py.database_reading import Run
from ocdbt_py.engine.mutations import KeyRange
from ocdbt_py.engine.nodes import file_path
from ocdbt_py.engine.tree import Found
from ocdbt_py.errors import CorruptDataError, PathNotFoundError, UnsupportedError
from ocdbt_py.format.datafile import DataFileId, Location
from ocdbt_py.storage.background import each
from ocdbt_py.storage.location import Place
from ocdbt_py.storage.protocol import Read

__all__ = ["Directory"]

_LISTED_ALONE = 8
"""So many directories are listed by themselves; of more, all there is."""

_ASKED_AT_ONCE = 8
_SMALL = 4096
"""Bytes that are asked for where a file's size is not known; an array's document has some two hundred."""


class Directory(View):
    """The files below ``place``, each a value."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._sizes: dict[str, int | None] = {}  # of the files seen, and None for those known to be absent
        self._listed: set[str] = set()  # directories whose files are all in there
        self._listed_deep: list[str] = []  # and those of which that holds of all below, too

    def _find(self, keys: list[bytes]) -> list[Found]:
        paths = [self._path(key) for key in keys]
        if not self.place.storage.capabilities.list:
            return self._asked(keys, paths)
        self._list([path.rpartition("/")[0] for path in paths])
        return [_whole(key, self._sizes.get(path)) for key, path in zip(keys, paths, strict=True)]

    def _runs(self, inside: KeyRange) -> Iterator[Run]:
        if not self.place.storage.capabilities.list:
            raise UnsupportedError(f"The storage of {self.place.url} cannot list, so nobody knows which files it has")
        self._list_below("")
        sizes = {path.encode("utf-8", "surrogateescape"): size for path, size in list(self._sizes.items())}
        inner = sorted(key for key in sizes if inside.covers(key, key + b"\0"))
        return runs([((key, where) for key in inner if (where := _whole(key, sizes[key])) is not None)])

    def _path(self, key: bytes) -> str:
        try:
            file_path("", DataFileId(b"", key))
        except CorruptDataError as error:
            raise CorruptDataError(
                f"The name {key!r} leads out of the checkpoint's directory, which is never followed",
                key=key,
                url=self.place.url,
            ) from error
        path = key.decode("utf-8", "surrogateescape")
        if "//" in path and self.place.storage.capabilities.rename:  # among directories, several slashes are one
            return re.sub("/+", "/", path)
        return path

    # --- with listings

    def _list(self, directories: Sequence[str]) -> None:
        """Make sure that the files of these directories are known."""
        unknown = list(dict.fromkeys(name for name in directories if not self._is_known(name)))
        if len(unknown) > _LISTED_ALONE:
            self._list_below(commonpath(unknown))
            return
        each(self._list_one, unknown, _ASKED_AT_ONCE if self.place.storage.capabilities.parallel > 1 else 1)

    def _is_known(self, directory: str) -> bool:
        return directory in self._listed or self._is_known_deep(directory)

    def _list_one(self, directory: str) -> None:
        self._note(directory, deep=False)
        self._listed.add(directory)

    def _list_below(self, directory: str) -> None:
        if not self._is_known_deep(directory):
            self._note(directory, deep=True)
            self._listed_deep.append(directory)

    def _is_known_deep(self, directory: str) -> bool:
        return any(not above or directory == above or directory.startswith(f"{above}/") for above in self._listed_deep)

    def _note(self, directory: str, *, deep: bool) -> None:
        start = len(self.place.path) + 1
        prefix = f"{self.place.path}/{directory}/" if directory else f"{self.place.path}/"
        for item in self.place.storage.list(prefix, deep=deep):
            if item.size is not None:
                self._sizes[item.path[start:]] = item.size

    # --- without

    def _asked(self, keys: Sequence[bytes], paths: Sequence[str]) -> list[Found]:
        found: dict[str, Found] = {}

        def ask(path: str) -> None:
            try:
                read = self.place.storage.read(f"{self.place.path}/{path}", 0, _SMALL)
            except PathNotFoundError:
                self._sizes[path] = None
                return
            assert isinstance(read, Read)
            self._sizes[path] = read.size
            if len(read.data) == read.size:
                found[path] = read.data

        each(ask, dict.fromkeys(path for path in paths if path not in self._sizes), _ASKED_AT_ONCE)
        return [found.get(path) or _whole(key, self._sizes[path]) for key, path in zip(keys, paths, strict=True)]


def _whole(key: bytes, size: int | None) -> Location | None:
    """A file as the place of a value."""
    return None if size is None else Location(DataFileId(b"", key), 0, size)
