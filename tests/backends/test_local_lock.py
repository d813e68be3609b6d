"""The lock of a local file where processes fork: what a child inherits keeps nobody waiting."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

from ocdbt_py_backends import local_lock
from ocdbt_py_backends.local_lock import SUFFIX, Lock


class Forking(Lock):
    """Takes the lock of a file that its holder has just removed, and forks before it goes on to the next file."""

    def __init__(self, path: str) -> None:
        super().__init__(path, "os")
        self.opened = 0
        self.child = 0

    def _open(self) -> int:
        self.opened += 1
        if self.opened == 2:
            os.unlink(self._name)
            self.child = os.fork()
            if not self.child:
                signal.pause()
        return super()._open()


def wait_beside_a_fork(path: str) -> None:
    waiting = os.open(path + SUFFIX, os.O_CREAT | os.O_WRONLY)  # as another writer does, for the same file
    lock = Forking(path)
    lock.acquire(0)
    try:
        assert lock.opened == 3
        assert local_lock._lock(waiting, wait=False)  # it finds that the file was removed, and goes on to the next
    finally:
        os.kill(lock.child, signal.SIGKILL)
        os.waitpid(lock.child, 0)
        lock.release()


def test_a_forked_child_does_not_keep_a_lock_that_was_passed_by(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=wait_beside_a_fork, args=(str(tmp_path / "f"),))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert os.listdir(tmp_path) == []
