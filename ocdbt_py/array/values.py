"""Where the bytes of arrays come from: anything that can look up many keys at once, whole values or parts of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

__all__ = ["Buffer", "Request", "Values"]

Buffer: TypeAlias = bytes | bytearray | memoryview

Request: TypeAlias = bytes | tuple[bytes, int, int | None]
"""A key, or (key, start, stop) for bytes ``[start, stop)`` of its value; negative ``start``: that many at the end."""


class Values(Protocol):
    """Where the bytes come from. A :class:`~ocdbt_py.database.Database` is one.

    A class of its own that inherits from this one needs :meth:`read_many` alone.
    """

    def read_many(self, requests: Sequence[Request], default: None) -> Sequence[bytes | None]:
        """One answer per request, in order; ``default`` for a key that is not there."""

    def read_many_into(
        self, requests: Sequence[Request], place: Callable[[Sequence[int | None]], Sequence[memoryview | None]]
    ) -> Sequence[Buffer | None]:
        """Look the requests up, ask ``place`` once where the answers go, and put them there.

        ``place`` is given the size of each answer in bytes, None for a key that is not there; it returns for each a
        buffer of that size, or None. Answers without a buffer are returned, in their places.
        """
        answers = self.read_many(requests, None)
        buffers = place([None if data is None else len(data) for data in answers])
        for data, buffer in zip(answers, buffers, strict=True):
            if data is not None and buffer is not None:
                buffer[:] = data
        return answers
