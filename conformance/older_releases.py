"""Older releases of Orbax restore what we save, and we what they save: ``python -m conformance.older_releases``.

Not a part of the tests, because each release needs an environment of its own (some hundred MB, from the package index):
it is made on first use below ``--environments`` and kept. Prints a line for each release; the exit code is 1 if one of
them failed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

from conformance.older_release_job import assert_same, lists, tree
from ocdbt_py import restore, save

RELEASES = {
    "0.7.0": ["jax==0.4.35", "jaxlib==0.4.35", "tensorstore==0.1.68", "numpy==2.1.3", "ml_dtypes==0.5.0"],
    "0.11.5": ["jax==0.5.3", "jaxlib==0.5.3", "tensorstore==0.1.73", "numpy==2.2.4", "ml_dtypes==0.5.1"],
}
"""What goes with each release: of its time, because Orbax does not pin what it needs."""

JOB = Path(__file__).with_name("older_release_job.py")

WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "uncompressed": {"compression": None},
    "compressed": {"compression": "zstd"},
    "chunked": {"chunk_bytes": 10_000},
    "zarr3": {"zarr_format": 3},
    "zarr3-chunked": {"zarr_format": 3, "compression": None, "chunk_bytes": 10_000},
}
"""The checkpoints that we save, by name: the options of :func:`ocdbt_py.save`."""


def environment(directory: Path, release: str) -> Path:
    """The interpreter of an environment with that release, made if it is not there."""
    home = directory / f"orbax-{release}"
    python, ready = home / "bin" / "python", home / "ready"
    if not ready.exists():
        venv.create(home, with_pip=True, clear=True)
        packages = [f"orbax-checkpoint=={release}", *RELEASES[release]]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
        ready.touch()
    return python


def run(python: Path, what: str, directory: Path) -> None:
    """One job in that environment; what it says is shown only if it fails."""
    surroundings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    surroundings["JAX_PLATFORMS"] = "cpu"
    command = [str(python), str(JOB), what, str(directory)]
    done = subprocess.run(command, env=surroundings, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise AssertionError(f"{what} failed:\n{done.stderr}")


def judge(python: Path, directory: Path) -> str:
    """Both ways; how many checkpoints went each."""
    for name, options in WAYS.items():
        save(directory / "ours" / name, tree(), **options)
    save(directory / "ours" / "managed" / "3" / "default", tree())
    run(python, "restore", directory / "ours")
    run(python, "save", directory / "theirs")
    theirs = sorted((directory / "theirs").iterdir())
    for path in theirs:
        expected = tree() | ({"weird names": {}} if path.name.startswith("directories") else {})
        url = path / "3" if path.name == "managed" else path
        found = restore(url)
        assert_same(found, without_jax(lists(expected)), str(path))
        assert_same(restore(url, expected), expected, f"{path} with a target")
    return f"restored all {len(WAYS) + 1} of ours; all {len(theirs)} of its own were restored"


def without_jax(value: object) -> object:
    """What we give without a target: NumPy arrays and Python numbers."""
    import jax
    import numpy as np

    return jax.tree.map(lambda leaf: np.asarray(leaf) if isinstance(leaf, jax.Array) else leaf, value)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m conformance.older_releases", description=__doc__)
    default = Path(tempfile.gettempdir()) / "ocdbt-py-older-releases"
    parser.add_argument("--environments", type=Path, default=default, help="where they are kept (%(default)s)")
    parser.add_argument("releases", nargs="*", default=list(RELEASES), help="of " + ", ".join(RELEASES))
    arguments = parser.parse_args()
    failed = 0
    for release in arguments.releases:
        with tempfile.TemporaryDirectory() as scratch:
            try:
                print(f"{release}: {judge(environment(arguments.environments, release), Path(scratch))}", flush=True)
            except (AssertionError, subprocess.SubprocessError) as error:
                failed = 1
                print(f"{release}: FAILED: {error}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
