"""``ocdbt ls``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

Run = Callable[..., Any]


def test_the_keys_of_a_database_come_one_a_line_in_byte_order(run: Run, database: Path) -> None:
    done = run("ls", database)
    assert done.code == 0
    assert done.lines == ["a/long", "a/short", "n", "w/.zarray", r"z\x1b[1m\\\xff"]


def test_a_prefix_selects_keys(run: Run, database: Path) -> None:
    assert run("ls", database, "a/").lines == ["a/long", "a/short"]
    assert run("ls", database, r"z\x1b").lines == [r"z\x1b[1m\\\xff"]
    assert run("ls", database, "nothing").lines == []


def test_long_listings_show_sizes_and_a_total(run: Run, database: Path, checkpoint: Path) -> None:
    assert run("ls", "-l", database, "a").lines == ["300 B  a/long", "  2 B  a/short", "2 keys, 302 B"]
    assert run("ls", "-l", checkpoint, "params").lines == [
        "float32[2]          8 B  params.b",
        "float64[20, 30]  4.8 kB  params.w",
        "2 leaves, 4.8 kB",
    ]


def test_an_old_version_lists_its_own_keys(run: Run, database: Path) -> None:
    assert "n" not in run("ls", database, "--version", "v2").lines
    assert run("ls", f"{database}|ocdbt:@v2/a/").lines == ["long", "short"]
    assert run("ls", database, "--version", "v1").lines == []
    assert run("ls", database, "--version", "v9").code == 2


def test_the_leaves_of_a_checkpoint_come_in_the_order_of_its_tree(run: Run, checkpoint: Path) -> None:
    assert run("ls", checkpoint).lines == ["name", "opt.0", "opt.1", "opt.2", "params.b", "params.w", "step"]


def test_a_checkpoint_is_also_a_database(run: Run, checkpoint: Path) -> None:
    assert run("ls", checkpoint, "params.w/", "--keys").lines == ["params.w/.zarray", "params.w/0.0"]


def test_the_document_of_a_database(run: Run, database: Path) -> None:
    assert run("ls", database, "a", "--json").document == {
        "command": "ls",
        "url": str(database),
        "kind": "database",
        "version": 3,
        "items": [
            {"name": "a/long", "type": "value", "dtype": None, "shape": None, "nbytes": 300},
            {"name": "a/short", "type": "value", "dtype": None, "shape": None, "nbytes": 2},
        ],
        "nbytes": 302,
    }


def test_the_document_of_a_checkpoint(run: Run, checkpoint: Path) -> None:
    document = run("ls", checkpoint, "--json").document
    assert (document["kind"], document["version"], document["nbytes"]) == ("checkpoint", None, 4820)
    items = {item.pop("name"): item for item in document["items"]}
    assert items["params.w"] == {"type": "array", "dtype": "float64", "shape": [20, 30], "nbytes": 4800}
    assert items["name"] == {"type": "str", "dtype": None, "shape": None, "nbytes": None}
    assert [items[name]["type"] for name in ("opt.1", "opt.2", "step")] == ["tuple", "None", "array"]
