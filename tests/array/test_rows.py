"""Arrays made as rows of another are as those that are made one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ocdbt_py.array.rows import arrays_in
from ocdbt_py.array.spec import ArraySpec

MEMORY = np.random.default_rng(0).integers(0, 256, 20_000, np.uint8)


def arrays_of(shape: tuple[int, ...], dtype: str, offsets: list[int]) -> list[NDArray[Any]]:
    spec = ArraySpec(shape, shape, np.dtype(dtype))
    zeros = np.zeros(len(offsets), np.int64)
    return arrays_in([MEMORY], [spec], zeros, zeros, np.array(offsets, np.int64))


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (1, 4, 2), (1,) * 32], ids=str)
@pytest.mark.parametrize("dtype", ["u1", "<f4", "<c16"])
@pytest.mark.parametrize(
    "offsets",
    [
        [64],
        [0, 640, 64],
        [*range(1024, 19_000, 64)],
        [*reversed(range(640, 19_000, 64))],
        [*range(3, 8000, 17), 9000, 9001],
        [128] * 300,
    ],
    ids=["one", "few", "many", "in another order", "at odd places", "at one place"],
)
def test_each_array_is_a_view_of_its_place(shape: tuple[int, ...], dtype: str, offsets: list[int]) -> None:
    found = arrays_of(shape, dtype, offsets)
    assert len(found) == len(offsets)
    for array, offset in zip(found, offsets, strict=True):
        expected: NDArray[Any] = np.ndarray(shape, dtype, MEMORY, offset)
        assert type(array) is np.ndarray
        assert (array.shape, array.dtype, array.strides) == (shape, expected.dtype, expected.strides)
        assert array.tobytes() == expected.tobytes()
        assert array.flags.num == expected.flags.num
        assert array.base is MEMORY
        assert array.ctypes.data == MEMORY.ctypes.data + offset


def test_what_is_written_into_one_array_is_in_no_other() -> None:
    memory = np.zeros(300 * 64, np.uint8)
    zeros, spec = np.zeros(300, np.int64), ArraySpec((4,), (4,), np.dtype("<f4"))
    arrays = arrays_in([memory], [spec], zeros, zeros, np.arange(0, 300 * 64, 64))
    for number, array in enumerate(arrays):
        array[:] = number
    assert [array.tolist() for array in arrays] == [[number] * 4 for number in range(300)]


@pytest.mark.parametrize("count", [1, 300])
def test_an_array_that_would_end_behind_its_memory_is_not_made(count: int) -> None:
    with pytest.raises((TypeError, ValueError, IndexError)):
        arrays_of((16,), "<f4", [*range(count - 1), len(MEMORY) - 32])


@pytest.mark.parametrize("count", [5, 300])
def test_arrays_in_several_memories_come_in_order_however_many_there_are(count: int) -> None:
    memories = {7: MEMORY, 2: MEMORY[::-1].copy()}
    specs = [ArraySpec(shape, shape, np.dtype(dtype)) for shape, dtype in (((4,), "<f4"), ((2, 3), "u1"), ((), "<i8"))]
    rows = np.arange(count)[::-1] + 10
    numbers, kinds, offsets = np.where(rows % 4, 7, 2), rows % 3, 16 * rows
    found = arrays_in(memories, specs, numbers, kinds, offsets)
    for row, array in zip(rows.tolist(), found, strict=True):
        spec = specs[row % 3]
        assert (array.shape, array.dtype) == (spec.shape, spec.dtype)
        memory = memories[7 if row % 4 else 2]
        assert array.tobytes() == memory[16 * row : 16 * row + spec.nbytes].tobytes()
        assert array.base is memory
    assert offsets.tolist() == (16 * rows).tolist()
