"""Small arrays are packed: what is read back is what was saved, however they lay in memory and whoever writes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from ocdbt_py.array.allocation import ALIGNMENT
from ocdbt_py.checkpoint import packing
from ocdbt_py.checkpoint.checksums import CHECKSUMS, decode_checksums
from ocdbt_py.checkpoint.packing import PACKED_BYTES
from ocdbt_py.checkpoint.restore import restore
from ocdbt_py.checkpoint.save import save
from ocdbt_py.errors import InvalidArgumentError

NOISE = np.random.default_rng(4).random(5_000_000, np.float32)


def many(count: int) -> dict[str, Any]:
    """Arrays of 1 to 4 KiB, some of them no multiple of 64 bytes long."""
    return {f"x{i}": NOISE[i : i + 256 + i % 7 * 99] for i in range(count)}


def checksums(path: Path) -> Mapping[str, Mapping[int, tuple[int, int]]]:
    return decode_checksums((path / CHECKSUMS).read_bytes(), CHECKSUMS)


@pytest.mark.parametrize("count", [3, 3000, 12_000])
@pytest.mark.parametrize("is_jax", [False, True])
def test_many_small_arrays_come_back_and_begin_where_they_can_be_mapped(
    count: int, is_jax: bool, tmp_path: Path
) -> None:
    tree = many(count)
    save(tmp_path / "c", jax.tree.map(jnp.asarray, tree) if is_jax else tree, durable=False)
    np.testing.assert_equal(restore(tmp_path / "c", verify=True), tree)
    table = checksums(tmp_path / "c")
    assert sum(map(len, table.values())) == count
    assert not any(offset % ALIGNMENT for values in table.values() for offset in values)


def test_arrays_of_all_kinds_are_packed_together(tmp_path: Path) -> None:
    bits = NOISE[:600].view(np.uint8)[:1200]
    leaves: dict[str, Any] = {
        str(np.dtype(dtype)): bits.view(dtype).copy()
        for dtype in (np.int16, np.uint8, ">f4", ">i2", np.complex64, np.float16, ml_dtypes.bfloat16)
    }
    leaves |= {
        "by columns": np.asfortranarray(NOISE[:600].reshape(20, 30)),
        "every second": NOISE[:1200:2],
        "flags": bits > 100,
        "short": NOISE[:3],
        "long": NOISE[: PACKED_BYTES // 4 + 1],
        "longest packed": NOISE[: PACKED_BYTES // 4],
        "number": 5,
        "word": "five",
    }
    tree = {f"{name} {i}": leaf for i in range(40) for name, leaf in leaves.items()}
    save(tmp_path / "c", tree, compression=None, durable=False)
    np.testing.assert_equal(restore(tmp_path / "c", verify=True), tree)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_jax_arrays_of_any_dtype_and_shape_are_packed(zarr_format: Any, tmp_path: Path) -> None:
    whole = jnp.asarray(NOISE[:512])
    leaves = {
        "bfloat16": whole.astype(jnp.bfloat16),
        "int8": (whole * 100).astype(jnp.int8),
        "flags": whole > 0.5,
        "rows": whole.reshape(2, 16, 16),
        "turned": whole.reshape(16, 32).T,
        "none": whole[:0],
        "key": jax.random.key(3),
    }
    tree = [leaves] * 20
    save(tmp_path / "c", tree, zarr_format=zarr_format, durable=False)
    found = restore(tmp_path / "c", verify=True)
    expected = {**leaves, "key": jax.random.key_data(leaves["key"])}
    for each in found:
        for name, leaf in expected.items():
            np.testing.assert_array_equal(np.asarray(each[name]), np.asarray(leaf))


def test_what_compresses_well_is_compressed_and_not_packed(tmp_path: Path) -> None:
    tree = {**many(100), **{f"zeros{i}": np.zeros(1024, np.int32) for i in range(200)}}
    save(tmp_path / "c", tree, durable=False)
    np.testing.assert_equal(restore(tmp_path / "c", verify=True), tree)
    assert sum(map(len, checksums(tmp_path / "c").values())) == 100  # of the others little is left


def test_without_checksums_nothing_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(packing, "crc32c")
    tree = many(2000)
    save(tmp_path / "c", tree, checksums=False, durable=False)
    np.testing.assert_equal(restore(tmp_path / "c"), tree)
    assert not (tmp_path / "c" / CHECKSUMS).exists()


def test_an_array_that_goes_away_meanwhile_is_named_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = {name: jnp.asarray(value) for name, value in many(2000).items()}
    pack = packing.pack

    def late(*args: Any, **options: Any) -> Any:
        tree["x1999"].delete()
        return pack(*args, **options)

    monkeypatch.setattr("ocdbt_py.checkpoint.new_database.pack", late)
    with pytest.raises(InvalidArgumentError, match=r"'x1999'.*deleted or donated"):
        save(tmp_path / "c", tree)
    assert list(tmp_path.iterdir()) == []


def test_little_memory_makes_fewer_blocks_and_not_another_checkpoint(tmp_path: Path) -> None:
    tree = many(8000)
    save(tmp_path / "c", tree, max_memory=4 << 20, durable=False)
    np.testing.assert_equal(restore(tmp_path / "c", verify=True), tree)
