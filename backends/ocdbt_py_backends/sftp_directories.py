"""Directories on an SFTP server, as a session deals with them: what is in them, and how they come, move and go.

A file's directories are made when they turn out to be missing, not looked for before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import islice
from typing import TypeVar

from ocdbt_py.errors import AlreadyExistsError, StorageError
from ocdbt_py_backends.sftp_conversation import NO_SUCH_FILE, Refused
from ocdbt_py_backends.sftp_failures import refusal
from ocdbt_py_backends.sftp_packets import Attributes
from ocdbt_py_backends.sftp_session import Session

__all__ = ["Directories", "remove"]

_REMOVED_TOGETHER = 64

T = TypeVar("T")


class Directories:
    """``describe`` says in messages where a path is; ``durable``: the server waits for its disk where it can."""

    def __init__(self, describe: Callable[[str], str], *, durable: bool) -> None:
        self._describe = describe
        self._durable = durable

    def entries(self, session: Session, directory: str, stem: str) -> Sequence[tuple[str, Attributes, str | None]]:
        """Of one directory; links are followed, and the third is where a link to a directory leads."""
        try:
            found = [entry for entry in session.listing(directory or "/") if entry[0].startswith(stem)]
        except Refused as error:
            if error.code == NO_SUCH_FILE:
                return []
            attributes = session.found(directory)
            if attributes is not None and not attributes.is_directory:
                return []
            raise
        entries: list[tuple[str, Attributes, str | None]] = []
        for name, attributes in found:
            real = None
            if attributes.is_link:
                path = f"{directory}/{name}"
                led = session.found(path)
                if led is None:
                    continue  # to nothing
                attributes = led
                real = session.real_path(path) if led.is_directory else None
            entries.append((name, attributes, real))
        return entries

    def with_parents(self, session: Session, path: str, function: Callable[[], T]) -> T:
        """The result of ``function``, which is tried again with the directories above ``path`` made."""
        try:
            return function()
        except Refused as error:
            if error.code != NO_SUCH_FILE:
                raise
        self.make(session, path.rpartition("/")[0])
        return function()

    def make(self, session: Session, directory: str) -> None:
        """With those above it, unless it is there."""
        if not directory:
            return
        try:
            session.make_directory(directory)
        except Refused as error:
            if error.code == NO_SUCH_FILE:
                self.make(session, directory.rpartition("/")[0])
                self.make(session, directory)
                return
            there = session.found(directory)
            if there is None:
                raise refusal(error, self._describe(directory), directory) from error
            if not there.is_directory:
                raise StorageError(
                    f"{self._describe(directory)} is a file, where a directory is needed",
                    kind="not-a-directory",
                    path=directory,
                ) from error
        else:
            self.sync(session, [directory.rpartition("/")[0]])

    def delete(self, session: Session, directory: str) -> None:
        """With all that is in it; symbolic links are not followed."""
        try:
            entries = list(session.listing(directory))
        except Refused as error:
            if error.code == NO_SUCH_FILE:
                return
            raise
        for name, attributes in entries:
            if attributes.is_directory:
                self.delete(session, f"{directory}/{name}")
        files = iter([f"{directory}/{name}" for name, attributes in entries if not attributes.is_directory])
        while together := list(islice(files, _REMOVED_TOGETHER)):
            remove(session, together)
        try:
            session.remove_directory(directory)
        except Refused as error:
            if error.code == NO_SUCH_FILE:
                return
            if list(session.listing(directory)):  # somebody put something there meanwhile
                self.delete(session, directory)
                return
            raise

    def move(self, session: Session, source: str, target: str) -> None:
        """Onto nothing, or onto an empty directory."""
        try:
            if session.can_replace:
                session.replace(source, target)
                return
            there = session.found(target)
            if there is not None and there.is_directory:
                session.remove_directory(target)
            session.rename(source, target)
        except Refused as error:
            if session.found(target) is None:
                raise
            raise AlreadyExistsError(
                f"{self._describe(target)} is there and not an empty directory", path=target
            ) from error

    def sync(self, session: Session, directories: Sequence[str]) -> None:
        """Have the server wait until the names in them are on its disk, where it can."""
        if self._durable and session.can_sync:
            with suppress(Refused):  # a server may sync files only
                session.sync([directory or "/" for directory in directories])


def remove(session: Session, paths: Sequence[str]) -> None:
    """Files, of which some may be gone already."""
    for error in session.remove(paths):
        if error is not None and error.code != NO_SUCH_FILE:
            raise error
