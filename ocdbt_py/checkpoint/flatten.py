"""Pytrees into leaves with paths and back, as JAX flattens them, with and without JAX.

Dicts (keys sorted), lists, tuples, namedtuples (in field order) and None are walked here, whether JAX is loaded or not.
Any other object is asked of JAX's registry, but only if something else has imported JAX already: a node type can have
been registered in no other way. A dataclass that nobody registered is a node too, its fields in order.

Orbax gives an empty container a place of its own, since no leaf below it would tell of it. So an empty container and
None are leaves here, with the value they have.

The walk keeps its own stack: a tree may be nested more deeply than Python can recurse.
"""

from __future__ import annotations

import dataclasses
import enum
import sys
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from ocdbt_py.errors import CorruptDataError, InvalidArgumentError, InvalidTypeError

__all__ = ["ABSENT", "Flat", "Key", "KeyKind", "Path", "container", "flatten", "unflatten_paths"]

T = TypeVar("T")


class KeyKind(enum.IntEnum):
    """What one step of a path goes into; the numbers are ``key_type`` in ``_METADATA``."""

    SEQUENCE = 1
    DICT = 2


class Key(NamedTuple):
    """One step of a path: a dict key as ``str``, a field's name, or an index in decimal digits."""

    name: str
    kind: KeyKind


Path = tuple[Key, ...]

MAX_DEPTH = 10_000
"""Deeper than this a tree is taken to contain itself."""


_Node = tuple[int, Callable[[Any], Any], Sequence[Any] | None]
"""A container with children: how many, and what makes it again, from a list of them; or from pairs, of these keys and
the children, where there are keys."""


class Flat(Generic[T]):
    """A tree taken apart: ``leaves[i]`` lies at ``paths[i]``. :meth:`rebuild` puts other leaves in their places."""

    def __init__(self, paths: list[Path], leaves: list[T], shape: list[_Node | None]) -> None:
        self.paths = paths
        self.leaves = leaves
        self._shape = shape  # the tree in preorder; None is a leaf

    def rebuild(self, leaves: Sequence[Any]) -> Any:
        """The same containers around ``leaves``, given in the order of ``self.leaves``. Not for every tree."""
        source = reversed(leaves)
        made: list[Any] = []
        for node in reversed(self._shape):  # children before their parents, the last child first
            if node is None:
                made.append(next(source))
            else:
                size, make, names = node
                children = made[-size:]
                children.reverse()
                del made[-size:]
                made.append(make(children if names is None else zip(names, children, strict=True)))
        return made[0]


def flatten(tree: Any, is_leaf: Callable[[Any], bool] | None = None, *, can_rebuild: bool = True) -> Flat[Any]:
    """Take a pytree apart, in JAX's order. None and empty containers are leaves, and so is what ``is_leaf`` says.

    ``can_rebuild=False``: what makes the containers again is not kept.
    Raises :class:`InvalidArgumentError` where dict keys cannot be sorted or a tree contains itself.
    """
    paths: list[Path] = []
    leaves: list[Any] = []
    shape: list[_Node | None] = []
    keys = _Keys()
    leaf_types, named = keys.leaf_types, keys.named
    # the containers around the place that the walk has come to, each with those of its children that are yet to come
    around: list[tuple[Path, Iterator[tuple[Path, Any]]]] = [((), iter([((), tree)]))]
    while around:
        above, children = around[-1]
        for step, value in children:
            if is_leaf is None:
                if type(value) is dict and len(value) == 1:  # as around each leaf in trees that have most of them
                    ((key, child),) = value.items()
                    if type(child) in leaf_types:
                        paths.append(above + step + named[key if type(key) is str else str(key)])
                        leaves.append(child)
                        if can_rebuild:
                            shape += (1, dict, (key,)), None
                        continue
                opened = None if type(value) in leaf_types else _open(value, keys)
            else:
                opened = None if is_leaf(value) else _open(value, keys)
            if opened is None:
                paths.append(above + step)
                leaves.append(value)
                shape.append(None)
                continue
            if len(around) > MAX_DEPTH:
                shown = ".".join([key.name for key in above[:4]])
                raise InvalidArgumentError(f"The tree is nested more than {MAX_DEPTH} deep below {shown!r}: a cycle?")
            steps, below, make, names = opened
            if can_rebuild:
                shape.append((len(below), make, names))
            place = above + step
            if is_leaf is None and leaf_types.issuperset(map(type, below)):  # in one go, for most children are leaves
                paths += [place + each for each in steps]
                leaves += below
                if can_rebuild:
                    shape += [None] * len(below)
                continue
            around.append((place, zip(steps, below, strict=True)))
            break
        else:
            around.pop()
    return Flat(paths, leaves, shape)


