"""What an answer of S3 means, also those that no test server gives."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest
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
from ocdbt_py_backends.s3_errors import failure

SECRET = "AKIA-not-to-be-shown"


def meant(error: Exception, condition: Token | Condition = ANY) -> OcdbtError | None:
    return failure(error, "s3://bucket/f", "bucket/f", condition, "storage.invalid:9")


def answered(
    status: int, code: str = "", condition: Token | Condition = ANY, *, retries: int = 0, region: str = ""
) -> OcdbtError | None:
    """What an answer means whose text quotes a secret, as some do."""
    metadata = {"HTTPStatusCode": status, "RetryAttempts": retries, "HTTPHeaders": {"x-amz-bucket-region": region}}
    response: dict[str, Any] = {"Error": {"Code": code, "Message": SECRET}, "ResponseMetadata": metadata}
    found = meant(botocore.ClientError(response, "PutObject"), condition)
    assert found is None or SECRET not in f"{found!s}{found!r}"
    return found


def unreachable(inner: Exception) -> botocore.EndpointConnectionError:
    return botocore.EndpointConnectionError(endpoint_url=f"http://{SECRET}@storage.invalid:9", error=inner)


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (503, "SlowDown", "throttled"),
        (429, "", "throttled"),
        (400, "RequestLimitExceeded", "throttled"),
        (409, "OperationAborted", "throttled"),
        (500, "InternalError", "unavailable"),
        (200, "InternalError", "unavailable"),
        (503, "ServiceUnavailable", "unavailable"),
        (502, "", "unavailable"),
        (400, "RequestTimeout", "interrupted"),
        (403, "InvalidAccessKeyId", "credentials"),
        (403, "SignatureDoesNotMatch", "credentials"),
        (400, "ExpiredToken", "credentials"),
        (400, "InvalidToken", "credentials"),
        (403, "RequestTimeTooSkewed", "credentials"),
        (403, "AccessDenied", "permission"),
        (403, "403", "permission"),
        (404, "NoSuchBucket", "no-such-bucket"),
        (404, "NoSuchUpload", "storage"),
        (404, "NoSuchKey", "path-not-found"),
        (404, "404", "path-not-found"),
        (400, "AuthorizationHeaderMalformed", "region"),
        (301, "PermanentRedirect", "region"),
        (400, "InvalidRequest", "storage"),
        (501, "NotImplemented", "storage"),
    ],
)
def test_status_and_code_tell_the_kind(status: int, code: str, kind: str) -> None:
    found = answered(status, code)
    assert found is not None
    assert found.kind == kind
    assert isinstance(found, StoragePermissionError) == (kind == "permission")
    assert isinstance(found, PathNotFoundError) == (kind == "path-not-found")
    assert found.path == "bucket/f"
    assert "s3://bucket/f" in str(found)
    if kind != "path-not-found":
        assert f"({status}" in str(found)


@pytest.mark.parametrize(
    ("status", "code", "condition"),
    [
        (412, "PreconditionFailed", ABSENT),
        (412, "", '"token"'),
        (409, "ConditionalRequestConflict", '"token"'),
        (404, "NoSuchKey", '"token"'),
        (404, "", '"token"'),
    ],
)
def test_an_unmet_condition_is_one(status: int, code: str, condition: Token | Condition) -> None:
    assert answered(status, code, condition) is None
    repeated = answered(status, code, condition, retries=1)
    assert repeated is not None
    assert repeated.kind == "ambiguous"


def test_two_creators_at_once_are_to_try_again() -> None:
    found = answered(409, "ConditionalRequestConflict", ABSENT)
    assert found is not None
    assert found.kind == "throttled"


def test_a_bucket_that_is_not_there_is_no_unmet_condition() -> None:
    found = answered(404, "NoSuchBucket", '"token"')
    assert found is not None
    assert found.kind == "no-such-bucket"


def test_a_server_without_conditional_writes_is_said_to_be() -> None:
    assert isinstance(answered(501, "NotImplemented", ABSENT), UnsupportedError)


def test_the_region_is_named_where_the_answer_tells_it() -> None:
    found = answered(301, "PermanentRedirect", region="eu-north-1")
    assert "'region_name': 'eu-north-1'" in str(found)
    assert "eu" not in str(answered(301, "PermanentRedirect", region="eu north; 1"))


def test_a_code_that_is_no_word_is_not_quoted() -> None:
    assert str(answered(400, f"<{SECRET}>")).endswith("(400)")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (botocore.NoCredentialsError(), "credentials"),
        (botocore.PartialCredentialsError(provider="env", cred_var="AWS_SECRET_ACCESS_KEY"), "credentials"),
        (botocore.ProfileNotFound(profile="nobody"), "credentials"),
        (botocore.SSLError(endpoint_url=SECRET, error=OSError()), "tls"),
        (botocore.ConnectTimeoutError(endpoint_url=SECRET, error=OSError()), "unreachable"),
        (botocore.ProxyConnectionError(proxy_url=SECRET, error=OSError()), "unreachable"),
        (unreachable(OSError(SECRET)), "unreachable"),
        (unreachable(aiohttp.ClientConnectionError(SECRET)), "interrupted"),
        (unreachable(aiohttp.ClientOSError(104, "reset")), "interrupted"),
        (botocore.ReadTimeoutError(endpoint_url=SECRET, error=OSError()), "timeout"),
        (botocore.ConnectionClosedError(endpoint_url=SECRET, request=None, error=OSError()), "interrupted"),
        (botocore.ResponseStreamingError(error=OSError(SECRET)), "interrupted"),
        (botocore.IncompleteReadError(actual_bytes=1, expected_bytes=2), "interrupted"),
        (aiohttp.ClientPayloadError(SECRET), "interrupted"),
        (ResponseParserError(SECRET), "interrupted"),
        (ConnectionResetError(SECRET), "interrupted"),
        (RuntimeError(SECRET), "storage"),
    ],
)
def test_what_was_never_answered_has_a_kind(error: Exception, kind: str) -> None:
    found = meant(error)
    assert isinstance(found, StorageError)
    assert found.kind == kind
    assert SECRET not in f"{found!s}{found!r}"
    if kind in {"unreachable", "timeout", "tls"}:
        assert "storage.invalid:9" in str(found)


def test_a_name_that_botocore_refuses_is_a_wrong_argument() -> None:
    found = meant(botocore.ParamValidationError(report=SECRET))
    assert isinstance(found, InvalidArgumentError)
    assert SECRET not in str(found)
