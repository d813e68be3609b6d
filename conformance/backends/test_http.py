"""Databases and checkpoints behind web servers: good ones, and such as leave out what they may."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import tensorstore as ts
from upath import UPath

import ocdbt_py
from conformance.memory import beside_the_data, prepare
from conformance.servers.server import Server
from conformance.servers.static_http import Manner, Request, StaticServer, serving
from ocdbt_py.errors import (
    CorruptDataError,
    InvalidArgumentError,
    OcdbtError,
    PathNotFoundError,
    StorageError,
    StoragePermissionError,
    UnsupportedError,
)
from ocdbt_py.storage.location import resolve
from ocdbt_py.storage.protocol import UNCHANGED, Read, Storage
from ocdbt_py.testing.files import content
from ocdbt_py.testing.storage_suite.names import HOSTILE_NAMES
from ocdbt_py_backends.http import HTTPStorage

CONTENT = bytes(range(256)) * 400
LARGE = bytes(range(251)) * (10 << 20 >> 8)
"""Several requests' worth."""

AN_HOUR = 3600
WEAK_SERVERS = {
    "no ranges": Manner(ranges=False),
    "no ranges, no sizes": Manner(ranges=False, lengths=False),
    "no totals": Manner(totals=False),
    "short ranges": Manner(longest=1000),
    "compresses whole files": Manner(zips=True),
    "no ETags": Manner(etags=False),
    "no ETags, no times": Manner(etags=False, times=False),
    "nothing": Manner(ranges=False, etags=False, times=False, lengths=False),
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "f").write_bytes(CONTENT)
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "large").write_bytes(LARGE)
    hour_ago = time.time() - AN_HOUR
    for file in tmp_path.iterdir():
        os.utime(file, (hour_ago, hour_ago))
    return tmp_path


@pytest.fixture
def server(directory: Path) -> Iterator[StaticServer]:
    with serving(directory) as running:
        yield running


@pytest.fixture(params=["good", *WEAK_SERVERS])
def any_server(request: pytest.FixtureRequest, directory: Path) -> Iterator[StaticServer]:
    with serving(directory, WEAK_SERVERS.get(request.param, Manner())) as running:
        yield running


def at(server: StaticServer, **options: Any) -> tuple[HTTPStorage, str]:
    place = resolve(server.url, storage_options=options)
    assert isinstance(place.storage, HTTPStorage)
    return place.storage, place.path


def read(storage: Storage, path: str, start: int = 0, stop: int | None = None) -> Read:
    found = storage.read(path, start, stop)
    assert isinstance(found, Read)
    return found


def ranges(requests: list[Request]) -> list[tuple[str, str | None, int]]:
    return [(request.name, request.headers.get("Range"), request.sent) for request in requests]


# --- reading, from any server


def test_what_is_read_is_what_is_there(any_server: StaticServer) -> None:
    storage, root = at(any_server)
    for start, stop in [(0, None), (0, 1), (5, 5), (100, 300), (len(CONTENT) - 1, None), (7, 1 << 40)]:
        found = read(storage, f"{root}/f", start, stop)
        assert (found.data, found.size) == (CONTENT[start:stop], len(CONTENT))
    for start, stop in [(len(CONTENT), None), (1 << 30, 1 << 31)]:
        found = read(storage, f"{root}/f", start, stop)
        assert (found.data, found.size) == (b"", len(CONTENT))
    assert read(storage, f"{root}/empty").data == b""
    assert read(storage, f"{root}/empty", 3, 9).size == 0
    with pytest.raises(PathNotFoundError) as caught:
        storage.read(f"{root}/none")
    assert caught.value.path == f"{root}/none"


def test_many_ranges_of_many_files_come_in_the_order_asked(any_server: StaticServer) -> None:
    storage, root = at(any_server)
    storage.read(f"{root}/f")  # by which it knows the server
    wanted = [("large", 5, 3_000_000), ("f", 0, 10), ("large", 2_000_000, len(LARGE)), ("f", 0, len(CONTENT))]
    wanted += [("f", 7, 7), ("large", 100, 200), ("large", 0, len(LARGE)), ("empty", 0, 0)]
    files = {"f": CONTENT, "large": LARGE, "empty": b""}
    found = storage.read_many([(f"{root}/{name}", start, stop) for name, start, stop in wanted])
    assert found == [files[name][start:stop] for name, start, stop in wanted]
    buffers = [bytearray(stop - start) for _, start, stop in wanted]
    storage.read_many_into(
        [(f"{root}/{name}", start, memoryview(b)) for (name, start, _), b in zip(wanted, buffers, strict=True)]
    )
    assert buffers == found
    with pytest.raises(CorruptDataError):
        storage.read_many([(f"{root}/f", 0, 5), (f"{root}/f", 5, len(CONTENT) + 1)])


