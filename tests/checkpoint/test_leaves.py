from __future__ import annotations

import enum
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from ocdbt_py.checkpoint.leaves import stored_leaf
from ocdbt_py.checkpoint.metadata import ValueType
from ocdbt_py.errors import InvalidArgumentError, InvalidTypeError, UnsupportedError

ROOT = Path(__file__).parents[2]


class Colour(enum.IntEnum):
    RED = 3


@pytest.mark.parametrize(
    ("value", "array"),
    [
        (True, np.array(True)),
        (7, np.array(7, np.int64)),
        (-(2**63), np.array(-(2**63), np.int64)),
        (2**63 - 1, np.array(2**63 - 1, np.int64)),
        (-0.0, np.array(-0.0, np.float64)),
        (Colour.RED, np.array(3, np.int64)),
        (np.bool_(False), np.array(False)),
        (np.float32(1.5), np.array(1.5, np.float32)),
        (np.float64(2.5), np.array(2.5, np.float64)),
        (np.uint64(2**64 - 1), np.array(2**64 - 1, np.uint64)),
        (np.complex128(1j), np.array(1j)),
        (ml_dtypes.bfloat16(1.5), np.array(1.5, ml_dtypes.bfloat16)),
    ],
)
def test_numbers_become_arrays_of_rank_0(value: Any, array: Any) -> None:
    leaf = stored_leaf("x", value)
    assert leaf.value_type == ValueType.SCALAR
    assert isinstance(leaf.array, np.ndarray)
    assert (leaf.array.dtype, leaf.array.shape) == (array.dtype, ())
    assert leaf.array.tobytes() == array.tobytes()


def test_an_array_is_taken_as_it_lies() -> None:
    array = np.arange(12.0).reshape(3, 4)[:, ::2]
    leaf = stored_leaf("x", array)
    assert leaf.array is array
    assert leaf.value_type == ValueType.NUMPY_ARRAY
    assert stored_leaf("x", np.array(3.0)).value_type == ValueType.NUMPY_ARRAY


class Offers:
    """An array of another library: one that has ``__array__``, or only DLPack."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        if self._array is None:
            raise RuntimeError("it is on the moon")
        return self._array


class OffersDLPack:
    def __init__(self, array: Any) -> None:
        self._array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()


@pytest.mark.parametrize("offer", [Offers, OffersDLPack])
def test_what_offers_an_array_is_stored_as_numpy_s(offer: Any) -> None:
    array = np.arange(5)
    leaf = stored_leaf("x", offer(array))
    assert leaf.value_type == ValueType.NUMPY_ARRAY
    assert leaf.array is not None
    assert np.shares_memory(leaf.array, array)


@pytest.mark.parametrize(
    ("value", "value_type"),
    [(None, "None"), ({}, "Dict"), ([], "List"), ((), "Tuple")],
)
def test_empty_values_are_a_word_in_the_metadata(value: Any, value_type: str) -> None:
    assert stored_leaf("x", value) == (value_type, None, None, None, None)


@pytest.mark.parametrize("value", ["", "text", np.str_("text")])
def test_strings_are_strings(value: str) -> None:
    leaf = stored_leaf("x", value)
    assert (leaf.value_type, leaf.string) == (ValueType.STRING, str(value))
    assert type(leaf.string) is str


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (2**63, InvalidArgumentError, "64 bits"),
        (-(2**63) - 1, InvalidArgumentError, "64 bits"),
        (10**5000, InvalidArgumentError, "64 bits"),
        ("\ud800", InvalidArgumentError, "not Unicode"),
        (1j, UnsupportedError, "numpy.complex128"),
        (..., InvalidTypeError, "target"),
        (b"bytes", UnsupportedError, "builtins.bytes"),
        ({1, 2}, UnsupportedError, "builtins.set"),
        (object(), UnsupportedError, "pytree"),
        (len, UnsupportedError, "builtin_function"),
        (np.array(["a"]), UnsupportedError, "U1"),
        (np.array([b"a"]), UnsupportedError, "S1"),
        (np.array([object()]), UnsupportedError, "object"),
        (np.array([None]), UnsupportedError, "object"),
        (np.zeros(2, "i4,f4"), UnsupportedError, "f1"),
        (np.array("2020", "M8[D]"), UnsupportedError, "datetime64"),
        (np.datetime64("2020"), UnsupportedError, "datetime64"),
        (np.bytes_(b"x"), UnsupportedError, "S1"),
        (np.longdouble(1), UnsupportedError, "dtype"),
        (np.zeros(3, ml_dtypes.uint4), UnsupportedError, "uint4"),
        (np.ma.masked_array([1, 2], [True, False]), UnsupportedError, "mask"),
        (Offers(None), InvalidTypeError, "on the moon"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_orbax_could_not_restore_is_refused_with_the_leaf_s_name(value: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        stored_leaf("params.w", value)
    assert "'params.w'" in str(caught.value)


def test_jax_arrays_are_taken_without_a_copy_and_with_their_device() -> None:
    import jax
    import jax.numpy as jnp

    value = jnp.arange(1000.0)
    leaf = stored_leaf("x", value)
    assert leaf.value_type == ValueType.JAX_ARRAY
    assert isinstance(leaf.array, np.ndarray)
    assert leaf.array.ctypes.data == value.unsafe_buffer_pointer()
    assert leaf.sharding == {"sharding_type": "SingleDeviceSharding", "device_str": "TFRT_CPU_0"}
    key = stored_leaf("k", jax.random.key(3, impl="rbg"))
    assert key.random_key_impl == "rbg"
    assert key.array is not None
    assert (key.array.dtype, key.array.shape) == (np.dtype(np.uint32), (4,))


def test_jax_arrays_without_data_are_refused() -> None:
    import jax
    import jax.numpy as jnp

    deleted = jnp.arange(3.0)
    deleted.delete()
    with pytest.raises(InvalidArgumentError, match="deleted or donated"):
        stored_leaf("x", deleted)

    def traced(x: Any) -> Any:
        stored_leaf("x", x)
        return x

    with pytest.raises(InvalidTypeError, match="being traced"):
        jax.jit(traced)(1.0)


def test_jax_is_not_imported_for_a_tree_without_its_arrays() -> None:
    program = (
        "import sys, numpy as np, ocdbt_py;"
        "tree = {'a': np.arange(3), 'b': [1, 2.5, 'x', None, {}]};"
        "ocdbt_py.save('memory://no-jax', tree, custom_metadata={'x': 1});"
        "ocdbt_py.restore('memory://no-jax', tree); ocdbt_py.restore('memory://no-jax');"
        "list(ocdbt_py.Checkpoint('memory://no-jax').values());"
        "assert 'jax' not in sys.modules"
    )
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'backends'}"}
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, check=True)
