"""An answer that is lost, or wrong, never loses a commit, makes it twice, or removes a file that a manifest names."""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal

import pytest

import ocdbt_py
from ocdbt_py.backends import MemoryStorage
from ocdbt_py.database import Database, open_place
from ocdbt_py.errors import AlreadyExistsError, ConflictError, StorageError
from ocdbt_py.storage.location import Place
from ocdbt_py.storage.protocol import Token
from ocdbt_py.testing.faulty import Crash, FaultyStorage

Said = Literal["conflict", "ambiguous"]
SAID = pytest.mark.parametrize("said", ["conflict", "ambiguous"])
KINDS = pytest.mark.parametrize("kind", ["single", "numbered"])
LONG = b"long enough for a data file" * 10


class Network(FaultyStorage):
    """A store whose writers do not queue. ``lies`` say what becomes of the next writes of manifests."""

    def __init__(self) -> None:
        super().__init__(MemoryStorage(), capabilities=replace(MemoryStorage().capabilities, hold=False))
        self.lies: deque[Callable[[Callable[[], Token]], Token]] = deque()

    def write(self, path: str, *rest: Any) -> Token:
        def apply() -> Token:
            return super(Network, self).write(path, *rest)

        is_manifest = path.rpartition("/")[2].startswith("manifest.")
        return self.lies.popleft()(apply) if is_manifest and self.lies else apply()


def error_of(said: Said) -> Exception:
    return ConflictError("said so", kind="condition") if said == "conflict" else StorageError("lost", kind="ambiguous")


def lie(said: Said, *, applied: bool, then: Callable[[], object] = lambda: None) -> Callable[[Any], Token]:
    """A write that happens or not, what others do after it, and what its writer is told."""

    def answer(apply: Callable[[], Token]) -> Token:
        if applied:
            apply()
        then()
        raise error_of(said)

    return answer


@pytest.fixture
def storage() -> Network:
    return Network()


@pytest.fixture
def place(storage: Network) -> Place:
    path = f"/{uuid.uuid4().hex}/db"
    return Place(storage, path, storage.describe(path))


def create(place: Place, kind: str) -> Database:
    config = ocdbt_py.Config(manifest_kind=kind, version_tree_arity_log2=1)
    return open_place(place, "x", config=config, write_options=ocdbt_py.WriteOptions(commit_timeout=1.0))


def others(place: Place, count: int) -> Callable[[], None]:
    """Commits of another writer, which is told the truth."""

    def commit() -> None:
        with open_place(replace(place, storage=MemoryStorage()), "r+") as db:
            for i in range(count):
                db[f"other {i}"] = LONG

    return commit


def files(place: Place) -> set[str]:
    return {item.path for item in MemoryStorage().list(f"{place.path}/d/")}


@SAID
@KINDS
@pytest.mark.parametrize("on_top", [0, 1, 9], ids=["alone", "another built on it", "pushed out of the manifest"])
def test_a_commit_that_happened_is_found_and_not_made_again(
    place: Place, storage: Network, said: Said, kind: str, on_top: int
) -> None:
    with create(place, kind) as db:
        before = db.version.generation
        storage.lies.append(lie(said, applied=True, then=others(place, on_top)))
        db["mine"] = LONG
        assert db["mine"] == LONG
        assert db.version.generation == before + 1 + on_top
        assert db.at(before + 1)["mine"] == LONG
        with pytest.raises(ocdbt_py.NotFoundError):
            db.at(before)["mine"]


@SAID
@KINDS
def test_a_commit_that_did_not_happen_is_made_on_top_of_what_others_committed(
    place: Place, storage: Network, said: Said, kind: str
) -> None:
    with create(place, kind) as db:
        before = db.version.generation
        storage.lies.append(lie(said, applied=False, then=others(place, 2)))
        db["mine"] = LONG
        assert db.version.generation == before + 3
        assert dict(db.items()) == {b"mine": LONG, b"other 0": LONG, b"other 1": LONG}


@SAID
def test_a_transaction_whose_commit_happened_does_not_meet_itself_as_a_conflict(
    place: Place, storage: Network, said: Said
) -> None:
    with create(place, "single") as db:
        db["count"] = b"1"
        storage.lies.append(lie(said, applied=True, then=others(place, 1)))
        with db.transaction() as t:
            t["count"] = b"%d" % (int(t["count"]) + 1)
        assert db["count"] == b"2"


