"""What a place may be called, and which storage and path each name comes to."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from importlib import metadata
from importlib.metadata import EntryPoint
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
import pytest
from etils import epath
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from upath import UPath

import ocdbt_py.backends
from ocdbt_py.errors import InvalidArgumentError, InvalidTypeError, PathNotFoundError, UnsupportedError
from ocdbt_py.storage import location
from ocdbt_py.storage.location import Place, Settings, resolve, safe_path, safe_url
from ocdbt_py.testing.files import put
from ocdbt_py_backends.block_cache import BlockCache
from ocdbt_py_backends.caching import CachingStorage
from ocdbt_py_backends.local import LocalStorage
from ocdbt_py_backends.memory import MemoryStorage

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def in_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "working directory"
    directory.mkdir()
    monkeypatch.chdir(directory)
    monkeypatch.setenv("HOME", "/home/somebody")
    return directory


# --- local paths


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("/a/b", "/a/b"),
        ("/a/b/", "/a/b"),
        ("/a//b/./c", "/a/b/c"),
        ("//a", "/a"),
        ("/", ""),
        ("~", "/home/somebody"),
        ("~/a", "/home/somebody/a"),
        ("file:///a/b/", "/a/b"),
        ("FILE:///a", "/a"),
        ("file:/a", "/a"),
        ("file:////a", "/a"),
        ("local:///a", "/a"),
        ("file://~/a", "/home/somebody/a"),
        ("/a b%20c?d#e@f:g", "/a b%20c?d#e@f:g"),
        ("file:///a b%20c?d#e", "/a b%20c?d#e"),
        ("/not utf-8 \udcff", "/not utf-8 \udcff"),
        ("/a::b", "/a::b"),
        ("/a://b", "/a:/b"),
        ("/a|b", "/a|b"),
        (PurePosixPath("/a/b"), "/a/b"),
        (PurePosixPath("~/a"), "/home/somebody/a"),
        (PurePosixPath("/a|ocdbt:@v3/"), "/a|ocdbt:@v3"),
        (epath.Path("/a/b"), "/a/b"),
        (UPath("/a/b"), "/a/b"),
        (UPath("file:///a/b c%20d"), "/a/b c%20d"),
    ],
    ids=repr,
)
def test_a_local_place(url: Any, path: str) -> None:
    place = resolve(url)
    assert isinstance(place.storage, LocalStorage)
    assert place == Place(place.storage, path, place.storage.describe(path), None, b"")


@pytest.mark.parametrize("url", ["a/b", "./a/b", "file://a/b", "a/./b/", PurePosixPath("a/b"), UPath("a/b")], ids=repr)
def test_a_relative_path_is_made_absolute_at_the_call(url: Any, in_directory: Path) -> None:
    place = resolve(url)
    os.chdir("/")
    assert place.path == f"{in_directory}/a/b"


def test_dots_go_up_from_where_a_link_leads(in_directory: Path) -> None:
    (in_directory / "far/away").mkdir(parents=True)
    (in_directory / "link").symlink_to("far/away")
    assert resolve("link/../x").path == f"{in_directory}/far/x"
    assert resolve("../x").path == f"{in_directory.parent}/x"


def test_a_working_directory_that_is_gone_is_an_error_of_ours(in_directory: Path) -> None:
    in_directory.rmdir()
    with pytest.raises(PathNotFoundError, match="working directory"):
        resolve("a")
    os.chdir("/")


def test_a_message_can_always_be_printed() -> None:
    assert resolve("/not utf-8 \udcff").url == "/not utf-8 \\xff"
    assert resolve("/").url == "/"


# --- memory


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("memory://a/b/", "/a/b"),
        ("memory:///a/b", "/a/b"),
        ("Memory://a", "/a"),
        ("memory://", ""),
        (UPath("memory://a/b"), "/a/b"),
    ],
    ids=repr,
)
def test_a_place_in_memory(url: Any, path: str) -> None:
    place = resolve(url)
    assert isinstance(place.storage, MemoryStorage)
    assert (place.path, place.url) == (path, f"memory:/{path}")


def test_a_place_in_memory_is_where_fsspec_says(tmp_path: Path) -> None:
    place = resolve(f"memory:/{tmp_path}/d")
    put(place.storage, f"{place.path}/f", b"x")
    assert fsspec.filesystem("memory").cat_file(f"memory:/{tmp_path}/d/f") == b"x"


# --- filesystems and options


def test_a_path_in_a_filesystem(tmp_path: Path, in_directory: Path) -> None:
    memory = MemoryFileSystem(global_store=False, skip_instance_cache=True)
    for path in ("/a/b", "a/b/", "memory://a/b"):
        place = resolve(path, fs=memory)
        assert (type(place.storage), place.path) == (MemoryStorage, "/a/b")
        put(place.storage, f"/a/b/{len(memory.store)}", b"x")
    assert list(memory.store) == ["/a/b/0", "/a/b/1", "/a/b/2"]
    for local, expected in [("/a/", "/a"), ("a", f"{in_directory}/a"), (PurePosixPath("/a"), "/a")]:
        place = resolve(local, fs=LocalFileSystem())
        assert (type(place.storage), place.path) == (LocalStorage, expected)
    place = resolve("/a|ocdbt:@v3/k", fs=memory)
    assert (place.path, place.version, place.prefix) == ("/a", "v3", b"k")


def test_a_directory_filesystem_is_unwrapped(tmp_path: Path) -> None:
    memory = MemoryFileSystem(global_store=False, skip_instance_cache=True)
    place = resolve("c", fs=DirFileSystem("b", DirFileSystem("/a", memory)))
    assert (type(place.storage), place.path) == (MemoryStorage, "/a/b/c")
    assert resolve("/d/", fs=DirFileSystem(str(tmp_path), LocalFileSystem())).path == f"{tmp_path}/d"
    for out in ("..", "a/../../b"):
        with pytest.raises(InvalidArgumentError, match="leads out"):
            resolve(out, fs=DirFileSystem(str(tmp_path), LocalFileSystem()))


def test_options_reach_fsspec() -> None:
    options = {"global_store": False, "skip_instance_cache": True}
    put(resolve("memory://", storage_options=options).storage, "/only there", b"x")
    assert not fsspec.filesystem("memory").exists("/only there")
    assert resolve("/a", storage_options={"auto_mkdir": True}).path == "/a"


def test_what_a_call_may_not_mix() -> None:
    memory = fsspec.filesystem("memory")
    with pytest.raises(InvalidArgumentError, match="not both"):
        resolve("a", fs=memory, storage_options={})
    with pytest.raises(InvalidArgumentError, match="not both"):
        resolve(UPath("memory://a", global_store=True), fs=memory)
    with pytest.raises(InvalidArgumentError, match="its own"):
        resolve(UPath("memory://a", global_store=True), storage_options={"global_store": True})
    assert resolve(UPath("memory://a"), storage_options={"global_store": True}).path == "/a"


def test_an_asynchronous_filesystem_is_refused() -> None:
    fs = DirFileSystem("/a", fsspec.filesystem("memory"))
    fs.asynchronous = True
    with pytest.raises(InvalidArgumentError, match="asynchronous"):
        resolve("a", fs=fs)


@pytest.mark.parametrize("url", [None, 3, b"/a", ["/a"], object()], ids=repr)
def test_what_cannot_be_a_place(url: Any) -> None:
    with pytest.raises(InvalidTypeError):
        resolve(url)


def test_what_cannot_be_a_filesystem() -> None:
    with pytest.raises(InvalidTypeError):
        resolve("/a", fs="memory")


@pytest.mark.parametrize("url", ["", "|ocdbt:", "/a\0b", "file:///a%00b|ocdbt:"])
def test_what_names_no_place(url: str) -> None:
    with pytest.raises(InvalidArgumentError):
        resolve(url)


def test_a_url_that_pathlib_has_spoilt_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidArgumentError, match="pathlib"):
        resolve(PurePosixPath("gs://bucket/checkpoint"))
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")  # for which no credentials are looked for
    assert resolve(epath.Path("gs://bucket/checkpoint")).url == "gs://bucket/checkpoint"


def test_locking_is_one_of_three() -> None:
    with pytest.raises(InvalidArgumentError, match="'lockfile'"):
        Settings(locking="flock")


def test_settings_reach_the_storage() -> None:
    capabilities = resolve("/a", settings=Settings(durable=False, locking="none")).storage.capabilities
    assert not capabilities.durable
    assert not capabilities.cas


@pytest.mark.parametrize("url", ["/a|ocdbt:@v3/k", "memory://a"])
def test_a_place_can_be_pickled(url: str) -> None:
    place = resolve(url, settings=Settings(durable=False))
    again = pickle.loads(pickle.dumps(place))
    assert (again.path, again.url, again.version, again.prefix) == (place.path, place.url, place.version, place.prefix)
    assert again.storage.capabilities == place.storage.capabilities


# --- TensorStore's URLs


@pytest.mark.parametrize(
    ("url", "path", "version", "prefix"),
    [
        ("/a|ocdbt:", "/a", None, b""),
        ("/a/|ocdbt", "/a", None, b""),
        ("/a/|ocdbt:params/w", "/a", None, b"params/w"),
        ("/a|ocdbt:@v3", "/a", "v3", b""),
        ("/a|ocdbt:@v3/", "/a", "v3", b""),
        ("/a|ocdbt:@v03/x/", "/a", "v03", b"x/"),
        ("/a|ocdbt:@2025-01-01T01:23:45.678Z/x", "/a", "2025-01-01T01:23:45.678Z", b"x"),
        ("/a|ocdbt:@2025-01-01T01:23:45Z", "/a", "2025-01-01T01:23:45Z", b""),
        ("/a|ocdbt:%40v3/x", "/a", None, b"@v3/x"),
        ("/a|ocdbt:@v3/%2540%20b%ff%7C", "/a", "v3", b"%40 b\xff|"),
        ("/a|ocdbt:é b\udcff", "/a", None, "é b".encode() + b"\xff"),
        ("/a%20b|ocdbt:x", "/a%20b", None, b"x"),
        ("file:///a%20b/|ocdbt:x", "/a b", None, b"x"),
        ("file:///a%FF|ocdbt", "/a\udcff", None, b""),
        ("memory://a%20b|ocdbt:@v1/", "/a b", "v1", b""),
    ],
)
def test_tensorstores_url_adds_a_version_and_a_prefix(url: str, path: str, version: str | None, prefix: bytes) -> None:
    place = resolve(url)
    assert (place.path, place.version, place.prefix) == (path, version, prefix)


MALFORMED = """
    @ @/x @v @v/x @v0/x @x/y @v-1 @v1.5 @3 @V3 @v%31/x @v٣ @2025-01-01/x @2025-01-01T01:23:45/x
    @2025-01-01T01:23:45+01:00/x @2025-01-01T01%3A23%3A45Z/x a% a%zz a%2 a?b a#b a|ocdbt:b a|zarr2:
