"""The leaves of a tree as its metadata lists them: records, or columns of which a record is made when it is asked for.

A tree has tens of thousands of leaves, and most readers want their names and values, and the containers around them.
Paths as texts are enough for that: a container is found by what stands before the last step of any leaf in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import compress, islice, pairwise, repeat
from operator import is_, lt
from typing import Any, NamedTuple, overload

import numpy as np

from ocdbt_py.checkpoint.flatten import ABSENT, Key, KeyKind, Path, unflatten_paths
from ocdbt_py.format.joined_texts import JoinedTexts

__all__ = ["INDEX", "PATH", "STEP", "LeafColumns", "LeafRecord", "Names", "value_types"]

STEP, INDEX, PATH = "\0", "\1", "\2"
"""Between the steps of a path that is a text, behind a step that is an index, and between paths."""

_MANY = 512
"""Fewer leaves are handled one by one: NumPy's functions cost a process more when it calls them the first time."""


_LOOKS = 32
"""Names that are asked for one by one, before all of them are taken apart."""


class LeafRecord(NamedTuple):
    """One entry of ``_METADATA``. ``write_shape``, of JAX arrays only: the shape one writer writes at a time."""

    path: Path
    value_type: str
    write_shape: tuple[int, ...] | None = None


class Names(Sequence[str]):
    """Names of many leaves, which are taken apart when somebody looks at them."""

    def __init__(self, joined: JoinedTexts) -> None:
        self.joined = joined
        self._looks = 0

    @classmethod
    def of(cls, names: Iterable[str]) -> Names:
        """Of names without control characters."""
        return cls(JoinedTexts(PATH.join(names).encode(), PATH.encode()))

    @cached_property
    def _names(self) -> list[str]:
        return self.joined.joined.decode().split(PATH)

    def __len__(self) -> int:
        return len(self.joined)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, int) and self._looks < _LOOKS:
            self._looks += 1
            return self.joined[index].decode()
        return self._names[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self._names == list(other)

    __hash__ = None  # type: ignore[assignment]


class LeafColumns(Sequence[LeafRecord]):
    """Records in columns. ``text`` has the paths, none of them empty, nor their first steps where others follow; no
    step has a control character."""

    def __init__(self, text: bytes, value_types: Sequence[str]) -> None:
        self._text = text
        self._has_indices = INDEX.encode() in text
        self.value_types = value_types

    @cached_property
    def _joined(self) -> JoinedTexts:
        return JoinedTexts(self._text, PATH.encode())

    @cached_property
    def names(self) -> Sequence[str]:
        """The names that the paths make; see :func:`ocdbt_py.checkpoint.names.leaf_name`."""
        text, step = self._text, STEP.encode()
        if len(self) >= _MANY and not self._has_indices and b"." not in text:
            return Names(self._joined.replaced(step, b"."))
        made = text.replace(INDEX.encode(), b"").replace(step, b".")
        return Names(JoinedTexts(made, PATH.encode())) if len(self) >= _MANY else made.decode().split(PATH)

    @cached_property
    def _paths(self) -> list[Path]:
        keys = _Keys()
        return [tuple(map(keys.__getitem__, text.split(STEP))) for text in self._text.decode().split(PATH)]

    def tree(self, leaves: Sequence[Any]) -> Any:
        """What :func:`ocdbt_py.checkpoint.flatten.unflatten_paths` makes of the paths, which must be distinct."""
        is_whole = not any(map(is_, leaves, repeat(ABSENT)))
        if len(self) < _MANY and is_whole and not self._has_indices:
            texts = self._text.decode().split(PATH)
            if all(map(lt, texts, islice(texts, 1, None))):
                return _one_by_one(texts, leaves)
        joined, present = self._joined, leaves
        if not is_whole:
            is_here = [leaf is not ABSENT for leaf in leaves]
            present = list(compress(leaves, is_here))
            if not present:
                return ABSENT
            if self._has_indices:  # a list has something in their places
                return unflatten_paths(self._paths, leaves)
            separator = PATH.encode()
            joined = JoinedTexts(separator.join(compress(joined.joined.split(separator), is_here)), separator)
        made = _in_order(joined, present, self._has_indices)
        return unflatten_paths(self._paths, leaves) if made is None else made

    def __len__(self) -> int:
        return len(self.value_types)

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


def _one_by_one(texts: Sequence[str], leaves: Sequence[Any]) -> Any:
    """The dicts that these paths make, which come in order; few are sooner made so than a level at a time."""
    top: dict[str, Any] = {}
    levels = {"": top}  # by their paths
    for text, leaf in zip(texts, leaves, strict=True):
        above, _, name = text.rpartition(STEP)
        level = levels.get(above)
        if level is None:
            level = _begun(above, levels)
        level[name] = leaf
    return top


def _begun(text: str, levels: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The dict at ``text``, which was not begun; nor, perhaps, those around it."""
    missing = []
    while text not in levels:
        missing.append(text)
        text = text.rpartition(STEP)[0]
    level = levels[text]
    for text in reversed(missing):
        around, level = level, {}
        levels[text] = around[text.rpartition(STEP)[2]] = level
    return level


def _in_order(paths: JoinedTexts, leaves: Sequence[Any], has_indices: bool) -> Any:
    """The tree of these paths, if all in a container come together, and in the order that they have in it; else None.

    That is how trees are written. It is made a level at a time, from the deepest, where a container by itself takes
    several times as long to make.
    """
    text, starts, ends = paths.joined, paths.starts, paths.ends
    marks = (np.frombuffer(text, np.uint8) == ord(STEP)).nonzero()[0]
    first = marks.searchsorted(starts)
    depths = marks.searchsorted(ends) - first + 1
    common = marks.searchsorted(starts + paths.shared) - first  # steps shared with the path before
    common[0] = -1
    # after one that it continues, a path has a container's first child, after the leaf that is in the container's place
    astray = common[1:][~paths.are_increasing(ord(" "))]
    first += np.arange(len(starts))
    steps = text.decode().replace(PATH, STEP).split(STEP)
    made: list[Any] = []
    deepest = int(depths.max())
    is_even = len(steps) == deepest * len(leaves)
    for depth in range(deepest, 0, -1):
        rows = ((depths >= depth) & (common < depth)).nonzero()[0]  # all containers and leaves of this depth begin here
        is_all = len(rows) == len(leaves)
        if is_all and is_even:
            names = steps[depth - 1 :: deepest]
        else:
            names = list(map(steps.__getitem__, (first[rows] + (depth - 1)).tolist()))
        is_leaf = depths[rows] == depth
        values: Sequence[Any] = made
        if is_leaf.all():
            values = leaves if is_all else list(map(leaves.__getitem__, rows.tolist()))
        elif is_leaf.any():
            containers = iter(made)
            kinds = zip(rows.tolist(), is_leaf.tolist(), strict=True)
            values = [leaves[row] if ends_here else next(containers) for row, ends_here in kinds]
        begin = (common[rows] < depth - 1).nonzero()[0]  # of each container
        pairs = zip(names, values, strict=True)
        if has_indices and INDEX in "".join(names):
            bounds = pairwise([*begin.tolist(), len(rows)])
            made = [_container(names[start:stop], values[start:stop]) for start, stop in bounds]
            if any(each is None for each in made):
                return None
        elif (astray == depth - 1).any():
            return None
        elif len(begin) == len(rows):
            made = [{name: value} for name, value in pairs]
        else:
            made = [dict(islice(pairs, size)) for size in np.diff(begin, append=len(rows)).tolist()]
    return made[0]


def _container(names: list[str], values: Sequence[Any]) -> dict[str, Any] | list[Any] | None:
    """The dict or list of these; None if they are not in order."""
    if names == [f"{i}{INDEX}" for i in range(len(names))]:
        return list(values)
    if INDEX not in "".join(names) and all(map(lt, names, islice(names, 1, None))):
        return dict(zip(names, values, strict=True))
    return None


def value_types(leaves: Sequence[LeafRecord]) -> Sequence[str]:
    """What each of the leaves is."""
    return leaves.value_types if isinstance(leaves, LeafColumns) else [record.value_type for record in leaves]
