from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import zstandard

from ocdbt_py.array.codecs import Compressor, Encoder
from ocdbt_py.array.dtypes import dtype_from_name
from ocdbt_py.array.spec import ArraySpec, array_key
from ocdbt_py.array.write import encode_array, encode_chunk
from ocdbt_py.array.zarr2 import encode_zarray
from ocdbt_py.errors import InvalidArgumentError, UnsupportedError

WHOLE_BYTES = ["bool", "int8", "uint16", "int64", "float16", "float32", "complex128", "bfloat16", "float8_e4m3fn"]


def one_chunk(array: np.ndarray[Any, Any], **options: Any) -> ArraySpec:
    return ArraySpec(array.shape, array.shape, array.dtype, **options)


def values(array: np.ndarray[Any, Any], spec: ArraySpec) -> list[bytes]:
    return [bytes(value) for _, value in encode_array("w", array, spec)][1:]


@pytest.mark.parametrize("name", WHOLE_BYTES)
@pytest.mark.parametrize("shape", [(), (1,), (3, 4)])
def test_a_contiguous_array_in_one_chunk_is_written_from_its_own_memory(name: str, shape: tuple[int, ...]) -> None:
    array = np.ones(shape, dtype_from_name(name))
    (_, document), (key, value) = encode_array("w", array, one_chunk(array))
    assert document == encode_zarray(one_chunk(array))
    assert key == (b"w/0.0" if len(shape) == 2 else b"w/0")
    assert isinstance(value, memoryview)
    assert (value.format, value.ndim, value.nbytes) == ("B", 1, array.nbytes)
    assert np.shares_memory(np.frombuffer(value, np.uint8), array.reshape(-1).view(np.uint8))
    assert bytes(value) == array.tobytes()


def test_a_read_only_array_is_written_from_its_own_memory_too() -> None:
    array = np.frombuffer(b"abcdefgh", "<f4")
    (value,) = [value for key, value in encode_array("w", array, one_chunk(array)) if key == b"w/0"]
    assert np.shares_memory(np.frombuffer(value, np.uint8), array)


@pytest.mark.parametrize("name", [*WHOLE_BYTES, "int4", "int2", "float4_e2m1fn"])
def test_order_strides_and_byte_order_of_the_input_do_not_matter(name: str) -> None:
    dtype = dtype_from_name(name)
    plain = (np.arange(24) % 2).astype(dtype).reshape(4, 6)
    spaced = np.zeros((8, 12), dtype)
    spaced[::2, ::2] = plain
    backwards = plain[::-1, ::-1].copy()[::-1, ::-1]
    inputs = [np.asfortranarray(plain), spaced[::2, ::2], backwards]
    if name in ("uint16", "int64", "float32", "complex128"):
        inputs.append(plain.astype(dtype.newbyteorder(">")))
    for chunks in ((4, 6), (3, 4)):
        spec = ArraySpec((4, 6), chunks, dtype)
        for array in inputs:
            assert values(array, spec) == values(plain, spec)


def test_chunks_come_in_c_order_and_are_padded_with_zeros() -> None:
    array = np.arange(1, 7, dtype="u1").reshape(2, 3)
    items = dict(encode_array("a.b", array, ArraySpec((2, 3), (2, 2), array.dtype)))
    assert list(items) == [b"a.b/.zarray", b"a.b/0.0", b"a.b/0.1"]
    assert items[b"a.b/0.0"] == bytes([1, 2, 4, 5])
    assert items[b"a.b/0.1"] == bytes([3, 0, 6, 0])


def test_padding_is_the_fill_value_where_there_is_one() -> None:
    array = np.array([1, 2, 3], "<i2")
    assert values(array, ArraySpec((3,), (2,), array.dtype, fill_value=-1))[1] == b"\3\0\xff\xff"
    bfloat16 = array.astype(ml_dtypes.bfloat16)
    padded = values(bfloat16, ArraySpec((3,), (2,), bfloat16.dtype, fill_value=1.0))[1]
    assert padded == np.array([3, 1], ml_dtypes.bfloat16).tobytes()


