"""What callers pass to ``update``, as the engine gets it."""

from __future__ import annotations

from collections import UserDict
from typing import Any

import pytest

from ocdbt_py.errors import InvalidTypeError
from ocdbt_py.keys_and_values import full_pairs


@pytest.mark.parametrize("prefix", [b"", b"below/"])
@pytest.mark.parametrize(
    "values",
    [
        {b"a": b"1", b"b": b"2"},
        {"a": b"1", b"b": b"2"},
        {b"a": bytearray(b"1"), b"b": memoryview(b"2")},
        UserDict({b"a": b"1", b"b": b"2"}),
        [(b"a", b"0"), (b"b", b"2"), ("a", b"1")],
    ],
    ids=["bytes", "str", "buffers", "mapping", "pairs"],
)
def test_pairs_become_full_keys_and_buffers(prefix: bytes, values: Any) -> None:
    assert full_pairs(prefix, values, {}) == {prefix + b"a": b"1", prefix + b"b": b"2"}
    assert full_pairs(prefix, values, {"b": b"3"}) == {prefix + b"a": b"1", prefix + b"b": b"3"}


@pytest.mark.parametrize("values", [{1: b""}, {b"k": 1}, {b"k": "text"}, {b"k": b"v", None: b""}])
def test_other_keys_and_values_are_refused(values: Any) -> None:
    with pytest.raises(InvalidTypeError):
        full_pairs(b"", values, {})
