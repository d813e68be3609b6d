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
from ocdbt_py.array.metadata import decode_metadata, encode_metadata
from ocdbt_py.array.sharding import Sharding
from ocdbt_py.array.spec import ArraySpec
from ocdbt_py.array.zarr3 import decode_zarr3, encode_zarr3, is_group, orbax_spec
from ocdbt_py.errors import CorruptDataError, InvalidArgumentError, UnsupportedError

F4 = np.dtype("f4")
V3: dict[str, Any] = {"fill_value": 0.0, "dimension_separator": "/", "zarr_format": 3, "chunk_key_encoding": "default"}

BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
ZSTD = {"name": "zstd", "configuration": {"level": 3}}
GZIP = {"name": "gzip", "configuration": {"level": 3}}
CRC = {"name": "crc32c"}
DOCUMENT: dict[str, Any] = {
    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2, 3]}},
    "chunk_key_encoding": {"name": "default"},
    "codecs": [BYTES],
    "data_type": "float32",
    "fill_value": 0.0,
    "node_type": "array",
    "shape": [4, 6],
    "zarr_format": 3,
}


def transpose(*order: int) -> dict[str, Any]:
    return {"name": "transpose", "configuration": {"order": order}}


def shards(*chunk_shape: int, codecs: Any = (BYTES,), index_codecs: Any = (BYTES, CRC), **more: Any) -> dict[str, Any]:
    members = {"chunk_shape": chunk_shape, "codecs": codecs, "index_codecs": index_codecs, **more}
    return {"name": "sharding_indexed", "configuration": members}


def decoded(**changes: Any) -> ArraySpec:
    return decode_zarr3(json.dumps(DOCUMENT | changes).encode(), path="w/zarr.json")


CASES = [
    (
        orbax_spec((4, 6), (2, 3), F4, compressor=Compressor("zstd", 3)),
        '{"chunk_grid":{"configuration":{"chunk_shape":[2,3]},"name":"regular"},'
        '"chunk_key_encoding":{"name":"default"},"codecs":[{"configuration":{"chunk_shape":[2,3],'
        '"codecs":[{"configuration":{"endian":"little"},"name":"bytes"},'
        '{"configuration":{"checksum":false,"level":3},"name":"zstd"}],'
        '"index_codecs":[{"configuration":{"endian":"little"},"name":"bytes"},{"name":"crc32c"}]},'
        '"name":"sharding_indexed"}],"data_type":"float32","fill_value":0.0,"node_type":"array","shape":[4,6],'
        '"zarr_format":3}',
    ),
    (
        orbax_spec((), (), np.dtype("?"), compressor=None),
        '{"chunk_grid":{"configuration":{"chunk_shape":[]},"name":"regular"},"chunk_key_encoding":{"name":"default"},'
        '"codecs":[{"configuration":{"chunk_shape":[],"codecs":[{"name":"bytes"}],'
        '"index_codecs":[{"configuration":{"endian":"little"},"name":"bytes"},{"name":"crc32c"}]},'
        '"name":"sharding_indexed"}],"data_type":"bool","fill_value":false,"node_type":"array","shape":[],'
        '"zarr_format":3}',
    ),
    (
        ArraySpec(
            (4, 6), (2, 3), np.dtype("f8"), "F", math.nan, Compressor("gzip", 6), "/", ">", 3, "v2", (True, True)
        ),
        '{"chunk_grid":{"configuration":{"chunk_shape":[2,3]},"name":"regular"},'
        '"chunk_key_encoding":{"configuration":{"separator":"/"},"name":"v2"},'
        '"codecs":[{"configuration":{"order":[1,0]},"name":"transpose"},'
        '{"configuration":{"endian":"big"},"name":"bytes"},{"name":"crc32c"},'
        '{"configuration":{"level":6},"name":"gzip"},{"name":"crc32c"}],"data_type":"float64","fill_value":"NaN",'
        '"node_type":"array","shape":[4,6],"zarr_format":3}',
    ),
    (
        ArraySpec(
            *((4, 6), (1, 3), dtype_from_name("bfloat16"), "C", -2.0, None, ".", "<", 3, "default"),
            sharding=Sharding((2, 6), True, ">", False, "F"),
        ),
        '{"chunk_grid":{"configuration":{"chunk_shape":[2,6]},"name":"regular"},'
        '"chunk_key_encoding":{"configuration":{"separator":"."},"name":"default"},'
        '"codecs":[{"configuration":{"order":[1,0]},"name":"transpose"},{"configuration":{"chunk_shape":[3,1],'
        '"codecs":[{"configuration":{"order":[1,0]},"name":"transpose"},'
        '{"configuration":{"endian":"little"},"name":"bytes"}],'
        '"index_codecs":[{"configuration":{"endian":"big"},"name":"bytes"}],"index_location":"start"},'
        '"name":"sharding_indexed"}],"data_type":"bfloat16","fill_value":-2.0,"node_type":"array","shape":[4,6],'
        '"zarr_format":3}',
    ),
]


