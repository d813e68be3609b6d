"""A save by several processes that was interrupted, finished by hand, or given up.

When every process has written its part, all that is missing is the merge and the publication, which any process can
make at any time: whatever it needs lies beside the parts. Whether all has been written, the number of chunks tells.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from ocdbt_py.array.metadata import decode_metadata
from ocdbt_py.array.spec import array_key
from ocdbt_py.checkpoint.checksums import CHECKSUMS, encode_checksums
from ocdbt_py.checkpoint.layout import PROCESS_PREFIX, child, part_name, read_file, temporary_path
from ocdbt_py.checkpoint.merging import can_merge, merge
from ocdbt_py.checkpoint.metadata import (
    CHECKPOINT_METADATA,
    METADATA,
    ValueType,
    decode_checkpoint_metadata,
    decode_tree_metadata,
    encode_checkpoint_metadata,
)
from ocdbt_py.checkpoint.names import leaf_names
from ocdbt_py.checkpoint.opening import resolve_checkpoint
from ocdbt_py.checkpoint.staging import resume
from ocdbt_py.database import open_place
from ocdbt_py.errors import CorruptDataError, NotFoundError, PathNotFoundError, UncommittedError
from ocdbt_py.format.manifest import MANIFEST_NAME
from ocdbt_py.storage.location import Place

__all__ = ["Interrupted", "discard_save", "finish_save"]


@dataclass(frozen=True, slots=True)
class Interrupted:
    """A save that was not finished.

    ``url``: of the checkpoint. ``staged``: where the files lie. ``begun``: when it began, if that was written down.
    ``processes``: how many have written a part. ``files``, ``nbytes``: all that lies there.
    """

    url: str
    staged: str
    begun: datetime | None
    processes: int
    files: int
    nbytes: int


def finish_save(
    url: Any, *, dry_run: bool = False, storage_options: dict[str, Any] | None = None, fs: Any = None
) -> Interrupted:
    """Merge and publish what the processes of an interrupted save to ``url`` wrote. Nobody may be saving there now.

    A checkpoint that is there already is replaced, as that save was to do. With ``dry_run`` nothing is written; what
    would be raised is. Raises :class:`PathNotFoundError` where no such save was interrupted, and
    :class:`UncommittedError` where not every process has written its part: :func:`discard_save` removes what there is,
    and so does the next save.
    """
    place = resolve_checkpoint(url, storage_options, fs)
    staged, paths, interrupted = _interrupted(place)
    begun = read_file(staged, CHECKPOINT_METADATA)
    trees = sorted(path.rpartition("/")[0] for path in paths if path.rpartition("/")[2] == METADATA)
    parts = _parts(paths)
    if begun is None or not trees or not any(part_name(0) in names for names in parts.values()):
        raise _incomplete(place, "process 0")  # which writes all small files before any of its parts
    said = decode_checkpoint_metadata(begun)
    files: dict[str, bytes] = {}
    data_files: list[str] = []
    for directory in trees:
        base = f"{directory}/" if directory else ""
        tree = child(staged, directory) if directory else staged
        names = parts.get(directory, [])
        try:
            num_keys = _count_keys(tree)
            if not num_keys:
                continue
            if dry_run:
                can_merge(tree, names, num_keys)
                continue
            merged = merge(tree, names, num_keys)
        except (NotFoundError, CorruptDataError) as error:
            raise _incomplete(place, "another process") from error
        files[base + MANIFEST_NAME] = merged.manifest
        data_files += merged.data_files
        if f"{base}{part_name(0)}/{CHECKSUMS}" in paths:
            files[base + CHECKSUMS] = encode_checksums({})  # the parts have their own
    if not dry_run:
        handlers = said.item_handlers
        complete = encode_checkpoint_metadata(
            said.init_time_ns or time.time_ns(), time.time_ns(), said.custom_metadata, handlers
        )
        items = list(handlers) if isinstance(handlers, dict) else []
        resume(place, begun).publish(files, complete, data_files, items)
    return interrupted


def discard_save(
    url: Any, *, dry_run: bool = False, storage_options: dict[str, Any] | None = None, fs: Any = None
) -> Interrupted:
    """Remove what an interrupted save to ``url`` left. Nobody may be saving there now; a finished checkpoint stays.

    With ``dry_run`` nothing is removed. Raises :class:`PathNotFoundError` where no save was interrupted.
    """
    place = resolve_checkpoint(url, storage_options, fs)
    staged, _, interrupted = _interrupted(place)
    if not dry_run:
        staged.storage.delete(f"{staged.path}/")
    return interrupted


def _interrupted(place: Place) -> tuple[Place, Sequence[str], Interrupted]:
    """Where an interrupted save wrote, and the paths of the files that are there, below that."""
    staged = place
    if place.storage.capabilities.rename:
        path = temporary_path(place.path)
        staged = replace(place, path=path, url=place.storage.describe(path))
    start = len(staged.path) + 1
    found = {item.path[start:]: item.size or 0 for item in staged.storage.list(f"{staged.path}/", deep=True)}
    begun = read_file(staged, CHECKPOINT_METADATA) if CHECKPOINT_METADATA in found else None
    is_open = bool(found)
    if staged is place:
        # with a manifest it is perhaps the old checkpoint that was about to be replaced
        is_open = begun is not None and decode_checkpoint_metadata(begun).commit_time_ns is None
        is_open = is_open and not any(_is_whole_manifest(path) for path in found)
    if not is_open:
        raise PathNotFoundError(
            f"No save to {place.url} was interrupted that could be finished or discarded; a new save with "
            "overwrite=True replaces whatever checkpoint is there",
            url=place.url,
        )
    processes = {name for names in _parts(found).values() for name in names}
    return (
        staged,
        sorted(found),
        Interrupted(place.url, staged.url, _moment(begun), len(processes), len(found), sum(found.values())),
    )


def _is_whole_manifest(path: str) -> bool:
    """Whether this is the manifest of a pytree, and not that of what one process wrote of it."""
    above, _, name = path.rpartition("/")
    return name == MANIFEST_NAME and not above.rpartition("/")[2].startswith(PROCESS_PREFIX)


def _moment(begun: bytes | None) -> datetime | None:
    """When the save began, as it wrote down itself."""
    with suppress(CorruptDataError, OverflowError, OSError, ValueError):
        time_ns = None if begun is None else decode_checkpoint_metadata(begun).init_time_ns
        return None if time_ns is None else datetime.fromtimestamp(time_ns / 1e9, UTC)
    return None


def _parts(paths: Iterable[str]) -> dict[str, list[str]]:
    """The parts of processes, by the directory of the pytree."""
    parts: dict[str, set[str]] = {}
    for path in paths:
        above = path.split("/")[:-1]
        at = next((i for i, name in enumerate(above) if name.startswith(PROCESS_PREFIX)), None)
        if at is not None:
            parts.setdefault("/".join(above[:at]), set()).add(above[at])
    return {directory: sorted(names) for directory, names in parts.items()}


def _count_keys(tree: Place) -> int:
    """Documents and chunks that a pytree takes; the documents are all in the part of process 0."""
    data = read_file(tree, METADATA)
    if data is None:
        raise PathNotFoundError(f"{tree.url} has lost its {METADATA}", url=tree.url)
    metadata = decode_tree_metadata(data)
    records = metadata.leaves
    names = leaf_names(record.path for record in records)
    file = "zarr.json" if metadata.use_zarr3 else ".zarray"
    arrays = [
        array_key(name, file)
        for name, record in zip(names, records, strict=True)
        if record.value_type in ValueType.ARRAYS
    ]
    if not arrays:
        return 0
    documents = open_place(child(tree, part_name(0)), max_staleness=math.inf).read_many(arrays)
    specs = (
        decode_metadata(data, path=key.decode("utf-8", "replace")) for key, data in zip(arrays, documents, strict=True)
    )
    return sum(1 + math.prod(spec.grid) for spec in specs)


def _incomplete(place: Place, who: str) -> UncommittedError:
    return UncommittedError(
        f"The save to {place.url} cannot be finished: {who} did not write all of its part. Save again, which removes "
        "what is left of this one, or remove it with ocdbt gc --apply",
        url=place.url,
    )
