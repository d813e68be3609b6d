"""Errors that are both ours and what a program written for Orbax catches."""

from __future__ import annotations

from ocdbt_py.errors import AlreadyExistsError, NotFoundError, PathNotFoundError, UncommittedError

__all__ = [
    "DestinationExistsError",
    "IncompleteCheckpointError",
    "ItemNotFoundError",
    "MissingDirectoryError",
    "StepAlreadyExistsError",
    "StepNotFoundError",
]


class StepAlreadyExistsError(AlreadyExistsError, ValueError):
    """The manager has this step already."""

    default_kind = "step-exists"


class DestinationExistsError(AlreadyExistsError, ValueError):
    """There is something where the checkpoint is to go."""


class StepNotFoundError(PathNotFoundError):
    """There is no such step, or none at all."""

    default_kind = "step-not-found"


class MissingDirectoryError(PathNotFoundError):
    """There is no checkpoint."""

    default_kind = "checkpoint-not-found"


class ItemNotFoundError(NotFoundError, KeyError):
    """A checkpoint has no such item."""

    default_kind = "item-not-found"


class IncompleteCheckpointError(UncommittedError, ValueError):
    """The checkpoint was never finished."""
