"""S3 against SeaweedFS, a real server, and moto, which speaks as Amazon does: requests, conditions, errors, memory."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import pytest
import tensorstore as ts
from upath import UPath

import ocdbt_py
from conformance.backends.recorder import Recorder
from conformance.memory import beside_the_data
from conformance.servers.faulty_proxy import CUT, LOSE, PASS, REFUSE, Request
from conformance.servers.kinds import s3_at
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
from ocdbt_py.storage.location import Place, resolve
from ocdbt_py.storage.protocol import ABSENT, UNCHANGED, Listed, Read, Storage
from ocdbt_py.testing.files import CONTENT, content, put
from ocdbt_py.testing.storage_suite import StorageSuite
from ocdbt_py.testing.storage_suite.names import BACKSLASH_NAME, CONTROL_NAME, NOT_UTF8_NAME
from ocdbt_py_backends import object_writing
from ocdbt_py_backends.s3 import S3Storage

PART = 5 << 20
"""The least that S3 takes as a part."""

MANY = bytes(range(256)) * (PART >> 7) + b"and the last part"
"""Three parts."""

SECRET = "not-to-be-shown"


def behind(proxy: Recorder) -> Place:
    """A new place, all requests to which come by the proxy."""
    server = s3_at("witness", proxy.endpoint)
    return resolve(server.url(), storage_options=server.storage_options)


@pytest.fixture(params=["seaweedfs", "moto"])
def server(request: pytest.FixtureRequest) -> Server:
    found: Server = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def place(server: Server) -> Place:
    return resolve(server.url(), storage_options=server.storage_options)


@pytest.fixture
def witness(server: Server) -> Iterator[Recorder]:
    with Recorder(server.endpoint) as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(S3Storage, "first_pause", 0.01)
    monkeypatch.setattr(S3Storage, "longest_pause", 0.02)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_writing, "PART_BYTES", PART)
    monkeypatch.setattr(S3Storage, "single_bytes", PART + 1)


class TestOnSeaweedFS(StorageSuite):
    refused_names = (NOT_UTF8_NAME,)
    altered_names = (BACKSLASH_NAME,)  # it takes the one slash for the other
    rounds = 3  # whoever finds an object being written waits for a second, and then again

    @pytest.fixture
    def storage_and_root(self, seaweedfs: Server) -> tuple[Storage, str]:
        place = resolve(seaweedfs.url(), storage_options=seaweedfs.storage_options)
        return place.storage, place.path


class TestOnMoto(StorageSuite):
    refused_names = (NOT_UTF8_NAME, CONTROL_NAME)  # its names end where the line does
    rounds = 5

    @pytest.fixture
    def storage_and_root(self, moto: Server) -> tuple[Storage, str]:
        place = resolve(moto.url(), storage_options=moto.storage_options)
        return place.storage, place.path


# --- conditions


def test_a_token_is_the_etag_and_conditions_are_met_or_not(place: Place, server: Server) -> None:
    storage, path = place.storage, f"{place.path}/f"
    first = storage.write(path, [b"one"], ABSENT)
    fs = fsspec.filesystem("s3", **server.storage_options, use_listings_cache=False)
    assert fs.info(path)["ETag"] == first
    second = storage.write(path, [b"two"], first)
    for condition in (ABSENT, first, '"0123456789abcdef0123456789abcdef"'):
        with pytest.raises(ConflictError):
            storage.write(path, [b"three"], condition)
    assert content(storage, path) == b"two"
    storage.delete(path)
    with pytest.raises(ConflictError):
        storage.write(path, [b"three"], second)


def test_a_read_that_finds_nothing_new_moves_no_body(witness: Recorder) -> None:
    place = behind(witness)
    storage, path = place.storage, f"{place.path}/manifest"
    token = storage.write(path, [CONTENT])
    witness.summary()
    assert storage.read(path, unless=token) is UNCHANGED
    ((request, answer),) = witness.passed
    assert (request.method, answer.status) == ("GET", 304)
    assert len(answer.whole) == answer.body_at
    witness.summary()
    storage.write(path, [CONTENT, b"more"], token)
    found = storage.read(path, unless=token)
    assert isinstance(found, Read)
    assert len(found.data) == found.size == len(CONTENT) + 4
    assert witness.summary() == [("PUT", 200), ("GET", 200)]


def test_every_call_is_one_request(witness: Recorder) -> None:
    place = behind(witness)
    storage, root = place.storage, place.path
    storage.put(f"{root}/f", [CONTENT])
    put(storage, f"{root}/g", CONTENT)
    storage.read(f"{root}/f", 5, 10)
    storage.read_many([(f"{root}/f", start, start + 9) for start in range(0, 9000, 100)])
    assert witness.summary() == [("PUT", 200), ("PUT", 200), ("GET", 206), ("GET", 206)]
    list(storage.list(f"{root}/"))
    storage.delete(f"{root}/g")
    assert witness.summary() == [("GET", 200), ("DELETE", 204)]
    assert list(storage.list(f"{root}/")) == [Listed(f"{root}/f", len(CONTENT))]


def test_an_old_botocore_that_would_drop_conditions_is_refused(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    class Model:
        input_shape = type("Shape", (), {"members": {"Bucket": None, "IfNoneMatch": None}})

    class Client:
        meta = type("Meta", (), {"service_model": type("Service", (), {"operation_model": lambda self, name: Model})()})

    async def client(self: S3Storage, bucket: str) -> Client:
        return Client()

    monkeypatch.setattr(S3Storage, "_client", client)
    with pytest.raises(UnsupportedError, match="upgrade aiobotocore"):
        place.storage.write(f"{place.path}/f", [b"x"], ABSENT)
    for data in (b"x", MANY):
        with pytest.raises(UnsupportedError, match="upgrade aiobotocore"):
            place.storage.put(f"{place.path}/f", [data])


# --- answers that are lost, and servers that fail


def test_a_new_file_is_there_once_although_answers_are_lost(witness: Recorder) -> None:
    place = behind(witness)
    storage = place.storage
    storage.put(f"{place.path}/warm", [b"x"])
    for name, data in (("small", CONTENT), ("large", MANY[:PART])):
        witness.faults = [LOSE, REFUSE, LOSE]
        storage.put(f"{place.path}/{name}", [data[:1000], data[1000:]])
        assert content(storage, f"{place.path}/{name}") == data


def test_a_conditional_write_whose_answer_is_lost_is_never_acknowledged_falsely(witness: Recorder) -> None:
    place = behind(witness)
    storage, path = place.storage, f"{place.path}/manifest"
    token = storage.write(path, [b"zero"])
    for turn in range(4):
        witness.faults = [LOSE]
        # the HTTP library repeats a PUT on a connection that it had kept, which then meets what it wrote itself
        with pytest.raises((ConflictError, StorageError)) as caught:
            storage.write(path, [b"%d" % turn], token)
        assert caught.value.kind in {"condition", "ambiguous"}
        found = storage.read(path)
        assert isinstance(found, Read)
        assert found.data == b"%d" % turn
        token = found.token


def test_an_upload_is_completed_once_although_answers_are_lost(witness: Recorder) -> None:
    place = behind(witness)
    witness.faults = [PASS, PASS, LOSE, REFUSE, PASS, PASS, PASS, PASS, LOSE, REFUSE]
    place.storage.put(f"{place.path}/f", [MANY])
    witness.faults = []
    requests = [request for request, _ in witness.passed]
    assert sum(request.method == "POST" and "uploadId" in request.target for request in requests) >= 1
    assert content(place.storage, f"{place.path}/f") == MANY
    assert uploads_of(place) == []


def test_a_completion_whose_answer_is_lost_is_known_by_its_mark(server: Server) -> None:
    lost: list[str] = []

    def is_lost(request: Request) -> bool:
        if request.method == "POST" and "uploadId" in request.target and len(lost) < 2:
            lost.append(request.target)
            return True
        return False

    with Recorder(server.endpoint) as proxy:
        proxy.lost = is_lost
        place = behind(proxy)
        place.storage.put(f"{place.path}/f", [MANY])
        assert len(lost) == 2
        assert content(place.storage, f"{place.path}/f") == MANY
        with pytest.raises(AlreadyExistsError):
            place.storage.put(f"{place.path}/f", [MANY])
        assert uploads_of(place) == []


def test_an_upload_goes_in_parts_that_nobody_sees_before_the_end(place: Place) -> None:
    storage, path = place.storage, f"{place.path}/f"
    writer = storage.create(path)
    writer.write([MANY[: PART + 5]])
    assert list(storage.list(f"{place.path}/")) == []
    assert len(uploads_of(place)) == 1
    writer.abort()
    assert uploads_of(place) == []
    writer = storage.create(path)
    writer.write([MANY[: PART + 5]])
    storage.put(path, [b"another was faster"])
    with pytest.raises(AlreadyExistsError):
        writer.close()
    assert content(storage, path) == b"another was faster"
    assert uploads_of(place) == []


def uploads_of(place: Place) -> list[str]:
    """Of those under way, the ones to this place."""
    storage = place.storage
    assert isinstance(storage, S3Storage)
    bucket, _, root = place.path.partition("/")

    async def uploads() -> Any:
        client = await storage._client(bucket)
        return await client.list_multipart_uploads(Bucket=bucket)

    return [item["Key"] for item in storage._run(uploads()).get("Uploads", []) if item["Key"].startswith(root)]


def test_a_cut_answer_is_asked_for_again(witness: Recorder) -> None:
    place = behind(witness)
    place.storage.put(f"{place.path}/f", [CONTENT])
    witness.faults = [CUT, REFUSE, CUT]
    assert content(place.storage, f"{place.path}/f") == CONTENT
    witness.faults = [CUT, REFUSE]
    assert place.storage.read_many([(f"{place.path}/f", 3, 4000)]) == [CONTENT[3:4000]]


@pytest.mark.parametrize("status", [400, 405, 501])
def test_objects_are_deleted_singly_where_they_cannot_be_together(server: Server, status: int) -> None:
    with Recorder(server.endpoint, refused=lambda request: status if "?delete" in request.target else 0) as proxy:
        place = behind(proxy)
        for n in range(15):
            place.storage.put(f"{place.path}/d/{n}", [b"x"])
        place.storage.put(f"{place.path}/e", [b"x"])
        place.storage.delete(f"{place.path}/d/")
        assert [item.path for item in place.storage.list(f"{place.path}/", deep=True)] == [f"{place.path}/e"]


def test_a_large_directory_is_listed_and_deleted_in_pages(witness: Recorder) -> None:
    options = {**s3_at("", witness.endpoint).storage_options, "s3_additional_kwargs": {"MaxKeys": 7}}
    place = resolve(behind(witness).url, storage_options=options)
    names = [f"{place.path}/d/{n:02}" for n in range(20)]
    for name in names:
        place.storage.put(name, [])
    witness.summary()
    assert sorted(item.path for item in place.storage.list(f"{place.path}/d/")) == names
    assert witness.summary() == [("GET", 200)] * 3
    place.storage.delete(f"{place.path}/d/")
    assert list(place.storage.list(f"{place.path}/", deep=True)) == []
    assert [method for method, _ in witness.summary()].count("POST") == 1


# --- what errors say


def _always(status: int, request: Request) -> int:
    return status


def error_of(server: Server, url: str = "", **options: Any) -> OcdbtError:
    """What writing to a place raises, with the server's own options but for these."""
    place = resolve(url or server.url(), storage_options={**server.storage_options, **options})
    with pytest.raises(OcdbtError) as caught:
        place.storage.write(f"{place.path}/f", [b"x"])
    assert SECRET not in str(caught.value) + repr(caught.value)
    assert "\n" not in str(caught.value)
    return caught.value


