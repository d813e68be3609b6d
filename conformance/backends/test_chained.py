"""fsspec's caches over several storages: data files come from the cache, what changes never does."""

from __future__ import annotations

import os
import pickle
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.cached import CachingFileSystem, SimpleCacheFileSystem, WholeFileCacheFileSystem
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

import ocdbt_py
from conformance.backends.recorder import Recorder
from conformance.servers.server import Server
from ocdbt_py.errors import CorruptDataError, InvalidArgumentError, PathNotFoundError, UnsupportedError
from ocdbt_py.storage.location import resolve
from ocdbt_py.storage.protocol import Storage
from ocdbt_py.testing.faulty import FaultyStorage
from ocdbt_py.testing.files import CONTENT, content, in_threads, put
from ocdbt_py.testing.storage_suite import StorageSuite
from ocdbt_py.testing.storage_suite.names import CONTROL_NAME, NOT_UTF8_NAME
from ocdbt_py_backends.block_cache import BLOCK, BlockCache
from ocdbt_py_backends.caching import CachingStorage
from ocdbt_py_backends.local import LocalStorage
from ocdbt_py_backends.memory import MemoryStorage

PROTOCOLS = ["simplecache", "filecache", "blockcache", "cached"]
BIG = bytes(range(256)) * (BLOCK // 256) + CONTENT
"""More than one block."""


@pytest.fixture
def cache(tmp_path: Path) -> str:
    return str(tmp_path / "cache")


@pytest.fixture
def recorder(moto: Server) -> Iterator[Recorder]:
    with Recorder(moto.endpoint) as proxy:
        yield proxy


@pytest.fixture
def recorded(moto: Server, recorder: Recorder) -> Server:
    """S3 behind the recorder."""
    return moto.at(recorder.endpoint)


def counted(cache: BlockCache) -> tuple[CachingStorage, FaultyStorage]:
    """A cache over files in memory, and what counts what is asked of those."""
    below = FaultyStorage(MemoryStorage(MemoryFileSystem(global_store=False, skip_instance_cache=True)))
    return CachingStorage(below, cache), below


def files_in(directory: str) -> list[str]:
    return sorted(os.path.join(folder, name) for folder, _, names in os.walk(directory) for name in names)


class TestCachedMemory(StorageSuite):
    @pytest.fixture(params=["simplecache", "blockcache"])
    def storage_and_root(self, tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Storage, str]:
        place = resolve(f"{request.param}::memory:/{tmp_path}")
        return place.storage, place.path


class TestCachedFiles(StorageSuite):
    @pytest.fixture
    def storage_and_root(self, tmp_path: Path, cache: str) -> tuple[Storage, str]:
        place = resolve(f"filecache::file://{tmp_path}/files", storage_options={"cache_storage": cache})
        return place.storage, place.path


class TestCachedS3(StorageSuite):
    refused_names = (CONTROL_NAME, NOT_UTF8_NAME)

    @pytest.fixture
    def storage_and_root(self, moto: Server, cache: str) -> tuple[Storage, str]:
        options = {"s3": dict(moto.storage_options), "filecache": {"cache_storage": cache, "check_files": True}}
        place = resolve(f"filecache::{moto.url()}", storage_options=options)
        return place.storage, place.path


# --- a database and a checkpoint through a chain


def gets(recorder: Recorder) -> Counter[str]:
    """How often a file of each kind was read, by its place in a database."""
    found: Counter[str] = Counter()
    for request, answer in recorder.take():
        path = request.target.partition("?")[0]
        if request.method == "GET" and answer.status in (200, 206) and "?list-type" not in request.target:
            found["data" if "/d/" in path else path.rpartition("/")[2]] += 1
    return found


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_data_files_are_read_from_the_store_once_and_the_manifest_each_time(
    protocol: str, recorded: Server, recorder: Recorder, cache: str
) -> None:
    url = recorded.url()
    options = {"s3": dict(recorded.storage_options), protocol: {"cache_storage": cache}}
    items = {b"%04d" % i: b"%d" % i * 100 for i in range(2000)}
    with ocdbt_py.open(url, "x", storage_options=options["s3"]) as db:
        db.update(items)
    recorder.take()
    seen = []
    for _ in range(3):
        with ocdbt_py.open(f"{protocol}::{url}", storage_options=options) as db:
            assert dict(db.items()) == items
        seen.append(gets(recorder))
    assert seen[0]["data"] > 0
    assert [found["data"] for found in seen[1:]] == [0, 0]
    assert all(found["manifest.ocdbt"] >= 1 for found in seen)
    fs = fsspec.filesystem("s3", **options["s3"])
    manifest, cached = fs.cat_file(f"{url}/manifest.ocdbt"), [Path(file).read_bytes() for file in files_in(cache)]
    assert cached
    assert manifest not in cached


def test_what_writers_elsewhere_commit_is_seen_at_once(recorded: Server, recorder: Recorder, cache: str) -> None:
    url = recorded.url()
    below = dict(recorded.storage_options)
    options = {"s3": below, "simplecache": {"cache_storage": cache}}
    with ocdbt_py.open(url, "x", storage_options=below) as elsewhere:
        elsewhere[b"k"] = b"0"
        for turn in range(1, 4):
            with ocdbt_py.open(f"simplecache::{url}", storage_options=options) as db:
                assert db[b"k"] == b"%d" % (turn - 1)
            elsewhere[b"k"] = b"%d" % turn


def test_a_cache_can_be_written_through(recorded: Server, cache: str) -> None:
    url = recorded.url()
    options = {"s3": dict(recorded.storage_options), "simplecache": {"cache_storage": cache}}
    with ocdbt_py.open(f"simplecache::{url}", "x", storage_options=options) as db:
        for turn in range(3):
            db[b"k"] = b"%d" % turn * 5000
            assert db[b"k"] == b"%d" % turn * 5000
    with ocdbt_py.open(url, storage_options=options["s3"]) as db:
        assert db[b"k"] == b"2" * 5000


def test_a_checkpoint_is_saved_and_restored_through_a_cache(recorded: Server, recorder: Recorder, cache: str) -> None:
    url = recorded.url()
    options = {"s3": dict(recorded.storage_options), "simplecache": {"cache_storage": cache}}
    tree = {"w": np.arange(3000.0).reshape(50, 60), "b": np.arange(7, dtype=np.int32)}
    ocdbt_py.save(f"simplecache::{url}", tree, storage_options=options)
    for turn in range(2):
        recorder.take()
        found = ocdbt_py.restore(f"simplecache::{url}", storage_options=options)
        assert np.array_equal(found["w"], tree["w"])
        assert np.array_equal(found["b"], tree["b"])
        assert (gets(recorder)["data"] > 0) == (turn == 0)
    tree["b"] += 1
    ocdbt_py.save(f"simplecache::{url}", tree, storage_options=options, overwrite=True)
    assert np.array_equal(ocdbt_py.restore(f"simplecache::{url}", storage_options=options)["b"], tree["b"])


# --- what the cache holds


def test_only_what_is_needed_is_fetched_into_a_cache_of_blocks(cache: str) -> None:
    for whole in (True, False):
        storage, below = counted(BlockCache((f"{cache}-{whole}",), whole=whole))
        put(storage, "/f", BIG, BIG)
        assert storage.read_many([("/f", 2 * BLOCK, 2 * BLOCK + 10)]) == [(BIG + BIG)[2 * BLOCK : 2 * BLOCK + 10]]
        assert len(files_in(f"{cache}-{whole}")) == (3 if whole else 1)
        asked = below.operations.total()
        assert storage.read_many([("/f", 2 * BLOCK + 5, 2 * len(BIG))]) == [(BIG + BIG)[2 * BLOCK + 5 :]]
        assert below.operations.total() == asked
        assert storage.read_many([("/f", 3, BLOCK + 3)]) == [(BIG + BIG)[3 : BLOCK + 3]]
        assert (below.operations.total() == asked) == whole
        assert storage.read_many([("/f", 0, 2 * len(BIG))]) == [BIG + BIG]


def test_a_block_that_was_cut_or_is_gone_is_read_from_below(cache: str) -> None:
    storage, _ = counted(BlockCache((cache,)))
    put(storage, "/f", BIG)
    wanted = [("/f", 0, len(BIG))]
    assert storage.read_many(wanted) == [BIG]
    for file in files_in(cache):
        os.truncate(file, 100)
    assert storage.read_many(wanted) == [BIG]
    assert storage.read_many(wanted) == [BIG]
    for file in files_in(cache):
        os.unlink(file)
    assert storage.read_many(wanted) == [BIG]


def test_a_cache_that_cannot_be_written_is_said_to_be_and_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    storage, _ = counted(BlockCache((str(tmp_path / "file"),)))
    put(storage, "/f", BIG)
    with pytest.warns(RuntimeWarning, match="file is not written: Not a directory"):
        assert storage.read_many([("/f", 5, len(BIG))]) == [BIG[5:]]


def test_the_first_directories_are_only_read(tmp_path: Path) -> None:
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    storage, below = counted(BlockCache((first,)))
    put(storage, "/f", CONTENT)
    put(storage, "/g", CONTENT)
    storage.read_many([("/f", 0, 1)])
    both = CachingStorage(below, BlockCache((first, second)))
    asked = below.operations.total()
    assert both.read_many([("/f", 0, 9)]) == [CONTENT[:9]]
    assert below.operations.total() == asked
    assert both.read_many([("/g", 0, 9)]) == [CONTENT[:9]]
    assert (len(files_in(first)), len(files_in(second))) == (1, 1)


def test_a_block_that_is_too_old_is_fetched_again(cache: str) -> None:
    storage, below = counted(BlockCache((cache,), expiry=100))
    put(storage, "/f", CONTENT)
    for age, again in ((0, False), (50, False), (200, True)):
        storage.read_many([("/f", 0, 9)])
        for file in files_in(cache):
            os.utime(file, (os.stat(file).st_mtime - age,) * 2)
        asked = below.operations.total()
        assert storage.read_many([("/f", 0, 9)]) == [CONTENT[:9]]
        assert (below.operations.total() > asked) == again


def test_a_name_that_is_used_again_is_another_file(cache: str) -> None:
    for checked in (False, True):
        storage, below = counted(BlockCache((f"{cache}-{checked}",), checked=checked))
        for turn in range(3):
            data = b"%d" % turn * (5 + turn)
            if turn < 2:
                storage.put("/d/f", [data])
            else:
                storage.write("/d/f", [data])
            assert storage.read_many([("/d/f", 0, len(data))]) == [data]
            if turn == 0:
                storage.delete("/d/f")
                with pytest.raises(PathNotFoundError):
                    storage.read_many([("/d/f", 0, 1)])
            else:
                storage.rename("/d", "/e")
                put(storage, "/d/f", b"back")
                assert storage.read_many([("/d/f", 0, 4), ("/e/f", 0, 1)]) == [b"back", b"%d" % turn]
                storage.delete("/e/")
                storage.delete("/d/f")
        if checked:  # then also where another writer does it
            below.inner.write("/x", [b"one"])
            assert storage.read_many([("/x", 0, 3)]) == [b"one"]
            below.inner.write("/x", [b"two"])
            assert storage.read_many([("/x", 0, 3)]) == [b"two"]


def test_one_cache_serves_many_stores_and_confuses_none(tmp_path: Path, moto: Server, seaweedfs: Server) -> None:
    options = {"cache_storage": str(tmp_path / "cache")}
    key = moto.below(moto.url("same"))
    places = []
    for server in (moto, seaweedfs):
        chain = {"s3": dict(server.storage_options), **options}
        places.append(resolve(f"simplecache::{server.root}/{key}", storage_options=chain))
    for number, fs in enumerate([MemoryFileSystem(global_store=False, skip_instance_cache=True) for _ in range(2)]):
        wrapped = SimpleCacheFileSystem(fs=fs, **options)
        places.append(resolve(f"/{number and 0}{tmp_path}", fs=wrapped))
    places.append(resolve(f"simplecache::file://{tmp_path}/0", storage_options=options))
    for number, place in enumerate(places):
        put(place.storage, f"{place.path}/f", b"%d" % number)
    for _ in range(2):
        for number, place in enumerate(places):
            assert place.storage.read_many([(f"{place.path}/f", 0, 1)]) == [b"%d" % number]


def test_threads_that_want_the_same_file_fetch_it_once(cache: str) -> None:
    storage, below = counted(BlockCache((cache,)))
    names = [f"/{number}" for number in range(5)]
    for name in names:
        put(storage, name, name.encode(), BIG)
    wanted = [(name, 0, BLOCK + 7) for name in names]
    expected = [(name.encode() + BIG)[: BLOCK + 7] for name in names]
    assert in_threads([lambda: storage.read_many(wanted)] * 6) == [expected] * 6
    assert below.operations["read"] == len(names)
    assert below.operations["read_many"] == len(names)
    assert not [file for file in files_in(cache) if not os.path.basename(file).isdigit()]


def test_a_range_that_no_file_can_have_takes_no_memory() -> None:
    storage, _ = counted(BlockCache())
    put(storage, "/f", CONTENT)
    with pytest.raises(CorruptDataError):
        storage.read_many([("/f", 0, 1 << 60)])


# --- spellings


@pytest.mark.parametrize("cls", [SimpleCacheFileSystem, WholeFileCacheFileSystem, CachingFileSystem])
def test_a_caching_filesystem_is_taken_for_what_it_is_told(cls: Any, tmp_path: Path, cache: str) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/f").write_bytes(CONTENT)
    protocol = cls.protocol if isinstance(cls.protocol, str) else cls.protocol[0]
    for fs in (
        cls(fs=LocalFileSystem(), cache_storage=cache),
        cls(target_protocol="file", cache_storage=[cache]),
        DirFileSystem(str(tmp_path), cls(fs=LocalFileSystem(), cache_storage=cache)),
    ):
        path = "d" if isinstance(fs, DirFileSystem) else f"{tmp_path}/d/"
        for spelled in (path, f"{protocol}://{tmp_path}/d") if path != "d" else (path,):
            place = resolve(spelled, fs=fs)
            assert isinstance(place.storage, CachingStorage)
            assert (place.path, place.url) == (f"{tmp_path}/d", f"{tmp_path}/d")
            assert place.storage.read_many([(f"{place.path}/f", 0, 5)]) == [CONTENT[:5]]
    assert len(files_in(cache)) == 1
    fs = cls(fs=LocalFileSystem())
    temporary = fs.storage[0]
    place = resolve(f"{tmp_path}/d", fs=fs)
    assert place.storage.read_many([(f"{place.path}/f", 0, 5)]) == [CONTENT[:5]]
    assert not [file for file in files_in(temporary) if os.path.basename(file).isdigit()]


def test_a_chain_in_the_spellings_of_fsspec(tmp_path: Path, moto: Server, cache: str) -> None:
    (tmp_path / "f").write_bytes(CONTENT)
    for url, options in (
        (f"simplecache::{tmp_path}", {"cache_storage": cache}),
        (f"SimpleCache::file://{tmp_path}/", {"simplecache": {"cache_storage": cache}}),
        (f"filecache::local://{tmp_path}", {"cache_storage": [cache], "expiry_time": 3, "local": {"auto_mkdir": True}}),
        (f"simplecache::filecache::file://{tmp_path}", {"filecache": {"cache_storage": cache}}),
        (f"simplecache://{tmp_path}", {"target_protocol": "file", "target_options": {}}),
        (f"simplecache::dir://{tmp_path.name}::file://{tmp_path.parent}", {}),
    ):
        place = resolve(url, storage_options=options)
        assert place.path == str(tmp_path), url
        assert place.storage.read_many([(f"{place.path}/f", 0, 5)]) == [CONTENT[:5]]
        assert place.storage.capabilities == LocalStorage().capabilities
    for url, options in (
        ("simplecache::", {}),
        ("simplecache://", {}),
        ("simplecache://a", {}),
        ("simplecache://a::memory://b", {}),
        ("simplecache::memory://", {"key": "topsecret"}),
    ):
        with pytest.raises(InvalidArgumentError, match="simplecache") as caught:
            resolve(url, storage_options=options)
        assert "topsecret" not in str(caught.value)
    with pytest.raises(UnsupportedError, match="compression"):
        resolve("simplecache::memory://", storage_options={"compression": "zip"})


def test_a_cached_storage_is_the_one_below_in_all_but_what_is_cached(moto: Server, cache: str) -> None:
    url, below = moto.url(), dict(moto.storage_options)
    place = resolve(f"simplecache::{url}", storage_options={"s3": below, "cache_storage": cache})
    plain = resolve(url, storage_options=below)
    assert (place.path, place.url) == (plain.path, plain.url)
    assert place.storage.capabilities == plain.storage.capabilities
    again = pickle.loads(pickle.dumps(place.storage))
    assert again == place.storage
    put(again, f"{place.path}/f", CONTENT)
    assert content(plain.storage, f"{place.path}/f") == CONTENT
    assert place.storage.read_many([(f"{place.path}/f", 0, 3)]) == [CONTENT[:3]]


def test_a_cache_around_an_archive_and_an_archive_in_a_cache(tmp_path: Path, cache: str) -> None:
    folder, archive = str(tmp_path / "database"), str(tmp_path / "archive.zip")
    with ocdbt_py.open(folder, "x") as db:
        db.update({b"%03d" % i: b"v" * 200 for i in range(300)})
    with zipfile.ZipFile(archive, "w") as packed:
        for file in files_in(folder):
            packed.write(file, f"db/{os.path.relpath(file, folder)}")
    for url in (
        f"simplecache::zip://db::file://{archive}",
        f"zip://db::simplecache::file://{archive}",
        f"zip://db::file://{archive}",
    ):
        options = {"simplecache": {"cache_storage": cache}} if "cache" in url else {}
        with ocdbt_py.open(url, storage_options=options) as db:
            assert len(db) == 300
            assert db[b"017"] == b"v" * 200
        with pytest.raises(UnsupportedError):
            ocdbt_py.open(url, "r+", storage_options=options)


@pytest.mark.filterwarnings("ignore:.*fork")  # about threads of others, by a newer Python or by JAX, if it is there
def test_what_another_thread_held_when_the_process_forked_is_free_in_the_child(cache: str) -> None:
    storage, below = counted(BlockCache((cache,)))
    put(storage, "/f", CONTENT)
    entered, leave = threading.Event(), threading.Event()
    original = below.inner.read

    def slow(*args: Any, **how: Any) -> Any:
        entered.set()
        leave.wait()
        return original(*args, **how)

    below.inner.read = slow  # type: ignore[method-assign]
    thread = threading.Thread(target=storage.read_many, args=([("/f", 0, 3)],))
    thread.start()
    entered.wait()
    child = os.fork()
    if child == 0:
        below.inner.read = original  # type: ignore[method-assign]
        os._exit(0 if storage.read_many([("/f", 0, 3)]) == [CONTENT[:3]] else 1)
    assert os.waitpid(child, 0)[1] == 0
    leave.set()
    thread.join()
