"""Blocks of files on the local disk, in the directories that a user gives to fsspec's caches, or one of this process.

A block is put in place whole, by a rename, in a folder for its file::

    DIRECTORY/6b1f.../0   DIRECTORY/6b1f.../1   ...        of BLOCK bytes each, but the last

so that neither a reader beside a download nor one after a crash takes a part for the whole, however many threads and
processes share a directory. What a folder is named, and so what is taken for the same file, is the caller's business.
"""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import tempfile
import threading
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ocdbt_py.errors import InvalidArgumentError, UnsupportedError

__all__ = ["BLOCK", "BlockCache", "turn"]

BLOCK = 4 << 20
"""Bytes of a block; what the object stores fetch in one request."""

_WEEK = 7 * 24 * 3600

_OPTIONS = """
    cache_storage expiry_time check_files cache_check cache_storage_mode compression same_names cache_mapper
    target_protocol target_options skip_instance_cache use_listings_cache listings_expiry_time max_paths
"""
"""What fsspec's caches take. How they name their files, and how often they look at their own records, is not ours."""


@dataclass(frozen=True, slots=True)
class BlockCache:
    """Where and how long blocks are kept.

    ``directories`` are looked through in order and written to the last; none means one that lives as long as this
    process. ``whole``: a file is fetched whole. ``expiry`` is in seconds, 0 for ever. ``checked``: a file is asked for
    its version at each use, and only blocks of that one are good. ``mode`` is that of new directories.
    """

    directories: tuple[str, ...] = ()
    whole: bool = True
    expiry: float = 0
    checked: bool = False
    mode: int = 0o777

    @classmethod
    def of_options(cls, protocol: str, options: Mapping[str, Any]) -> BlockCache:
        """What fsspec means by them for ``protocol``."""
        for name in options:
            if name not in _OPTIONS.split():
                raise InvalidArgumentError(
                    f"{protocol} has no option {name!r}; what is meant for the filesystem below it stands under that "
                    "one's own name, as in storage_options={'s3': {...}}"
                )
        if options.get("compression") is not None:
            raise UnsupportedError(f"{protocol} with compression shows other bytes than are stored; leave it out")
        places = options.get("cache_storage", "TMP")
        if isinstance(places, str | os.PathLike):
            places = [] if places == "TMP" else [places]
        simple = protocol == "simplecache"
        mode = options.get("cache_storage_mode")
        return cls(
            directories=tuple(os.path.abspath(place) for place in places),
            whole=protocol in ("simplecache", "filecache"),
            expiry=0 if simple else float(options.get("expiry_time", _WEEK) or 0),
            checked=not simple and bool(options.get("check_files")),
            mode=0o777 if mode is None else mode,
        )

    def find(self, folder: str, number: int) -> str | None:
        """The file of a block that is there and not too old."""
        for directory in self.directories or (_own_directory(),):
            file = os.path.join(directory, folder, str(number))
            try:
                age = time.time() - os.stat(file).st_mtime
            except OSError:
                continue
            if not self.expiry or age <= self.expiry:
                return file
        return None

    def fill(self, folder: str, number: int, begin: int, buffer: memoryview) -> bool:
        """Fill it from a block, from byte ``begin`` on; whether that could be done."""
        file = self.find(folder, number)
        if file is None:
            return False
        count = 0
        try:
            with open(file, "rb", buffering=0) as block:
                block.seek(begin)
                while count < len(buffer) and (got := block.readinto(buffer[count:])):
                    count += got
        except OSError:
            return False
        if count < len(buffer):
            # the file ends here, or the machine stopped before the block was on the disk; it is not asked again
            with suppress(OSError):
                os.unlink(file)
        return count == len(buffer)

    def keep(self, folder: str, number: int, data: bytes) -> bool:
        """Put a block in place; whether that could be done."""
        place = self._written()
        file = os.path.join(place, folder, str(number))
        temporary = f"{file}.{secrets.token_hex(8)}"
        try:
            os.makedirs(os.path.dirname(file), mode=self.mode, exist_ok=True)
            with open(temporary, "xb", buffering=0) as new:
                left = memoryview(data)
                while len(left):
                    left = left[new.write(left) :]
            os.replace(temporary, file)
        except OSError as error:
            with suppress(OSError):
                os.unlink(temporary)
            warnings.warn(f"The cache in {place} is not written: {error.strerror}", RuntimeWarning, stacklevel=2)
            return False
        return True

    def drop(self, folder: str) -> None:
        shutil.rmtree(os.path.join(self._written(), folder), ignore_errors=True)

    def _written(self) -> str:
        return self.directories[-1] if self.directories else _own_directory()


class _Process:
    """What belongs to this process, and to no fork of it."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        self.directory: str | None = None
        self.turns = [threading.Lock() for _ in range(64)]

    def remove_directory(self) -> None:
        if self.directory is not None:
            shutil.rmtree(self.directory, ignore_errors=True)


_process = _Process()
os.register_at_fork(after_in_child=_process.renew)
atexit.register(_process.remove_directory)


def turn(folder: str) -> threading.Lock:
    """Who fetches blocks of a folder holds it, so that no two threads fetch the same ones."""
    return _process.turns[1 + int(folder[:8], 16) % 63]


def _own_directory() -> str:
    """Of this process, for caches that are given none."""
    if _process.directory is None:
        with _process.turns[0]:
            if _process.directory is None:
                _process.directory = tempfile.mkdtemp(prefix="ocdbt-py-cache-")
    return _process.directory
