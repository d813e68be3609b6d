"""A database built in one go, where nobody else writes: values, one version, and a manifest for the caller to place.

An ordinary commit arbitrates between writers by replacing the manifest under a condition. A checkpoint needs none of
that: its directory belongs to its writer until it is finished. So this works on every storage that can be written,
takes no lock, and leaves it to the caller when the manifest, and with it the database, comes into being.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator

from ocdbt_py.checkpoint.checksums import Checksummer, encode_checksums
from ocdbt_py.checkpoint.memory import MAX_MEMORY
from ocdbt_py.engine.data_files import DataFiles
from ocdbt_py.engine.mutations import Mutations
from ocdbt_py.engine.nodes import Nodes
from ocdbt_py.engine.options import Config, WriteOptions
from ocdbt_py.engine.rewrite import EMPTY, Rewriter
from ocdbt_py.format.checksum import crc32c
from ocdbt_py.format.config import ManifestKind
from ocdbt_py.format.datafile import Location
from ocdbt_py.format.manifest import Manifest, encode_manifest
from ocdbt_py.format.versions import VersionEntry
from ocdbt_py.storage.protocol import Buffer, Storage

__all__ = ["ALIGNMENT", "NewDatabase"]

CONFIG = Config(max_inline_value_bytes=1024, max_decoded_node_bytes=100_000_000)
"""What Orbax stores ("OCDBT settings"); the rest is the format's defaults."""

ALIGNMENT = 64
"""Bytes; values begin on multiples of it."""

LONGEST_IN_TREE = 256
"""Bytes. The format would allow 1024 here, but whoever looks for one key reads and decompresses the tree: with what
arrays of 1 KiB hold in it, a restore takes nearly twice the time."""


class NewDatabase:
    """The database being written below ``base``, a path in ``storage`` without a trailing slash."""

    def __init__(self, storage: Storage, base: str, *, checksums: bool = False, max_memory: int = MAX_MEMORY) -> None:
        self._config = CONFIG.new(os.urandom(16), ManifestKind.SINGLE)
        self._options = WriteOptions()
        self._nodes = Nodes(storage, base, cache_bytes=0)
        self._files = DataFiles(storage, base, self._options.target_data_file_size, pending_bytes=max_memory * 3 // 4)
        self._mutations = Mutations()
        self._checksummer = Checksummer() if checksums else None
        self.checksums: bytes | None = None
        """The table of the values' checksums, once :meth:`finish` has returned; None if all values stand in the tree,
        which has its own, or it was not asked for."""
        self.files: list[str] = []
        """Paths of the data files, once :meth:`finish` has returned."""
        self.num_keys = 0
        """Of the whole database, once :meth:`finish` has returned."""

    def put_pieces(self, key: bytes, pieces: Iterable[Buffer]) -> None:
        """Store a value that is too large to be held; it is written as its pieces come."""
        checksum = 0

        def noted() -> Iterator[Buffer]:
            nonlocal checksum
            for piece in pieces:
                if self._checksummer is not None:
                    checksum = crc32c(piece, checksum)
                yield piece

        location = self._files.append_pieces(self._options.value_data_prefix, noted(), alignment=ALIGNMENT)
        self._mutations.put(key, location)
        if self._checksummer is not None:
            self._checksummer.note(location, checksum)

    def put_document(self, key: bytes, value: bytes) -> None:
        """Store what many keys have alike, and readers want first: in the tree, if it is not too long for that."""
        if len(value) <= self._config.max_inline_value_bytes:
            self._mutations.put(key, value)
        else:
            self.put(key, value)

    def put(self, key: bytes, value: Buffer, *, borrowed: bool = False) -> None:
        """Store a value. It must not change before :meth:`finish`; ``borrowed``: its memory is there anyway till then.

        Only a short one stands in the tree. The others begin on multiples of 64 bytes, so that arrays can be mapped in
        place.
        """
        if len(value) <= LONGEST_IN_TREE:
            self._mutations.put(key, value)
            return
        prefix = self._options.value_data_prefix
        location = self._files.append(prefix, value, borrowed=borrowed, alignment=ALIGNMENT)
        self._mutations.put(key, location)
        if self._checksummer is not None:
            self._checksummer.add(location, value, borrowed=borrowed)

    def refer(self, key: bytes, location: Location) -> None:
        """Store a value that lies in a file below already."""
        self._mutations.put(key, location)

    def finish(self, meanwhile: Callable[[], None] | None = None) -> bytes:
        """Write the tree, wait until everything would survive a crash, and return the manifest, yet to be written.

        ``meanwhile`` is called when all files are on their way.
        """
        options = self._options
        staged = self._mutations.stage(self._config.max_inline_value_bytes, options.value_data_prefix, self._files)
        prefix = options.btree_node_data_prefix
        root = Rewriter(self._nodes, self._config, staged, self._files, prefix).rewrite(EMPTY) or EMPTY
        if meanwhile is not None:
            self._files.drain()
            meanwhile()
        self._files.flush()
        self.files = self._files.keep()
        if self._checksummer is not None:
            table = self._checksummer.finish()
            self.checksums = encode_checksums(table) if table else None
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

    def abort(self) -> None:
        """Remove what was written, as far as the storage lets us."""
        if self._checksummer is not None:
            self._checksummer.abort()
        self._files.disown(self.files)
        self._files.abort()
