from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocdbt_py.array.codecs import Compressor
from ocdbt_py.array.dtypes import dtype_from_name
from ocdbt_py.array.spec import ArraySpec
from ocdbt_py.array.zarr2 import decode_zarray, encode_zarray
from ocdbt_py.errors import CorruptDataError, UnsupportedError

F4 = np.dtype("f4")

CASES = [
    (
        ArraySpec((4, 6), (2, 3), F4, compressor=Compressor("zstd", 1)),
        '{"chunks":[2,3],"compressor":{"id":"zstd","level":1},"dimension_separator":".","dtype":"<f4",'
        '"fill_value":null,"filters":null,"order":"C","shape":[4,6],"zarr_format":2}',
    ),
    (
        ArraySpec((), (), np.dtype("i8")),
        '{"chunks":[],"compressor":null,"dimension_separator":".","dtype":"<i8",'
        '"fill_value":null,"filters":null,"order":"C","shape":[],"zarr_format":2}',
    ),
    (
        ArraySpec((5,), (7,), np.dtype("f8"), "F", math.nan, Compressor("gzip", 9), "/", ">"),
        '{"chunks":[7],"compressor":{"id":"gzip","level":9},"dimension_separator":"/","dtype":">f8",'
        '"fill_value":"NaN","filters":null,"order":"F","shape":[5],"zarr_format":2}',
    ),
    (
        ArraySpec((0,), (1,), np.dtype("c8"), fill_value=complex(-math.inf, 1.5), compressor=Compressor("bz2", 3)),
        '{"chunks":[1],"compressor":{"id":"bz2","level":3},"dimension_separator":".","dtype":"<c8",'
        '"fill_value":["-Infinity",1.5],"filters":null,"order":"C","shape":[0],"zarr_format":2}',
    ),
    (
        ArraySpec((1,), (1,), np.dtype("?"), fill_value=True, compressor=Compressor("blosc", 5, "zstd", 2, 0)),
        '{"chunks":[1],"compressor":{"blocksize":0,"clevel":5,"cname":"zstd","id":"blosc","shuffle":2},'
        '"dimension_separator":".","dtype":"|b1","fill_value":true,"filters":null,"order":"C","shape":[1],'
        '"zarr_format":2}',
    ),
    (
        ArraySpec((1,), (1,), dtype_from_name("bfloat16"), fill_value=-2.0, compressor=Compressor("zlib", 0)),
        '{"chunks":[1],"compressor":{"id":"zlib","level":0},"dimension_separator":".","dtype":"bfloat16",'
        '"fill_value":-2.0,"filters":null,"order":"C","shape":[1],"zarr_format":2}',
    ),
]


@pytest.mark.parametrize(("spec", "text"), CASES)
def test_spec_and_document_belong_together(spec: ArraySpec, text: str) -> None:
    assert encode_zarray(spec) == text.encode()
    assert decode_zarray(text.encode(), path="w/.zarray") == spec


@given(
    st.lists(st.tuples(st.integers(0, 2**40), st.integers(1, 2**10)), max_size=4),
    st.sampled_from(["bool", "uint8", "int64", "float16", "float64", "complex64", "bfloat16", "int4"]),
    st.sampled_from("CF"),
    st.sampled_from("./"),
    st.sampled_from([None, *(Compressor(name) for name in ("zstd", "zlib", "gzip", "bz2", "blosc"))]),
    st.data(),
)
def test_every_spec_comes_back_from_its_document(
    axes: list[tuple[int, int]],
    name: str,
    order: Any,
    separator: Any,
    compressor: Compressor | None,
    data: st.DataObject,
) -> None:
    numbers = {
        "bool": st.booleans(),
        "uint8": st.integers(0, 255),
        "int64": st.integers(-(2**63), 2**63 - 1),
        "int4": st.integers(-8, 7),
        "complex64": st.complex_numbers(width=64),
    }
    fill = data.draw(st.none() | numbers.get(name, st.floats()))
    spec = ArraySpec(
        tuple(size for size, _ in axes),
        tuple(chunk for _, chunk in axes),
        dtype_from_name(name),
        order,
        fill,
        compressor,
        separator,
    )
    again = decode_zarray(encode_zarray(spec), path="x")
    assert encode_zarray(again) == encode_zarray(spec)
    if not isinstance(fill, complex):  # of which not-a-number is not one object
        assert again == spec


