"""The storage backends by name, loaded on first use: ``from ocdbt_py.backends import MemoryStorage``.

They live in the package ``ocdbt_py_backends``, one module per family of storages; a URL finds them by itself
(:mod:`ocdbt_py.storage.location`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ocdbt_py.storage.location import load_backend

if TYPE_CHECKING:
    from ocdbt_py_backends.local import LocalStorage as LocalStorage
    from ocdbt_py_backends.memory import MemoryStorage as MemoryStorage

_HOMES = {"LocalStorage": "local", "MemoryStorage": "memory"}

__all__ = ["LocalStorage", "MemoryStorage"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return load_backend(f"ocdbt_py_backends.{_HOMES[name]}:{name}")


def __dir__() -> list[str]:
    return sorted(__all__)
