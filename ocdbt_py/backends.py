"""The storage backends by name, loaded on first use: ``from ocdbt_py.backends import MemoryStorage``.

They live in the package ``ocdbt_py_backends``, one module per family of storages; a URL finds them by itself
(:mod:`ocdbt_py.storage.location`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ocdbt_py.storage.location import load_backend

if TYPE_CHECKING:
    from ocdbt_py_backends.azure import AzureStorage as AzureStorage
    from ocdbt_py_backends.caching import CachingStorage as CachingStorage
    from ocdbt_py_backends.gcs import GCSStorage as GCSStorage
    from ocdbt_py_backends.generic import GenericStorage as GenericStorage
    from ocdbt_py_backends.http import HTTPStorage as HTTPStorage
    from ocdbt_py_backends.local import LocalStorage as LocalStorage
    from ocdbt_py_backends.memory import MemoryStorage as MemoryStorage
    from ocdbt_py_backends.s3 import S3Storage as S3Storage
    from ocdbt_py_backends.sftp import SFTPStorage as SFTPStorage

_HOMES = {
    "AzureStorage": "azure",
    "CachingStorage": "caching",
    "GCSStorage": "gcs",
    "GenericStorage": "generic",
    "HTTPStorage": "http",
    "LocalStorage": "local",
    "MemoryStorage": "memory",
    "S3Storage": "s3",
    "SFTPStorage": "sftp",
}

__all__ = [
    "AzureStorage",
    "CachingStorage",
    "GCSStorage",
    "GenericStorage",
    "HTTPStorage",
    "LocalStorage",
    "MemoryStorage",
    "S3Storage",
    "SFTPStorage",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return load_backend(f"ocdbt_py_backends.{_HOMES[name]}:{name}")


def __dir__() -> list[str]:
    return sorted(__all__)
