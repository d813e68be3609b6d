"""A file that is held: its holder writes it, and all others wait."""

from __future__ import annotations

import threading

import pytest

from ocdbt_py.errors import ConflictError, UnsupportedError, WaitTimeoutError
from ocdbt_py.storage.protocol import ABSENT, Read, Storage
from ocdbt_py.testing.files import content, in_threads
from ocdbt_py.testing.storage_suite.empty_place import EmptyPlace

__all__ = ["Holding"]


class Holding(EmptyPlace):
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
