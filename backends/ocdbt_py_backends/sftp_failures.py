"""What goes wrong with an SFTP server, in our words: failures to connect, and what the server means by refusing."""

from __future__ import annotations

import socket

from ocdbt_py.errors import OcdbtError, PathNotFoundError, StorageError, StoragePermissionError, UnsupportedError
from ocdbt_py_backends.sftp_conversation import BAD_MESSAGE, NO_SUCH_FILE, OP_UNSUPPORTED, PERMISSION_DENIED, Refused

__all__ = ["TRANSIENT", "connection_failure", "refusal"]

TRANSIENT = frozenset({"unreachable", "interrupted", "timeout"})
"""Kinds of :class:`StorageError` after which another connection may do it."""


def connection_failure(error: Exception, shown: str, path: str) -> StorageError:
    """What an exception of paramiko or the network means, while a connection comes about."""
    import paramiko

    match error:
        case paramiko.BadHostKeyException():
            message, kind = "the server's key is not the one that is known for this host; check both", "host-key"
        case paramiko.AuthenticationException() if "EOF" in str(error) or "timeout" in str(error):
            message, kind = "the connection broke while logging in", "interrupted"
        case paramiko.AuthenticationException():
            message, kind = "the credentials were refused; check user name, key and password", "credentials"
        case TimeoutError():
            message, kind = "no answer in time; check host, port and network", "timeout"
        case socket.gaierror():
            message, kind = "the host name is not known; check it", "unreachable"
        case ConnectionResetError() | BrokenPipeError() | ConnectionAbortedError() | EOFError():
            message, kind = "the connection broke while it came about", "interrupted"
        case FileNotFoundError():
            message, kind = "the file with the key is not there; check key_filename", "credentials"
        case OSError():
            message, kind = "no connection; check host, port and network", "unreachable"
        case paramiko.SSHException() if "known_hosts" in str(error):
            message, kind = "the server's key is not known, and is to be; add it to known_hosts", "host-key"
        case paramiko.SSHException() if "authentication methods" in str(error):
            message, kind = "no credentials were given or found; give a key or a password", "credentials"
        case paramiko.ChannelException():
            message, kind = "the server allows no sessions; check that it serves SFTP", "storage"
        case paramiko.SSHException():
            message, kind = "the connection broke while it came about", "interrupted"
        case _:
            message, kind = f"no connection ({type(error).__name__})", "storage"
    return StorageError(f"{shown}: {message}", kind=kind, path=path)


def refusal(error: Refused, shown: str, path: str) -> OcdbtError:
    """What a server's answer means; ``shown`` is how messages call ``path``."""
    match error.code:
        case code if code == NO_SUCH_FILE:
            return PathNotFoundError(f"There is no {shown}", path=path)
        case code if code == PERMISSION_DENIED:
            return StoragePermissionError(
                f"{shown}: the server permits this account no such access; check owner and mode", path=path
            )
        case code if code == BAD_MESSAGE:
            return StorageError(f"{shown}: the server takes no such name or request; is it too long?", path=path)
        case code if code == OP_UNSUPPORTED:
            return UnsupportedError(f"{shown}: the server has no such operation", path=path)
        case _:
            return StorageError(
                f"{shown}: the server failed and gives no reason (status {error.code}); its log may", path=path
            )
