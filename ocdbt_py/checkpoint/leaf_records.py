"""The leaves of a tree as its metadata lists them: records, or columns of which a record is made when it is asked for.

A tree has tens of thousands of leaves, and most readers want their names and values, and the containers around them.
Paths as texts are enough for that: a container is found by what stands before the last step of any leaf in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import repeat
from typing import Any, NamedTuple, overload

from ocdbt_py.checkpoint.flatten import ABSENT, Key, KeyKind, Path, container
from ocdbt_py.errors import CorruptDataError

__all__ = ["INDEX", "PATH", "STEP", "LeafColumns", "LeafRecord", "value_types"]

STEP, INDEX, PATH = "\0", "\1", "\2"
"""Between the steps of a path that is a text, behind a step that is an index, and between paths."""

_TOGETHER = 1024
"""Paths of which names are made at a time: their text is small enough for memory that was used before."""


class LeafRecord(NamedTuple):
    """One entry of ``_METADATA``. ``write_shape``, of JAX arrays only: the shape one writer writes at a time."""

    path: Path
    value_type: str
    write_shape: tuple[int, ...] | None = None


class LeafColumns(Sequence[LeafRecord]):
    """Records in columns. ``texts`` are the paths, none of them empty, nor their first steps where others follow; no
    step has a control character."""

    def __init__(self, texts: Sequence[str], value_types: Sequence[str]) -> None:
        self._texts = texts
        self.value_types = value_types

    @property
    def names(self) -> list[str]:
        """The names that the paths make; see :func:`ocdbt_py.checkpoint.names.leaf_name`."""
        names: list[str] = []
        for start in range(0, len(self._texts), _TOGETHER):
            text = PATH.join(self._texts[start : start + _TOGETHER])
            names += text.replace(INDEX, "").replace(STEP, ".").split(PATH)
        return names

    @cached_property
    def _paths(self) -> list[Path]:
        keys = _Keys()
        return [tuple(map(keys.__getitem__, text.split(STEP))) for text in self._texts]

    def tree(self, leaves: Sequence[Any]) -> Any:
        """What :func:`ocdbt_py.checkpoint.flatten.unflatten_paths` makes of the paths, which must be distinct."""
        levels: dict[str, dict[str, Any]] = {"": {}}  # by their paths; parents before their children
        for text, leaf in zip(self._texts, leaves, strict=True):
            above, _, name = text.rpartition(STEP)
            level = levels.get(above)
            if level is None:
                up, _, last = above.rpartition(STEP)
                around = levels[up] if up in levels else _begin(up, levels)
                level = levels[above] = around[last] = {}
            if name not in level:  # else it is a container that was empty once
                level[name] = leaf
        is_plain = INDEX not in "".join(self._texts) and not any(leaf is ABSENT for leaf in leaves)
        made: Any = None
        for text, level in reversed(levels.items()):
            made = level
            if not is_plain or (len(level) > 1 and list(level) != sorted(level)):
                made = _finished(text, level)
            if made is not level and text:
                above, _, name = text.rpartition(STEP)
                levels[above][name] = made
        return made

    def __len__(self) -> int:
        return len(self._texts)

    def __iter__(self) -> Iterator[LeafRecord]:
        return map(LeafRecord, self._paths, self.value_types, repeat(None))

    @overload
    def __getitem__(self, index: int) -> LeafRecord: ...
    @overload
    def __getitem__(self, index: slice) -> list[LeafRecord]: ...
    def __getitem__(self, index: int | slice) -> LeafRecord | list[LeafRecord]:
        if isinstance(index, slice):
            return list(map(LeafRecord, self._paths[index], self.value_types[index], repeat(None)))
        return LeafRecord(self._paths[index], self.value_types[index])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


class _Keys(dict[str, Key]):
    """A key for each step of a text, made once."""

    def __missing__(self, step: str) -> Key:
        kind = KeyKind.SEQUENCE if step.endswith(INDEX) else KeyKind.DICT
        key = self[step] = Key(step.rstrip(INDEX), kind)
        return key


def _begin(text: str, levels: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The container at ``text``, which was not begun; nor, perhaps, those around it."""
    missing = []
    while text not in levels:
        missing.append(text)
        text = text.rpartition(STEP)[0]
    level = levels[text]
    for text in reversed(missing):
        above, level = level, {}
        levels[text] = above[text.rpartition(STEP)[2]] = level
    return level


def _finished(text: str, level: dict[str, Any]) -> Any:
    """The container at ``text`` that these children make."""
    indices = "".join(level).count(INDEX)
    if indices and indices < len(level):
        place = repr(tuple(text.replace(INDEX, "").split(STEP)[:20]))
        raise CorruptDataError(f"The tree has both dict keys and indices below one place: {place}")
    if indices:
        return container(KeyKind.SEQUENCE, {name[:-1]: child for name, child in level.items()})
    return container(KeyKind.DICT, level)


def value_types(leaves: Sequence[LeafRecord]) -> Sequence[str]:
    """What each of the leaves is."""
    return leaves.value_types if isinstance(leaves, LeafColumns) else [record.value_type for record in leaves]
