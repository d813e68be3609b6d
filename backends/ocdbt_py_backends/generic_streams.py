"""Ranges of one file, read one after another from any filesystem of fsspec as if from one stream.

Opening is what costs: an FTP server is asked for a connection for each transfer, a WebDAV server for a response, and a
member of an archive is read from its beginning to get to its middle. fsspec opens a file for each range that it is
asked for, so here it stays open while what is wanted of it follows on.

For FTP fsspec's own file will not do: it asks for a transfer for each piece, listing the directory first, and stops it
in a way that servers answer differently. Ours receives straight into the caller's memory, and stops a transfer by
closing its connection, after which every server says once how the transfer ended.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from ftplib import FTP, error_perm, error_temp
from typing import Any, TypeAlias

from fsspec.spec import AbstractFileSystem

__all__ = ["ReadInto", "stream_of"]

ReadInto: TypeAlias = Callable[[int, memoryview], int]
"""Fill the buffer with what starts there; how many bytes that are, fewer only where the file ends."""

_SKIPPED = 1 << 20
"""Bytes that cost less to receive than another transfer to ask for."""


def stream_of(fs: Any, path: str) -> AbstractContextManager[ReadInto]:
    """For as long as it lasts nothing else is asked of a filesystem that takes turns."""
    connection = getattr(fs, "ftp", None)
    if isinstance(connection, FTP):
        return _transferring(connection, path)
    if type(fs).cat_file is not AbstractFileSystem.cat_file:  # it has a better way than to open the file
        return _asking(fs, path)
    return _opened(fs, path)


@contextmanager
def _asking(fs: Any, path: str) -> Iterator[ReadInto]:
    def read_into(start: int, buffer: memoryview) -> int:
        data = fs.cat_file(path, start=start, end=start + len(buffer))
        if len(data) <= len(buffer):
            buffer[: len(data)] = data
        return len(data)

    yield read_into


@contextmanager
def _opened(fs: Any, path: str) -> Iterator[ReadInto]:
    at = 0

    def read_into(start: int, buffer: memoryview) -> int:
        nonlocal at
        if at != start:
            file.seek(start)
        done = 0
        while done < len(buffer) and (piece := file.read(len(buffer) - done)):
            buffer[done : done + len(piece)] = piece
            done += len(piece)
        at = start + done
        return done

    with closing(fs.open(path, "rb")) as file:
        yield read_into


@contextmanager
def _transferring(ftp: FTP, path: str) -> Iterator[ReadInto]:
    transfer = _Transfer(ftp, path)
    try:
        yield transfer.read_into
    except (error_temp, error_perm):
        raise  # what the server said last
    except BaseException:
        transfer.hang_up()
        raise
    transfer.stop()


class _Transfer:
    """A file on its way from an FTP server, from any of its bytes on."""

    def __init__(self, ftp: FTP, path: str) -> None:
        self._ftp = ftp
        self._path = path
        self._data: socket.socket | None = None
        self._at = 0

    def read_into(self, start: int, buffer: memoryview) -> int:
        if self._data is not None and 0 <= start - self._at <= _SKIPPED:
            skipped = start - self._at
            if self._receive(memoryview(bytearray(skipped))) < skipped:
                return 0
        else:
            self.stop()
            self._ftp.voidcmd("TYPE I")
            self._data = self._ftp.transfercmd(f"RETR {self._path}", start or None)
            self._at = start
        return self._receive(buffer)

    def _receive(self, buffer: memoryview) -> int:
        assert self._data is not None
        done = 0
        while done < len(buffer):
            size = self._data.recv_into(buffer[done:])
            if not size:
                self._close()
                self._ftp.voidresp()  # if it was not the file's end, the server says so
                break
            done += size
        self._at += done
        return done

    def stop(self) -> None:
        """All that is wanted is here; of what the server says to that nothing but its being said matters."""
        if self._data is not None:
            self._close()
            self._ftp.getmultiline()

    def hang_up(self) -> None:
        """The server may say something yet, and whoever asks next would take that for the answer."""
        self._close()
        if self._ftp.sock is not None:
            with suppress(OSError):
                self._ftp.sock.shutdown(socket.SHUT_RDWR)

    def _close(self) -> None:
        data, self._data = self._data, None
        if data is not None:
            data.close()
