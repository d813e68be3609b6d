"""``ocdbt log``."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import ocdbt_py

Run = Callable[..., Any]


def test_versions_come_newest_first_with_time_keys_and_bytes(run: Run, database: Path) -> None:
    lines = run("log", database).lines
    assert [line.split()[0] for line in lines] == ["v3", "v2", "v1"]
    assert re.fullmatch(r"v3  20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC  5 keys  300 B  \+ \d+ B of nodes", lines[0])


def test_a_limit_says_that_there_are_older_ones(run: Run, database: Path) -> None:
    assert run("log", database, "-n", 2).lines[2:] == ["… and older ones"]
    assert len(run("log", database, "-n", 3).lines) == 3


def test_a_checkpoint_has_versions_too(run: Run, checkpoint: Path) -> None:
    assert [line.split()[0] for line in run("log", checkpoint).lines] == ["v1"]


def test_the_document(run: Run, database: Path) -> None:
    document = run("log", database, "--json").document
    assert document.keys() == {"command", "url", "versions", "truncated"}
    with ocdbt_py.open(database) as db:
        versions = list(db.versions())
    for row, version in zip(document["versions"], versions, strict=True):
        assert row == {
            "generation": version.generation,
            "commit_time": row["commit_time"],
            "num_keys": version.num_keys,
            "num_tree_bytes": version.num_tree_bytes,
            "num_indirect_value_bytes": version.num_indirect_value_bytes,
        }
        assert datetime.fromisoformat(row["commit_time"]) == version.commit_time
