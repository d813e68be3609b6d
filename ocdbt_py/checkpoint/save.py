"""Save pytrees as a checkpoint that Orbax restores.

One pass takes each tree apart and judges every leaf, before anything is written (:mod:`ocdbt_py.checkpoint.prepared`).
Then the arrays of a tree go into one database, the small JSON files beside it (:mod:`ocdbt_py.checkpoint.tree_saving`),
and the directory is published whole (:mod:`ocdbt_py.checkpoint.staging`). :func:`save` saves one tree; a checkpoint may
hold several, and other items (:mod:`ocdbt_py.checkpoint.contents`).

**Several processes** take four steps together (:mod:`ocdbt_py.checkpoint.processes`); none begins one before all have
ended the one before it::

    begin      all judge the tree, process 0 the place; whether it is the same tree
    claim      process 0 makes the place its own
    write      each writes ocdbt.process_N/; process 0 also the small files, where they can be there early
    publish    process 0 merges by reference (:mod:`ocdbt_py.checkpoint.merging`), and publishes

A process that has said that its part is written leaves it alone from then on, whatever happens to the others: process 0
may be publishing it. Removing what is left of a save that failed is process 0's business, or the next save's.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from ocdbt_py.checkpoint.collecting import collector_paused
from ocdbt_py.checkpoint.contents import Contents, direct
from ocdbt_py.checkpoint.encoding import Encoding
from ocdbt_py.checkpoint.jax_processes import default_processes
from ocdbt_py.checkpoint.memory import memory_limit
from ocdbt_py.checkpoint.metadata import CHECKPOINT_METADATA, check_custom_metadata, encode_checkpoint_metadata
from ocdbt_py.checkpoint.opening import resolve_checkpoint
from ocdbt_py.checkpoint.processes import WAIT_TIMEOUT, Processes, Steps
from ocdbt_py.checkpoint.staging import Staging, stage
from ocdbt_py.checkpoint.tree_saving import TreeSave
from ocdbt_py.errors import StructureError, WaitTimeoutError
from ocdbt_py.storage.location import Place, Settings

__all__ = ["BegunSave", "save"]


def save(
    url: Any,
    tree: Any,
    *,
    overwrite: bool = False,
    compression: str | None = "auto",
    chunk_bytes: int | None = None,
    zarr_format: Literal[2, 3] = 2,
    custom_metadata: Mapping[str, Any] | None = None,
    checksums: bool = True,
    durable: bool = True,
    max_memory: int | None = None,
    processes: Processes | None = None,
    wait_timeout: float = WAIT_TIMEOUT,
    progress: Any = None,
    storage_options: dict[str, Any] | None = None,
    fs: Any = None,
) -> None:
    """Save ``tree`` as a checkpoint at ``url``, which must be absent or an empty directory.

    Leaves: NumPy arrays and numbers, JAX arrays (sharded ones too), whatever has ``__array__`` or DLPack, ``bool``,
    ``int`` (64 bits), ``float``, ``str``, None. Containers: those of JAX's registry, and dict, list, tuple, namedtuple,
    dataclass.

    ``overwrite`` replaces a checkpoint, never another directory. ``compression``: ``"auto"`` (arrays for which it
    pays), ``"zstd"``, ``"zstd:LEVEL"`` or None. ``chunk_bytes`` cuts arrays into chunks of at most so many bytes
    (None: only compressed ones, where they are larger than 16 MiB). ``zarr_format=3`` stores them as Orbax's
    ``use_zarr3`` and its v1 API do. ``custom_metadata``: a dict that JSON can hold. ``durable=False`` leaves out fsync.
    ``checksums``: keep the CRC-32C of each value in a file of its own, for ``restore(verify=True)`` and ``check``.
    ``max_memory``: bytes that this takes beyond the tree in each process, 64 MiB by default; chunks too large for that
    are encoded as they are written.
    ``progress``: an fsspec ``Callback``, told of the bytes of arrays that this process writes.

    **Several processes** all call this with the same tree: those of ``jax.distributed`` where it is initialised, else
    give ``processes``, such as :class:`FileProcesses`. Each writes its shards of arrays that lie in several, process 0
    all other leaves; then it merges and publishes. If one fails all do, with its message; ``wait_timeout``: seconds
    that each of the few steps waits for the others (:class:`WaitTimeoutError` names who is missing).

    The whole checkpoint is seen or none. Raises, with nothing written: :class:`AlreadyExistsError`,
    :class:`UnsupportedError` (a leaf that Orbax could not restore), :class:`InvalidArgumentError` (names that collide,
    arguments). On any later error what was written is removed.

    >>> save("memory://example", {"rates": [0.1, 0.2], "step": 3}, overwrite=True)
    """
    place = resolve_checkpoint(url, storage_options, fs, Settings(durable=durable))
    with collector_paused():
        BegunSave(
            place,
            direct(tree, Encoding(compression, chunk_bytes, zarr_format), custom_metadata),
            overwrite=overwrite,
            checksums=checksums,
            max_memory=max_memory,
            processes=processes,
            wait_timeout=wait_timeout,
            progress=progress,
        ).write()


class BegunSave:
    """A save in two halves: making one judges everything, the trees and the place; :meth:`write` does the rest, once.

    With several processes each makes one, and each writes.
    """

    def __init__(
        self,
        place: Place,
        contents: Contents,
        *,
        overwrite: bool = False,
        checksums: bool = True,
        max_memory: int | None = None,
        processes: Processes | None = None,
        wait_timeout: float = WAIT_TIMEOUT,
        progress: Any = None,
    ) -> None:
        name = place.path.rpartition("/")[2]
        self._steps = Steps(default_processes() if processes is None else processes, f"save {name}", wait_timeout)
        self._place = place
        self._contents = contents
        self._progress = progress
        self._checksums = checksums
        self._max_memory = memory_limit(max_memory)
        self._custom: dict[str, Any] = {}
        self._begun_at = time.time_ns()
        self._staging: Staging | None = None
        self._trees: list[TreeSave] = []

        def judge() -> bytes:
            index, count = self._steps.index, self._steps.count
            self._custom = check_custom_metadata(contents.custom_metadata)
            self._trees = [TreeSave(directory, tree, index, count) for directory, tree in contents.trees()]
            if self._steps.is_primary:
                self._staging = stage(place, overwrite=overwrite, begun=self._checkpoint_metadata(None))
            return json.dumps({tree.directory: tree.summary() for tree in self._trees}).encode() if count > 1 else b""

        answers = self._steps.take("begin", judge)
        if self._steps.count > 1:
            self._agree([json.loads(answer) for answer in answers])

    def _agree(self, summaries: Sequence[Mapping[str, str]]) -> None:
        """Find out whether all processes save the same, and how. All of them come to the same answer."""
        if any(list(said) != list(summaries[0]) for said in summaries):
            items = "; ".join(f"process {index}: {', '.join(said) or 'none'}" for index, said in enumerate(summaries))
            raise StructureError(f"The processes do not save the same items with arrays: {items}")
        for tree in self._trees:
            if not tree.agree([said[tree.directory] for said in summaries]):
                raise tree.differences(self._steps.take("differences", partial(getattr, tree, "lines")))

    def _checkpoint_metadata(self, commit_time_ns: int | None) -> bytes:
        return encode_checkpoint_metadata(self._begun_at, commit_time_ns, self._custom, self._contents.handlers)

    def detach(self) -> None:
        """Copy the arrays, so that nothing the caller does to them can change what is written."""
        for tree in self._trees:
            tree.detach()

    def write(self) -> None:
        """Write all of it, and make the checkpoint seen."""
        try:
            self._write()
        finally:
            for tree in self._trees:
                tree.release()  # whoever keeps an error keeps us, but need not keep the arrays

    def _write(self) -> None:
        steps = self._steps
        is_seen = False
        with ExitStack() as cleaning:

            def claim() -> bytes:
                if self._staging is None:
                    return b""
                cleaning.enter_context(self._staging)
                below = self._staging.place.path.removeprefix(self._place.path)
                return json.dumps([below, self._staging.is_private]).encode()

            suffix, is_private = json.loads(steps.take("claim", claim)[0])
            path = self._place.path + suffix
            staged = replace(self._place, path=path, url=self._place.storage.describe(path))
            written = steps.take("write", lambda: self._write_part(staged, is_private))

            def publish() -> bytes:
                nonlocal is_seen
                if self._staging is not None:
                    self._publish(self._staging, [json.loads(answer) for answer in written])
                    cleaning.pop_all()  # whatever becomes of the others
                    is_seen = True
                return b""

            try:
                steps.take("publish", publish)
            except WaitTimeoutError as error:
                if not is_seen:
                    raise
                raise WaitTimeoutError(f"{self._place.url} is complete, but: {error.message}") from error

    def _write_part(self, staged: Place, is_private: bool) -> bytes:
        """What this process writes: the arrays, or its own of them, and small files that may be there early.

        Returns the paths, which process 0 has to know.
        """
        paths = []
        # where requests take their time and run side by side, a process that is alone need not keep an order
        is_alone = is_private and self._steps.count == 1 and staged.storage.capabilities.parallel > 1
        if self._progress is not None:
            self._progress.set_size(sum(tree.nbytes for tree in self._trees))
        if self._steps.count > 1 and is_private:
            for name, data in self._early_files().items():
                paths.append(f"{staged.path}/{name}")
                staged.storage.write(paths[-1], [data])
        try:
            for tree in self._trees:
                paths += tree.write(
                    staged,
                    checksums=self._checksums,
                    max_memory=self._max_memory,
                    progress=self._progress,
                    with_small_files=is_alone,
                )
        except BaseException:
            for tree in self._trees:
                tree.abort()
            raise
        return json.dumps([path.removeprefix(staged.path) for path in paths]).encode()

    def _early_files(self) -> dict[str, bytes]:
        """Enough for the merge to be made later, by hand, once the arrays are there too."""
        files = {name: data for tree in self._trees for name, data in tree.early_files().items()}
        if self._steps.is_primary:
            files |= self._contents.small_files()
            files[CHECKPOINT_METADATA] = self._checkpoint_metadata(None)
        return files

    def _publish(self, staging: Staging, written: Sequence[Sequence[str]]) -> None:
        data_files = [staging.place.path + path for paths in written for path in paths]
        files = self._contents.small_files()
        for tree in self._trees:
            small, merged = tree.publication(staging.place)
            files |= small
            data_files += merged
        staging.publish(files, self._checkpoint_metadata(time.time_ns()), data_files, self._contents.directories)
