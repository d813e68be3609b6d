"""A save by several processes that was interrupted, finished by hand, or given up.

When every process has written its part, all that is missing is the merge and the publication, which any process can
make at any time: whatever it needs lies beside the parts. Whether all has been written, the number of chunks tells.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from ocdbt_py.array.metadata import decode_metadata
from ocdbt_py.array.spec import array_key
from ocdbt_py.checkpoint.checksums import CHECKSUMS, encode_checksums
from ocdbt_py.checkpoint.layout import PROCESS_PREFIX, child, read_file, temporary_path
from ocdbt_py.checkpoint.merging import can_merge, merge, part_name
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
    staged, names, interrupted = _interrupted(place)
    parts = _parts(names)
    begun, tree = (read_file(staged, name) for name in (CHECKPOINT_METADATA, METADATA))
    if begun is None or tree is None or part_name(0) not in parts:
        raise _incomplete(place, "process 0")
    said = decode_checkpoint_metadata(begun)
    try:
        num_keys = _count_keys(staged, tree)
        if dry_run:
            can_merge(staged, parts, num_keys)
            return interrupted
        merged = merge(staged, parts, num_keys)
    except (NotFoundError, CorruptDataError) as error:
        raise _incomplete(place, "another process") from error
    files = {MANIFEST_NAME: merged.manifest}
    if CHECKSUMS in _names(child(staged, part_name(0))):
        files[CHECKSUMS] = encode_checksums({})  # the parts have their own
    complete = encode_checkpoint_metadata(said.init_time_ns or time.time_ns(), time.time_ns(), said.custom_metadata)
    resume(place, begun).publish(files, complete, merged.data_files)
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
    """Where an interrupted save wrote, and what is there."""
    staged = place
    if place.storage.capabilities.rename:
        path = temporary_path(place.path)
        staged = replace(place, path=path, url=place.storage.describe(path))
    names = _names(staged)
    begun = read_file(staged, CHECKPOINT_METADATA) if CHECKPOINT_METADATA in names else None
    is_open = bool(names)
    if staged is place:
        # with a manifest it is perhaps the old checkpoint that was about to be replaced
        is_open = begun is not None and decode_checkpoint_metadata(begun).commit_time_ns is None
        is_open = is_open and MANIFEST_NAME not in names
    if not is_open:
        raise PathNotFoundError(
            f"No save to {place.url} was interrupted that could be finished or discarded; a new save with "
            "overwrite=True replaces whatever checkpoint is there",
            url=place.url,
        )
    sizes = [item.size or 0 for item in staged.storage.list(f"{staged.path}/", deep=True)]
    began = _moment(begun)
    return staged, names, Interrupted(place.url, staged.url, began, len(_parts(names)), len(sizes), sum(sizes))


def _moment(begun: bytes | None) -> datetime | None:
    """When the save began, as it wrote down itself."""
    with suppress(CorruptDataError, OverflowError, OSError, ValueError):
        time_ns = None if begun is None else decode_checkpoint_metadata(begun).init_time_ns
        return None if time_ns is None else datetime.fromtimestamp(time_ns / 1e9, UTC)
    return None


def _parts(names: Sequence[str]) -> list[str]:
    return [name[:-1] for name in names if name.startswith(PROCESS_PREFIX) and name.endswith("/")]


def _names(place: Place) -> Sequence[str]:
    start = len(place.path) + 1
    return sorted(item.path[start:] for item in place.storage.list(f"{place.path}/"))


def _count_keys(staged: Place, tree: bytes) -> int:
    """Documents and chunks that the tree takes; the documents are all in the part of process 0."""
    metadata = decode_tree_metadata(tree)
    records = metadata.leaves
    names = leaf_names(record.path for record in records)
    file = "zarr.json" if metadata.use_zarr3 else ".zarray"
    arrays = [
        array_key(name, file)
        for name, record in zip(names, records, strict=True)
        if record.value_type in ValueType.ARRAYS
    ]
    documents = open_place(child(staged, part_name(0)), max_staleness=math.inf).read_many(arrays)
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
