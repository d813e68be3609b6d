"""A file that grows: what was appended stays as it is, and others may read it."""

from __future__ import annotations

import pytest

from ocdbt_py.errors import AlreadyExistsError, UnsupportedError
from ocdbt_py.storage.protocol import Storage
from ocdbt_py.testing.files import content
from ocdbt_py.testing.storage_suite.empty_place import EmptyPlace

__all__ = ["Growing"]


class Growing(EmptyPlace):
    def test_a_file_grows_and_is_read_meanwhile(self, storage: Storage, root: str) -> None:
        path = f"{root}/d/f"
        if not storage.capabilities.grow:
            with pytest.raises(UnsupportedError):
                storage.grow(path)
            return
        file = storage.grow(path)
        assert (file.size, file.is_there()) == (0, True)
        file.append([b"one", memoryview(b"two")])
        file.sync()
        assert content(storage, path) == b"onetwo"
        file.append([b""])
        file.append([b"three"] * 2000)
        file.sync()
        assert (file.size, file.is_there()) == (10_006, True)
        assert storage.read_many([(path, 3, 11)]) == [b"twothree"]
        with pytest.raises(AlreadyExistsError):
            storage.grow(path)
        file.close()
        file.close()
        assert content(storage, path) == b"onetwo" + b"three" * 2000

    def test_a_file_that_grows_is_not_there_when_it_was_removed_or_is_another(
        self, storage: Storage, root: str
    ) -> None:
        if not storage.capabilities.grow:
            return
        for path in (f"{root}/removed", f"{root}/d/other", f"{root}/longer"):
            file = storage.grow(path)
            file.append([b"mine"])
            file.sync()
            if path.endswith("longer"):
                storage.write(path, [b"mine and more"])
            else:
                storage.delete(path)
            if path.endswith("other"):
                storage.put(path, [b"mine"])
            assert not file.is_there()
            file.close()
