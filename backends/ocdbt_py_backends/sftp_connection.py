"""The connection to an SFTP server: made by fsspec's ``sftp`` filesystem, shared by threads, left alone by forks."""

from __future__ import annotations

import os
import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeAlias

from ocdbt_py.errors import StorageError, UnsupportedError
from ocdbt_py_backends.sftp_failures import connection_failure
from ocdbt_py_backends.sftp_packets import Lost
from ocdbt_py_backends.sftp_session import Session

__all__ = ["PATIENCE", "SESSIONS", "Connection", "Make", "filesystem_class", "quick_transport"]

SESSIONS = 4
"""At most so many conversations over one connection; OpenSSH allows 10."""

PATIENCE = 60.0
"""Seconds for which one answer is waited for."""

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
            raise connection_failure(error, self._describe(path), path) from error
        except Lost:
            raise
        except Exception as error:
            self._disconnect()
            raise connection_failure(error, self._describe(path), path) from error

    def _transport(self) -> Any:
        transport = None if self._fs is None else self._fs.client.get_transport()
        if transport is None or not transport.is_active():
            self._disconnect()
            cls, args, options = self._make
            self._fs = cls(*args, **{**options, "skip_instance_cache": True})
            transport = self._fs.client.get_transport()
        _send_at_once(transport.sock)
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


def quick_transport(sock: Any, **options: Any) -> Any:
    """For paramiko's ``transport_factory``: of the ciphers that it offers, those first that seal a packet in one pass.

    paramiko prefers AES-CTR, where each packet costs a digest of its own as well. The rest of their order stays, and
    ``disabled_algorithms`` holds as ever.
    """
    import paramiko

    transport = paramiko.Transport(sock, **options)
    offered = transport.get_security_options()
    offered.ciphers = sorted(offered.ciphers, key=lambda name: "-gcm" not in name)
    return transport


def _send_at_once(sock: Any) -> None:
    """Have the system hold back no small packet until the one before is acknowledged, as it does by default.

    What a session sends is small: questions, and word that there is room for more answers. A server that waits for it
    sends nothing that could carry the acknowledgement, which then comes after a time of its own, 40 ms or more.
    """
    if isinstance(sock, socket.socket):  # else it leads through another program or host
        with suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def filesystem_class() -> Any:
    try:
        from fsspec.implementations.sftp import SFTPFileSystem
    except ImportError as error:
        raise UnsupportedError('sftp:// needs the package paramiko: pip install "ocdbt-py[sftp]"') from error
    return SFTPFileSystem