"""


@pytest.mark.parametrize("rest", MALFORMED.split())
def test_a_malformed_version_or_prefix_is_refused(rest: str) -> None:
    with pytest.raises(InvalidArgumentError):
        resolve(f"/a|ocdbt:{rest}")


# --- other schemes


def test_an_unknown_scheme_is_named_with_what_can_be_done() -> None:
    with pytest.raises(UnsupportedError, match=r"unheard://host/path.*memory://.*entry point unheard") as caught:
        resolve("unheard://user:secret@host/path?token=secret", storage_options={"key": "secret"})
    assert "secret" not in str(caught.value)
    assert not resolve("a", fs=fsspec.filesystem("reference", fo={}, remote_protocol="memory")).storage.capabilities.cas


@pytest.mark.parametrize("protocol", ["simplecache", "filecache", "blockcache", "cached"])
def test_a_cache_stands_before_the_place_it_caches(protocol: str, in_directory: Path) -> None:
    for url, below, path in (
        (f"{protocol}::memory://a/b/", MemoryStorage(), "/a/b"),
        (f"{protocol}::simplecache::memory://a", CachingStorage(MemoryStorage(), BlockCache()), "/a"),
        (f"{protocol}::/a", LocalStorage(), "/a"),
        (f"{protocol}::a", LocalStorage(), f"{in_directory}/a"),
        (f"{protocol}::file:///a b%20c?d", LocalStorage(), "/a b%20c?d"),
        (f"{protocol}::file:///a%20b|ocdbt:@v3/k", LocalStorage(), "/a b"),
    ):
        place = resolve(url)
        assert place.storage == CachingStorage(below, BlockCache()), url
        assert (place.path, place.url) == (path, below.describe(path))
    assert not resolve(f"{protocol}::/a", settings=Settings(durable=False)).storage.capabilities.durable


def test_a_cache_around_a_filesystem_or_in_one_is_a_cache(tmp_path: Path) -> None:
    memory = MemoryFileSystem(global_store=False, skip_instance_cache=True)
    cached = fsspec.filesystem("simplecache", fs=DirFileSystem("/a", memory), cache_storage=str(tmp_path))
    for path, fs, expected in (
        ("b", cached, "/a/b"),
        ("simplecache://b", cached, "/a/b"),
        ("c", DirFileSystem("b", cached), "/a/b/c"),
    ):
        place = resolve(path, fs=fs)
        assert place.storage == CachingStorage(MemoryStorage(memory), BlockCache())
        assert place.path == expected
    options = {"simplecache": {"cache_storage": str(tmp_path)}}
    place = resolve("dir://b/c::simplecache::memory://a", storage_options=options)
    assert place.storage == CachingStorage(MemoryStorage(), BlockCache())
    assert place.path == "/a/b/c"


def test_a_web_address_stays_encoded_at_the_end_of_a_chain_too() -> None:
    for url in ("https://host/a%20b", "simplecache::https://host/a%20b"):
        place = resolve(f"{url}|ocdbt:@v3/")
        assert place.path == resolve(url).path == resolve("https://host/a%20b").path


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://key:secret@bucket/a?versionId=secret#secret", "s3://bucket/a"),
        ("sftp://user@host:22/a@b", "sftp://host:22/a@b"),
        ("sftp://user:sec/ret@host/a", "sftp://host/a"),
        ("http://host:80/a:b@c", "http://host:80/a:b@c"),
        ("zip://a.txt::https://user:secret@host/a.zip?signature=secret", "zip://a.txt::https://host/a.zip"),
        ("simplecache::s3://key:secret@bucket/a?versionId=secret", "simplecache::s3://bucket/a"),
        ("dir://b::filecache::sftp://user:sec/ret@host/a", "dir://b::filecache::sftp://host/a"),
        ("/a?b@c#d", "/a?b@c#d"),
    ],
)
def test_a_safe_url_holds_no_secret(url: str, shown: str) -> None:
    assert safe_url(url) == shown


def test_a_path_is_shown_whatever_bytes_it_is_made_of() -> None:
    shown = safe_path(os.fsdecode("bücher/".encode() + b"\xff/f"))
    assert shown == "bücher/\\xff/f"
    assert shown.encode()


class OtherPeoplesBackend:
    @classmethod
    def from_url(cls, url: str, storage_options: Any, settings: Settings) -> tuple[LocalStorage, str]:
        assert (url, storage_options) == ("theirs://a", {"key": 1})
        return LocalStorage(settings), "/theirs/a"


def test_other_peoples_schemes_come_from_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    def entry_points(*, group: str, name: str) -> list[EntryPoint]:
        assert group == "ocdbt_py.backends"
        return [EntryPoint(name, f"{__name__}:OtherPeoplesBackend", group)] if name == "theirs" else []

    monkeypatch.setattr(metadata, "entry_points", entry_points)
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    assert resolve("theirs://a", storage_options={"key": 1}).path == "/theirs/a"


# --- imports


def test_the_facade_gives_the_backends() -> None:
    assert ocdbt_py.backends.LocalStorage is LocalStorage
    assert ocdbt_py.backends.MemoryStorage is MemoryStorage
    assert ocdbt_py.backends.CachingStorage is CachingStorage
    named = {target.rpartition(":")[2] for target in location._BACKENDS.values()}
    assert {*dir(ocdbt_py.backends)} == {*named, "GenericStorage"}
    for name in dir(ocdbt_py.backends):
        assert getattr(ocdbt_py.backends, name).__name__ == name
    with pytest.raises(AttributeError):
        _ = ocdbt_py.backends.NoSuchStorage


def run(script: str, *folders: Path) -> subprocess.CompletedProcess[str]:
    """In a Python that has its standard library and these folders, and nothing that is installed."""
    setup = f"import sys; sys.path[:0] = {[str(folder) for folder in folders]!r}\n"
    return subprocess.run([sys.executable, "-S", "-c", setup + script], capture_output=True, text=True, check=False)


def test_a_local_place_needs_no_fsspec_and_no_installation() -> None:
    script = """
import ocdbt_py.storage, ocdbt_py.backends
from ocdbt_py.storage.location import resolve
assert not any(name.startswith("ocdbt_py_backends") for name in sys.modules)
for url in ("/a", "b", "file:///c", "local:///d", "/e|ocdbt:@v1/"):
    resolve(url)
assert "ocdbt_py_backends.local" in sys.modules
"""
    done = run(script, ROOT, ROOT / "backends")
    assert done.returncode == 0, done.stderr


def test_a_clone_that_is_not_installed_says_what_to_do() -> None:
    for script in (
        "from ocdbt_py.backends import LocalStorage",
        "from ocdbt_py.storage.location import resolve; resolve('/a')",
    ):
        done = run(script, ROOT)
        assert "ocdbt_py.errors.UnsupportedError" in done.stderr
        assert f"pip install --editable {ROOT}" in done.stderr
        assert f"put {ROOT / 'backends'} on PYTHONPATH" in done.stderr
