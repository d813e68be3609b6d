"""How a checkpoint comes into being whole: written aside and renamed, or under its name with a marker put last.

**Where directories are renamed** everything is written into ``<final>.orbax-checkpoint-tmp``, and renaming that is the
commit. To replace a checkpoint takes two renames, the old one out of the way and the new one in::

    <final>                                  old      -       new
    <final>.orbax-checkpoint-tmp-replaced    -        old     old (then removed)
    <final>.orbax-checkpoint-tmp             new      new     -

A crash in the middle column leaves no checkpoint under the name, but the old one whole beside it. Readers say so, and
the next save there begins by renaming it back; nothing is ever removed while it is the only one.

**Elsewhere** (object stores) files are written under their final names, ``commit_success.txt`` last. A place that was
empty is claimed first, by ``_CHECKPOINT_METADATA`` without a commit time. To replace a checkpoint, the new data files,
whose names are random, are written beside the old ones first; then the old marker and commit time go, the few files
with fixed names are exchanged, the new marker is put, and the old data goes last::

    commit_success.txt       old   -     -       -                 -           new   new
    _CHECKPOINT_METADATA     old   old   begun   begun             new         new   new
    files with fixed names   old   old   old     some old or new   new         new   new
    data files               both  both  both    both              both        both  new

A reader of the first two columns finds the old checkpoint, of the last three the new one, and in between an unfinished
one: never one made of both. The items of a step have markers of their own, which go with the step's and come right
before it. A save that fails removes what it wrote itself, and nothing else.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Protocol, Self

from ocdbt_py.checkpoint.layout import (
    PROCESS_PREFIX,
    TEMPORARY,
    Kind,
    Layout,
    identify,
    read_file,
    replaced_path,
    temporary_path,
)
from ocdbt_py.checkpoint.metadata import CHECKPOINT_METADATA, COMMIT_MARKER, METADATA, commit_text
from ocdbt_py.errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidArgumentError,
    OcdbtError,
    StorageError,
    UnsupportedError,
)
from ocdbt_py.storage.background import each
from ocdbt_py.storage.location import Place
from ocdbt_py.storage.protocol import ABSENT, ANY

__all__ = ["Staging", "resume", "stage", "write_small"]

_DATA = "d"
"""The directory of a database's data files."""


class Staging(Protocol):
    """A checkpoint being written. Leaving the context with an error removes what was written."""

    @property
    def place(self) -> Place:
        """Where data files are to be written now."""

    @property
    def is_private(self) -> bool:
        """Whether nothing of another checkpoint lies there, so that small files may be written before the others."""

    def publish(
        self,
        files: Mapping[str, bytes],
        checkpoint_metadata: bytes,
        data_files: Sequence[str],
        items: Sequence[str] = (),
    ) -> None:
        """Write the small files and make the checkpoint seen.

        ``data_files`` are paths of what has been written, ``items`` the directories below that are marked as complete
        before the checkpoint is.
        """

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def stage(place: Place, *, overwrite: bool, begun: bytes) -> Staging:
    """Begin a checkpoint at ``place``, which must be absent or an empty directory, or with ``overwrite`` a checkpoint.

    ``begun`` is ``_CHECKPOINT_METADATA`` without a commit time; it marks what is unfinished where nothing else would.
    Raises :class:`AlreadyExistsError`, or :class:`UnsupportedError` where nothing can be written.
    """
    capabilities = place.storage.capabilities
    name = place.path.rpartition("/")[2]
    if TEMPORARY in name:
        raise InvalidArgumentError(f"{name!r} is a name of unfinished checkpoints; choose one without {TEMPORARY!r}")
    if not capabilities.writable:
        raise UnsupportedError(f"{place.url} is on a storage that cannot be written; save elsewhere and copy it")
    if not capabilities.list:
        raise UnsupportedError(
            f"The storage of {place.url} cannot list, so whether something is there cannot be told; save elsewhere"
        )
    is_there = True
    if capabilities.rename or not overwrite:  # nearly always nothing is there, and one look around says so
        around = {item.path for item in place.storage.list(place.path)}
        if capabilities.rename:
            _recover(place, around)
        at_all = (place.path, f"{place.path}/", f"{replaced_path(place.path)}/")
        is_there = not place.path or not around.isdisjoint(at_all)
    exists = is_there and _exists(place, overwrite)
    return _Renamed(place, exists) if capabilities.rename else _Marked(place, exists, begun)


