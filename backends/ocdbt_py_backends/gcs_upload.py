"""A resumable upload to Google Cloud Storage: one object in parts, which come in order.

The service knows how much of it has arrived. After a request whose answer was lost it is asked for that, so that no
byte is sent twice, and an object that was made is not taken for one that had been there before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ocdbt_py.errors import StorageError
from ocdbt_py_backends.body import Body
from ocdbt_py_backends.gcs_errors import Refused

__all__ = ["Answer", "ResumableUpload"]

UNIT = 256 << 10
"""What is sent at a time is a multiple of this, but at the end."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Of the service: with what is no error, in most cases."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Ask(Protocol):
    """Make one request of a URL; statuses that are errors raise :class:`Refused`, unless ``also`` good."""

    async def __call__(
        self,
        method: str,
        url: str,
        query: Mapping[str, str],
        headers: Mapping[str, str],
        body: Body | None = None,
        also: Sequence[int] = (),
    ) -> Answer: ...


class ResumableUpload:
    """An :class:`~ocdbt_py_backends.object_requests.Upload`. Its ``url`` is a credential, and shown nowhere.

    ``_arrived`` counts the bytes that the service has acknowledged; after a request without an answer (``_unsure``) it
    is asked for them. A last part goes at once up to a multiple of the unit; what remains waits for ``complete``.
    """

    def __init__(self, ask: Ask, place: str, path: str, url: str) -> None:
        self._ask = ask
        self._place = place
        self._path = path
        self._url = url
        self._arrived = 0
        self._unsure = False
        self._done = False
        self._number = 0
        self._start = self._size = 0
        self._rest = Body([])

    async def part(self, number: int, body: Body) -> None:
        if number != self._number:  # else it is sent again
            self._number, self._start = number, self._size
        start = self._start
        self._size = start + len(body)
        whole = len(body) - len(body) % UNIT
        self._rest = _cut(body, whole, len(body))
        await self._send(start, _cut(body, 0, whole), "*")

    async def complete(self) -> None:
        start = self._size - len(self._rest)
        await self._send(start, self._rest, str(self._size))

    async def abort(self) -> None:
        if not self._done:
            await self._ask("DELETE", self._url, {}, {}, also=(499, 404, 410))

    async def _send(self, start: int, body: Body, total: str) -> None:
        """Send what has not arrived of ``body``, which begins at ``start``, and end the upload if the total is told."""
        stop = start + len(body)
        if self._unsure:
            await self._exchange(Body([]), "bytes */*")
        while not self._done and (self._arrived < stop or total != "*"):
            arrived = self._arrived
            if arrived < start:
                raise StorageError(f"{self._place}: the upload lost a part; start again", path=self._path)
            rest = _cut(body, arrived - start, len(body))
            await self._exchange(rest, f"bytes {arrived}-{stop - 1}/{total}" if len(rest) else f"bytes */{total}")
            if self._arrived == arrived and not self._done:
                raise StorageError(
                    f"{self._place}: the upload makes no progress; try again",
                    kind="unavailable",
                    path=self._path,
                )

    async def _exchange(self, body: Body, content_range: str) -> None:
        self._unsure = True
        try:
            # No PUT: aiohttp repeats one by itself, with a body that has gone already.
            answer = await self._ask("POST", self._url, {}, {"Content-Range": content_range}, body, also=(308,))
        except Refused as error:
            if error.status not in (404, 410):
                raise
            raise StorageError(
                f"{self._place}: the upload is no longer known to the service; start again",
                path=self._path,
            ) from error
        self._unsure = False
        if answer.status != 308:
            self._done = True
            return
        _, _, last = answer.headers.get("Range", "").partition("-")
        self._arrived = int(last) + 1 if last else 0


def _cut(body: Body, start: int, stop: int) -> Body:
    """Bytes ``[start, stop)`` of it, not copied."""
    views = []
    for view in body.views:
        views.append(view[max(0, start) : max(0, stop)])
        start -= len(view)
        stop -= len(view)
    return Body(views)