BASE: dict[str, Any] = json.loads(CASES[0][1])


def document(**members: Any) -> bytes:
    return json.dumps({**BASE, **members}).encode()


@pytest.mark.parametrize(
    ("members", "dtype", "fill"),
    [
        ({"fill_value": 1}, "<f4", 1.0),
        ({"fill_value": 0.1}, "<f4", float(np.float32(0.1))),
        ({"fill_value": "Infinity"}, "<f4", math.inf),
        ({"fill_value": "-1.5e2"}, "<f4", -150.0),
        ({"fill_value": 2**70}, "<f4", 2.0**70),
        ({"fill_value": 3.0}, "<u2", 3),
        ({"fill_value": 2**64 - 1}, "<u8", 2**64 - 1),
        ({"fill_value": -8}, "int4", -8),
        ({"fill_value": False}, "|b1", False),
        ({"fill_value": "AACAPwAAAEA="}, "<c8", 1 + 2j),
        ({"fill_value": "P4AAAEAAAAA="}, ">c8", 1 + 2j),
        ({"fill_value": "NaN"}, "bfloat16", math.nan),
    ],
)
def test_a_fill_value_is_read_in_each_spelling_that_tensorstore_takes(
    members: dict[str, Any], dtype: str, fill: object
) -> None:
    read = decode_zarray(document(dtype=dtype, **members), path="x").fill_value
    assert read is fill if fill is math.nan else read == fill
    assert type(read) is type(fill)


def test_members_that_are_unknown_or_have_a_default_may_be_there_or_not() -> None:
    more = {**BASE, "written_by": {"name": "someone"}, "filters": [], "zarr_format": 2.0, "shape": [4.0, 6]}
    del more["dimension_separator"]
    text = "\ufeff" + json.dumps(more, indent=4)
    assert decode_zarray(text.encode(), path="x") == CASES[0][0]


def test_a_compressor_may_leave_out_its_members() -> None:
    assert decode_zarray(document(compressor={"id": "zstd"}), path="x").compressor == Compressor("zstd", 1)
    assert decode_zarray(document(compressor={"id": "blosc"}), path="x").compressor == Compressor(
        "blosc", 5, "lz4", -1, 0
    )
    checked = {"id": "zstd", "level": 3, "checksum": True}
    assert decode_zarray(document(compressor=checked), path="x").compressor == Compressor("zstd", 3)


@pytest.mark.parametrize(
    "members",
    [
        {"dtype": "<M8[ns]"},
        {"dtype": [["a", "<f4"], ["b", "<i4"]]},
        {"dtype": "|S5"},
        {"filters": [{"id": "delta"}]},
        {"compressor": {"id": "pickle"}},
        {"compressor": {"id": "lzma", "preset": 1}},
    ],
)
def test_what_we_have_no_code_for_is_unsupported(members: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match=r"Array metadata w/\.zarray: ") as caught:
        decode_zarray(document(**members), path="w/.zarray")
    assert caught.value.path == "w/.zarray"


