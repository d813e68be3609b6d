"""What Google Cloud Storage's refusals mean, and the exceptions of what asks it: by HTTP status and the service's word.

:func:`failure` is a pure function of the error, so that what no test server answers can be tested too.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress

import aiohttp
import google.auth.exceptions
import requests
from gcsfs.retry import HttpError

from ocdbt_py.errors import OcdbtError, PathNotFoundError, StorageError, StoragePermissionError
from ocdbt_py_backends.web import connection_failure

__all__ = ["REMEDY", "Refused", "failure"]

REMEDY = (
    "log in (gcloud auth application-default login), set GOOGLE_APPLICATION_CREDENTIALS, or give "
    "storage_options={'token': ...} as gcsfs takes it, 'anon' for a public bucket"
)
"""What to do about credentials."""

_WORD = re.compile(r"[A-Za-z]{1,40}")


class Refused(Exception):
    """An answer that is an error: its status, and the service's word for it. The rest of its text is not shown."""

    def __init__(self, status: int, content: bytes = b"") -> None:
        reason = ""
        with suppress(ValueError, LookupError, TypeError):
            reason = json.loads(content)["error"]["errors"][0]["reason"]
        self.status = status
        self.reason = reason if isinstance(reason, str) and _WORD.fullmatch(reason) else ""
        self.of_bucket = b"bucket does not exist" in content
        super().__init__(f"HTTP {status}{self.reason and ' ' + self.reason}")


def failure(error: Exception, place: str, path: str, host: str) -> OcdbtError | None:
    """The error that ``error`` is to us; None for a condition that was not met. ``place`` is the URL of ``path``."""
    if isinstance(error, Refused):
        return _answered(error, place, path, host)
    if isinstance(error, google.auth.exceptions.TransportError | requests.RequestException):
        sentence = "Google's service for tokens cannot be reached; check the network"
        return StorageError(f"{place}: {sentence}", kind="unreachable", path=path)
    auth = google.auth.exceptions.GoogleAuthError  # gcsfs wraps it in several of its own
    if isinstance(error, auth | HttpError) or isinstance(error.__cause__, auth):
        sentence = f"the credentials were refused, there is no token for them; {REMEDY}"
        return StorageError(f"{place}: {sentence}", kind="credentials", path=path)
    if isinstance(error, aiohttp.ClientError | OSError):
        return connection_failure(error, host, place, path)
    return StorageError(f"{place}: the request failed ({type(error).__name__})", path=path)


def _answered(error: Refused, place: str, path: str, host: str) -> OcdbtError | None:
    match error.status:
        case 412:
            return None
        case 404 if not error.of_bucket:
            return PathNotFoundError(f"There is no {place}", path=path)
        case 404:
            kind, sentence = "no-such-bucket", "there is no such bucket; create it, or check its name"
        case 401:
            kind, sentence = "credentials", f"the credentials were refused, or none were found; {REMEDY}"
        case 403 if "ateLimitExceeded" not in error.reason:
            return StoragePermissionError(
                f"{place}: access is denied; give this account a role in the bucket that allows it ({error})", path=path
            )
        case 403 | 429:
            kind, sentence = (
                "throttled",
                f"{host} takes no more requests at the moment; try later, with fewer at a time",
            )
        case 408:
            kind, sentence = "interrupted", "the request did not arrive in time; check the network"
        case status if status >= 500 and status != 501:
            kind, sentence = "unavailable", f"{host} is out of order at the moment; try later"
        case _:
            kind, sentence = StorageError.default_kind, f"{host} refused the request"
    return StorageError(f"{place}: {sentence} ({error})", kind=kind, path=path)
