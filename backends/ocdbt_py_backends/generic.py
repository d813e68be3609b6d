"""Every other filesystem of fsspec: FTP, WebDAV, archives, and what other packages have registered.

Nothing is assumed but fsspec's own interface, and that has neither conditional writes nor bytes and version from one
response. What becomes of a read and of a write then, :mod:`ocdbt_py_backends.generic_reading` and
:mod:`ocdbt_py_backends.generic_writing` say; the capabilities promise no more than that, and checkpoints need no more.
What is known of single filesystems stands in :mod:`ocdbt_py_backends.generic_filesystem`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import PurePosixPath
from typing import Any, Literal

import fsspec

from ocdbt_py.errors import InvalidArgumentError, UnsupportedError
from ocdbt_py.storage.location import Settings, resolve, safe_path, safe_url
from ocdbt_py.storage.protocol import (
    ANY,
    Buffer,
    ByteRange,
    Capabilities,
    Condition,
    Filling,
    Growing,
    Hold,
    Listed,
    Note,
    Read,
    Storage,
    Token,
    Unchanged,
    Writer,
)
from ocdbt_py_backends.generic_attempts import Attempts
from ocdbt_py_backends.generic_directories import DEEPEST, Directories
from ocdbt_py_backends.generic_failures import failure_of
from ocdbt_py_backends.generic_filesystem import installation, is_frozen, is_writable, owned, protocol_of
from ocdbt_py_backends.generic_reading import Reading
from ocdbt_py_backends.generic_writing import TEMPORARY, NewFile, Writing

__all__ = ["GenericStorage"]

_OF_THIS_PROCESS = frozenset({"_attempts", "_directories", "_reading", "_writing"})


class GenericStorage:
    """The files of ``fs``, any filesystem of fsspec. Paths are those of the filesystem, without a trailing slash.

    ``prefix`` and ``suffix`` are what stands around a path in messages.
    """

    def __init__(self, fs: Any, prefix: str, suffix: str = "") -> None:
        self._given = fs
        self._prefix = prefix
        self._suffix = suffix
        self._protocol = protocol_of(fs)
        self._capabilities = Capabilities(ranges=True, list=True, writable=is_writable(fs))
        self._start()

    def _start(self) -> None:
        frozen = is_frozen(self._given)
        # not with our own method: nothing but ourselves holds us, so that connections are closed when we go
        self._attempts = Attempts(self._given, partial(_described, self._prefix, self._suffix))
        self._directories = Directories(self._attempts, frozen=frozen)
        self._reading = Reading(self._attempts, self._directories, frozen=frozen)
        self._writing = Writing(self._attempts, self._directories, self._reading, self._protocol)

    @classmethod
    def from_url(cls, url: str, storage_options: Mapping[str, Any], settings: Settings) -> tuple[Storage, str]:
        """Any URL of fsspec, chained ones too (``zip://in/it::https://host/a.zip``). The filesystem is made now, and a
        server asked or an archive opened for that, with ``storage_options`` as fsspec takes them.
        """
        shown = safe_url(url)
        try:
            fs, path = fsspec.core.url_to_fs(url, skip_instance_cache=True, **storage_options)
        except ImportError as error:
            raise UnsupportedError(
                f"{shown} needs a package that is not installed: {installation(url, error)}"
            ) from error
        except ValueError as error:
            if "not known" not in str(error):
                raise InvalidArgumentError(f"{shown} is no URL that fsspec understands") from error
            scheme = str(error).rpartition(" ")[2]
            raise UnsupportedError(
                f"Nothing serves {shown}: neither this package (file://, memory://, s3://, gs://, az://, http://, "
                f"sftp://), nor fsspec; a package of others may, by an entry point {scheme} in ocdbt_py.backends"
            ) from error
        except TypeError as error:
            raise InvalidArgumentError(
                f"The filesystem of {shown} takes other storage_options, or needs more: see its documentation in fsspec"
            ) from error
        except Exception as error:
            raise failure_of(error, shown, "") from error
        if protocol_of(fs) == "dir":
            if url.startswith("dir::"):
                path = ""  # fsspec repeats that of the next link
            place = resolve(PurePosixPath(path), fs=fs, settings=settings)
            return place.storage, place.path
        path = path.rstrip("/")
        head, separator, tail = shown.partition("::")
        scheme, _, rest = head.partition("://")
        authority = rest.rstrip("/").removesuffix(path.strip("/")).rstrip("/") if path else rest.rstrip("/")
        return cls(owned(fs), f"{scheme}://{authority}", separator + tail), path

    @classmethod
    def from_fs(cls, fs: Any, path: str, settings: Settings) -> tuple[Storage, str]:
        host = getattr(fs, "host", None)
        found = cls(fs, f"{protocol_of(fs)}://{host if isinstance(host, str) else ''}")
        return found, fs._strip_protocol(path).rstrip("/")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GenericStorage) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash((type(self._given), self._prefix))

    def __repr__(self) -> str:
        return f"GenericStorage({self.describe('')})"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in _OF_THIS_PROCESS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def _identity(self) -> tuple[Any, ...]:
        fs = self._given
        options = {name: value for name, value in fs.storage_options.items() if name != "skip_instance_cache"}
        return type(fs), fs.storage_args, options

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    def describe(self, path: str) -> str:
        return _described(self._prefix, self._suffix, path)

    # --- reading

    def read(
        self, path: str, start: int = 0, stop: int | None = None, *, unless: Token | None = None
    ) -> Read | Literal[Unchanged.UNCHANGED]:
        return self._reading.read(path, start, stop, unless=unless)

    def read_many(self, ranges: Sequence[ByteRange]) -> list[bytes]:
        return self._reading.read_many(ranges)

    def read_many_into(self, fillings: Sequence[Filling]) -> None:
        self._reading.read_many_into(fillings)

    def map(self, path: str) -> memoryview:
        raise UnsupportedError("Files of this filesystem are not mapped; read them")

    def list(self, prefix: str, *, deep: bool = False) -> Iterator[Listed]:
        stem = prefix.rpartition("/")[2]
        return self._list(prefix.removesuffix(stem), stem, DEEPEST if deep else 0)

    def _list(self, above: str, stem: str, levels: int) -> Iterator[Listed]:
        """``above`` ends in a slash, or is empty: some filesystems have paths that begin with one, and some do not."""
        directory = above.removesuffix("/")
        for name, size in self._attempts.do(directory, lambda fs: self._directories.entries(fs, directory)):
            path = f"{above}{name}"
            if not name.startswith(stem) or name.endswith(TEMPORARY):
                continue
            if size is not None:
                yield Listed(path, size)
            elif levels:
                yield from self._list(f"{path}/", "", levels - 1)
            else:
                yield Listed(f"{path}/", None)

    # --- writing

    def write(self, path: str, buffers: Sequence[Buffer], if_version: Token | Condition = ANY) -> Token:
        self._demand_writable(path)
        return self._writing.write(path, buffers, if_version)

    def create(self, path: str) -> Writer:
        self._demand_writable(path)
        return NewFile(self._writing, path)

    def put(self, path: str, buffers: Sequence[Buffer]) -> None:
        self._demand_writable(path)
        self._writing.put(path, buffers)

    def delete(self, path: str) -> None:
        self._demand_writable(path)
        if not path.strip("/"):
            raise InvalidArgumentError("The root of the filesystem is not deleted")
        if path.endswith("/"):
            self._attempts.do(path, lambda fs: self._directories.delete(fs, path.rstrip("/"), DEEPEST), reading=False)
        else:
            self._attempts.do(path, lambda fs: self._directories.remove(fs, path), reading=False)

    def rename(self, source: str, target: str) -> None:
        raise UnsupportedError(f"{self.describe(source)}: not every filesystem moves a directory in one step; copy it")

    def sync(self, paths: Iterable[str]) -> None:
        """fsspec has no words for it: what a server has acknowledged is all there is."""

    def grow(self, path: str) -> Growing:
        raise UnsupportedError("Files of this filesystem do not grow; put another one")

    def hold(self, path: str, timeout: float, note: Note | None = None) -> AbstractContextManager[Hold]:
        raise UnsupportedError("Writers of this filesystem cannot wait for each other")

    def _demand_writable(self, path: str) -> None:
        if not self._capabilities.writable:
            raise UnsupportedError(f"{self.describe(path)} can only be read; write elsewhere and copy it there")


def _described(prefix: str, suffix: str, path: str) -> str:
    shown = safe_path(path)
    between = "/" if shown and not shown.startswith("/") and not prefix.endswith("/") else ""
    return f"{prefix}{between}{shown}{suffix}"
