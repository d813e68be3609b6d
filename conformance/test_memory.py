"""What saving and restoring take beside the arrays, measured: bounded, however large an array or a chunk is."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import tensorstore as ts

from conformance.memory import peaks
from ocdbt_py.checkpoint.memory import MAX_MEMORY

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

SAVE_AND_RESTORE = """
import numpy as np
import ocdbt_py
path, size, options = sys.argv[2], int(sys.argv[3]), ast.literal_eval(sys.argv[4])
pattern = np.random.default_rng(3).integers(0, 256, 1 << 16, np.uint8)
array = np.resize(pattern, size)
if options.pop("turned", False):
    array = array.reshape(1000, -1).T
ocdbt_py.save(path + "/warm", {"x": np.zeros(9000)}, compression="zstd")
ocdbt_py.restore(path + "/warm")
save = peak_of(lambda: ocdbt_py.save(path + "/c", {"x": array}, durable=False, **options))
shape = array.shape
del array
restored = []
restore = peak_of(lambda: restored.append(ocdbt_py.restore(path + "/c")["x"])) - size
flat = restored[0].T.reshape(-1) if restored[0].ndim > 1 else restored[0]
assert restored[0].shape == shape
assert all(np.array_equal(flat[i : i + (1 << 16)], pattern[: size - i]) for i in range(0, size, 1 << 16))
checkpoint = ocdbt_py.Checkpoint(path + "/c")
piece = peak_of(lambda: checkpoint["x"][size // shape[0] % 7 :: 1001])
assert len(ocdbt_py.open(path + "/c")) == 2  # one chunk
print(json.dumps([save, restore, piece]))
"""


@pytest.mark.parametrize(
    ("size", "options"),
    [
        pytest.param(2_000_000_000, {"compression": "zstd", "chunk_bytes": 1 << 31}, id="2 GB in one zstd chunk"),
        pytest.param(400_000_000, {"compression": None}, id="as it lies in memory"),
        pytest.param(200_000_000, {"compression": None, "turned": True}, id="turned around"),
        pytest.param(200_000_000, {"compression": None, "zarr_format": 3}, id="zarr v3"),
        pytest.param(
            200_000_000,
            {"compression": "zstd", "chunk_bytes": 1 << 31, "turned": True, "zarr_format": 3},
            id="zarr v3, compressed, turned around",
        ),
    ],
)
def test_one_leaf_in_one_chunk_takes_bounded_memory(size: int, options: dict[str, object], tmp_path: Path) -> None:
    taken = peaks(SAVE_AND_RESTORE, tmp_path, size, options)
    assert max(taken) <= MAX_MEMORY, dict(zip(["save", "restore", "slice"], taken, strict=True))


RESTORE = """
import numpy as np
import ocdbt_py
path, size = sys.argv[2], int(sys.argv[3])
ocdbt_py.save(path + "/warm", {"x": np.zeros(9000)})
ocdbt_py.restore(path + "/warm")
found = []
whole = peak_of(lambda: found.append(ocdbt_py.restore(path + "/c")["x"])) - size
assert found[0].nbytes == size and found[0][-1, 1] == 1
print(json.dumps([whole]))
"""


@pytest.mark.parametrize(
    ("compressor", "order"),
    [
        (None, "F"),
        ({"id": "zlib", "level": 1}, "C"),
        ({"id": "zlib", "level": 1}, "F"),
        ({"id": "zstd", "level": 1}, "F"),
        ({"id": "bz2", "level": 1}, "C"),
    ],
)
def test_a_chunk_that_tensorstore_wrote_takes_bounded_memory(
    compressor: dict[str, object] | None, order: str, tmp_path: Path
) -> None:
    array = np.zeros((100_000, 250), np.int32)
    array[:, 1] = 1
    spec = {
        "driver": "zarr",
        "kvstore": {"driver": "ocdbt", "base": f"file://{tmp_path}/c"},
        "path": "x",
        "metadata": {
            "compressor": compressor,
            "order": order,
            "shape": list(array.shape),
            "chunks": list(array.shape),
            "dtype": "<i4",
        },
    }
    store = ts.open(spec, create=True).result()
    store.write(array).result()
    (taken,) = peaks(RESTORE, tmp_path, array.nbytes)
    assert taken <= MAX_MEMORY
