"""What Azure's refusals mean, and the exceptions of Microsoft's library: by class, HTTP status and the service's code.

:func:`failure` is a pure function of the error, so that what no test server answers can be tested too.
"""

from __future__ import annotations

from typing import Any

from aiohttp import ClientConnectorError
from azure.core.exceptions import (
    ClientAuthenticationError,
    DecodeError,
    HttpResponseError,
    ServiceRequestError,
    ServiceRequestTimeoutError,
    ServiceResponseError,
    ServiceResponseTimeoutError,
)

from ocdbt_py.errors import OcdbtError, PathNotFoundError, StorageError, StoragePermissionError
from ocdbt_py.storage.protocol import ANY, Condition, Token

__all__ = ["failure", "is_of_container"]

_CHANGED = frozenset({"BlobAlreadyExists", "ConditionNotMet", "TargetConditionNotMet"})
_CREDENTIALS = frozenset({"AuthenticationFailed", "InvalidAuthenticationInfo", "NoAuthenticationInformation"})
_NO_CONTAINER = frozenset({"ContainerNotFound", "ResourceNotFound", "ContainerBeingDeleted", "ContainerDisabled"})
"""Codes of the service. ResourceNotFound is what anonymous requests hear of a container that is not public."""


def failure(error: Exception, place: str, path: str, condition: Token | Condition, host: str) -> OcdbtError | None:
    """The error that ``error`` is to us; None for a condition that was not met. ``place`` is the URL of ``path``."""
    if isinstance(error, ServiceRequestTimeoutError) or (
        isinstance(error, ServiceRequestError) and isinstance(error.inner_exception, ClientConnectorError)
    ):
        return StorageError(
            f"{place}: no connection to {host}; check the account's name and the network",
            kind="unreachable",
            path=path,
        )
    if isinstance(error, ServiceResponseTimeoutError):
        return StorageError(f"{place}: no answer from {host} in time", kind="timeout", path=path)
    if isinstance(error, ServiceRequestError | ServiceResponseError | DecodeError):
        return StorageError(f"{place}: the connection to {host} broke", kind="interrupted", path=path)
    if isinstance(error, HttpResponseError) and error.status_code is not None:
        return _refusal(error, place, path, condition, host)
    if isinstance(error, ClientAuthenticationError) or type(error).__name__ == "AzureSigningError":
        return StorageError(
            f"{place}: there are no credentials for {host}, or they are malformed; check the storage_options",
            kind="credentials",
            path=path,
        )
    if isinstance(error, HttpResponseError):  # a body that broke off again and again
        return StorageError(f"{place}: the connection to {host} broke", kind="interrupted", path=path)
    return StorageError(f"{place}: {type(error).__name__} in the client library of Azure", path=path)


def _refusal(error: Any, place: str, path: str, condition: Token | Condition, host: str) -> OcdbtError | None:
    """What an answer of the service means."""
    status, code = error.status_code, _code(error)
    said = f"{status} {code}".rstrip()
    # Azurite gives another code, but the service's words
    if code in _CREDENTIALS or status == 401 or "failed to authenticate" in (error.message or ""):
        return StorageError(
            f"{place}: {host} refused the credentials ({said}); check the account's name, its key or the token",
            kind="credentials",
            path=path,
        )
    if status == 403:
        return StoragePermissionError(
            f"{place}: {host} gives these credentials no permission for it ({said}); grant them, for writing, "
            "the role Storage Blob Data Contributor or a token with such rights",
            path=path,
        )
    if code in _NO_CONTAINER:
        container = path.partition("/")[0]
        return StorageError(
            f"{place}: there is no container {container!r} in {host}, or it is hidden from these credentials "
            f"({said}); create it, or check the URL",
            kind="no-such-bucket",
            path=path,
        )
    if status in (404, 409, 412) and (code in _CHANGED or not code or status == 404):
        if condition is not ANY:
            return None
        if status == 404:
            return PathNotFoundError(f"There is no {place}", path=path)
        return StorageError(f"{place} changed while it was read", kind="interrupted", path=path)
    if code == "ServerBusy" or status == 429:
        return StorageError(f"{place}: {host} asks for fewer requests ({said})", kind="throttled", path=path)
    if status >= 500 or status == 408:
        return StorageError(f"{place}: {host} failed ({said})", kind="unavailable", path=path)
    return StorageError(f"{place}: {host} refused the request ({said})", path=path)


def is_of_container(error: Any) -> bool:
    """Whether it is the container that is not there, and not only a blob."""
    return _code(error) in _NO_CONTAINER


def _code(error: Any) -> str:
    """The service's own name of what is wrong; empty where it gave none."""
    code = getattr(error, "error_code", None) or ""
    return str(getattr(code, "value", code))
