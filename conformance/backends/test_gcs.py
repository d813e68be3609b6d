"""Google Cloud Storage, against a strict server of its JSON API. (What an answer of the service itself means, which no
such server gives, is tested as a pure function.)"""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import google.auth.credentials
import google.auth.exceptions
import pytest
import requests
import tensorstore as ts
from gcsfs.core import GCSFileSystem
from gcsfs.retry import HttpError
from google.oauth2.credentials import Credentials
from upath import UPath

import ocdbt_py
from conformance.backends.recorder import Recorder
from conformance.memory import beside_the_data
from conformance.servers.faulty_proxy import LOSE, PASS, REFUSE, Answer, Request
from conformance.servers.kinds import FORBIDDEN, gcs_at
from conformance.servers.server import Server
from ocdbt_py.errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidArgumentError,
    OcdbtError,
    PathNotFoundError,
    StorageError,
    StoragePermissionError,
)
from ocdbt_py.storage.location import DEFAULT_SETTINGS, Place, resolve
from ocdbt_py.storage.protocol import ABSENT, UNCHANGED, Listed, Read, Storage
from ocdbt_py.testing.files import content, put
from ocdbt_py.testing.storage_suite import StorageSuite
from ocdbt_py.testing.storage_suite.names import CONTROL_NAME, NOT_UTF8_NAME
from ocdbt_py_backends import gcs, gcs_upload
from ocdbt_py_backends.body import Body
from ocdbt_py_backends.gcs import GCSStorage
from ocdbt_py_backends.gcs_errors import Refused, failure
from ocdbt_py_backends.object_requests import SINGLE_BYTES
from ocdbt_py_backends.object_writing import PART_BYTES