@pytest.mark.parametrize(("spec", "text"), CASES)
def test_spec_and_document_belong_together(spec: ArraySpec, text: str) -> None:
    assert encode_zarr3(spec) == encode_metadata(spec) == text.encode()
    assert decode_zarr3(text.encode(), path="w/zarr.json") == spec
    assert decode_metadata(text.encode(), path="w/zarr.json") == spec


@st.composite
def specs(draw: st.DrawFn) -> ArraySpec:
    ndim = draw(st.integers(0, 3))
    chunks = tuple(draw(st.integers(1, 2**10)) for _ in range(ndim))

    def order() -> Any:
        axes = tuple(draw(st.permutations(range(ndim))))
        return {tuple(range(ndim)): "C", tuple(reversed(range(ndim))): "F"}.get(axes, axes) if ndim > 1 else "C"

    sharding = None
    if draw(st.booleans()):
        shape = tuple(chunk * draw(st.integers(1, 5)) for chunk in chunks)
        byte_order: Any = draw(st.sampled_from("<>"))
        sharding = Sharding(shape, draw(st.booleans()), byte_order, draw(st.booleans()), order())
    name = draw(st.sampled_from(["bool", "uint8", "int64", "float16", "float64", "complex64", "bfloat16", "int4"]))
    compressor = draw(st.sampled_from([None, Compressor("zstd", -5), Compressor("zstd", checksum=True)]))
    return ArraySpec(
        shape=tuple(draw(st.integers(0, 2**40)) for _ in range(ndim)),
        chunks=chunks,
        dtype=dtype_from_name(name),
        order=order(),
        fill_value=draw(st.sampled_from([1.5, -0.0])) if "float" in name or "complex" in name else name == "bool" or 1,
        compressor=compressor,
        dimension_separator="/" if draw(st.booleans()) else ".",
        byte_order=">" if name in ("int64", "float16", "float64", "complex64") and draw(st.booleans()) else "<",
        zarr_format=3,
        chunk_key_encoding="default" if draw(st.booleans()) else "v2",
        checksums=(compressor is not None and draw(st.booleans()), draw(st.booleans())),
        sharding=sharding,
    )


@given(specs())
def test_every_spec_survives_being_written_and_read(spec: ArraySpec) -> None:
    assert decode_zarr3(encode_zarr3(spec), path="x") == spec


def test_what_a_document_leaves_out_has_its_default() -> None:
    spec = decoded()
    assert spec == ArraySpec((4, 6), (2, 3), F4, **V3)
    assert spec.chunk_key((1, 0)) == "c/1/0"
    assert spec.metadata_key == "zarr.json"
    for encoding, key, only in [
        ({"name": "default", "configuration": {"separator": "."}}, "c.1.0", "c"),
        ({"name": "v2"}, "1.0", "0"),
        ({"name": "v2", "configuration": {"separator": "/"}}, "1/0", "0"),
    ]:
        spec = decoded(chunk_key_encoding=encoding)
        assert spec.chunk_key((1, 0)) == key
        assert spec.chunk_key(()) == only


