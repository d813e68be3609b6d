"""How a checkpoint comes into being whole: written aside and renamed, or under its name with a marker put last.

**Where directories are renamed** everything is written into ``<final>.orbax-checkpoint-tmp``, and renaming that is the
commit. To replace a checkpoint takes two renames, the old one out of the way and the new one in::

    <final>                                  old      -       new
    <final>.orbax-checkpoint-tmp-replaced    -        old     old (then removed)
    <final>.orbax-checkpoint-tmp             new      new     -

A crash in the middle column leaves no checkpoint under the name, but the old one whole beside it. Readers say so, and
the next save there begins by renaming it back; nothing is ever removed while it is the only one.

**Elsewhere** (object stores) files are written under their final names, ``commit_success.txt`` last. To replace a
checkpoint, the new data files, whose names are random, are written beside the old ones first; then the old marker and
commit time go, the few files with fixed names are exchanged, the new marker is put, and the old data goes last. A
reader in between finds an unfinished checkpoint, and never one made of both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Protocol, Self

from ocdbt_py.checkpoint.layout import TEMPORARY, Kind, Layout, identify, replaced_path, temporary_path
from ocdbt_py.checkpoint.metadata import CHECKPOINT_METADATA, COMMIT_MARKER, METADATA, commit_text
from ocdbt_py.errors import AlreadyExistsError, InvalidArgumentError, OcdbtError, UnsupportedError
from ocdbt_py.storage.location import Place

__all__ = ["Staging", "stage"]


class Staging(Protocol):
    """A checkpoint being written. Leaving the context with an error removes what was written."""

    @property
    def place(self) -> Place:
        """Where data files are to be written now."""

    def publish(self, files: Mapping[str, bytes], checkpoint_metadata: bytes) -> None:
        """Write the small files and make the checkpoint seen, with all that lies at :attr:`place`."""

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
    if capabilities.rename:
        _recover(place)
    exists = _exists(place, overwrite)
    return _Renamed(place, exists) if capabilities.rename else _Marked(place, exists, begun)


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


def _recover(place: Place) -> None:
    """Finish or undo the replacement that a crash interrupted, and remove what an unfinished save left behind."""
    storage, path = place.storage, place.path
    beside = {item.path for item in storage.list(path) if item.path.endswith("/")}
    replaced = replaced_path(path)
    if f"{replaced}/" in beside:
        layout = identify(place)
        if layout.kind is Kind.NOTHING:
            storage.rename(replaced, path)
        elif _is_checkpoint(layout):
            storage.delete(f"{replaced}/")  # the new one is in place
    if f"{temporary_path(path)}/" in beside:
        storage.delete(f"{temporary_path(path)}/")


class _Renamed:
    """Written aside, then renamed."""

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

    def publish(self, files: Mapping[str, bytes], checkpoint_metadata: bytes) -> None:
        _write_all(self.place, files, checkpoint_metadata, self._final.url)
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
        self._begun = begun
        self._exists = exists
        self._exchanging = False
        self._old = {item.path for item in self._storage.list(f"{final.path}/", deep=True)} if exists else set()

    def __enter__(self) -> Self:
        if not self._exists:
            self._unmark()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and not self._exchanging:  # after that, what is left of the old one is worth nothing
            with suppress(OcdbtError):
                self._remove_new()

    def publish(self, files: Mapping[str, bytes], checkpoint_metadata: bytes) -> None:
        if self._exists:
            self._exchanging = True
            self._unmark()
        _write_all(self.place, files, checkpoint_metadata, self.place.url)
        kept = {f"{self.place.path}/{name}" for name in (*files, CHECKPOINT_METADATA, COMMIT_MARKER)}
        with suppress(OcdbtError):  # the new one is complete, and refers to nothing of the old
            self._delete(self._old - kept)

    def _unmark(self) -> None:
        """From here on, what is there is not finished."""
        self._storage.delete(f"{self.place.path}/{COMMIT_MARKER}")
        self._storage.write(f"{self.place.path}/{CHECKPOINT_METADATA}", [self._begun])

    def _remove_new(self) -> None:
        base = f"{self.place.path}/"
        new = {item.path for item in self._storage.list(base, deep=True)} - self._old
        first = base + COMMIT_MARKER  # while it is there, the rest counts
        self._delete(sorted(new, key=lambda path: path != first))

    def _delete(self, paths: Iterable[str]) -> None:
        for path in paths:
            self._storage.delete(path)


def _write_all(place: Place, files: Mapping[str, bytes], checkpoint_metadata: bytes, url: str) -> None:
    """The small files; last the two that say that all the others are there."""
    last = {CHECKPOINT_METADATA: checkpoint_metadata, COMMIT_MARKER: commit_text(url)}
    for name, data in {**files, **last}.items():
        place.storage.write(f"{place.path}/{name}", [data])
