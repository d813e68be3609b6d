"""JAX for those parts of the drop-in that cannot do without: the only place here that imports it.

A training loop with NumPy alone needs none of them, so nothing imports JAX before a leaf, a sharding or a caller asks
for it. Where JAX is not installed, arrays that were JAX's come back as NumPy's.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from ocdbt_py.errors import UnsupportedError

__all__ = ["is_key_dtype", "jax_if_installed", "jax_if_loaded", "the_jax"]


def jax_if_loaded() -> ModuleType | None:
    """JAX, if something has imported it; without that there are no arrays of its to tell from others."""
    jax = sys.modules.get("jax")
    return jax if jax is not None and hasattr(jax, "tree_util") else None


def jax_if_installed() -> ModuleType | None:
    try:
        import jax
    except ImportError:
        return None
    return jax


def the_jax(purpose: str) -> ModuleType:
    """JAX; :class:`UnsupportedError` naming what it is for where there is none."""
    jax = jax_if_installed()
    if jax is None:
        raise UnsupportedError(f"{purpose} needs JAX: pip install 'ocdbt-py[jax]'")
    return jax


def is_key_dtype(dtype: Any) -> bool:
    """Whether a dtype is that of typed PRNG keys, which NumPy does not know."""
    jax = jax_if_loaded()
    return jax is not None and dtype is not None and bool(jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key))
