"""Results as JSON documents: the fields of a result are the keys, and ``command`` comes first.

Times are RFC 3339 in UTC. Bytes of a value are ``base64``. Arrays are nested lists with their ``dtype`` and ``shape``;
what JSON has no number for is a string (``"NaN"``, ``"Infinity"``, ``"1+2j"``).
"""

from __future__ import annotations

import base64
import json
import math
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from typing import Any

from ocdbt_py.view.results import ArrayValue, PlainValue, RawValue, Result, Verification, type_name


def as_json(result: Result) -> str:
    """One JSON document, in ASCII, indented."""
    return json.dumps(document(result), indent=2, allow_nan=False)


def document(result: Result) -> dict[str, Any]:
    """The result as dicts, lists, strings, numbers, booleans and None."""
    head = {"command": result.command, "url": result.url}
    match result:
        case ArrayValue():
            value = result.value
            return {
                **head,
                "name": result.name,
                "type": "array",
                "dtype": value.dtype.name,
                "shape": list(value.shape),
                "value": _plain(value.tolist()),
            }
        case PlainValue():
            return {**head, "name": result.name, "type": type_name(result.value), "value": _plain(result.value)}
        case RawValue():
            encoded = base64.b64encode(result.value).decode("ascii")
            return {**head, "name": result.name, "type": "bytes", "nbytes": len(result.value), "base64": encoded}
        case Verification():
            return {**head, "ok": result.ok, **_plain(result)}
    return {**head, **_plain(result)}


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        shown = [field.name for field in fields(value) if "text_only" not in field.metadata]
        return {name: _plain(getattr(value, name)) for name in shown}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, complex):
        return str(value).strip("()")
    return _plain(float(value))  # a number of ml_dtypes
