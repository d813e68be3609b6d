"""``ocdbt get``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

import ocdbt_py

Run = Callable[..., Any]

W = np.arange(600, dtype=np.float64).reshape(20, 30)


def test_a_slice_becomes_a_numpy_file(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    done = run("get", checkpoint, "params.w[:, 3]", "-o", tmp_path / "w.npy")
    assert done.code == 0
    assert done.lines == [f"params.w[:, 3] float64[20] to {tmp_path / 'w.npy'} (NumPy file, 160 B)"]
    assert np.array_equal(np.load(tmp_path / "w.npy"), W[:, 3])


def test_any_other_name_gets_the_bytes_alone(run: Run, checkpoint: Path, database: Path, tmp_path: Path) -> None:
    assert run("get", checkpoint, "params.w[::2, ::-1]", "-o", tmp_path / "raw").code == 0
    assert (tmp_path / "raw").read_bytes() == W[::2, ::-1].tobytes()
    assert run("get", checkpoint, "step", "-o", tmp_path / "raw").code == 0
    assert (tmp_path / "raw").read_bytes() == (7).to_bytes(8, "little")
    assert run("get", checkpoint, "name", "-o", tmp_path / "raw").code == 0
    assert (tmp_path / "raw").read_bytes() == b"hello"
    assert run("get", database, "a/long", "-o", tmp_path / "value.npy").code == 0
    assert (tmp_path / "value.npy").read_bytes() == b"x" * 300


def test_types_that_numpy_has_no_word_for_come_with_a_note(run: Run, tmp_path: Path) -> None:
    for dtype in (ml_dtypes.bfloat16, ml_dtypes.float8_e5m2, ml_dtypes.int4):
        array = np.arange(4).astype(dtype)
        ocdbt_py.save(tmp_path / "c", {"a": array}, durable=False, overwrite=True)
        done = run("get", tmp_path / "c", "a", "-o", tmp_path / "a.npy")
        assert done.lines[1].endswith(f".view(ml_dtypes.{array.dtype.name}) gives it its type")
        assert np.array_equal(np.load(tmp_path / "a.npy").view(dtype), array)


def test_what_has_no_bytes_is_refused_and_nothing_is_written(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    done = run("get", checkpoint, "opt.2", "-o", tmp_path / "none.npy")
    assert (done.code, done.err) == (2, "ocdbt get: opt.2 is None, which has no bytes; ocdbt cat prints it\n")
    assert not (tmp_path / "none.npy").exists()


def test_a_file_that_cannot_be_written_is_a_storage_error(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    done = run("get", checkpoint, "step", "-o", tmp_path / "absent" / "f.npy")
    assert done.code == 3
    assert "absent" in done.err


def test_the_document(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    assert run("get", checkpoint, "params.w[0]", "-o", tmp_path / "w.npy", "--json").document == {
        "command": "get",
        "url": str(checkpoint),
        "name": "params.w[0]",
        "output": str(tmp_path / "w.npy"),
        "format": "npy",
        "dtype": "float64",
        "shape": [30],
        "nbytes": 240,
        "note": None,
    }
