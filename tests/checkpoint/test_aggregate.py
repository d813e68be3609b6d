"""The aggregate file of old releases: its msgpack, the arrays in it, and bytes that nobody would have written."""

from __future__ import annotations

import json
import random
import struct
import tracemalloc
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

from ocdbt_py.checkpoint.aggregate import decode_aggregate
from ocdbt_py.checkpoint.metadata import ValueType
from ocdbt_py.checkpoint.msgpack import MAX_DEPTH, StoredArray, decode_msgpack
from ocdbt_py.checkpoint.restore import restore_place
from ocdbt_py.errors import CorruptDataError, OcdbtError, UnsupportedError
from ocdbt_py.storage.location import Place
from ocdbt_py.testing.faulty import FaultyStorage


def text(value: str) -> bytes:
    data = value.encode()
    return (bytes([0xA0 | len(data)]) if len(data) < 32 else b"\xda" + struct.pack(">H", len(data))) + data


def extension(kind: int, payload: bytes) -> bytes:
    return b"\xc8" + struct.pack(">HB", len(payload), kind) + payload


def array(shape: bytes, dtype: str, data: bytes, kind: int = 1) -> bytes:
    return extension(kind, b"\x93" + shape + text(dtype) + b"\xc5" + struct.pack(">H", len(data)) + data)


def tree(**leaves: bytes) -> bytes:
    return bytes([0x80 | len(leaves)]) + b"".join(text(name) + value for name, value in leaves.items())


THREE = array(b"\x91\x03", "int32", struct.pack("<3i", 1, 2, 3))


@pytest.mark.parametrize(
    ("data", "value"),
    [
        ("00", 0),
        ("7f", 127),
        ("e0", -32),
        ("cc ff", 255),
        ("cd 0100", 256),
        ("ce ffffffff", 2**32 - 1),
        ("cf ffffffffffffffff", 2**64 - 1),
        ("d0 80", -128),
        ("d1 8000", -(2**15)),
        ("d2 80000000", -(2**31)),
        ("d3 8000000000000000", -(2**63)),
        ("ca 3f000000", 0.5),
        ("cb 3fe0000000000000", 0.5),
        ("c0", None),
        ("c2", False),
        ("c3", True),
        ("a1 61", "a"),
        ("d9 01 61", "a"),
        ("da 0001 61", "a"),
        ("db 00000001 61", "a"),
        ("c4 01 61", b"a"),
        ("c6 00000001 61", b"a"),
        ("90", []),
        ("92 01 91 02", [1, [2]]),
        ("dc 0001 01", [1]),
        ("dd 00000001 01", [1]),
        ("80", {}),
        ("de 0001 a1 61 01", {"a": 1}),
        ("df 00000001 a1 61 80", {"a": {}}),
        ("c7 03 04 92 01 02", (1, 2)),
        ("d4 04 90", ()),
        ("c7 07 04 92 c7 02 04 91 05 06", ((5,), 6)),
        ("c7 13 02 92 cb 3ff0000000000000 cb 4000000000000000", 1 + 2j),
    ],
)
def test_every_form_of_a_value_is_decoded(data: str, value: Any) -> None:
    found = decode_msgpack(bytes.fromhex(data), "checkpoint")
    assert found == value
    assert type(found) is type(value) or isinstance(found, memoryview)


