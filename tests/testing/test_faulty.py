"""A storage that fails on purpose does so at the step asked for, and not otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from ocdbt_py.errors import PathNotFoundError, StorageError
from ocdbt_py.storage.location import Settings
from ocdbt_py.storage.protocol import ABSENT, Storage
from ocdbt_py.testing.faulty import Crash, Fault, FaultyStorage
from ocdbt_py.testing.files import content, put
from ocdbt_py.testing.storage_suite import StorageSuite
from ocdbt_py_backends.local import LocalStorage


class PicklableFaultyStorage(FaultyStorage):
    def __reduce__(self) -> tuple[type[FaultyStorage], tuple[Storage]]:
        return FaultyStorage, (self.inner,)


class TestFaultyStorageWithoutFault(StorageSuite):
    @pytest.fixture
    def storage_and_root(self, tmp_path: Path) -> tuple[Storage, str]:
        return PicklableFaultyStorage(LocalStorage(Settings(durable=False))), f"{tmp_path}/place"


@pytest.fixture
def inner() -> LocalStorage:
    return LocalStorage(Settings(durable=False))


def six_steps(storage: Storage, root: str) -> None:
    put(storage, f"{root}/d/f", b"12345")
    storage.sync([f"{root}/d/f"])
    storage.read(f"{root}/d/f", 1, 3)
    with storage.hold(f"{root}/m", 1) as hold:
        hold.write([b"manifest"], ABSENT)
    storage.delete(f"{root}/d/f")


def test_steps_operations_and_bytes_are_counted(inner: LocalStorage, tmp_path: Path) -> None:
    storage = FaultyStorage(inner)
    six_steps(storage, f"{tmp_path}")
    assert storage.steps == 6
    assert dict(storage.operations) == dict.fromkeys(
        ("create", "writer.write", "writer.close", "sync", "read", "hold", "hold.begin", "hold.write", "delete"), 1
    )
    storage.read_many([(f"{tmp_path}/m", 0, 3), (f"{tmp_path}/m", 1, 2)])
    storage.read_many_into([(f"{tmp_path}/m", 0, memoryview(bytearray(5)))])
    assert dict(storage.bytes_read) == {f"{tmp_path}/d/f": 2, f"{tmp_path}/m": 9}


@pytest.mark.parametrize("at", range(1, 7))
def test_after_the_crash_nothing_happens_any_more(inner: LocalStorage, tmp_path: Path, at: int) -> None:
    storage = FaultyStorage(inner, at=at)
    with pytest.raises(Crash):
        six_steps(storage, f"{tmp_path}")
    assert storage.steps == at
    found = sorted(listed.path for listed in inner.list(f"{tmp_path}/", deep=True))
    closed, held = [f"{tmp_path}/d/f"] * (at > 3), [f"{tmp_path}/m"] * (at > 5)
    assert found == closed + held
    for attempt in (lambda: storage.read(f"{tmp_path}/m"), lambda: storage.delete(f"{tmp_path}/d/f")):
        with pytest.raises(Crash):
            attempt()
    with inner.hold(f"{tmp_path}/m", 0):
        pass
    storage.lose_unsynced()
    found = sorted(listed.path for listed in inner.list(f"{tmp_path}/", deep=True))
    assert found == closed * (at > 4) + held


@pytest.mark.parametrize(("fault", "happened"), [("fail", False), ("ambiguous", True)])
def test_a_step_that_fails_once(inner: LocalStorage, tmp_path: Path, fault: Fault, happened: bool) -> None:
    storage = FaultyStorage(inner, at=2, fault=fault)
    storage.write(f"{tmp_path}/f", [b"one"])
    with pytest.raises(StorageError) as caught:
        storage.write(f"{tmp_path}/f", [b"two"])
    assert (caught.value.kind == "ambiguous") == happened
    assert content(storage, f"{tmp_path}/f") == (b"two" if happened else b"one")
    storage.write(f"{tmp_path}/f", [b"three"])


def test_an_unsynced_file_is_lost_under_its_new_name_too(inner: LocalStorage, tmp_path: Path) -> None:
    storage = FaultyStorage(inner)
    put(storage, f"{tmp_path}/d/f", b"x")
    put(storage, f"{tmp_path}/d/g", b"x")
    storage.sync([f"{tmp_path}/d/f"])
    storage.rename(f"{tmp_path}/d", f"{tmp_path}/e")
    storage.lose_unsynced()
    assert content(inner, f"{tmp_path}/e/f") == b"x"
    with pytest.raises(PathNotFoundError):
        inner.read(f"{tmp_path}/e/g")
