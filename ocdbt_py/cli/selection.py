"""``KEY[slice]`` as typed: ``params.w[0:10, ::2]`` is the name ``params.w`` and a NumPy basic selection.

A name may itself hold brackets, so :func:`readings` gives the text as a whole first. Nothing is evaluated.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import EllipsisType

from ocdbt_py.errors import InvalidArgumentError

Index = int | slice | EllipsisType | None
Selection = tuple[Index, ...]

_INTEGER = re.compile(r"[+-]?[0-9]{1,18}", re.ASCII)


def readings(text: str) -> Iterator[tuple[str, Selection | None]]:
    """What ``text`` may mean: a name alone, then, if it ends in brackets, a name and a selection of it."""
    yield text, None
    name, bracket, inside = text.rpartition("[")
    if bracket and name and inside.endswith("]"):
        yield name, parse_selection(inside[:-1])


def parse_selection(text: str) -> Selection:
    """``0:10, ::2, ..., newaxis, -1`` as NumPy takes it; anything else is :class:`InvalidArgumentError`."""
    parts = [part.strip() for part in text.split(",")]
    if len(parts) > 1 and not parts[-1]:
        parts.pop()  # a[1,]
    selection = tuple(map(_index, parts))
    if selection.count(...) > 1:
        raise InvalidArgumentError(f'[{text}] holds more than one "..."')
    return selection


def byte_range(selection: Selection, name: str) -> tuple[int, int | None]:
    """A selection of a value's bytes as start and stop: one slice without a step, not clipped."""
    match selection:
        case (slice(start=start, stop=stop, step=None),) if (start or 0) >= 0 or stop is None:
            return start or 0, stop
    raise InvalidArgumentError(f"{name} is bytes: take [START:STOP], [START:] or [-COUNT:] of it")


def _index(text: str) -> Index:
    if text == "...":
        return ...
    if text in ("None", "newaxis", "np.newaxis"):
        return None
    numbers = [_integer(part.strip(), text) for part in text.split(":")]
    if len(numbers) == 1 and numbers[0] is not None:
        return numbers[0]
    if len(numbers) in (2, 3) and (len(numbers) < 3 or numbers[2] != 0):
        return slice(*numbers)
    raise _not_understood(text)


def _integer(text: str, whole: str) -> int | None:
    if not text:
        return None
    if not _INTEGER.fullmatch(text):
        raise _not_understood(whole)
    return int(text)


def _not_understood(text: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f'"{text}" is no index: write integers, slices like 0:10 or ::2, "..." or newaxis, separated by commas'
    )
