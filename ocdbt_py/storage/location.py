"""From what a user calls a place to the storage that holds it and the path in it.

A place is spelled as a ``str`` (any fsspec URL, or a path), a path-like object, a ``UPath`` or an ``epath.Path``,
perhaps with ``storage_options`` for the URL, or with the fsspec filesystem ``fs`` in which it is a path. A ``str`` may
also be TensorStore's URL of a key-value store in a database, percent-encoded as TensorStore spells it::

    BASE|ocdbt:@v3/prefix        BASE|ocdbt:@2026-01-31T12:00:00Z/prefix        BASE|ocdbt:prefix        BASE|ocdbt

Who serves a scheme: our own backends, from a table of names (an uninstalled clone has no entry points, and looking for
them takes longer than opening a database); then other people's, from the entry-point group ``ocdbt_py.backends``; then
the generic backend, which serves whatever fsspec knows. Each is a :class:`Backend`. What a URL means beyond its scheme
is the backend's business, and nothing here imports fsspec. What few URLs need is imported, and compiled, for them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol, cast

from ocdbt_py.errors import InvalidArgumentError, InvalidTypeError, UnsupportedError
from ocdbt_py.storage.protocol import Storage

LOCKING = ("os", "lockfile", "none")
"""How writers of one local file keep out of each other's way; the names are those of TensorStore's file driver."""

ENTRY_POINT_GROUP = "ocdbt_py.backends"

_BACKENDS = {
    "file": "ocdbt_py_backends.local:LocalStorage",
    "local": "ocdbt_py_backends.local:LocalStorage",
    "memory": "ocdbt_py_backends.memory:MemoryStorage",
    "s3": "ocdbt_py_backends.s3:S3Storage",
    "s3a": "ocdbt_py_backends.s3:S3Storage",
    "gs": "ocdbt_py_backends.gcs:GCSStorage",
    "gcs": "ocdbt_py_backends.gcs:GCSStorage",
    "az": "ocdbt_py_backends.azure:AzureStorage",
    "abfs": "ocdbt_py_backends.azure:AzureStorage",
    "abfss": "ocdbt_py_backends.azure:AzureStorage",
    "http": "ocdbt_py_backends.http:HTTPStorage",
    "https": "ocdbt_py_backends.http:HTTPStorage",
    "sftp": "ocdbt_py_backends.sftp:SFTPStorage",
    "ssh": "ocdbt_py_backends.sftp:SFTPStorage",
    "simplecache": "ocdbt_py_backends.caching:CachingStorage",
    "filecache": "ocdbt_py_backends.caching:CachingStorage",
    "blockcache": "ocdbt_py_backends.caching:CachingStorage",
    "cached": "ocdbt_py_backends.caching:CachingStorage",
}

_GENERIC = "ocdbt_py_backends.generic:GenericStorage"
"""Serves whatever else fsspec knows, with what all of its filesystems can do."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)(?:://|::)")
_COLLAPSED = r"[A-Za-z][A-Za-z0-9+.-]+:/(?!/)"
_WEB = r"(?i:(?:\A|::)https?://)"
"""URLs that are percent-encoded in any form, also at the end of a chain."""

_OCDBT = re.compile(r"\|ocdbt(?::|$)")
_VERSION = r"v0*[1-9][0-9]*|[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]+)?Z"
_BAD_PERCENT = r"%(?![0-9A-Fa-f]{2})"
# The second form is a password with a slash in it: what follows the colon is no port.
_USER_INFO = r"\A(?:[^/]*@|[^/:@]*:(?![0-9]*(?:/|\Z))[^@]*@)"


@dataclass(frozen=True, slots=True)
class Settings:
    """How a storage is to write. ``durable``: what is acknowledged survives a power failure. ``locking``: one of
    :data:`LOCKING`, for local files.
    """

    durable: bool = True
    locking: str = "os"

    def __post_init__(self) -> None:
        if self.locking not in LOCKING:
            raise InvalidArgumentError(f"locking is one of {', '.join(map(repr, LOCKING))}, not {self.locking!r}")


DEFAULT_SETTINGS = Settings()


class Backend(Protocol):
    """What a scheme stands for; usually a class whose class methods these are.

    Both return the storage and the path of the place in it: absolute, without a trailing slash, ``""`` for the root.
    """

    def from_url(self, url: str, storage_options: Mapping[str, Any], settings: Settings) -> tuple[Storage, str]: ...

    def from_fs(self, fs: Any, path: str, settings: Settings) -> tuple[Storage, str]:
        """``fs`` is a synchronous fsspec filesystem, ``path`` a path in it as the user spelled it."""


@dataclass(frozen=True, slots=True)
class Place:
    """A resolved place. ``url`` is for messages; ``version`` (as spelled, without the ``@``) and ``prefix`` of the keys
    are what TensorStore's URL form adds.
    """

    storage: Storage
    path: str
    url: str
    version: str | None = None
    prefix: bytes = b""


