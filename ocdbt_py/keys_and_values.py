"""What callers may pass for keys, values and parts of values, as the engine wants it: the one place that converts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ocdbt_py.engine.tree import Found
from ocdbt_py.errors import InvalidArgumentError, InvalidTypeError
from ocdbt_py.format.datafile import Location
from ocdbt_py.storage.protocol import Buffer

Key = bytes | str
Request = Key | tuple[Key, int, int | None]
"""A key, or a key with the first and the end of the bytes wanted of its value."""


def encoded_key(key: object) -> bytes:
    """A key as bytes; ``str`` as UTF-8."""
    if isinstance(key, bytes):
        return key
    if isinstance(key, str):
        return key.encode("utf-8")
    if isinstance(key, bytearray | memoryview):
        return bytes(key)
    raise InvalidTypeError(f"A key is bytes or str, not {type(key).__name__}")


def value_buffer(value: object) -> Buffer:
    """Any contiguous buffer as bytes in C order, not copied; one that is not contiguous is copied into C order."""
    if isinstance(value, bytes | bytearray):
        return value
    if isinstance(value, str):
        raise InvalidTypeError("A value is bytes or another buffer, not str; encode it first")
    try:
        view = memoryview(value)  # type: ignore[arg-type]
    except TypeError:
        raise InvalidTypeError(f"A value is bytes or another buffer, not {type(value).__name__}") from None
    return view.cast("B") if view.c_contiguous and view.nbytes else view.tobytes()


def pairs_of(values: Any, named: Mapping[str, Buffer]) -> Iterator[tuple[Key, Buffer]]:
    """What ``update`` of a mapping takes: a mapping, or something with ``keys``, or pairs; and keywords."""
    if isinstance(values, Mapping):
        yield from values.items()
    elif hasattr(values, "keys"):
        yield from ((key, values[key]) for key in values.keys())  # noqa: SIM118 - it need not be iterable
    else:
        yield from values
    yield from named.items()


def full_pairs(prefix: bytes, values: Any, named: Mapping[str, Buffer]) -> dict[bytes, Buffer]:
    """The same as the engine wants it, with ``prefix`` before each key; of equal keys the last one counts."""
    if type(values) is dict and not prefix and not named and _all_bytes(values) and _all_bytes(values.values()):
        return values  # as most are, and then a hundred thousand need no look at each
    return {prefix + encoded_key(key): value_buffer(value) for key, value in pairs_of(values, named)}


def _all_bytes(found: Iterable[object]) -> bool:
    return set(map(type, found)) <= {bytes}


def size_of(found: bytes | Location) -> int:
    return found.length if isinstance(found, Location) else len(found)


def value_range(key: Key, found: Found, start: int, stop: int | None) -> tuple[int, int]:
    """The bytes ``[low, high)`` that are meant; negative ``start``: that many at the end. Nothing is clipped."""
    assert found is not None
    size = size_of(found)
    low = size + start if start < 0 else start
    high = size if stop is None else stop
    if not 0 <= low <= high <= size or (start < 0 and stop is not None):
        raise InvalidArgumentError(
            f"Bytes [{start}, {'end' if stop is None else stop}) are out of range: the value of {encoded_key(key)!r} "
            f"has {size}",
            key=encoded_key(key),
        )
    return low, high
