"""Writers of two processes, as two handles of one: who waits has its commit made along with another's, or makes it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

import ocdbt_py
from ocdbt_py.database import Database, open_place
from ocdbt_py.engine import notes
from ocdbt_py.engine.data_files import DataFiles
from ocdbt_py.engine.mutations import Mutations, Staged
from ocdbt_py.engine.notes import Company, note_of, take_along
from ocdbt_py.format.config import StoredConfig
from ocdbt_py.storage.location import Place, Settings, resolve
from ocdbt_py.storage.protocol import Hold, Note
from ocdbt_py.testing.faulty import Crash, FaultyStorage

PATIENCE = 30.0


class Watched(FaultyStorage):
    """Says when the manifest is held, and keeps the notes that were to be left."""

    def __init__(self, place: Place) -> None:
        super().__init__(place.storage)
        self.is_held = threading.Event()
        self.notes: list[Note | None] = []

    @contextmanager
    def hold(self, path: str, timeout: float, note: Note | None = None) -> Iterator[Hold]:
        self.notes.append(note)
        with super().hold(path, timeout, note) as held:
            self.is_held.set()
            yield held


class Dying(Watched):
    """Comes to its end when it would put the manifest in its place, ``before`` or after that."""

    def __init__(self, place: Place, *, before: bool) -> None:
        super().__init__(place)
        self.before = before

    @contextmanager
    def _step(self, name: str, *, is_conditional: bool = False) -> Iterator[None]:
        with super()._step(name, is_conditional=is_conditional):
            if name == "hold.write" and self.before:
                self.crashed = True
                raise Crash(name)
            yield
        if name == "hold.write":
            self.crashed = True
            raise Crash(name)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = resolve(tmp_path / "db", settings=Settings(durable=False))
    open_place(place, "x").close()
    return place


Call = Callable[[Database], object]


def together(
    place: Place, storage: Watched, first: Call, second: Call, following: FaultyStorage | None = None
) -> tuple[BaseException | None, Database]:
    """What became of ``first``, which holds the manifest until ``second`` has left a note; and the handle of that."""
    leader = open_place(replace(place, storage=storage), "r+")
    leader._engine._target.company.others, leader._engine._target.company.seconds = 1, 1e9
    errors: list[BaseException] = []

    def lead() -> None:
        try:
            first(leader)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=lead, daemon=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(notes, "_LONGEST_PATIENCE", PATIENCE)
        thread.start()
        assert storage.is_held.wait(PATIENCE)
        follower = open_place(replace(place, storage=following or place.storage), "r+", max_staleness=1000)
        second(follower)
        thread.join(PATIENCE)
    assert not thread.is_alive()
    return errors[0] if errors else None, follower


def history(place: Place) -> list[dict[bytes, bytes]]:
    """What each version holds, but the first, which is empty."""
    with open_place(place) as db:
        return [dict(db.at(generation).items()) for generation in range(2, db.version.generation + 1)]


def test_who_waits_has_its_commit_made_along_with_the_holders(place: Place) -> None:
    error, follower = together(place, Watched(place), lambda db: db.write("a", b"1"), lambda db: db.write("b", b"2"))
    assert error is None
    assert history(place) == [{b"a": b"1", b"b": b"2"}]
    assert follower["b"] == b"2"  # whatever it had seen before


def test_what_is_made_along_comes_after_what_the_holder_does(place: Place) -> None:
    def lead(db: Database) -> None:
        db.update({"a": b"1", "b": b"1", "long": b"1" * 200})

    def follow(db: Database) -> None:
        db.update({"b": b"2", "empty": b""})

    assert together(place, Watched(place), lead, follow)[0] is None
    assert history(place) == [{b"a": b"1", b"b": b"2", b"empty": b"", b"long": b"1" * 200}]
    assert together(place, Watched(place), lambda db: db.clear(), lambda db: db.write("b", b"3"))[0] is None
    assert history(place)[1:] == [{b"b": b"3"}]
    assert together(place, Watched(place), lambda db: db.write("b", b"4"), lambda db: db.delete("b"))[0] is None
    assert history(place)[2:] == [{}]


def test_a_holder_whose_condition_fails_leaves_the_others_theirs(place: Place) -> None:
    storage = Watched(place)
    with open_place(replace(place, storage=storage), "r+") as db:
        with pytest.raises(ocdbt_py.ConflictError):
            db.write("a", b"1", if_equal=b"\0")
        assert "hold.begin" not in storage.operations
    assert history(place) == []


@pytest.mark.parametrize("before", [True, False], ids=["before it is there", "when it is there"])
def test_a_holder_that_dies_leaves_nobody_behind_and_nothing_twice(place: Place, before: bool) -> None:
    following = FaultyStorage(place.storage)
    error, _ = together(
        place, Dying(place, before=before), lambda db: db.write("a", b"1"), lambda db: db.write("b", b"2"), following
    )
    assert isinstance(error, Crash)
    assert history(place) == [{b"b": b"2"} if before else {b"a": b"1", b"b": b"2"}]
    # of its own file, or of what the dead one may not have waited for
    assert (following.operations["growing.sync"], following.operations["sync"]) == ((1, 0) if before else (0, 1))


def test_a_holder_that_fails_leaves_the_others_to_themselves(place: Place) -> None:
    storage = Watched(place)
    storage.at, storage.fault = 1, "fail"
    error, _ = together(place, storage, lambda db: db.write("a", b"1"), lambda db: db.write("b", b"2"))
    assert isinstance(error, ocdbt_py.StorageError)
    assert history(place) == [{b"b": b"2"}]


def write_if(db: Database) -> None:
    db.write("b", b"1", if_equal=ocdbt_py.MISSING)


def transact(db: Database) -> None:
    with db.transaction() as transaction:
        transaction["b"] = b"1"


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda db: db.write("b", b"1"), True),
        (lambda db: db.update({"b": b"1" * 100, "c": bytearray(b"1")}), True),
        (lambda db: db.delete("a"), True),
        (lambda db: db.write("b", b"1" * 101), False),  # a value in a file of its own
        (lambda db: db.update({f"{number}": b"" for number in range(1025)}), False),
        (lambda db: db.delete_range("a", "b"), False),
        (write_if, False),
        (transact, False),
    ],
    ids=["put", "put several", "delete", "long value", "many keys", "range", "condition", "transaction"],
)
def test_a_note_is_left_for_what_another_can_do(place: Place, call: Call, expected: bool) -> None:
    storage = Watched(place)
    with open_place(replace(place, storage=storage), "r+") as db:
        call(db)
    assert [note is not None for note in storage.notes] == [expected]


class Told:
    """A note in the hands of a holder."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def promise(self, token: bytes) -> None:
        raise AssertionError

    def done(self) -> None:
        raise AssertionError


