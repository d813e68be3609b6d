"""The format layer is bytes and values: it works where nothing could be reached."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent

PROGRAM = """
import importlib, pkgutil, sys

# What the libraries import is their own business.
import fastcrc, numpy
try:
    import compression.zstd
except ImportError:
    import zstandard

REFUSED = {"asyncio", "fsspec", "jax", "ocdbt_py_backends", "socket", "tensorstore", "urllib"}

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in REFUSED:
            raise ImportError(f"{name} was imported")

for name in [name for name in sys.modules if name.split(".")[0] in REFUSED]:
    del sys.modules[name]
sys.meta_path.insert(0, Refuse())

import ocdbt_py.format
modules = [module.name for module in pkgutil.iter_modules(ocdbt_py.format.__path__, "ocdbt_py.format.")]
for module in modules:
    importlib.import_module(module)
allowed = ("ocdbt_py.format", "ocdbt_py.errors")
print(len(modules), [name for name in sys.modules if name.startswith("ocdbt_py.") and not name.startswith(allowed)])
"""


def test_it_imports_without_sockets_filesystems_or_jax_and_nothing_above_it() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    count, above = done.stdout.split(maxsplit=1)
    assert int(count) == len(list((ROOT / "ocdbt_py" / "format").glob("[!_]*.py"))) >= 9
    assert above.strip() == "[]"
