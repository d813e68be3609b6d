"""Arrays of zarr v3 against TensorStore's driver: what either writes the other reads, and equal documents.

The matrix is a seeded walk over everything the format can say: shards or none, their index at either end, in either
byte order and with or without its checksum, any order of axes of chunks and of shards, any type, both kinds of keys.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import tensorstore as ts
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance.test_array import ALL, ORDERED, as_bits, sample
from ocdbt_py.array.codecs import Compressor
from ocdbt_py.array.dtypes import dtype_from_name
from ocdbt_py.array.lazy import LazyArray
from ocdbt_py.array.read import Request, Values, read_array
from ocdbt_py.array.sharding import AxisOrder, Sharding
from ocdbt_py.array.spec import ArraySpec
from ocdbt_py.array.write import encode_array
from ocdbt_py.array.zarr3 import decode_zarr3, encode_zarr3
from ocdbt_py.errors import CorruptDataError, UnsupportedError

COMPRESSORS = [
    None,
    None,
    Compressor("zstd", 3),
    Compressor("zstd", -7, checksum=True),
    Compressor("gzip", 5),
]


class Zarr3(dict[bytes, bytes], Values):
    """The keys below an array's name, in a store of TensorStore's and here; ``requests`` is what was asked for."""

    def __init__(self) -> None:
        self.context = ts.Context()
        self.kvstore = ts.KvStore.open({"driver": "memory", "path": "w/"}, context=self.context).result()
        self.requests: list[tuple[bytes, int, int | None]] = []

    def create(self, document: bytes, *, store_fill_values: bool = True) -> Any:
        spec = {"metadata": json.loads(document), "store_data_equal_to_fill_value": store_fill_values}
        return self._open(spec, create=True)

    def open(self) -> Any:
        return self._open({"recheck_cached_data": True}, open=True)

    def _open(self, spec: dict[str, Any], **mode: Any) -> Any:
        spec = {"driver": "zarr3", "kvstore": self.kvstore.spec().to_json(), **spec}
        return ts.open(spec, context=self.context, **mode).result()

    def pull(self) -> Zarr3:
        """Take what TensorStore wrote."""
        for key in self.kvstore.list().result():
            self[b"w/" + key] = self.kvstore.read(key).result().value
        return self

    def push(self, items: Any) -> Zarr3:
        """Give TensorStore what we wrote."""
        for key, value in items:
            self.kvstore.write(key.removeprefix(b"w/"), bytes(value)).result()
        return self

    def read_many(self, requests: Sequence[Request], default: None) -> list[bytes | None]:
        answers = []
        for request in requests:
            key, start, stop = request if isinstance(request, tuple) else (request, 0, None)
            self.requests.append((key, start, stop))
            answers.append(self[key][start:stop] if key in self else default)
        return answers


def any_order(choose: random.Random, ndim: int) -> AxisOrder:
    axes = list(range(ndim))
    choose.shuffle(axes)
    if axes == sorted(axes) or choose.random() < 0.3:
        return "C"
    return "F" if axes == sorted(axes, reverse=True) else tuple(axes)


def any_spec(choose: random.Random) -> tuple[str, ArraySpec]:
    ndim = choose.choice([0, 1, 2, 2, 3])
    chunks = tuple(choose.randint(1, 4) for _ in range(ndim))
    sharding = None
    if choose.random() < 0.7:
        byte_order: Any = choose.choice("<<>")
        sharding = Sharding(
            tuple(chunk * choose.choice([1, 1, 2, 3]) for chunk in chunks),
            choose.random() < 0.3,
            byte_order,
            choose.random() < 0.8,
            any_order(choose, ndim),
        )
    name = choose.choice(ALL)
    compressor = choose.choice(COMPRESSORS)
    spec = ArraySpec(
        shape=tuple(
            choose.choice([0, *range(1, 10)]) if choose.random() < 0.1 else choose.randint(1, 9) for _ in chunks
        ),
        chunks=chunks,
        dtype=dtype_from_name(name),
        order=any_order(choose, ndim),
        fill_value=name == "bool" or choose.choice([0, 1]),
        compressor=compressor,
        dimension_separator="/" if choose.random() < 0.5 else ".",
        byte_order=">" if name in ORDERED and choose.random() < 0.3 else "<",
        zarr_format=3,
        chunk_key_encoding="default" if choose.random() < 0.7 else "v2",
        checksums=(compressor is not None and choose.random() < 0.2, choose.random() < 0.2),
        sharding=sharding,
    )
    return name, spec


def any_index(choose: random.Random, shape: tuple[int, ...]) -> tuple[int | slice, ...]:
    index: list[int | slice] = []
    for size in shape:
        ends = [None, *range(-size - 1, size + 2)]
        one = size and choose.random() < 0.2
        index.append(
            choose.randrange(size)
            if one
            else slice(choose.choice(ends), choose.choice(ends), choose.choice([None, 1, 2, -1, -3]))
        )
    return tuple(index)


@pytest.mark.parametrize("seed", range(250))
def test_either_reads_what_the_other_writes_bit_for_bit(seed: int) -> None:
    choose = random.Random(seed)
    name, spec = any_spec(choose)
    array = sample(name, spec.shape, seed)
    every_chunk = choose.random() < 0.5
    if not every_chunk and array.size:
        array[tuple(slice(0, size // 2 + 1) for size in spec.shape)] = spec.fill_element.view(spec.dtype)
    theirs = Zarr3()
    theirs.create(encode_zarr3(spec), store_fill_values=every_chunk).write(array).result()
    theirs.pull()
    assert theirs[b"w/zarr.json"] == encode_zarr3(spec)
    assert decode_zarr3(theirs[b"w/zarr.json"], path="w/zarr.json") == spec
    lazy = LazyArray(theirs, "w", spec, missing="error" if every_chunk else "fill")
    assert as_bits(lazy.read()) == as_bits(array)
    for _ in range(3):
        index = any_index(choose, spec.shape)
        planned = list(lazy.plan(index))
        theirs.requests.clear()
        assert as_bits(lazy[index]) == as_bits(array[index])
        assert theirs.requests == planned

    ours = dict(encode_array("w", array, spec))
    assert ours.keys() >= theirs.keys()
    if every_chunk:
        assert ours.keys() == theirs.keys()
        if spec.compressor is None:
            assert all(bytes(value) == theirs[key] for key, value in ours.items())
    assert as_bits(Zarr3().push(ours.items()).open().read().result()) == as_bits(array)


@pytest.mark.parametrize("name", ALL)
def test_what_orbax_has_tensorstore_write_is_written_byte_for_byte(name: str) -> None:
    """But for the frames of zstd, which are another release's."""
    array = sample(name, (4, 6))
    codecs = [{"name": "bytes"}] if array.itemsize == 1 else [{"name": "bytes", "configuration": {"endian": "little"}}]
    index_codecs = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
    configuration = {"chunk_shape": [2, 3], "codecs": codecs, "index_codecs": index_codecs}
    metadata = {
        "shape": [4, 6],
        "data_type": name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2, 3]}},
        "codecs": [{"name": "sharding_indexed", "configuration": configuration}],
    }
    theirs = Zarr3()
    theirs.create(json.dumps(metadata).encode()).write(array).result()
    theirs.pull()
    spec = decode_zarr3(theirs[b"w/zarr.json"], path="w/zarr.json")
    assert spec == ArraySpec(
        *((4, 6), (2, 3), array.dtype, "C", spec.fill_value, None, "/", "<", 3, "default"),
        sharding=Sharding((2, 3)),
    )
    assert {key: bytes(value) for key, value in encode_array("w", array, spec)} == theirs