def test_transposes_add_up_to_one_order() -> None:
    three = {"shape": [4, 6, 8], "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1, 2, 3]}}}
    assert decoded(**three, codecs=[transpose(2, 0, 1), BYTES]).order == (2, 0, 1)
    assert decoded(**three, codecs=[transpose(2, 0, 1), transpose(2, 0, 1), BYTES]).order == (1, 2, 0)
    assert decoded(**three, codecs=[transpose(1, 2, 0), transpose(2, 0, 1), BYTES]).order == "C"
    assert decoded(codecs=[{"name": "transpose", "configuration": {"order": "F"}}, BYTES]).order == "F"
    turned = decoded(**three, codecs=[transpose(2, 0, 1), shards(3, 1, 1, codecs=[transpose(0, 2, 1), BYTES])])
    assert turned.chunks == (1, 1, 3)
    assert (turned.sharding, turned.order) == (Sharding((1, 2, 3), order=(2, 0, 1)), "F")
    assert turned.index_strides == (2, 1, 2)


@pytest.mark.parametrize(
    ("name", "spelling", "expected"),
    [
        ("float32", "Infinity", math.inf),
        ("float32", "-Infinity", -math.inf),
        ("float32", "0x3f800000", 1.0),
        ("float16", "0x3C00", 1.0),
        ("float32", 1e300, math.inf),
        ("float64", 7, 7.0),
        ("bfloat16", "0x3fc0", 1.5),
        ("complex64", [1, "-Infinity"], complex(1, -math.inf)),
        ("int4", -8, -8),
        ("uint64", 2**64 - 1, 2**64 - 1),
        ("int8", 3.0, 3),
        ("bool", True, True),
    ],
)
def test_a_fill_value_may_be_spelled_in_many_ways(name: str, spelling: Any, expected: Any) -> None:
    assert decoded(data_type=name, fill_value=spelling, codecs=[BYTES]).fill_value == expected


@pytest.mark.parametrize(
    ("name", "spelling", "bits"),
    [
        ("float32", "NaN", "0000c07f"),
        ("float32", "0x7fc00001", "0100c07f"),
        ("float32", "0xffc00000", "0000c0ff"),
        ("float32", "0x80000000", "00000080"),
        ("float64", "0x7ff8000000000001", "010000000000f87f"),
        ("bfloat16", "0x7fc1", "c17f"),
        ("complex64", [1.0, "0x7fc00001"], "0000803f0100c07f"),
        ("complex64", ["NaN", "NaN"], "0000c07f0000c07f"),
    ],
)
def test_a_not_a_number_keeps_its_bits(name: str, spelling: Any, bits: str) -> None:
    spec = decoded(data_type=name, fill_value=spelling)
    assert spec.fill_element.astype(spec.stored_dtype).tobytes().hex() == bits
    written = json.loads(encode_zarr3(spec))["fill_value"]
    assert written == (-0.0 if spelling == "0x80000000" else spelling)
    assert decoded(data_type=name, fill_value=written).fill_bits == spec.fill_bits


BLOSC = {"cname": "lz4", "clevel": 5, "shuffle": "shuffle", "typesize": 4, "blocksize": 0}


def test_blosc_is_understood() -> None:
    spec = decoded(codecs=[BYTES, {"name": "blosc", "configuration": BLOSC}])
    assert spec.compressor == Compressor("blosc", 5, "lz4", 1, 0)
    assert json.loads(encode_zarr3(spec))["codecs"][1]["configuration"] == BLOSC


DAMAGED: dict[str, dict[str, Any]] = {
    **{f"no {name}": {name: ...} for name in DOCUMENT},
    "version 2": {"zarr_format": 2},
    "a group": {"node_type": "group"},
    "negative axis": {"shape": [-1, 6]},
    "axis 2^63": {"shape": [2**63, 6]},
    "axis text": {"shape": ["4", 6]},
    "33 axes": {"shape": [1] * 33, "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1] * 33}}},
    "other rank of chunks": {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2]}}},
    "empty chunks": {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [0, 3]}}},
    "chunks 2^80": {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2**40, 2**40]}}},
    "grid is text": {"chunk_grid": "regular"},
    "grid has more": {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2, 3], "x": 1}}},
    "attributes list": {"attributes": [1]},
    "one name": {"dimension_names": ["a"]},
    "names alike": {"dimension_names": ["a", "a"]},
    "transformers null": {"storage_transformers": None},
    "separator": {"chunk_key_encoding": {"name": "default", "configuration": {"separator": "-"}}},
    "encoding with more": {"chunk_key_encoding": {"name": "default", "must_understand": False}},
    "type is a number": {"data_type": 4},
    "fill null": {"fill_value": None},
    "fill true": {"fill_value": True},
    "fill decimal text": {"fill_value": "1.5"},
    "fill long hex": {"fill_value": "0x7fc000011"},
    "fill hex of nothing": {"fill_value": "0x"},
    "fill bool 0": {"data_type": "bool", "fill_value": 0},
    "fill 256": {"data_type": "uint8", "fill_value": 256},
    "fill 1.5": {"data_type": "int8", "fill_value": 1.5},
    "fill one half": {"data_type": "complex64", "fill_value": [1]},
    "fill base64": {"data_type": "complex64", "fill_value": "AAAAAAAAAAA="},
    "no codecs": {"codecs": []},
    "codecs object": {"codecs": {}},
    "codec text": {"codecs": ["bytes"]},
    "codec null": {"codecs": [None]},
    "codec without name": {"codecs": [{"configuration": {}}]},
    "codec with more": {"codecs": [BYTES | {"must_understand": True}]},
    "no bytes": {"codecs": [ZSTD]},
    "bytes twice": {"codecs": [BYTES, BYTES]},
    "bytes last": {"codecs": [ZSTD, BYTES]},
    "no endian": {"codecs": [{"name": "bytes"}]},
    "middle endian": {"codecs": [{"name": "bytes", "configuration": {"endian": "middle"}}]},
    "configuration null": {"codecs": [{"name": "bytes", "configuration": None}]},
    "transpose of bytes": {"codecs": [BYTES, transpose(1, 0)]},
    "not a permutation": {"codecs": [transpose(1, 1), BYTES]},
    "transpose other rank": {"codecs": [transpose(0), BYTES]},
    "zstd without level": {"codecs": [BYTES, {"name": "zstd"}]},
    "zstd 23": {"codecs": [BYTES, {"name": "zstd", "configuration": {"level": 23}}]},
    "zstd checksum": {"codecs": [BYTES, {"name": "zstd", "configuration": {"level": 3, "checksum": 1}}]},
    "gzip 10": {"codecs": [BYTES, {"name": "gzip", "configuration": {"level": 10}}]},
    "crc with more": {"codecs": [BYTES, CRC | {"configuration": {"x": 1}}]},
    "blosc without size": {"codecs": [BYTES, {"name": "blosc", "configuration": BLOSC | {"typesize": 0}}]},
    "blosc shuffle": {"codecs": [BYTES, {"name": "blosc", "configuration": BLOSC | {"shuffle": 1}}]},
    "blosc method": {"codecs": [BYTES, {"name": "blosc", "configuration": BLOSC | {"cname": "pickle"}}]},
    "shards with a rest": {"codecs": [shards(2, 2)]},
    "shards too small": {"codecs": [shards(4, 3)]},
    "shards of another rank": {"codecs": [shards(1)]},
    "shards of nothing": {"codecs": [shards(0, 3)]},
    "shards compressed": {"codecs": [shards(1, 3), ZSTD]},
    "shards located": {"codecs": [shards(1, 3, index_location="middle")]},
    "shards with more": {"codecs": [shards(1, 3, x=1)]},
    "shards without codecs": {"codecs": [shards(1, 3, codecs=[])]},
    "index compressed": {"codecs": [shards(1, 3, index_codecs=[BYTES, ZSTD])]},
    "index without order": {"codecs": [shards(1, 3, index_codecs=[{"name": "bytes"}, CRC])]},
}


