"""The document of an array, whichever format it is of: ``.zarray`` of zarr v2, ``zarr.json`` of zarr v3."""

from __future__ import annotations

from typing import Final

from ocdbt_py.array.spec import ArraySpec
from ocdbt_py.array.zarr2 import decode_zarray, encode_zarray
from ocdbt_py.array.zarr3 import decode_zarr3, encode_zarr3

__all__ = ["METADATA_FILES", "decode_metadata", "encode_metadata"]

METADATA_FILES: Final = {".zarray": decode_zarray, "zarr.json": decode_zarr3}
"""What a document is called, below the array's name."""


def decode_metadata(data: bytes | memoryview, *, path: str) -> ArraySpec:
    """The array that a document describes; ``path``, its key, says which kind it is and where, for messages.

    What we have no code for is ``UnsupportedError``, everything else that is wrong is ``CorruptDataError``.
    """
    return METADATA_FILES[path.rpartition("/")[2]](data, path=path)


def encode_metadata(spec: ArraySpec) -> bytes:
    """The document TensorStore would write for this array."""
    return encode_zarray(spec) if spec.zarr_format == 2 else encode_zarr3(spec)
