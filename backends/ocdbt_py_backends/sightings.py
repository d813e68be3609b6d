"""Tokens where a server tells too little about a content: a time cut to seconds, and a size.

Two contents of one file can then look alike, when the second came within the same second. So the token of a small file
holds a digest of the content too, and "unchanged" is believed of a stamp alone only once it is *settled*: the same
content was read again, long enough after the stamp was first seen that whatever is written since must bear a later one.
Until then an unchanged file is read again, which for a manifest is one small request. Our own clock is enough for that,
and need not agree with the server's. What is not noticed: a file put there with an old time on purpose, of equal size.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal

from ocdbt_py.errors import PathNotFoundError
from ocdbt_py.storage.protocol import Buffer, Read, Token, Unchanged

__all__ = ["WHOLE_BYTES", "Seen", "Sightings", "digest", "token_of"]

WHOLE_BYTES = 1 << 20
"""Files up to this size are read whole, so that their token can hold a digest; manifests and metadata are such files.
Larger ones are data files, which never change."""

_REMEMBERED = 1000


@dataclass(frozen=True, slots=True)
class Seen:
    """A token: what the server says of a content, and the digest of it (None for a large file)."""

    stamp: Hashable
    digest: bytes | None


class Sightings:
    """When which token of a path was first seen. Safe for threads.

    ``seconds``: two contents whose stamps were set so far apart, or farther, have different stamps.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._first: OrderedDict[str, tuple[Seen, float, bool]] = OrderedDict()
        self._lock = threading.Lock()

    def saw(self, path: str, token: Seen, at: float) -> None:
        """``token`` is that of a content read just now; ``at``: ``time.monotonic()`` before it was read."""
        now = time.monotonic()
        with self._lock:
            known = self._first.pop(path, None)
            if known is None or known[0] != token:
                known = token, now, False
            elif at - known[1] >= self._seconds:
                known = token, known[1], True
            self._first[path] = known
            if len(self._first) > _REMEMBERED:
                self._first.popitem(last=False)

    def settled(self, path: str, token: Token) -> bool:
        """Whether an equal stamp means an equal content, from here on."""
        if isinstance(token, Seen) and token.digest is None:
            return True
        with self._lock:
            known = self._first.get(path)
        return known is not None and known[0] == token and known[2]


def digest(*buffers: Buffer) -> bytes:
    """Of the bytes of all of them in a row."""
    found = blake2b(digest_size=16)
    for buffer in buffers:
        found.update(buffer)
    return found.digest()


def token_of(read: Callable[[str, int, int], Read | Literal[Unchanged.UNCHANGED]], path: str) -> Token | None:
    """Of a file that has to be read for it; None where there is none."""
    try:
        found = read(path, 0, 0)
    except PathNotFoundError:
        return None
    return found.token if isinstance(found, Read) else None
