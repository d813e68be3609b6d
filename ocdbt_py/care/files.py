"""Which bytes of which data files are referred to: what is missing for that, and what lies there besides.

References are told in any order, a leaf's worth at a time. Of each file the ranges are kept, merged whenever they have
become many, so that memory grows with the number of separate pieces and not with the number of values.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ocdbt_py.array.allocation import ALIGNMENT
from ocdbt_py.care.report import Finding
from ocdbt_py.engine.data_files import PADDED_FROM, PAGE
from ocdbt_py.engine.nodes import file_path
from ocdbt_py.errors import CorruptDataError, NotFoundError
from ocdbt_py.format.btree import LeafNode
from ocdbt_py.format.datafile import DataFileId, Location
from ocdbt_py.format.manifest import MANIFEST_NAME, parse_numbered_manifest_name
from ocdbt_py.storage.protocol import Read, Storage

Ranges = NDArray[np.int64]
"""Starts and stops, two rows."""

_DATA_FILE = re.compile(r"[0-9a-f]{32}\Z")
_LOCK_SUFFIX = ".__lock"  # TensorStore's, and ours on local disks, whose listings leave them out


@dataclass(slots=True)
class _File:
    """A data file that is referred to. ``size`` None: it is not there, or ``path_fault`` says why it never could be."""

    name: str
    size: int | None
    path_fault: str | None = None
    ranges: list[Ranges] = field(default_factory=list)
    pending: int = 0
    merge_at: int = 1 << 16
    end: int = 0
    unreadable: int = 0
    first: tuple[bytes, int] | None = None

    def add(self, starts: NDArray[np.int64], stops: NDArray[np.int64]) -> None:
        self.ranges.append(np.stack((starts, stops)))
        self.pending += len(starts)
        if self.pending > self.merge_at:
            self.ranges = [self.merged()]
            self.pending = self.ranges[0].shape[1]
            self.merge_at = max(self.merge_at, 2 * self.pending)

    def merged(self) -> Ranges:
        """The same bytes as separate ranges in order."""
        starts, stops = np.concatenate(self.ranges, axis=1)
        order = np.argsort(starts, kind="stable")
        starts, reached = starts[order], np.maximum.accumulate(stops[order])
        begins = np.concatenate(([True], starts[1:] > reached[:-1]))
        ends = np.concatenate((begins[1:], [True]))
        return np.stack((starts[begins], reached[ends]))


class Files:
    """The files of the database at ``base`` (a path in ``storage``, without a trailing slash)."""

    def __init__(self, storage: Storage, base: str) -> None:
        self._storage = storage
        self._base = base
        self._files: dict[bytes, _File] = {}

    @cached_property
    def _listed(self) -> dict[str, int]:
        """Sizes by name below the database. Asked for after a manifest was read, so that all that it names is there."""
        if not self._storage.capabilities.list:
            return {}
        start = len(self._base) + 1
        listed = self._storage.list(self._base + "/", deep=True)
        return {item.path[start:]: item.size for item in listed if item.size is not None}

    @property
    def names(self) -> Collection[str]:
        """What lies below the database, as far as the storage can list it."""
        return self._listed.keys()

    @property
    def count(self) -> int:
        return sum(file.size is not None for file in self._files.values())

    @property
    def stored_bytes(self) -> int:
        return sum(file.size or 0 for file in self._files.values())

    def node(self, location: Location, key: bytes, generation: int) -> bool:
        """A node is referred to; whether its bytes are there."""
        file = self._file(location.file)
        return self._use(file, np.array([location.offset]), np.array([location.length]), [key], generation)

    def values(self, leaf: LeafNode, generation: int) -> bool:
        """The values of a leaf are referred to; whether the bytes of all of them are there."""
        readable = True
        entries = np.flatnonzero((leaf.file_ids >= 0) & (leaf.lengths > 0))  # an empty value needs no file
        entries = entries[np.argsort(leaf.file_ids[entries], kind="stable")]
        numbers, starts = np.unique(leaf.file_ids[entries], return_index=True)
        for number, run in zip(numbers.tolist(), np.split(entries, starts[1:]), strict=False):
            keys = _Picked(leaf.keys, run)
            file = self._file(leaf.files[number])
            readable &= self._use(file, leaf.offsets[run], leaf.lengths[run], keys, generation)
        return readable

    def damage(self) -> Iterator[Finding]:
        """Files that are not there, not whole, or not below the database: one finding each."""
        for file in self._files.values():
            if file.first is None:
                continue
            key, generation = file.first
            what = f"{file.unreadable:,} node{'s' * (file.unreadable > 1)} or values"
            if file.unreadable == 1:
                what = "a node or value"
            kind, problem = (
                "file-missing",
                (
                    f"Data file {file.name} is not there, and with it {what}, the first at key {key!r} of version "
                    f"{generation}; put the file back from a copy"
                ),
            )
            if file.path_fault is not None:
                kind, problem = "file-path", f"{file.path_fault} (for {what}, the first at key {key!r})"
            elif file.size is not None:
                kind, problem = (
                    "file-truncated",
                    (
                        f"Data file {file.name} has {file.size:,} bytes where {file.end:,} are referred to: {what} end "
                        f"beyond, the first at key {key!r} of version {generation}; put the file back from a copy"
                    ),
                )
            yield Finding(kind=kind, message=problem, path=file.name, key=key, generation=generation)

    def notes(self, *, numbered: bool, others: Sequence[str] = ()) -> Iterator[Finding]:
        """What no version refers to, if every reference was told. ``numbered``: so are the database's manifests.

        ``others``: files that belong there, and directories of such, with a slash at the end.
        """
        belonging = tuple(name for name in others if name.endswith("/"))
        databases = {name.rpartition("/")[0] for name in self._listed if name.endswith(f"/{MANIFEST_NAME}")}
        below: dict[str, int] = {}
        used = {file.name: file for file in self._files.values()}
        for name, size in sorted(self._listed.items()):
            other = next((directory for directory in _directories(name) if directory in databases), None)
            if other is not None:
                below[other] = below.get(other, 0) + size
            elif name in used:
                yield from _unused(used[name])
            elif name == MANIFEST_NAME or (numbered and parse_numbered_manifest_name(name) is not None):
                continue
            elif name not in others and not name.startswith(belonging):
                yield _not_used(name, size)
        for other, size in below.items():
            yield Finding(
                kind="other-database",
                message=f"{other} is a database of its own; keep it while this one refers to it",
                path=other,
                nbytes=size,
            )

    def _file(self, file_id: DataFileId) -> _File:
        file = self._files.get(file_id.path)
        if file is None:
            name = file_id.path.decode("utf-8", "surrogateescape")
            try:
                path = file_path(self._base, file_id)
            except CorruptDataError as error:
                file = _File(name, None, error.message)
            else:
                size = self._listed.get(name)
                file = _File(name, self._size(path) if size is None else size)
            self._files[file_id.path] = file
        return file

    def _size(self, path: str) -> int | None:
        """Of a file that no listing named, which proves nothing."""
        try:
            found = self._storage.read(path, 0, 0)
        except NotFoundError:
            return None
        assert isinstance(found, Read)
        return found.size

    def _use(
        self,
        file: _File,
        offsets: NDArray[np.int64],
        lengths: NDArray[np.int64],
        keys: Sequence[bytes] | _Picked,
        generation: int,
    ) -> bool:
        stops = offsets + lengths
        file.add(offsets, stops)
        file.end = max(file.end, int(stops.max()))
        beyond = np.flatnonzero(stops > (-1 if file.size is None else file.size))
        if not len(beyond):
            return True
        file.unreadable += len(beyond)
        if file.first is None:
            file.first = keys[int(beyond[0])], generation
        return False


@dataclass(frozen=True, slots=True)
class _Picked:
    """Some of the keys of a leaf, without a list of them."""

    keys: Sequence[bytes]
    entries: NDArray[np.int64]

    def __getitem__(self, at: int) -> bytes:
        return self.keys[int(self.entries[at])]


def _directories(name: str) -> Iterator[str]:
    """``a/b/c``: first ``a``, then ``a/b``."""
    at = name.find("/")
    while at >= 0:
        yield name[:at]
        at = name.find("/", at + 1)


def _unused(file: _File) -> Iterator[Finding]:
    assert file.size is not None
    starts, stops = file.merged()
    unused = file.size - int((stops - starts).sum())
    gaps = starts - np.concatenate(([0], stops[:-1]))
    unused -= int(gaps[(gaps < ALIGNMENT) & (starts % ALIGNMENT == 0)].sum())  # so that values can be mapped
    tail = file.size - int(stops[-1])
    if file.size > PADDED_FROM and file.size % PAGE == 0 and tail < PAGE:
        unused -= tail  # padding
    if unused > 0:
        yield Finding(
            kind="unused-bytes",
            message=f"No version refers to {unused:,} of the {file.size:,} bytes of {file.name}",
            path=file.name,
            nbytes=unused,
        )


def _not_used(name: str, size: int) -> Finding:
    if name.endswith(_LOCK_SUFFIX):
        kind, message = "lock-file", f"{name} is a lock; its writer is under way, or ended before removing it"
    elif _DATA_FILE.search(name):
        kind, message = (
            "orphan-file",
            (f"No version refers to {name} ({size:,} bytes): left over from a commit that failed, or of one under way"),
        )
    else:
        kind, message = "other-file", f"{name} ({size:,} bytes) is not part of the database"
    return Finding(kind=kind, message=message, path=name, nbytes=size)
