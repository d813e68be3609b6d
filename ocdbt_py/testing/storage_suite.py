"""What every storage must do, as a pytest class that the author of a backend subclasses::

    class TestMyStorage(StorageSuite):
        @pytest.fixture
        def storage_and_root(self) -> tuple[Storage, str]:
            return MyStorage(), "/an/empty/place"

Each test holds the storage to what its own :class:`~ocdbt_py.storage.protocol.Capabilities` promise, and to saying
``UnsupportedError`` where they promise nothing. The storage must be writable. What no capability tells, class
attributes of the suite do: names that the store cannot hold, and how long the tests of many writers may be.

A token says which content was seen: equal contents may have equal tokens (a hash), and whoever promises more tests it.
Only threads are used here: whether other processes are excluded too is for the tests of one backend, which knows how to
start one.
"""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import ClassVar

import pytest

from ocdbt_py.errors import (
    AlreadyExistsError,
    ConflictError,
    CorruptDataError,
    OcdbtError,
    PathNotFoundError,
    UnsupportedError,
    WaitTimeoutError,
)
from ocdbt_py.storage.protocol import ABSENT, UNCHANGED, Buffer, Listed, Read, Storage

CONTENT = bytes(range(256)) * 40

CONTROL_NAME = "line\nbreak\ttab\x01\x7f"
BACKSLASH_NAME = "back\\slash"
NOT_UTF8_NAME = "not utf-8 \udcff\udc80"

HOSTILE_NAMES = [
    "with space",
    " leading and trailing ",
    "percent%20encoded%",
    "question?hash#at@colon:",
    "semi;comma,'quote\"backtick`$HOME",
    BACKSLASH_NAME,
    "star*[bracket]{brace}",
    "Größe-雪-\U0001f40d",
    "e\u0301 and \u00e9",
    CONTROL_NAME,
    "-dash",
    "~",
    "...",
    "CON",
    "x" * 200,
    NOT_UTF8_NAME,
]


