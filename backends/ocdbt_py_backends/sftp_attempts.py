"""What is asked of an SFTP server, and asked again after the connection broke.

A connection that broke is made again, and what was under way is done again: whoever asks begins from where nothing is
uncertain. A fork takes no part in its parent's connection, and makes one of its own.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from typing import Any, TypeVar

from ocdbt_py.errors import StorageError
from ocdbt_py_backends.sftp_connection import Connection, Make
from ocdbt_py_backends.sftp_conversation import Refused
from ocdbt_py_backends.sftp_failures import TRANSIENT, refusal
from ocdbt_py_backends.sftp_packets import Lost
from ocdbt_py_backends.sftp_session import Session

__all__ = ["ATTEMPTS", "Attempts"]

ATTEMPTS = 6
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 3.0

T = TypeVar("T")


class Attempts:
    """Sessions for this process; ``fs``: whose connection they use first. ``describe`` says where a path is."""

    def __init__(self, make: Make, describe: Callable[[str], str], fs: Any = None) -> None:
        self._make = make
        self.describe = describe
        self.connection = Connection(make, describe, fs)

    def do(self, path: str, work: Callable[[Session], T]) -> T:
        """Let a session do it, and again after the connection broke: ``work`` may be done twice."""
        pause = _FIRST_PAUSE
        for left in reversed(range(ATTEMPTS)):
            try:
                connection = self._process()
                with connection.session(path) as session:
                    return work(session)
            except Refused as error:
                raise refusal(error, self.describe(path), path) from error
            except Lost as error:
                failure = StorageError(
                    f"{self.describe(path)}: {error}; check the network and the server",
                    kind="timeout" if isinstance(error.__cause__, TimeoutError) else "interrupted",
                    path=path,
                )
                if not left:
                    raise failure from error
            except StorageError as error:
                if error.kind not in TRANSIENT or not left:
                    raise
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, _LONGEST_PAUSE)
        raise AssertionError("the last attempt returns or raises")

    def _process(self) -> Connection:
        """The connection as this process may use it."""
        if self.connection.pid != os.getpid():
            self.connection.abandon()
            self.connection = Connection(self._make, self.describe)
        return self.connection
