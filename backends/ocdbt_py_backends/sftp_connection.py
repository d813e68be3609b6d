"""The connection to an SFTP server: made by fsspec's ``sftp`` filesystem, shared by threads, left alone by forks.

What a failure to connect means is said here too, and so is what a server means by refusing.
"""

from __future__ import annotations

import os
import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeAlias

from ocdbt_py.errors import OcdbtError, PathNotFoundError, StorageError, StoragePermissionError, UnsupportedError
from ocdbt_py_backends.sftp_session import (
    BAD_MESSAGE,
    NO_SUCH_FILE,
    OP_UNSUPPORTED,
    PERMISSION_DENIED,
    Lost,
    Refused,
    Session,
)

__all__ = ["PATIENCE", "SESSIONS", "TRANSIENT", "Connection", "Make", "filesystem_class", "refusal"]

SESSIONS = 4
"""At most so many conversations over one connection; OpenSSH allows 10."""

PATIENCE = 60.0
"""Seconds for which one answer is waited for."""

TRANSIENT = frozenset({"unreachable", "interrupted", "timeout"})
"""Kinds of :class:`StorageError` after which another connection may do it."""

Make: TypeAlias = tuple[type[Any], tuple[Any, ...], dict[str, Any]]
"""A filesystem to be made: its class, arguments and options."""


class Connection:
    """One process's connection, and the sessions over it, made when first needed and again after it broke.

    ``describe`` says in messages where a path is; ``fs`` is a filesystem whose connection is there already.
    """

    def __init__(self, make: Make, describe: Callable[[str], str], fs: Any = None) -> None:
        self.pid = os.getpid()
        self._describe = describe
        self._make = make
        self._fs = fs
        self._sessions: list[Session] = []
        self._most = SESSIONS
        self._lock = threading.Lock()

    @contextmanager
    def session(self, path: str) -> Iterator[Session]:
        """One for this thread alone. After an error that leaves its state unknown it is not used again."""
        session = self._free(path)
        try:
            session.begin()
            yield session
        except BaseException as error:
            if isinstance(error, Lost) or not session.alive:
                self._drop(session)
            raise
        finally:
            session.lock.release()

    def _free(self, path: str) -> Session:
        with self._lock:
            self._sessions = [session for session in self._sessions if session.usable]
            for session in self._sessions:
                if session.lock.acquire(blocking=False):
                    return session
            if len(self._sessions) < self._most:
                opened = self._opened(path)
                if opened is not None:
                    opened.lock.acquire()
                    self._sessions.append(opened)
                    return opened
            session = random.choice(self._sessions)
        if not session.lock.acquire(timeout=10 * PATIENCE):
            message = f"{self._describe(path)}: other threads have used every connection for too long"
            raise StorageError(message, kind="timeout", path=path)
        return session

    def _opened(self, path: str) -> Session | None:
        """A new session; None where the server allows no more of them, and there is one at least."""
        import paramiko

        try:
            transport = self._transport()
            channel = transport.open_session(timeout=PATIENCE)
            channel.settimeout(PATIENCE)
            # paramiko waits for this answer without a limit
            alarm = threading.Timer(PATIENCE, channel.close)
            alarm.daemon = True
            alarm.start()
            try:
                channel.invoke_subsystem("sftp")
            finally:
                alarm.cancel()
            return Session(channel)
        except paramiko.ChannelException as error:
            if self._sessions:
                self._most = len(self._sessions)
                return None
            raise _connection_failure(error, self._describe(path), path) from error
        except Lost:
            raise
        except Exception as error:
            self._disconnect()
            raise _connection_failure(error, self._describe(path), path) from error

    def _transport(self) -> Any:
        transport = None if self._fs is None else self._fs.client.get_transport()
        if transport is None or not transport.is_active():
            self._disconnect()
            cls, args, options = self._make
            self._fs = cls(*args, **{**options, "skip_instance_cache": True})
            transport = self._fs.client.get_transport()
        return transport

    def _drop(self, session: Session) -> None:
        session.close()
        with self._lock:
            if session in self._sessions:
                self._sessions.remove(session)

    def _disconnect(self) -> None:
        fs, self._fs = self._fs, None
        self._sessions.clear()
        if fs is not None:
            with suppress(Exception):
                fs.client.close()

    def abandon(self) -> None:
        """In a forked child: never say another word on the parent's connection, not even goodbye."""
        if self._fs is not None:
            transport = self._fs.client.get_transport()
            if transport is not None and isinstance(transport.sock, socket.socket):
                transport.sock.close()  # this process's end of it only
            _of_parents.append(self)


_of_parents: list[Connection] = []
"""Never collected: paramiko would say goodbye then."""


def filesystem_class() -> Any:
    try:
        from fsspec.implementations.sftp import SFTPFileSystem
    except ImportError as error:
        raise UnsupportedError('sftp:// needs the package paramiko: pip install "ocdbt-py[sftp]"') from error
    return SFTPFileSystem


def _connection_failure(error: Exception, shown: str, path: str) -> StorageError:
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
