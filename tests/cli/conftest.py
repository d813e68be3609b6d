"""A database and a checkpoint to look into, and a way to run the command line in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import ocdbt_py
from ocdbt_py.cli import main


class Done(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    @property
    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        return found


Run = Callable[..., Done]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run ``ocdbt`` with these words, at 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("OCDBT_DEBUG", raising=False)

    def run(*words: object) -> Done:
        try:
            code = main([str(word) for word in words])
        except SystemExit as exit:  # argparse
            code = int(exit.code or 0)
        out, err = capsys.readouterr()
        return Done(code, out, err)

    return run


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """Three versions: empty, four keys, one more and one changed."""
    path = tmp_path / "database"
    options = ocdbt_py.WriteOptions(value_data_prefix="v/")
    with ocdbt_py.open(path, "x", durable=False, write_options=options) as db:
        db.update({"a/long": b"x" * 300, "a/short": b"12", b"z\x1b[1m\\\xff": b"\0\xff", "w/.zarray": b'{"shape":[2]}'})
        db["n"] = b"5"
    return path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint"
    tree = {
        "params": {"w": np.arange(600, dtype=np.float64).reshape(20, 30), "b": np.array([0.0, np.nan], np.float32)},
        "opt": [np.int32(3), (), None],
        "name": "hello",
        "step": 7,
    }
    ocdbt_py.save(path, tree, custom_metadata={"lr": 0.1}, durable=False)
    return path
