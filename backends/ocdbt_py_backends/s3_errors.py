"""What the errors of botocore mean: by HTTP status and S3's own error code, and for what never got an answer by class.

:func:`failure` is a pure function of the error, so that what no test server answers can be tested too.
"""

from __future__ import annotations

import re
from typing import Any

import aiohttp
from botocore import exceptions as botocore
from botocore.parsers import ResponseParserError

from ocdbt_py.errors import (
    InvalidArgumentError,
    OcdbtError,
    PathNotFoundError,
    StorageError,
    StoragePermissionError,
    UnsupportedError,
)
from ocdbt_py.storage.protocol import ABSENT, ANY, Condition, Token

__all__ = ["code_of", "failure", "status_of"]

_REFUSED = {
    "AuthFailure",
    "CredentialsNotSupported",
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "InvalidToken",
    "NotSignedUp",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
    "UnrecognizedClientException",
}
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"}
_BUSY = {
    "BandwidthLimitExceeded",
    "RequestLimitExceeded",
    "RequestThrottled",
    "RequestThrottledException",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
    "TooManyRequestsException",
}
_ELSEWHERE = {
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "PermanentRedirect",
    "TemporaryRedirect",
}
_NO_CREDENTIALS = (
    botocore.NoCredentialsError,
    botocore.PartialCredentialsError,
    botocore.CredentialRetrievalError,
    botocore.TokenRetrievalError,
    botocore.NoAuthTokenError,
    botocore.SSOError,
    botocore.ProfileNotFound,
)


def status_of(error: botocore.ClientError) -> int:
    """The HTTP status of the answer."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)


def code_of(error: botocore.ClientError) -> str:
    """S3's own code, which a HEAD and some servers leave out (botocore puts the status there)."""
    code = str(error.response.get("Error", {}).get("Code") or "")
    return code if re.fullmatch(r"[A-Za-z0-9._-]{1,64}", code) else ""


def failure(
    error: Exception, place: str, path: str, condition: Token | Condition, host: str | None
) -> OcdbtError | None:
    """The error that ``error`` is to us; None for a condition that was not met.

    ``place`` is the URL of ``path``, ``host`` the endpoint where it is known, ``condition`` that of a write.
    """
    if isinstance(error, botocore.ClientError):
        return _answered(error, place, path, condition)
    server = f"the server {host}" if host else "the server"
    if isinstance(error, _NO_CREDENTIALS):
        return StorageError(
            f"{place}: no usable credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or a profile, "
            "or pass storage_options={'key': ..., 'secret': ...}, or {'anon': True} for a public bucket",
            kind="credentials",
            path=path,
        )
    if isinstance(error, botocore.SSLError):
        return StorageError(f"{place}: no secure connection with {server} (TLS failed)", kind="tls", path=path)
    if _not_sent(error):
        return StorageError(
            f"{place}: {server} cannot be reached; check the endpoint's name and port and the network",
            kind="unreachable",
            path=path,
        )
    if isinstance(error, botocore.ReadTimeoutError):
        return StorageError(f"{place}: no answer of {server} in time", kind="timeout", path=path)
    if isinstance(
        error,
        botocore.HTTPClientError
        | botocore.ConnectionError
        | botocore.IncompleteReadError
        | ResponseParserError
        | aiohttp.ClientError
        | OSError,
    ):
        return StorageError(f"{place}: the connection with {server} broke", kind="interrupted", path=path)
    if isinstance(error, botocore.ParamValidationError):
        return InvalidArgumentError(f"{place} is nothing that S3 can hold: bucket or key break its rules", path=path)
    return StorageError(f"{place}: the request failed ({type(error).__name__})", path=path)


def _not_sent(error: Exception) -> bool:
    """Whether no connection came about. botocore's class alone does not tell: it is also that of a broken one."""
    if isinstance(error, botocore.ConnectTimeoutError | botocore.ProxyConnectionError):
        return True
    if not isinstance(error, botocore.EndpointConnectionError):
        return False
    inner = error.kwargs.get("error")
    return isinstance(inner, aiohttp.ClientConnectorError) or not isinstance(inner, aiohttp.ClientConnectionError)


def _answered(error: botocore.ClientError, place: str, path: str, condition: Token | Condition) -> OcdbtError | None:
    status, code = status_of(error), code_of(error)
    told = f"{status} {code}".strip() if code != str(status) else code
    answer: dict[str, Any] = error.response

    def storage(sentence: str, kind: str | None = None) -> StorageError:
        return StorageError(f"{place}: {sentence} ({told})", kind=kind, path=path)

    if code in _BUSY or status == 429:
        return storage("the server takes no more requests at the moment", "throttled")
    if status == 409 and (condition is ABSENT or condition is ANY):  # nothing was done; 412 or success comes next
        return storage("another request for the same object is under way", "throttled")
    if condition is not ANY and (status in (409, 412) or (status == 404 and code in ("NoSuchKey", "404", ""))):
        if answer["ResponseMetadata"].get("RetryAttempts"):
            return storage("botocore repeated a write whose answer was lost", "ambiguous")
        return None
    if code in _REFUSED:
        reason = "they have expired" if code in _EXPIRED else "check key and secret"
        return storage(f"the credentials were refused; {reason}", "credentials")
    if code == "RequestTimeTooSkewed":
        return storage("the credentials were refused: the clock of this machine is wrong", "credentials")
    if code in _ELSEWHERE or status in (301, 307):
        headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        region = answer.get("Error", {}).get("Region") or headers.get("x-amz-bucket-region") or ""
        named = repr(region) if re.fullmatch(r"[a-z0-9-]{1,40}", region) else "its name"
        return storage(
            "the bucket lies in another region; pass storage_options={'client_kwargs': {'region_name': " + named + "}}",
            "region",
        )
    if code == "NoSuchBucket":
        return storage("there is no such bucket; create it, or check its name and the endpoint", "no-such-bucket")
    if code == "NoSuchUpload":
        return storage("the unfinished upload is gone: another program, or a rule of the bucket, removed it")
    if status == 404:
        return PathNotFoundError(f"There is no {place}", path=path)
    if status in (401, 403):
        return StoragePermissionError(
            f"{place}: access is denied, or it is absent and these credentials may not list the bucket ({told})",
            path=path,
        )
    if status == 501 and condition is not ANY:
        return UnsupportedError(f"{place}: the server knows no conditional writes ({told})", path=path)
    if code in ("RequestTimeout", "RequestTimeoutException") or status == 408:
        return storage("the request did not arrive in time", "interrupted")
    if (status >= 500 and status != 501) or code in ("InternalError", "ServiceUnavailable"):
        return storage("the server failed", "unavailable")
    return storage("the request was refused")
