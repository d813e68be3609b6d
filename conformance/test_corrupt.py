"""Damaged databases: what TensorStore accepts we accept with the same answers, what it rejects we reject.

One difference is meant: where a value's data file is missing TensorStore answers with an empty value, and we raise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest

import ocdbt_py
from conformance.corpus import Case, corrupt_cases

CASES = corrupt_cases()
SILENTLY_EMPTY = {"leaf_indirect_missing_file"}


def shown(key: bytes) -> str:
    return key.hex() if len(key) <= 256 else f"sha256:{hashlib.sha256(key).hexdigest()}:{len(key)}"


def attempt(call: Callable[[], Any]) -> Any:
    """What a call gives, or an ``error`` as the corpus writes it; anything but our own errors escapes."""
    try:
        return {"ok": call()}
    except ocdbt_py.NotFoundError as error:
        return {"error": "not found", "message": str(error)}
    except (ocdbt_py.CorruptDataError, ocdbt_py.ConfigMismatchError) as error:
        return {"error": "corrupt", "message": str(error)}


def judged(found: Any) -> Any:
    """An outcome without the wording of its error."""
    if isinstance(found, dict) and "error" in found:
        return "rejected"
    if isinstance(found, dict):
        return {key: judged(value) for key, value in found.items()}
    return found


def read_each(case: Case) -> dict[str, Any]:
    answers = {}
    with ocdbt_py.open(case.db) as db:
        for key in db:
            found = attempt(lambda key=key: db[key])  # type: ignore[misc]
            if "ok" in found:
                value = found["ok"]
                found = {"state": "value", "len": len(value), "sha256": hashlib.sha256(value).hexdigest()}
            answers[shown(key)] = found
    return answers


def look_up(case: Case) -> dict[str, Any]:
    def one(key: bytes) -> str:
        with ocdbt_py.open(case.db) as db:
            value = db.get(key)
        if value is None:
            return "missing"
        return f"value:{value.hex()}" if len(value) < 40 else "value"

    answers = {}
    for key in (b"a", b"b", b"c", b"zz"):
        found = attempt(lambda key=key: one(key))  # type: ignore[misc]
        answers[shown(key)] = found.get("ok", found)
    return answers


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_we_accept_and_reject_what_tensorstore_does(case: Case) -> None:
    def listed(version: int | None = None) -> list[str]:
        with ocdbt_py.open(case.db, version=version) as db:
            return [shown(key) for key in db]

    probe = case.expected["probe"]
    if probe["list"] == {"ok": []} and not (case.db / "manifest.ocdbt").exists():
        with pytest.raises(ocdbt_py.NotFoundError):  # TensorStore lists a database that is not there as empty
            ocdbt_py.open(case.db)
        return
    assert judged(attempt(listed)) == judged(probe["list"])
    for generation in (1, 2):
        assert judged(attempt(lambda g=generation: listed(g))) == judged(probe[f"version_{generation}"])  # type: ignore[misc]
    found = {"lookup": attempt(lambda: look_up(case))}
    if "read" in probe:
        found["read"] = attempt(lambda: read_each(case))
    if case.name in SILENTLY_EMPTY:
        assert judged(found["read"]) == {"ok": {"61": "rejected"}}
        return
    for kind, answer in found.items():
        assert judged(answer) == judged(probe[kind]), kind
