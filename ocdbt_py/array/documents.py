"""JSON documents of a checkpoint: the one decoder, and it fails in one way.

A document is untrusted. Whatever is wrong with it (bad UTF-8, bad JSON, nesting that would exhaust the stack, numbers
of a million digits, a key that occurs twice, a literal that JSON does not have) is ``CorruptDataError``. Memory stays
within a small multiple of the document, and the caller bounds the document.
"""

from __future__ import annotations

import json
import math
from typing import Any, Final, NoReturn

from ocdbt_py.errors import CorruptDataError, UnsupportedError

__all__ = [
    "choice",
    "decode_object",
    "integer",
    "integers",
    "integers_text",
    "member",
    "named",
    "number_text",
    "only",
    "shown",
]

_MISSING: Final = object()


def decode_object(data: bytes | memoryview, *, path: str, limit: int) -> dict[str, Any]:
    """The JSON object in ``data``, at most ``limit`` bytes long; ``path`` is its file or key, for messages."""
    if len(data) > limit:
        raise CorruptDataError(f"{path} has {len(data)} bytes; such a document has at most {limit}", path=path)
    try:
        document = _DECODER.decode(str(data, "utf-8").removeprefix("\ufeff"))
    except RecursionError as error:
        raise CorruptDataError(f"{path} is nested too deeply", path=path) from error
    except ValueError as error:  # UnicodeDecodeError, JSONDecodeError and int() of too many digits are such
        raise CorruptDataError(f"{path} is not a JSON document: {str(error)[:200]}", path=path) from error
    if not isinstance(document, dict):
        raise CorruptDataError(f"{path} holds {type(document).__name__}, not a JSON object", path=path)
    return document


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("a key occurs twice in one object")
    return members


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_constant)


def member(document: dict[str, Any], name: str) -> Any:
    """A member that must be there."""
    value = document.get(name, _MISSING)
    if value is _MISSING:
        raise CorruptDataError(f"{name} is missing")
    return value


def choice(document: dict[str, Any], name: str, choices: tuple[str, ...], default: object = _MISSING) -> Any:
    """A member that has one of a few values; it must be there unless there is a default."""
    value = member(document, name) if default is _MISSING else document.get(name, default)
    if value not in choices:
        raise CorruptDataError(f"{name} is not one of {', '.join(choices)}")
    return value


def integer(value: object, name: str, lowest: int, highest: int) -> int:
    """A whole number, which may be spelled ``4.0``."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
        raise CorruptDataError(f"{name} holds {shown(value)}, not a whole number from {lowest} to {highest}")
    return value


def integers(document: dict[str, Any], name: str, lowest: int, highest: int) -> tuple[int, ...]:
    """A member that is a list of whole numbers."""
    values = member(document, name)
    if not isinstance(values, list):
        raise CorruptDataError(f"{name} is not a list: {shown(values)}")
    return tuple(integer(value, name, lowest, highest) for value in values)


def named(value: object, what: str, known: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    """The name and configuration of an object that is nothing but these."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise CorruptDataError(f"{what} is not an object with a name: {shown(value)}")
    only(value, what, "name", "configuration")
    name, configuration = value["name"], value.get("configuration", {})
    if name not in known:
        raise UnsupportedError(f"{what} {name[:50]!r} is not supported. Supported are: {', '.join(known)}")
    if not isinstance(configuration, dict):
        raise CorruptDataError(f"configuration of {what} {name} is not an object: {shown(configuration)}")
    return name, configuration


def only(members: dict[str, Any], what: str, *known: str) -> None:
    """Refuse members that are not known."""
    unknown = members.keys() - set(known)
    if unknown:
        raise CorruptDataError(f"{what} has unknown members: {', '.join(sorted(unknown))[:100]}")


def integers_text(values: tuple[int, ...]) -> str:
    return f"[{','.join(map(str, values))}]"


def number_text(value: bool | int | float | complex) -> str:
    """A number as the reference's JSON library writes it, not-a-number and the infinities as strings.

    That library changes to an exponent at 1e15, Python at 1e16. In about one of 300 doubles of 17 digits its last digit
    is not the nearest; ours is.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, complex):
        return f"[{number_text(value.real)},{number_text(value.imag)}]"
    if isinstance(value, int):
        return str(value)
    if not math.isfinite(value):
        return '"NaN"' if math.isnan(value) else '"Infinity"' if value > 0 else '"-Infinity"'
    if not 1e15 <= abs(value) < 1e16:
        return repr(value)
    sign, digits = ("-", repr(-value)) if value < 0 else ("", repr(value))
    digits = digits.replace(".", "").rstrip("0")
    return f"{sign}{digits[0]}{'.' if len(digits) > 1 else ''}{digits[1:]}e+15"


def shown(value: object) -> str:
    """Any value, short enough for a message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