MALFORMED: list[dict[str, Any]] = [
    {"zarr_format": 3},
    {"zarr_format": "2"},
    {"zarr_format": True},
    {"shape": 4},
    {"shape": [4]},
    {"shape": [4, -6]},
    {"shape": [4, 6.5]},
    {"shape": [4, "6"]},
    {"shape": [4, True]},
    {"shape": [4, None]},
    {"shape": [4, 2**63]},
    {"shape": [4, 1e400]},
    {"shape": [4, int("9" * 4000)]},
    {"chunks": [2]},
    {"chunks": [2, 0]},
    {"chunks": [2, -3]},
    {"chunks": [2**40, 2**40]},
    {"shape": [1] * 33, "chunks": [1] * 33},
    {"order": "A"},
    {"order": None},
    {"order": ["C"]},
    {"dimension_separator": "-"},
    {"dimension_separator": None},
    {"dtype": 4},
    {"dtype": None},
    {"dtype": {"<f4": 1}},
    {"filters": {}},
    {"filters": "delta"},
    {"compressor": "zstd"},
    {"compressor": []},
    {"compressor": {}},
    {"compressor": {"id": None}},
    {"compressor": {"id": ["zstd"]}},
    {"compressor": {"id": "zstd", "level": 23}},
    {"compressor": {"id": "zstd", "level": "1"}},
    {"compressor": {"id": "zstd", "level": True}},
    {"compressor": {"id": "zstd", "level": None}},
    {"compressor": {"id": "zstd", "window": 1}},
    {"compressor": {"id": "blosc", "cname": 5}},
    {"compressor": {"id": "blosc", "cname": "lz5"}},
    {"compressor": {"id": "blosc", "shuffle": 9}},
    {"compressor": {"id": "bz2", "level": 0}},
    {"fill_value": "nan"},
    {"fill_value": "0x10"},
    {"fill_value": "1_0"},
    {"fill_value": True},
    {"fill_value": [1.0]},
    {"fill_value": {}},
    {"fill_value": int("9" * 400)},
    {"dtype": "<i4", "fill_value": 2**31},
    {"dtype": "<i4", "fill_value": 1.5},
    {"dtype": "<i4", "fill_value": True},
    {"dtype": "<i4", "fill_value": "1"},
    {"dtype": "|b1", "fill_value": 1},
    {"dtype": "<c8", "fill_value": 1},
    {"dtype": "<c8", "fill_value": [1]},
    {"dtype": "<c8", "fill_value": ["x", 1]},
    {"dtype": "<c8", "fill_value": "AACAPw=="},
    {"dtype": "<c8", "fill_value": "not base64"},
]


@pytest.mark.parametrize("members", MALFORMED, ids=lambda members: str(members)[:60])
def test_what_is_malformed_is_corrupt_data(members: dict[str, Any]) -> None:
    with pytest.raises(CorruptDataError, match=r"w/\.zarray"):
        decode_zarray(document(**members), path="w/.zarray")


@pytest.mark.parametrize("member", sorted(set(BASE) - {"dimension_separator"}))
def test_every_member_but_the_separator_must_be_there(member: str) -> None:
    with pytest.raises(CorruptDataError, match=f"{member} is missing"):
        decode_zarray(json.dumps({k: v for k, v in BASE.items() if k != member}).encode(), path="x")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"\xff\xfe",
        b"{" * 20_000,
        b'{"shape":' + b"[" * 20_000 + b"]" * 20_000 + b"}",
        b'{"shape":[' + b"9" * 10_000 + b"]}",
        document(fill_value=math.nan),  # the literal NaN is not JSON
        document()[:-1],
        document() + b"x",
        document().replace(b'"order": "C"', b'"order": "C", "order": "F"'),
        document() + b" " * 100_000,
    ],
    ids=["empty", "null", "list", "utf-16", "open", "nested", "digits", "nan", "cut", "longer", "twice", "large"],
)
def test_what_is_not_a_json_object_is_corrupt_data(data: bytes) -> None:
    with pytest.raises(CorruptDataError):
        decode_zarray(data, path="w/.zarray")


@given(st.data())
def test_damaged_documents_raise_our_errors_only(data: st.DataObject) -> None:
    text = bytearray(data.draw(st.sampled_from(CASES))[1].encode())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(text) - 1))
        text[place : place + data.draw(st.integers(0, 3))] = data.draw(
            st.sampled_from([b"", b"[", b"9", b'"', b"-", b"e9"])
        )
    try:
        spec = decode_zarray(bytes(text), path="x")
    except (CorruptDataError, UnsupportedError):
        return
    assert decode_zarray(encode_zarray(spec), path="x").shape == spec.shape
