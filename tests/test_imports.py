"""What ``import ocdbt_py`` does: next to nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import ocdbt_py

ROOT = Path(__file__).parent.parent


def modules_after(statement: str) -> set[str]:
    script = f"import sys; sys.path[:0] = ['.', 'backends']; {statement}; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_loads_neither_jax_nor_fsspec_nor_numpy() -> None:
    loaded = modules_after("import ocdbt_py")
    assert not loaded & {"jax", "fsspec", "numpy", "zstandard", "tensorstore", "asyncio", "rich"}


def test_a_local_database_is_used_without_jax_fsspec_or_asyncio(tmp_path: Path) -> None:
    loaded = modules_after(f"import ocdbt_py; db = ocdbt_py.open({str(tmp_path)!r}, 'a'); db['a'] = b'b'; db['a']")
    assert not loaded & {"jax", "fsspec", "tensorstore", "asyncio", "rich"}


def test_a_database_opened_to_be_written_has_loaded_what_commits(tmp_path: Path) -> None:
    """A child that is forked while a thread imports it would wait for the lock of that import for ever."""
    where = repr(str(tmp_path))
    loaded = modules_after(f"import ocdbt_py; ocdbt_py.open({where}, 'a'), ocdbt_py.open({where}, 'a')")
    # not at the first commit, nor at those that look who else waits or move versions out of the manifest
    commits = "[db.write(str(n), bytes(200)) for n in range(20)]"
    written = modules_after(f"import ocdbt_py; db = ocdbt_py.open({where}, 'a'); {commits}")
    assert written <= loaded


def test_to_open_save_and_restore_nothing_is_loaded_that_few_calls_need() -> None:
    loaded = modules_after("import ocdbt_py; ocdbt_py.open, ocdbt_py.save, ocdbt_py.restore")
    of_numpy = modules_after("import numpy")
    assert not (loaded - of_numpy) & {
        "importlib.metadata",
        "concurrent.futures",
        "logging",
        "hashlib",
        "bz2",
        "pathlib",
    }
    of_few = {"array.zarr3", "array.lazy", "checkpoint.aggregate", "checkpoint.directories", "checkpoint.merging"}
    assert not loaded & {f"ocdbt_py.{name}" for name in of_few}


def test_every_public_name_loads() -> None:
    for name in ocdbt_py.__all__:
        assert getattr(ocdbt_py, name) is not None
    assert set(ocdbt_py.__all__) <= set(dir(ocdbt_py))


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    assert not hasattr(ocdbt_py, "no_such_name")
