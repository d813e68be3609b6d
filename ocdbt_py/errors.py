"""Every error a user can meet, in one tree, grouped by what a handler would do about it.

    OcdbtError
    ├── NotFoundError             nothing there            look elsewhere, or create it
    │   ├── KeyNotFoundError          (also KeyError)
    │   ├── PathNotFoundError         (also FileNotFoundError)
    │   └── UncommittedError      a checkpoint that was never finished
    ├── AlreadyExistsError        something there already  (also FileExistsError)
    ├── CorruptDataError          the bytes are wrong      check or repair the database
    ├── ConflictError             somebody else was faster try again
    ├── ConfigMismatchError       the stored configuration is another one
    ├── StructureError            target and checkpoint differ    (also ValueError)
    ├── UnsupportedError          cannot be done here, and what to do instead
    ├── InvalidArgumentError      the call is wrong        (also ValueError)
    │   └── InvalidTypeError          (also TypeError)
    ├── WaitTimeoutError          gave up waiting          (also TimeoutError)
    └── StorageError              the backend failed; its own error is ``__cause__``
        └── StoragePermissionError    (also PermissionError)

Each carries ``kind``, a fixed string that never changes once released, and where known ``url`` (of the database or
checkpoint), ``path`` (of a file), ``key`` and ``offset`` (in that file). The message says what, where, and what to do.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

__all__ = [
    "AlreadyExistsError",
    "ConfigMismatchError",
    "ConflictError",
    "CorruptDataError",
    "InvalidArgumentError",
    "InvalidTypeError",
    "KeyNotFoundError",
    "NotFoundError",
    "OcdbtError",
    "PathNotFoundError",
    "StorageError",
    "StoragePermissionError",
    "StructureError",
    "UncommittedError",
    "UnsupportedError",
    "WaitTimeoutError",
]


class OcdbtError(Exception):
    """Base of all errors of this package; itself never raised."""

    default_kind: ClassVar[str] = "error"

    def __init__(
        self,
        message: str,
        *,
        kind: str | None = None,
        url: str | None = None,
        path: str | None = None,
        key: bytes | str | None = None,
        offset: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.kind = kind or self.default_kind
        self.url = url
        self.path = path
        self.key = key
        self.offset = offset

    def located(
        self,
        *,
        url: str | None = None,
        path: str | None = None,
        key: bytes | str | None = None,
        offset: int | None = None,
    ) -> Self:
        """The same error, with the places that were not known where it arose filled in."""
        self.url = self.url if self.url is not None else url
        self.path = self.path if self.path is not None else path
        self.key = self.key if self.key is not None else key
        self.offset = self.offset if self.offset is not None else offset
        return self

    def __str__(self) -> str:
        # KeyError would print the repr of the message, OSError its errno.
        places = []
        if self.path is not None and self.path not in self.message:
            places.append(f"file {self.path}" + (f" at byte {self.offset}" if self.offset is not None else ""))
        elif self.offset is not None and "byte" not in self.message:
            places.append(f"at byte {self.offset}")
        if self.key is not None and repr(self.key) not in self.message:
            places.append(f"key {self.key!r}")
        if self.url is not None and self.url not in self.message:
            places.append(f"in {self.url}")
        return f"{self.message} [{', '.join(places)}]" if places else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.__dict__)


def _rebuild(cls: type[OcdbtError], message: str, state: dict[str, Any]) -> OcdbtError:
    error = cls(message)
    error.__dict__.update(state)
    return error


class NotFoundError(OcdbtError):
    """A database, version, key, file or step is not there."""

    default_kind = "not-found"


class KeyNotFoundError(NotFoundError, KeyError):
    """A key is absent from the version that was read."""

    default_kind = "key-not-found"


class PathNotFoundError(NotFoundError, FileNotFoundError):
    """A file or directory is absent."""

    default_kind = "path-not-found"


class UncommittedError(NotFoundError):
    """A checkpoint directory exists, but its writer never finished it."""

    default_kind = "uncommitted"


class AlreadyExistsError(OcdbtError, FileExistsError):
    """Something is there already, and the call may not replace it."""

    default_kind = "already-exists"


class CorruptDataError(OcdbtError):
    """Stored bytes break the format, or name files or ranges that are not there."""

    default_kind = "corrupt"


class ConflictError(OcdbtError):
    """A condition did not hold, or others kept committing first (kind ``contention``). Nothing was changed."""

    default_kind = "conflict"


class ConfigMismatchError(OcdbtError):
    """The stored configuration differs from what the caller demanded; the message names the field."""

    default_kind = "config-mismatch"


class StructureError(OcdbtError, ValueError):
    """A restore target and the stored tree differ; the message lists every difference."""

    default_kind = "structure"


class UnsupportedError(OcdbtError):
    """This backend, release or data type cannot do it; the message says what can."""

    default_kind = "unsupported"


class InvalidArgumentError(OcdbtError, ValueError):
    """An argument is out of range, contradicts another, or the object is closed or read only."""

    default_kind = "invalid-argument"


class InvalidTypeError(InvalidArgumentError, TypeError):
    """An argument is of a type that cannot be meant."""

    default_kind = "invalid-type"


class WaitTimeoutError(OcdbtError, TimeoutError):
    """A wait ended by its time limit; the message says for whom or what."""

    default_kind = "timeout"


class StorageError(OcdbtError):
    """The storage below failed in its own way; its exception is ``__cause__``.

    Kind ``ambiguous``: a conditional write whose answer was lost; it may or may not have happened.
    """

    default_kind = "storage"


class StoragePermissionError(StorageError, PermissionError):
    """The storage refused access."""

    default_kind = "permission"
