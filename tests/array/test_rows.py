"""Arrays made as rows of another are as those that are made one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ocdbt_py.array.rows import arrays_at, arrays_in, rows_alike
from ocdbt_py.array.spec import ArraySpec

MEMORY = np.random.default_rng(0).integers(0, 256, 20_000, np.uint8)


def offsets_of(*offsets: int) -> NDArray[np.int64]:
    return np.array(offsets, np.int64)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (1, 4, 2), (1,) * 32], ids=str)
@pytest.mark.parametrize("dtype", ["u1", "<f4", "<c16"])
@pytest.mark.parametrize(
    "offsets",
    [
        offsets_of(64),
        offsets_of(0, 640, 64),
        offsets_of(*range(1024, 19_000, 192)),
        offsets_of(*reversed(range(640, 12_800, 128))),
        offsets_of(*range(3, 5000, 77), 8000, 8001),
        offsets_of(*[128] * 20),
    ],
    ids=["one", "few", "many", "in another order", "at odd places", "at one place"],
)
def test_each_array_is_a_view_of_its_place(shape: tuple[int, ...], dtype: str, offsets: NDArray[np.int64]) -> None:
    found = list(arrays_at(MEMORY, offsets, shape, np.dtype(dtype)))
    assert len(found) == len(offsets)
    for array, offset in zip(found, offsets.tolist(), strict=True):
        expected: NDArray[Any] = np.ndarray(shape, dtype, MEMORY, offset)
        assert type(array) is np.ndarray
        assert (array.shape, array.dtype, array.strides) == (shape, expected.dtype, expected.strides)
        assert array.tobytes() == expected.tobytes()
        assert array.flags.num == expected.flags.num
        assert array.base is MEMORY
        assert array.ctypes.data == MEMORY.ctypes.data + offset


def test_what_is_written_into_one_array_is_in_no_other() -> None:
    memory = np.zeros(16 * 64, np.uint8)
    arrays = list(arrays_at(memory, np.arange(0, 16 * 64, 64), (4,), np.dtype("<f4")))
    for number, array in enumerate(arrays):
        array[:] = number
    assert [array.tolist() for array in arrays] == [[number] * 4 for number in range(16)]


@pytest.mark.parametrize("count", [1, 20])
def test_an_array_that_would_end_behind_its_memory_is_not_made(count: int) -> None:
    offsets = np.arange(count) * 64 + len(MEMORY) - 64 * count + 32
    with pytest.raises((TypeError, ValueError)):
        list(arrays_at(MEMORY, offsets, (16,), np.dtype("<f4")))


@pytest.mark.parametrize("count", [5, 300])
def test_arrays_in_several_memories_are_found_by_their_names_however_many_there_are(count: int) -> None:
    memories = {7: MEMORY, 2: MEMORY[::-1].copy()}
    specs = [ArraySpec((4,), (4,), np.dtype("<f4")), ArraySpec((2, 3), (2, 3), np.dtype("u1"))]
    names = np.arange(count)[::-1] + 10
    numbers, kinds, offsets = np.where(names % 3, 7, 2), names % 2, 16 * names
    found = arrays_in(memories, specs, numbers, kinds, offsets, names)
    assert sorted(found) == list(range(10, 10 + count))
    for name, array in found.items():
        spec = specs[name % 2]
        assert (array.shape, array.dtype) == (spec.shape, spec.dtype)
        memory = memories[7 if name % 3 else 2]
        assert array.tobytes() == memory[16 * name : 16 * name + spec.nbytes].tobytes()
        assert array.base is memory


def test_rows_that_are_equal_in_both_columns_are_found_together() -> None:
    first, second = offsets_of(1, 0, 1, 1, 0), offsets_of(5, 5, 6, 5, 5)
    assert [rows.tolist() for rows in rows_alike(first, second)] == [[1, 4], [0, 3], [2]]
    assert rows_alike(first[:0], second[:0]) == []
