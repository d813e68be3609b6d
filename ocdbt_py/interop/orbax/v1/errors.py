"""The errors of Orbax's v1 API by its names; each is also the error of this package that it amounts to."""

from __future__ import annotations

from ocdbt_py.errors import ConflictError, InvalidArgumentError, KeyNotFoundError

__all__ = [
    "DeletionInProgressError",
    "DeletionRecoveryError",
    "FrozenContextError",
    "InvalidLayoutError",
    "NoEntryError",
]


class InvalidLayoutError(InvalidArgumentError):
    """The directory is no checkpoint, is another kind of one than was asked for, or was never finished."""

    default_kind = "invalid-layout"


class NoEntryError(KeyNotFoundError):
    """No handler is registered for an object, or the one that is cannot read what lies there."""

    default_kind = "no-handler"


class FrozenContextError(InvalidArgumentError, RuntimeError):
    """An option of a context was to be changed while a ``with`` block uses it."""

    default_kind = "frozen-context"


class DeletionInProgressError(ConflictError, RuntimeError):
    """The deletion of this item was begun and has not ended."""

    default_kind = "being-deleted"


class DeletionRecoveryError(ConflictError, RuntimeError):
    """The deletion of another item of this checkpoint was begun and has not ended."""

    default_kind = "being-deleted"
