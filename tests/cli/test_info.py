"""``ocdbt info``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import ocdbt_py

Run = Callable[..., Any]


def test_a_database_shows_its_configuration_and_newest_version(run: Run, database: Path) -> None:
    facts = dict(line.split(maxsplit=1) for line in run("info", database).lines)
    assert facts["url"] == str(database)
    assert facts["layout"] == "a database"
    assert facts["versions"] == "3"
    assert facts["version"].startswith("v3, 20")
    assert facts["keys"] == "5"
    assert facts["values"] == "300 B out of line"
    assert facts["max_inline_value_bytes"] == "100"
    assert facts["compression"] == "zstd"


def test_a_checkpoint_shows_its_leaves_and_metadata_too(run: Run, checkpoint: Path) -> None:
    out = run("info", checkpoint).out
    assert "leaves                   7, of which 4 arrays\n" in out
    assert "arrays                   604 elements, 4.8 kB uncompressed\n" in out
    assert '"lr": 0.1' in out
    assert all(len(line) <= 80 for line in out.splitlines() if str(checkpoint) not in line)


def test_the_document_of_a_database(run: Run, database: Path) -> None:
    document = run("info", database, "--json").document
    assert document.keys() == {"command", "url", "kind", "layout", "files", "stored_bytes", "database", "checkpoint"}
    assert (document["kind"], document["checkpoint"]) == ("database", None)
    files = [file for file in database.rglob("*") if file.is_file() and not file.name.endswith(".__lock")]
    assert (document["files"], document["stored_bytes"]) == (len(files), sum(file.stat().st_size for file in files))
    found = document["database"]
    assert found["versions"] == 3
    assert found["version"].keys() == {
        "generation",
        "commit_time",
        "num_keys",
        "num_tree_bytes",
        "num_indirect_value_bytes",
    }
    assert found["config"].keys() == {
        "uuid",
        "manifest_kind",
        "max_inline_value_bytes",
        "max_decoded_node_bytes",
        "version_tree_arity_log2",
        "compression",
    }


def test_the_document_of_a_checkpoint(run: Run, checkpoint: Path) -> None:
    document = run("info", checkpoint, "--json").document
    assert (document["kind"], document["layout"]) == ("checkpoint", "a pytree")
    assert document["checkpoint"] == {
        "items": [],
        "leaves": 7,
        "arrays": 4,
        "parameters": 604,
        "nbytes": 4820,
        "custom_metadata": {"lr": 0.1},
    }
    assert document["database"]["version"]["num_keys"] == 8


def test_a_checkpoint_without_arrays_has_no_database(run: Run, tmp_path: Path) -> None:
    ocdbt_py.save(tmp_path / "c", {"a": "text"}, durable=False)
    assert run("info", tmp_path / "c", "--json").document["database"] is None
    assert run("ls", tmp_path / "c").lines == ["a"]
    assert run("verify", tmp_path / "c").code == 0


def test_the_items_of_a_step_are_named_and_one_can_be_picked(run: Run, tmp_path: Path) -> None:
    step = tmp_path / "7"
    for item in ("state", "ema"):
        ocdbt_py.save(step / item, {item: np.zeros(3)}, durable=False)
        (step / item / "_CHECKPOINT_METADATA").rename(step / "_CHECKPOINT_METADATA")
    done = run("ls", step)
    assert (done.code, done.err) == (
        2,
        f"ocdbt ls: {step} is a checkpoint of several items, or of none that is a pytree: ema, state. "
        "Say which with --item NAME\n",
    )
    assert run("ls", step, "--item", "ema").lines == ["ema"]
    assert run("ls", step, "--item", "ema", "--keys").lines == ["ema/.zarray", "ema/0"]
    assert run("info", step, "--item", "ema", "--json").document["checkpoint"]["items"] == ["ema", "state"]
    assert run("ls", step, "--item", "emma").code == 2
