"""The demonstration runs, and every verdict of it is good."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
JUDGES = {"ocdbt_py", "TensorStore", "Orbax StandardCheckpointer", "Orbax PyTreeCheckpointer", "ocdbt_py.restore"}


def demo(directory: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'backends'}", "COLUMNS": "100"}
    command = [sys.executable, "-m", "examples.demo", str(directory)]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=120, check=False
    )


def test_all_judges_find_the_checkpoint_identical(tmp_path: Path) -> None:
    done = demo(tmp_path / "checkpoint")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    verdicts = done.stdout.rpartition("Verdicts")[2].splitlines()[2:]
    assert {line.split("   ")[0] for line in verdicts} == JUDGES
    assert all(line.rstrip().endswith("identical") for line in verdicts)
    assert "903,201 elements, 3.6 MB" in done.stdout
    assert (tmp_path / "checkpoint" / "_METADATA").exists()
