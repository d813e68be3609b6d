"""``ocdbt verify URL``: read everything twice, with this library and with TensorStore, and compare byte by byte.

Compared are the keys of one version, the value of each, and of a checkpoint each array as TensorStore's zarr
driver decodes it. OCDBT keeps no checksum of a value: bytes that both read, and read alike, may still be others than
were written. TensorStore is asked about local directories only; elsewhere, and where it is not installed, everything is
still read once.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ocdbt_py.array.dtypes import low_bits
from ocdbt_py.array.lazy import LazyArray
from ocdbt_py.backends import LocalStorage
from ocdbt_py.checkpoint.checkpoint import Checkpoint
from ocdbt_py.cli.leaves import Leaf, leaves
from ocdbt_py.cli.oracle import Oracle
from ocdbt_py.cli.target import Target, add_target_arguments, open_target
from ocdbt_py.database import Database
from ocdbt_py.errors import CorruptDataError
from ocdbt_py.view.results import Finding, Verification
from ocdbt_py.view.spelling import count, spelled

T = TypeVar("T")

_BATCH_BYTES = 16 << 20
_BATCH_LENGTH = 4096


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_target_arguments(parser)


def run(arguments: argparse.Namespace) -> Verification:
    target = open_target(arguments)
    oracle, note = _oracle(target)
    comparison = _Comparison(oracle)
    if target.database is not None:
        comparison.keys(target.database)
    if target.checkpoint is not None:
        comparison.arrays(target.checkpoint)
    return Verification(
        url=target.url,
        kind=target.kind,
        version=None if target.database is None else target.database.version.generation,
        keys=comparison.key_count,
        key_bytes=comparison.key_bytes,
        arrays=comparison.array_count,
        array_bytes=comparison.array_bytes,
        other=None if oracle is None else oracle.name,
        note=note,
        findings=tuple(comparison.findings),
    )


def _oracle(target: Target) -> tuple[Oracle | None, str | None]:
    """TensorStore opened at the same version, or why not."""
    if target.database is None:
        return None, "Not compared with TensorStore: there is no database."
    if not isinstance(target.inner.storage, LocalStorage):
        return None, "Not compared with TensorStore: it is asked about local directories only."
    if target.inner.prefix:
        return None, "Not compared with TensorStore: only whole databases are, not what lies below a prefix."
    try:
        return Oracle(target.inner.path, target.database.version.generation), None
    except ImportError:
        return None, "Not compared with TensorStore: it is not installed (pip install tensorstore)."


@dataclass(slots=True)
class _Comparison:
    """What was read so far, and what was found."""

    oracle: Oracle | None
    findings: list[Finding] = field(default_factory=list)
    key_count: int = 0
    key_bytes: int = 0
    array_count: int = 0
    array_bytes: int = 0

    def keys(self, database: Database) -> None:
        """Every key, and its value."""
        ours = []
        try:
            for batch in _batches(database.scan(), lambda entry: entry.size):
                keys = [entry.key for entry in batch]
                ours += keys
                self._values(database, keys)
        except CorruptDataError as error:  # a node: what lies below it cannot be listed
            self._found("the keys", str(error))
            return
        theirs = self.oracle.keys() if self.oracle is not None else ours
        if isinstance(theirs, Exception):
            self._found("the keys", f"TensorStore cannot list them: {theirs}")
        elif ours != theirs:
            for key in sorted(set(theirs).difference(ours)):
                self._found(spelled(key), "only TensorStore lists this key")
            for key in sorted(set(ours).difference(theirs)):
                self._found(spelled(key), "TensorStore does not list this key")

    def _values(self, database: Database, keys: Sequence[bytes]) -> None:
        ours = _read(database, keys)
        theirs = self.oracle.values(keys) if self.oracle is not None else ours
        for key, mine, other in zip(keys, ours, theirs, strict=True):
            self.key_count += 1
            self.key_bytes += 0 if isinstance(mine, Exception) else len(mine)
            self._compare(spelled(key), mine, other, _unequal_values)

    def arrays(self, checkpoint: Checkpoint) -> None:
        """Every array and number, whole, decoded."""
        try:
            found = [leaf for leaf in leaves(checkpoint) if leaf.info is not None]
        except CorruptDataError as error:
            self._found("the leaves", str(error))
            return
        for batch in _batches(found, lambda leaf: leaf.item.nbytes or 0):
            ours = [_read_array(checkpoint, leaf) for leaf in batch]
            theirs = self.oracle.arrays([leaf.name for leaf in batch]) if self.oracle is not None else ours
            for leaf, mine, other in zip(batch, ours, theirs, strict=True):
                self.array_count += 1
                self.array_bytes += 0 if isinstance(mine, Exception) else mine.nbytes
                self._compare(leaf.item.name, mine, other, _unequal_arrays)

    def _compare(
        self, subject: str, mine: T | Exception, other: T | Exception, difference: Callable[[T, T], str | None]
    ) -> None:
        if isinstance(mine, Exception):
            self._found(subject, str(mine))
        elif isinstance(other, Exception):
            self._found(subject, f"TensorStore cannot read it: {other}")
        elif (different := difference(mine, other)) is not None:
            self._found(subject, f"ocdbt_py and TensorStore disagree: {different}")

    def _found(self, subject: str, problem: str) -> None:
        self.findings.append(Finding(subject, problem))


def _batches(things: Iterable[T], nbytes_of: Callable[[T], int]) -> Iterator[list[T]]:
    """Groups whose bytes fit into memory together."""
    batch: list[T] = []
    nbytes = 0
    for thing in things:
        batch.append(thing)
        nbytes += nbytes_of(thing)
        if nbytes >= _BATCH_BYTES or len(batch) == _BATCH_LENGTH:
            yield batch
            batch, nbytes = [], 0
    if batch:
        yield batch


def _read(database: Database, keys: Sequence[bytes]) -> list[bytes] | list[bytes | Exception]:
    """The values; after an error one by one, so that it is known which of them are damaged."""
    try:
        return database.read_many(keys)
    except CorruptDataError:
        return [_read_one(database, key) for key in keys]


def _read_one(database: Database, key: bytes) -> bytes | Exception:
    try:
        return database.read(key)
    except CorruptDataError as error:
        return error


def _read_array(checkpoint: Checkpoint, leaf: Leaf) -> NDArray[Any] | Exception:
    assert leaf.info is not None
    try:
        value = checkpoint[leaf.name]
        return value.read() if isinstance(value, LazyArray) else np.asarray(value, leaf.info.dtype)
    except CorruptDataError as error:
        return error


def _unequal_values(mine: bytes, other: bytes) -> str | None:
    return None if mine == other else f"values of {len(mine):,} and {len(other):,} bytes"


def _unequal_arrays(mine: NDArray[Any], other: NDArray[Any]) -> str | None:
    """What is different about two arrays, in words; None if nothing is, to the last bit."""
    if mine.dtype.name != other.dtype.name or mine.shape != other.shape:
        return f"{mine.dtype.name}{list(mine.shape)} and {other.dtype.name}{list(other.shape)}"
    bits = low_bits(mine.dtype)
    unequal = np.count_nonzero(_bytes(mine, bits) != _bytes(other, bits))
    return f"{count(int(unequal), 'byte')} of {mine.nbytes:,}" if unequal else None


def _bytes(array: NDArray[Any], bits: int | None) -> NDArray[np.uint8]:
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return flat if bits is None else flat & np.uint8(bits)