def test_a_token_tells_contents_apart(any_server: StaticServer, directory: Path) -> None:
    storage, root = at(any_server)
    seen = read(storage, f"{root}/f")
    assert storage.read(f"{root}/f", unless=seen.token) is UNCHANGED
    assert isinstance(storage.read(f"{root}/f", unless=("no", "token")), Read)
    for turn in range(3):  # in less than the second that a time has
        changed = b"%05d" % turn + CONTENT[5:]
        (directory / "f").write_bytes(changed)
        found = storage.read(f"{root}/f", unless=seen.token)
        assert isinstance(found, Read)
        assert found.data == changed
        assert found.token != seen.token
        seen = found


@pytest.mark.parametrize("manner", [Manner(), Manner(etags=False), Manner(ranges=False, lengths=False)])
def test_a_read_of_what_is_known_moves_no_body(directory: Path, manner: Manner) -> None:
    with serving(directory, manner) as server:
        storage, root = at(server)
        token = read(storage, f"{root}/f").token
        assert storage.read(f"{root}/f", unless=token) is UNCHANGED
        assert [(request.status, request.sent) for request in server.served()][1] == (304, 0)


def test_an_answer_that_breaks_off_is_asked_for_again(any_server: StaticServer) -> None:
    storage, root = at(any_server)
    any_server.manner.cuts = 2
    assert content(storage, f"{root}/f") == CONTENT
    any_server.manner.cuts = 2
    assert storage.read_many([(f"{root}/large", 0, len(LARGE))]) == [LARGE]
    assert any_server.manner.cuts == 0


def test_a_name_is_only_a_name(server: StaticServer, directory: Path) -> None:
    storage, root = at(server)
    for name in HOSTILE_NAMES:
        (directory / f"d {name}").mkdir()
        (directory / f"d {name}" / name).write_bytes(name.encode("utf-8", "surrogateescape"))
        path = f"{root}/d {name}/{name}"
        assert content(storage, path) == name.encode("utf-8", "surrogateescape")
        again = resolve(storage.describe(path))
        assert (again.storage, again.path) == (storage, path), "the URL in messages leads somewhere else"
    for name in (".", "..", "d/../f"):
        with pytest.raises(InvalidArgumentError):
            storage.read(f"{root}/{name}")


# --- what is asked for


def test_only_the_ranges_needed_are_asked_for(server: StaticServer) -> None:
    storage, root = at(server)
    storage.read_many([(f"{root}/large", 10, 20), (f"{root}/large", 30, 40), (f"{root}/large", 1 << 20, (1 << 20) + 5)])
    assert sorted(ranges(server.served())) == [("large", "bytes=10-39", 30), ("large", "bytes=1048576-1048580", 5)]


def test_many_ranges_cost_one_answer_where_there_are_none(directory: Path) -> None:
    with serving(directory, Manner(ranges=False)) as server:
        storage, root = at(server)
        storage.read(f"{root}/f")
        assert not storage.capabilities.ranges
        server.served()
        storage.read_many([(f"{root}/large", start, start + 10) for start in range(0, 1 << 20, 1 << 17)])
        requests = server.served()
        assert len(requests) == 1
        assert requests[0].sent < len(LARGE), "it went on when all was there"


def test_a_server_that_gives_whole_files_only_when_asked_for_them_has_ranges(server: StaticServer) -> None:
    storage, root = at(server)
    server.manner.ranges = False
    found = read(storage, f"{root}/f")
    assert not storage.capabilities.ranges
    server.manner.ranges = True
    assert read(storage, f"{root}/f").token == found.token
    assert storage.capabilities.ranges


