"""How keys, sizes, shapes and times are spelled for people.

A key is any bytes, and whoever wrote a checkpoint chose them: printed as they are, they could steer the terminal. So a
key is spelled as UTF-8 text in which a backslash is doubled and every byte that does not belong to a printable
character is ``\\xNN``. The spelling can be undone, and the commands accept it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime

_ESCAPE = re.compile(rb"\\(?:\\|x([0-9a-fA-F]{2}))")
_UNITS = ("kB", "MB", "GB", "TB", "PB", "EB")


def spelled(key: bytes | str) -> str:
    """``b"a\\0b"`` as ``a\\x00b``; leaf names, which are ``str``, by the same rule."""
    text = key if isinstance(key, str) else key.decode("utf-8", "surrogateescape")
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(map(_spelled_character, text))


def _spelled_character(character: str) -> str:
    if character == "\\":
        return "\\\\"
    if character.isprintable():
        return character
    if "\udc80" <= character <= "\udcff":  # a byte that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogatepass"))


def unspelled(text: str) -> bytes:
    """The key that :func:`spelled` gives as ``text``; what is not an escape stands for itself."""
    return _ESCAPE.sub(
        lambda match: bytes.fromhex(match[1].decode()) if match[1] else b"\\", text.encode("utf-8", "surrogateescape")
    )


def printable(text: str) -> str:
    """Foreign text for the terminal: lines stay lines, every other control character is escaped."""
    return "".join(c if c.isprintable() or c == "\n" else _spelled_character(c) for c in text)


def size(nbytes: int) -> str:
    """``512 B``, ``1.2 MB``: powers of 1000, two or three digits that count."""
    if nbytes < 1000:
        return f"{nbytes} B"
    amount = float(nbytes)
    for unit in _UNITS:
        amount /= 1000
        if amount < 999.5 or unit == _UNITS[-1]:
            break
    return f"{amount:.1f} {unit}" if amount < 99.95 else f"{amount:.0f} {unit}"


def count(number: int, singular: str, plural: str | None = None) -> str:
    """``1 key``, ``12,000 keys``."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def array_type(dtype: str, shape: Sequence[int]) -> str:
    """``float32[784, 128]``; ``int32`` for a single number."""
    return f"{dtype}[{', '.join(map(str, shape))}]" if shape else dtype


def moment(time: datetime) -> str:
    """``2026-01-31 12:00:00 UTC``."""
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
