"""Notes of writers who wait for a local file: taken by one holder or by nobody, and never once their writer is dead."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ocdbt_py.errors import StorageError, WaitTimeoutError
from ocdbt_py.storage.location import Settings
from ocdbt_py.storage.protocol import Note
from ocdbt_py_backends import local_lock, local_notes
from ocdbt_py_backends.local import LocalStorage
from ocdbt_py_backends.local_notes import LeftNote, notes_directory, take_notes

PATIENCE = 30.0


class Waiting(threading.Thread):
    """A writer who leaves a note and waits; what came of it."""

    def __init__(self, path: str, data: bytes = b"x", timeout: float = PATIENCE, locking: str = "os") -> None:
        super().__init__(daemon=True)
        self.path = path
        self.timeout = timeout
        self.storage = LocalStorage(Settings(durable=False, locking=locking))
        self.was_asked = threading.Event()
        self.note = Note(self._write)
        self.data = data
        self.held = False
        self.error: BaseException | None = None
        self.start()

    def _write(self) -> bytes:
        self.was_asked.set()
        return self.data

    def run(self) -> None:
        try:
            with self.storage.hold(self.path, self.timeout, self.note) as hold:
                if not self.note.done:
                    hold.write([b"by the one who waited"])
                    self.held = True
        except BaseException as error:
            self.error = error

    def ended(self) -> Waiting:
        self.join(PATIENCE)
        assert not self.is_alive()
        return self


@pytest.fixture
def path(tmp_path: Path) -> str:
    return f"{tmp_path}/f"


@pytest.fixture
def storage() -> LocalStorage:
    return LocalStorage(Settings(durable=False))


@pytest.fixture
def left(path: str) -> Iterator[LeftNote]:
    note = LeftNote(path, Note(lambda: b"x"))
    assert not note.is_done()
    yield note
    note.end()


def names(path: Path) -> list[str]:
    return sorted(os.listdir(path))


def left_at(path: str) -> list[str] | None:
    """The names of notes and bells, None if there is no directory for them."""
    try:
        return sorted(os.listdir(notes_directory(path)))
    except FileNotFoundError:
        return None


def die(left: LeftNote) -> None:
    """As the system does to what a killed writer has open."""
    for fd in (left._fd, left._bell):
        os.close(fd)
    left._fd = left._bell = -1


def test_a_writer_whose_note_is_done_holds_nothing(storage: LocalStorage, path: str, tmp_path: Path) -> None:
    with storage.hold(path, 0) as hold:
        waiting = Waiting(path)
        (taken,) = hold.take_notes(1, PATIENCE)
        assert taken.data == b"x"
        assert hold.take_notes() == []
        taken.promise(b"will be there")
        taken.done()
    waiting.ended()
    assert waiting.note.done
    assert not waiting.held
    assert names(tmp_path) == []
    assert left_at(path) is None


def test_several_notes_are_taken_at_once(storage: LocalStorage, path: str, tmp_path: Path) -> None:
    with storage.hold(path, 0) as hold:
        writers = [Waiting(path, b"%d" % number) for number in range(5)]
        taken = hold.take_notes(5, PATIENCE)
        assert sorted(note.data for note in taken) == [b"0", b"1", b"2", b"3", b"4"]
        for note in taken:
            note.done()
    assert all(writer.ended().note.done for writer in writers)
    assert [writer.note.company for writer in writers] == [5] * 5
    assert names(tmp_path) == []
    assert left_at(path) is None


def test_a_note_that_nobody_takes_is_as_if_it_had_never_been(storage: LocalStorage, path: str, tmp_path: Path) -> None:
    with storage.hold(path, 0):
        waiting = Waiting(path)
        assert waiting.was_asked.wait(PATIENCE)
    waiting.ended()
    assert waiting.held
    assert waiting.note == Note(waiting.note.write)
    assert names(tmp_path) == ["f"]
    assert left_at(path) is None


def test_who_need_not_wait_leaves_no_note(storage: LocalStorage, path: str) -> None:
    def refuse() -> bytes:
        raise AssertionError("nobody is there to read it")

    with storage.hold(path, 0, Note(refuse)):
        pass


@pytest.mark.parametrize("promise", [b"", b"p" * 48])
def test_a_holder_that_ends_without_a_word_leaves_its_promise(
    storage: LocalStorage, path: str, tmp_path: Path, promise: bytes
) -> None:
    with storage.hold(path, 0) as hold:
        waiting = Waiting(path)
        (taken,) = hold.take_notes(1, PATIENCE)
        if promise:
            taken.promise(promise)
    waiting.ended()
    assert waiting.held
    assert waiting.note.taken
    assert not waiting.note.done
    assert waiting.note.promise == promise
    assert names(tmp_path) == ["f"]


def test_who_gives_up_while_its_note_is_in_other_hands_does_not_know_what_happened(
    storage: LocalStorage, path: str, tmp_path: Path
) -> None:
    with storage.hold(path, 0) as hold:
        waiting = Waiting(path, timeout=1.0)
        assert hold.take_notes(1, PATIENCE)
        error = waiting.ended().error
        assert isinstance(error, StorageError)
        assert error.kind == "ambiguous"
    assert names(tmp_path) == []


def test_who_gives_up_takes_its_note_back(storage: LocalStorage, path: str, tmp_path: Path) -> None:
    with storage.hold(path, 0) as hold:
        assert isinstance(Waiting(path, timeout=0.01).ended().error, WaitTimeoutError)
        assert hold.take_notes() == []
        assert names(tmp_path) == ["f.__lock"]


@pytest.mark.parametrize("does", [True, False], ids=["its note is done", "its turn has come"])
def test_who_waits_is_told_when(storage: LocalStorage, path: str, monkeypatch: pytest.MonkeyPatch, does: bool) -> None:
    monkeypatch.setattr(local_lock, "_LISTENING", 1000 * PATIENCE)  # never, unless it is rung
    with storage.hold(path, 0) as hold:
        waiting = Waiting(path, timeout=1000 * PATIENCE)
        deadline = time.monotonic() + PATIENCE
        while len(left_at(path) or ()) < 2:  # its note and its bell
            assert time.monotonic() < deadline
        if does:
            (taken,) = hold.take_notes(1, PATIENCE)
            taken.done()
    waiting.ended()
    assert (waiting.note.done, waiting.held) == (does, not does)


def test_the_note_of_a_dead_writer_is_removed_and_not_taken(path: str, left: LeftNote) -> None:
    die(left)
    assert take_notes(path, 0, 0.0) == []
    assert left_at(path) is None


def test_what_a_writer_leaves_that_is_killed_after_its_note_was_taken_goes_with_the_next_holder(
    storage: LocalStorage, path: str, left: LeftNote
) -> None:
    (taken,) = take_notes(path, 0, 0.0)
    die(left)
    taken.close()
    taken.ring()
    assert left_at(path) == [f"{left._name}.bell"]
    with storage.hold(path, 0) as hold:
        assert hold.take_notes() == []
    assert left_at(path) is None


def test_a_note_that_is_too_old_is_left_alone(path: str, left: LeftNote, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 61)
    assert take_notes(path, 0, 0.0) == []
    assert left_at(path) == [left._name, f"{left._name}.bell"]


def test_a_note_is_there_whole_or_not_at_all(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link
    seen: list[Any] = []

    def look_before(*args: Any, **named: Any) -> None:
        if not seen:
            seen.append(take_notes(path, 0, 0.0))  # finds a bell without a note
        link(*args, **named)

    monkeypatch.setattr(os, "link", look_before)
    left = LeftNote(path, Note(lambda: b"x"))
    assert not left.is_done()
    assert seen == [[]]
    (taken,) = take_notes(path, 0, 0.0)
    assert taken.data == b"x"
    taken.close()
    taken.ring()
    left.end()
    assert left_at(path) is None


def test_a_note_that_would_take_the_holder_long_is_not_left(path: str) -> None:
    note = LeftNote(path, Note(lambda: bytes(local_notes._MOST_BYTES + 1)))
    assert not note.is_done()
    assert left_at(path) is None
    note.end()


@pytest.mark.parametrize("obstacle", ["no such memory", "somebody else's"])
def test_where_a_note_cannot_be_left_its_writer_just_waits(
    storage: LocalStorage, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, obstacle: str
) -> None:
    monkeypatch.setattr(local_notes, "_MEMORY", f"{tmp_path}/memory")
    if obstacle == "somebody else's":
        user = os.getuid()
        monkeypatch.setattr(os, "getuid", lambda: user + 1)
        os.makedirs(notes_directory(path))
        Path(notes_directory(path), "note").write_bytes(b"of another user")
    with storage.hold(path, 0) as hold:
        waiting = Waiting(path)
        assert waiting.was_asked.wait(PATIENCE)
        assert hold.take_notes() == []
    assert waiting.ended().held
    assert left_at(path) == (["note"] if obstacle == "somebody else's" else None)


def test_locks_that_outlive_their_holders_go_without_notes(path: str) -> None:
    storage = LocalStorage(Settings(durable=False, locking="lockfile"))
    with storage.hold(path, 0) as hold:
        waiting = Waiting(path, timeout=0.05, locking="lockfile")
        assert isinstance(waiting.ended().error, WaitTimeoutError)
        assert hold.take_notes() == []
    assert not waiting.was_asked.is_set()


def test_no_note_is_left_for_a_file_whose_name_leaves_no_room(tmp_path: Path) -> None:
    path = f"{tmp_path}/{'n' * 150}"
    note = LeftNote(path, Note(lambda: b"x"))
    assert not note.is_done()
    assert not note.listens
    assert take_notes(path, 0, 0.0) == []
    note.end()