def resolve(
    url: object,
    *,
    storage_options: Mapping[str, Any] | None = None,
    fs: Any = None,
    settings: Settings = DEFAULT_SETTINGS,
) -> Place:
    """The place that ``url`` names, made absolute now. Opens nothing and needs nothing to be there.

    Raises :class:`InvalidArgumentError` where the call contradicts itself or the URL is malformed, and
    :class:`UnsupportedError` where no backend serves the scheme.
    """
    text, options = _spelled(url, storage_options)
    base, version, prefix = _split(text) if isinstance(url, str) else (text, None, b"")
    if not base or "\0" in base:
        raise InvalidArgumentError(f"{safe_url(text)!r} names no place; give a URL or a path")
    if fs is not None:
        if options is not None:
            raise InvalidArgumentError("Give storage_options or fs, not both: fs has its options already")
        storage, path = _in_filesystem(fs, base, settings)
    else:
        found = None if base.startswith("/") else _SCHEME.match(base)
        scheme = found[1].lower() if found else ""
        base = scheme + base[len(scheme) :]
        storage, path = _backend(scheme or "file").from_url(base, options or {}, settings)
    return Place(storage, path, storage.describe(path), version, prefix)


def safe_url(url: str) -> str:
    """``url`` as it may be shown: without user info, query and fragment, in every link of a chain. Paths stay whole."""
    links = []
    for link in url.split("::"):
        scheme, separator, rest = link.partition("://")
        links.append(scheme + separator + re.sub(_USER_INFO, "", re.split("[?#]", rest)[0]) if separator else link)
    return "::".join(links)


def safe_path(path: str) -> str:
    """``path`` as it may be shown: what is no Unicode (surrogate escapes) stands as ``\\x`` and two digits."""
    return path if path.isascii() else path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def load_backend(target: str) -> Any:
    """The class ``target`` names as ``module:class``, of the package that lies beside this one."""
    module, _, name = target.partition(":")
    try:
        return getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name != package:
            raise
        clone = os.path.abspath(f"{__file__}/../../..")
        folder = os.path.join(clone, "backends")
        remedy = (
            f"this clone is not installed: run pip install --editable {clone}, or put {folder} on PYTHONPATH"
            if os.path.isdir(os.path.join(folder, package))
            else "it belongs to the distribution ocdbt-py: install that again"
        )
        raise UnsupportedError(
            f"The package {package}, which holds the storage backends, is missing; {remedy}"
        ) from error


def _spelled(url: object, options: Mapping[str, Any] | None) -> tuple[str, Mapping[str, Any] | None]:
    """The URL or path as text, and the options, which a UPath carries itself."""
    if isinstance(url, str):
        return url, options
    own = getattr(url, "storage_options", None)
    if own:
        if options is not None:
            raise InvalidArgumentError("Give storage_options once: this UPath has its own")
        options = own
    if isinstance(url, os.PathLike):
        text = os.fsdecode(url)
        if re.match(_COLLAPSED, text):
            raise InvalidArgumentError(f"{text} was a URL before pathlib took it for a path; pass it as str or UPath")
        return text, options
    if own is not None:
        return str(url), options
    raise InvalidTypeError(f"A place is a str, a path-like object or a UPath, not {type(url).__name__}")


def _split(text: str) -> tuple[str, str | None, bytes]:
    """``BASE|ocdbt:@VERSION/PREFIX`` into its parts; a plain base has neither version nor prefix."""
    found = _OCDBT.search(text) if "|" in text else None
    if found is None:
        return text, None, b""
    from urllib.parse import unquote, unquote_to_bytes

    base, rest = text[: found.start()], text[found.end() :]
    for text_part in (base, rest) if "://" in base else (rest,):
        if re.search(_BAD_PERCENT, text_part):
            raise InvalidArgumentError(f"{safe_url(text)}: a % in this form of URL begins a code like %20; write %25")
    if any(mark in rest for mark in "|?#"):
        raise InvalidArgumentError(f"{safe_url(text)}: after |ocdbt: comes a key prefix, where | ? # are %7C %3F %23")
    version = None
    if rest.startswith("@"):
        version, _, rest = rest[1:].partition("/")
        if not re.fullmatch(_VERSION, version):
            raise InvalidArgumentError(
                f"{safe_url(base)}|ocdbt:@{version}: after @ comes a generation (v3) or a time "
                "(2026-01-31T12:00:00Z); a key prefix that begins with @ is spelled %40"
            )
    if "://" in base and not re.search(_WEB, base):
        base = unquote(base, errors="surrogateescape")
    return base, version, unquote_to_bytes(rest.encode("utf-8", "surrogateescape"))


def _in_filesystem(fs: Any, path: str, settings: Settings) -> tuple[Storage, str]:
    protocol = getattr(fs, "protocol", None)
    if protocol is None or not hasattr(fs, "_strip_protocol"):
        raise InvalidTypeError(f"fs is an fsspec filesystem, not {type(fs).__name__}")
    if getattr(fs, "asynchronous", False):
        raise InvalidArgumentError("fs was made with asynchronous=True; this library is synchronous, make it without")
    scheme = protocol if isinstance(protocol, str) else protocol[0]
    if scheme == "dir":
        if ".." in path.split("/"):
            raise InvalidArgumentError(f"{path} leads out of the directory that fs shows")
        return _in_filesystem(fs.fs, f"{fs.path}/{path.strip('/')}", settings)
    return _backend(scheme).from_fs(fs, path, settings)


def _backend(scheme: str) -> Backend:
    target = _BACKENDS.get(scheme)
    if target is not None:
        return cast(Backend, load_backend(target))
    from importlib.metadata import entry_points

    for entry_point in entry_points(group=ENTRY_POINT_GROUP, name=scheme):
        return cast(Backend, entry_point.load())
    return cast(Backend, load_backend(_GENERIC))
