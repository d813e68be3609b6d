"""CRC-32C (Castagnoli), the checksum of every manifest and node.

Raw values carry none (format document, "Files of a database"). The work is done by the ``crc32c`` package, which
takes any contiguous buffer without copying it. Only its C code is loaded: the package around it has a command line,
and asks ``importlib.metadata`` for its own version, which takes longer to import than all of ours.
"""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from typing import Any

__all__ = ["crc32c"]


def _c_code() -> Any:
    """What holds the function: the package's extension module by itself, or the package where that cannot be had."""
    package = None if "crc32c" in sys.modules else PathFinder.find_spec("crc32c")
    places = None if package is None else package.submodule_search_locations
    spec = None if places is None else PathFinder.find_spec("crc32c._crc32c", places)
    if spec is not None and spec.loader is not None:
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        if hasattr(module, "crc32c"):
            return module
    import crc32c

    return crc32c


_computed = _c_code().crc32c


def crc32c(data: bytes | bytearray | memoryview, value: int = 0) -> int:
    """The checksum of ``data``; ``value`` is that of the bytes before it.

    >>> hex(crc32c(b"123456789")), crc32c(b"89", crc32c(b"1234567")) == crc32c(b"123456789")
    ('0xe3069283', True)
    """
    checksum: int = _computed(data, value)
    return checksum
