"""``ocdbt tree``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import ocdbt_py

Run = Callable[..., Any]


def test_a_checkpoint_is_drawn_with_types_sizes_and_totals(run: Run, checkpoint: Path) -> None:
    done = run("tree", checkpoint)
    assert done.code == 0
    assert done.lines == [
        str(checkpoint),
        "├── name    str",
        "├── opt                           4 B",
        "│   ├── 0   int32                 4 B",
        "│   ├── 1   tuple",
        "│   └── 2   None",
        "├── params                     4.8 kB",
        "│   ├── b   float32[2]            8 B",
        "│   └── w   float64[20, 30]    4.8 kB",
        "└── step    int64                 8 B",
        "7 leaves, 4 arrays, 604 elements, 4.8 kB",
    ]


def test_a_database_is_drawn_by_the_slashes_of_its_keys(run: Run, database: Path) -> None:
    assert run("tree", database).lines[1:] == [
        "├── a                    302 B",
        "│   ├── long             300 B",
        "│   └── short              2 B",
        "├── n                      1 B",
        "├── w/.zarray             13 B",
        "└── z\\x1b[1m\\\\\\xff         2 B",
        "5 keys, 318 B",
    ]


def test_depth_leaves_out_what_lies_deeper_and_counts_it(run: Run, checkpoint: Path) -> None:
    lines = run("tree", checkpoint, "--depth", 1).lines
    assert any(line.startswith("├── params (2 leaves)") for line in lines)
    assert not any("float64" in line for line in lines)


def test_containers_of_one_child_share_its_line(run: Run, tmp_path: Path) -> None:
    tree = {"a": {"b": {"c": np.zeros(2), "d": {"e": np.zeros(3)}}}, "f": {"g": np.zeros(4)}}
    ocdbt_py.save(tmp_path / "c", tree, durable=False)
    assert [line.split("float")[0].rstrip() for line in run("tree", tmp_path / "c").lines[1:-1]] == [
        "├── a.b                      40 B",
        "│   ├── c",
        "│   └── d.e",
        "└── f.g",
    ]


def test_a_tree_deeper_than_python_recurses_is_drawn_down_to_a_limit(run: Run, tmp_path: Path) -> None:
    with ocdbt_py.open(tmp_path / "db", "a", durable=False) as db:
        db.update({"/".join("d" * 5000) + leaf: b"1" for leaf in "ab"})
    document = run("tree", tmp_path / "db", "--json").document
    assert len(document["nodes"]) == 100
    assert document["nodes"][-1]["hidden"]
    assert document["nodes"][-1]["items"] == 2
    assert run("tree", tmp_path / "db").code == 0


def test_the_document_has_a_node_for_each_line_and_totals(run: Run, checkpoint: Path) -> None:
    document = run("tree", checkpoint, "--json").document
    nodes = document.pop("nodes")
    assert document == {
        "command": "tree",
        "url": str(checkpoint),
        "kind": "checkpoint",
        "version": None,
        "items": 7,
        "arrays": 4,
        "parameters": 604,
        "nbytes": 4820,
    }
    assert [(node["depth"], node["name"], node["items"]) for node in nodes] == [
        (0, "name", 0),
        (0, "opt", 3),
        (1, "0", 0),
        (1, "1", 0),
        (1, "2", 0),
        (0, "params", 2),
        (1, "b", 0),
        (1, "w", 0),
        (0, "step", 0),
    ]
    assert nodes[7] == {
        "depth": 1,
        "name": "w",
        "type": "array",
        "dtype": "float64",
        "shape": [20, 30],
        "nbytes": 4800,
        "items": 0,
        "hidden": False,
    }
