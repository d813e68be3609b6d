"""The protocol every backend meets, shaped by what the layers above must never go around.

A ``Storage`` is one filesystem or bucket. Paths in it are ``str``, ``/`` between components, as the backend's own
:func:`~ocdbt_py.storage.location.resolve` gave them; bytes that are not UTF-8 travel as surrogate escapes. Files are
immutable once seen, except through :meth:`Storage.write`, which replaces one whole and atomically, and
:meth:`Storage.grow`, which leaves the bytes that are there as they are.

Three things are deliberate:

* **Bytes and version come from one response** (:class:`Read`), and a write says which version it replaces. That is all
  a manifest needs to be shared, and nothing built from two calls can give it.
* **Callers ask** :class:`Capabilities`, **never a scheme or a class**. A backend that cannot do something says so
  there; the engine decides from it (single or numbered manifests, read only or not).
* **Errors are ours already** (:mod:`ocdbt_py.errors`): an absent file is ``PathNotFoundError``, an unmet condition
  ``ConflictError`` (kind ``condition``), a name already taken ``AlreadyExistsError``, refused access
  ``StoragePermissionError``, anything else ``StorageError`` with the backend's own exception as its cause. Two kinds
  of the last matter to a commit: ``ambiguous``, it may have happened; ``not-durable``, it did, and may not survive.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

Buffer: TypeAlias = bytes | bytearray | memoryview
"""Bytes to be written. A memoryview is contiguous, of format ``B``."""

Token: TypeAlias = Hashable
"""Which content of a file was seen (an ETag, a generation, inode and time). Only to be compared."""

ByteRange: TypeAlias = tuple[str, int, int]
"""(path, start, stop) with 0 <= start <= stop."""

Filling: TypeAlias = tuple[str, int, memoryview]
"""(path, start, buffer): a writable, contiguous buffer of format ``B`` to be filled from ``start`` on."""


class Condition(enum.Enum):
    """What a write may replace, when it is not one particular version."""

    ANY = "any"
    ABSENT = "absent"


class Unchanged(enum.Enum):
    """The answer of a read whose ``unless`` token is still the current one."""

    UNCHANGED = "unchanged"


ANY: Literal[Condition.ANY] = Condition.ANY
ABSENT: Literal[Condition.ABSENT] = Condition.ABSENT
UNCHANGED: Literal[Unchanged.UNCHANGED] = Unchanged.UNCHANGED


class Read(NamedTuple):
    """Part of a file, the token of the content it belongs to, and the size of the whole file in bytes."""

    data: bytes
    token: Token
    size: int


class Listed(NamedTuple):
    """One name of a listing: a file with its size in bytes, or a directory (path ends in ``/``) with size None."""

    path: str
    size: int | None


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a storage promises. False is always honest; true is a promise that tests hold it to."""

    cas: bool = False
    """``write`` with a token or ABSENT is atomic among all writers everywhere."""
    create: bool = False
    """``create`` and ``write(ABSENT)`` let exactly one of many writers win."""
    atomic_write: bool = False
    """A reader sees the old content or the new, never a mixture or a part."""
    ranges: bool = False
    """Reading a range costs that range."""
    list: bool = False
    rename: bool = False
    """A directory can be renamed in one atomic step."""
    map: bool = False
    hold: bool = False
    grow: bool = False
    """To append to a file costs less than to make another."""
    durable: bool = False
    """``sync`` returned means: survives a power failure."""
    writable: bool = False
    conditions_unproven: bool = False
    """``cas`` and ``create`` are what the protocol promises, but this endpoint may be a server that ignores them."""
    endpoint: str = ""
    """Host and port of the server, where URLs do not name it."""
    file_bytes: int = 0
    """Data files of about this size are written best; 0: the larger, the better."""
    parallel: int = 1
    """So many files are best written at once."""


class Writer(Protocol):
    """One new file, written front to back in bounded memory, seen by nobody before ``close``."""

    def write(self, buffers: Sequence[Buffer]) -> None:
        """Append; nothing of the buffers is referenced after the return."""

    def close(self) -> None:
        """Make the file visible under its name, whole."""

    def abort(self) -> None:
        """Leave nothing behind. Does nothing after ``close`` or another ``abort``."""


class Growing(Protocol):
    """A file of the holder's own, seen by others from the first append on. Not for threads to share, nor forks."""

    size: int

    def append(self, buffers: Sequence[Buffer]) -> None:
        """It is on its way to the disk. After an error nobody knows how much of it is there, and nothing more is to be
        appended."""

    def sync(self) -> None:
        """Return once what was appended survives a crash; as :meth:`Storage.sync`, at once where not asked for."""

    def is_there(self) -> bool:
        """Whether the file is still under its name, and ends where the last append did."""

    def close(self) -> None:
        """Let go of it. What was appended stays."""