_NEVER_CONTAINERS = frozenset({type(None), bool, int, float, complex, str, bytes, type(...)})
_Opened = tuple[Sequence[Path], Sequence[Any], Callable[[Any], Any], Sequence[Any] | None]
"""A container's children, each with the step to it, a path of one key; and what makes it again, as in a node."""


class _Named(dict[str, Path]):
    def __missing__(self, name: str) -> Path:
        step = self[name] = (Key(name, KeyKind.DICT),)
        return step


class _Keys:
    """What one walk makes or asks only once: a step for each name and index, and which types are leaves."""

    def __init__(self) -> None:
        self.leaf_types = set(_NEVER_CONTAINERS)
        self.named = _Named()
        self._indices: list[Path] = []

    def indices(self, size: int) -> list[Path]:
        while len(self._indices) < size:
            self._indices.append((Key(str(len(self._indices)), KeyKind.SEQUENCE),))
        return self._indices[:size]


def _open(value: Any, keys: _Keys) -> _Opened | None:
    """The children of a container that has any; None for a leaf."""
    kind = type(value)
    if kind in keys.leaf_types:
        return None
    if kind is dict:
        return _open_dict(value, sorted, dict, keys) if value else None
    if kind is list:
        return (keys.indices(len(value)), value, _same, None) if value else None
    if kind is tuple:
        return (keys.indices(len(value)), value, tuple, None) if value else None
    registered = _open_registered(value, keys)
    if registered is not None:
        return registered if registered[1] else None
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        fields = [keys.named[field] for field in value._fields]
        return (fields, value, lambda children: kind(*children), None) if value else None
    if isinstance(value, OrderedDict):
        return _open_dict(value, list, OrderedDict, keys) if value else None
    if isinstance(value, dict):
        make: Callable[[Any], Any] = dict
        if isinstance(value, defaultdict):
            factory = value.default_factory
            make = lambda pairs: defaultdict(factory, pairs)  # noqa: E731
        return _open_dict(value, sorted, make, keys) if value else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _open_dataclass(value, keys)
    keys.leaf_types.add(kind)
    return None


def _same(children: list[Any]) -> Any:
    return children


def _open_dict(
    value: Mapping[Any, Any], order: Callable[[Any], list[Any]], make: Callable[[Any], Any], keys: _Keys
) -> _Opened:
    try:
        ordered = order(value)
    except TypeError:
        kinds = sorted({type(key).__name__ for key in value})
        raise InvalidTypeError(
            f"The keys of one dict must be sortable among themselves, but some are {' and some '.join(kinds)}: "
            f"{list(value)[:5]!r}; make them all str"
        ) from None
    named = keys.named
    steps, children = [], []
    for key in ordered:
        steps.append(named[key if type(key) is str else str(key)])
        children.append(value[key])
    return steps, children, make, ordered


def _open_dataclass(value: Any, keys: _Keys) -> _Opened | None:
    fields = [field.name for field in dataclasses.fields(value)]
    if not fields:
        return None

    def make(children: list[Any]) -> Any:
        # not through __init__, which may compute or refuse
        made = object.__new__(type(value))
        for name, child in zip(fields, children, strict=True):
            object.__setattr__(made, name, child)
        return made

    return [keys.named[name] for name in fields], [getattr(value, name) for name in fields], make, None


def _open_registered(value: Any, keys: _Keys) -> _Opened | None:
    """The children of a node of JAX's registry; None if it is not one, or JAX is not loaded."""
    jax = sys.modules.get("jax")
    if jax is None or not hasattr(jax, "tree_util"):
        return None
    tree_util = jax.tree_util
    children, treedef = tree_util.tree_flatten_with_path(value, is_leaf=lambda node: node is not value)
    if len(children) == 1 and not children[0][0]:
        return None  # its only leaf is itself

    def step_of(step: Any) -> Path:
        if isinstance(step, tree_util.SequenceKey):
            return (Key(str(step.idx), KeyKind.SEQUENCE),)
        if isinstance(step, tree_util.FlattenedIndexKey):
            return (Key(str(step.key), KeyKind.SEQUENCE),)
        if isinstance(step, tree_util.GetAttrKey):
            return keys.named[step.name]
        if isinstance(step, tree_util.DictKey):
            return keys.named[str(step.key)]
        raise InvalidTypeError(
            f"A node of type {type(value).__name__} names its children by {type(step).__name__}, which has no place in "
            "a checkpoint; register it with DictKey, GetAttrKey or SequenceKey"
        )

    return [step_of(path[0]) for path, _ in children], [child for _, child in children], treedef.unflatten, None


