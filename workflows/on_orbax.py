"""Runs an example on the real Orbax, so that its output and its checkpoints can be compared with ours.

    python -m workflows.on_orbax examples.torchax_training DIRECTORY

The examples import ``ocdbt_py.interop.orbax``; here that name stands for the real module. Where an example calls
``install()``, which makes Orbax's name stand for ours, nothing is done. And where one ends without a wait, the managers
are closed here: a save that is in flight when the process ends is lost with Orbax, after minutes at times.
"""

from __future__ import annotations

import runpy
import sys
from typing import Any

import orbax.checkpoint

import ocdbt_py.interop


class RememberedManager(orbax.checkpoint.CheckpointManager):  # type: ignore[misc]
    """Orbax's own."""

    all: list[RememberedManager] = []  # noqa: RUF012 - of the class, and meant

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.all.append(self)


def main() -> None:
    _, *sys.argv = sys.argv
    orbax.checkpoint.CheckpointManager = RememberedManager
    orbax.checkpoint.install = lambda: None
    sys.modules["ocdbt_py.interop.orbax"] = orbax.checkpoint
    vars(ocdbt_py.interop)["orbax"] = orbax.checkpoint
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    for manager in RememberedManager.all:
        manager.close()


if __name__ == "__main__":
    main()
