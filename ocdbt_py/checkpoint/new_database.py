"""A database built in one go, where nobody else writes: values, one version, and a manifest for the caller to place.

An ordinary commit arbitrates between writers by replacing the manifest under a condition. A checkpoint needs none of
that: its directory belongs to its writer until it is finished. So this works on every storage that can be written,
takes no lock, and leaves it to the caller when the manifest, and with it the database, comes into being.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdbt_py.array.allocation import ALIGNMENT
from ocdbt_py.checkpoint.checksums import encode_columns
from ocdbt_py.checkpoint.lanes import BATCH_BYTES, Batch, Chunk, Lanes, Placed, lane_count
from ocdbt_py.checkpoint.memory import MAX_MEMORY
from ocdbt_py.checkpoint.packing import PACKED_BYTES, Form, Packed, pack
from ocdbt_py.engine.columns import INLINE
from ocdbt_py.engine.data_files import DataFiles
from ocdbt_py.engine.mutations import checked_key, stage_puts
from ocdbt_py.engine.nodes import Nodes
from ocdbt_py.engine.options import Config, WriteOptions
from ocdbt_py.engine.rewrite import EMPTY, Rewriter
from ocdbt_py.format.btree import LeafNode
from ocdbt_py.format.config import ManifestKind
from ocdbt_py.format.datafile import DataFileId, Location
from ocdbt_py.format.manifest import Manifest, encode_manifest
from ocdbt_py.format.versions import VersionEntry
from ocdbt_py.storage.protocol import Buffer, Storage

__all__ = ["NewDatabase"]

CONFIG = Config(max_inline_value_bytes=1024, max_decoded_node_bytes=100_000_000)
"""What Orbax stores ("OCDBT settings"); the rest is the format's defaults."""

NODE_BYTES = 1 << 20
"""Of a node of the tree, decoded. The limit that is stored allows more, but whoever looks for one key among a hundred
thousand reads and decodes all of the node that it is in."""

LONGEST_IN_TREE = 256
"""Bytes. The format would allow 1024 here, but whoever looks for one key reads and decompresses the tree: with what
arrays of 1 KiB hold in it, a restore takes nearly twice the time."""


