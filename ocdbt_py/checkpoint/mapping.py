"""Arrays that lie in a file as they lie in memory, as private memory maps of it instead of copies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdbt_py.array.dtypes import low_bits
from ocdbt_py.array.sharding import only_chunk
from ocdbt_py.array.spec import ArraySpec, array_key
from ocdbt_py.database_reading import Readable
from ocdbt_py.engine.nodes import file_path
from ocdbt_py.errors import CorruptDataError, NotFoundError
from ocdbt_py.format.datafile import DataFileId
from ocdbt_py.storage.location import Place

__all__ = ["map_arrays"]


def map_arrays(
    place: Place,
    source: Readable,
    names: Sequence[str],
    specs: Mapping[int, ArraySpec],
    seen: Callable[[bytes, memoryview], object] | None = None,
) -> dict[int, NDArray[Any]]:
    """Those of the arrays ``names[i]`` that can be mapped; ``source`` says where below ``place`` they are.

    ``seen`` is called with each key and its stored bytes, before these are used.
    """
    chunks = {
        array_key(names[i], spec.chunk_key((0,) * spec.ndim)): (i, spec)
        for i, spec in specs.items()
        if _is_mappable(spec)
    }
    files: dict[str, memoryview] = {}
    arrays: dict[int, NDArray[Any]] = {}
    for entry in source.scan() if chunks else ():
        location = entry.location
        if location is None or entry.key not in chunks:
            continue
        i, spec = chunks[entry.key]
        mapped = files.get(location.file)
        if mapped is None:
            mapped = files[location.file] = _map_file(place, location.file, entry.key)
        stored: memoryview | None = mapped[location.offset : location.offset + location.length]
        reason = f"of {spec.nbytes} bytes by its metadata"
        if seen is not None and stored is not None and len(stored) == location.length:
            seen(entry.key, stored)
        try:
            if stored is not None and spec.sharding is not None and len(stored) == location.length:
                stored = only_chunk(stored, spec.sharding, spec.index_nbytes)
        except ValueError as error:
            stored, reason = mapped[:0], str(error)
        if stored is None:
            continue  # the shard leaves it out
        if len(stored) != spec.nbytes:
            raise CorruptDataError(
                f"The chunk of array {names[i]!r}, {reason}, cannot be in the {location.length} bytes at "
                f"{location.offset} in a file of {len(mapped)}",
                path=location.file,
                key=entry.key,
                url=place.url,
            )
        arrays[i] = np.frombuffer(stored, spec.dtype, spec.size).reshape(spec.shape)
    return arrays


def _map_file(place: Place, name: str, key: bytes) -> memoryview:
    path = file_path(place.path, DataFileId(b"", name.encode("utf-8", "surrogateescape")))
    try:
        return place.storage.map(path)
    except NotFoundError as error:
        raise CorruptDataError(
            "Arrays lie in a data file that is not there; the directory was copied without it, or it was deleted",
            path=name,
            key=key,
            url=place.url,
        ) from error


def _is_mappable(spec: ArraySpec) -> bool:
    return (
        spec.is_raw
        and spec.is_one_chunk
        and (spec.order == "C" or spec.ndim < 2)
        and spec.byte_order == "<"
        and spec.dtype.kind != "b"  # a stored byte may be anything, and NumPy trusts it to be 0 or 1
        and low_bits(spec.dtype) is None
    )