def test_the_options_of_fsspec_go_with_every_request(directory: Path) -> None:
    with serving(directory, Manner(demands="Bearer our-secret")) as server:
        with pytest.raises(StorageError) as caught:
            content(*_file(at(server)))
        assert caught.value.kind == "credentials"
        header = {"headers": {"Authorization": "Bearer our-secret", "accept-encoding": "gzip"}}
        assert content(*_file(at(server, **header))) == CONTENT
        assert content(*_file(at(server, client_kwargs=header))) == CONTENT
        assert {request.headers["Accept-Encoding"] for request in server.served()} == {"identity"}
    with serving(directory, Manner(demands="Basic dXNlcjpwYXNzIHdvcmQ=")) as server:
        place = resolve(server.url.replace("http://", "http://user:pass%20word@"))
        assert content(place.storage, f"{place.path}/f") == CONTENT
        assert "user" not in f"{place.url} {place.path} {place.storage!r}"


def _file(found: tuple[HTTPStorage, str]) -> tuple[HTTPStorage, str]:
    return found[0], f"{found[1]}/f"


def test_the_query_goes_with_every_request_and_is_shown_nowhere(server: StaticServer, directory: Path) -> None:
    secret = "sig=a%2Fb%3D&token=TOP-SECRET"
    place = resolve(f"{server.url}?{secret}")
    assert content(place.storage, f"{place.path}/f") == CONTENT
    place.storage.read_many([(f"{place.path}/f", 0, 5)])
    assert [request.query for request in server.served()] == [secret, secret]
    assert place.storage != resolve(server.url).storage
    server.manner.statuses = {"f": 403, "empty": 404, "large": 418}
    server.manner.redirects = {"loop": f"{server.url}/loop?{secret}", "away": f"ftp://nobody.invalid/x?{secret}"}
    (directory / "short").write_bytes(b"x")
    shown = f"{place!r} {place.storage!r} {pickle.loads(pickle.dumps(place.storage))!r}"
    for name in ("f", "empty", "large", "loop", "away"):
        with pytest.raises(OcdbtError) as caught:
            place.storage.read(f"{place.path}/{name}")
        error: BaseException | None = caught.value
        while error is not None:
            shown += f" {error!r} {error}"
            error = error.__cause__
    with pytest.raises(CorruptDataError) as short:
        place.storage.read_many([(f"{place.path}/short", 0, 5)])
    shown += f" {short.value}"
    assert "TOP-SECRET" not in shown
    assert "sig=" not in shown


def test_a_redirect_is_followed_and_takes_no_credentials_elsewhere(server: StaticServer, directory: Path) -> None:
    with serving(directory) as other:
        server.manner.redirects = {"moved": f"{other.url}/f"}
        place = resolve(server.url.replace("http://", "http://user:secret@"))
        assert content(place.storage, f"{place.path}/moved") == CONTENT
        assert "Authorization" in server.served()[0].headers
        assert "Authorization" not in other.served()[0].headers


def test_a_cache_on_the_way_is_not_asked_for_what_may_change(server: StaticServer) -> None:
    storage, root = at(server)
    storage.read(f"{root}/f")
    storage.read_many([(f"{root}/f", 0, 5)])
    assert [request.headers.get("Cache-Control") for request in server.served()] == ["no-cache", None]


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not tell a process's peak of memory")
@pytest.mark.parametrize("ranges", [True, False])
def test_200_mib_come_in_64_mib_of_memory_beside_them(tmp_path: Path, ranges: bool) -> None:
    prepare(tmp_path / "place")
    with serving(tmp_path, Manner(ranges=ranges)) as server:
        _, peak = beside_the_data(f"{server.url}/place", {})
    assert peak <= 64 << 20, peak


# --- how a place is spelled


