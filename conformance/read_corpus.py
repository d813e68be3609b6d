"""Restore every item of every checkpoint in the corpus, in a process of its own: ``python -m conformance.read_corpus``.

    blocked    no import of JAX, TensorStore, Orbax or flax succeeds
    jax        JAX is loaded first, and each tree is restored a second time into its arrays

Prints how many items and leaves were the same to the last bit; the first that is not ends it.
"""

from __future__ import annotations

import os
import sys
from importlib.abc import MetaPathFinder
from typing import Any

BLOCKED = frozenset({"jax", "jaxlib", "tensorstore", "orbax", "flax"})


class Blocker(MetaPathFinder):
    """In front of all other finders."""

    def find_spec(self, name: str, *_: Any) -> None:
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} is blocked")


def main(mode: str) -> None:
    if mode == "blocked":
        sys.meta_path.insert(0, Blocker())
    else:
        os.environ["JAX_ENABLE_X64"] = "1"
        import jax  # noqa: F401

    from conformance.test_orbax_reads import ITEMS, assert_same, expected_tree
    from ocdbt_py import restore

    leaves = 0
    for case, item in ITEMS:
        expected = expected_tree(case, item)
        where = f"{case.name} {item['dir']}"
        assert_same(restore(case.checkpoint / item["dir"]), expected, where)
        leaves += len(item["leaves"])
        if mode == "jax":
            restore_to_jax(case.checkpoint / item["dir"], expected, where)
    loaded = BLOCKED & {name.partition(".")[0] for name in sys.modules}
    assert mode == "jax" or not loaded, loaded
    print(f"{len(ITEMS)} items, {leaves} leaves")


def restore_to_jax(url: Any, expected: Any, where: str) -> None:
    """The same through a target of ``jax.ShapeDtypeStruct``, for the leaves that are arrays."""
    import jax
    import numpy as np

    from conformance.test_orbax_reads import assert_same
    from ocdbt_py import restore

    def wanted(leaf: Any) -> Any:
        struct: Any = jax.ShapeDtypeStruct
        return struct(leaf.shape, leaf.dtype) if isinstance(leaf, np.ndarray) else leaf

    def found(leaf: Any) -> Any:
        assert not isinstance(leaf, np.ndarray), where
        return np.array(leaf) if isinstance(leaf, jax.Array) else leaf

    assert_same(jax.tree.map(found, restore(url, jax.tree.map(wanted, expected))), expected, where)


if __name__ == "__main__":
    main(*sys.argv[1:])
