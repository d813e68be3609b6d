"""``install()``: ``import orbax.checkpoint`` finds this package, in programs that cannot be changed.

    import ocdbt_py.interop.orbax
    ocdbt_py.interop.orbax.install()
    import keras                         # whatever it imports of orbax.checkpoint is ours from now on

A finder in front of all others answers for the name ``orbax.checkpoint`` and those below it: with modules of this
package where there are any, and otherwise with an ``ImportError`` that says so. Other packages called ``orbax.…`` are
found as ever. What was imported before cannot be exchanged any more: then nothing is installed, and the error says it.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from ocdbt_py.errors import ConflictError

__all__ = ["install", "uninstall"]

_THEIRS = "orbax.checkpoint"
_OURS = "ocdbt_py.interop.orbax"
_EXPERIMENTAL = "orbax.checkpoint.experimental"
_MOVED = {"orbax.checkpoint.experimental.v1": f"{_OURS}.v1"}
"""Modules that have another place here."""


def install() -> None:
    """Have ``orbax.checkpoint`` be this package, in the whole process. Does nothing if it is already.

    Raises :class:`ConflictError` if the real one has been imported: call this earlier.
    """
    found = sys.modules.get(_THEIRS)
    if found is not None and found is not import_module(_OURS):
        raise ConflictError(
            f"{_THEIRS} has been imported already, from {getattr(found, '__file__', None) or 'somewhere else'}; call "
            "install() before anything that imports it",
            kind="already-imported",
        )
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def uninstall() -> None:
    """Undo :func:`install` for what is imported from now on; whoever has our modules keeps them."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Finder)]
    ours = import_module(_OURS)
    if sys.modules.get(_THEIRS) is not ours:
        return
    for name in [name for name in sys.modules if name == _THEIRS or name.startswith(f"{_THEIRS}.")]:
        del sys.modules[name]
    above = sys.modules.get("orbax")
    if getattr(above, "checkpoint", None) is ours:
        delattr(above, "checkpoint")


class _Finder(importlib.abc.MetaPathFinder):
    """Finds our modules by Orbax's names."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname == "orbax":
            return self._namespace(path, target)
        if fullname != _THEIRS and not fullname.startswith(f"{_THEIRS}."):
            return None
        ours = _our_name(fullname)
        if ours is None:
            return importlib.machinery.ModuleSpec(fullname, _Experimental(), is_package=True)
        if not _exists(ours):
            # another finder would look into the directory of our package, and load a file of it a second time
            raise ModuleNotFoundError(
                f"No module named {fullname!r}: ocdbt_py stands in for {_THEIRS} here, and has no such module",
                name=fullname,
            )
        return importlib.machinery.ModuleSpec(fullname, _Alias(ours), is_package=True)

    def _namespace(
        self, path: Sequence[str] | None, target: ModuleType | None
    ) -> importlib.machinery.ModuleSpec | None:
        """The package around it: the one that is installed, with whatever else is in it; else an empty one."""
        for finder in sys.meta_path:
            if finder is not self and hasattr(finder, "find_spec"):
                spec = finder.find_spec("orbax", path, target)
                if spec is not None:
                    return spec
        return importlib.machinery.ModuleSpec("orbax", None, is_package=True)


def _our_name(theirs: str) -> str | None:
    """What a module of Orbax's is called here; None for the package that has only one module for us."""
    if theirs == _EXPERIMENTAL:
        return None
    for moved, ours in _MOVED.items():
        if theirs == moved or theirs.startswith(f"{moved}."):
            return ours + theirs.removeprefix(moved)
    return _OURS + theirs.removeprefix(_THEIRS)


def _exists(ours: str) -> bool:
    try:
        return find_spec(ours) is not None
    except ModuleNotFoundError:  # nor is there what it would lie in
        return False


class _Alias(importlib.abc.Loader):
    """Gives a module of ours another name, and loads nothing twice."""

    def __init__(self, ours: str) -> None:
        self._ours = ours

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        sys.modules[module.__name__] = import_module(self._ours)


class _Experimental(importlib.abc.Loader):
    """Makes ``orbax.checkpoint.experimental``, which has ``v1`` alone."""

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        module.__path__ = []

        def absent(name: str) -> object:
            if name == "v1":
                return import_module(f"{_OURS}.v1")
            raise AttributeError(
                f"{_EXPERIMENTAL} has only v1 here, where ocdbt_py stands in for {_THEIRS}; not {name!r}"
            )

        module.__getattr__ = absent  # type: ignore[method-assign]
