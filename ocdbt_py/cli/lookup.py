"""Find what ``KEY[slice]`` names in a target, and read it; if there is no such name, say which is near."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdbt_py.array.lazy import LazyArray
from ocdbt_py.checkpoint.checkpoint import Checkpoint
from ocdbt_py.checkpoint.names import nearest
from ocdbt_py.cli.selection import Selection, byte_range, readings
from ocdbt_py.cli.target import Target
from ocdbt_py.database import Database
from ocdbt_py.errors import InvalidArgumentError, KeyNotFoundError
from ocdbt_py.view.spelling import spelled, unspelled

_SUGGESTED_FROM = 10_000
"""Names that are looked at for a near one."""


def look_up(target: Target, text: str) -> tuple[str, Any]:
    """What was asked for as it is spelled, and its value: of a checkpoint an ``ndarray`` or another leaf, of a database
    ``bytes``. Only what the selection needs is read."""
    asked = spelled(os.fsencode(text))
    return asked, _bytes(target.keys, text, target) if target.checkpoint is None else _leaf(
        target.checkpoint, text, target
    )


def _leaf(checkpoint: Checkpoint, text: str, target: Target) -> Any:
    for reading, selection in readings(text):
        for name in (reading, unspelled(reading).decode("utf-8", "surrogateescape")):
            if name not in checkpoint:
                continue
            value = checkpoint[name]
            if isinstance(value, LazyArray):
                return _selected(value, selection)
            if selection is not None:
                raise InvalidArgumentError(f"{spelled(name)} is no array, so nothing can be selected of it")
            return value
    raise _not_found("leaf", text, checkpoint, target)


def _selected(array: LazyArray, selection: Selection | None) -> NDArray[Any]:
    if selection is None:
        return array.read()
    try:
        return np.asarray(array[selection])
    except IndexError as error:
        raise InvalidArgumentError(f"{spelled(array.name)} has the shape {array.shape}: {error}") from error


def _bytes(database: Database, text: str, target: Target) -> bytes:
    for reading, selection in readings(text):
        for key in (os.fsencode(reading), unspelled(reading)):
            if key in database:
                start, stop = (0, None) if selection is None else byte_range(selection, spelled(key))
                return database.read(key, start, stop)
    raise _not_found("key", text, map(spelled, database), target)


def _not_found(what: str, text: str, names: Iterable[str], target: Target) -> KeyNotFoundError:
    *_, (asked, _selection) = readings(text)
    near = nearest(asked, list(islice(names, _SUGGESTED_FROM)))
    hint = "" if near is None else f'; did you mean "{spelled(near)}"?'
    return KeyNotFoundError(f'There is no {what} "{spelled(os.fsencode(asked))}" in {target.url}{hint}')
