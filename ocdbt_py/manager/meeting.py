"""Several roots in one group of processes, each with a save of its own under way.

Processes meet under names, and two saves of step 7, below two roots, would meet under the same one, from two threads at
once. So each root gets a number among the roots of its processes, which all of them open in the same order, and puts it
before every name.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from ocdbt_py.checkpoint.processes import Processes

__all__ = ["of_one_root"]

_roots: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


class _OfOneRoot:
    def __init__(self, processes: Processes, number: int) -> None:
        self._processes = processes
        self._number = number
        self.index = processes.index
        self.count = processes.count

    def all_gather(self, name: str, data: bytes, timeout: float) -> list[bytes]:
        return self._processes.all_gather(f"root {self._number}, {name}", data, timeout)


def of_one_root(processes: Processes) -> Processes:
    """The same processes, for one more root."""
    if not callable(getattr(processes, "all_gather", None)) or processes.count == 1:
        return processes
    _roots[processes] = number = _roots.get(processes, 0) + 1
    return _OfOneRoot(processes, number)
