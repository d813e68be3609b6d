"""What a store refuses, and why: one sentence that says which of all that can go wrong it was, nothing secret."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit

import pytest
from azure.storage.blob import ContainerSasPermissions, generate_container_sas
from google.oauth2.credentials import Credentials

import ocdbt_py
from conformance.servers import kinds
from conformance.servers.faulty_proxy import NO_FAULTS, HTTPProxy, Request
from conformance.servers.launch import LOCALHOST, free_port
from conformance.servers.server import Server
from ocdbt_py.storage.location import resolve

WRONG = "d3JvbmcgYW5kIHNlY3JldCwgb2YgYWxsIHRoaW5ncyE="
"""A secret, in base 64, that no server takes."""

Options = Mapping[str, Any]


class Asked(NamedTuple):
    """A database that is asked for in vain, and what must not be seen of how."""

    url: str
    options: Options
    secrets: tuple[str, ...] = ()


def refusal_of(asked: Asked, mode: Any = "r", **how: Any) -> ocdbt_py.OcdbtError:
    """What opening it raises: one sentence, with nothing secret in it wherever it may be shown."""
    with pytest.raises(ocdbt_py.OcdbtError) as caught:
        ocdbt_py.open(asked.url, mode, storage_options=dict(asked.options), **how).close()
    error = caught.value
    shown = [str(error), repr(error), repr(error.__dict__), *traceback.format_exception_only(error)]
    assert not re.search(r"\n|[.!?] ", str(error))
    assert not re.search(r"sig=|[?&]\w+=", str(error))
    for secret in asked.secrets:
        assert not [text for text in shown if secret in text]
    return error


def check_nothing_is_at(asked: Asked) -> None:
    with pytest.raises(ocdbt_py.NotFoundError):
        ocdbt_py.open(asked.url, storage_options=dict(asked.options))


def with_options(server: Server, url: str, *secrets: str, **options: Any) -> Asked:
    return Asked(url, {**server.storage_options, **options}, secrets)


def as_reader(server: Server, url: str) -> Asked:
    """By somebody who may read only."""
    match urlsplit(url).scheme:
        case "s3":
            return with_options(server, url, key="reader", secret="reader")
        case "gs":
            return with_options(server, url.replace(kinds.BUCKET, kinds.FORBIDDEN))
        case "sftp":
            key = Path(server.storage_options["key_filename"]).with_name("reader")
            return with_options(server, url, key_filename=str(key))
        case _:
            return with_signature(server, url, ContainerSasPermissions(read=True, list=True))


def with_signature(server: Server, url: str, may: ContainerSasPermissions) -> Asked:
    """Of Azurite, by somebody who has no key but a signed token."""
    token = generate_container_sas(
        kinds.ACCOUNT,
        kinds.BUCKET,
        account_key=kinds.ACCOUNT_KEY,
        permission=may,
        expiry="2099-01-01T00:00:00Z",
        protocol="https,http",
    )
    connection = f"BlobEndpoint={server.endpoint}/{kinds.ACCOUNT};SharedAccessSignature={token}"
    return Asked(url, {"connection_string": connection}, (token, token.rpartition("sig=")[2]))


# --- credentials


def wrong_s3_secret(server: Server, url: str) -> Asked:
    return with_options(server, url, WRONG, secret=WRONG)


def wrong_s3_key(server: Server, url: str) -> Asked:
    return with_options(server, url, WRONG, "AKIANOBODY", key="AKIANOBODY", secret=WRONG)


def wrong_gcs_token(server: Server, url: str) -> Asked:
    token = f"{WRONG}refused"
    credentials = cast(Any, Credentials)(token=token)  # untyped
    return with_options(server, url, token, token=credentials)


def wrong_azure_key(server: Server, url: str) -> Asked:
    return Asked(url, kinds.azure_at(server.endpoint, key=WRONG).storage_options, (WRONG,))


def wrong_sftp_key(server: Server, url: str) -> Asked:
    key = Path(server.storage_options["key_filename"]).with_name("host")
    return with_options(server, url, key_filename=str(key))


def wrong_password(server: Server, url: str) -> Asked:
    if urlsplit(url).scheme == "ftp":
        return with_options(server, url, WRONG, password=WRONG)
    return with_options(server, url, WRONG, auth=(kinds.USER, WRONG))


@pytest.mark.parametrize(
    ("fixture", "spoil"),
    [
        ("seaweedfs", wrong_s3_secret),
        ("seaweedfs", wrong_s3_key),
        ("gcs_server", wrong_gcs_token),
        ("azurite", wrong_azure_key),
        ("sftp_server", wrong_sftp_key),
        ("ftp_server", wrong_password),
        ("webdav_server", wrong_password),
    ],
)
def test_wrong_credentials_are_said_to_be_refused(
    fixture: str, spoil: Callable[[Server, str], Asked], request: pytest.FixtureRequest
) -> None:
    server: Server = request.getfixturevalue(fixture)
    for mode in ("r", "a"):
        error = refusal_of(spoil(server, server.url()), mode, single_writer=True)
        assert isinstance(error, ocdbt_py.StorageError)
        assert error.kind == "credentials"
        assert re.search("credentials were refused|refused the credentials", str(error))
        assert error.__cause__ is not None


# --- access, buckets, hosts


@pytest.mark.parametrize("fixture", ["seaweedfs", "gcs_server", "azurite", "sftp_server"])
def test_who_may_not_write_is_told_that_access_is_denied(fixture: str, request: pytest.FixtureRequest) -> None:
    server: Server = request.getfixturevalue(fixture)
    error = refusal_of(as_reader(server, server.url()), "a")
    assert isinstance(error, ocdbt_py.StoragePermissionError)
    assert isinstance(error, PermissionError)
    assert error.kind == "permission"


@pytest.mark.parametrize("status", [401, 403])
def test_a_web_server_that_lets_nobody_in_is_told_from_one_that_has_nothing(http_server: Server, status: int) -> None:
    with HTTPProxy(http_server.endpoint, rates=NO_FAULTS, rewrite=lambda _: status) as proxy:
        there = http_server.at(proxy.endpoint)
        error = refusal_of(Asked(f"{there.url()}?token={WRONG}", {}, (WRONG,)))
    assert isinstance(error, ocdbt_py.StorageError)
    assert error.kind == ("credentials" if status == 401 else "permission")
    check_nothing_is_at(Asked(http_server.url(), {}))


@pytest.mark.parametrize("fixture", ["seaweedfs", "moto", "gcs_server", "azurite"])
def test_a_bucket_that_is_not_there_is_told_from_an_empty_one(fixture: str, request: pytest.FixtureRequest) -> None:
    server: Server = request.getfixturevalue(fixture)
    url = server.url()
    error = refusal_of(with_options(server, url.replace(kinds.BUCKET, "no-such-bucket")))
    assert isinstance(error, ocdbt_py.StorageError)
    assert error.kind == "no-such-bucket"
    assert "no-such-bucket" in str(error)
    check_nothing_is_at(with_options(server, url))


REMOTE = ["seaweedfs", "gcs_server", "azurite", "sftp_server", "ftp_server", "webdav_server", "http_server"]


@pytest.mark.parametrize("fixture", REMOTE)
@pytest.mark.parametrize("where", ["a host that is not known", "a port where nobody listens"])
def test_what_cannot_be_reached_is_named(fixture: str, where: str, request: pytest.FixtureRequest) -> None:
    server: Server = request.getfixturevalue(fixture)
    port = free_port()
    authority = f"store.invalid:{port}" if where.startswith("a host") else f"{LOCALHOST}:{port}"
    scheme = "http://" if server.endpoint.startswith("http://") else ""
    there = server.at(f"{scheme}{authority}")
    error = refusal_of(with_options(there, there.url()))
    assert isinstance(error, ocdbt_py.StorageError)
    assert error.kind == "unreachable"
    assert authority.partition(":")[0] in str(error)
    assert error.__cause__ is not None


# --- conditions that are accepted and ignored


def without_conditions(request: Request) -> Request:
    """As a server sees it that never heard of conditions, but makes and answers everything else."""
    bare = request.without_headers("if-match", "if-none-match")
    target = re.sub(r"[?&]ifGenerationMatch=\d+", lambda found: found[0][0], request.target)
    return Request(bare.method, target.replace("?&", "?").replace("&&", "&").rstrip("?&"), bare.headers, bare.body)


@pytest.mark.parametrize("fixture", ["moto", "gcs_server", "azurite"])
def test_an_endpoint_that_ignores_conditions_is_found_out_before_anything_is_written(
    fixture: str, request: pytest.FixtureRequest
) -> None:
    server: Server = request.getfixturevalue(fixture)
    with HTTPProxy(server.endpoint, rates=NO_FAULTS, rewrite=without_conditions) as proxy:
        there = server.at(proxy.endpoint)
        for mode in ("a", "x"):
            url = there.url("ignoring")
            # the key of an Azure account signs conditions too, a token does not
            everything = ContainerSasPermissions(read=True, write=True, delete=True, list=True, create=True)
            asked = with_signature(there, url, everything) if fixture == "azurite" else with_options(there, url)
            error = refusal_of(asked, mode)
            assert isinstance(error, ocdbt_py.UnsupportedError)
            assert error.kind == "conditions-ignored"
            assert urlsplit(proxy.endpoint).netloc in str(error)
            assert files_below(server, url) == []


@pytest.mark.parametrize("fixture", ["moto", "gcs_server", "azurite"])
def test_an_endpoint_is_asked_once_per_open_for_writing_and_never_where_that_is_off(
    fixture: str, request: pytest.FixtureRequest
) -> None:
    server: Server = request.getfixturevalue(fixture)
    probes: list[Request] = []

    def note(request: Request) -> Request:
        if "probe-" in request.target and request.applies:
            probes.append(request)
        return request

    with HTTPProxy(server.endpoint, rates=NO_FAULTS, rewrite=note) as proxy:
        there = server.at(proxy.endpoint)
        url, options = there.url("asked"), dict(there.storage_options)
        ocdbt_py.open(url, "x", storage_options=options).close()
        once = len(probes)
        assert once > 0
        with ocdbt_py.open(url, "r+", storage_options=options) as db:
            db["key"] = b"value"
            db["key"] = b"another"
        assert len(probes) == 2 * once
        ocdbt_py.open(url, "r", storage_options=options).close()
        unasked = ocdbt_py.WriteOptions(probe=False)
        with ocdbt_py.open(url, "r+", write_options=unasked, storage_options=options) as db:
            db["key"] = b"a third"
        assert len(probes) == 2 * once
    assert not [name for name in files_below(server, url) if "probe" in name]


def test_an_endpoint_that_ignores_conditions_is_written_through_where_nobody_asks(moto: Server) -> None:
    unasked = ocdbt_py.WriteOptions(probe=False)
    with HTTPProxy(moto.endpoint, rates=NO_FAULTS, rewrite=without_conditions) as proxy:
        there = moto.at(proxy.endpoint)
        options = dict(there.storage_options)
        with ocdbt_py.open(there.url(), "x", write_options=unasked, storage_options=options) as db:
            db["key"] = b"value"
            assert db["key"] == b"value"


def files_below(server: Server, url: str) -> list[str]:
    place = resolve(url, storage_options=server.storage_options)
    return [listed.path for listed in place.storage.list(f"{place.path}/", deep=True)]