@dataclass(slots=True)
class Note:
    """What a writer who has to wait would have the holder do along with its own; ``write`` says it, if need be.

    After the wait: whether some holder had ``taken`` it, whether that one said that it is ``done``, in which case
    nothing is held, and else its ``promise``. Who made the promise holds no more, whatever became of it.
    """

    write: Callable[[], bytes]
    patience: float = 0.0
    """Seconds to leave the turn to others, though nobody may be holding: one is likely to come and take the note."""
    taken: bool = False
    done: bool = False
    promise: bytes = b""
    company: int = 0
    """How many notes that holder did together."""


class TakenNote(Protocol):
    """A note in the hands of the holder. It need not do what is asked; the writer then does it when its turn comes."""

    data: bytes

    def promise(self, token: bytes) -> None:
        """At most 48 bytes, said before it is done: how the writer can find out whether it was."""

    def done(self) -> None:
        """It is done, for good. The writer learns so at the end of the hold, and need not wait any longer."""


class Hold(Protocol):
    """The queue for one file has been passed: cooperating writers of it wait, until one write was put in place, for
    which a hold is meant, or else until it is released."""

    def take_notes(self, expected: int = 0, patience: float = 0.0) -> Sequence[TakenNote]:
        """What those who wait have left, for us and nobody else; as soon as there are so many, or after ``patience``
        seconds."""

    def write(self, buffers: Sequence[Buffer], if_version: Token | Condition = ANY) -> Token:
        """As :meth:`Storage.write` for the held path."""

    def begin(self, buffers: Sequence[Buffer]) -> Callable[[Token | Condition], Token]:
        """Begin such a write, with its wait for the disk; nobody sees anything before what is returned was called."""


@runtime_checkable
class Storage(Protocol):
    """One filesystem or bucket. Safe for threads; every method blocks until done.

    Two storages are equal where the same path means the same file in both, however they write it.
    """

    @property
    def capabilities(self) -> Capabilities: ...

    def describe(self, path: str) -> str:
        """A URL for messages: no user info, no query, no credentials."""

    def read(
        self, path: str, start: int = 0, stop: int | None = None, *, unless: Token | None = None
    ) -> Read | Literal[Unchanged.UNCHANGED]:
        """Bytes ``[start, stop)``, cut at the end of the file, and the token, all from one response."""

    def read_many(self, ranges: Sequence[ByteRange]) -> list[bytes]:
        """Each range exactly, in the order asked; a file too short is ``CorruptDataError``.

        For bytes that never change once seen (of data files): they may come from a cache, and in several requests.
        """

    def read_many_into(self, fillings: Sequence[Filling]) -> None:
        """As :meth:`read_many`, into the caller's memory; after an error the buffers hold anything."""

    def write(self, path: str, buffers: Sequence[Buffer], if_version: Token | Condition = ANY) -> Token:
        """Replace a small file whole; its parent directories come into being. Durable where asked for."""

    def create(self, path: str) -> Writer:
        """Begin a new file, of any size; a name already taken is ``AlreadyExistsError``, at the latest at ``close``."""

    def put(self, path: str, buffers: Sequence[Buffer]) -> None:
        """A whole new file, of any size, straight from the buffers; a name already taken is ``AlreadyExistsError``."""

    def grow(self, path: str) -> Growing:
        """Begin a new, empty file that is to be appended to; a name already taken is ``AlreadyExistsError``."""

    def delete(self, path: str) -> None:
        """Remove a file, or, when the path ends in ``/``, a directory and all below it. Absent is fine."""

    def list(self, prefix: str, *, deep: bool = False) -> Iterator[Listed]:
        """Names that start with ``prefix``, in no order: to the next ``/`` only, or with ``deep`` every file below.

        ``prefix`` is a plain string prefix of the whole path (``a/b/`` lists a directory, ``a/b/manifest.`` some of its
        files). Nothing there is no error. Names that are the backend's own (lock and temporary files) are left out.
        """

    def rename(self, source: str, target: str) -> None:
        """Move a directory to a name that is absent or an empty directory; else ``AlreadyExistsError``."""

    def sync(self, paths: Iterable[str]) -> None:
        """Return once these files, and the directories that name them, survive a crash; at once where not asked for."""

    def map(self, path: str) -> memoryview:
        """The whole file as a private, writable copy-on-write memory map."""

    def hold(self, path: str, timeout: float, note: Note | None = None) -> AbstractContextManager[Hold]:
        """Wait for the right to replace ``path``; ``WaitTimeoutError`` after ``timeout`` seconds.

        A storage may have a ``note`` taken by a holder before us. One that is not is as if it had never been.
        """
