"""After you: a writer of another program gets its turn between two of ours.

TensorStore's writers build on the manifest first, and then wait inside the system for the lock. Ours come back for it
at once, and hold it while they build: whenever the other one's turn has come, the manifest is another one, and it
starts over, for ever. So whoever gives the lock back looks, now and then, whether somebody waits for it in the system,
and if so stays away from it for about as long as two commits take, and so do those that it served. Our own writers do
not wait there.

A look takes 0.02 ms, or fifteen where nobody has looked for ten: Linux then first waits for all its processors. So it
is for those alone who have come back at once for some time, and the longer one took, the later is the next.
"""

from __future__ import annotations

import math
import os
import time
from contextlib import suppress
from dataclasses import dataclass

__all__ = ["give_way", "is_waited_for", "look_around", "stay_away"]

_EVERY = 4
"""Turns of ours for one that is given away, or for one look."""

_AT_ONCE = 0.25
"""Seconds after which whoever comes back has left others enough time."""

_FIRST = 0.5
"""Seconds of coming back at once before the first look."""

_LOOKS = 50
"""Times as long as a look took until the next one."""

_LONGEST = 0.05
_MOST_PATHS = 256
_LOCKS = "/proc/locks"


@dataclass(slots=True)
class _Turns:
    taken: int = 0
    given_back_at: float = -math.inf
    look_at: float = 0.0
    is_waited_for: bool = False
    """By the last look."""
    away_until: float = 0.0


_turns: dict[str, _Turns] = {}
"""By the path of the file that is locked, for all threads of this process."""


def give_way(path: str, timeout: float) -> None:
    """Stay away for the rest of the time that was promised to others."""
    turns = _turns.get(path)
    if turns is not None and turns.away_until:
        pause, turns.away_until = turns.away_until - time.monotonic(), 0.0
        if pause > 0:
            time.sleep(min(pause, timeout))


def look_around(path: str, fd: int, held: float) -> float:
    """Before the lock, the open file ``fd``, is given back after ``held`` seconds: how many to stay away from it."""
    turns, now = _turns_at(path), time.monotonic()
    if now - held - turns.given_back_at > _AT_ONCE:
        turns.taken, turns.is_waited_for, turns.look_at = 0, False, now + _FIRST
    turns.given_back_at = now
    turns.taken += 1
    if turns.taken % _EVERY:
        return 0.0
    if now >= turns.look_at:
        turns.is_waited_for = is_waited_for(fd)
        turns.look_at = now + (_LOOKS + 1) * (time.monotonic() - now)
    return min(2 * held, _LONGEST) if turns.is_waited_for else 0.0


def stay_away(path: str, seconds: float) -> None:
    """From now on, when it would next be held."""
    _turns_at(path).away_until = time.monotonic() + min(seconds, _LONGEST)


def _turns_at(path: str) -> _Turns:
    turns = _turns.get(path)
    if turns is None:
        if len(_turns) >= _MOST_PATHS:
            _turns.clear()
        turns = _turns[path] = _Turns()
    return turns


def is_waited_for(fd: int) -> bool:
    """Whether another open file waits in the system for the lock of this one."""
    with suppress(OSError):
        status = os.fstat(fd)
        file = b" %02x:%02x:%d " % (os.major(status.st_dev), os.minor(status.st_dev), status.st_ino)
        # as bytes: a codec is imported at its first use, and a child forked meanwhile would wait for that for ever
        with open(_LOCKS, "rb") as locks:
            return any(b"->" in line and file in line for line in locks)
    return False
