"""Tokens from stamps that are too coarse: when a stamp alone is believed."""

from __future__ import annotations

import time

import pytest

from ocdbt_py_backends import sightings
from ocdbt_py_backends.sightings import Seen, Sightings, digest


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time is its last item."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[-1])
    return now


ONE, OTHER = Seen((3, 7), digest(b"one")), Seen((3, 7), digest(b"two"))


def test_a_stamp_is_believed_once_the_same_content_was_read_late_enough(clock: list[float]) -> None:
    seen = Sightings(2.0)
    assert not seen.settled("f", ONE)
    seen.saw("f", ONE, clock[-1])
    clock.append(101.9)
    seen.saw("f", ONE, clock[-1])
    assert not seen.settled("f", ONE)
    clock.append(102.0)
    seen.saw("f", ONE, clock[-1])
    assert seen.settled("f", ONE)
    assert not seen.settled("f", OTHER)
    assert not seen.settled("g", ONE)
    clock.append(102.1)
    seen.saw("f", ONE, clock[-1])
    assert seen.settled("f", ONE)


def test_a_read_that_began_too_early_settles_nothing(clock: list[float]) -> None:
    seen = Sightings(2.0)
    seen.saw("f", ONE, 100.0)
    clock.append(110.0)
    seen.saw("f", ONE, 101.0)  # a slow one
    assert not seen.settled("f", ONE)


def test_another_content_with_an_equal_stamp_begins_anew(clock: list[float]) -> None:
    seen = Sightings(2.0)
    seen.saw("f", ONE, 100.0)
    clock.append(103.0)
    seen.saw("f", OTHER, 103.0)
    assert not seen.settled("f", ONE)
    assert not seen.settled("f", OTHER)


def test_large_files_are_told_by_their_stamp_and_other_tokens_by_nothing() -> None:
    seen = Sightings(2.0)
    assert seen.settled("f", Seen((1 << 30, 7), None))
    assert not seen.settled("f", ("no", "token"))


def test_what_was_seen_long_ago_is_forgotten(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sightings, "_REMEMBERED", 2)
    seen = Sightings(0.0)
    for name in ("f", "g", "f", "h"):
        seen.saw(name, ONE, 100.0)
    assert [seen.settled(name, ONE) for name in "fgh"] == [True, False, False]


def test_a_digest_is_that_of_all_buffers_in_a_row() -> None:
    assert digest(b"on", memoryview(b"e")) == ONE.digest
    assert len({digest(), digest(b"one"), digest(b"two")}) == 3
