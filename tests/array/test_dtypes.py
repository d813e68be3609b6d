from __future__ import annotations

import math
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from ocdbt_py.array.dtypes import (
    dtype_from_name,
    dtype_from_zarr2,
    dtype_name,
    low_bits,
    scalar_of,
    stored_dtype,
    zarr2_spelling,
)
from ocdbt_py.errors import InvalidArgumentError, UnsupportedError

SPELLINGS = {
    "bool": "|b1",
    "int8": "|i1",
    "int16": "<i2",
    "int32": "<i4",
    "int64": "<i8",
    "uint8": "|u1",
    "uint16": "<u2",
    "uint32": "<u4",
    "uint64": "<u8",
    "float16": "<f2",
    "float32": "<f4",
    "float64": "<f8",
    "complex64": "<c8",
    "complex128": "<c16",
    "bfloat16": "bfloat16",
    "float8_e3m4": "float8_e3m4",
    "float8_e4m3fn": "float8_e4m3fn",
    "float8_e5m2": "float8_e5m2",
    "float8_e4m3fnuz": "float8_e4m3fnuz",
    "float8_e5m2fnuz": "float8_e5m2fnuz",
    "float8_e4m3b11fnuz": "float8_e4m3b11fnuz",
    "float8_e8m0fnu": "float8_e8m0fnu",
    "float4_e2m1fn": "float4_e2m1fn",
    "int4": "int4",
    "int2": "int2",
}


@pytest.mark.parametrize(("name", "spelling"), SPELLINGS.items())
def test_name_spelling_and_dtype_belong_together(name: str, spelling: str) -> None:
    dtype = dtype_from_name(name)
    assert dtype == np.dtype(getattr(ml_dtypes, name, name))
    assert dtype_name(dtype) == name
    assert zarr2_spelling(dtype) == spelling
    assert dtype_from_zarr2(spelling) == (dtype, "<")


def test_byte_order_is_part_of_the_spelling_not_of_the_name() -> None:
    assert dtype_name(np.dtype(">f4")) == "float32"
    assert zarr2_spelling(np.dtype("f4"), ">") == ">f4"
    assert dtype_from_zarr2(">c16") == (np.dtype("c16"), ">")
    assert dtype_from_zarr2(">c16")[0].isnative


@pytest.mark.parametrize("spelling", ["<i1", ">u1", "<b1", "|b1"])
def test_one_byte_has_no_byte_order_whatever_is_written(spelling: str) -> None:
    assert dtype_from_zarr2(spelling)[1] == "<"


@pytest.mark.parametrize(
    "spelling",
    [
        *("", "<", "f4", "=f4", "|f4", "<f16", "<M8[ns]", "|S4", "<U2", "|O", "|V3", "uint4", "float8_e4m3", "|int4"),
        *("float32", "<bfloat16", "<f4 ", "ml_dtypes.int4", "__class__", "<f4\n"),
    ],
)
def test_other_spellings_are_unsupported(spelling: str) -> None:
    with pytest.raises(UnsupportedError):
        dtype_from_zarr2(spelling)


@pytest.mark.parametrize("dtype", ["M8[s]", "S3", "U3", "O", "V4", "longdouble", [("a", "f4")]])
def test_arrays_of_other_types_are_unsupported_and_the_message_lists_what_is_not(dtype: object) -> None:
    with pytest.raises(UnsupportedError, match=r"cannot be stored.*bfloat16"):
        dtype_name(np.dtype(dtype))  # type: ignore[call-overload]


def test_types_of_ml_dtypes_lie_in_chunks_as_unsigned_integers() -> None:
    assert stored_dtype(dtype_from_name("bfloat16")) == np.dtype("<u2")
    assert stored_dtype(dtype_from_name("int4")) == np.dtype("u1")
    assert stored_dtype(np.dtype("i4"), ">") == np.dtype(">i4")


def test_only_types_narrower_than_a_byte_have_bits_that_do_not_count() -> None:
    assert low_bits(dtype_from_name("int4")) == 0x0F
    assert low_bits(dtype_from_name("int2")) == 0x03
    assert low_bits(np.dtype("int8")) is None


def test_a_scalar_is_rounded_to_what_the_type_holds() -> None:
    assert scalar_of(np.dtype("f4"), 0.1) == float(np.float32(0.1))
    assert scalar_of(np.dtype("f4"), 1e300) == math.inf
    assert scalar_of(dtype_from_name("bfloat16"), 257.0) == 256.0
    assert scalar_of(np.dtype("f8"), np.float64("nan")) is math.nan
    assert scalar_of(np.dtype("c8"), 1 + 2j) == 1 + 2j
    assert scalar_of(dtype_from_name("int4"), -8) == -8


@pytest.mark.parametrize(
    ("name", "value"), [("uint8", 256), ("int8", 1.5), ("bool", 1), ("int4", 8), ("float32", "x"), ("int64", 2**70)]
)
def test_a_scalar_that_the_type_cannot_hold_is_refused(name: str, value: object) -> None:
    with pytest.raises(InvalidArgumentError):
        scalar_of(dtype_from_name(name), value)


def test_ml_dtypes_is_imported_only_for_its_own_types() -> None:
    script = """
import sys
import numpy as np
from ocdbt_py.array.zarr2 import decode_zarray, encode_zarray
from ocdbt_py.array.spec import ArraySpec
decode_zarray(encode_zarray(ArraySpec((2,), (2,), np.dtype("float32"))), path="x")
assert "ml_dtypes" not in sys.modules
from ocdbt_py.array.dtypes import dtype_from_name
dtype_from_name("bfloat16")
assert "ml_dtypes" in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_without_ml_dtypes_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    dtype_from_name.cache_clear()
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(UnsupportedError, match="pip install ml-dtypes"):
        dtype_from_name("bfloat16")
