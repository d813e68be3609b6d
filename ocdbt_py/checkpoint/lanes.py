"""Values on their way to storage, in batches and in several threads: encoded, checksummed and written by one of them.

A batch is handed to whichever thread is free, the largest that waits before the others: were it the last, one thread
would write it while the others had nothing to do. That thread encodes what has to be, computes the checksums, and
writes the values into a data file of its own: a filesystem lets one writer at a time into a file. Long values go piece
by piece, so that what was just read for its checksum is copied from the cache. When no batch is left, the thread waits
for the disk, and so all files are waited for together. Where files are put in the background anyway
(``Capabilities.parallel``), all threads append to the same ones.

Threads begin when there is enough for them. Of a small tree all is done by the caller, in the file that the tree of
keys goes into too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from heapq import heappop, heappush
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ocdbt_py.array.codecs import Encoder
from ocdbt_py.array.spec import ArraySpec
from ocdbt_py.array.write import Pieces, encode_large_chunk
from ocdbt_py.engine.data_files import RUN_BYTES, DataFiles
from ocdbt_py.format.checksum import crc32c
from ocdbt_py.format.datafile import DataFileId, Location
from ocdbt_py.storage.background import processors
from ocdbt_py.storage.protocol import Buffer

__all__ = ["BLOCK_BYTES", "Batch", "Block", "Chunk", "Lanes", "Placed", "lane_count"]

BATCH_BYTES = 4 << 20
"""A batch is complete with so many."""

_LANE_BYTES = 16 << 20
"""What a thread holds: a chunk of Orbax's size for large arrays, encoded."""


_PIECE_BYTES = 4 << 20
"""Of a long value so much is written at a time, right after its checksum was computed: it is in the cache by then."""

BLOCK_BYTES = RUN_BYTES
"""Of a whole block, which is written by itself."""

_BLOCKS = 2
"""With so many under way, whoever makes them waits for one that is written, and takes its memory."""

_PENDING_BYTES = 4 * _PIECE_BYTES
"""What the files of a thread hold; they write when a quarter of it is there."""