def test_refused_credentials_are_said_to_be(seaweedfs: Server) -> None:
    error = error_of(seaweedfs, secret=SECRET)
    assert error.kind == "credentials"
    assert "the credentials were refused; check key and secret (403 SignatureDoesNotMatch)" in str(error)
    error = error_of(seaweedfs, key="nobody", secret=SECRET)
    assert error.kind == "credentials"
    assert "InvalidAccessKeyId" in str(error)


def test_absent_credentials_are_said_to_be(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    error = error_of(server, key=None, secret=None)
    assert error.kind == "credentials"
    assert "no usable credentials were found" in str(error)
    error = error_of(server, key=None, secret=None, profile="nobody")
    assert error.kind == "credentials"


def test_a_missing_bucket_is_said_to_be(server: Server) -> None:
    url = "s3://no-such-bucket-here/place"
    storage = resolve(url, storage_options=server.storage_options).storage
    attempts: list[Callable[[], object]] = [
        lambda: storage.read("no-such-bucket-here/place/f"),
        lambda: list(storage.list("no-such-bucket-here/place/")),
    ]
    if server.name != "SeaweedFS":  # which makes a bucket for whom it lets make one
        attempts.append(lambda: storage.put("no-such-bucket-here/place/f", [b"x"]))
        attempts.append(lambda: storage.put("no-such-bucket-here/place/f", [MANY]))
    for attempt in attempts:
        with pytest.raises(StorageError, match=r"s3://no-such-bucket-here/place/f?: there is no such bucket") as caught:
            attempt()
        assert caught.value.kind == "no-such-bucket"


def test_refused_access_is_said_to_be(seaweedfs: Server) -> None:
    error = error_of(seaweedfs, key="reader", secret="reader")
    assert isinstance(error, StoragePermissionError)
    assert "access is denied" in str(error)


def test_an_unreachable_server_is_named(seaweedfs: Server) -> None:
    port = free_port()
    error = error_of(seaweedfs, endpoint_url=f"http://127.0.0.1:{port}")
    assert error.kind == "unreachable"
    assert f"the server 127.0.0.1:{port} cannot be reached" in str(error)
    assert "tried 6 times" in str(error)
    error = error_of(seaweedfs, endpoint_url="http://no-such-host.invalid")
    assert error.kind == "unreachable"
    assert "the server no-such-host.invalid cannot be reached" in str(error)


def test_a_server_that_keeps_failing_is_given_up(seaweedfs: Server) -> None:
    for status, kind in ((500, "unavailable"), (429, "throttled"), (418, "storage")):
        with Recorder(seaweedfs.endpoint, refused=partial(_always, status)) as proxy:
            place = behind(proxy)
            with pytest.raises(StorageError, match=rf"\({status}") as caught:
                place.storage.read(f"{place.path}/f")
            assert caught.value.kind == kind
            assert sum(proxy.counts.values()) == (1 if kind == "storage" else 6)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"no_such_option": SECRET}, "s3fs makes no client"),
        ({"endpoint_url": "no-url-at-all"}, "s3fs makes no client"),
        ({"username": "x"}, "s3fs makes no client"),
        ({"max_concurrency": 0}, "s3fs makes no client"),
    ],
)
def test_options_that_make_no_client_are_a_wrong_argument(
    seaweedfs: Server, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=sentence) as caught:
        resolve(seaweedfs.url(), storage_options={**seaweedfs.storage_options, **options}).storage.read("b/f")
    assert SECRET not in str(caught.value)


