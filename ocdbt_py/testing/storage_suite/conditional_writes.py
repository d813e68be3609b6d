"""Writes that depend on what is there, of which of many at once one wins; and what their readers see."""

from __future__ import annotations

import threading
import time

import pytest

from ocdbt_py.errors import AlreadyExistsError, ConflictError, PathNotFoundError
from ocdbt_py.storage.protocol import ABSENT, Read, Storage
from ocdbt_py.testing.files import content, in_threads, increment, put
from ocdbt_py.testing.storage_suite.empty_place import EmptyPlace

__all__ = ["ConditionalWrites"]


class ConditionalWrites(EmptyPlace):
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