SLICES: list[tuple[Any, int, int]] = [  # index; requests, and bytes fetched, of chunks that are not compressed
    (np.s_[0, 0], 1 + 1, 4 * 4 * 16 + 4 + 4),
    (np.s_[5, :], 2 + 8, 2 * (4 * 4 * 16 + 4) + 8 * 32),
    (np.s_[::32, 3], 2 + 2, 2 * (4 * 4 * 16 + 4) + 2 * 4),
    (np.s_[...], 4 + 64, 4 * (4 * 4 * 16 + 4) + 64 * 8 * 8 * 4),
    (np.s_[8:16, 8:16], 1 + 1, 4 * 4 * 16 + 4 + 8 * 8 * 4),
]


@pytest.mark.parametrize(("index", "requests", "nbytes"), SLICES)
def test_a_slice_costs_the_indices_of_its_shards_and_its_bytes(index: Any, requests: int, nbytes: int) -> None:
    array = sample("float32", (64, 64))
    spec = ArraySpec(
        *((64, 64), (8, 8), array.dtype, "C", 0.0, None, "/", "<", 3, "default"), sharding=Sharding((32, 32))
    )
    zarr = Zarr3()
    zarr.create(encode_zarr3(spec)).write(array).result()
    zarr.pull()
    assert as_bits(read_array(zarr, "w", spec, index)) == as_bits(array[index])
    assert len(zarr.requests) == requests
    assert sum(len(zarr[key][start:stop]) for key, start, stop in zarr.requests) == nbytes