def lane_count(max_memory: int) -> int:
    """So many threads, on this machine and with that much memory."""
    return max(1, min(processors(), max_memory // _LANE_BYTES))


class Chunk(NamedTuple):
    """A value yet to be made: the chunk at this place in the grid of an array, or of a block of one."""

    array: NDArray[Any]
    spec: ArraySpec
    place: tuple[int, ...]
    nbytes: int
    """Of the array, in this chunk."""


@dataclass(slots=True, repr=False, eq=False)
class Batch:
    """Values and their keys, and those yet to be made; ``nbytes`` of arrays that they stand for, some perhaps without a
    value here."""

    keys: list[bytes] = field(default_factory=list)
    values: list[Buffer] = field(default_factory=list)
    nbytes: int = 0
    chunks: list[tuple[bytes, Chunk]] = field(default_factory=list)


@dataclass(slots=True, repr=False, eq=False)
class Block:
    """Small values in one piece, with their checksums already; ``nbytes`` of arrays, and once it is written, where.

    They are all that was written into ``buffer``, before where it stands.
    """

    buffer: BytesIO
    nbytes: int
    at: Location | None = None


class Placed(NamedTuple):
    """Where the values of a batch lie, all in one file, and their checksums, if these were asked for."""

    keys: Sequence[bytes]
    file: DataFileId
    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]
    checksums: Sequence[int]


class Lanes:
    """The threads, and what they have written."""

    def __init__(
        self,
        files: DataFiles,
        open_files: Callable[[int], DataFiles] | None,
        prefix: str,
        alignment: int,
        *,
        count: int,
        max_memory: int,
        checksums: bool,
        longest_short: int,
        written: Callable[[int], object],
    ) -> None:
        """``files`` are the caller's; ``open_files`` makes those of a thread, with so much memory, unless all share the
        caller's. Values of up to ``longest_short`` bytes go into no file. ``written`` is told of the bytes of arrays.
        """
        self._files = files
        self._open_files = open_files
        self._prefix = prefix
        self._alignment = alignment
        self._count = count
        self._memory = max_memory // count
        self._most_buffers = min(_BLOCKS, 1 + max_memory // (4 * BLOCK_BYTES))
        self._checksums = checksums
        self._longest_short = longest_short
        self._written = written
        self.short: list[tuple[bytes, bytes]] = []
        """Values that turned out to be short, all of them after :meth:`placed`."""
        self._changed = threading.Condition()
        self._batches: list[tuple[int, int, Batch | Block]] = []  # a heap, the largest batch first
        self._received = self._received_bytes = 0
        self._free: list[BytesIO] = []
        self._buffers = 0
        self._busy = 0
        self._is_complete = False
        self._error: BaseException | None = None
        self._threads: list[threading.Thread] = []
        self._own: list[DataFiles] = []
        self._appending: AbstractContextManager[Any] = threading.Lock() if open_files is None else nullcontext()
        self._placed: list[Placed] = []

    def put(self, batch: Batch | Block) -> None:
        """Have the values of a batch written. They must not change before :meth:`finish`."""
        with self._changed:
            self._raise()
            self._receive(batch)
            self._changed.notify()
        if len(self._threads) < min(self._count, self._received_bytes // BATCH_BYTES):
            self._begin_thread()

    def buffer(self) -> BytesIO:
        """An empty one, for a block."""
        with self._changed:
            if self._threads:  # else nothing is written before :meth:`placed`
                self._changed.wait_for(
                    lambda: self._free or self._buffers < self._most_buffers or self._error is not None
                )
            self._raise()
            if self._free:
                return self._free.pop()
            self._buffers += 1
            return BytesIO()

    def _receive(self, batch: Batch | Block) -> None:
        heappush(self._batches, (-batch.nbytes, self._received, batch))
        self._received += 1
        self._received_bytes += batch.buffer.tell() if isinstance(batch, Block) else batch.nbytes

    def _begin_thread(self) -> None:
        files = self._files if self._open_files is None else self._open_files(min(self._memory, _PENDING_BYTES))
        thread = threading.Thread(target=self._work, args=(files,), name="ocdbt-lane")
        try:
            thread.start()
        except RuntimeError:  # no more threads, or the interpreter is about to exit
            return
        self._threads.append(thread)
        if files is not self._files:
            self._own.append(files)

    def complete(self, last: Batch) -> None:
        """``last`` was the last batch; whoever has written what is left begins to wait for the disk."""
        if last.nbytes and self._threads:
            self.put(last)
        elif last.nbytes:
            self._receive(last)
        with self._changed:
            self._is_complete = True
            self._changed.notify_all()

    def placed(self) -> Sequence[Placed]:
        """Where all values lie, once they have been written, after :meth:`complete`."""
        if not self._threads:
            self._empty(self._files)
        with self._changed:
            self._changed.wait_for(lambda: self._error is not None or not (self._batches or self._busy))
            self._raise()
        return self._placed

    def finish(self) -> list[str]:
        """Wait until what the threads wrote would survive a crash; the paths of their files."""
        self._join()
        self._raise()
        return [path for files in self._own for path in files.keep()]

    def abort(self) -> None:
        """Remove what the threads wrote, and return when they look at no memory any more."""
        with self._changed:
            self._batches.clear()
            self._error = self._error or InterruptedError()
            self._changed.notify_all()
        self._join()
        for files in self._own:
            files.abort()

    def _join(self) -> None:
        for thread in self._threads:
            thread.join()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self, files: DataFiles) -> None:
        try:
            self._empty(files)
            if files is not self._files and self._error is None:
                files.flush()
        except BaseException as error:
            with self._changed:
                self._error = self._error or error
                self._changed.notify_all()

    def _empty(self, files: DataFiles) -> None:
        """Write batches until there are no more."""
        encoder = Encoder(self._memory * 3 // 4)
        while (batch := self._next()) is not None:
            try:
                if isinstance(batch, Block):
                    self._write_block(batch, files)
                else:
                    self._write(batch, files, encoder)
                    if files is not self._files:
                        files.drain_runs()
            finally:
                with self._changed:
                    self._busy -= 1
                    self._changed.notify_all()
            with self._changed:
                self._written(batch.nbytes)

    def _next(self) -> Batch | Block | None:
        with self._changed:
            self._changed.wait_for(lambda: self._batches or self._is_complete or self._error is not None)
            if self._error is not None or not self._batches:
                return None
            self._busy += 1
            return heappop(self._batches)[2]

    def _write_block(self, block: Block, files: DataFiles) -> None:
        buffer = block.buffer
        with self._appending:
            data = buffer.getbuffer()[: buffer.tell()]
            block.at = files.append(self._prefix, data, alignment=self._alignment)
        if files is not self._files:
            files.drain()
            data.release()
            buffer.seek(0)
            with self._changed:
                self._free.append(buffer)

    def _write(self, batch: Batch, files: DataFiles, encoder: Encoder) -> None:
        """Encode what is to be encoded, and write all of it."""
        keys, values, borrowed = batch.keys, batch.values, True
        for key, (array, spec, place, _) in batch.chunks:
            made = encode_large_chunk(array, spec, place, encoder)
            if isinstance(made, Pieces):
                self._write_pieces(key, made, files)
            elif len(made) <= self._longest_short:
                self.short.append((key, bytes(made)))
            else:
                borrowed = borrowed and _shares_memory(made, array)
                keys.append(key)
                values.append(made)
        if self._checksums and self._open_files is not None and batch.nbytes > _PIECE_BYTES:
            keys, values = self._write_long(keys, values, files)
        if not values:
            return
        checksums = list(map(crc32c, values)) if self._checksums else []
        with self._appending:
            file, offsets, lengths = files.append_all(
                self._prefix, values, borrowed=borrowed, alignment=self._alignment
            )
            self._placed.append(Placed(keys, file, offsets, lengths, checksums))

    def _write_long(
        self, keys: Sequence[bytes], values: Sequence[Buffer], files: DataFiles
    ) -> tuple[list[bytes], list[Buffer]]:
        """Write the long ones of these; the others, to be written together."""
        others: tuple[list[bytes], list[Buffer]] = [], []
        for key, value in zip(keys, values, strict=True):
            if len(value) > _PIECE_BYTES:
                view = memoryview(value)
                self._write_pieces(
                    key, (view[at : at + _PIECE_BYTES] for at in range(0, len(view), _PIECE_BYTES)), files
                )
            else:
                others[0].append(key)
                others[1].append(value)
        return others

    def _write_pieces(self, key: bytes, pieces: Iterable[Buffer], files: DataFiles) -> None:
        checksum = 0

        def noted() -> Iterator[Buffer]:
            nonlocal checksum
            for piece in pieces:
                if self._checksums:
                    checksum = crc32c(piece, checksum)
                yield piece

        with self._appending:
            file, offset, length = files.append_pieces(self._prefix, noted(), alignment=self._alignment)
            where = np.array([offset], np.int64), np.array([length], np.int64)
            self._placed.append(Placed([key], file, *where, [checksum] if self._checksums else []))


def _shares_memory(value: Buffer, array: NDArray[Any]) -> bool:
    return isinstance(value, memoryview) and np.may_share_memory(value, array)
