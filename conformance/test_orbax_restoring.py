"""Restores with Orbax's names: the same call on the same directory gives what Orbax gives, or fails as Orbax fails.

All of it runs in one process on eight virtual devices (``orbax_restoring_job``); here is one test for each case.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
MODULES = ("targets", "leaves", "helpers", "damage", "steps")
CASES = [
    name
    for module in MODULES
    for name in re.findall(
        r"^@case\(.*\)\ndef (\w+)", (Path(__file__).parent / f"orbax_restoring_{module}.py").read_text(), re.MULTILINE
    )
]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    directory = tmp_path_factory.mktemp("restoring")
    path = os.pathsep.join([str(ROOT), str(ROOT / "backends"), os.environ.get("PYTHONPATH", "")])
    environment = {
        **os.environ,
        "PYTHONPATH": path,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    }
    script = [sys.executable, "-m", "conformance.orbax_restoring_job", str(directory)]
    done = subprocess.run(script, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    found: Any = json.loads((directory / "result.json").read_text())
    return {part: dict(found[part]) for part in ("cases", "corpus")}


@pytest.mark.parametrize("case", CASES)
def test_a_restore_gives_what_orbax_gives(case: str, results: dict[str, dict[str, str]]) -> None:
    assert set(results["cases"]) == set(CASES)
    assert not results["cases"][case], results["cases"][case]


def test_every_tree_of_the_corpus_comes_back_as_orbax_gives_it(results: dict[str, dict[str, str]]) -> None:
    assert len(results["corpus"]) > 250
    different = {name: found for name, found in results["corpus"].items() if found}
    assert not different