def resume(place: Place, begun: bytes) -> Staging:
    """Go on with what somebody began at ``place`` and did not publish; the caller knows that all of it is there.

    What lies at ``place`` is replaced, as by :func:`stage` with ``overwrite``. Nothing is removed on an error.
    """
    if place.storage.capabilities.rename:
        return _Renamed(place, _exists(place, overwrite=True))
    return _Marked(place, False, begun)


def _exists(place: Place, overwrite: bool) -> bool:
    """Whether there is a checkpoint to be replaced."""
    layout = identify(place)
    if layout.kind is Kind.NOTHING:
        if any(item.path == place.path for item in place.storage.list(place.path)):
            raise AlreadyExistsError(f"{place.url} is a file; a checkpoint is a directory", url=place.url)
        return False
    is_checkpoint = _is_checkpoint(layout)
    if not overwrite:
        hint = "overwrite=True replaces it" if is_checkpoint else "save to another place"
        raise AlreadyExistsError(f"{place.url} exists already: {layout.kind.value}; {hint}", url=place.url)
    if not is_checkpoint:
        raise AlreadyExistsError(
            f"overwrite=True replaces checkpoints only, and {place.url} is none: {layout.kind.value}, with "
            f"{', '.join(sorted(layout.names)[:5])}. Remove it yourself if it is not needed",
            url=place.url,
        )
    return True


def _is_checkpoint(layout: Layout) -> bool:
    """Whether a directory says of itself that it is one checkpoint; what only looks like one is not ours to remove."""
    return METADATA in layout.names or CHECKPOINT_METADATA in layout.names


def _recover(place: Place, around: Container[str]) -> None:
    """Finish or undo the replacement that a crash interrupted, and remove what an unfinished save left behind."""
    storage, path = place.storage, place.path
    replaced = replaced_path(path)
    if f"{replaced}/" in around:
        layout = identify(place)
        if layout.kind is Kind.NOTHING:
            storage.rename(replaced, path)
        elif _is_checkpoint(layout):
            storage.delete(f"{replaced}/")  # the new one is in place
    if f"{temporary_path(path)}/" in around:
        storage.delete(f"{temporary_path(path)}/")


class _Renamed:
    """Written aside, then renamed."""

    is_private = True

    def __init__(self, final: Place, exists: bool) -> None:
        path = temporary_path(final.path)
        self.place = replace(final, path=path, url=final.storage.describe(path))
        self._final = final
        self._storage = final.storage
        self._exists = exists

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            with suppress(OcdbtError):  # the first error is the one that matters
                self._storage.delete(f"{self.place.path}/")

    def publish(
        self,
        files: Mapping[str, bytes],
        checkpoint_metadata: bytes,
        data_files: Sequence[str],
        items: Sequence[str] = (),
    ) -> None:
        url = self._final.url
        markers = {f"{item}/{COMMIT_MARKER}": commit_text(f"{url}/{item}") for item in items}
        last = {CHECKPOINT_METADATA: checkpoint_metadata, COMMIT_MARKER: commit_text(url)}
        _write_together(self.place, {**files, **markers, **last})
        storage, path = self._storage, self._final.path
        if not self._exists:
            storage.rename(self.place.path, path)
            return
        replaced = replaced_path(path)
        try:
            storage.rename(path, replaced)
            storage.rename(self.place.path, path)
        except BaseException:
            # Back, if the old one was moved at all. Nothing is renamed onto the new one, should that be there.
            with suppress(OcdbtError):
                storage.rename(replaced, path)
            raise
        with suppress(OcdbtError):  # the new one is in place; the next save removes what is left of the old
            storage.delete(f"{replaced}/")


