"""Orbax's module of old names: ``ocp.utils``. All of them live elsewhere; new code takes them from there."""

from __future__ import annotations

from typing import Any

from ocdbt_py.interop.orbax.matching import is_empty_node, opened
from ocdbt_py.interop.orbax.path.step import (
    TMP_DIR_SUFFIX,
    any_checkpoint_step,
    checkpoint_steps,
    checkpoint_steps_paths,
    get_save_directory,
    is_checkpoint_finalized,
    is_tmp_checkpoint,
    step_from_checkpoint_name,
    tmp_checkpoints,
)
from ocdbt_py.interop.orbax.tree import (
    deserialize_tree,
    from_flat_dict,
    serialize_tree,
    to_flat_dict,
    to_shape_dtype_struct,
)

__all__ = [
    "TMP_DIR_SUFFIX",
    "all_leaves_are_placeholders",
    "any_checkpoint_step",
    "checkpoint_steps",
    "checkpoint_steps_paths",
    "deserialize_tree",
    "from_flat_dict",
    "get_save_directory",
    "is_checkpoint_finalized",
    "is_empty_node",
    "is_tmp_checkpoint",
    "leaf_is_placeholder",
    "leaf_placeholder",
    "serialize_tree",
    "step_from_checkpoint_name",
    "tmp_checkpoints",
    "to_flat_dict",
    "to_shape_dtype_struct",
]

_PREFIX = "PLACEHOLDER://"


def leaf_is_placeholder(leaf: Any) -> bool:
    """Whether a leaf of the msgpack file of old releases says that its value lies elsewhere."""
    return isinstance(leaf, str) and leaf.startswith((_PREFIX, "AGGREGATED://"))


def leaf_placeholder(name: str) -> str:
    """What stands in that file for the leaf ``name``."""
    return _PREFIX + name


def all_leaves_are_placeholders(tree: Any) -> bool:
    """Whether all values of a tree lie elsewhere."""
    return all(leaf_is_placeholder(leaf) for leaf in opened(tree).leaves if not is_empty_node(leaf))