FILLS: list[tuple[str, Any]] = [
    *((name, fill) for name in ("float32", "float64", "bfloat16") for fill in (0.0, -0.0, 1.5, "NaN", "-Infinity")),
    *(("float64", fill) for fill in (0.1, 1e-5, 1e14, 1e15, 1234567890123456.5, 1e16, 5e-324, "0x7ff8000000000001")),
    *(("float32", fill) for fill in (0.1, 1e300, "0x7fc00001", "0xffc00000", "0x3f800000", "0x1")),
    *((("float16"), fill) for fill in ("0x7e01", 70000)),
    *(("float8_e4m3fn", fill) for fill in ("NaN", "0x01", 1.5)),
    ("float8_e5m2", "0x7d"),
    ("float4_e2m1fn", 1.5),
    ("bool", True),
    ("int64", -(2**63)),
    ("uint64", 2**64 - 1),
    ("int4", 7),
    ("int2", 1),
    ("complex64", [1, -2.5]),
    ("complex128", ["Infinity", "NaN"]),
    ("complex64", ["0x7fc00001", 0]),
]


@pytest.mark.parametrize(("name", "fill"), FILLS)
def test_fill_values_are_spelled_and_read_as_tensorstore_does(name: str, fill: Any) -> None:
    endian = {} if dtype_from_name(name).itemsize == 1 else {"configuration": {"endian": "little"}}
    document = {
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2]}},
        "chunk_key_encoding": {"name": "default"},
        "codecs": [{"name": "bytes", **endian}],
        "data_type": name,
        "fill_value": fill,
        "node_type": "array",
        "shape": [3],
        "zarr_format": 3,
    }
    zarr = Zarr3()
    theirs = zarr.create(json.dumps(document).encode()).read().result()
    spec = decode_zarr3(zarr.pull()[b"w/zarr.json"], path="w/zarr.json")
    assert encode_zarr3(spec) == zarr[b"w/zarr.json"]
    assert spec == decode_zarr3(json.dumps(document).encode(), path="x") or name.startswith("complex")
    assert as_bits(read_array(zarr, "w", spec, missing="fill")) == as_bits(theirs)


BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
CRC = {"name": "crc32c"}
CODECS: list[Any] = [
    [BYTES],
    [],
    ["bytes"],
    [{"name": "bytes"}],
    [{"name": "bytes", "configuration": {"endian": "x"}}],
    *([BYTES, {"name": "zstd", "configuration": {"level": level}}] for level in (-131072, -131073, 22, 23, 3.0, "3")),
    [BYTES, {"name": "zstd", "configuration": {"level": 1, "checksum": True}}],
    [BYTES, {"name": "zstd", "configuration": {"level": 1, "checksum": 1}}],
    [BYTES, {"name": "zstd"}],
    *([BYTES, {"name": "gzip", "configuration": {"level": level}}] for level in (-1, 0, 9, 10)),
    [BYTES, CRC],
    [BYTES, {**CRC, "configuration": {"a": 1}}],
    [CRC, BYTES],
    [BYTES, {"name": "pickle"}],
    *(
        [BYTES, {"name": "blosc", "configuration": {"cname": cname, "clevel": 5, "shuffle": "shuffle", **size}}]
        for cname in ("lz4", "snappy", "blosclz", "lzma")
        for size in ({}, {"typesize": 4}, {"typesize": 0}, {"typesize": 255}, {"typesize": 256})
    ),
    *(
        [BYTES, {"name": "blosc", "configuration": {"cname": "zstd", "clevel": 5, **more}}]
        for more in ({}, {"shuffle": "noshuffle"}, {"blocksize": 64, "shuffle": "bitshuffle", "typesize": 1}, {"x": 1})
    ),
    *(
        [{"name": "transpose", "configuration": {"order": order}}, BYTES]
        for order in ([1, 0], [0, 1], [0], [1, 1], "F", "A", None, [1.0, 0])
    ),
    *(
        [{"name": "sharding_indexed", "configuration": {"chunk_shape": shape, "codecs": codecs, **more}}]
        for shape in ([1, 3], [2, 2], [2, 3], [4, 3], [1], [0, 3])
        for codecs in ([BYTES], [CRC])
        for more in (
            {"index_codecs": [BYTES, CRC]},
            {"index_codecs": [BYTES], "index_location": "start"},
            {"index_codecs": [BYTES], "index_location": "middle"},
            {"index_codecs": [BYTES, {"name": "gzip", "configuration": {"level": 1}}]},
            {},
        )
    ),
]