def test_arrays_share_the_memory_of_the_file() -> None:
    found = decode_msgpack(THREE, "checkpoint")
    assert isinstance(found, StoredArray)
    assert (found.shape, found.dtype, found.is_number) == ((3,), "int32", False)
    assert found.data.obj is THREE


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("", "should follow"),
        ("c1", "0xc1"),
        ("00 00", "behind"),
        ("91", "should follow"),
        ("dd ffffffff", "4294967295 values should follow in 0 bytes"),
        ("df 80000000 a1 61", "values should follow"),
        ("c6 ffffffff 00", "should follow"),
        ("a1 ff", "not UTF-8"),
        ("81 01 01", "key of a map"),
        ("82 a1 61 01 a1 61 01", "twice"),
        ("d4 05 90", "none of those known"),
        ("d4 01 90", "none of those known"),
        ("c7 02 01 90 00", "no array"),
        ("c7 04 01 c7 01 01 90", "inside another"),
        ("c7 05 04 92 01 02", "longer or shorter"),
        ("c7 02 04 92 01 02", "longer or shorter"),
        ("c7 03 04 c7 00 04", "no array"),
        ("c7 06 01 93 91 ff a0 c4 00", "none of those known"),
    ],
)
def test_whatever_is_wrong_is_corrupt_data_with_the_offset(data: str, reason: str) -> None:
    with pytest.raises(CorruptDataError, match=reason) as caught:
        decode_msgpack(bytes.fromhex(data), "checkpoint")
    assert caught.value.path == "checkpoint"
    assert caught.value.offset is not None


@pytest.mark.parametrize("opening", [b"\x91", b"\x81\xa1a", b"\xc9\x00\x00\x00\x09\x04\x91"])
def test_depth_has_a_bound_that_no_stack_meets_first(opening: bytes) -> None:
    with pytest.raises(CorruptDataError, match=r"too deeply|longer or shorter"):
        decode_msgpack(opening * 100_000 + b"\xc0", "checkpoint")
    deepest = opening * MAX_DEPTH + b"\xc0" if opening[0] != 0xC9 else b"\xc0"
    decode_aggregate(deepest)


def test_paths_of_a_deep_tree_are_bounded() -> None:
    data = b"\x91" * 990 + b"\xdd" + struct.pack(">I", 30_000) + b"\x01" * 30_000
    tracemalloc.start()
    try:
        with pytest.raises(CorruptDataError, match="too deep for its"):
            decode_aggregate(data)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20  # all paths would take four times that
    finally:
        tracemalloc.stop()


def test_leaves_are_told_apart() -> None:
    found = decode_aggregate(
        tree(
            elsewhere=text("PLACEHOLDER://elsewhere"),
            older=text("AGGREGATED://older"),
            text=text("PLACEHOLDER"),
            one=b"\x01",
            number=array(b"\x90", "float32", struct.pack("<f", 0.5), kind=3),
            three=THREE,
            none=b"\xc0",
            lists=b"\x92\x90\x80",
            tuples=b"\xd4\x04\x90",
            raw=b"\xc4\x01a",
        )
    )
    kinds = {".".join(key.name for key in record.path): record.value_type for record in found.records}
    assert kinds == {
        "elsewhere": ValueType.NUMPY_ARRAY,
        "older": ValueType.NUMPY_ARRAY,
        "text": ValueType.STRING,
        "one": ValueType.SCALAR,
        "number": ValueType.SCALAR,
        "three": ValueType.NUMPY_ARRAY,
        "none": ValueType.NONE,
        "lists.0": ValueType.LIST,
        "lists.1": ValueType.DICT,
        "tuples": ValueType.TUPLE,
        "raw": "bytes",
    }
    assert found.inline == {"text", "one", "number", "three"}
    assert found.strings == {"text": "PLACEHOLDER"}
    assert sorted(found.values) == [
        b"number/.zarray",
        b"number/0",
        b"one/.zarray",
        b"one/0",
        b"three/.zarray",
        b"three/0",
    ]


def put(place: Place, data: bytes) -> None:
    place.storage.write(f"{place.path}/checkpoint", [data])


def test_an_array_in_pieces_is_one_array(place: Place) -> None:
    pieces = tree(**{"0": THREE, "1": THREE})
    whole = tree(__msgpack_chunked_array__=b"\xc3", shape=tree(**{"0": b"\x02", "1": b"\x03"}), chunks=pieces)
    put(place, tree(a=whole, b=b"\x05"))
    found = restore_place(place)
    np.testing.assert_equal(found, {"a": np.array([[1, 2, 3]] * 2, np.int32), "b": 5})
    assert found["a"].flags.writeable


