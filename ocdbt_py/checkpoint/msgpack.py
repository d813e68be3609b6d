"""msgpack as the aggregate files of old releases use it, read strictly.

    nil, booleans, integers, floats, str, bin, arrays, and maps with str keys
    ext 1    an array: a msgpack array of shape, name of the dtype, and the elements in C order
    ext 2    a complex number: a msgpack array of two floats
    ext 3    a NumPy number, as ext 1
    ext 4    a tuple: a msgpack array

No count is believed: what the bytes at hand cannot hold is refused before anything is allocated, and the decoder keeps
its own stack. Whatever else is wrong is :class:`CorruptDataError` with the offset.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from ocdbt_py.errors import CorruptDataError

__all__ = ["StoredArray", "decode_msgpack"]

MAX_DEPTH: Final = 1000
"""Containers inside each other."""

_NUMBERS: Final = {
    0xCA: struct.Struct(">f"),
    0xCB: struct.Struct(">d"),
    0xCC: struct.Struct(">B"),
    0xCD: struct.Struct(">H"),
    0xCE: struct.Struct(">I"),
    0xCF: struct.Struct(">Q"),
    0xD0: struct.Struct(">b"),
    0xD1: struct.Struct(">h"),
    0xD2: struct.Struct(">i"),
    0xD3: struct.Struct(">q"),
}
_CONSTANTS: Final = {0xC0: None, 0xC2: False, 0xC3: True}
# code -> bytes of the count that follows it
_BIN: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4}
_EXT: Final = {0xC7: 1, 0xC8: 2, 0xC9: 4}
_FIXED_EXT: Final = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}  # code -> length
_STR: Final = {0xD9: 1, 0xDA: 2, 0xDB: 4}
_ARRAY: Final = {0xDC: 2, 0xDD: 4}
_MAP: Final = {0xDE: 2, 0xDF: 4}


class StoredArray(NamedTuple):
    """An array, or with ``is_number`` a NumPy number, as the file has it: neither shape nor name are checked."""

    shape: tuple[int, ...]
    dtype: str
    data: memoryview
    is_number: bool


def decode_msgpack(data: bytes, path: str) -> Any:
    """The value in ``data``: dicts, lists, tuples, numbers, ``str``, None, memoryviews and :class:`StoredArray`.

    ``path`` is the file, for messages. Arrays and memoryviews share the memory of ``data``.
    """
    reader = _Reader(memoryview(data), 0, path, plain=False)
    value = reader.value()
    if reader.at != len(data):
        raise reader.error("there is something behind the value")
    return value


class _Open(NamedTuple):
    """A container whose items, ``size`` of them, are being read."""

    size: int
    make: Callable[[list[Any]], Any]
    items: list[Any]


class _Reader:
    """``plain``: without extension types, as what they hold themselves. ``start``: where the data is in the file."""

    def __init__(self, data: memoryview, start: int, path: str, *, plain: bool) -> None:
        self._data = data
        self._start = start
        self._path = path
        self._plain = plain
        self.at = 0

    def error(self, what: str) -> CorruptDataError:
        return CorruptDataError(
            f"{self._path} is not msgpack as Orbax wrote it: {what}", path=self._path, offset=self._start + self.at
        )

    def value(self) -> Any:
        opened: list[_Open] = []
        while True:
            value = self._item()
            if isinstance(value, _Open):
                if value.size:
                    if len(opened) == MAX_DEPTH:
                        raise self.error("it is nested too deeply")
                    opened.append(value)
                    continue
                value = value.make([])
            while opened:
                top = opened[-1]
                top.items.append(value)
                if len(top.items) < top.size:
                    break
                value = opened.pop().make(top.items)
            else:
                return value

    def _item(self) -> Any:
        """The next value, or a container that begins here."""
        code = self._take(1)[0]
        if code < 0x80:
            return code
        if code < 0x90:
            return self._open_map(code & 0x0F)
        if code < 0xA0 or code in _ARRAY:
            return self._open(self._size(code), _same)
        if code < 0xC0:
            return self._text(code & 0x1F)
        if code >= 0xE0:
            return code - 0x100
        if code in _CONSTANTS:
            return _CONSTANTS[code]
        if code in _NUMBERS:
            number = _NUMBERS[code]
            return number.unpack(self._take(number.size))[0]
        if code in _STR:
            return self._text(self._count(_STR[code]))
        if code in _BIN:
            return self._take(self._count(_BIN[code]))
        if code in _MAP:
            return self._open_map(self._count(_MAP[code]))
        if code in _FIXED_EXT:
            return self._extension(_FIXED_EXT[code])
        if code in _EXT:
            return self._extension(self._count(_EXT[code]))
        self.at -= 1
        raise self.error(f"no value begins with {code:#x}")

    def _take(self, count: int) -> memoryview:
        found = self._data[self.at : self.at + count]
        if len(found) < count:
            raise self.error(f"{count} bytes should follow, and {len(found)} do")
        self.at += count
        return found

    def _count(self, size: int) -> int:
        return int.from_bytes(self._take(size), "big")

    def _size(self, code: int) -> int:
        """How many values an array has that begins with ``code``."""
        return self._count(_ARRAY[code]) if code in _ARRAY else code & 0x0F

    def _text(self, length: int) -> str:
        data = self._take(length)
        try:
            return str(data, "utf-8")
        except UnicodeDecodeError as error:
            raise self.error(f"a string is not UTF-8 ({error.reason})") from None

    def _open(self, count: int, make: Callable[[list[Any]], Any]) -> _Open:
        if count > len(self._data) - self.at:
            raise self.error(f"{count} values should follow in {len(self._data) - self.at} bytes")
        return _Open(count, make, [])

    def _open_map(self, count: int) -> _Open:
        return self._open(2 * count, self._map)

    def _map(self, items: list[Any]) -> dict[str, Any]:
        keys = items[::2]
        if not all(type(key) is str for key in keys):
            raise self.error("a key of a map is not a string")
        found = dict(zip(keys, items[1::2], strict=True))
        if len(found) < len(keys):
            raise self.error("a key occurs twice in one map")
        return found

    def _extension(self, length: int) -> Any:
        kind = self._take(1)[0]
        if self._plain:
            raise self.error("an extension inside another")
        if kind == 4:
            end = self.at + length
            code = self._take(1)[0]
            if not (0x90 <= code < 0xA0 or code in _ARRAY):
                raise self.error("a tuple that is no array")
            return self._open(self._size(code), lambda items: self._tuple(items, end))
        inside = _Reader(self._take(length), self._start + self.at - length, self._path, plain=True)
        value = inside.value()
        if inside.at != length or type(value) is not list:
            raise self.error("an extension that is no array")
        match kind, value:
            case 1 | 3, [list(shape), str() | memoryview() as name, memoryview() as data] if _is_shape(shape):
                text = name if isinstance(name, str) else bytes(name).decode("latin-1")
                return StoredArray(tuple(shape), text, data, kind == 3)
            case 2, [float() | int() as real, float() | int() as imaginary]:
                return complex(real, imaginary)
        raise self.error(f"an extension of type {kind} that is none of those known")

    def _tuple(self, items: list[Any], end: int) -> tuple[Any, ...]:
        if self.at != end:
            raise self.error("a tuple that is longer or shorter than said")
        return tuple(items)


def _same(items: list[Any]) -> Any:
    return items


def _is_shape(shape: list[Any]) -> bool:
    return all(type(size) is int and size >= 0 for size in shape)