def test_a_url_that_names_no_bucket_or_holds_credentials_is_refused() -> None:
    for url in ("s3://", "s3:///key", "s3a://"):
        with pytest.raises(InvalidArgumentError, match="begins with a bucket"):
            resolve(url)
    with pytest.raises(InvalidArgumentError, match="holds no credentials") as caught:
        resolve(f"s3://key:{SECRET}@bucket/place")
    assert SECRET not in str(caught.value)


def test_a_name_too_long_is_refused(seaweedfs: Server) -> None:
    place = resolve(seaweedfs.url(), storage_options=seaweedfs.storage_options)
    with pytest.raises(StorageError, match="KeyTooLong"):
        place.storage.put(f"{place.path}/{'x' * 1100}", [b"x"])
    assert list(place.storage.list(f"{place.path}/")) == []


# --- ways to a storage


def test_every_spelling_is_the_same_place(server: Server) -> None:
    url = server.url()
    path = url.removeprefix("s3://")
    fs = fsspec.filesystem("s3", **server.storage_options)
    put(resolve(url, storage_options=server.storage_options).storage, f"{path}/f", b"x")
    places = [
        resolve(f"{url}/", storage_options=server.storage_options),
        resolve(url.replace("s3://", "s3a://"), storage_options=server.storage_options),
        resolve(UPath(url, **server.storage_options)),
        resolve(path, fs=fs),
        resolve(url, fs=fs),
        resolve(path.partition("/")[2], fs=fsspec.filesystem("dir", path=path.partition("/")[0], fs=fs)),
    ]
    for place in places:
        assert (place.path, place.url) == (path, url)
        assert place.storage == places[0].storage
        assert hash(place.storage) == hash(places[0].storage)
        assert content(place.storage, f"{path}/f") == b"x"