class NewDatabase:
    """The database being written below ``base``, a path in ``storage`` without a trailing slash.

    ``written`` is told of the bytes of arrays, by one thread at a time.
    """

    def __init__(
        self,
        storage: Storage,
        base: str,
        *,
        checksums: bool = False,
        max_memory: int = MAX_MEMORY,
        written: Callable[[int], object] = lambda nbytes: None,
    ) -> None:
        self._config = CONFIG.new(os.urandom(16), ManifestKind.SINGLE)
        self._options = WriteOptions()
        self._nodes = Nodes(storage, base, cache_bytes=0)
        most = self._options.target_data_file_size
        count = lane_count(max_memory)

        def open_files(pending_bytes: int) -> DataFiles:
            return DataFiles(storage, base, most, pending_bytes=pending_bytes)

        self._files = open_files(max_memory * 3 // 4)
        self._lanes = Lanes(
            self._files,
            None if storage.capabilities.parallel > 1 else open_files,
            self._options.value_data_prefix,
            ALIGNMENT,
            count=count,
            max_memory=max_memory,
            checksums=checksums,
            longest_short=LONGEST_IN_TREE,
            written=written,
        )
        self._batch = Batch()
        self._inline = _InTree()
        self._packs = storage.capabilities.parallel == 1
        self._forms: list[Form] = []
        self._packed: list[Packed] = []
        self._referred: list[tuple[bytes, Location]] = []
        self._has_checksums = checksums
        self.checksums: bytes | None = None
        """The table of the values' checksums, once :meth:`finish` has returned; None if all values stand in the tree,
        which has its own, or it was not asked for."""
        self.files: list[str] = []
        """Paths of the data files, once :meth:`finish` has returned."""
        self.num_keys = 0
        """Of the whole database, once :meth:`finish` has returned."""

    def put_document(self, key: bytes, value: bytes) -> None:
        """:meth:`put_documents` of one key."""
        self.put_documents([key], value)

    def put_documents(self, keys: Sequence[bytes], value: bytes) -> None:
        """Store what these keys have alike, and readers want first: in the tree, if it is not too long for that."""
        if len(value) <= self._config.max_inline_value_bytes:
            self._inline.add(keys, value)
        else:
            for key in keys:
                self.put(key, value)

    def put(self, key: bytes, value: Buffer | Chunk) -> None:
        """Store a value. It must not change before :meth:`finish`.

        Only a short one stands in the tree. The others begin on multiples of 64 bytes, so that arrays can be mapped in
        place.
        """
        batch = self._batch
        if isinstance(value, Chunk):
            batch.chunks.append((key, value))
            batch.nbytes += value.nbytes
        else:
            if len(value) > LONGEST_IN_TREE:
                batch.keys.append(key)
                batch.values.append(value)
            else:
                self._inline.add([key], bytes(value))
            batch.nbytes += len(value)
        if batch.nbytes >= BATCH_BYTES:
            self._batch = Batch()
            self._lanes.put(batch)

    def add_form(self, document: bytes, document_file: bytes, chunk_file: bytes, nbytes: int) -> int | None:
        """The number, for :meth:`put_packed`, of arrays of so many bytes that all have this document. None: they are
        not packed, as too much is in either, or as files are put in the background, from what is there anyway."""
        if not (self._packs and LONGEST_IN_TREE < nbytes <= PACKED_BYTES):
            return None
        if len(document) > self._config.max_inline_value_bytes:
            return None
        self._forms.append(Form(document_file, chunk_file, nbytes, self._inline.place(document), len(document)))
        return len(self._forms) - 1

    def put_packed(
        self, bases: Sequence[bytes], forms: Sequence[int], values: Sequence[Any], *, is_last: bool = False
    ) -> None:
        """Store arrays whose keys begin with ``bases``, of the forms with these numbers. They may change afterwards.

        They take ``BLOCK_BYTES`` at most, each from a multiple of ``ALIGNMENT`` on.
        """
        buffer = self._lanes.buffer()
        packed = pack(bases, forms, values, self._forms, buffer, checksums=self._has_checksums, is_last=is_last)
        self._packed.append(packed)
        self._lanes.put(packed.block)

    def refer(self, key: bytes, location: Location) -> None:
        """Store a value that lies in a file below already."""
        self._referred.append((key, location))

    def finish(self, meanwhile: Callable[[], None] | None = None) -> bytes:
        """Write the tree, wait until everything would survive a crash, and return the manifest, yet to be written.

        ``meanwhile`` is called when all values are on their way.
        """
        last, self._batch = self._batch, Batch()
        self._lanes.complete(last)
        if meanwhile is not None:
            meanwhile()
        placed = self._lanes.placed()
        for key, value in self._lanes.short:
            self._inline.add([key], value)
        staged = stage_puts(self._columns(placed))
        prefix = self._options.btree_node_data_prefix
        config = self._config._replace(max_decoded_node_bytes=NODE_BYTES)
        root = Rewriter(self._nodes, config, staged, self._files, prefix).rewrite(EMPTY) or EMPTY
        self._files.flush()
        self.files = self._files.keep()
        self.files += self._lanes.finish()
        if self._has_checksums and (placed or self._packed):
            self.checksums = _checksums(placed, self._packed)
        self.num_keys = root.num_keys
        version = VersionEntry(
            generation=1,
            root_height=root.height,
            root=root.location,
            num_keys=root.num_keys,
            num_tree_bytes=root.num_tree_bytes,
            num_indirect_value_bytes=root.num_indirect_value_bytes,
            commit_time_ns=time.time_ns(),
        )
        return encode_manifest(Manifest(self._config, (version,), ()))

    def _columns(self, placed: Sequence[Placed]) -> LeafNode:
        """All entries, those packed together in the order in which they came."""
        files: dict[DataFileId, int] = {}
        keys: list[bytes] = self._inline.keys + [key for each in placed for key in each.keys]
        lengths, offsets = [self._inline.lengths()], [self._inline.offsets()]
        file_ids = [np.full(len(self._inline.keys), INLINE, np.int64)]
        for each in placed:
            lengths.append(each.lengths)
            offsets.append(each.offsets)
            file_ids.append(np.full(len(each.keys), files.setdefault(each.file, len(files)), np.int64))
        for packed in self._packed:
            at = _written(packed)
            is_chunk = np.tile([False, True], len(packed.keys) // 2)
            keys += packed.keys
            lengths.append(packed.lengths)
            offsets.append(packed.offsets + is_chunk * at.offset)
            file_ids.append(np.where(is_chunk, files.setdefault(at.file, len(files)), INLINE))
        if self._referred:
            keys += [key for key, _ in self._referred]
            rows = [(files.setdefault(at.file, len(files)), at.offset, at.length) for _, at in self._referred]
            for column, added in zip((file_ids, offsets, lengths), np.array(rows, np.int64).T, strict=True):
                column.append(added)
        checked_key(max(keys, key=len, default=b""))
        return LeafNode(
            keys=keys,
            lengths=np.concatenate(lengths),
            file_ids=np.concatenate(file_ids),
            offsets=np.concatenate(offsets),
            inline=self._inline.data(),
            files=tuple(files),
        )

    def abort(self) -> None:
        """Remove what was written, as far as the storage lets us."""
        self._batch = Batch()
        self._lanes.abort()
        self._files.disown(self.files)
        self._files.abort()


class _InTree:
    """Values that stand in the tree; those alike are kept once."""

    def __init__(self) -> None:
        self.keys: list[bytes] = []
        self._places: list[int] = []
        self._known: dict[bytes, int] = {}

    def add(self, keys: Sequence[bytes], value: bytes) -> None:
        self.keys += keys
        self._places += [self._known.setdefault(value, len(self._known))] * len(keys)

    def place(self, value: bytes) -> int:
        """Its offset in :meth:`data`."""
        number = self._known.setdefault(value, len(self._known))
        return sum(map(len, islice(self._known, number)))

    def lengths(self) -> NDArray[np.int64]:
        return np.fromiter(map(len, self._known), np.int64, len(self._known))[self._places]

    def offsets(self) -> NDArray[np.int64]:
        """Of the values, in :meth:`data`."""
        sizes = np.fromiter(map(len, self._known), np.int64, len(self._known))
        return (np.cumsum(sizes) - sizes)[self._places]

    def data(self) -> bytes:
        return b"".join(self._known)


def _written(packed: Packed) -> Location:
    assert packed.block.at is not None
    return packed.block.at


def _checksums(placed: Sequence[Placed], packed: Sequence[Packed]) -> bytes:
    """The table of all values that do not stand in the tree."""
    blocks = [
        Placed((), (at := _written(each)).file, each.offsets[1::2] + at.offset, each.lengths[1::2], each.checksums)
        for each in packed
    ]
    by_file: dict[str, list[Placed]] = {}
    for each in [*placed, *blocks]:
        by_file.setdefault(each.file.path.decode("utf-8", "surrogateescape"), []).append(each)
    return encode_columns(
        {
            name: (
                np.concatenate([each.offsets for each in found]),
                np.concatenate([each.lengths for each in found]),
                np.array([checksum for each in found for checksum in each.checksums], np.uint32),
            )
            for name, found in by_file.items()
        }
    )
