"""What an exception of any of fsspec's filesystems means: each brings those of its own client library.

Told by class, by the name of the class where that would be an import of a package that may not be there, and by the
numbers of FTP and HTTP. The texts of the exceptions are not shown: they may hold credentials.
"""

from __future__ import annotations

import ftplib
import socket

from ocdbt_py.errors import (
    OcdbtError,
    PathNotFoundError,
    StorageError,
    StoragePermissionError,
    UnsupportedError,
)
from ocdbt_py.storage.refusals import taken

__all__ = ["failure_of"]


def failure_of(error: Exception, shown: str, path: str, server: str = "") -> OcdbtError:
    """What an exception of any filesystem means, as far as its class and its number tell: texts may hold secrets."""
    status = _status_of(error)
    names = {cls.__name__ for cls in type(error).__mro__}

    def storage(message: str, kind: str | None = None) -> StorageError:
        return StorageError(f"{shown}: {message}", kind=kind, path=path)

    credentials = "the credentials were refused; check user name, password or token"
    no_connection = f"no connection{server}; check host, port and network"
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return PathNotFoundError(f"There is no {shown}", path=path)
    if isinstance(error, ftplib.error_perm) and status == 550:
        return PathNotFoundError(f"There is no {shown}, or the server permits no access", path=path)
    if isinstance(error, NotADirectoryError):
        return PathNotFoundError(f"There is no {shown}: one of its parents is a file", path=path)
    if isinstance(error, IsADirectoryError):
        return storage("a directory is there, where a file is expected", "not-a-file")
    if isinstance(error, FileExistsError):
        return taken(shown, path)
    if status in (401, 407, 530, 532):
        return storage(credentials, "credentials")
    if isinstance(error, PermissionError) or status == 403:
        return StoragePermissionError(f"{shown}: permission was denied; check what this account may do", path=path)
    if isinstance(error, TimeoutError) or names & {"TimeoutException", "Timeout"}:
        return storage("no answer in time; check host, port and network", "timeout")
    if isinstance(error, socket.gaierror):
        return storage("the host name is not known; check it", "unreachable")
    if isinstance(error, ConnectionRefusedError) or names & {"ConnectError", "ClientConnectorError"}:
        return storage(no_connection, "unreachable")
    if isinstance(error, EOFError) or names & {"ConnectionError", "TransportError", "ClientConnectionError"}:
        return storage(f"the connection{server} broke", "interrupted")
    if status in (452, 507, 552):
        return storage("no space is left on the server; free some, or write elsewhere", "no-space")
    if status is not None and (status == 421 or (500 <= status < 530 and not isinstance(error, ftplib.Error))):
        return storage(f"the server failed or is busy (status {status})", "unavailable")
    if isinstance(error, ftplib.error_temp):
        return storage(f"the server could not do it now (status {status})", "interrupted")
    if isinstance(error, NotImplementedError):
        return UnsupportedError(f"{shown}: this filesystem has no such operation")
    if isinstance(error, UnicodeError) or "InvalidURL" in names or "newline" in str(error):
        return UnsupportedError(f"{shown}: this filesystem cannot hold such a name; choose a plainer one")
    told = f" (status {status})" if status is not None else ""
    return storage(f"the filesystem failed with {type(error).__name__}{told}")


def _status_of(error: Exception) -> int | None:
    """The number of an answer of FTP, or of HTTP in the exceptions of several clients."""
    if isinstance(error, ftplib.Error):
        code = str(error)[:3]
        return int(code) if code.isdigit() else None
    for holder in (error, getattr(error, "response", None)):
        for name in ("status_code", "status", "code"):
            found = getattr(holder, name, None)
            if isinstance(found, int):
                return found
    return None