class _Marked:
    """Written under the final name; the marker makes it count."""

    def __init__(self, final: Place, exists: bool, begun: bytes) -> None:
        self.place = final
        self._storage = final.storage
        self._base = f"{final.path}/"
        self._begun = begun
        self._exists = exists
        self.is_private = not exists
        self._exchanging = False
        self._committing = False
        self._written: list[str] = []
        self._old = {item.path for item in self._storage.list(self._base, deep=True)} if exists else set()

    def __enter__(self) -> Self:
        if not self._exists:
            self._claim()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and not self._exchanging:  # after that, what is left of the old one is worth nothing
            with suppress(OcdbtError):
                self._withdraw()

    def publish(
        self,
        files: Mapping[str, bytes],
        checkpoint_metadata: bytes,
        data_files: Sequence[str],
        items: Sequence[str] = (),
    ) -> None:
        self._written += data_files
        if self._exists:
            marker = self._base + COMMIT_MARKER
            self._storage.delete(marker)
            self._exchanging = True
            self._delete([path for path in self._old if path.endswith(f"/{COMMIT_MARKER}") and path != marker])
            self._storage.write(self._base + CHECKPOINT_METADATA, [self._begun])
        superseded = self._old - {self._base + name for name in (*files, CHECKPOINT_METADATA, COMMIT_MARKER)}
        superseded.difference_update(data_files)
        small = {path for path in superseded if self._has_fixed_name(path) or self._is_beside(path, items)}
        self._written += (self._base + name for name in files)
        write_small(self.place, files)
        self._delete(small)  # beside the new files, they would be taken for the new checkpoint's
        self._committing = True
        self._written += (f"{self._base}{item}/{COMMIT_MARKER}" for item in items)
        _commit(self.place, checkpoint_metadata, self.place.url, items)
        with suppress(OcdbtError):  # the new one is complete, and refers to nothing of the old
            self._delete(superseded - small)

    def _claim(self) -> None:
        """Say that a checkpoint is being written here, where nothing is; of two who do at once, one is refused."""
        path = self._base + CHECKPOINT_METADATA
        condition = ABSENT if self._storage.capabilities.create else ANY
        try:
            self._storage.write(path, [self._begun], condition)
        except (ConflictError, StorageError) as error:
            if not isinstance(error, ConflictError) and error.kind != "ambiguous":
                raise
            found = read_file(self.place, CHECKPOINT_METADATA)
            if found is None:
                raise
            if found != self._begun:  # else it was ours, and only the answer was lost
                raise AlreadyExistsError(
                    f"Another save to {self.place.url} began in the same moment; save to another place",
                    url=self.place.url,
                ) from error

    def _has_fixed_name(self, path: str) -> bool:
        """Whether this is one of the files that every checkpoint has under the same name, and not data."""
        above = path.removeprefix(self._base).split("/")[:-1]
        return _DATA not in above and not self._is_part(above)

    def _is_beside(self, path: str, items: Sequence[str]) -> bool:
        """Whether this lies in a directory that would be taken for one more item."""
        return bool(items) and path.removeprefix(self._base).partition("/")[0] not in items

    def _is_part(self, above: Sequence[str]) -> bool:
        """Whether something in these directories is what one of several processes wrote."""
        return any(name.startswith(PROCESS_PREFIX) for name in above)

    def _withdraw(self) -> None:
        """Remove what was written; what says that it is unfinished goes last."""
        if self._committing:
            self._storage.delete(self._base + COMMIT_MARKER)
            self._storage.write(self._base + CHECKPOINT_METADATA, [self._begun])
        written = set(self._written)
        if not self._exists:  # then what several processes wrote, each in a directory of its own, is ours as well
            found = {item.path for item in self._storage.list(self._base, deep=True)}
            written |= {path for path in found if self._is_part(path.removeprefix(self._base).split("/")[:-1])}
            written |= {path for path in found if self._has_fixed_name(path)} - {self._base + CHECKPOINT_METADATA}
        self._delete(written)
        if not self._exists:
            self._storage.delete(self._base + CHECKPOINT_METADATA)

    def _delete(self, paths: Sequence[str] | set[str]) -> None:
        each(self._storage.delete, paths, self._storage.capabilities.parallel)


def write_small(place: Place, files: Mapping[str, bytes]) -> None:
    """The files with fixed names, in no order."""

    def write(name: str) -> None:
        place.storage.write(f"{place.path}/{name}", [files[name]])

    each(write, files, place.storage.capabilities.parallel)


def _write_together(place: Place, files: Mapping[str, bytes]) -> None:
    """The same where nobody looks yet: there is one wait for the disk."""
    paths = {f"{place.path}/{name}": data for name, data in files.items()}
    for path, data in paths.items():
        try:
            place.storage.put(path, [data])
        except AlreadyExistsError:  # one of those that several processes write early
            place.storage.write(path, [data])
    place.storage.sync(paths)


def _commit(place: Place, checkpoint_metadata: bytes, url: str, items: Sequence[str]) -> None:
    """The files that say that all the others are there: of each item, then of the checkpoint."""
    write_small(place, {f"{item}/{COMMIT_MARKER}": commit_text(f"{url}/{item}") for item in items})
    for name, data in ((CHECKPOINT_METADATA, checkpoint_metadata), (COMMIT_MARKER, commit_text(url))):
        place.storage.write(f"{place.path}/{name}", [data])
