"""What every storage must do, as a pytest class that the author of a backend subclasses::

    class TestMyStorage(StorageSuite):
        @pytest.fixture
        def storage_and_root(self) -> tuple[Storage, str]:
            return MyStorage(), "/an/empty/place"

Each test holds the storage to what its own :class:`~ocdbt_py.storage.protocol.Capabilities` promise, and to saying
``UnsupportedError`` where they promise nothing. The storage must be writable. What no capability tells, class
attributes of the suite do: names that the store cannot hold, and how long the tests of many writers may be. The parts
of the suite are the modules here.

A token says which content was seen: equal contents may have equal tokens (a hash), and whoever promises more tests it.
Only threads are used here: whether other processes are excluded too is for the tests of one backend, which knows how to
start one.
"""

from __future__ import annotations

import pickle

import pytest

from ocdbt_py.errors import PathNotFoundError
from ocdbt_py.storage.protocol import Storage
from ocdbt_py.testing.files import CONTENT, content, put
from ocdbt_py.testing.storage_suite.conditional_writes import ConditionalWrites
from ocdbt_py.testing.storage_suite.directories import Directories
from ocdbt_py.testing.storage_suite.growing import Growing
from ocdbt_py.testing.storage_suite.holding import Holding
from ocdbt_py.testing.storage_suite.names import Names
from ocdbt_py.testing.storage_suite.new_files import NewFiles
from ocdbt_py.testing.storage_suite.reading import Reading

__all__ = ["StorageSuite"]


class StorageSuite(Reading, ConditionalWrites, NewFiles, Names, Directories, Growing, Holding):
    """Subclass it, and override the fixture :meth:`storage_and_root`."""

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
