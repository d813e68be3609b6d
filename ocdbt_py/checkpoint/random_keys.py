"""Items that are a random key: a directory with two items of its own, the key as a tree, and of which kind it is.

    jax_random_key/checkpoint/    the key's data, an array    jax_random_key_metadata/metadata    {"typed": true}
    np_random_key/                what get_state() gave       np_random_key_metadata/metadata     {"legacy": true}

The kind is not asked for: the data of a JAX key is given as it is, typed or not, and NumPy's old form is the one that
is a sequence.
"""

from __future__ import annotations

from typing import Any

from ocdbt_py.checkpoint.layout import RANDOM_KEYS, Layout, child, identify

__all__ = ["key_tree", "unwrapped", "wrapped"]

_JAX, _NUMPY = RANDOM_KEYS
_ARRAY = "checkpoint"


def key_tree(layout: Layout) -> Layout:
    """The pytree that holds the key."""
    name = _JAX if f"{_JAX}/" in layout.names else _NUMPY
    return identify(child(layout.place, name))


def wrapped(layout: Layout, target: Any) -> Any:
    """A target for the key as one for that pytree."""
    return {_ARRAY: target} if f"{_JAX}/" in layout.names else target


def unwrapped(layout: Layout, tree: Any) -> Any:
    """The key that the pytree holds: JAX's as an array, NumPy's as ``numpy.random.get_state`` gives it."""
    if f"{_JAX}/" in layout.names:
        return tree[_ARRAY] if isinstance(tree, dict) and list(tree) == [_ARRAY] else tree
    return tuple(tree) if isinstance(tree, list) else tree
