"""``ocdbt get URL KEY[slice] -o FILE``: a leaf, a slice of one, or the value of a key, written to a file.

A file whose name ends in ``.npy`` becomes a NumPy file, which only arrays and numbers can; any other gets the bytes
alone: an array's elements in C order, a string as UTF-8, a key's value as it is stored.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ocdbt_py.cli.lookup import look_up
from ocdbt_py.cli.target import add_target_arguments, open_target
from ocdbt_py.errors import InvalidArgumentError
from ocdbt_py.view.results import Written


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("key", metavar="KEY[SLICE]", help="a name as ls prints it, perhaps with [0:10, ::2] after it")
    parser.add_argument(
        "-o", "--output", metavar="FILE", required=True, help="FILE.npy for NumPy, any other name for the bytes alone"
    )
    add_target_arguments(parser)


def run(arguments: argparse.Namespace) -> Written:
    target = open_target(arguments)
    name, value = look_up(target, arguments.key)
    output = Path(arguments.output)
    if isinstance(value, str):
        value = value.encode()
    if isinstance(value, bool | int | float | complex):
        value = np.asarray(value)
    if not isinstance(value, np.ndarray | bytes):
        raise InvalidArgumentError(f"{name} is {value!r}, which has no bytes; ocdbt cat prints it")
    array = value if isinstance(value, np.ndarray) else None
    as_npy = array is not None and output.suffix == ".npy"
    note = None
    with output.open("wb") as file:
        if isinstance(value, bytes):
            file.write(value)
        elif as_npy:
            note = _save(file, value)
        else:
            file.write(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
    return Written(
        url=target.url,
        name=name,
        output=str(output),
        format="npy" if as_npy else "raw",
        dtype=None if array is None else array.dtype.name,
        shape=None if array is None else array.shape,
        nbytes=len(value) if isinstance(value, bytes) else value.nbytes,
        note=note,
    )


def _save(file: BinaryIO, array: NDArray[Any]) -> str | None:
    """Write a NumPy file; a dtype that NumPy has no word for goes as bare bytes of its width, and a note says so."""
    if array.dtype.isbuiltin == 1:
        np.save(file, array, allow_pickle=False)
        return None
    bare = np.dtype(f"V{array.dtype.itemsize}")
    np.save(file, array.view(bare), allow_pickle=False)
    return f"NumPy loads it as {bare}; .view(ml_dtypes.{array.dtype.name}) gives it its type"