@pytest.mark.parametrize("changes", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_document_says_where_and_what(changes: dict[str, Any]) -> None:
    document = {name: value for name, value in (DOCUMENT | changes).items() if value is not ...}
    with pytest.raises(CorruptDataError, match=r"w/zarr\.json") as caught:
        decode_zarr3(json.dumps(document).encode(), path="w/zarr.json")
    assert caught.value.path == "w/zarr.json"


UNSUPPORTED: dict[str, dict[str, Any]] = {
    "pickle": {"codecs": [BYTES, {"name": "pickle", "configuration": {}}]},
    "numcodecs.zlib": {"codecs": [BYTES, {"name": "numcodecs.zlib", "configuration": {"level": 1}}]},
    "rectangular": {"chunk_grid": {"name": "rectangular", "configuration": {}}},
    "reversed": {"chunk_key_encoding": {"name": "reversed"}},
    "string": {"data_type": "string"},
    "r16": {"data_type": "r16"},
    "numpy.datetime64": {"data_type": {"name": "numpy.datetime64", "configuration": {"unit": "s"}}},
    "indirect": {"storage_transformers": [{"name": "indirect"}]},
    "consolidated_metadata": {"consolidated_metadata": None},
    "zstd followed by gzip": {"codecs": [BYTES, ZSTD, GZIP]},
    "crc32c after": {"codecs": [BYTES, CRC, CRC]},
    "shards within": {"codecs": [shards(2, 3, codecs=[shards(1, 1)])]},
    "transpose": {"codecs": [shards(1, 3, index_codecs=[transpose(2, 0, 1), BYTES])]},
}


@pytest.mark.parametrize("what", UNSUPPORTED)
def test_what_there_is_no_code_for_is_refused_by_name(what: str) -> None:
    with pytest.raises(UnsupportedError, match=what):
        decoded(**UNSUPPORTED[what])


def test_a_long_document_is_read_like_any_other() -> None:
    assert decoded(attributes={"notes": "x" * 50_000}) == decoded()


def test_extensions_that_may_be_ignored_are() -> None:
    assert decoded(new={"must_understand": False, "x": 1}, attributes={"a": [1]}, dimension_names=["x", None])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{" * 5000,
        b'{"attributes":' * 50_000,
        b"[" * 100_000,
        b'{"zarr_format":3' + b"0" * 5000 + b"}",
        b"\xff",
        b'{"zarr_format":3,"zarr_format":3}',
        b" " * (2 << 20),
        b'{"zarr_format":3,"node_type":"array","shape":[' + b"1," * 400_000 + b"1]}",
    ],
    ids=len,
)
def test_no_document_does_more_harm_than_an_error(data: bytes) -> None:
    with pytest.raises(CorruptDataError) as caught:
        decode_zarr3(data, path="w/zarr.json")
    assert len(str(caught.value)) < 1000


