"""Whether an endpoint keeps the conditions it accepts, found out by asking it.

Some servers that speak a store's protocol take the condition of a write, answer as if all were well, and write whatever
the condition said: every writer believes to have won, and commits are lost without a word. One writer alone can see
that: it creates a name twice, and replaces a content that is not there any more. What no probe can see is a server that
checks and writes in two steps.
"""

from __future__ import annotations

import os
from contextlib import suppress

from ocdbt_py.errors import ConflictError, OcdbtError, PathNotFoundError, StorageError, UnsupportedError
from ocdbt_py.storage.protocol import ABSENT, Condition, Read, Storage, Token

__all__ = ["prove_conditions"]


def prove_conditions(storage: Storage, base: str) -> None:
    """Raise :class:`UnsupportedError` where the storage of ``base`` ignores the condition of a write.

    Tries it with a file of a random name below ``base``, which is removed again.
    """
    path = f"{base}/probe-{os.urandom(16).hex()}"
    try:
        first = _written(storage, path, b"1", ABSENT)
        if not _is_refused(storage, path, b"2", ABSENT):
            raise _unsupported(storage, base, "that a new file must not exist yet")
        if storage.capabilities.cas:
            _written(storage, path, b"3", first)
            if not _is_refused(storage, path, b"4", first):
                raise _unsupported(storage, base, "which content a write may replace")
    finally:
        with suppress(OcdbtError):
            storage.delete(path)


def _written(storage: Storage, path: str, data: bytes, condition: Token | Condition) -> Token:
    """The token of a write whose condition holds; its answer may be lost, or the write be repeated by the client."""
    try:
        return storage.write(path, [data], condition)
    except (ConflictError, StorageError) as error:
        if not isinstance(error, ConflictError) and error.kind != "ambiguous":
            raise
        found = _content(storage, path)
        if found is None or found.data != data:
            raise
        return found.token


def _is_refused(storage: Storage, path: str, data: bytes, condition: Token | Condition) -> bool:
    """Whether a write whose condition does not hold leaves the file as it is."""
    with suppress(ConflictError, StorageError):
        storage.write(path, [data], condition)
        return False
    found = _content(storage, path)
    return found is not None and found.data != data


def _content(storage: Storage, path: str) -> Read | None:
    try:
        found = storage.read(path)
    except PathNotFoundError:
        return None
    assert isinstance(found, Read)
    return found


def _unsupported(storage: Storage, base: str, condition: str) -> UnsupportedError:
    url = storage.describe(base)
    named = " ".join(filter(None, ["The endpoint", storage.capabilities.endpoint, "of", url]))
    return UnsupportedError(
        f"{named} accepts the condition of a write and ignores it ({condition}), so one writer would lose another's "
        "commits; use an endpoint with conditional writes (If-Match, If-None-Match), or, if nobody else writes this "
        "database, say single_writer=True",
        kind="conditions-ignored",
        url=url,
    )
