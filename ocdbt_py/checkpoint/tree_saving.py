"""One pytree of a checkpoint on its way to storage: what each process writes of it, and the whole that process 0 makes.

    DIRECTORY/_METADATA, …       small files; known as soon as the processes agree
    DIRECTORY/manifest.ocdbt     the database, if one process writes it all
    DIRECTORY/ocdbt.process_N/   what process N writes, if there are several

The manifest that makes the pytree whole is never written here but handed over, for the moment of publication.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ocdbt_py.checkpoint.checksums import CHECKSUMS
from ocdbt_py.checkpoint.contents import Tree
from ocdbt_py.checkpoint.layout import child, part_name
from ocdbt_py.checkpoint.new_database import NewDatabase
from ocdbt_py.checkpoint.prepared import prepare
from ocdbt_py.checkpoint.staging import write_small
from ocdbt_py.errors import StructureError
from ocdbt_py.format.manifest import MANIFEST_NAME
from ocdbt_py.storage.location import Place

__all__ = ["TreeSave"]


class TreeSave:
    """A pytree that goes into ``directory`` below the checkpoint's (``""``: that itself). Making one judges it all."""

    def __init__(self, directory: str, tree: Tree, index: int, count: int) -> None:
        self.directory = directory
        self._index, self._count = index, count
        self._prepared = prepare(tree, index, count)
        self._database: NewDatabase | None = None
        self._manifest = b""
        self._files: dict[str, bytes] = {}
        self._is_early = False

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays that this process writes."""
        return self._prepared.nbytes

    # --- with the other processes

    def summary(self) -> str:
        """What the others need to know of this process's tree."""
        return self._prepared.summary().decode()

    def agree(self, summaries: Sequence[str]) -> bool:
        """Settle how arrays are stored, from everybody's summary; False if their trees are not the same."""
        return self._prepared.agree([summary.encode() for summary in summaries])

    @property
    def lines(self) -> bytes:
        """What must be the same in all processes."""
        return "\n".join(self._prepared.lines).encode("utf-8", "surrogateescape")

    def differences(self, everybody: Sequence[bytes]) -> StructureError:
        """What is not the same, from everybody's :attr:`lines`."""
        return self._prepared.differences(everybody)

    # --- what is written

    def detach(self) -> None:
        """Copy the arrays, so that nothing that is done to the originals can change what is written."""
        self._prepared.detach()

    def release(self) -> None:
        """Let go of the arrays."""
        self._prepared.release()

    def early_files(self) -> dict[str, bytes]:
        """The small files that this process may write before anything else, by path below the checkpoint's directory.

        With them, the merge can be made later, by hand (:mod:`ocdbt_py.checkpoint.finishing`).
        """
        if not self._files:
            prepared = self._prepared
            self._files = self._below(prepared.files() if self._index == 0 else prepared.array_metadatas())
        return self._files

    def write(
        self, staged: Place, *, checksums: bool, max_memory: int, progress: Any, with_small_files: bool = False
    ) -> list[str]:
        """Write the arrays, or this process's own of them; paths of the files.

        ``with_small_files``: those that are known go up beside the arrays, and not at publication.
        """
        prepared = self._prepared
        if not prepared.has_arrays:
            return []
        place = self._place(staged)
        part = child(place, part_name(self._index)) if self._count > 1 else place
        written = {} if progress is None else {"written": progress.relative_update}
        self._database = database = NewDatabase(
            part.storage, part.path, checksums=checksums, max_memory=max_memory, **written
        )
        prepared.put_into(database)

        def meanwhile() -> None:  # the threads write, and wait for the disk
            files = self.early_files()
            if with_small_files:
                self._is_early = True
                write_small(staged, files)

        self._manifest = database.finish(meanwhile)
        if self._count > 1:
            for name, data in self._closing_files().items():
                path = f"{part.path}/{name}"
                part.storage.write(path, [data])
                database.files.append(path)
        return database.files

    def abort(self) -> None:
        """Remove what :meth:`write` wrote, as far as the storage lets us."""
        if self._database is not None:
            self._database.abort()

    def publication(self, staged: Place) -> tuple[dict[str, bytes], Sequence[str]]:
        """The small files that are not there yet, by path below the checkpoint's directory, and the paths of data files
        written only now."""
        prepared = self._prepared
        files = {} if self._is_early else self.early_files()
        closing: dict[str, bytes] = {}
        data_files: list[str] = []
        if prepared.has_arrays and self._count > 1:
            from ocdbt_py.checkpoint.merging import merge

            merged = merge(self._place(staged), map(part_name, range(self._count)), prepared.num_keys)
            closing[MANIFEST_NAME], data_files = merged
        elif prepared.has_arrays:
            closing = self._closing_files()
        return files | self._below(closing), data_files

    def _closing_files(self) -> dict[str, bytes]:
        """What completes this process's database."""
        assert self._database is not None
        files = {MANIFEST_NAME: self._manifest}
        if self._database.checksums is not None:
            files[CHECKSUMS] = self._database.checksums
        return files

    def _place(self, staged: Place) -> Place:
        return child(staged, self.directory) if self.directory else staged

    def _below(self, files: Mapping[str, bytes]) -> dict[str, bytes]:
        return {f"{self.directory}/{name}" if self.directory else name: data for name, data in files.items()}
