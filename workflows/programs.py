"""Runs an example as its user would, in a process of its own; and one that is killed at a line that it prints.

On ours a program can import neither TensorStore nor Orbax, though both are installed.
"""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BARRED = ROOT / "workflows" / "barred"
"""Modules in the place of TensorStore and of Orbax that cannot be imported."""
TIMEOUT = 300
"""Seconds; only a program that hangs takes as long."""


def needs(*packages: str) -> None:
    """Skips the module that calls this if a package is not installed. None is imported: their programs do that."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        reason = f"{' and '.join(missing)} not installed; make test-workflows has an environment with everything"
        pytest.skip(reason, allow_module_level=True)


@dataclass(frozen=True)
class Printed:
    """What a program printed, and the exit code it had."""

    text: str
    code: int

    def numbers(self, pattern: str) -> list[int]:
        """The numbers in the lines that match a pattern with one group."""
        return [int(number) for number in re.findall(f"^{pattern}", self.text, re.MULTILINE)]

    def pairs(self, pattern: str) -> list[tuple[str, str]]:
        """The groups of the lines that match a pattern with two."""
        return re.findall(f"^{pattern}", self.text, re.MULTILINE)

    def last(self, pattern: str) -> str:
        """The group of the last line that matches."""
        found = re.findall(f"^{pattern}", self.text, re.MULTILINE)
        assert found, f"no line matches {pattern!r} in:\n{self.text}"
        return str(found[-1])


@dataclass(frozen=True)
class Program:
    """One of the examples; ``environ`` is what it needs to reach a storage server."""

    module: str
    environ: Mapping[str, str] = field(default_factory=dict)

    def run(self, *arguments: str, on_orbax: bool = False) -> Printed:
        """To its end, which must be a good one. ``on_orbax``: with the real Orbax in our place."""
        printed, errors = self._run([*(["workflows.on_orbax"] if on_orbax else []), self.module, *arguments], on_orbax)
        assert printed.code == 0, f"{printed.text}\n{errors}"
        return printed

    def run_until(self, line: str, *arguments: str, delay: float = 0) -> Printed:
        """Until it has printed a line that begins so, or so many seconds more; then it is killed."""
        printed, errors = self._run(["workflows.killed", line, str(delay), self.module, *arguments])
        assert printed.code == -signal.SIGKILL, f"{printed.text}\n{errors}"
        return printed

    def _run(self, command: Sequence[str], on_orbax: bool = False) -> tuple[Printed, str]:
        path = [ROOT, ROOT / "backends"] if on_orbax else [BARRED, ROOT, ROOT / "backends"]
        environ = {**os.environ, **self.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            env=environ | {"COLUMNS": "200"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=TIMEOUT,
            check=False,
        )
        return Printed(done.stdout, done.returncode), done.stderr
