"""JSON documents of a checkpoint: the one decoder, and it fails in one way.

A document is untrusted. Whatever is wrong with it (bad UTF-8, bad JSON, nesting that would exhaust the stack, numbers
of a million digits, a key that occurs twice, a literal that JSON does not have) is ``CorruptDataError``. Memory stays
within a small multiple of the document, and the caller bounds the document.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

from ocdbt_py.errors import CorruptDataError

__all__ = ["decode_object"]


def decode_object(data: bytes | memoryview, *, path: str, limit: int) -> dict[str, Any]:
    """The JSON object in ``data``, at most ``limit`` bytes long; ``path`` is its file or key, for messages."""
    if len(data) > limit:
        raise CorruptDataError(f"{path} has {len(data)} bytes; such a document has at most {limit}", path=path)
    try:
        document = json.loads(
            str(data, "utf-8").removeprefix("\ufeff"), object_pairs_hook=_object, parse_constant=_no_constant
        )
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