@settings(max_examples=300, deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "shape": st.lists(st.integers(-1, 5) | st.sampled_from([4.0, 4.5, "4", None, True, 2**62]), max_size=3),
            "chunk_grid": st.sampled_from(
                [
                    {"name": "regular", "configuration": {"chunk_shape": [2, 3]}, "x": 1},
                    {"name": "rectangular", "configuration": {"chunk_shape": [2, 3]}},
                    {"name": "regular", "configuration": {"chunk_shape": [2, 0]}},
                    {"name": "regular", "configuration": {"chunk_shape": [2.0, 3]}},
                    {"name": "regular"},
                    "regular",
                ]
            ),
            "chunk_key_encoding": st.sampled_from(
                [
                    {"name": "v2"},
                    {"name": "v2", "configuration": {"separator": "/"}},
                    {"name": "default", "configuration": {}},
                    {"name": "default", "configuration": {"separator": "-"}},
                    {"name": "default", "configuration": None},
                    {"name": "other"},
                    "default",
                ]
            ),
            "codecs": st.sampled_from(CODECS),
            "data_type": st.sampled_from(
                ["float64", "int4", "uint4", "string", "bool", 5, {"name": "float32", "configuration": {}}]
            ),
            "fill_value": st.sampled_from([None, 0, 1.5, "NaN", "nan", True, [], "0x1", "0x", "1e3", 300, -129]),
            "node_type": st.sampled_from(["array", "group", None]),
            "zarr_format": st.sampled_from([3, 3.0, 2, "3"]),
            "attributes": st.sampled_from([{}, {"a": [None]}, [], None]),
            "dimension_names": st.sampled_from([["a", None], ["a", "a"], ["", ""], ["a"], None, [1, 2]]),
            "storage_transformers": st.sampled_from([[], [{"name": "x"}], None]),
            "more": st.sampled_from([{"must_understand": False}, {"must_understand": True}, None, 1]),
        },
    )
)
def test_a_document_is_accepted_exactly_when_tensorstore_accepts_it(changed: dict[str, Any]) -> None:
    document = json.dumps(
        {
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2, 3]}},
            "chunk_key_encoding": {"name": "default"},
            "codecs": [BYTES],
            "data_type": "float32",
            "fill_value": 0,
            "node_type": "array",
            "shape": [4, 5],
            "zarr_format": 3,
            **changed,
        }
    ).encode()
    try:
        Zarr3().push([(b"w/zarr.json", document)]).open()
        accepted = True
    except ValueError:
        accepted = False
    try:
        decode_zarr3(document, path="w/zarr.json")
    except (CorruptDataError, UnsupportedError):
        assert not accepted
    else:
        assert accepted


def test_tensorstore_agrees_on_what_is_damage() -> None:
    array = np.arange(4, dtype="i4")
    for compressor in (None, Compressor("zstd", 3)):
        spec = ArraySpec(
            *((4,), (4,), array.dtype, "C", 0, compressor, "/", "<", 3, "default"), sharding=Sharding((4,))
        )
        (_, document), (_, value) = encode_array("w", array, spec)
        good = bytes(value)
        for chunk in (b"", good[:-1], good + b"\0", good[:-20], good[:-9] + b"\1" + good[-8:], b"\0" * len(good)):
            zarr = Zarr3().push([(b"w/zarr.json", document), (b"w/c/0", chunk)])
            with pytest.raises(ValueError):
                zarr.open().read().result()
            with pytest.raises(CorruptDataError):
                read_array(zarr.pull(), "w", spec)


def test_not_a_number_is_a_fill_value_like_any_other() -> None:
    spec = ArraySpec((4,), (2,), np.dtype("f4"), fill_value=math.nan, dimension_separator="/", zarr_format=3)
    zarr = Zarr3()
    zarr.create(encode_zarr3(spec))
    assert np.isnan(read_array(zarr.pull(), "w", spec, missing="fill")).all()
