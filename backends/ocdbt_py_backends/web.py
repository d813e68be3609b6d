"""What the backends that speak HTTP through aiohttp have in common: how long a connection may take to come about, how a
body is sent without a copy, and what it means when a connection fails.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from urllib.parse import quote

import aiohttp

from ocdbt_py.errors import StorageError
from ocdbt_py_backends.body import Body

__all__ = ["PATIENCE", "connection_failure", "encoded", "payload"]

PATIENCE = aiohttp.ClientTimeout(total=None, sock_connect=15)
"""Seconds to connect; how long the rest may take is known to whoever knows how many bytes move."""

_PIECE_BYTES = 256 << 10


def encoded(text: str, keep: str = "") -> str:
    """Any name as it stands in a URL. What is no Unicode (surrogate escapes) becomes its bytes again."""
    return quote(text, safe=keep, errors="surrogateescape")


def payload(body: Body | None) -> AsyncIterator[memoryview] | bytes | None:
    """A body for aiohttp: in pieces, so that its buffers hold no copy of it. Its length must be in the headers."""
    if body is None:
        return None
    return _pieces(body) if len(body) > _PIECE_BYTES else body.joined()


async def _pieces(body: Body) -> AsyncIterator[memoryview]:
    for piece in body.pieces(_PIECE_BYTES):
        yield piece


def connection_failure(error: Exception, host: str, place: str, path: str) -> StorageError:
    """What an exception of aiohttp means; ``place`` is how messages call ``path``."""
    if isinstance(error, aiohttp.ClientConnectorError):
        host = error.host  # a redirect may have led to another one
    match error:
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientSSLError():
            kind, sentence = "tls", f"{host} could not prove who it is; check its certificate, and those known here"
        case aiohttp.ClientConnectorError(os_error=socket.gaierror()):
            kind, sentence = "unreachable", f"the host {host} is not known; check its name, and the network"
        case aiohttp.ClientConnectorError() | aiohttp.ConnectionTimeoutError():
            kind, sentence = "unreachable", f"{host} cannot be reached; check that it is up, and the network"
        case TimeoutError():
            kind, sentence = "timeout", f"{host} did not answer in time; try again"
        case aiohttp.ClientConnectionError() | aiohttp.ClientPayloadError() | ConnectionError():
            kind, sentence = "interrupted", f"the connection to {host} broke; try again"
        case _:
            kind, sentence = StorageError.default_kind, f"what {host} answered is no HTTP ({type(error).__name__})"
    return StorageError(f"{place}: {sentence}", kind=kind, path=path)
