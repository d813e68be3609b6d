from __future__ import annotations

import mmap
import re
from pathlib import Path

import numpy as np
import pytest

from ocdbt_py.array.allocation import ALIGNMENT, allocate
from ocdbt_py.errors import UnsupportedError


@pytest.mark.parametrize("nbytes", [20_001, 1 << 20, 4 << 20, (9 << 20) + 3])
def test_all_but_small_arrays_begin_where_jax_takes_them_as_they_are(nbytes: int) -> None:
    for _ in range(4):
        array = allocate("a", (nbytes,), np.dtype(np.uint8))
        assert array.ctypes.data % ALIGNMENT == 0
        array[:] = 1
        assert array.sum() == nbytes


def test_a_large_array_has_pages_of_its_own_which_go_with_it() -> None:
    array = allocate("a", (3, 1 << 20), np.dtype(np.float32))
    assert isinstance(array.base, mmap.mmap)
    assert len(array.base) == array.nbytes


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="needs Linux with huge pages")
def test_a_large_array_asks_for_huge_pages() -> None:
    array = allocate("a", (3, 1 << 20), np.dtype(np.float32))
    flags: list[str] = []
    is_its_own = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if place := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            start, stop = (int(digits, 16) for digits in place.groups())
            is_its_own = start <= array.ctypes.data < stop
        elif is_its_own and line.startswith("VmFlags:"):
            flags = line.split()
    assert "hg" in flags


@pytest.mark.parametrize("shape", [(0,), (), (5,), (100_000,), (3 << 20, 2)])
def test_zeros_are_zeros_at_any_size(shape: tuple[int, ...]) -> None:
    array = allocate("a", shape, np.dtype(np.float32), zero=True)
    assert array.shape == shape
    assert array.flags.writeable
    assert not array.any()


@pytest.mark.parametrize("shape", [(1 << 60,), (1 << 50, 1 << 50)])
def test_more_than_there_is_names_the_array(shape: tuple[int, ...]) -> None:
    with pytest.raises(UnsupportedError, match="'too much'"):
        allocate("too much", shape, np.dtype(np.float32))
