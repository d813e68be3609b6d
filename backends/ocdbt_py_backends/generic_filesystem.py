"""What the generic backend knows of single filesystems of fsspec, beyond the interface that all of them have: which can
be written, which move a file in one step, which take turns, and how one is made again or let go of.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import finalize

import fsspec
from fsspec.archive import AbstractArchiveFileSystem
from fsspec.asyn import AsyncFileSystem
from fsspec.registry import known_implementations
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from ocdbt_py.errors import StorageError
from ocdbt_py_backends.body import Body

__all__ = [
    "MOVES",
    "PIECE_BYTES",
    "installation",
    "is_frozen",
    "is_writable",
    "let_go",
    "owned",
    "protocol_of",
    "renewed",
    "turn_on",
    "upload",
]

_FROZEN = {"zip", "tar", "libarchive", "archive", "data", "reference", "git", "github", "gist"}
_ALSO_READ_ONLY = {"http", "https", "jupyter", "jlab"}


def _move_by_renaming(fs: Any, source: str, target: str) -> None:
    fs.mv(source, target)


def _move_over(fs: Any, source: str, target: str) -> None:
    fs.client.move(source, target, overwrite=True)  # its own mv copies, and never onto a file


MOVES: dict[str, Callable[[Any, str, str], None]] = {
    "ftp": _move_by_renaming,
    "webdav": _move_over,
    "dav": _move_over,
}
"""Where a file is moved in one step."""

PIECE_BYTES = 4 << 20
"""So many are sent at a time."""

_PATIENCE = 600.0
_TURN = "_ocdbt_py_turn"


@contextmanager
def turn_on(fs: Any, shown: str, path: str) -> Iterator[None]:
    """Wait until no other thread uses the filesystem, but for those made for many threads.

    The lock is the filesystem's own: whoever else has an equal one has other connections.
    """
    if isinstance(fs, AsyncFileSystem):
        yield
        return
    turn: threading.Lock = fs.__dict__.setdefault(_TURN, threading.Lock())
    if not turn.acquire(timeout=_PATIENCE):
        raise StorageError(f"{shown}: another thread has used the connection for too long", kind="timeout", path=path)
    try:
        yield
    finally:
        turn.release()


def renewed(fs: Any) -> Any:
    """Another filesystem of the same kind, with connections of its own."""
    return owned(type(fs)(*fs.storage_args, **{**fs.storage_options, "skip_instance_cache": True}))


def owned(fs: Any) -> Any:
    """A filesystem that we made, whose connections are closed when it goes: webdav4's do not close themselves."""
    if protocol_of(fs) in ("webdav", "dav"):
        finalize(fs, fs.client.http.close)
    return fs


def protocol_of(fs: Any) -> str:
    """The first of its names."""
    return fs.protocol if isinstance(fs.protocol, str) else str(fs.protocol[0])


def _protocols_of(fs: Any) -> set[str]:
    return {fs.protocol} if isinstance(fs.protocol, str) else {*fs.protocol}


def is_frozen(fs: Any) -> bool:
    """Whether it is read only, and what was opened does not change: asked once is enough."""
    return bool(_protocols_of(fs) & _FROZEN) or isinstance(fs, AbstractArchiveFileSystem)


def is_writable(fs: Any) -> bool:
    """Whether the filesystem has its own ways of making files and of removing them, and is not known to have none."""
    if is_frozen(fs) or _protocols_of(fs) & _ALSO_READ_ONLY:
        return False

    def has_own(*names: str) -> bool:
        return any(
            getattr(type(fs), name, None) not in (None, getattr(AbstractFileSystem, name, None))
            and getattr(type(fs), name) is not getattr(AsyncFileSystem, name, None)
            for name in names
        )

    return has_own("_open", "open", "pipe_file", "_pipe_file") and has_own("rm_file", "_rm_file", "_rm", "rm")


def upload(fs: Any, name: str, body: Body) -> None:
    """Make a file, or replace it, in bounded memory."""
    if len(body) <= PIECE_BYTES:
        fs.pipe_file(name, body.joined())
        return
    file = fs.open(name, "wb")
    try:
        for piece in body.pieces(PIECE_BYTES):
            file.write(piece)
        file.close()
    except BaseException:
        let_go(file)
        raise


def let_go(file: Any) -> None:
    """Of a file that is not to be: closing it would send the rest."""
    if isinstance(file, AbstractBufferedFile):
        file.closed = True
    elif hasattr(file, "discard"):
        file.discard()
    else:
        file.close()


def installation(url: str, error: ImportError) -> str:
    """What to install for the link of a chain that could not be imported, in fsspec's words if it has any."""
    for link in url.split("::"):
        scheme = link.partition("://")[0]
        try:
            fsspec.get_filesystem_class(scheme)
        except ImportError:
            said = known_implementations.get(scheme, {}).get("err")
            if said:
                return str(said)
        except ValueError:
            continue
    name = error.name or getattr(error.__cause__, "name", None)
    return f"install {name}" if name else "see fsspec's documentation of this filesystem"
