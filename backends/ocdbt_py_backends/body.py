"""What is uploaded to an object store: buffers in a row, cut and read without being joined.

A client library wants bytes or a file. :meth:`Body.reader` is a file over the caller's own memory, so that an upload
costs what the library holds at a time and not another copy of the data.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Iterable, Iterator

from ocdbt_py.storage.protocol import Buffer

__all__ = ["Body"]


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

    def reader(self) -> io.BufferedIOBase:
        """A seekable file that reads from the buffers."""
        return _BodyReader(self)

    def pieces(self, most: int) -> Iterator[memoryview]:
        """All of it, in views of at most ``most`` bytes."""
        for view in self.views:
            for start in range(0, len(view), most):
                yield view[start : start + most]

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


class _BodyReader(io.BufferedIOBase):
    def __init__(self, body: Body) -> None:
        self._body = body
        self._at = 0
        self._starts = [0]
        for view in body.views:
            self._starts.append(self._starts[-1] + len(view))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

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

    read1 = read

    def _view_at(self, offset: int) -> int:
        return bisect_right(self._starts, offset) - 1
