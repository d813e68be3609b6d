"""Small commits of writers who wait, made by the one whose turn it is: many processes then share one wait for the disk.

A writer that queues for the manifest leaves a :class:`~ocdbt_py.storage.protocol.Note` of what it would put and delete.
Whoever holds the manifest does that along with its own, in the same version, as the threads of one process do for each
other. Only what depends on nothing travels: no condition, no range, no value that lies in a file of the writer's own.

    note        uuid of the database, then of each key: u32 length, i32 length of the value (-1: deleted), key, value
    promise     u64 generation, and a digest of the version that the note's changes will be in

A holder that dies leaves its promise, and the history tells whether it was kept: while the manifest is held nobody
changes it.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from ocdbt_py.engine.data_files import DataFiles
from ocdbt_py.engine.mutations import Staged
from ocdbt_py.engine.nodes import Nodes
from ocdbt_py.engine.versions import by_generation
from ocdbt_py.format.config import StoredConfig
from ocdbt_py.format.datafile import Location
from ocdbt_py.format.manifest import Manifest
from ocdbt_py.format.versions import VersionEntry
from ocdbt_py.storage.protocol import Hold, TakenNote

__all__ = ["Company", "is_kept", "note_of", "take_along", "travels"]

_MOST_KEYS: Final = 1024
"""More keys than this are neither left for others nor joined with what others have left: it would be their time."""

_LONGEST_PATIENCE = 0.002
_UUID_BYTES = 16
_LENGTHS = struct.Struct("<Ii")
_DELETED = -1
_PROMISE = struct.Struct("<Q32s")


@dataclass(slots=True)
class Company:
    """How many others committed along the last time, and how long that took, in seconds.

    Who has just been served comes again in a moment. To wait for them costs that moment; to go ahead without them has
    each of them wait for a whole commit more. So the next holder waits, for a part of the time that is at stake.
    """

    others: int = 0
    seconds: float = 0.0
    served_at: float = -float("inf")

    @property
    def patience(self) -> float:
        return min(self.seconds / 2, _LONGEST_PATIENCE) if self.others else 0.0

    @property
    def deference(self) -> float:
        """How long to leave the turn to whoever has just served us. It comes again as we do, and has at hand what it
        wrote last, which the next one would have to read."""
        return self.patience if time.monotonic() - self.served_at < _LONGEST_PATIENCE else 0.0

    def was_there(self, others: int, seconds: float) -> None:
        """Another one has just committed ours along with its own, and so many in all; we waited that long for it."""
        self.others, self.seconds, self.served_at = max(others, 1), seconds, time.monotonic()


@dataclass(frozen=True, slots=True)
class Along:
    """What one writer commits together with what the notes in its hands ask for."""

    staged: Staged
    notes: Sequence[TakenNote]
    begun: float

    def promise(self, version: VersionEntry) -> None:
        """To be said before the version can be seen."""
        for note in self.notes:
            note.promise(_promise_of(version))

    def done(self, company: Company) -> None:
        """The version is there, for good."""
        for note in self.notes:
            note.done()
        company.others, company.seconds = len(self.notes), time.monotonic() - self.begun


def take_along(
    staged: Staged, hold: Hold | None, config: StoredConfig, company: Company, prefix: str, data_files: DataFiles
) -> Along:
    """What is staged, and over it what those who wait have left."""
    begun = time.monotonic()
    if hold is None or len(staged.keys) > _MOST_KEYS:
        return Along(staged, (), begun)
    notes = [
        note
        for note in hold.take_notes(company.others, company.patience)
        if note.data[:_UUID_BYTES] == config.uuid  # else another database was here when it was written
    ]
    if notes:
        changes = {key: value for note in notes for key, value in _changes(note.data)}
        staged = staged.joined(changes, config.max_inline_value_bytes, prefix, data_files)
    return Along(staged, notes, begun)


def travels(staged: Staged) -> bool:
    """Whether another writer can do all of this."""
    return len(staged.keys) <= _MOST_KEYS and not staged.ranges and not staged.puts.files


def note_of(staged: Staged, config: StoredConfig) -> bytes:
    """What is put and deleted, all of it inline, in a database with this configuration."""
    pieces = [config.uuid]
    for key, value in staged.placed().items():
        assert not isinstance(value, Location)
        pieces += (_LENGTHS.pack(len(key), _DELETED if value is None else len(value)), key, value or b"")
    return b"".join(pieces)


def _changes(data: bytes) -> Iterator[tuple[bytes, bytes | None]]:
    at = _UUID_BYTES
    while at < len(data):
        key_length, value_length = _LENGTHS.unpack_from(data, at)
        at += _LENGTHS.size
        key = data[at : at + key_length]
        at += key_length
        yield key, None if value_length == _DELETED else data[at : at + value_length]
        at += max(value_length, 0)


def _promise_of(version: VersionEntry) -> bytes:
    digest = blake2b(repr(version).encode(), digest_size=32).digest()
    return _PROMISE.pack(version.generation, digest)


def is_kept(promise: bytes, manifest: Manifest, nodes: Nodes) -> bool:
    """Whether the history holds the version that was promised."""
    generation, _ = _PROMISE.unpack(promise)
    version = by_generation(manifest, generation, nodes)
    return version is not None and _promise_of(version) == promise
