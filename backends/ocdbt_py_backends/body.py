"""What is uploaded to an object store: buffers in a row, cut and read without being joined.

A client library wants bytes or a file. :meth:`Body.reader` is a file over the caller's own memory, so that an upload
costs what the library holds at a time and not another copy of the data.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import AsyncIterator, Iterable, Iterator

from ocdbt_py.storage.protocol import Buffer

__all__ = ["Body", "BodyReader"]

_SHORT = 64 << 10
"""Buffers up to this size are worth joining."""

_SENT_AT_ONCE = 256 << 10
"""Of a large buffer: what the socket does not take at once is copied."""


class Body:
    """What is uploaded: buffers in a row, never joined unless asked to."""

    def __init__(self, buffers: Iterable[Buffer]) -> None:
        self.views = [memoryview(buffer) for buffer in buffers if len(buffer)]
        self.size = sum(map(len, self.views))

    def __len__(self) -> int:
        return self.size

    def joined(self) -> bytes:
        """A copy in one piece."""
        return b"".join(self.views)

    def reader(self) -> BodyReader:
        """A file that reads from the buffers."""
        return BodyReader(self)

    def pieces(self, most: int) -> Iterator[memoryview]:
        """All of it, in views of at most ``most`` bytes; short buffers are joined, for each piece costs a call."""
        short: list[memoryview] = []
        held = 0
        for view in self.views:
            if short and (len(view) > _SHORT or held + len(view) > most):
                yield memoryview(b"".join(short))
                short, held = [], 0
            if len(view) <= min(_SHORT, most):
                short.append(view)
                held += len(view)
            else:
                for start in range(0, len(view), most):
                    yield view[start : start + most]
        if short:
            yield memoryview(b"".join(short))

    def parts(self, most: int) -> Iterator[Body]:
        """All of it, in bodies of exactly ``most`` bytes but the last."""
        views: list[memoryview] = []
        held = 0
        for view in self.views:
            while len(view):
                taken = view[: most - held]
                views.append(taken)
                held += len(taken)
                view = view[len(taken) :]
                if held == most:
                    yield Body(views)
                    views, held = [], 0
        if views:
            yield Body(views)


class BodyReader:
    """As much of a seekable file as clients of S3 need, which read it to sign it; what sends it takes it in pieces.

    No ``IOBase``: aiohttp reads such in a thread, a quarter of a megabyte at a time, from which each piece is copied.
    """

    def __init__(self, body: Body) -> None:
        self._body = body
        self._at = 0
        self._starts = [0]
        for view in body.views:
            self._starts.append(self._starts[-1] + len(view))

    async def __aiter__(self) -> AsyncIterator[memoryview]:
        """All of it, wherever it stands: what is sent again is sent from the beginning."""
        for piece in self._body.pieces(_SENT_AT_ONCE):
            yield piece

    def __len__(self) -> int:
        return self._body.size

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._body.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, self._body.size - self._at)
        wanted = left if size is None or size < 0 else min(size, left)
        found = []
        while wanted:
            i = self._view_at(self._at)
            begin = self._at - self._starts[i]
            piece = self._body.views[i][begin : begin + wanted]
            found.append(piece)
            self._at += len(piece)
            wanted -= len(piece)
        return b"".join(found)

    def _view_at(self, offset: int) -> int:
        return bisect_right(self._starts, offset) - 1
