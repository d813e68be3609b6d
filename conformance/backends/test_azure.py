"""Azure Blob Storage against Azurite: what every storage must do, what each request is, and what each refusal says."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import fsspec
import pytest
from azure.core.exceptions import HttpResponseError
from fsspec.asyn import sync

from conformance.backends.recorder import Recorder
from conformance.memory import beside_the_data
from conformance.servers.kinds import ACCOUNT, ACCOUNT_KEY, azure_at
from conformance.servers.launch import free_port
from conformance.servers.server import Server
from ocdbt_py.errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidArgumentError,
    OcdbtError,
    PathNotFoundError,
    StorageError,
    StoragePermissionError,
    UnsupportedError,
)
from ocdbt_py.storage.location import resolve
from ocdbt_py.storage.protocol import ABSENT, ANY, UNCHANGED, Listed, Read, Storage
from ocdbt_py.testing.files import CONTENT, content, put
from ocdbt_py.testing.storage_suite import StorageSuite
from ocdbt_py.testing.storage_suite.names import BACKSLASH_NAME, CONTROL_NAME, NOT_UTF8_NAME
from ocdbt_py_backends.azure import AzureStorage
from ocdbt_py_backends.object_requests import READ_BYTES
from ocdbt_py_backends.object_writing import PART_BYTES

MIB = 1 << 20
UNFIT_NAMES = (BACKSLASH_NAME, CONTROL_NAME, NOT_UTF8_NAME)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AzureStorage, "first_pause", 0.01)
    monkeypatch.setattr(AzureStorage, "longest_pause", 0.02)


@pytest.fixture
def recorder(azurite: Server) -> Iterator[Recorder]:
    with Recorder(azurite.endpoint) as proxy:
        yield proxy


@pytest.fixture
def recorded(azurite: Server, recorder: Recorder) -> tuple[AzureStorage, str]:
    """A storage behind the recorder, and an empty place."""
    place = resolve(azurite.url(), storage_options=azure_at(recorder.endpoint).storage_options)
    assert isinstance(place.storage, AzureStorage)
    return place.storage, place.path


class TestAzureStorage(StorageSuite):
    refused_names = UNFIT_NAMES

    @pytest.fixture
    def storage_and_root(self, azurite: Server) -> tuple[Storage, str]:
        place = resolve(azurite.url(), storage_options=azurite.storage_options)
        return place.storage, place.path


@pytest.mark.parametrize("name", [*UNFIT_NAMES, "a/../b", "."], ids=ascii)
def test_a_name_that_no_blob_can_have_is_refused(azurite: Server, name: str) -> None:
    place = resolve(azurite.url(), storage_options=azurite.storage_options)
    path = f"{place.path}/{name}"
    attempts: list[Callable[[], object]] = [
        lambda: place.storage.read(path),
        lambda: place.storage.write(path, [b"x"]),
        lambda: place.storage.put(path, [bytes(2 * MIB)]),
        lambda: place.storage.delete(path),
    ]
    for attempt in attempts:
        with pytest.raises(InvalidArgumentError, match="name of a blob"):
            attempt()


# --- requests


def test_every_write_has_a_token_of_its_own(azurite: Server) -> None:
    place = resolve(azurite.url(), storage_options=azurite.storage_options)
    tokens = {place.storage.write(f"{place.path}/f", [b"the same"]) for _ in range(30)}
    assert len(tokens) == 30


def test_asking_for_what_has_not_changed_moves_no_body(recorded: tuple[AzureStorage, str], recorder: Recorder) -> None:
    storage, root = recorded
    token = storage.write(f"{root}/f", [CONTENT])
    recorder.summary()
    assert storage.read(f"{root}/f", unless=token) is UNCHANGED
    ((_, answer),) = recorder.passed
    assert (answer.status, len(answer.whole) - answer.body_at) == (304, 0)
    recorder.summary()
    found = storage.read(f"{root}/f", unless='"another"')
    assert isinstance(found, Read)
    assert found.token == token
    assert sorted(recorder.summary()) == [("GET", 206)]


def test_a_small_file_is_one_request(recorded: tuple[AzureStorage, str], recorder: Recorder) -> None:
    storage, root = recorded
    storage.put(f"{root}/f", [b"x" * MIB])
    put(storage, f"{root}/g", b"x" * MIB)
    token = storage.write(f"{root}/h", [b"x"], ABSENT)
    storage.write(f"{root}/h", [b"x"], token)
    assert sorted(recorder.summary()) == [("PUT", 201)] * 4


def test_a_large_file_is_sent_in_blocks_and_appears_whole(
    recorded: tuple[AzureStorage, str], recorder: Recorder
) -> None:
    storage, root = recorded
    data = bytes(range(256)) * (10 * MIB // 64)
    storage.put(f"{root}/f", [data[:5], memoryview(data)[5:]])
    assert sorted(recorder.summary()) == [("PUT block", 201)] * 3 + [("PUT blocklist", 201)]
    assert storage.read_many([(f"{root}/f", 0, len(data))]) == [data]
    assert sorted(recorder.summary()) == [("GET", 206)] * (len(data) // READ_BYTES)
    with pytest.raises(AlreadyExistsError):
        storage.put(f"{root}/f", [bytes(2 * MIB)])
    writer = storage.create(f"{root}/g")
    writer.write([data[: PART_BYTES + 7]])
    assert list(storage.list(f"{root}/")) == [Listed(f"{root}/f", len(data))]
    writer.close()
    assert content(storage, f"{root}/g") == data[: PART_BYTES + 7]


def test_a_large_file_is_replaced_on_condition(recorded: tuple[AzureStorage, str], recorder: Recorder) -> None:
    storage, root = recorded
    token = storage.write(f"{root}/f", [bytes(2 * MIB)], ABSENT)
    assert sorted(recorder.summary()) == [("PUT block", 201), ("PUT blocklist", 201)]
    newer = storage.write(f"{root}/f", [b"x" * 3 * MIB], token)
    assert storage.read(f"{root}/f", unless=newer) is UNCHANGED
    for condition in (token, ABSENT):
        with pytest.raises(ConflictError):
            storage.write(f"{root}/f", [bytes(2 * MIB)], condition)
    assert storage.read_many([(f"{root}/f", 3 * MIB - 1, 3 * MIB)]) == [b"x"]


def test_a_commit_of_blocks_whose_answer_was_lost_was_ours(
    recorded: tuple[AzureStorage, str], recorder: Recorder
) -> None:
    storage, root = recorded
    answers = iter([True])
    recorder.lost = lambda request: "comp=blocklist" in request.target and next(answers, False)
    storage.put(f"{root}/f", [CONTENT, bytes(2 * MIB)])
    assert sorted(recorder.summary()) == [
        ("GET blocklist", 200),
        ("PUT block", 201),
        ("PUT blocklist", 201),
        ("PUT blocklist", 409),
    ]
    assert content(storage, f"{root}/f") == CONTENT + bytes(2 * MIB)


def test_of_two_uploads_of_one_name_the_second_to_end_fails(azurite: Server) -> None:
    place = resolve(azurite.url(), storage_options=azurite.storage_options)
    storage, path = place.storage, f"{place.path}/f"
    first, second = storage.create(path), storage.create(path)
    for writer, letter in ((first, b"1"), (second, b"2")):
        writer.write([letter * PART_BYTES, letter * 9])
    first.close()
    with pytest.raises(AlreadyExistsError):
        second.close()
    assert content(storage, path) == b"1" * (PART_BYTES + 9)


def test_a_conditional_write_is_sent_once(recorded: tuple[AzureStorage, str], recorder: Recorder) -> None:
    storage, root = recorded
    token = storage.write(f"{root}/f", [b"1"])
    recorder.summary()
    recorder.lost = lambda request: request.method == "PUT"
    with pytest.raises(StorageError) as caught:
        storage.write(f"{root}/f", [b"2"], token)
    assert caught.value.kind == "ambiguous"
    assert sorted(recorder.summary()) == [("PUT", 201)]
    assert content(storage, f"{root}/f") == b"2"


def test_pages_of_a_listing_are_followed(azurite: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    place = resolve(azurite.url(), storage_options=azurite.storage_options)
    client = place.storage.fs.service_client  # type: ignore[attr-defined]
    names = [f"{place.path}/d/{number:02}" for number in range(7)]
    for name in names:
        place.storage.put(name, [b"x"])
    container = client.get_container_client("any")
    for method in ("list_blobs", "walk_blobs"):
        original = getattr(type(container), method)
        paged = lambda self, *args, original=original, **options: original(self, *args, results_per_page=3, **options)  # noqa: E731
        monkeypatch.setattr(type(container), method, paged)
    for deep in (False, True):
        assert [found.path for found in place.storage.list(f"{place.path}/d/", deep=deep)] == names
    place.storage.delete(f"{place.path}/")
    assert list(place.storage.list(f"{place.path}/", deep=True)) == []


def test_a_blob_that_marks_a_directory_is_no_file_and_goes_with_it(azurite: Server) -> None:
    place = resolve(azurite.url(), storage_options=azurite.storage_options)
    storage, root = place.storage, place.path
    container, _, below = root.partition("/")
    fs = storage.fs  # type: ignore[attr-defined]

    def mark(name: str) -> None:
        blob = fs.service_client.get_blob_client(container, f"{below}/{name}")
        sync(fs.loop, partial(blob.upload_blob, b"", metadata={"hdi_isfolder": "true"}))

    for name in ("d", "d/e", "d/e/f", "dd"):
        mark(name)
    put(storage, f"{root}/d/e/file", b"x")
    assert list(storage.list(f"{root}/", deep=True)) == [Listed(f"{root}/d/e/file", 1)]
    assert {found.path for found in storage.list(f"{root}/")} == {f"{root}/d/"}
    storage.delete(f"{root}/d/")
    left = fs.service_client.get_container_client(container).list_blob_names(name_starts_with=below)

    async def names() -> list[str]:
        return [name async for name in left]

    assert sync(fs.loop, names) == [f"{below}/dd"]


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not tell a process's peak of memory")
def test_200_mib_go_and_come_in_64_mib_of_memory_beside_them(azurite: Server) -> None:
    put_bytes, get_bytes = beside_the_data(azurite.url(), azurite.storage_options)
    assert put_bytes <= 64 * MIB, put_bytes / MIB
    assert get_bytes <= 64 * MIB, get_bytes / MIB


# --- spellings


@pytest.mark.parametrize(
    "spelling",
    ["az://{0}/", "abfs://{0}", "abfss://{0}", "AZ://{0}", f"abfss://{{1}}@{ACCOUNT}.dfs.core.windows.net/{{2}}"],
)
def test_a_place_in_azure(azurite: Server, spelling: str) -> None:
    url = azurite.url()
    path = url.removeprefix("az://")
    container, _, below = path.partition("/")
    place = resolve(spelling.format(path, container, below), storage_options=azurite.storage_options)
    assert (place.path, place.url) == (path, url)
    assert place.storage == resolve(url, storage_options=azurite.storage_options).storage
    put(place.storage, f"{path}/f", b"x")
    assert fsspec.filesystem("az", **azurite.storage_options).cat_file(f"{path}/f") == b"x"


@pytest.mark.parametrize("path", ["{0}", "/{0}/", "abfs://{0}", "az://{0}"])
def test_a_path_in_a_filesystem_of_azure(azurite: Server, path: str) -> None:
    fs = fsspec.filesystem("abfs", **azurite.storage_options)
    plain = azurite.url().removeprefix("az://")
    place = resolve(path.format(plain), fs=fs)
    assert (type(place.storage), place.path) == (AzureStorage, plain)
    put(place.storage, f"{plain}/f", b"x")
    assert fs.cat_file(f"{plain}/f") == b"x"


KEY = {"account_key": ACCOUNT_KEY}


@pytest.mark.parametrize(
    ("url", "options", "host"),
    [
        ("az://c/a", {"account_name": "acct"}, "acct.blob.core.windows.net"),
        ("abfss://c@acct.dfs.core.windows.net/a", {}, "acct.blob.core.windows.net"),
        ("abfs://acct.dfs.core.windows.net/c/a", {}, "acct.blob.core.windows.net"),
        ("abfss://c@acct.dfs.core.chinacloudapi.cn/a", {}, "acct.blob.core.chinacloudapi.cn"),
        ("abfss://c@acct.blob.core.usgovcloudapi.net/a", {}, "acct.blob.core.usgovcloudapi.net"),
    ],
)
def test_the_account_may_stand_in_the_url(url: str, options: dict[str, Any], host: str) -> None:
    place = resolve(url, storage_options={**options, **KEY})
    assert (place.path, place.url, repr(place.storage)) == ("c/a", "az://c/a", f"AzureStorage('{host}')")
    assert place.storage != resolve("az://c/a", storage_options={"account_name": "other", **KEY}).storage
    assert not place.storage.capabilities.conditions_unproven


def test_conditions_are_unproven_where_another_server_answers(azurite: Server) -> None:
    for options in (
        dict(azurite.storage_options),
        {"account_name": "acct", "account_host": "acct.blob.core.windows.net.example.com", **KEY},
    ):
        assert resolve("az://con/a", storage_options=options).storage.capabilities.conditions_unproven


@pytest.mark.parametrize(
    ("url", "options", "expected"),
    [
        ("abfss://c@acct.dfs.core.windows.net/a", {"account_name": "other", **KEY}, "acct"),
        ("abfss://c@somewhere/a", KEY, "CONTAINER@ACCOUNT"),
        ("az://c/a?sv=2024&sig=topsecret", KEY, "sas_token"),
        ("az://c/a?versionid=3", KEY, "current version"),
        ("az://c/a", {"connection_string": "topsecret"}, "connection_string"),
    ],
)
def test_a_place_that_contradicts_itself_is_refused(url: str, options: dict[str, Any], expected: str) -> None:
    with pytest.raises(InvalidArgumentError, match=expected) as caught:
        resolve(url, storage_options=options)
    assert "topsecret" not in str(caught.value)


def test_containers_are_neither_listed_nor_deleted(azurite: Server) -> None:
    place = resolve("az://", storage_options=azurite.storage_options)
    assert place.path == ""
    with pytest.raises(UnsupportedError, match="containers"):
        list(place.storage.list(""))
    with pytest.raises(InvalidArgumentError, match="whole bucket"):
        place.storage.delete("ocdbt-test/")


# --- refusals


def sas(permission: str) -> str:
    from azure.storage.blob import AccountSasPermissions, ResourceTypes, generate_account_sas

    text: str = generate_account_sas(
        ACCOUNT,
        ACCOUNT_KEY,
        ResourceTypes(service=True, container=True, object=True),
        AccountSasPermissions.from_string(permission),
        datetime.now(UTC) + timedelta(hours=1),
    )
    return text


def options_for(azurite: Server, fault: str) -> dict[str, Any]:
    base = f"{azurite.endpoint}/{ACCOUNT}"
    if fault == "wrong key":
        return dict(azure_at(azurite.endpoint, "d3Jvbmc=").storage_options)
    if fault == "malformed key":
        return {"account_name": "acct", "account_key": "no"}
    if fault == "no credentials":
        return {"connection_string": f"BlobEndpoint={base}", "anon": True}
    if fault == "only reading":
        return {"connection_string": f"BlobEndpoint={base};SharedAccessSignature={sas('rl')}"}
    if fault == "no such host":
        return {"account_name": "acct", "account_host": "acct.blob.core.invalid", **KEY}
    if fault == "nobody listens":
        return dict(azure_at(f"http://127.0.0.1:{free_port()}").storage_options)
    return dict(azurite.storage_options)


@pytest.mark.parametrize(
    ("fault", "kind", "expected"),
    [
        ("wrong key", "credentials", "refused the credentials"),
        ("malformed key", "credentials", "malformed"),
        ("no credentials", "credentials", "refused the credentials"),
        ("only reading", "permission", "no permission"),
        ("no such host", "unreachable", r"no connection to acct\.blob\.core\.invalid"),
        ("nobody listens", "unreachable", r"no connection to 127\.0\.0\.1"),
        ("no container", "no-such-bucket", "no container 'missing'"),
    ],
)
def test_a_refusal_says_which_it_is(azurite: Server, fault: str, kind: str, expected: str) -> None:
    url = "az://missing/f" if fault == "no container" else azurite.url()
    options = options_for(azurite, fault)
    place = resolve(url, storage_options=options)
    large = bytes(2 * MIB)
    attempts: list[Callable[[], object]] = [
        lambda: place.storage.write(place.path, [b"x"]),
        lambda: place.storage.write(place.path, [b"x"], ABSENT),
        lambda: place.storage.put(place.path, [large]),
        lambda: place.storage.delete(place.path),
    ]
    if fault != "only reading":
        attempts += [lambda: place.storage.read(place.path), lambda: list(place.storage.list(f"{place.path}/"))]
    for attempt in attempts:
        with pytest.raises(StorageError, match=expected) as caught:
            attempt()
        assert caught.value.kind == kind
        assert isinstance(caught.value, StoragePermissionError) == (kind == "permission")
        shown = f"{caught.value} {caught.value!r} {place.storage!r}"
        assert not [secret for secret in (ACCOUNT_KEY, "d3Jvbmc=", "sig=") if secret in shown]
        assert caught.value.__cause__ is not None


@pytest.mark.parametrize(
    ("status", "code", "condition", "expected", "kind"),
    [
        (403, "AuthenticationFailed", ANY, StorageError, "credentials"),
        (401, "InvalidAuthenticationInfo", ANY, StorageError, "credentials"),
        (403, "AuthorizationPermissionMismatch", ANY, StoragePermissionError, "permission"),
        (403, "AuthorizationFailure", ABSENT, StoragePermissionError, "permission"),
        (404, "BlobNotFound", ANY, PathNotFoundError, "path-not-found"),
        (404, "BlobNotFound", '"etag"', ConflictError, "condition"),
        (404, "ResourceNotFound", ANY, StorageError, "no-such-bucket"),
        (409, "BlobAlreadyExists", ABSENT, ConflictError, "condition"),
        (412, "ConditionNotMet", '"etag"', ConflictError, "condition"),
        (412, None, '"etag"', ConflictError, "condition"),
        (412, "ConditionNotMet", ANY, StorageError, "interrupted"),  # of a read in several requests
        (412, "LeaseIdMissing", '"etag"', StorageError, "storage"),
        (409, "BlobArchived", ANY, StorageError, "storage"),
        (400, "InvalidBlockList", ANY, StorageError, "storage"),
        (503, "ServerBusy", ANY, StorageError, "throttled"),
        (429, None, ANY, StorageError, "throttled"),
        (500, "OperationTimedOut", ANY, StorageError, "unavailable"),
        (502, None, ANY, StorageError, "unavailable"),
    ],
)
def test_what_the_service_answers_becomes_an_error_of_ours(
    status: int, code: str | None, condition: Any, expected: type[OcdbtError], kind: str
) -> None:
    storage = resolve("az://con/f", storage_options={"account_name": "acct", **KEY}).storage
    assert isinstance(storage, AzureStorage)
    error = HttpResponseError("the words of the service, with sig=topsecret")
    error.status_code, error.error_code = status, code
    found = storage._failure(error, "con/f", condition)
    assert (type(found), found.kind, found.path) == (expected, kind, "con/f")
    assert "az://con/f" in str(found)
    assert "topsecret" not in str(found)
    if expected is StorageError and code:
        assert code in str(found) or kind == "interrupted"


def test_a_package_that_is_missing_is_named_with_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ocdbt_py_backends.azure")
    monkeypatch.setitem(sys.modules, "adlfs", None)
    with pytest.raises(UnsupportedError, match=r'adlfs.*pip install "ocdbt-py\[azure\]"'):
        resolve("az://con/f")


def test_a_reading_token_reads(azurite: Server) -> None:
    url = azurite.url()
    put(resolve(url, storage_options=azurite.storage_options).storage, url.removeprefix("az://"), CONTENT)
    place = resolve(url, storage_options=options_for(azurite, "only reading"))
    assert content(place.storage, place.path) == CONTENT
    assert [found.size for found in place.storage.list(place.path)] == [len(CONTENT)]
    with pytest.raises(PathNotFoundError):
        place.storage.read(f"{place.path}/absent")
