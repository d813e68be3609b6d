"""TensorStore, where it is installed: the other implementation, to compare with."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Oracle:
    """One version of the database in a local directory, as TensorStore reads it.

    Answers are values, or the exception that TensorStore raised instead. ``ImportError`` if it is not installed.
    """

    def __init__(self, directory: str, generation: int) -> None:
        import tensorstore

        self._tensorstore = tensorstore
        self.name = f"tensorstore {version('tensorstore')}"
        # without a cache every read decodes the whole path of nodes again
        self._context = tensorstore.Context({"cache_pool": {"total_bytes_limit": 1 << 28}})
        self._kvstore = {
            "driver": "ocdbt",
            "base": {"driver": "file", "path": os.path.join(directory, "")},
            **({"version": generation} if generation else {}),  # 0: nothing has been committed yet
        }

    def keys(self) -> list[bytes] | Exception:
        """All keys, in order."""
        try:
            return sorted(self._open().list().result())
        except Exception as error:
            return error

    def values(self, keys: Sequence[bytes]) -> list[bytes | Exception]:
        """One answer per key; a key that is not there is a ``KeyError``."""
        try:
            kvstore = self._open()
            answers = [kvstore.read(key) for key in keys]
        except Exception as error:
            return [error] * len(keys)
        return [_outcome(answer, _value) for answer in answers]

    def arrays(self, names: Sequence[str]) -> list[NDArray[Any] | Exception]:
        """These arrays, whole, through TensorStore's own zarr drivers; one answer per name."""
        specs = [{"driver": "auto", "kvstore": {**self._kvstore, "path": f"{name}/" if name else ""}} for name in names]
        opened = [self._tensorstore.open(spec, context=self._context, read=True) for spec in specs]
        reads = [_outcome(opening, lambda array: array.read()) for opening in opened]
        return [read if isinstance(read, Exception) else _outcome(read, np.asarray) for read in reads]

    def _open(self) -> Any:
        return self._tensorstore.KvStore.open(self._kvstore, context=self._context).result()


def _value(found: Any) -> bytes | Exception:
    return bytes(found.value) if found.state == "value" else KeyError("it finds no such key")


def _outcome(future: Any, use: Callable[[Any], Any]) -> Any:
    """What a future gives, used; or the exception it ends in."""
    try:
        return use(future.result())
    except Exception as error:
        return error
