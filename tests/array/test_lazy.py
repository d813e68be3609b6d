from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ocdbt_py.array.codecs import Compressor
from ocdbt_py.array.dtypes import dtype_from_name
from ocdbt_py.array.lazy import LazyArray
from ocdbt_py.array.read import Values
from ocdbt_py.array.spec import ArraySpec
from ocdbt_py.array.write import encode_array
from ocdbt_py.errors import InvalidTypeError

Array = np.ndarray[Any, Any]


@pytest.fixture
def array() -> Array:
    return np.arange(60, dtype="i4").reshape(3, 4, 5)


@pytest.fixture
def lazy(array: Array, store: Any) -> LazyArray:
    spec = ArraySpec(array.shape, (2, 4, 2), array.dtype, compressor=Compressor())
    return LazyArray(store(encode_array("layer.kernel", array, spec)), "layer.kernel", spec)


@st.composite
def arrays_as_stored(draw: st.DrawFn) -> tuple[Array, ArraySpec]:
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=7))
    name = draw(st.sampled_from(["bool", "int8", "uint16", "int64", "float32", "complex64", "bfloat16", "int4"]))
    raw = draw(hnp.arrays(np.int8, shape, elements=st.integers(-2, 1), fill=st.just(1)))
    order: Any = draw(st.sampled_from("CF"))
    byte_order: Any = draw(st.sampled_from("<>")) if name in ("uint16", "int64", "float32", "complex64") else "<"
    compressor = draw(st.sampled_from([None, *map(Compressor, ("zstd", "zlib", "gzip", "bz2"))]))
    chunks = tuple(draw(st.integers(1, 9)) for _ in shape)
    array = raw.astype(dtype_from_name(name))
    return array, ArraySpec(shape, chunks, array.dtype, order, None, compressor, byte_order=byte_order)


@settings(max_examples=400)
@given(arrays_as_stored(), st.data(), st.sampled_from([0, 100, 1 << 20]))
def test_indexing_gives_what_numpy_gives(
    store: Any, case: tuple[Array, ArraySpec], data: st.DataObject, gap: int
) -> None:
    array, spec = case
    values = store((key, bytes(value)) for key, value in encode_array("w", array, spec))
    lazy = LazyArray(values, "w", spec)
    index = data.draw(hnp.basic_indices(array.shape, allow_newaxis=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ocdbt_py.array.chunks.MERGE_GAP", gap)
        result = lazy[index]
    expected = array[index]
    assert type(result) is type(expected)
    assert result.dtype == expected.dtype
    assert np.shape(result) == np.shape(expected)
    assert result.tobytes() == expected.tobytes()


def test_it_describes_the_array_without_reading(lazy: LazyArray) -> None:
    assert (lazy.shape, lazy.dtype, lazy.ndim, lazy.size) == ((3, 4, 5), np.dtype("i4"), 3, 60)
    assert (lazy.chunks, lazy.nbytes, len(lazy)) == ((2, 4, 2), 240, 3)
    assert repr(lazy) == "<LazyArray 'layer.kernel' shape=(3, 4, 5) dtype=int32 chunks=(2, 4, 2)>"
    assert lazy._values.requests == []  # type: ignore[attr-defined]


def test_its_html_escapes_the_name(lazy: LazyArray) -> None:
    text = LazyArray(lazy._values, "<script>", lazy.spec)._repr_html_()
    assert "&lt;script&gt;" in text
    assert "<script>" not in text
    assert "(3, 4, 5)" in text


def test_all_of_it_is_read_at_once_and_into_an_array_of_the_callers(lazy: LazyArray, array: Array) -> None:
    out = np.empty_like(array)
    assert lazy.read(out) is out
    assert np.array_equal(out, array)
    assert np.array_equal(lazy.read(), array)


def test_numpy_takes_it_as_an_array(lazy: LazyArray, array: Array) -> None:
    assert np.array_equal(np.asarray(lazy), array)
    assert np.asarray(lazy).dtype == array.dtype
    assert np.asarray(lazy, dtype="f8").dtype == np.float64
    assert np.array(lazy, copy=True).flags.writeable
    assert np.sum(lazy) == array.sum()


def test_an_array_without_a_copy_is_refused_as_numpy_has_it(lazy: LazyArray) -> None:
    with pytest.raises(ValueError, match="copy=False"):
        lazy.__array__(copy=False)


def test_iteration_reads_row_after_row(lazy: LazyArray, array: Array) -> None:
    for row, expected in zip(lazy, array, strict=True):
        assert np.array_equal(row, expected)


def test_rank_0_has_neither_length_nor_rows(store: Any) -> None:
    spec = ArraySpec((), (), np.dtype("f8"))
    lazy = LazyArray(store(encode_array("x", np.array(2.5), spec)), "x", spec)
    assert lazy[()] == 2.5
    assert isinstance(lazy[()], np.float64)
    assert lazy[...].shape == ()
    with pytest.raises(TypeError, match="unsized"):
        len(lazy)
    with pytest.raises(TypeError, match="0-d"):
        iter(lazy)


def test_fancy_indexing_says_to_read_first(lazy: LazyArray) -> None:
    with pytest.raises(InvalidTypeError, match=r"a\.read\(\)\[index\]"):
        lazy[[0, 1]]  # type: ignore[index]


def test_an_index_out_of_bounds_is_an_index_error(lazy: LazyArray) -> None:
    with pytest.raises(IndexError, match="index 7 is out of bounds for axis 1 with size 4"):
        lazy[0, 7]


def test_it_pickles_with_its_store(lazy: LazyArray, array: Array) -> None:
    plain = LazyArray(Pickled(lazy._values), lazy.name, lazy.spec, missing="fill")  # type: ignore[call-overload]
    again = pickle.loads(pickle.dumps(plain))
    del again._values[b"layer.kernel/0.0.0"]
    assert np.array_equal(again[2], array[2])
    assert not again[0, :, :2].any()


class Pickled(dict[bytes, bytes], Values):
    def read_many(self, requests: Any, default: None) -> list[bytes | None]:
        return [self.get(request, default) for request in requests]


def test_threads_may_share_one(lazy: LazyArray, array: Array) -> None:
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda i: lazy[i % 3, ::-1], range(30)))
    assert all(np.array_equal(result, array[i % 3, ::-1]) for i, result in enumerate(results))


def test_the_plan_names_the_requests_of_an_index(lazy: LazyArray) -> None:
    assert list(lazy.plan(np.s_[2, :, 3])) == [(b"layer.kernel/1.0.1", 0, None)]
