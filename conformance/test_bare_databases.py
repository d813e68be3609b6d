"""Arrays that TensorStore users put into a database themselves, without Orbax and without ``_METADATA``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import tensorstore as ts

from ocdbt_py.checkpoint.checkpoint import ArrayInfo, Checkpoint
from ocdbt_py.checkpoint.restore import restore

Array = np.ndarray[Any, Any]

SHAPE = (20, 30)


def zarr2(**members: Any) -> dict[str, Any]:
    return {"driver": "zarr", "metadata": {"shape": SHAPE, "dtype": "<f4", **members}}


def zarr3(chunks: list[int], codecs: list[Any]) -> dict[str, Any]:
    grid = {"name": "regular", "configuration": {"chunk_shape": chunks}}
    return {
        "driver": "zarr3",
        "metadata": {"shape": SHAPE, "data_type": "float32", "chunk_grid": grid, "codecs": codecs},
    }


RAW = {"name": "bytes", "configuration": {"endian": "little"}}
SHARDED = {"name": "sharding_indexed", "configuration": {"chunk_shape": [1, 30], "codecs": [RAW]}}

KINDS = {
    "layers/raw": zarr2(compressor=None, chunks=[10, 30]),
    "layers/zstd": zarr2(compressor={"id": "zstd", "level": 3}, chunks=[5, 10]),
    "layers/fortran": zarr2(compressor=None, chunks=[20, 30], order="F"),
    "v3": zarr3([10, 10], [RAW]),
    "sharded": zarr3([10, 30], [SHARDED]),
}


@pytest.fixture
def arrays() -> dict[str, Array]:
    return {name: np.arange(600, dtype="f4").reshape(SHAPE) + number for number, name in enumerate(KINDS)}


@pytest.fixture
def url(arrays: dict[str, Array], tmp_path: Path) -> Path:
    for name, kind in KINDS.items():
        store = {"driver": "ocdbt", "base": f"file://{tmp_path / 'db'}", "path": f"{name}/"}
        ts.open({**kind, "kvstore": store}, create=True).result()[...] = arrays[name]
    return tmp_path / "db"


def test_they_are_a_flat_dict_of_names(url: Path, arrays: dict[str, Array]) -> None:
    checkpoint = Checkpoint(url)
    assert checkpoint.names() == sorted(KINDS)
    assert checkpoint.tree["layers/raw"] == ArrayInfo(SHAPE, np.dtype("f4"), 2400, (10, 30))
    assert (checkpoint.item_names(), checkpoint.custom_metadata) == ([], {})
    found = restore(url)
    assert found.keys() == KINDS.keys()
    for name, array in arrays.items():
        assert found[name].tobytes() == array.tobytes()


def test_globs_select_among_them_and_a_target_casts(url: Path, arrays: dict[str, Array]) -> None:
    assert restore(url, select="layers/*").keys() == {name for name in KINDS if name.startswith("layers/")}
    found = restore(url, {"v3": np.zeros(SHAPE, "f8")}, strict=False)
    assert found["v3"].dtype == np.float64
    assert np.array_equal(found["v3"], arrays["v3"])


@pytest.mark.parametrize("name", KINDS)
def test_slices_are_numpys_and_others_take_them_too(name: str, url: Path, arrays: dict[str, Array]) -> None:
    import jax

    lazy, array = Checkpoint(url)[name], arrays[name]
    for index in (np.s_[3], np.s_[2:17:5, ::-7], np.s_[..., 4], np.s_[-1, None, 5:5]):
        assert np.array_equal(lazy[index], array[index])
    assert np.array_equal(np.asarray(lazy), array)
    assert np.array_equal(da.from_array(lazy, chunks=lazy.chunks)[3:8].compute(), array[3:8])
    assert np.array_equal(np.asarray(jax.device_put(lazy)), array)


def test_explain_names_the_very_bytes_of_a_slice(url: Path, arrays: dict[str, Array]) -> None:
    checkpoint = Checkpoint(url)
    for name, index in (("layers/raw", np.s_[12:14]), ("sharded", np.s_[12])):
        *before, fetch = checkpoint.explain(name, index)
        assert len(before) == (name == "sharded")  # its index
        assert fetch.file is not None
        stored = (url / fetch.file).read_bytes()[fetch.offset : fetch.offset + fetch.length]
        assert stored == arrays[name][index].tobytes(), name
    chunks = checkpoint.explain("layers/zstd", np.s_[4:6, 25:])
    assert [fetch.key for fetch in chunks] == [b"layers/zstd/0.2", b"layers/zstd/1.2"]
