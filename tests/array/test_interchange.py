"""Lazy arrays in the hands of other libraries, which read no more of them than they need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest

from ocdbt_py.array.codecs import Compressor
from ocdbt_py.array.dtypes import dtype_from_name
from ocdbt_py.array.lazy import LazyArray
from ocdbt_py.array.spec import ArraySpec
from ocdbt_py.array.write import encode_array
from ocdbt_py.errors import InvalidArgumentError

Array = np.ndarray[Any, Any]


@pytest.fixture
def array() -> Array:
    return np.arange(2400, dtype="f4").reshape(60, 40)


@pytest.fixture(params=[None, Compressor()], ids=["raw", "zstd"])
def lazy(array: Array, store: Any, request: pytest.FixtureRequest) -> LazyArray:
    spec = ArraySpec(array.shape, (20, 10), array.dtype, compressor=request.param)
    return LazyArray(store(encode_array("w", array, spec)), "w", spec)


@pytest.mark.parametrize("chunks", ["auto", (20, 10), (7, 40), (60, 8)], ids=str)
def test_dask_computes_with_it_whatever_its_own_chunks(lazy: LazyArray, array: Array, chunks: Any) -> None:
    wrapped = da.from_array(lazy, chunks=chunks)
    assert (wrapped.dtype, wrapped.shape) == (array.dtype, array.shape)
    assert np.array_equal(wrapped.compute(), array)
    assert np.array_equal(wrapped[5:50:7, ::-3].compute(), array[5:50:7, ::-3])
    product = (wrapped.T @ wrapped).astype("f8").sum().compute(scheduler="threads", num_workers=4)
    assert product == pytest.approx((array.T @ array).sum(dtype="f8"))


def test_dask_fetches_the_chunks_of_a_part_alone(lazy: LazyArray) -> None:
    wrapped = da.from_array(lazy, chunks=lazy.chunks)
    assert lazy._values.requests == []  # type: ignore[attr-defined]
    wrapped[:20, 10:20].compute()
    requests = lazy._values.requests  # type: ignore[attr-defined]
    assert {request if isinstance(request, bytes) else request[0] for request in requests} == {b"w/0.1"}


@pytest.mark.parametrize("name", ["float32", "bfloat16", "int4", "bool", "float64", "uint64"])
def test_jax_puts_it_on_a_device_as_it_does_numpy_arrays(name: str, array: Array, store: Any) -> None:
    import jax

    typed = (array % 7).astype(dtype_from_name(name))
    spec = ArraySpec(typed.shape, (20, 10), typed.dtype)
    lazy = LazyArray(store(encode_array("w", typed, spec)), "w", spec)
    device = jax.devices()[-1]
    expected = jax.device_put(typed, device)
    for found in (jax.device_put(lazy, device), jax.device_put({"a": [lazy]})["a"][0], jax.numpy.asarray(lazy)):
        assert isinstance(found, jax.Array)
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert np.asarray(found).tobytes() == np.asarray(expected).tobytes()
    assert jax.device_put(lazy, device).sharding == expected.sharding


LATE = """
import sys, numpy as np, ocdbt_py
ocdbt_py.save(sys.argv[1], {"w": np.arange(6.0, dtype="f4")})
lazy = ocdbt_py.Checkpoint(sys.argv[1])["w"]
assert lazy.dtype == np.float32 and "jax" not in sys.modules
import jax
assert jax.device_put(lazy).tolist() == [0, 1, 2, 3, 4, 5]
"""


def test_jax_may_be_imported_after_it_was_made(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    environment = {"PYTHONPATH": f"{root}:{root / 'backends'}", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", LATE, str(tmp_path / "c")], env=environment, check=True)


def test_it_is_handed_over_by_dlpack(lazy: LazyArray, array: Array) -> None:
    found = np.from_dlpack(lazy)
    assert np.array_equal(found, array)
    assert lazy.__dlpack_device__() == (1, 0)
    with pytest.raises(InvalidArgumentError, match="copy=False"):
        lazy.__dlpack__(copy=False)


def test_torch_makes_a_tensor_of_it(lazy: LazyArray, array: Array) -> None:
    torch = pytest.importorskip("torch")
    for tensor in (torch.as_tensor(lazy), torch.from_dlpack(lazy), torch.as_tensor(lazy, dtype=torch.float64)):
        assert np.array_equal(tensor.numpy(), array)
        tensor += 1
    assert np.array_equal(lazy.read(), array)
