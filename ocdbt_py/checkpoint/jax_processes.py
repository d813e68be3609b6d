"""The processes of ``jax.distributed``, through the key-value store of its coordination service.

Only what every release of JAX since 0.4 has is used: setting a key, and waiting for one. This module never imports JAX;
where the program has not, there are no such processes.
"""

from __future__ import annotations

import sys
import threading
import time
from binascii import a2b_base64, b2a_base64
from collections import Counter, deque
from contextlib import suppress
from typing import Any

from ocdbt_py.checkpoint.processes import Alone, Processes, is_failure, missing_processes
from ocdbt_py.errors import StorageError, UnsupportedError

__all__ = ["JaxProcesses", "default_processes"]

_LOOK_MS = 500
"""So often somebody who waits for one process asks whether any has failed."""

_GLANCE_MS = 1
_KEPT = 32
"""Of the keys that a process has set, the last so many stay: a slow one may be a few behind, not more."""


class JaxProcesses:
    """All processes of a job that called ``jax.distributed.initialize``."""

    def __init__(self, client: Any, index: int, count: int) -> None:
        self._client = client
        self.index = index
        self.count = count
        self._calls: Counter[str] = Counter()
        self._keys: deque[str] = deque()
        self._lock = threading.Lock()

    def all_gather(self, name: str, data: bytes, timeout: float) -> list[bytes]:
        deadline = time.monotonic() + timeout
        with self._lock:
            self._calls[name] += 1
            base = f"ocdbt/{name}/{self._calls[name]}"
        failure = f"{base}/failure"
        self._set(f"{base}/{self.index}", data)
        answers: dict[int, bytes] = {self.index: data}
        if is_failure(data):
            with suppress(StorageError):  # another one was faster
                self._set(failure, str(self.index).encode())
        for index in range(self.count):
            while index not in answers and not any(map(is_failure, answers.values())):
                left = deadline - time.monotonic()
                wait = min(_LOOK_MS, max(int(left * 1000), _GLANCE_MS))
                if self._get(f"{base}/{index}", wait, index, answers):
                    continue
                failed: dict[int, bytes] = {}
                if self._get(failure, _GLANCE_MS, 0, failed):
                    self._get(f"{base}/{int(failed[0])}", _LOOK_MS, int(failed[0]), answers)
                elif left <= 0:
                    for later in range(index + 1, self.count):
                        self._get(f"{base}/{later}", _GLANCE_MS, later, answers)
                    raise missing_processes(name, set(range(self.count)) - answers.keys(), self.count, timeout)
        self._forget(f"{base}/{self.index}")
        return [answers.get(index, b"") for index in range(self.count)]

    def _set(self, key: str, data: bytes) -> None:
        try:
            self._client.key_value_set(key, b2a_base64(data, newline=False).decode())
        except Exception as error:  # JAX's class of it has changed its name and its place
            raise _unreachable(error) from error

    def _get(self, key: str, timeout_ms: int, index: int, answers: dict[int, bytes]) -> bool:
        """Put what stands there into the answers, if anybody sets it in time."""
        try:
            answers[index] = a2b_base64(self._client.blocking_key_value_get(key, timeout_ms))
        except Exception as error:
            if "DEADLINE_EXCEEDED" in str(error) or "NOT_FOUND" in str(error):
                return False
            raise _unreachable(error) from error
        return True

    def _forget(self, key: str) -> None:
        """Remove keys that nobody can want any more, so that the service does not fill up."""
        with self._lock:
            self._keys.append(key)
            gone = self._keys.popleft() if len(self._keys) > _KEPT else None
        if gone is not None:
            with suppress(Exception):
                self._client.key_value_delete(gone)


def _unreachable(error: Exception) -> StorageError:
    return StorageError(
        f"JAX's coordination service did not answer: {error}. The process that runs it is perhaps gone",
        kind="exchange",
    )


_found: dict[Any, JaxProcesses] = {}  # by client: its keys are counted from the start of the job


def default_processes() -> Processes:
    """Those of ``jax.distributed`` where that is initialised, else this process alone."""
    state: Any = getattr(sys.modules.get("jax._src.distributed"), "global_state", None)
    client = getattr(state, "client", None)
    count = getattr(state, "num_processes", None) or 1
    if client is None or count == 1:
        return Alone()
    if not (hasattr(client, "key_value_set") and hasattr(client, "blocking_key_value_get")):
        raise UnsupportedError(
            "This release of JAX has another coordination service than those known here; give processes=, such as "
            "ocdbt_py.FileProcesses"
        )
    found = _found.get(client)
    if found is None:
        found = _found[client] = JaxProcesses(client, state.process_id, count)
    return found
