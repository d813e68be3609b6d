"""How much memory saving and restoring may take beyond the arrays themselves."""

from __future__ import annotations

from typing import Any

from ocdbt_py.errors import InvalidArgumentError

__all__ = ["MAX_MEMORY", "memory_limit"]

MAX_MEMORY = 64 << 20
"""Bytes, unless the caller says otherwise."""

_LEAST = 4 << 20


def memory_limit(max_memory: Any) -> int:
    """What ``max_memory=`` means; None is the default."""
    if max_memory is None:
        return MAX_MEMORY
    if type(max_memory) is not int or max_memory < _LEAST:
        raise InvalidArgumentError(f"max_memory is a number of bytes, {_LEAST} or more, not {max_memory!r}")
    return max_memory