@given(st.data())
def test_a_document_with_a_few_bytes_changed_is_read_or_refused(data: st.DataObject) -> None:
    text = bytearray(encode_zarr3(data.draw(specs())))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text) - 1))
        text[at : at + data.draw(st.integers(0, 8))] = data.draw(
            st.sampled_from([b"", b"[", b"9", b'"', b"-", b"e9", b"null"])
        )
    try:
        spec = decode_zarr3(bytes(text), path="x")
    except (CorruptDataError, UnsupportedError):
        return
    assert decode_zarr3(encode_zarr3(spec), path="x").shape == spec.shape


def test_a_group_is_told_from_an_array() -> None:
    assert is_group(b'{"zarr_format":3,"node_type":"group"}')
    assert not is_group(json.dumps(DOCUMENT).encode())
    assert not is_group(b"{")


def test_only_what_zarr_v3_knows_is_written() -> None:
    with pytest.raises(UnsupportedError, match="bz2"):
        encode_zarr3(ArraySpec((4,), (4,), F4, compressor=Compressor("bz2"), **V3))


@pytest.mark.parametrize(
    "members",
    [
        {"sharding": Sharding((3, 6))},
        {"sharding": Sharding((2,))},
        {"sharding": Sharding((2**62, 3))},
        {"sharding": Sharding((2, 3), order=(0, 0))},
        {"order": (0, 2)},
        {"checksums": (True, True)},
    ],
    ids=str,
)
def test_what_does_not_fit_together_is_no_spec(members: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError):
        ArraySpec((4, 6), (2, 3), F4, **members)