def test_every_spelling_names_the_same_place(server: StaticServer) -> None:
    host = server.url.removeprefix("http://")
    fs = fsspec.filesystem("http")
    places = [
        resolve(f"http://{host}/a b/c%25"),
        resolve(f"HTTP://{host}/a%20b/c%25/"),
        resolve(f"http://{host}/x/../a b/./c%25#fragment"),
        resolve(UPath(f"http://{host}/a b/c%25")),
        resolve(f"http://{host}/a%20b/c%25", fs=fs),
    ]
    assert {place.path for place in places} == {f"{host}/a b/c%"}
    assert {place.url for place in places} == {f"http://{host}/a%20b/c%25"}
    assert len({place.storage for place in places}) == 1
    assert resolve("http://host/a%2520b|ocdbt:x").path == resolve("http://host/a%2520b").path == "host/a%20b"
    assert resolve("https://EXAMPLE.org:443/x").path == "example.org/x"
    assert resolve("http://[::1]:8080/x").path == "[::1]:8080/x"
    for nowhere in ("http:///x", "http://", "http://host:port/x"):
        with pytest.raises(InvalidArgumentError, match="names no host"):
            resolve(nowhere)
    with pytest.raises(InvalidArgumentError, match="names no host") as caught:
        resolve("http://user:SEC/RET@host/x")
    assert "SEC" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__, "the error of the port quotes what it took for one"
    with pytest.raises(InvalidArgumentError, match="no URL"):
        resolve("host/x", fs=fs)


# --- what is refused


@pytest.mark.parametrize(
    ("status", "error_type", "kind", "sentence"),
    [
        (401, StorageError, "credentials", "the credentials were refused"),
        (403, StoragePermissionError, "permission", "S3 among them"),
        (404, PathNotFoundError, "path-not-found", "There is no http://"),
        (410, PathNotFoundError, "path-not-found", "There is no http://"),
        (418, StorageError, "storage", "(HTTP 418)"),
        (429, StorageError, "throttled", "no more requests"),
        (503, StorageError, "unavailable", "out of order"),
    ],
)
def test_each_refusal_says_which_it_is(
    server: StaticServer, monkeypatch: pytest.MonkeyPatch, status: int, error_type: type, kind: str, sentence: str
) -> None:
    monkeypatch.setattr(HTTPStorage, "first_pause", 0.0)
    server.manner.statuses = {"f": status}
    storage, root = at(server)
    with pytest.raises(OcdbtError) as caught:
        storage.read(f"{root}/f")
    assert type(caught.value) is error_type
    assert (caught.value.kind, caught.value.path) == (kind, f"{root}/f")
    assert sentence in str(caught.value)


def test_a_server_that_cannot_be_reached_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HTTPStorage, "first_pause", 0.0)
    for url, sentence in [
        ("http://nobody.invalid/db", "the host nobody.invalid is not known"),
        ("http://127.0.0.1:9/db", "127.0.0.1 cannot be reached"),
    ]:
        with pytest.raises(StorageError, match=sentence) as caught:
            ocdbt_py.open(url)
        assert caught.value.kind == "unreachable"


def test_what_is_no_http_is_no_answer(server: StaticServer) -> None:
    storage, root = at(server)
    secure = resolve(server.url.replace("http://", "https://"))
    with pytest.raises(StorageError) as caught:
        secure.storage.read(f"{secure.path}/f")
    assert caught.value.kind == "tls"
    assert content(storage, f"{root}/f") == CONTENT


def test_nothing_is_written_or_listed(server: StaticServer) -> None:
    storage, root = at(server)
    assert not storage.capabilities.writable
    for attempt in (
        lambda: storage.write(f"{root}/new", [b"x"]),
        lambda: storage.put(f"{root}/new", [b"x"]),
        lambda: storage.put(f"{root}/new", [bytes(70 << 20)]),
        lambda: storage.create(f"{root}/new"),
        lambda: storage.delete(f"{root}/f"),
        lambda: storage.delete(f"{root}/d/"),
        lambda: list(storage.list(f"{root}/")),
        lambda: storage.rename(f"{root}/f", f"{root}/g"),
    ):
        with pytest.raises(UnsupportedError):
            attempt()
    for mode in ("r+", "a", "x"):
        with pytest.raises(UnsupportedError, match="cannot be written"):
            ocdbt_py.open(server.url, mode)
    with pytest.raises(UnsupportedError, match="cannot be written"):
        ocdbt_py.save(f"{server.url}/new", {"a": np.zeros(3)})
    assert not [request for request in server.log if request.method != "GET"]


# --- databases and checkpoints


def database(directory: Path) -> None:
    with ocdbt_py.open(directory, "a") as made:
        made.update({b"key %05d" % n: b"%d" % n * 100 for n in range(3000)})


