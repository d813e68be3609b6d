"""Files as tests make them, look at them and count in them, also from many threads at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

from ocdbt_py.errors import ConflictError
from ocdbt_py.storage.protocol import Buffer, Read, Storage

__all__ = ["CONTENT", "content", "in_threads", "increment", "put"]

CONTENT = bytes(range(256)) * 40


def put(storage: Storage, path: str, *buffers: Buffer) -> None:
    writer = storage.create(path)
    writer.write(buffers)
    writer.close()


def content(storage: Storage, path: str) -> bytes:
    found = storage.read(path)
    assert isinstance(found, Read)
    return found.data


def increment(storage: Storage, path: str, times: int) -> int:
    """Add one to the number in a file, ``times`` times, by compare-and-swap; how often another writer was faster."""
    conflicts = 0
    for _ in range(times):
        while True:
            found = storage.read(path)
            assert isinstance(found, Read)
            time.sleep(0)  # let another thread come between
            try:
                storage.write(path, [b"%d" % (int(found.data) + 1)], found.token)
                break
            except ConflictError:
                conflicts += 1
                time.sleep(0.0001 * (conflicts % 8))  # or the same ones would meet again
    return conflicts


def in_threads(functions: Iterable[Callable[[], object]]) -> list[object]:
    """Results of all, called at once; an exception is a result too."""
    functions = list(functions)
    results: list[object] = [None] * len(functions)
    barrier = threading.Barrier(len(functions))

    def run(index: int, function: Callable[[], object]) -> None:
        barrier.wait()
        try:
            results[index] = function()
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=item) for item in enumerate(functions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