MANY = bytes(range(256)) * (SINGLE_BYTES // 256) + b"and a remainder that no unit divides"
"""Too much for one request."""


def behind(proxy: Recorder) -> GCSStorage:
    """All of whose requests come by the proxy."""
    found = resolve("gs://any", storage_options=gcs_at(proxy.endpoint).storage_options).storage
    assert isinstance(found, GCSStorage)
    return found


@pytest.fixture
def place(gcs_server: Server) -> Place:
    return resolve(gcs_server.url(), storage_options=gcs_server.storage_options)


@pytest.fixture
def witness(gcs_server: Server) -> Iterator[Recorder]:
    with Recorder(gcs_server.endpoint) as proxy:
        yield proxy


def body_of(answer: Answer) -> bytes:
    return answer.whole[answer.body_at :]


def sizes(requests: Sequence[Request]) -> list[int]:
    return [len(request.body) for request in requests]


class TestGCSStorage(StorageSuite):
    refused_names = (CONTROL_NAME, NOT_UTF8_NAME)

    @pytest.fixture
    def storage_and_root(self, place: Place) -> tuple[Storage, str]:
        return place.storage, place.path


# --- generations


def test_a_token_is_the_generation_and_equal_bytes_have_another(place: Place, gcs_server: Server) -> None:
    storage, path = place.storage, f"{place.path}/f"
    fs = GCSFileSystem(**gcs_server.storage_options, use_listings_cache=False)
    tokens = [storage.write(path, [b"same"]) for _ in range(3)]
    assert len(set(tokens)) == 3
    assert tokens[-1] == fs.info(path)["generation"]
    with pytest.raises(ConflictError):
        storage.write(path, [b"late"], tokens[0])
    with pytest.raises(ConflictError):
        storage.write(path, [b"of another backend"], ("mtime", 5))
    fs.pipe_file(path, b"by gcsfs")
    with pytest.raises(ConflictError):
        storage.write(path, [b"late"], tokens[-1])
    assert content(storage, path) == b"by gcsfs"


def test_a_read_of_what_is_known_moves_no_body(place: Place, witness: Recorder) -> None:
    storage = behind(witness)
    token = storage.write(f"{place.path}/f", [b"x" * 100_000])
    witness.take()
    assert storage.read(f"{place.path}/f", unless=token) is UNCHANGED
    assert [(answer.status, body_of(answer)) for answer in witness.answers] == [(304, b"")]
    assert "ifGenerationNotMatch" in witness.requests[0].target


def test_bytes_and_token_come_from_one_request(place: Place, witness: Recorder) -> None:
    storage = behind(witness)
    token = storage.write(f"{place.path}/f", [b"0123456789"])
    witness.take()
    assert storage.read(f"{place.path}/f", 2, 5) == Read(b"234", token, 10)
    assert [body_of(answer) for answer in witness.answers] == [b"234"]


# --- answers that are lost


def test_a_conditional_write_whose_answer_is_lost_is_ambiguous_and_not_repeated(
    place: Place, witness: Recorder
) -> None:
    storage, path = behind(witness), f"{place.path}/f"
    token = storage.write(path, [b"one"])
    witness.take()
    witness.faults = [LOSE]
    with pytest.raises(StorageError) as caught:
        storage.write(path, [b"two"], token)
    assert caught.value.kind == "ambiguous"
    assert len(witness.requests) == 1
    assert content(storage, path) == b"two"


def test_a_new_file_whose_answer_is_lost_is_known_again(place: Place, witness: Recorder) -> None:
    storage, path = behind(witness), f"{place.path}/f"
    witness.faults = [LOSE]
    storage.put(path, [b"new"])
    assert content(storage, path) == b"new"
    with pytest.raises(AlreadyExistsError):
        storage.put(path, [b"other"])


def test_what_the_service_could_not_do_at_once_is_tried_again(place: Place, witness: Recorder) -> None:
    storage, path = behind(witness), f"{place.path}/f"
    witness.faults = [REFUSE, REFUSE]
    storage.write(path, [b"x"])
    witness.faults = [LOSE, REFUSE]
    assert content(storage, path) == b"x"
    witness.faults = [LOSE]
    storage.delete(path)
    with pytest.raises(PathNotFoundError):
        storage.read(path)


# --- uploads in parts


def test_a_large_file_goes_in_parts_each_sent_once(place: Place, witness: Recorder) -> None:
    storage, path = behind(witness), f"{place.path}/f"
    view = memoryview(MANY)
    storage.put(path, [view[:100], view[100 : 50 << 20], view[50 << 20 :]])
    assert sizes(witness.requests) == [0, *[PART_BYTES] * (len(MANY) // PART_BYTES), len(MANY) % PART_BYTES]
    assert storage.read_many([(path, 0, len(MANY))]) == [MANY]


@pytest.mark.parametrize("lost", range(7))
def test_an_upload_goes_on_where_an_answer_was_lost(place: Place, witness: Recorder, lost: int) -> None:
    storage, path = behind(witness), f"{place.path}/f"
    witness.faults = [*[PASS] * lost, LOSE]
    storage.put(path, [MANY])
    found = storage.read(path, 0, 1)
    assert isinstance(found, Read)
    assert found.size == len(MANY)
    assert sum(sizes(witness.requests)) == len(MANY), "a part was sent again that had arrived"


def test_an_upload_survives_refusals(place: Place, witness: Recorder) -> None:
    storage, path = behind(witness), f"{place.path}/f"
    witness.faults = [REFUSE, PASS, PASS, REFUSE, REFUSE, PASS, PASS, PASS, PASS, REFUSE, REFUSE]
    storage.put(path, [MANY])
    assert storage.read_many([(path, 0, len(MANY))]) == [MANY]


def test_an_upload_of_whole_parts_only_ends_with_an_empty_request(place: Place, witness: Recorder) -> None:
    storage, path = behind(witness), f"{place.path}/f"
    writer = storage.create(path)
    writer.write([MANY[:PART_BYTES]])
    writer.write([MANY[PART_BYTES : 2 * PART_BYTES]])
    with pytest.raises(PathNotFoundError):
        storage.read(path)
    witness.faults = [LOSE]
    writer.close()
    assert storage.read_many([(path, 0, 2 * PART_BYTES)]) == [MANY[: 2 * PART_BYTES]]


def test_an_upload_does_not_replace_what_came_before_its_end(place: Place) -> None:
    storage, path = place.storage, f"{place.path}/f"
    writer = storage.create(path)
    writer.write([MANY[: PART_BYTES + 5]])
    put(storage, path, b"faster")
    with pytest.raises(AlreadyExistsError) as caught:
        writer.close()
    assert caught.value.path == path
    with pytest.raises(AlreadyExistsError):
        storage.put(path, [MANY])
    assert content(storage, path) == b"faster"


def test_an_aborted_upload_is_forgotten_by_the_service(place: Place, witness: Recorder) -> None:
    storage, path = behind(witness), f"{place.path}/f"
    writer = storage.create(path)
    writer.write([MANY[: PART_BYTES + 5]])
    writer.abort()
    assert witness.requests[-1].method == "DELETE"
    assert witness.answers[-1].status == 499
    assert list(storage.list(f"{place.path}/")) == []


def test_a_service_may_keep_less_than_was_sent() -> None:
    unit = gcs_upload.UNIT
    content = bytes(range(256)) * (4 * unit // 256) + b"end"
    arrived = bytearray()
    finished = False

    async def ask(
        method: str, url: str, query: Any, headers: Any, body: Body | None = None, also: Sequence[int] = ()
    ) -> gcs_upload.Answer:
        nonlocal finished
        place, _, total = headers["Content-Range"].removeprefix("bytes ").partition("/")
        if body is not None and len(body):
            assert int(place.partition("-")[0]) == len(arrived)
            kept = body.joined() if len(body) <= unit else body.joined()[:-unit]
            arrived.extend(kept)
        if total == str(len(arrived)):
            finished = True
            return gcs_upload.Answer(200, {}, b"{}")
        return gcs_upload.Answer(308, {"Range": f"bytes=0-{len(arrived) - 1}"} if arrived else {}, b"")

    async def upload() -> None:
        session = gcs_upload.ResumableUpload(ask, "gs://b/f", "b/f", "https://host/session")
        await session.part(1, Body([content[: 2 * unit]]))
        await session.part(2, Body([content[2 * unit :]]))
        await session.complete()

    asyncio.run(upload())
    assert finished
    assert bytes(arrived) == content


def test_an_upload_that_is_gone_says_so_and_does_not_show_its_url(place: Place, gcs_server: Server) -> None:
    storage, path = place.storage, f"{place.path}/f"
    writer = storage.create(path)
    writer.write([MANY[:PART_BYTES]])
    upload: Any = writer
    session = upload._upload
    requests.delete(session._url, timeout=10).close()
    with pytest.raises(StorageError, match="no longer known") as caught:
        writer.close()
    secret = session._url.rpartition("upload_id=")[2]
    assert len(secret) > 20
    assert secret not in f"{caught.value!r} {caught.value} {caught.value.__cause__!r}"


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not tell a process's peak of memory")
def test_200_mib_go_and_come_in_64_mib_of_memory_beside_them(gcs_server: Server) -> None:
    put_peak, read_peak = beside_the_data(gcs_server.url(), gcs_server.storage_options)
    assert max(put_peak, read_peak) <= 64 << 20, (put_peak, read_peak)


# --- listing and deleting


def test_a_listing_goes_over_many_pages(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gcs, "_PAGE", 2)
    storage, root = place.storage, place.path
    names = [f"{root}/{letter}/{n}" for letter in "abc" for n in range(3)]
    for name in names:
        put(storage, name, b"x")
    assert sorted(found.path for found in storage.list(f"{root}/", deep=True)) == names
    assert list(storage.list(f"{root}/")) == [Listed(f"{root}/{letter}/", None) for letter in "abc"]
    storage.delete(f"{root}/")
    assert list(storage.list(f"{root}/", deep=True)) == []


def test_marks_of_directories_are_no_files_and_go_with_them(place: Place, gcs_server: Server) -> None:
    storage, root = place.storage, place.path
    fs = GCSFileSystem(**gcs_server.storage_options, use_listings_cache=False)
    for mark in ("d/", "d/e/"):
        upload = f"{gcs_server.endpoint}/upload/storage/v1/b/{root.partition('/')[0]}/o"
        name = f"{root.partition('/')[2]}/{mark}"
        requests.post(upload, params={"uploadType": "media", "name": name}, timeout=10).raise_for_status()
    put(storage, f"{root}/d/f", b"x")
    assert list(storage.list(f"{root}/d/")) == [Listed(f"{root}/d/f", 1), Listed(f"{root}/d/e/", None)]
    assert list(storage.list(f"{root}/", deep=True)) == [Listed(f"{root}/d/f", 1)]
    storage.delete(f"{root}/d/")
    assert fs.find(root) == []


# --- how a place is spelled


def test_every_spelling_names_the_same_database(gcs_server: Server) -> None:
    url, options = gcs_server.url(), dict(gcs_server.storage_options)
    path = url.removeprefix("gs://")
    fs = GCSFileSystem(**options)
    places = [
        resolve(url, storage_options=options),
        resolve(f"{url}/", storage_options=options),
        resolve(f"gcs://{path}", storage_options=options),
        resolve(UPath(url, **options)),
        resolve(path, fs=fs),
        resolve(url, fs=fs),
    ]
    assert {place.path for place in places} == {path}
    assert {place.url for place in places} == {url}
    assert len({place.storage for place in places}) == 1
    with ocdbt_py.open(UPath(url, **options), "a") as database:
        database["key"] = b"value"
    with ocdbt_py.open(path, fs=fs) as database:
        assert database["key"] == b"value"


def test_other_servers_have_to_prove_that_they_honour_conditions(gcs_server: Server) -> None:
    for endpoint, unproven in [
        (gcs_server.endpoint, True),
        ("https://storage.googleapis.com", False),
        ("https://storage.europe-west3.rep.googleapis.com", False),
        ("https://storage.googleapis.com.example.net", True),
    ]:
        storage, _ = GCSStorage.from_fs(
            GCSFileSystem(token="anon", endpoint_url=endpoint), "bucket/x", DEFAULT_SETTINGS
        )
        assert storage.capabilities.conditions_unproven is unproven


def test_a_filesystem_that_only_reads_is_not_written_through(gcs_server: Server) -> None:
    options = {**gcs_server.storage_options, "access": "read_only"}
    assert not resolve(gcs_server.url(), storage_options=options).storage.capabilities.writable


# --- credentials


def credentials(token: str) -> Credentials:
    return Credentials(token)  # type: ignore[no-untyped-call]


class Tokens(google.auth.credentials.Credentials):
    """Has a token only when it was asked to fetch one."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def refresh(self, request: object) -> None:
        self.token = "fetched-just-now"


def test_a_token_is_fetched_when_it_is_needed_and_goes_with_the_request(place: Place, witness: Recorder) -> None:
    fs = GCSFileSystem(token=Tokens(), endpoint_url=witness.endpoint, skip_instance_cache=True)
    storage, _ = GCSStorage.from_fs(fs, place.path, DEFAULT_SETTINGS)
    storage.write(f"{place.path}/f", [b"x"])
    assert ("authorization", "Bearer fetched-just-now") in witness.requests[0].headers


def test_no_token_is_sent_to_a_plain_endpoint_unless_given(witness: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(**options: object) -> tuple[object, str]:
        return credentials("the-users-own"), "project"

    monkeypatch.setattr("google.auth.default", found)
    storage = resolve("gs://no-bucket/x", storage_options={"endpoint_url": witness.endpoint}).storage
    with pytest.raises(StorageError):
        storage.read("no-bucket/x/f")
    assert "authorization" not in {name.lower() for name, _ in witness.requests[0].headers}
    secure = resolve("gs://no-bucket/x", storage_options={"endpoint_url": "https://localhost:1"}).storage
    assert isinstance(secure, GCSStorage)
    assert secure.fs.credentials.credentials.token == "the-users-own"


def test_credentials_that_are_none_say_what_to_do(tmp_path: Any) -> None:
    key = tmp_path / "key.json"
    key.write_text(json.dumps({"type": "service_account", "private_key": "TOP-SECRET"}))
    with pytest.raises(StorageError, match="gcloud auth") as caught:
        resolve("gs://bucket/x", storage_options={"token": str(key)})
    assert caught.value.kind == "credentials"
    assert "TOP-SECRET" not in f"{caught.value!r} {caught.value}"


# --- refusals


def refused(bucket: str, **options: Any) -> OcdbtError:
    storage = resolve(f"gs://{bucket}/x", storage_options=options).storage
    with pytest.raises(OcdbtError) as caught:
        storage.read(f"{bucket}/x/f")
    return caught.value


def test_each_refusal_says_which_it_is(gcs_server: Server) -> None:
    endpoint = gcs_server.endpoint
    wrong = refused("ocdbt-test", endpoint_url=endpoint, token=credentials("refused"))
    assert isinstance(wrong, StorageError)
    assert wrong.kind == "credentials"
    assert "credentials were refused" in str(wrong)
    denied = refused(FORBIDDEN, endpoint_url=endpoint)
    assert isinstance(denied, StoragePermissionError)
    assert "access is denied" in str(denied)
    missing = refused("no-such-bucket", endpoint_url=endpoint)
    assert (type(missing), missing.kind) == (StorageError, "no-such-bucket")
    assert "no such bucket" in str(missing)
    for error in (wrong, denied, missing):
        assert error.__cause__ is not None
        assert error.path == f"{str(error).partition('gs://')[2].partition(':')[0]}"


def test_a_server_that_cannot_be_reached_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GCSStorage, "first_pause", 0.0)
    unknown = refused("bucket", endpoint_url="http://nobody.invalid")
    assert unknown.kind == "unreachable"
    assert "the host nobody.invalid is not known" in str(unknown)
    nobody = refused("bucket", endpoint_url="http://127.0.0.1:9")
    assert nobody.kind == "unreachable"
    assert "127.0.0.1 cannot be reached" in str(nobody)


def answer(status: int, reason: str = "", message: str = "") -> Refused:
    error = {"code": status, "message": message, "errors": [{"reason": reason, "message": message}]}
    return Refused(status, json.dumps({"error": error}).encode())


def broken(kind: type[Exception]) -> Exception:
    return kind("SECRET")


@pytest.mark.parametrize(
    ("error", "kind", "sentence"),
    [
        (answer(401, "authError", "Bearer ya29.SECRET is invalid"), "credentials", "credentials were refused"),
        (answer(403, "forbidden", "SECRET@example.com has no access"), "permission", "access is denied"),
        (answer(403, "rateLimitExceeded"), "throttled", "no more requests"),
        (answer(429, "userRateLimitExceeded"), "throttled", "no more requests"),
        (answer(404, "notFound", "No such object: b/f"), "path-not-found", "There is no gs://b/f"),
        (answer(404, "notFound", "The specified bucket does not exist."), "no-such-bucket", "no such bucket"),
        (Refused(404, b"No such object: b/SECRET"), "path-not-found", "There is no"),
        (answer(500, "backendError"), "unavailable", "out of order"),
        (Refused(503, b"<html>SECRET</html>"), "unavailable", "(HTTP 503)"),
        (answer(408), "interrupted", "did not arrive"),
        (answer(400, "SECRET <script>"), "storage", "refused the request (HTTP 400)"),
        (answer(307), "storage", "refused the request"),
        (broken(google.auth.exceptions.RefreshError), "credentials", "credentials were refused"),
        (broken(google.auth.exceptions.DefaultCredentialsError), "credentials", "gcloud auth"),
        (broken(google.auth.exceptions.TransportError), "unreachable", "service for tokens"),
        (HttpError({"code": 401, "message": "Invalid Credentials SECRET"}), "credentials", "credentials were refused"),
        (aiohttp.ConnectionTimeoutError("SECRET"), "unreachable", "host cannot be reached"),
        (aiohttp.SocketTimeoutError("SECRET"), "timeout", "host did not answer in time"),
        (aiohttp.ServerDisconnectedError("SECRET"), "interrupted", "the connection to host broke"),
        (aiohttp.ClientPayloadError("SECRET"), "interrupted", "the connection to host broke"),
        (aiohttp.InvalidURL("SECRET"), "storage", "is no HTTP (InvalidURL)"),
        (ConnectionResetError("SECRET"), "interrupted", "the connection to host broke"),
        (KeyError("SECRET"), "storage", "the request failed (KeyError)"),
    ],
)
def test_what_the_service_answers_has_a_meaning(error: Exception, kind: str, sentence: str) -> None:
    found = failure(error, "gs://b/f", "b/f", "host")
    assert found is not None
    assert (found.kind, found.path) == (kind, "b/f")
    assert sentence in str(found)
    assert "SECRET" not in f"{found!r} {found}"


def test_an_unmet_condition_is_no_failure_of_the_service() -> None:
    assert failure(answer(412, "conditionNotMet"), "gs://b/f", "b/f", "host") is None


def test_a_name_that_cannot_be_says_why(place: Place) -> None:
    for name in ("line\nbreak", "not utf-8 \udcff", "x" * 1025):
        with pytest.raises(InvalidArgumentError, match="cannot be a name in Google Cloud Storage"):
            place.storage.write(f"{place.path}/{name}", [b"x"])
        with pytest.raises(InvalidArgumentError, match="cannot be a name in Google Cloud Storage"):
            place.storage.read(f"{place.path}/{name}")


# --- with TensorStore


def kvstore(gcs_server: Server, url: str) -> Any:
    spec = {"driver": "ocdbt", "base": gcs_server.tensorstore(url)}
    return ts.KvStore.open(spec).result()


def test_tensorstore_reads_what_we_wrote_and_we_read_what_it_wrote(gcs_server: Server) -> None:
    url, options = gcs_server.url(), dict(gcs_server.storage_options)
    large = bytes(range(256)) * 4096
    with ocdbt_py.open(url, "a", storage_options=options) as database:
        database.update({f"ours/{n:04}": b"%d" % n for n in range(500)})
        database["ours/large"] = large
    theirs = kvstore(gcs_server, url)
    assert theirs.read("ours/0123").result().value == b"123"
    assert theirs.read("ours/large").result().value == large
    assert len(theirs.list().result()) == 501
    theirs.write("theirs/large", large[::-1]).result()
    theirs.write("theirs/small", b"small").result()
    with ocdbt_py.open(url, "r+", storage_options=options) as database:
        assert database["theirs/large"] == large[::-1]
        assert database["theirs/small"] == b"small"
        assert len(database) == 503
        database["ours/again"] = b"again"
    assert kvstore(gcs_server, url).read("ours/again").result().value == b"again"


def test_a_pickled_storage_keeps_its_options(place: Place) -> None:
    put(place.storage, f"{place.path}/f", b"x")
    again = pickle.loads(pickle.dumps(place.storage))
    assert again == place.storage
    assert content(again, f"{place.path}/f") == b"x"
    assert again.write(f"{place.path}/g", [b"y"], ABSENT)


def run(script: str, **environ: str) -> str:
    root = Path(__file__).parents[2]
    given = {name: value for name, value in os.environ.items() if not name.startswith("GCSFS_")}
    given["PYTHONPATH"] = f"{root}{os.pathsep}{root / 'backends'}"
    return subprocess.run(
        [sys.executable, "-c", script], env={**given, **environ}, capture_output=True, text=True, check=True
    ).stdout


def test_without_gcsfs_it_says_what_to_install() -> None:
    script = (
        "import sys; sys.modules['gcsfs'] = None\n"
        "import ocdbt_py\n"
        "try: ocdbt_py.open('gs://bucket/db')\n"
        "except ocdbt_py.UnsupportedError as error: print(error)\n"
    )
    assert 'pip install "ocdbt-py[gcs]"' in run(script)


def test_no_filesystem_of_gcsfs_is_made_to_ask_a_control_service(gcs_server: Server) -> None:
    script = (
        "import gcsfs, ocdbt_py, os\n"
        "fs = gcsfs.GCSFileSystem(token='anon', endpoint_url=os.environ['ENDPOINT'])\n"
        "assert type(fs).__name__ == 'ExtendedGcsFileSystem', 'then this is no trap any more'\n"
        "with ocdbt_py.open(os.environ['PLACE'], 'a', fs=fs) as database:\n"
        "    database['key'] = b'value'\n"
        "with ocdbt_py.open('gs://' + os.environ['PLACE'],\n"
        "                   storage_options={'endpoint_url': os.environ['ENDPOINT']}) as database:\n"
        "    print(database['key'], len(fs._storage_layout_cache), fs._storage_control_client)\n"
    )
    place = gcs_server.url().removeprefix("gs://")
    assert run(script, ENDPOINT=gcs_server.endpoint, PLACE=place).split() == ["b'value'", "0", "None"]
