"""``v1.path``: paths, and the names of steps."""

from __future__ import annotations

import os
from pathlib import Path

from ocdbt_py.interop.orbax.path import step
from ocdbt_py.interop.orbax.v1.handlers import PathAwaitingCreation

__all__ = ["Path", "PathAwaitingCreation", "PathLike", "step"]

PathLike = str | os.PathLike[str]
