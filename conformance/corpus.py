"""The corpus as directories: databases and checkpoints that TensorStore and Orbax wrote, with what is known of them.

    for case in ocdbt_cases():
        database = open(case.db)
        assert len(database) == len(case.expected["contents"])

The archives beside this module are unpacked once a process, into a temporary directory that goes with it. Tests share
it: who writes to a case copies it first.
"""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Case", "OrbaxCase", "corrupt_cases", "ocdbt_cases", "orbax_cases"]

_ARCHIVES = Path(__file__).parent / "archives"


@dataclass(frozen=True)
class _Observed:
    name: str
    directory: Path

    @functools.cached_property
    def expected(self) -> dict[str, Any]:
        """``expected.json``; ``archives/README.md`` says what is in it."""
        content: dict[str, Any] = json.loads((self.directory / "expected.json").read_bytes())
        return content

    def __str__(self) -> str:
        return self.name


class Case(_Observed):
    """A database in the directory ``db``, written (or damaged by hand) and observed by TensorStore."""

    @property
    def db(self) -> Path:
        return self.directory / "db"


class OrbaxCase(_Observed):
    """A checkpoint, or the root directory of a manager, in the directory ``checkpoint``."""

    @property
    def checkpoint(self) -> Path:
        return self.directory / "ckpt"

    @functools.cached_property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """The values before they were saved (``expected.npz``)."""
        with np.load(self.directory / "expected.npz") as archive:
            return dict(archive)


def ocdbt_cases() -> list[Case]:
    """The sound databases, by name."""
    return [Case(path.name, path) for path in _case_directories(_unpacked("ocdbt"))]


def corrupt_cases() -> list[Case]:
    """The databases made by hand, most of them with exactly one defect, by name."""
    return [Case(path.name, path) for path in _case_directories(_unpacked("ocdbt") / "corrupt")]


def orbax_cases() -> list[OrbaxCase]:
    """The checkpoints, by name."""
    return [OrbaxCase(path.name, path) for path in _case_directories(_unpacked("orbax"))]


def _case_directories(directory: Path) -> list[Path]:
    return sorted(path.parent for path in directory.glob("*/expected.json"))


@functools.cache
def _unpacked(archive: str) -> Path:
    """The directory an archive holds; archives inside it (where a case has many files) are unpacked in place."""
    directory = Path(tempfile.mkdtemp(prefix=f"ocdbt-py-corpus-{archive}-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    _extract(_ARCHIVES / f"{archive}.tar.xz", directory)
    for inner in sorted(directory.rglob("*.tar.gz")):
        _extract(inner, inner.parent)
        inner.unlink()
    return directory / archive


def _extract(archive: Path, directory: Path) -> None:
    with tarfile.open(archive) as tar:
        tar.extractall(directory, filter="data")