def in_threads(functions: Iterable[Callable[[], object]]) -> list[object]:
    """Results of all, called at once; an exception is a result too."""
    functions = list(functions)
    results: list[object] = [None] * len(functions)
    barrier = threading.Barrier(len(functions))

    def run(index: int, function: Callable[[], object]) -> None:
        barrier.wait()
        try:
            results[index] = function()
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=item) for item in enumerate(functions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def put(storage: Storage, path: str, *buffers: Buffer) -> None:
    writer = storage.create(path)
    writer.write(buffers)
    writer.close()


def content(storage: Storage, path: str) -> bytes:
    found = storage.read(path)
    assert isinstance(found, Read)
    return found.data


def increment(storage: Storage, path: str, times: int) -> int:
    """Add one to the number in a file, ``times`` times, by compare-and-swap; how often another writer was faster."""
    conflicts = 0
    for _ in range(times):
        while True:
            found = storage.read(path)
            assert isinstance(found, Read)
            time.sleep(0)  # let another thread come between
            try:
                storage.write(path, [b"%d" % (int(found.data) + 1)], found.token)
                break
            except ConflictError:
                conflicts += 1
                time.sleep(0.0001 * (conflicts % 8))  # or the same ones would meet again
    return conflicts


class StorageSuite:
    """Subclass it, and override the fixture :meth:`storage_and_root`."""

    refused_names: ClassVar[Collection[str]] = ()
    """Those of :data:`HOSTILE_NAMES` that the store cannot hold: an error of ours says so, and nothing is stored."""

    altered_names: ClassVar[Collection[str]] = ()
    """Those that a server is known to keep under another name, which a backend cannot see; they are not tried."""

    rounds: ClassVar[int] = 15
    """Of each of many writers. A server that keeps contenders waiting needs fewer; it takes two to meet at all."""

    @pytest.fixture
    def storage_and_root(self) -> tuple[Storage, str]:
        """A writable storage, and the path of an empty directory in it, which need not exist; no trailing slash."""
        raise NotImplementedError

    @pytest.fixture
    def storage(self, storage_and_root: tuple[Storage, str]) -> Storage:
        return storage_and_root[0]

    @pytest.fixture
    def root(self, storage_and_root: tuple[Storage, str]) -> str:
        return storage_and_root[1]

    # --- reading

    def test_a_read_gives_bytes_and_size_of_the_file(self, storage: Storage, root: str) -> None:
        put(storage, f"{root}/f", CONTENT)
        found = storage.read(f"{root}/f")
        assert isinstance(found, Read)
        assert (found.data, found.size) == (CONTENT, len(CONTENT))
        assert isinstance(found.data, bytes)

    @pytest.mark.parametrize(
        ("start", "stop"),
        [(0, 0), (0, 1), (5, 5), (100, 300), (10239, 10240), (10000, None), (0, 99999), (10240, None)],
    )
    def test_a_range_is_read_and_cut_at_the_end(
        self, storage: Storage, root: str, start: int, stop: int | None
    ) -> None:
        put(storage, f"{root}/f", CONTENT)
        found = storage.read(f"{root}/f", start, stop)
        assert isinstance(found, Read)
        assert (found.data, found.size) == (CONTENT[start:stop], len(CONTENT))

    def test_a_range_beyond_the_end_is_empty(self, storage: Storage, root: str) -> None:
        put(storage, f"{root}/f", b"abc")
        for start, stop in [(3, 5), (4, 5), (1000, None), (1 << 40, 1 << 41)]:
            found = storage.read(f"{root}/f", start, stop)
            assert isinstance(found, Read)
            assert (found.data, found.size) == (b"", 3)

    def test_an_absent_file_is_not_found(self, storage: Storage, root: str) -> None:
        put(storage, f"{root}/f", b"abc")
        buffer = memoryview(bytearray(1))
        for path in (f"{root}/g", f"{root}/d/g", f"{root}/f/g"):
            for attempt in (
                lambda path=path: storage.read(path),
                lambda path=path: storage.read(path, unless=("no", "token")),
                lambda path=path: storage.read_many_into([(path, 0, buffer)]),
                lambda path=path: storage.read_many([(path, 0, 1)]),
            ):
                with pytest.raises(PathNotFoundError) as caught:
                    attempt()
                assert caught.value.path == path

    def test_the_token_stays_while_the_content_does(self, storage: Storage, root: str) -> None:
        written = storage.write(f"{root}/f", [b"one"])
        first, second = storage.read(f"{root}/f"), storage.read(f"{root}/f", 1, 2)
        assert isinstance(first, Read)
        assert isinstance(second, Read)
        assert written == first.token == second.token
        assert hash(written) == hash(first.token)
        assert storage.read(f"{root}/f", unless=written) is UNCHANGED

    def test_other_content_has_another_token(self, storage: Storage, root: str) -> None:
        tokens = [storage.write(f"{root}/f", [b"%02d" % turn]) for turn in range(2 * self.rounds)]
        assert len(set(tokens)) == len(tokens)
        found = storage.read(f"{root}/f", unless=tokens[-2])
        assert isinstance(found, Read)
        assert found.token == tokens[-1]

    def test_reading_into_a_buffer_fills_it(self, storage: Storage, root: str) -> None:
        put(storage, f"{root}/f", CONTENT)
        target = bytearray(b"-" * 1002)
        storage.read_many_into([(f"{root}/f", 77, memoryview(target)[1:1001])])
        assert target == b"-" + CONTENT[77:1077] + b"-"
        storage.read_many_into([(f"{root}/f", len(CONTENT), memoryview(bytearray()))])
        storage.read_many_into([])

    def test_many_buffers_are_filled_each_with_its_own(self, storage: Storage, root: str) -> None:
        put(storage, f"{root}/f", CONTENT)
        put(storage, f"{root}/d/g", bytes(reversed(CONTENT)))
        wanted = [
            (name, start, length) for start in (9000, 0, 1, 100) for name in ("f", "d/g") for length in (0, 7, 999)
        ]
        buffers = [bytearray(size) for _, _, size in wanted]
        storage.read_many_into(
            [(f"{root}/{name}", start, memoryview(b)) for (name, start, _), b in zip(wanted, buffers, strict=True)]
        )
        files = {"f": CONTENT, "d/g": bytes(reversed(CONTENT))}
        assert buffers == [files[name][start : start + size] for name, start, size in wanted]

    def test_many_ranges_come_in_the_order_asked(self, storage: Storage, root: str) -> None:
        other = bytes(reversed(CONTENT))
        put(storage, f"{root}/f", CONTENT)
        put(storage, f"{root}/d/g", other)
        files = {f"{root}/f": CONTENT, f"{root}/d/g": other}
        ranges = [
            (path, start, start + length)
            for start in (9000, 0, 1, 5000, 100, 10240, 0, 5003)
            for path in files
            for length in (0, 1, 7, 1000)
            if start + length <= len(CONTENT)
        ]
        assert storage.read_many(ranges) == [files[path][start:stop] for path, start, stop in ranges]
        assert storage.read_many([]) == []

    def test_a_file_too_short_is_corrupt(self, storage: Storage, root: str) -> None:
        put(storage, f"{root}/f", b"12345")
        for start, stop in [(0, 6), (5, 6), (4, 7), (6, 7), (1 << 62, (1 << 62) + 3), ((1 << 64) - 2, (1 << 64) + 1)]:
            with pytest.raises(CorruptDataError) as caught:
                storage.read_many([(f"{root}/f", 0, 2), (f"{root}/f", start, stop)])
            assert caught.value.path == f"{root}/f"
            with pytest.raises(CorruptDataError):
                storage.read_many_into([(f"{root}/f", start, memoryview(bytearray(stop - start)))])

    def test_a_map_is_the_files_content_and_private(self, storage: Storage, root: str) -> None:
        put(storage, f"{root}/f", CONTENT)
        put(storage, f"{root}/empty")
        if not storage.capabilities.map:
            with pytest.raises(UnsupportedError):
                storage.map(f"{root}/f")
            return
        mapped = storage.map(f"{root}/f")
        assert bytes(mapped) == CONTENT
        assert (mapped.format, mapped.readonly) == ("B", False)
        mapped[0:3] = b"own"
        assert content(storage, f"{root}/f") == CONTENT
        assert storage.map(f"{root}/f") == CONTENT
        assert len(storage.map(f"{root}/empty")) == 0
        with pytest.raises(PathNotFoundError):
            storage.map(f"{root}/none")

    # --- conditional writes

    def test_a_write_replaces_the_whole_file(self, storage: Storage, root: str) -> None:
        storage.write(f"{root}/new/directories/f", [b"a long first content"])
        storage.write(f"{root}/new/directories/f", [b"sho", b"", b"rt"])
        assert content(storage, f"{root}/new/directories/f") == b"short"
        assert [found.path for found in storage.list(f"{root}/", deep=True)] == [f"{root}/new/directories/f"]

    def test_a_write_whose_condition_does_not_hold_changes_nothing(self, storage: Storage, root: str) -> None:
        first = storage.write(f"{root}/f", [b"one"], ABSENT)
        second = storage.write(f"{root}/f", [b"two"], first)
        for condition in (ABSENT, first):
            with pytest.raises(ConflictError) as caught:
                storage.write(f"{root}/f", [b"three"], condition)
            assert (caught.value.kind, caught.value.path) == ("condition", f"{root}/f")
        with pytest.raises(ConflictError):
            storage.write(f"{root}/g", [b"three"], second)
        assert content(storage, f"{root}/f") == b"two"
        assert [found.path for found in storage.list(f"{root}/", deep=True)] == [f"{root}/f"]

    def test_a_token_does_not_outlive_a_delete(self, storage: Storage, root: str) -> None:
        token = storage.write(f"{root}/f", [b"one"])
        storage.delete(f"{root}/f")
        with pytest.raises(ConflictError):
            storage.write(f"{root}/f", [b"two"], token)
        with pytest.raises(PathNotFoundError):
            storage.read(f"{root}/f", unless=token)
        again = storage.write(f"{root}/f", [b"another one"], ABSENT)
        assert again != token

    def test_no_increment_by_eight_threads_is_lost(self, storage: Storage, root: str) -> None:
        path = f"{root}/counter"
        storage.write(path, [b"0"])
        threads = 8 if storage.capabilities.cas else 1
        conflicts = in_threads([lambda: increment(storage, path, self.rounds)] * threads)
        assert content(storage, path) == b"%d" % (self.rounds * threads)
        assert [found.path for found in storage.list(f"{root}/")] == [path]
        if threads > 1:
            assert any(conflicts), "no two writers ever met, so this proved nothing"

    def test_one_of_many_writers_of_a_new_file_wins(self, storage: Storage, root: str) -> None:
        if not storage.capabilities.create:
            storage.write(f"{root}/f", [b"x"], ABSENT)
            return
        for turn in range(self.rounds):
            path = f"{root}/{turn}"
            results = in_threads(
                [lambda path=path, n=n: storage.write(path, [b"%d" % n] * 500, ABSENT) for n in range(4)]
                + [lambda path=path, n=n: put(storage, path, b"%d" % n * 500) for n in range(4, 8)]
            )
            losers = [result for result in results if isinstance(result, Exception)]
            assert all(isinstance(loser, ConflictError | AlreadyExistsError) for loser in losers), losers
            assert len(losers) == 7
            winner = next(n for n, result in enumerate(results) if not isinstance(result, Exception))
            assert content(storage, path) == b"%d" % winner * 500

    def test_a_reader_sees_the_old_content_or_the_new(self, storage: Storage, root: str) -> None:
        path = f"{root}/f"
        size = 100_000 if storage.capabilities.atomic_write else 1
        contents = [b"a" * size, b"b" * size]
        storage.write(path, [contents[0]])
        seen: set[bytes] = set()
        done = threading.Event()

        def read() -> None:
            while not done.is_set():
                found = storage.read(path)
                assert isinstance(found, Read)
                assert len(found.data) == found.size == size
                seen.add(bytes(set(found.data)))

        def write() -> None:
            try:
                for turn in range(10_000):
                    storage.write(path, [contents[turn % 2]])
                    time.sleep(0)  # let the readers come between
                    if turn >= self.rounds and len(seen) >= 2:
                        return
            finally:
                done.set()

        assert in_threads([read, read, write]) == [None, None, None]
        assert seen == {b"a", b"b"}

    # --- new files

    def test_any_buffers_make_up_a_file(self, storage: Storage, root: str) -> None:
        values = bytearray(b"bytearray"), memoryview(b"--memoryview--")[2:-2], b"", memoryview(b""), bytearray()
        writer = storage.create(f"{root}/f")
        writer.write([])
        writer.write([b"bytes", *values, b"."])
        writer.write([b""])
        writer.write([memoryview(bytearray(b"more"))])
        writer.close()
        assert content(storage, f"{root}/f") == b"bytesbytearraymemoryview.more"
        storage.write(f"{root}/g", [b"bytes", *values, b"."])
        assert content(storage, f"{root}/g") == b"bytesbytearraymemoryview."
        put(storage, f"{root}/empty")
        storage.write(f"{root}/also empty", [])
        assert content(storage, f"{root}/empty") == content(storage, f"{root}/also empty") == b""

    def test_more_buffers_than_a_system_call_takes(self, storage: Storage, root: str) -> None:
        parts = [b"%d," % n for n in range(5000)]
        put(storage, f"{root}/f", *parts)
        storage.write(f"{root}/g", parts)
        assert content(storage, f"{root}/f") == content(storage, f"{root}/g") == b"".join(parts)

    def test_nothing_of_a_buffer_is_needed_after_the_write(self, storage: Storage, root: str) -> None:
        buffer = bytearray(b"first")
        writer = storage.create(f"{root}/f")
        writer.write([buffer])
        buffer[:] = b"other"
        writer.close()
        buffer.clear()
        assert content(storage, f"{root}/f") == b"first"

    def test_a_file_is_put_at_once(self, storage: Storage, root: str) -> None:
        storage.put(f"{root}/d/f", [CONTENT, memoryview(CONTENT)[5:10], bytearray(b"x")])
        assert content(storage, f"{root}/d/f") == CONTENT + CONTENT[5:10] + b"x"
        storage.put(f"{root}/empty", [])
        assert content(storage, f"{root}/empty") == b""
        with pytest.raises(AlreadyExistsError) as caught:
            storage.put(f"{root}/d/f", [b"another"])
        assert caught.value.path == f"{root}/d/f"
        assert content(storage, f"{root}/d/f").startswith(CONTENT)

    def test_a_new_file_is_seen_only_when_it_is_closed(self, storage: Storage, root: str) -> None:
        writer = storage.create(f"{root}/d/f")
        writer.write([CONTENT])
        assert list(storage.list(f"{root}/", deep=True)) == []
        with pytest.raises(PathNotFoundError):
            storage.read(f"{root}/d/f")
        writer.close()
        assert list(storage.list(f"{root}/", deep=True)) == [Listed(f"{root}/d/f", len(CONTENT))]
        writer.abort()
        assert content(storage, f"{root}/d/f") == CONTENT

    def test_an_aborted_file_leaves_nothing(self, storage: Storage, root: str) -> None:
        put(storage, f"{root}/d/other", b"stays")
        writer = storage.create(f"{root}/d/f")
        writer.write([CONTENT])
        writer.abort()
        writer.abort()
        assert [found.path for found in storage.list(f"{root}/", deep=True)] == [f"{root}/d/other"]
        put(storage, f"{root}/d/f", b"free again")

    def test_a_name_already_taken_is_not_replaced(self, storage: Storage, root: str) -> None:
        put(storage, f"{root}/f", b"first")
        with pytest.raises(AlreadyExistsError) as caught:
            put(storage, f"{root}/f", b"second")
        assert caught.value.path == f"{root}/f"
        assert content(storage, f"{root}/f") == b"first"
        assert list(storage.list(f"{root}/")) == [Listed(f"{root}/f", 5)]

    # --- names

    def test_a_name_is_only_a_name(self, storage: Storage, root: str) -> None:
        for name in HOSTILE_NAMES:
            if name in self.refused_names or name in self.altered_names:
                continue
            for path in (f"{root}/{name}", f"{root}/directory {name}/{name}"):
                put(storage, path, b"created")
                token = storage.write(path, [b"written"])
                assert storage.read(path, unless=token) is UNCHANGED
                assert storage.read_many([(path, 1, 3)]) == [b"ri"]
                storage.sync([path])
                storage.describe(path).encode("utf-8")
            if storage.capabilities.list:
                listed = {found.path for found in storage.list(f"{root}/")}
                assert listed == {f"{root}/{name}", f"{root}/directory {name}/"}
                assert list(storage.list(path)) == [Listed(path, len(b"written"))]
            storage.delete(f"{root}/{name}")
            storage.delete(f"{root}/directory {name}/")
            with pytest.raises(PathNotFoundError):
                storage.read(f"{root}/{name}")

    def test_a_name_that_cannot_be_held_is_refused(self, storage: Storage, root: str) -> None:
        for name in self.refused_names:
            path = f"{root}/{name}"
            attempts: list[Callable[[], object]] = [
                partial(put, storage, path, b"x"),
                partial(storage.put, path, [b"x"]),
                partial(storage.write, path, [b"x"]),
                partial(storage.read, path),
            ]
            for attempt in attempts:
                with pytest.raises(OcdbtError):
                    attempt()
            if storage.capabilities.list:
                assert list(storage.list(f"{root}/", deep=True)) == []

    # --- listing, deleting, moving

    def test_a_listing_goes_by_plain_prefix(self, storage: Storage, root: str) -> None:
        if not storage.capabilities.list:
            with pytest.raises(UnsupportedError):
                list(storage.list(f"{root}/"))
            return
        for name in ("a/b", "a/bc", "a/bd/e", "a/bd/f/g", "ab", "a.b"):
            put(storage, f"{root}/{name}", name.encode())

        def names(prefix: str, deep: bool = False) -> list[tuple[str, int | None]]:
            listed = storage.list(f"{root}/{prefix}", deep=deep)
            return sorted((found.path.removeprefix(f"{root}/"), found.size) for found in listed)

        assert names("") == [("a.b", 3), ("a/", None), ("ab", 2)]
        assert names("a") == [("a.b", 3), ("a/", None), ("ab", 2)]
        assert names("a/") == [("a/b", 3), ("a/bc", 4), ("a/bd/", None)]
        assert names("a/b") == [("a/b", 3), ("a/bc", 4), ("a/bd/", None)]
        assert names("a/bd") == [("a/bd/", None)]
        assert names("a/bd/") == [("a/bd/e", 6), ("a/bd/f/", None)]
        assert names("a/b", deep=True) == [("a/b", 3), ("a/bc", 4), ("a/bd/e", 6), ("a/bd/f/g", 8)]
        assert names("a.", deep=True) == [("a.b", 3)]
        assert len(names("", deep=True)) == 6
        for nothing in ("x", "x/y/", "a/b/", "ab/", "a/b/c/d"):
            assert names(nothing) == names(nothing, deep=True) == []

    def test_a_deleted_file_is_gone_and_may_be_absent(self, storage: Storage, root: str) -> None:
        put(storage, f"{root}/d/f", b"x")
        put(storage, f"{root}/d/ff", b"y")
        storage.delete(f"{root}/d/f")
        with pytest.raises(PathNotFoundError):
            storage.read(f"{root}/d/f")
        assert [found.path for found in storage.list(f"{root}/", deep=True)] == [f"{root}/d/ff"]
        for absent in ("d/f", "e/f", "d/ff/f", "e/", "e/f/"):
            storage.delete(f"{root}/{absent}")
        assert content(storage, f"{root}/d/ff") == b"y"
        assert [found.path for found in storage.list(f"{root}/")] == [f"{root}/d/"]

    def test_a_deleted_directory_goes_with_all_below_it(self, storage: Storage, root: str) -> None:
        for name in ("d/f", "d/e/g", "d/e/h/i", "dd/f"):
            put(storage, f"{root}/{name}", b"x")
        storage.delete(f"{root}/d/")
        assert [found.path for found in storage.list(f"{root}/", deep=True)] == [f"{root}/dd/f"]
        assert [found.path for found in storage.list(f"{root}/")] == [f"{root}/dd/"]

    def test_a_directory_moves_onto_nothing_or_an_empty_one(self, storage: Storage, root: str) -> None:
        for name in ("d/f", "d/e/g", "full/f", "file"):
            put(storage, f"{root}/{name}", name.encode())
        if not storage.capabilities.rename:
            with pytest.raises(UnsupportedError):
                storage.rename(f"{root}/d", f"{root}/new")
            return
        for taken in ("full", "file", "full/"):
            with pytest.raises(AlreadyExistsError):
                storage.rename(f"{root}/d", f"{root}/{taken}")
        with pytest.raises(PathNotFoundError):
            storage.rename(f"{root}/none", f"{root}/new")
        storage.rename(f"{root}/d", f"{root}/new")
        assert content(storage, f"{root}/new/e/g") == b"d/e/g"
        put(storage, f"{root}/empty/f", b"x")
        storage.delete(f"{root}/empty/f")
        storage.rename(f"{root}/new", f"{root}/empty")
        storage.rename(f"{root}/empty/", f"{root}/parents/made/last/")
        assert {found.path for found in storage.list(f"{root}/", deep=True)} == {
            f"{root}/{name}" for name in ("parents/made/last/f", "parents/made/last/e/g", "full/f", "file")
        }
        assert storage.read_many([(f"{root}/parents/made/last/f", 0, 3)]) == [b"d/f"]

    # --- holding, syncing, carrying around

    def test_writers_wait_while_a_file_is_held(self, storage: Storage, root: str) -> None:
        path = f"{root}/d/f"
        if not storage.capabilities.hold:
            with pytest.raises(UnsupportedError), storage.hold(path, 1):
                pass
            return
        order: list[str] = []

        def write_later() -> None:
            storage.write(path, [b"later"])
            order.append("later")

        with storage.hold(path, 10) as hold:
            token = hold.write([b"one"], ABSENT)
        found = storage.read(path)
        assert isinstance(found, Read)
        assert (found.data, found.token) == (b"one", token)
        with storage.hold(path, 10) as hold, pytest.raises(ConflictError):
            hold.write([b"no"], ABSENT)
        with storage.hold(path, 10) as hold:
            hold.begin([b"never put in place"])
        with storage.hold(path, 10) as hold:
            thread = threading.Thread(target=write_later)
            thread.start()
            with pytest.raises(WaitTimeoutError), storage.hold(path, 0.02):
                pass
            put_in_place = hold.begin([b"two"])
            assert content(storage, path) == b"one"
            with storage.hold(f"{root}/d/other", 0):
                order.append("held")
            put_in_place(token)
        thread.join()
        assert order == ["held", "later"]
        assert content(storage, path) == b"later"
        assert [found.path for found in storage.list(f"{root}/", deep=True)] == [path]

    def test_what_fails_while_a_file_is_held_passes_through_and_frees_it(self, storage: Storage, root: str) -> None:
        if not storage.capabilities.hold:
            return
        error = FileNotFoundError(2, "the caller's own")
        with pytest.raises(FileNotFoundError) as caught, storage.hold(f"{root}/f", 1):
            raise error
        assert caught.value is error
        with storage.hold(f"{root}/f", 0):
            pass

    def test_holders_take_turns_and_lose_no_increment(self, storage: Storage, root: str) -> None:
        if not storage.capabilities.hold:
            return
        path = f"{root}/counter"
        storage.write(path, [b"0"])

        def increments() -> None:
            for _ in range(self.rounds):
                with storage.hold(path, 60) as hold:
                    found = storage.read(path)
                    assert isinstance(found, Read)
                    hold.write([b"%d" % (int(found.data) + 1)], found.token)

        assert in_threads([increments] * 4) == [None] * 4
        assert content(storage, path) == b"%d" % (4 * self.rounds)

    def test_sync_returns_for_files_that_are_there(self, storage: Storage, root: str) -> None:
        paths = [f"{root}/{name}" for name in ("f", "d/f", "d/g", "d/e/f")]
        for path in paths:
            put(storage, path, CONTENT)
        storage.sync([*paths, *paths])
        storage.sync([])
        if storage.capabilities.durable:
            with pytest.raises(PathNotFoundError):
                storage.sync([*paths, f"{root}/none"])

    def test_a_pickled_storage_sees_the_same_files(self, storage: Storage, root: str) -> None:
        put(storage, f"{root}/f", b"x")
        again = pickle.loads(pickle.dumps(storage))
        assert content(again, f"{root}/f") == b"x"
        assert again.capabilities == storage.capabilities

    def test_it_is_a_storage(self, storage: Storage, root: str) -> None:
        assert isinstance(storage, Storage)
        assert len({storage, storage}) == 1
        assert storage.capabilities.writable
        assert repr(storage)
        assert storage.describe(f"{root}/f").endswith("/f")