def test_fortran_order_big_endian_and_slashes_are_written_when_asked_for() -> None:
    array = np.arange(6, dtype="i2").reshape(2, 3)
    spec = ArraySpec((2, 3), (2, 3), array.dtype, "F", dimension_separator="/", byte_order=">")
    (_, _), (key, value) = encode_array("w", array, spec)
    assert key == b"w/0/0"
    assert bytes(value) == array.astype(">i2").tobytes("F")


def test_types_narrower_than_a_byte_are_written_with_their_high_bits_zero() -> None:
    for name, mask in (("int4", 0x0F), ("int2", 0x03)):
        array = np.arange(256, dtype=np.uint8).view(dtype_from_name(name))
        (value,) = values(array, one_chunk(array))
        assert value == bytes(byte & mask for byte in range(256))


def test_true_is_written_as_one_whatever_byte_the_array_held() -> None:
    array = np.array([0, 1, 2, 255], np.uint8).view(bool)
    assert values(array, one_chunk(array)) == [b"\0\1\1\1"]


def test_each_chunk_is_one_compressed_frame_of_the_padded_chunk() -> None:
    array = np.arange(1000, dtype="<f4")
    for value in values(array, ArraySpec((1000,), (300,), array.dtype, compressor=Compressor("zstd", 1))):
        assert zstandard.get_frame_parameters(value).content_size == 1200
    expected = zstandard.ZstdCompressor(level=7).compress(array.tobytes())
    assert values(array, one_chunk(array, compressor=Compressor("zstd", 7))) == [expected]


def test_an_array_without_elements_has_a_document_and_no_chunks() -> None:
    array = np.empty((0, 3), "f4")
    assert [key for key, _ in encode_array("w", array, ArraySpec((0, 3), (1, 3), array.dtype))] == [b"w/.zarray"]


def test_chunks_can_be_encoded_one_by_one() -> None:
    array = np.arange(12, dtype="i4").reshape(3, 4)
    spec = ArraySpec((3, 4), (2, 2), array.dtype, compressor=Compressor("zlib"))
    one_by_one = [bytes(encode_chunk(array, spec, index, Encoder())) for index in np.ndindex(spec.grid)]
    assert one_by_one == values(array, spec)


@pytest.mark.parametrize("array", [np.zeros((2, 4), "f4"), np.zeros((2, 3), "f8"), np.zeros(6, "f4")], ids=repr)
def test_an_array_that_is_not_what_its_metadata_says_is_refused_at_once(array: np.ndarray[Any, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match="'w' has shape"):
        encode_array("w", array, ArraySpec((2, 3), (2, 3), np.dtype("f4")))


def test_arrays_of_strings_are_unsupported() -> None:
    with pytest.raises(UnsupportedError):
        ArraySpec((1,), (1,), np.dtype("U3"))


@pytest.mark.parametrize(
    ("shape", "chunks"),
    [((2,), ()), ((-1,), (1,)), ((2,), (0,)), ((1,) * 33, (1,) * 33), ((2,), (2**62,)), ((2**63,), (1,))],
)
def test_shapes_and_chunks_that_cannot_be_are_refused(shape: tuple[int, ...], chunks: tuple[int, ...]) -> None:
    with pytest.raises(InvalidArgumentError):
        ArraySpec(shape, chunks, np.dtype("f4"))


def test_a_spec_says_how_large_and_how_divided_the_array_is() -> None:
    spec = ArraySpec((5, 6), (2, 6), np.dtype(">f8"))
    assert (spec.ndim, spec.size, spec.nbytes, spec.grid) == (2, 30, 240, (3, 1))
    assert (spec.chunk_nbytes, spec.chunk_strides, spec.dtype.isnative) == (96, (48, 8), True)
    assert ArraySpec((5, 6), (2, 6), np.dtype("f8"), "F").chunk_strides == (8, 16)
    assert spec == ArraySpec((5, 6), (2, 6), np.dtype("f8"))


def test_the_key_of_an_array_is_its_name_and_file_or_the_file_alone() -> None:
    assert array_key("a.b", "0.0") == b"a.b/0.0"
    assert array_key("", ".zarray") == b".zarray"
    assert array_key("ü", "0") == "ü/0".encode()
    assert array_key("\udcff", "0") == b"\xff/0"  # a key that was no text, as surrogate escapes carry it
    with pytest.raises(InvalidArgumentError, match="not text"):
        array_key("\ud800", "0")