class Holding:
    def __init__(self, *notes: bytes) -> None:
        self.notes = [Told(data) for data in notes]

    def take_notes(self, expected: int = 0, patience: float = 0.0) -> list[Told]:
        return self.notes


def test_a_note_about_another_database_is_not_followed(place: Place) -> None:
    mine, other = StoredConfig(uuid=b"1" * 16), StoredConfig(uuid=b"2" * 16)
    files = DataFiles(place.storage, place.path, 0)

    def staged(key: bytes) -> Staged:
        mutations = Mutations()
        mutations.put(key, key)
        return mutations.stage(100, "d/", files)

    hold = Holding(note_of(staged(b"a"), mine), note_of(staged(b"b"), other), note_of(staged(b"c"), mine))
    along = take_along(staged(b"x"), hold, mine, Company(), "d/", files)  # type: ignore[arg-type]
    assert along.staged.placed() == {b"a": b"a", b"c": b"c", b"x": b"x"}
    assert list(along.notes) == [hold.notes[0], hold.notes[2]]


def test_nobody_is_waited_for_who_was_not_there_the_last_time() -> None:
    company = Company()
    assert company.patience == 0
    company.was_there(3, 0.004)
    assert (company.others, company.seconds) == (3, 0.004)
    assert company.patience == 0.002
    company.seconds = 1000
    assert company.patience < 0.01
    company.others = 0
    assert company.patience == 0
