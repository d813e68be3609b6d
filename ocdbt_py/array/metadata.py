"""The document of an array, whichever format it is of: ``.zarray`` of zarr v2, ``zarr.json`` of zarr v3.

The code of v3 is loaded by the first who meets it: few checkpoints have both.
"""

from __future__ import annotations

from typing import Final

from ocdbt_py.array.spec import ArraySpec
from ocdbt_py.array.zarr2 import decode_zarray, encode_zarray

__all__ = ["METADATA_FILES", "decode_metadata", "encode_metadata"]

METADATA_FILES: Final = (".zarray", "zarr.json")
"""What a document is called, below the array's name."""


def decode_metadata(data: bytes | memoryview, *, path: str) -> ArraySpec:
    """The array that a document describes; ``path``, its key, says which kind it is and where, for messages.

    What we have no code for is ``UnsupportedError``, everything else that is wrong is ``CorruptDataError``.
    """
    if path.rpartition("/")[2] == ".zarray":
        return decode_zarray(data, path=path)
    from ocdbt_py.array.zarr3 import decode_zarr3

    return decode_zarr3(data, path=path)


def encode_metadata(spec: ArraySpec) -> bytes:
    """The document TensorStore would write for this array."""
    if spec.zarr_format == 2:
        return encode_zarray(spec)
    from ocdbt_py.array.zarr3 import encode_zarr3

    return encode_zarr3(spec)