def test_tensorstore_and_we_read_the_same_database(http_server: Server) -> None:
    url = http_server.url()
    database(http_server.local(url))
    theirs = ts.KvStore.open({"driver": "ocdbt", "base": http_server.tensorstore(url)}).result()
    with ocdbt_py.open(url) as ours:
        assert len(ours) == 3000
        for key in (b"key 00000", b"key 01234", b"key 02999"):
            assert ours[key] == theirs.read(key).result().value == b"%d" % int(key[4:]) * 100
        assert sum(1 for _ in ours.items()) == 3000


def test_a_query_goes_where_tensorstore_has_it(server: StaticServer, directory: Path) -> None:
    database(directory / "db")
    with ocdbt_py.open(f"{server.url}/db?sig=1%2B1") as ours:
        assert ours[b"key 01234"] == b"1234" * 100
    our_requests = server.served()
    theirs = ts.KvStore.open({"driver": "ocdbt", "base": f"{server.url}/db/?sig=1%2B1"}).result()
    assert theirs.read(b"key 01234").result().value == b"1234" * 100
    asked = {(request.name, request.query) for request in server.served()}
    assert asked == {(request.name, request.query) for request in our_requests}
    assert {query for _, query in asked} == {"sig=1%2B1"}


def test_a_database_that_did_not_change_is_asked_for_without_a_body(server: StaticServer, directory: Path) -> None:
    database(directory / "db")
    with ocdbt_py.open(f"{server.url}/db") as ours:
        assert ours[b"key 01234"]
        server.served()
        assert ours[b"key 01235"] == b"1235" * 100
        requests = server.served()
    assert [(request.status, request.sent) for request in requests] == [(304, 0), (206, 400)]


TREE = {
    "layers": {f"layer{n}": np.arange(1 << 18, dtype=np.float32) + n for n in range(8)},
    "bias": {f"b{n}": np.arange(10) + n for n in range(50)},
    "step": 7,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served") / "checkpoint"
    ocdbt_py.save(path, TREE, compression=None)
    return path


def data_requests(server: StaticServer) -> list[Request]:
    return [request for request in server.served() if "/d/" in request.name]


def test_a_checkpoint_is_restored_and_each_byte_asked_for_once(checkpoint: Path) -> None:
    with serving(checkpoint.parent) as server:
        restored = ocdbt_py.restore(f"{server.url}/checkpoint")
        assert restored["step"] == 7
        for name, expected in TREE["layers"].items():  # type: ignore[attr-defined]
            np.testing.assert_array_equal(restored["layers"][name], expected)
        requests = data_requests(server)
        stored = sum(file.stat().st_size for file in checkpoint.rglob("d/*"))
        assert sum(request.sent for request in requests) <= stored * 1.01
        assert len(requests) <= 4 + stored // (4 << 20)


def test_a_slice_costs_only_its_bytes(checkpoint: Path) -> None:
    with serving(checkpoint.parent) as server:
        opened = ocdbt_py.Checkpoint(f"{server.url}/checkpoint")
        array = opened["layers.layer3"]
        server.served()
        expected = np.arange(5, 9, dtype=np.float32) + 3
        np.testing.assert_array_equal(array[5:9], expected)
        assert [request.sent for request in data_requests(server)] == [16]


def test_a_checkpoint_is_restored_from_a_server_without_ranges(checkpoint: Path) -> None:
    with serving(checkpoint.parent, Manner(ranges=False)) as server:
        restored = ocdbt_py.restore(f"{server.url}/checkpoint")
        np.testing.assert_array_equal(restored["layers"]["layer7"], np.arange(1 << 18, dtype=np.float32) + 7)
        names = [request.name for request in data_requests(server)]
        assert len(names) <= 2 * len(set(names)), "once for the tree, once for the values"


def test_without_aiohttp_it_says_what_to_install() -> None:
    script = (
        "import sys; sys.modules['aiohttp'] = None\n"
        "import ocdbt_py\n"
        "try: ocdbt_py.open('https://example.org/db')\n"
        "except ocdbt_py.UnsupportedError as error: print(error)\n"
    )
    assert 'pip install "ocdbt-py[http]"' in run(script)


def run(script: str) -> str:
    root = Path(__file__).parents[2]
    environ = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'backends'}"}
    return subprocess.run(
        [sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=True
    ).stdout
