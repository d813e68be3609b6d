"""``install()``: ``orbax.checkpoint`` is ours, or it is said why not. Each test has a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def run(tmp_path: Path, *lines: str) -> str:
    """What these lines print, in a process in which no ``orbax`` is installed but what lies in ``tmp_path``."""
    hidden = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "backends")!r}]
import importlib.machinery
found = importlib.machinery.PathFinder.find_spec
def without_orbax(name, path=None, target=None):
    return found(name, [{str(tmp_path)!r}] if name == "orbax" else path, target)
importlib.machinery.PathFinder.find_spec = without_orbax
"""
    done = subprocess.run(
        [sys.executable, "-c", hidden + "\n".join(lines)], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_way_to_import_it_finds_ours(tmp_path: Path) -> None:
    printed = run(
        tmp_path,
        "from ocdbt_py.interop.orbax import install",
        "install(); install()",
        "import importlib, ocdbt_py.interop.orbax as ours",
        "assert importlib.import_module('orbax.checkpoint') is ours",
        "import orbax.checkpoint as ocp",
        "from orbax.checkpoint import v1",
        "import orbax.checkpoint.experimental.v1 as experimental",
        "from orbax.checkpoint.experimental import v1 as again",
        "import orbax.checkpoint.v1.training, orbax.checkpoint.experimental.v1.options as options",
        "import orbax.checkpoint.checkpoint_managers",
        "assert ocp is ours and v1 is experimental is again is ours.v1 and options is ours.v1.options",
        "assert ocp.multihost is ours.multihost and orbax.checkpoint.experimental.v1 is v1",
        "assert sum(name.endswith('v1.training.checkpointer') for name in sys.modules) == 1",
        "assert ours.__name__ == ours.__spec__.name == 'ocdbt_py.interop.orbax'",
        "assert 'jax' not in sys.modules",
        "print('all ours')",
    )
    assert printed == "all ours\n"


def test_a_module_or_a_name_that_we_lack_is_an_error_that_says_so(tmp_path: Path) -> None:
    printed = run(
        tmp_path,
        "import ocdbt_py.interop.orbax",
        "ocdbt_py.interop.orbax.install()",
        "import orbax.checkpoint",
        "for name in ('orbax.checkpoint._src.path', 'orbax.checkpoint.experimental.emergency'):",
        "    try: __import__(name)",
        "    except ModuleNotFoundError as error: print(error.name, 'stands in for orbax.checkpoint' in str(error))",
        "for names in ('orbax.checkpoint.CheckpointManagerOption', 'orbax.checkpoint.experimental.emergency'):",
        "    try: eval(names)",
        "    except AttributeError as error: print(error)",
    )
    lines = printed.splitlines()
    assert lines[:2] == ["orbax.checkpoint._src True", "orbax.checkpoint.experimental.emergency True"]
    assert "'CheckpointManagerOptions'" in lines[2]
    assert "only v1" in lines[3]


def test_it_refuses_when_the_real_one_was_imported(tmp_path: Path) -> None:
    package = tmp_path / "orbax" / "checkpoint"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("real = True\n")
    printed = run(
        tmp_path,
        "import orbax.checkpoint",
        "from ocdbt_py.interop.orbax import install",
        "from ocdbt_py.errors import ConflictError",
        "try: install()",
        "except ConflictError as error: print(error.kind, error)",
        "assert orbax.checkpoint.real",
        "assert not any(type(finder).__module__.startswith('ocdbt_py') for finder in sys.meta_path)",
    )
    assert printed.startswith("already-imported ")
    assert str(package) in printed


def test_other_packages_beside_it_are_found_and_undoing_gives_the_real_one_back(tmp_path: Path) -> None:
    for name in ("checkpoint", "export"):
        (tmp_path / "orbax" / name).mkdir(parents=True)
        (tmp_path / "orbax" / name / "__init__.py").write_text("import orbax.checkpoint as used; real = True\n")
    printed = run(
        tmp_path,
        "from ocdbt_py.interop.orbax.installation import install, uninstall",
        "install()",
        "import orbax.export, ocdbt_py.interop.orbax as ours",
        "assert orbax.export.real and orbax.export.used is orbax.checkpoint is ours",
        "uninstall()",
        "import orbax.checkpoint",
        "assert orbax.checkpoint.real and orbax.export.used is ours",
        "uninstall()",
        "print('done')",
    )
    assert printed == "done\n"