def test_a_users_filesystem_is_left_as_it_is(server: Server) -> None:
    fs = fsspec.filesystem("s3", **server.storage_options, config_kwargs={"max_pool_connections": 3})
    place = resolve(server.url(), fs=fs)
    assert isinstance(place.storage, S3Storage)
    assert place.storage.fs is fs
    put(place.storage, f"{place.path}/f", b"x")
    options = {**server.storage_options, "config_kwargs": {"max_pool_connections": 3}, "requester_pays": True}
    ours = resolve(place.url, storage_options=options).storage
    assert isinstance(ours, S3Storage)
    assert content(ours, f"{place.path}/f") == b"x"
    client = ours._run(ours._client(""))
    assert client.meta.config.max_pool_connections == 3
    assert client.meta.config.retries["total_max_attempts"] == 1
    assert ours.fs.requester_pays
    assert not ours.fs.dircache.use_listings_cache


def test_headers_that_options_ask_for_are_sent(witness: Recorder) -> None:
    options = {**s3_at("", witness.endpoint).storage_options}
    options |= {"requester_pays": True, "s3_additional_kwargs": {"Metadata": {"owner": "us"}, "ContentType": "a/b"}}
    place = resolve(behind(witness).url, storage_options=options)
    place.storage.put(f"{place.path}/f", [b"x"])
    place.storage.put(f"{place.path}/g", [MANY])
    place.storage.read(f"{place.path}/f")
    headers = [{name.lower(): value for name, value in request.headers} for request, _ in witness.passed]
    assert all(found.get("x-amz-request-payer") == "requester" for found in headers)
    with_type = [found for found in headers if found.get("content-type") == "a/b"]
    assert [found["x-amz-meta-owner"] for found in with_type] == ["us", "us"]


