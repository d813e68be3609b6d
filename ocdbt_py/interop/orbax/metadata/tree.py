"""``TreeMetadata``: a saved tree with a description in the place of each leaf, itself a pytree.

Reading does not need JAX. Where JAX is loaded by then, it learns of the class when the first one is made, so that
``jax.tree.map`` goes over the descriptions; ``.tree`` is the plain dict or list for those who do without.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ocdbt_py.errors import InvalidTypeError
from ocdbt_py.interop.orbax.jax_access import jax_if_loaded

__all__ = ["TreeMetadata", "build_default_tree_metadata"]

_registered = False


class TreeMetadata:
    """The descriptions in ``tree``, and what was recorded with all of them."""

    def __init__(self, *, tree: Any, custom_metadata: Any = None, use_zarr3: bool = False) -> None:
        if tree is None:
            raise InvalidTypeError("A tree has leaves, and None is none")
        self._tree = tree
        self._custom_metadata = custom_metadata
        self._use_zarr3 = use_zarr3
        _register()

    @classmethod
    def build(cls, tree: Any, *, custom_metadata: Any = None, use_zarr3: bool = False) -> TreeMetadata:
        return cls(tree=tree, custom_metadata=custom_metadata, use_zarr3=use_zarr3)

    @property
    def tree(self) -> Any:
        """Dicts and lists, with a description for each leaf."""
        return self._tree

    @property
    def custom_metadata(self) -> Any:
        """What the writer gave with this tree; None if nothing."""
        return self._custom_metadata

    @property
    def use_zarr3(self) -> bool:
        return self._use_zarr3

    def __repr__(self) -> str:
        return (
            f"TreeMetadata(tree={self._tree!r}, custom_metadata={self._custom_metadata!r}, "
            f"use_zarr3={self._use_zarr3!r})"
        )

    def __getitem__(self, key: str | int) -> Any:
        return self._tree[key]

    def __contains__(self, key: object) -> bool:
        return key in self._tree

    def __len__(self) -> int:
        return len(self._tree)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._tree)

    def get(self, key: str | int, default: Any = None) -> Any:
        try:
            return self._tree[key]
        except (KeyError, IndexError):
            return default

    def keys(self) -> Any:
        return self._tree.keys()

    def values(self) -> Any:
        return self._tree.values()

    def items(self) -> Any:
        return self._tree.items()


def build_default_tree_metadata(tree: Any, *, custom_metadata: Any = None, use_zarr3: bool = False) -> TreeMetadata:
    return TreeMetadata(tree=tree, custom_metadata=custom_metadata, use_zarr3=use_zarr3)


def _register() -> None:
    """Tell JAX how to take one apart, once: its children are those of the tree."""
    global _registered
    jax = jax_if_loaded()
    if _registered or jax is None:
        return
    tree_util = jax.tree_util

    def opened(metadata: TreeMetadata) -> tuple[list[tuple[Any, Any]], Any]:
        tree = metadata.tree
        children, structure = tree_util.tree_flatten_with_path(tree, is_leaf=lambda node: node is not tree)
        if len(children) == 1 and not children[0][0]:  # a lone leaf
            children = [((tree_util.GetAttrKey("tree"),), tree)]
        rest = structure, metadata.use_zarr3, _Unseen(metadata.custom_metadata)
        return [(path[0], child) for path, child in children], rest

    def made(rest: Any, children: Any) -> TreeMetadata:
        structure, use_zarr3, unseen = rest
        return TreeMetadata(tree=structure.unflatten(children), custom_metadata=unseen.value, use_zarr3=use_zarr3)

    tree_util.register_pytree_with_keys(TreeMetadata, opened, made)
    _registered = True


class _Unseen:
    """Goes along with a structure; JAX compares and hashes structures, and a dict has no hash."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Unseen) and bool(self.value == other.value)

    def __hash__(self) -> int:
        return 0
