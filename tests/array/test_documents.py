from __future__ import annotations

import pytest

from ocdbt_py.array.documents import decode_object
from ocdbt_py.errors import CorruptDataError


def test_an_object_is_decoded_as_json_has_it() -> None:
    assert decode_object(b'{"a": [1, 2.5, null, "\xc3\xa9"]}', path="f", limit=100) == {"a": [1, 2.5, None, "é"]}
    assert decode_object(memoryview(b"\xef\xbb\xbf{}"), path="f", limit=100) == {}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b'{"a": 1, "b": {"c": 1, "c": 1}}', "twice"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": -Infinity}', "Infinity is not JSON"),
        (b'{"a": "\xff"}', "not a JSON document"),
        (b"[1]", "holds list"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"a": ' + b"1" * 5000 + b"}", "not a JSON document"),
        (b" " * 1_000_001, "1000001 bytes"),
    ],
)
def test_anything_else_is_corrupt_data_with_its_path(data: bytes, reason: str) -> None:
    with pytest.raises(CorruptDataError, match=reason) as caught:
        decode_object(data, path="item/_METADATA", limit=1_000_000)
    assert caught.value.path == "item/_METADATA"