def test_an_upload_has_the_checksums_that_options_ask_for(server: Server) -> None:
    options = {**server.storage_options, "s3_additional_kwargs": {"ChecksumAlgorithm": "SHA256"}}
    place = resolve(server.url(), storage_options=options)
    place.storage.put(f"{place.path}/f", [MANY])
    assert content(place.storage, f"{place.path}/f") == MANY


def test_a_public_bucket_is_read_without_credentials(seaweedfs: Server) -> None:
    url = seaweedfs.url()
    put(resolve(url, storage_options=seaweedfs.storage_options).storage, f"{url.removeprefix('s3://')}/f", b"x")
    place = resolve(url, storage_options={"anon": True, "endpoint_url": seaweedfs.endpoint})
    assert content(place.storage, f"{place.path}/f") == b"x"


def test_only_amazons_own_endpoint_is_known_to_keep_conditions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    (tmp_path / "config").write_text("[profile mine]\nregion = eu-west-1\nendpoint_url = http://storage.invalid:9\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))

    def storage(**options: Any) -> Storage:
        return resolve(
            "s3://bucket/place", storage_options={"anon": True, **options, "skip_instance_cache": True}
        ).storage

    amazon = [
        storage(),
        storage(client_kwargs={"region_name": "eu-west-1"}),
        storage(endpoint_url="https://s3.amazonaws.com"),
    ]
    assert [found.capabilities.conditions_unproven for found in amazon] == [False] * 3
    assert len(set(amazon)) == 1
    others = [storage(endpoint_url="http://storage.invalid:9"), storage(profile="mine")]
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://storage.invalid:9")
    others += [storage(), storage(client_kwargs={"endpoint_url": "http://storage.invalid:9"})]
    assert [found.capabilities.conditions_unproven for found in others] == [True] * 4
    assert len(set(others)) == 1
    assert storage(endpoint_url="https://amazonaws.com.invalid").capabilities.conditions_unproven


def test_a_pickled_storage_needs_no_more_than_its_options(place: Place) -> None:
    put(place.storage, f"{place.path}/f", b"x")
    assert "testing" not in repr(place.storage)
    again = pickle.loads(pickle.dumps(place.storage))
    assert again == place.storage
    assert content(again, f"{place.path}/f") == b"x"


# --- memory, and others


def test_putting_and_reading_much_takes_little_memory_beside_it(seaweedfs: Server) -> None:
    put_bytes, read_bytes = beside_the_data(seaweedfs.url(), seaweedfs.storage_options)
    assert put_bytes <= 64 << 20, f"{put_bytes >> 20} MiB"
    assert read_bytes <= 64 << 20, f"{read_bytes >> 20} MiB"


def test_tensorstore_reads_our_database_and_we_read_its(server: Server) -> None:
    url = server.url()
    large = os.urandom(100_000)
    with ocdbt_py.open(url, "x", storage_options=dict(server.storage_options)) as db:
        db["small"] = b"inline"
        db["large"] = large
    spec = {"driver": "ocdbt", "base": server.tensorstore(url)}
    theirs = ts.KvStore.open(spec).result()
    assert theirs.read("small").result().value == b"inline"
    assert theirs.read("large").result().value == large
    theirs.write("large", large[::-1]).result()
    theirs.write("new", b"theirs").result()
    with ocdbt_py.open(url, "r+", storage_options=dict(server.storage_options)) as db:
        assert dict(db.items()) == {b"small": b"inline", b"large": large[::-1], b"new": b"theirs"}
        db["new"] = b"ours"
    assert ts.KvStore.open(spec).result().read("new").result().value == b"ours"
    with pytest.raises(PathNotFoundError):
        resolve(url, storage_options=server.storage_options).storage.read(f"{url.removeprefix('s3://')}/none")
