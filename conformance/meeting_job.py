"""One of four processes that share a directory and save together, without JAX."""

from __future__ import annotations

import os
import sys
from multiprocessing.synchronize import Barrier
from typing import Any

import numpy as np

from ocdbt_py.checkpoint.file_processes import FileProcesses
from ocdbt_py.checkpoint.save import save

COUNT = 4
WAIT = 4.0
"""Seconds that a survivor waits; all begin at the same moment."""


class Faulty(FileProcesses):
    """Something happens to this process when it has written its part, before it says so."""

    fault = ""

    def all_gather(self, name: str, data: bytes, timeout: float) -> list[bytes]:
        if name.endswith("/write") and self.fault == "kill":
            os._exit(9)
        return super().all_gather(name, data, timeout)


def member_of_a_meeting(directory: str, index: int, run: int, fault: str, start: Barrier, queue: Any) -> None:
    """Save three times; put (index, error or "", modules that nobody should need)."""
    said = ""
    start.wait(60)
    tree = {"x": np.full(5000, run) + index, "run": run, "mine": f"{index}"}
    if fault == "raise":
        tree["x"] = np.array(["text"])
    try:
        with Faulty(f"{directory}/meeting", index, COUNT) as processes:
            processes.fault = fault
            for step in range(3):
                save(f"{directory}/{step}", tree, overwrite=True, processes=processes, wait_timeout=WAIT)
    except BaseException as error:
        said = f"{type(error).__name__}: {error}"
    queue.put((index, said, sorted({"jax", "tensorstore"} & set(sys.modules))))
