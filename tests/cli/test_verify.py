"""``ocdbt verify`` where no other implementation is needed; ``conformance/test_verify.py`` has the rest."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ocdbt_py

Run = Callable[..., Any]


def test_elsewhere_than_on_local_disks_it_reads_once_and_says_so(run: Run) -> None:
    url = "memory://verify-test/checkpoint"
    ocdbt_py.save(url, {"a": np.arange(6.0), "b": 1}, overwrite=True)
    done = run("verify", url)
    assert done.code == 0
    assert done.lines[0].startswith("read      4 keys of version 1, ")
    assert done.lines[1:] == [
        "          2 arrays, 56 B",
        "with      ocdbt_py",
        "Not compared with TensorStore: it is asked about local directories only.",
        "readable",
    ]


def test_without_tensorstore_it_reads_once_and_says_so(
    run: Run, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    document = run("verify", checkpoint, "--json").document
    assert document == {
        "command": "verify",
        "url": str(checkpoint),
        "ok": True,
        "kind": "checkpoint",
        "version": 1,
        "keys": 8,
        "key_bytes": document["key_bytes"],
        "arrays": 4,
        "array_bytes": 4820,
        "other": None,
        "note": "Not compared with TensorStore: it is not installed (pip install tensorstore).",
        "findings": [],
    }


def test_a_missing_data_file_is_a_finding_for_each_value_in_it(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    options = ocdbt_py.WriteOptions(value_data_prefix="v/")
    with ocdbt_py.open(tmp_path / "db", "a", durable=False, write_options=options) as db:
        db.update({"a": b"a" * 200, "b": b"b" * 200})
    with ocdbt_py.open(tmp_path / "db", "a", durable=False, write_options=options) as db:
        db["c"] = b"c" * 200
        location = db.stat("a").location
        assert location is not None
        (tmp_path / "db" / location.file).unlink()
    done = run("verify", tmp_path / "db", "--json")
    assert done.code == 1
    assert [finding["subject"] for finding in done.document["findings"]] == ["a", "b"]
    assert not done.document["ok"]
    assert done.document["keys"] == 3


def test_a_damaged_node_is_a_finding(run: Run, database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    for file in (database / "d").iterdir():
        file.write_bytes(b"\0" * file.stat().st_size)
    done = run("verify", database)
    assert done.code == 1
    assert done.lines[0].startswith("the keys: ")
    assert done.lines[-1] == "1 finding"
