"""Trees of so many leaves that they are found together come back as those that are found one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

import ocdbt_py
from ocdbt_py.checkpoint import stored
from ocdbt_py.errors import CorruptDataError


def tree_of(count: int) -> dict[str, Any]:
    shapes = [(3,), (2, 3), (), (4,), (1, 2, 2)]
    arrays = [np.arange(np.prod(shapes[i % 5]), dtype="f4").reshape(shapes[i % 5]) + i for i in range(count)]
    return {
        "layers": [{"kernel": arrays[i], "bias": arrays[i + 1]} for i in range(0, count // 2, 2)],
        "other": {f"block-{i}": {"w": arrays[i]} for i in range(count // 2, count - 2)},
        "first": arrays[-2],
        "last": arrays[-1],
    }


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_they_are_what_was_saved(tmp_path: Path, zarr_format: Literal[2, 3], mmap: bool) -> None:
    tree = tree_of(1500)
    tree["none"], tree["text"], tree["large"] = None, "a", np.arange(9_000.0).reshape(300, 30)
    ocdbt_py.save(tmp_path / "a", tree, zarr_format=zarr_format, chunk_bytes=40_000)
    found = ocdbt_py.restore(tmp_path / "a", mmap=mmap)
    np.testing.assert_equal(found, tree)
    assert list(found["other"]) == sorted(tree["other"])
    some = ocdbt_py.restore(tmp_path / "a", mmap=mmap, select="other.**")
    np.testing.assert_equal(some, {"other": tree["other"]})


def test_it_takes_one_look_for_documents_and_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = {f"block_{i:03}": {"w": np.arange(3.0)} for i in range(600)}
    ocdbt_py.save(tmp_path / "a", tree)
    monkeypatch.setattr(ocdbt_py.Database, "find", lambda *_: pytest.fail("a key was looked for by itself"))
    np.testing.assert_equal(ocdbt_py.restore(tmp_path / "a", mmap=True), tree)


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("at", [0, 299, 599])
def test_what_is_missing_is_told_of_one_of_many(tmp_path: Path, at: int, mmap: bool) -> None:
    ocdbt_py.save(tmp_path / "a", {f"block_{i:03}": np.arange(3.0) for i in range(600)})
    database = ocdbt_py.open(tmp_path / "a", "a")
    del database[f"block_{at:03}/0"]
    with pytest.raises(CorruptDataError, match=f"block_{at:03}.*missing"):
        ocdbt_py.restore(tmp_path / "a", mmap=mmap)
    del database[f"block_{at:03}/.zarray"]
    with pytest.raises(CorruptDataError, match=f"block_{at:03}.*nothing is stored"):
        ocdbt_py.restore(tmp_path / "a", mmap=mmap)


def test_names_that_are_those_of_two_leaves_are_told_apart_from_others(tmp_path: Path) -> None:
    assert stored._MANY <= 600
    ocdbt_py.save(tmp_path / "a", {"a": {f"{i:03}": np.arange(3.0) for i in range(600)}, "x.y": np.arange(2)})
    metadata = tmp_path / "a" / "_METADATA"
    text = metadata.read_text()
    metadata.write_text(text.replace("('x.y',)", "('a.000',)").replace('"key": "x.y"', '"key": "a.000"'))
    with pytest.raises(CorruptDataError, match=r"Two leaves .*'a\.000'"):
        ocdbt_py.restore(tmp_path / "a")
