"""The list of steps that a root keeps, while a save and its deletions are under way.

One save, at most. From its beginning on its step is in the list, as :attr:`State.SAVING`, and those that the
preservation policy gave up are out of it; but nothing is deleted before the new step is final::

                    being written        final, deleting        ended          or: failed
    the new step    SAVING               SAVED                  SAVED          (gone from the list)
    given up        GIVEN_UP             GOING                  (deleted)      SAVED
    overwritten     REPLACED             (gone)                                SAVED

Two threads are here at once, the caller's and the one that writes; the lock is held for changes of the list only.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace

from ocdbt_py.manager.listing import SavedStep

__all__ = ["Entry", "State", "StepList"]


class State(enum.Enum):
    """How a step stands."""

    SAVED = "saved"
    SAVING = "being saved"
    GIVEN_UP = "to be deleted when the save under way is final"
    REPLACED = "to be overwritten by the save under way"
    GOING = "being deleted"


@dataclass(eq=False)
class Entry:
    """A step of the list. ``is_doomed``: the policy gave it up at the moment it was saved. ``then`` is called when it
    is saved, and what it replaces deleted."""

    info: SavedStep
    state: State = State.SAVED
    is_doomed: bool = False
    then: Callable[[], None] | None = None

    @property
    def step(self) -> int:
        return self.info.step


class StepList:
    """Steps in the manager's order. Safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: list[Entry] = []
        self._opened: set[int] = set()

    def set(self, steps: Iterable[SavedStep]) -> None:
        """Begin anew with these."""
        with self._lock:
            self._entries = [Entry(info) for info in steps]
            self._opened = set()

    # --- asking

    def listed(self) -> list[Entry]:
        """Those that are saved and stay, and the one that is being saved."""
        with self._lock:
            return [e for e in self._entries if e.state is State.SAVED or (e.state is State.SAVING and not e.is_doomed)]

    def finished(self) -> list[Entry]:
        """Those that are saved and stay; while all of these are about to be replaced, they themselves."""
        with self._lock:
            found = [entry for entry in self._entries if entry.state is State.SAVED]
            return found or [e for e in self._entries if e.state in (State.GIVEN_UP, State.REPLACED)]

    def find(self, step: int) -> Entry | None:
        """The entry of a step that is there, or is being saved."""
        there = (State.SAVED, State.SAVING, State.GIVEN_UP)
        with self._lock:
            return next((e for e in reversed(self._entries) if e.step == step and e.state in there), None)

    # --- a save

    def begin(self, new: Entry, given_up: Collection[int]) -> None:
        """A save begins."""
        with self._lock:
            for entry in self._entries:
                if entry.step == new.step:
                    entry.state = State.REPLACED
                elif entry.step in given_up:
                    entry.state = State.GIVEN_UP
            new.state = State.SAVING
            self._entries.append(new)

    def publish(self, new: Entry) -> list[Entry]:
        """It is final; the entries of what is to be deleted now."""
        with self._lock:
            self._entries = [entry for entry in self._entries if entry.state is not State.REPLACED]
            new.info = replace(new.info, is_saving=False)
            new.state = State.GOING if new.is_doomed else State.SAVED
            for entry in self._entries:
                if entry.state is State.GIVEN_UP:
                    entry.state = State.GOING
            self._opened.add(new.step)
            return [entry for entry in self._entries if entry.state is State.GOING]

    def fail(self, new: Entry) -> bool:
        """It failed, unless it is saved and something went wrong later: whether it did."""
        with self._lock:
            if new.state is not State.SAVING:
                return False
            self._entries = [entry for entry in self._entries if entry is not new]
            for entry in self._entries:
                if entry.state in (State.GIVEN_UP, State.REPLACED):
                    entry.state = State.SAVED
            return True

    # --- deleting

    def going(self, entry: Entry) -> None:
        """It is being deleted."""
        with self._lock:
            entry.state = State.GOING

    def stays(self, entry: Entry) -> None:
        """It was to be deleted, and is still there."""
        with self._lock:
            if entry.state is State.GOING:
                entry.state = State.SAVED

    def forget(self, entry: Entry) -> None:
        """It is no step any more."""
        with self._lock:
            self._entries = [each for each in self._entries if each is not entry]
            if not any(each.step == entry.step for each in self._entries):
                self._opened.discard(entry.step)

    # --- opening

    def first_that_opens(
        self, candidates: Callable[[], Iterable[Entry]], opens: Callable[[Entry], bool]
    ) -> Entry | None:
        """The first of the candidates that opens. Those before it leave the list; it is asked once of each."""
        while True:
            entry = next(iter(candidates()), None)
            if entry is None or entry.step in self._opened:
                return entry
            if opens(entry):
                self._opened.add(entry.step)
                return entry
            self.forget(entry)
