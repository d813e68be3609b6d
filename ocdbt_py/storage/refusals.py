"""What is said alike of every storage when a file is not what a caller took it for; where it lies, the backend says.

``shown`` is the place as messages name it (:meth:`~ocdbt_py.storage.protocol.Storage.describe`), ``path`` the path in
the storage, which the error carries.
"""

from __future__ import annotations

from ocdbt_py.errors import AlreadyExistsError, ConflictError, CorruptDataError

__all__ = ["changed", "taken", "too_short"]


def changed(shown: str, path: str) -> ConflictError:
    """The condition of a write is not met."""
    return ConflictError(
        f"{shown} is not what the write was to replace: another writer was faster", kind="condition", path=path
    )


def taken(shown: str, path: str) -> AlreadyExistsError:
    """A new file was to have this name."""
    return AlreadyExistsError(f"{shown} is there already", path=path)


def too_short(shown: str, path: str, start: int, stop: int, size: int | None) -> CorruptDataError:
    """Bytes ``[start, stop)`` are wanted of a file that never changes, and it has ``size``."""
    return CorruptDataError(
        f"{shown} ends at byte {size}, but bytes {start} to {stop} of it are needed; it was cut or is another one",
        path=path,
        offset=start,
    )
