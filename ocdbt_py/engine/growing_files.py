"""The data files that small commits of one process append to, one commit after the other.

A new file is a file to be made, and a name to be made durable, for each commit, where bytes appended to a file wait for
the disk once. So a commit goes on where the one before it ended, in a file that nobody else writes to. What stands in
a file stays as it is for ever: nothing is ever cut off or written again, and after anything went wrong, in a forked
child, or where the file is not as it was left (the database was moved or removed), another one is begun.

Files end at :data:`LONGEST`, so that not much is lost with one, and little of what nobody refers to any more lies
beside what somebody does.
"""

from __future__ import annotations

import os

from ocdbt_py.engine.data_files import NameSource, random_name
from ocdbt_py.errors import OcdbtError
from ocdbt_py.storage.protocol import Growing, Storage

LONGEST = 256 << 10


class GrowingFiles:
    """One file for each prefix of names, below ``base``. Not for threads: one commit at a time."""

    def __init__(self, storage: Storage, base: str, names: NameSource = random_name) -> None:
        self._storage = storage
        self._base = base
        self._names = names
        self._files: dict[str, tuple[str, Growing]] = {}
        self._process = os.getpid()

    def take(self, prefix: str) -> tuple[str, Growing]:
        """A file's name below ``base``, and the file, which nobody else is given before :meth:`keep`."""
        if self._process != os.getpid():
            self._files.clear()  # our parent goes on with them
            self._process = os.getpid()
        name, file = self._files.pop(prefix, ("", None))
        if file is not None:
            if _is_there(file):
                return name, file
            file.close()
        name = prefix + self._names()
        return name, self._storage.grow(f"{self._base}/{name}")

    def keep(self, prefix: str, name: str, file: Growing) -> None:
        """All of it is on the disk; the next commit may go on."""
        if file.size < LONGEST and prefix not in self._files:
            self._files[prefix] = name, file
        else:
            file.close()

    def close(self) -> None:
        """Of those that nobody has; there will be others."""
        while self._files:
            _, (_, file) = self._files.popitem()
            file.close()


def _is_there(file: Growing) -> bool:
    try:
        return file.is_there()
    except OcdbtError:
        return False