@SAID
def test_files_of_attempts_that_certainly_failed_are_removed_when_the_commit_gives_up(
    place: Place, storage: Network, said: Said
) -> None:
    with create(place, "single") as db:
        for _ in range(1000):
            storage.lies.append(lie(said, applied=False, then=others(place, 1)))
        with pytest.raises(ConflictError) as caught:
            db["mine"] = LONG
        assert caught.value.kind == "contention"
        storage.lies.clear()
        named = {f"{place.path}/{db.at(v).stat(k).location.file}" for v in db.versions() for k in db.at(v)}  # type: ignore[union-attr]
        assert files(place) == named


@SAID
def test_while_a_write_may_still_arrive_its_files_stay(place: Place, storage: Network, said: Said) -> None:
    with create(place, "single") as db:
        late = []

        def held_up(apply: Callable[[], Token]) -> Token:
            late.append(apply)
            raise error_of(said)

        storage.lies.extend([held_up] * 1000)
        with pytest.raises(StorageError) as caught:
            db["mine"] = LONG
        assert caught.value.kind == "ambiguous"
        storage.lies.clear()
        assert "mine" not in db
        late[0]()
        assert db["mine"] == LONG


@SAID
def test_a_late_write_never_comes_on_top_of_the_attempt_that_was_acknowledged(
    place: Place, storage: Network, said: Said
) -> None:
    with create(place, "single") as db:
        late = []

        def held_up(apply: Callable[[], Token]) -> Token:
            late.append(apply)
            raise error_of(said)

        storage.lies.append(held_up)
        db["mine"] = LONG
        version = db.version
        with suppress(ConflictError):
            late[0]()
        assert db.refresh() == version


@SAID
def test_a_storage_that_fails_while_the_outcome_is_unknown_makes_the_error_ambiguous(
    place: Place, storage: Network, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    with create(place, "single") as db:

        def unplug() -> None:
            def read(*_: Any, **__: Any) -> Any:
                raise StorageError("no network", kind="unreachable")

            monkeypatch.setattr(storage, "read", read)

        storage.lies.append(lie(said, applied=True, then=unplug))
        with pytest.raises(StorageError) as caught:
            db["mine"] = LONG
        assert caught.value.kind == "ambiguous"
        assert str(caught.value.__cause__) == "no network"
        monkeypatch.undo()
        assert db["mine"] == LONG


@SAID
@KINDS
def test_a_database_that_was_created_after_all_is_ours(place: Place, storage: Network, said: Said, kind: str) -> None:
    for writes in range(1 if kind == "single" else 2):
        storage.lies.extend([lambda apply: apply()] * writes)
        storage.lies.append(lie(said, applied=True))
        with create(place, kind) as db:
            assert db.version.generation == 1
            db["mine"] = LONG
            assert db.version.generation == 2
        storage.delete(f"{place.path}/")


@SAID
@KINDS
def test_a_database_that_another_created_is_not_ours(place: Place, storage: Network, said: Said, kind: str) -> None:
    def other() -> None:
        with create(replace(place, storage=MemoryStorage()), kind) as db:
            db["theirs"] = LONG

    storage.lies.append(lie(said, applied=False, then=other))
    with pytest.raises(AlreadyExistsError, match="just been created"):
        create(place, kind)
    storage.delete(f"{place.path}/")
    storage.lies.append(lie(said, applied=False, then=other))
    with open_place(place, "a") as db:
        assert db["theirs"] == LONG


@SAID
def test_a_database_that_another_is_still_creating_is_not_finished_for_it(
    place: Place, storage: Network, said: Said
) -> None:
    theirs = FaultyStorage(MemoryStorage(), at=2, fault="crash")  # between the configuration and the first version

    def other() -> None:
        with suppress(Crash):
            create(replace(place, storage=theirs), "numbered")

    storage.lies.append(lie(said, applied=False, then=other))
    with pytest.raises(AlreadyExistsError):
        create(place, "numbered")
    assert [item.path.rpartition("/")[2] for item in storage.list(f"{place.path}/")] == ["manifest.ocdbt"]


@SAID
def test_a_database_created_by_its_first_commit_is_found(place: Place, storage: Network, said: Said) -> None:
    options = ocdbt_py.WriteOptions(assume_config=True)
    with open_place(place, "a", write_options=options) as db:
        storage.lies.append(lie(said, applied=True, then=others(place, 1)))
        db["mine"] = LONG
        assert db.version.generation == 2
        assert db["mine"] == LONG
