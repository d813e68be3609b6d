"""Take a step away so that nobody, at any moment, takes what is left of it for a checkpoint.

**Where directories are renamed** that is one rename, to a name that Orbax and we know as unfinished; the files go
afterwards. **Elsewhere** what says that it is whole goes first: the step's marker, its commit time, the markers of its
items, their manifests. Then the data, and ``_CHECKPOINT_METADATA``, by which the rest is known as unfinished, last::

    ROOT/7                                   whole        -             -
    ROOT/7.orbax-checkpoint-tmp-deleted      -            whole         some files

    ROOT/7/commit_success.txt                there        -             -
    ROOT/7/_CHECKPOINT_METADATA              committed    begun         begun
    ROOT/7/...                               all          all           some

What a crash leaves is removed by the next deletion of the same step, or by :func:`clean`.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from ocdbt_py.checkpoint.layout import TEMPORARY, child, read_file, replaced_path
from ocdbt_py.checkpoint.metadata import (
    CHECKPOINT_METADATA,
    COMMIT_MARKER,
    decode_checkpoint_metadata,
    decode_json,
    encode_checkpoint_metadata,
)
from ocdbt_py.errors import AlreadyExistsError, CorruptDataError, OcdbtError, PathNotFoundError
from ocdbt_py.format.manifest import MANIFEST_NAME
from ocdbt_py.manager.listing import is_committed, step_directories
from ocdbt_py.manager.step_names import NameFormat
from ocdbt_py.storage.background import each
from ocdbt_py.storage.location import Place

__all__ = ["DELETED", "Deleter", "clean", "move_away", "retire"]

DELETED = f"{TEMPORARY}-deleted"
"""Ends the name of a step that is being deleted."""

_log = logging.getLogger(__name__)


class Deleter:
    """Deletes steps, or moves them below the root into ``subdirectory`` where directories are renamed.

    ``in_background``: the files are removed by a thread that the program's end does not wait for; :meth:`close` does.
    """

    def __init__(self, subdirectory: str | None = None, in_background: bool = False) -> None:
        self._subdirectory = subdirectory
        self._in_background = in_background
        self._threads: list[threading.Thread] = []

    def retire(self, place: Place, root: Place) -> Callable[[], None]:
        """Make it no step any more. What this returns removes the files, or sees to it."""
        if self._subdirectory is not None and place.storage.capabilities.rename:
            name = place.path.removeprefix(root.path).lstrip("/")
            move_away(place, child(root, f"{self._subdirectory}/{name}"))
            return lambda: None
        remove = retire(place)
        return partial(self._remove_beside, remove, place) if self._in_background else remove

    def _remove_beside(self, remove: Callable[[], None], place: Place) -> None:
        def work() -> None:
            try:
                remove()
            except OcdbtError as error:
                _log.warning("%s is deleted, but some of its files are left: %s", place.url, error)

        thread = threading.Thread(target=work, name="ocdbt-delete", daemon=True)
        self._threads = [each for each in self._threads if each.is_alive()]
        try:
            thread.start()
            self._threads.append(thread)
        except RuntimeError:  # at exit, or there are no more threads
            work()

    def close(self) -> None:
        """Wait for what is being removed."""
        while self._threads:
            self._threads.pop().join()


def retire(place: Place) -> Callable[[], None]:
    """Make it no step any more. What this returns removes the files, which may take its time. Absent is fine."""
    storage = place.storage
    if not storage.capabilities.rename:
        _take_marks_away(place)
        return partial(_remove_unmarked, place)
    gone = f"{place.path}{DELETED}"
    with suppress(PathNotFoundError):
        _rename_over(place, gone)
    return partial(storage.delete, f"{gone}/")


def move_away(place: Place, target: Place) -> None:
    """Move a step to where somebody else will delete it; what was moved there before, under that name, is deleted."""
    with suppress(PathNotFoundError):
        _rename_over(place, target.path)


def clean(place: Place, names: NameFormat) -> None:
    """Remove what saves and deletions that did not end have left below a root, of steps with these names.

    Only while nobody saves there. The old checkpoint of an interrupted replacement gets its name back.
    """
    storage = place.storage
    if not storage.capabilities.rename:
        for name in step_directories(place, names).values():
            at = child(place, name)
            if read_file(at, CHECKPOINT_METADATA) is not None and not is_committed(at):
                _log.info("Removing %s, which was never finished", at.url)
                _remove_unmarked(at)
        return
    start = len(place.path) + 1
    found = {item.path[start:-1] for item in storage.list(f"{place.path}/") if item.path.endswith("/")}
    for name in sorted(found):
        final, is_temporary, _ = name.partition(TEMPORARY)
        if not is_temporary or names.step(final) is None:
            continue
        path = f"{place.path}/{final}"
        if f"{place.path}/{name}" == replaced_path(path) and final not in found:
            _log.info("Giving %s its name back: what was to replace it was never finished", path)
            storage.rename(replaced_path(path), path)
        else:
            _log.info("Removing %s, which was never finished", name)
            storage.delete(f"{place.path}/{name}/")


def _rename_over(place: Place, target: str) -> None:
    try:
        place.storage.rename(place.path, target)
    except AlreadyExistsError:  # of an earlier deletion that did not end
        place.storage.delete(f"{target}/")
        place.storage.rename(place.path, target)


def _take_marks_away(place: Place) -> None:
    """The step's own first: its items may be complete without it, but nobody finds a step by them."""
    storage = place.storage
    paths = [item.path for item in storage.list(f"{place.path}/", deep=True)]
    if not paths:
        return
    marker = f"{place.path}/{COMMIT_MARKER}"
    storage.delete(marker)
    storage.write(f"{place.path}/{CHECKPOINT_METADATA}", [_begun(place)])
    # then those of its items, and, without which none of them is a database
    for name in (COMMIT_MARKER, MANIFEST_NAME):
        found = [path for path in paths if path.endswith(f"/{name}") and path != marker]
        each(storage.delete, found, storage.capabilities.parallel)


def _begun(place: Place) -> bytes:
    """``_CHECKPOINT_METADATA`` of a step, without its commit time."""
    data = read_file(place, CHECKPOINT_METADATA) or b""
    try:
        decode_checkpoint_metadata(data)
        return json.dumps(decode_json(data, CHECKPOINT_METADATA) | {"commit_timestamp_nsecs": None}).encode()
    except CorruptDataError:
        return encode_checkpoint_metadata(0, None, {}, None)


def _remove_unmarked(place: Place) -> None:
    storage = place.storage
    last = f"{place.path}/{CHECKPOINT_METADATA}"
    paths = [item.path for item in storage.list(f"{place.path}/") if item.path != last]
    each(storage.delete, paths, storage.capabilities.parallel)
    storage.delete(last)
    storage.delete(f"{place.path}/")  # the directory itself, where there are any