class _Absent(enum.Enum):
    ABSENT = "absent"


ABSENT = _Absent.ABSENT
"""A leaf that is to be left out by :func:`unflatten_paths`."""


class _Level:
    """A container while it is being built: its kind, and its children by name, of which some are levels."""

    __slots__ = ("children", "kind")

    def __init__(self, kind: KeyKind) -> None:
        self.kind = kind
        self.children: dict[str, Any] = {}


def unflatten_paths(paths: Sequence[Path], leaves: Sequence[Any]) -> Any:
    """A tree of dicts and lists from the paths that ``_METADATA`` gives, as Orbax makes it without a target.

    Dict keys come out sorted. A leaf at a place that has others below it (an empty container which was filled later) is
    dropped. Leaves that are :data:`ABSENT` are left out: a dict does without them, a list has ``...`` in their places,
    and a container left with nothing at all is absent itself.

    Raises :class:`CorruptDataError` where paths contradict each other or indices leave gaps.
    """
    if not paths:
        raise CorruptDataError("The tree has no leaves")
    top = _Level(KeyKind.DICT)  # holds the tree itself, below one unnamed key
    levels: list[_Level] = []  # parents before their children
    level = top
    above: Path | None = None
    for path, leaf in zip(paths, leaves, strict=True):
        # neighbours mostly lie in one container
        if not path or path[:-1] != above or path[-1].kind is not level.kind:
            level, above = _level_of(path, top, levels), path[:-1] if path else None
        name = path[-1].name if path else ""
        children = level.children
        if name not in children:
            children[name] = leaf
        elif not isinstance(children[name], _Level):
            raise CorruptDataError(f"The tree has two leaves at {_show(path)}")
    made: dict[int, Any] = {}
    for each in reversed(levels):
        made[id(each)] = _container(each, made)
    root = top.children[""]
    return made[id(root)] if isinstance(root, _Level) else root


def _level_of(path: Path, top: _Level, levels: list[_Level]) -> _Level:
    """The container that the leaf at ``path`` is put into; it and those around it are begun where they were not."""
    level, name = top, ""
    for key in path:
        child = level.children.get(name)
        if not isinstance(child, _Level):
            child = level.children[name] = _Level(key.kind)
            levels.append(child)
        elif child.kind is not key.kind:
            raise CorruptDataError(f"The tree has both dict keys and indices below one place: {_show(path)}")
        level, name = child, key.name
    return level


def _show(path: Path) -> str:
    return repr(tuple(key.name for key in path[:20]))


def _container(level: _Level, made: Mapping[int, Any]) -> Any:
    values = {name: made[id(child)] if isinstance(child, _Level) else child for name, child in level.children.items()}
    return container(level.kind, values)


def container(kind: KeyKind, values: Mapping[str, Any]) -> Any:
    """What :func:`unflatten_paths` makes of the children of one place, by name."""
    if kind is KeyKind.DICT:
        return {name: values[name] for name in sorted(values) if values[name] is not ABSENT} or ABSENT
    by_index = dict(_indexed(iter(values.items())))
    if len(by_index) != len(values) or max(by_index) != len(by_index) - 1:
        raise CorruptDataError(f"The indices of a sequence in the tree leave gaps: {sorted(by_index)[:10]}")
    if all(value is ABSENT for value in by_index.values()):
        return ABSENT
    return [... if by_index[i] is ABSENT else by_index[i] for i in range(len(by_index))]


def _indexed(values: Iterator[tuple[str, Any]]) -> Iterator[tuple[int, Any]]:
    for name, value in values:
        if not (name.isascii() and name.isdigit() and len(name) < 19):
            raise CorruptDataError(f"An index of a sequence in the tree is {name[:40]!r}, not decimal digits")
        yield int(name), value
