"""A tree that a caller gave, beside the tree that is stored: which leaf of the one is which of the other.

Orbax compares trees in the form they are stored in, dicts and lists; a tuple is a list there, and a dataclass a dict.
So a path, step by step with the kind of container, says all there is to compare. :class:`Differences` tells everything
that does not fit in one error.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from ocdbt_py.checkpoint.flatten import Flat, KeyKind, Path, flatten
from ocdbt_py.checkpoint.names import leaf_name, nearest
from ocdbt_py.errors import InvalidTypeError, StructureError
from ocdbt_py.interop.orbax.jax_access import jax_if_loaded
from ocdbt_py.interop.orbax.metadata.tree import TreeMetadata
from ocdbt_py.interop.orbax.metadata.value import Metadata
from ocdbt_py.interop.orbax.restore_args import RestoreArgs

__all__ = ["Differences", "args_by_leaf", "is_empty_node", "opened", "part_of", "plain_tree", "whole"]


def opened(tree: Any) -> Flat[Any]:
    """A tree taken apart; restore arguments and descriptions are leaves, though they are dataclasses."""
    return flatten(tree, lambda value: isinstance(value, RestoreArgs | Metadata))


def is_empty_node(leaf: Any) -> bool:
    """Whether a leaf of :func:`opened` is a container of no leaves, None among them."""
    if leaf is None:
        return True
    if isinstance(leaf, dict | list | tuple | Mapping):
        return not len(leaf)
    jax = jax_if_loaded()
    return jax is not None and not jax.tree_util.all_leaves([leaf])


def plain_tree(tree: Any) -> Any:
    """The tree itself, of what ``metadata()`` gave."""
    return tree.tree if isinstance(tree, TreeMetadata) else tree


class Differences:
    """Where a given tree and the stored one do not agree."""

    def __init__(self, given: str, url: str) -> None:
        self._given = given
        self._url = url
        self._only_given: list[str] = []
        self._only_stored: list[str] = []

    def only_given(self, path: Path) -> None:
        self._only_given.append(leaf_name(path))

    def only_stored(self, path: Path) -> None:
        self._only_stored.append(leaf_name(path))

    def raise_if_any(self, hint: str) -> None:
        names = [*self._only_given, *self._only_stored]
        if not names:
            return
        width = max(map(len, names))
        lines = []
        for i, name in enumerate(self._only_given):
            guess = nearest(name, self._only_stored) if i < _GUESSED else None
            meant = "" if guess is None else f"; nearest name: {guess}"
            lines.append(f"  {name or '(itself)':<{width}}  in {self._given}, not in the checkpoint{meant}")
        for name in self._only_stored:
            lines.append(f"  {name or '(itself)':<{width}}  in the checkpoint, not in {self._given}")
        raise StructureError(
            f"The structures of {self._given} and the checkpoint differ in {len(names)} "
            f"{'leaf' if len(names) == 1 else 'leaves'}:\n" + "\n".join(lines) + f"\n{hint}",
            url=self._url,
        )


_GUESSED = 50
"""Guesses cost milliseconds each."""


class _Stored:
    """The stored paths, and what lies above them."""

    def __init__(self, paths: Collection[Path]) -> None:
        self.leaves = set(paths)
        self.sizes: dict[Path, set[str]] = {}  # of each container: the names in it
        self.kinds: dict[Path, KeyKind] = {}
        for path in paths:
            for depth, key in enumerate(path):
                self.sizes.setdefault(path[:depth], set()).add(key.name)
                self.kinds[path[:depth]] = key.kind


def whole(flat: Flat[Any], stored_paths: Collection[Path], url: str) -> None:
    """Check that a target has exactly the stored leaves; a ``...`` may stand where its dict has nothing in store.

    Raises :class:`StructureError` with every difference.
    """
    stored = _Stored(stored_paths)
    given = set(flat.paths)
    differences = Differences("the target", url)
    may_skip = any(leaf is ... for leaf in flat.leaves)
    for path, leaf in zip(flat.paths, flat.leaves, strict=True):
        if path in stored.leaves:
            continue
        is_extra = path not in stored.kinds and bool(path) and stored.kinds.get(path[:-1]) is KeyKind.DICT
        if not (may_skip and leaf is ... and is_extra and path[-1].kind is KeyKind.DICT):
            differences.only_given(path)
    for path in stored_paths:
        if path not in given:
            differences.only_stored(path)
    differences.raise_if_any("With partial_restore=True only what the target has is restored")


def part_of(flat: Flat[Any], stored_paths: Collection[Path], url: str) -> None:
    """Check that a target fits where it meets the stored tree; what only one of them has is let pass.

    That holds for the keys of dicts. Lists must be as long as in the checkpoint, or :class:`StructureError`; a
    container where the other has a leaf or another container is :class:`InvalidTypeError`, a ``TypeError``.
    """
    stored = _Stored(stored_paths)
    checked: set[Path] = set()
    given = _Stored(flat.paths)
    for path, leaf in zip(flat.paths, flat.leaves, strict=True):
        for depth, key in enumerate(path):
            above = path[:depth]
            if above in checked:
                continue
            if above in stored.leaves:
                raise _other_kind(above, "a container", "a leaf", url)
            kind = stored.kinds.get(above)
            if kind is None:
                break  # nothing is stored from here on
            if kind is not key.kind:
                raise _other_kind(above, _CONTAINERS[key.kind], _CONTAINERS[kind], url)
            if kind is KeyKind.SEQUENCE and stored.sizes[above] != given.sizes[above]:
                raise StructureError(
                    f"{leaf_name(above) or 'The tree'} has {len(given.sizes[above])} elements in the target, and "
                    f"{len(stored.sizes[above])} in the checkpoint; only keys of dicts can be left out",
                    url=url,
                )
            checked.add(above)
        kind = stored.kinds.get(path)
        if kind is not None and not (leaf is None and kind is KeyKind.DICT):
            raise _other_kind(path, "a leaf", _CONTAINERS[kind], url)


_CONTAINERS = {KeyKind.DICT: "a dict", KeyKind.SEQUENCE: "a list"}


def _other_kind(path: Path, given: str, stored: str, url: str) -> InvalidTypeError:
    return InvalidTypeError(
        f"{leaf_name(path) or 'The tree'} is {given} in the target, and {stored} in the checkpoint", url=url
    )


def args_by_leaf(paths: Sequence[Path], restore_args: Any, url: str) -> list[RestoreArgs]:
    """The arguments of each leaf, from a tree of them; a leaf without any gets the default.

    Raises :class:`StructureError` where the tree of arguments is none for these leaves.
    """
    if restore_args is None:
        return [RestoreArgs() for _ in paths]
    flat = opened(plain_tree(restore_args))
    given = dict(zip(flat.paths, flat.leaves, strict=True))
    above = set(_prefixes(flat.paths))
    differences = Differences("restore_args", url)
    found: list[RestoreArgs] = []
    for path in paths:
        args = given.get(path)
        if path not in given and path not in above:
            differences.only_stored(path)
        found.append(args if isinstance(args, RestoreArgs) else RestoreArgs())
    known = set(paths)
    for path in flat.paths:
        if path not in known and not any(path[:depth] in known for depth in range(len(path))):
            differences.only_given(path)
    differences.raise_if_any("restore_args have the structure of the target, or without one that of the checkpoint")
    return found


def _prefixes(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        for depth in range(len(path)):
            yield path[:depth]
