"""JAX arrays sharded over eight devices, between Orbax and us: all scenarios of one process (``sharded_job``)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
SOURCE = (Path(__file__).parent / "sharded_job.py").read_text()
SCENARIOS = [line.strip().rstrip(",") for line in SOURCE.split("SCENARIOS: ")[1].split("\n)")[0].splitlines()[1:]]


def run(script: list[str], **variables: str) -> None:
    path = os.pathsep.join([str(ROOT), str(ROOT / "backends"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu", **variables}
    done = subprocess.run([sys.executable, *script], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("sharded")
    run(["-m", "conformance.sharded_job", str(found)], XLA_FLAGS="--xla_force_host_platform_device_count=8")
    return found


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_sharded_arrays(scenario: str, directory: Path) -> None:
    results = json.loads((directory / "result.json").read_text())
    assert set(results) == set(SCENARIOS)
    assert not results[scenario], results[scenario]


def test_sharded_arrays_are_restored_as_numpy_where_jax_cannot_be_imported(directory: Path, tmp_path: Path) -> None:
    script = """
import sys
for name in ("jax", "jaxlib", "tensorstore", "orbax"):
    sys.modules[name] = None
import numpy, ocdbt_py
numpy.savez(sys.argv[2], **ocdbt_py.restore(sys.argv[1]))
"""
    checkpoint = directory / "numpy_arrays_become_sharded_ones_and_sharded_ones_numpy" / "sharded"
    run(["-c", script, str(checkpoint), str(tmp_path / "found.npz")])
    with np.load(tmp_path / "found.npz") as found:
        assert sorted(found) == ["all", "both", "columns", "joined", "rows", "turned"]
        for i, name in enumerate(("both", "turned", "rows", "columns", "joined", "all")):
            assert np.array_equal(found[name], np.arange(16 * 24, dtype="float32").reshape(16, 24) + i)
