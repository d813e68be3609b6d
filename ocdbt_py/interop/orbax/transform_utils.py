"""Renaming, dropping and computing leaves: ``ocp.transform_utils``.

Paths are joined by ``/`` here, and a key of the transformations is a regular expression over a whole path. Orbax has
deprecated all of it in favour of restoring a tree and changing it, and keeps it; so does this.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ocdbt_py.errors import InvalidArgumentError, StructureError
from ocdbt_py.interop.orbax.tree import from_flat_dict, to_flat_dict

__all__ = [
    "RestoreTransform",
    "Transform",
    "apply_transformations",
    "flat_transforms",
    "intersect_trees",
    "merge_trees",
]


@dataclass
class Transform:
    r"""Where the value of a leaf comes from.

    ``original_key``: the path it had, with ``\1`` for what a group of the regular expression matched.
    ``use_fallback``: from the other tree than the one that is the default. ``value_fn``: from its value.
    ``multi_value_fn``: from (path, whole original tree).
    """

    original_key: str | None = None
    use_fallback: bool = False
    value_fn: Callable[..., Any] | None = None
    multi_value_fn: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        _only_one(self.use_fallback, self.original_key, self.value_fn, self.multi_value_fn)
        _only_one(self.multi_value_fn is not None, self.original_key, self.value_fn)


@dataclass
class RestoreTransform(Transform):
    """The same while restoring: ``multi_value_fn`` gets the leaf's restore arguments as well.

    ``multi_value_fn_input_args``: regular expressions over the paths that it needs, each with restore arguments.
    """

    multi_value_fn_input_args: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.multi_value_fn_input_args is not None and self.multi_value_fn is None:
            raise _Contradiction("multi_value_fn_input_args are the inputs of a multi_value_fn; give that, too")


class _Contradiction(InvalidArgumentError, AssertionError):
    """Of Orbax these are assertions."""


def _only_one(is_given: bool, *others: Any) -> None:
    if is_given and any(other is not None for other in others):
        raise _Contradiction("A transformation has one source: original_key, use_fallback, value_fn or multi_value_fn")


def apply_transformations(
    original_tree: Any, transformations: Any, new_tree: Any, default_to_original: bool | None = True
) -> Any:
    """A tree with the structure of ``new_tree``, its leaves from ``original_tree`` as ``transformations`` say.

    A leaf that none of them matches is that of the original tree where it has one and ``default_to_original`` is set,
    and else that of ``new_tree``. Raises :class:`StructureError` (a ``ValueError``) where a leaf is not there.

    >>> apply_transformations({"a": 1, "b": 2}, {"c": Transform(original_key="a")}, {"b": 0, "c": 0})
    {'b': 2, 'c': 1}
    """
    original = to_flat_dict(original_tree, sep="/")
    new = to_flat_dict(new_tree, sep="/")
    if not new and not new_tree:
        return {}
    transforms = flat_transforms(transformations, "/")
    for key in new:
        matched = False
        for pattern, transform in transforms.items():
            match = re.fullmatch(pattern, key)
            if match is None:
                continue
            matched = True
            if transform.use_fallback:
                if not default_to_original:
                    new[key] = _taken(original, key)
            elif transform.multi_value_fn is not None:
                new[key] = transform.multi_value_fn(key, original_tree)
            else:
                source = key if transform.original_key is None else match.expand(transform.original_key)
                value = _taken(original, source)
                new[key] = value if transform.value_fn is None else transform.value_fn(value)
        if not matched and default_to_original and key in original:
            new[key] = original[key]
    return from_flat_dict(new, target=new_tree, sep="/")


def _taken(original: Mapping[str, Any], key: str) -> Any:
    if key not in original:
        raise StructureError(f"A transformation takes {key!r}, and the original tree has no such leaf")
    return original[key]


def flat_transforms(transformations: Any, sep: str | None = None) -> dict[Any, Any]:
    """The transformations by path; each is a leaf, though it is a dataclass."""
    return dict(to_flat_dict(transformations, sep=sep, is_leaf=lambda value: isinstance(value, Transform)))


def merge_trees(*trees: Any, target: Any = None) -> Any:
    """One tree with the leaves of all, later ones winning; dicts, or the containers of ``target``."""
    merged: dict[Any, Any] = {}
    for tree in trees:
        merged |= to_flat_dict(tree)
    return from_flat_dict(merged, target=target)


def intersect_trees(*trees: Any, target: Any = None) -> Any:
    """The leaves that all trees have, as the last one has them."""
    flat = [to_flat_dict(tree) for tree in trees]
    common = set.intersection(*(set(each) for each in flat))
    return from_flat_dict({key: value for key, value in flat[-1].items() if key in common}, target=target)
