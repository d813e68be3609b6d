"""The architecture, held by tests: imports run downwards only. ``tests/format/test_imports.py`` has the format core."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "ocdbt_py"

# Each layer may use those below it. A layer is a module or a folder of the package.
LAYERS = [
    ("errors",),
    ("format",),
    ("storage",),
    ("engine",),
    ("keys_and_values", "copying", "database_reading", "transaction", "database"),
    ("array",),
    ("checkpoint",),
    ("care",),
    ("manager",),
    ("interop",),
    ("view",),
    ("cli", "__main__"),
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
# Beside the house: the package's public names, the facades, and what tests of other packages use.
ANYWHERE = {"__init__", "backends", "policies", "testing"}
BACKENDS_MAY_USE = {"storage", "errors"}


def imported_modules(file: Path, root: Path) -> Iterator[str]:
    """Absolute names of what a file imports, at any depth, but not for type checking only."""
    package = [*file.relative_to(root).parts[:-1]]
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{name.name}" for name in node.names)


def layer_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "ocdbt_py" and len(parts) > 1 else None


def files_with_layers() -> list[tuple[Path, str]]:
    files = sorted(PACKAGE.rglob("*.py"))
    found = [(file, file.relative_to(PACKAGE).parts[0].removesuffix(".py")) for file in files]
    return [(file, layer) for file, layer in found if layer not in ANYWHERE]


def test_every_module_belongs_to_a_layer() -> None:
    assert {layer for _, layer in files_with_layers()} <= RANK.keys()


@pytest.mark.parametrize(
    ("file", "layer"), [pytest.param(f, n, id=str(f.relative_to(ROOT))) for f, n in files_with_layers()]
)
def test_imports_run_downwards_only(file: Path, layer: str) -> None:
    used = {name for module in imported_modules(file, ROOT) if (name := layer_of(module)) in RANK}
    upwards = {name for name in used if RANK[name] > RANK[layer]}
    sideways = {name for name in used if RANK[name] == RANK[layer] and name not in LAYERS[RANK[layer]]}
    assert not upwards | sideways


def test_nothing_above_storage_imports_fsspec_but_interop() -> None:
    for file, layer in files_with_layers():
        if RANK[layer] > RANK["storage"] and layer != "interop":
            assert not any(module.split(".")[0] == "fsspec" for module in imported_modules(file, ROOT)), file


def test_backends_use_the_storage_protocol_and_errors_alone() -> None:
    for file in sorted((ROOT / "backends").rglob("*.py")):
        modules = imported_modules(file, ROOT / "backends")
        used = {name for module in modules if (name := layer_of(module)) is not None and name in RANK}
        assert used <= BACKENDS_MAY_USE, file