def test_a_file_that_holds_all_its_leaves_needs_nothing_beside_it(place: Place) -> None:
    storage = FaultyStorage(place.storage)
    put(place, tree(a=THREE, b=text("x"), c=b"\x92\x01\xc0"))
    watched = Place(storage, place.path, place.url)
    np.testing.assert_equal(restore_place(watched), {"a": np.array([1, 2, 3], np.int32), "b": "x", "c": [1, None]})
    assert storage.operations == {"list": 1, "read": 1}


PIECES = {"0": THREE, "1": array(b"\x91\x01", "int8", b"\1")}
WRONG = {
    "lying shape": (array(b"\x91\x04", "int32", bytes(12)), CorruptDataError, "'x'.*12 bytes"),
    "huge shape": (array(b"\x91\xcf" + b"\x7f" * 8, "int32", b""), CorruptDataError, "'x'"),
    "huge empty shape": (array(b"\x92\x00\xcf" + b"\xff" * 8, "int32", b""), CorruptDataError, "'x'"),
    "rank": (array(b"\xdc\x00\x40" + b"\x01" * 64, "int8", b"\1"), CorruptDataError, "'x'.*shape"),
    "object": (array(b"\x91\x01", "object", bytes(8)), UnsupportedError, "'x'.*object"),
    "class name": (array(b"\x91\x01", "os.system", b"\1"), UnsupportedError, r"'x'.*os\.system"),
    "no boolean": (array(b"\x91\x01", "bool", b"\2"), CorruptDataError, "x/0"),
    "pieces of two kinds": (
        tree(__msgpack_chunked_array__=b"\xc3", shape=tree(**{"0": b"\x04"}), chunks=tree(**PIECES)),
        CorruptDataError,
        "'x'.*pieces",
    ),
    "no pieces": (tree(__msgpack_chunked_array__=b"\xc3"), CorruptDataError, "'x'.*pieces"),
    "raw bytes": (b"\xc4\x01a", UnsupportedError, "'x'.*bytes"),
    "a leaf that is not there": (text("PLACEHOLDER://x"), CorruptDataError, "'x'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_leaf_that_cannot_be_is_named(name: str, place: Place) -> None:
    value, kind, reason = WRONG[name]
    put(place, tree(x=value))
    with pytest.raises(kind, match=reason):
        restore_place(place)


def test_two_leaves_of_one_name_are_refused_in_either_file(place: Place) -> None:
    put(place, tree(**{"a.b": b"\x01", "a": tree(b=b"\x02")}))
    with pytest.raises(CorruptDataError, match=r"Two leaves in checkpoint have the name 'a\.b'"):
        restore_place(place)

    def entry(*names: str) -> Any:
        keys = [{"key": name, "key_type": 2} for name in names]
        return {"key_metadata": keys, "value_metadata": {"value_type": "None", "skip_deserialize": True}}

    document = {"tree_metadata": {"1": entry("a.b"), "2": entry("a", "b")}}
    place.storage.write(f"{place.path}/_METADATA", [json.dumps(document).encode()])
    place.storage.delete(f"{place.path}/checkpoint")
    with pytest.raises(CorruptDataError, match=r"Two leaves in _METADATA have the name 'a\.b'"):
        restore_place(place)


def test_any_changed_bytes_give_a_tree_or_an_error_of_ours(place: Place) -> None:
    choose = random.Random(3)
    data = tree(a=THREE, b=b"\x93\x01\xcb" + bytes(8) + text("x"), c=tree(d=b"\x90", e=text("PLACEHOLDER://c.e")))
    for _ in range(1500):
        changed = bytearray(data)
        for _ in range(choose.randint(1, 4)):
            changed[choose.randrange(len(changed))] = choose.randrange(256)
        put(place, bytes(changed[: choose.randint(1, len(changed))] if choose.random() < 0.2 else changed))
        with suppress(OcdbtError):
            restore_place(place)
