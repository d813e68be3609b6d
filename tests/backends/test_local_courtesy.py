"""Turns for writers of other programs: seen in the system's list of locks, and given way to for a bounded time."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from ocdbt_py.storage.location import Settings
from ocdbt_py.storage.protocol import Note
from ocdbt_py_backends import local, local_courtesy
from ocdbt_py_backends.local import LocalStorage
from ocdbt_py_backends.local_courtesy import give_way, is_waited_for, look_around, stay_away
from ocdbt_py_backends.local_lock import Lock

PATIENCE = 30.0

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/locks"), reason="the system does not say who waits")


class Clock:
    """Time that passes only in sleep."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.sleeps: list[float] = []
        patch.setattr(time, "monotonic", lambda: self.now)
        patch.setattr(time, "sleep", self._sleep)

    def _sleep(self, seconds: float) -> None:
        self.sleeps.append(round(seconds, 6))
        self.now += seconds


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_courtesy, "_turns", {})


def test_who_waits_in_the_system_is_seen(tmp_path: Path) -> None:
    holder, other = Lock(f"{tmp_path}/f", "os"), Lock(f"{tmp_path}/f", "os")
    holder.acquire(0)
    assert not is_waited_for(holder.fd)
    waiting = threading.Thread(target=other.acquire, daemon=True)  # as TensorStore does, without a limit
    waiting.start()
    deadline = time.monotonic() + PATIENCE
    while not is_waited_for(holder.fd):
        assert time.monotonic() < deadline
    holder.release()
    waiting.join(PATIENCE)
    assert not is_waited_for(other.fd)
    other.release()


def test_where_the_system_does_not_say_nobody_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_courtesy, "_LOCKS", f"{tmp_path}/absent")
    with open(tmp_path / "f", "w") as file:
        assert not is_waited_for(file.fileno())


class Looks:
    """Looks that take a given time and see somebody or nobody."""

    def __init__(self, patch: pytest.MonkeyPatch, clock: Clock) -> None:
        self.clock = clock
        self.is_there, self.seconds = True, 0.0
        self.times: list[float] = []
        patch.setattr(local_courtesy, "is_waited_for", self._look)

    def _look(self, fd: int) -> bool:
        self.times.append(self.clock.now)
        self.clock.now += self.seconds
        return self.is_there

    def turns(self, count: int, held: float, between: float = 0.0) -> list[float]:
        """How long to stay away after each of so many turns of so many seconds."""
        away = []
        for _ in range(count):
            self.clock.now += between + held
            away.append(round(look_around("/f", 3, held), 6))
        return away


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    return Looks(monkeypatch, Clock(monkeypatch))


def test_who_comes_back_at_once_for_some_time_looks_every_few_turns_and_gives_way(looks: Looks) -> None:
    assert not any(looks.turns(100, 0.002))
    assert not looks.times
    assert looks.turns(300, 0.002)[-8:] == [0.0, 0.0, 0.0, 0.004] * 2
    looks.is_there = False
    assert not any(looks.turns(8, 0.002))
    assert not any(held > 0.1 for held in looks.turns(8, 100.0))


@pytest.mark.parametrize("held", [0.002, 0.3])
def test_the_turns_of_a_slow_disk_are_as_much_at_once_as_those_of_a_fast_one(looks: Looks, held: float) -> None:
    looks.turns(1000, held, between=0.01)
    assert looks.times


def test_who_leaves_others_time_between_two_turns_does_not_look(looks: Looks) -> None:
    assert not any(looks.turns(100, 0.002, between=1.0))
    assert not looks.times


def test_long_looks_are_rare_and_what_the_last_one_saw_holds_until_the_next(looks: Looks) -> None:
    looks.turns(300, 0.002)
    looks.seconds = 0.015
    began, before = looks.clock.now, len(looks.times)
    away = looks.turns(1000, 0.002)
    assert (len(looks.times) - before) * looks.seconds < 0.03 * (looks.clock.now - began)
    assert away.count(0.004) == 250


def test_who_gives_way_stays_away_for_what_is_left_of_the_time_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    give_way("/f", 10)
    stay_away("/f", 0.003)
    clock.now += 0.001
    give_way("/g", 10)
    give_way("/f", 10)
    give_way("/f", 10)
    stay_away("/f", 0.003)
    clock.now += 1
    give_way("/f", 10)
    stay_away("/f", 0.003)
    give_way("/f", 0.001)
    stay_away("/f", 1000)
    give_way("/f", 1000)
    assert clock.sleeps == [0.002, 0.001, local_courtesy._LONGEST]


def test_many_paths_take_little_memory() -> None:
    for number in range(1000):
        stay_away(f"/{number}", 0.0)
    assert len(local_courtesy._turns) <= local_courtesy._MOST_PATHS


def test_those_that_a_holder_served_give_way_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    away: list[float] = []
    monkeypatch.setattr(local, "look_around", lambda path, fd, held: 0.004)
    monkeypatch.setattr(local, "stay_away", lambda path, seconds: away.append(seconds))
    storage = LocalStorage(Settings(durable=False))
    note = Note(lambda: b"x")

    def wait() -> None:
        with storage.hold(f"{tmp_path}/f", PATIENCE, note):
            pass

    with storage.hold(f"{tmp_path}/f", 0) as hold:
        waiting = threading.Thread(target=wait, daemon=True)
        waiting.start()
        (taken,) = hold.take_notes(1, PATIENCE)
        hold.write([b"x"])
        taken.done()
    waiting.join(PATIENCE)
    assert note.done
    assert away == [0.004, 0.004]
