"""What the corpus records of a database, taken through our own engine, to be held against it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from ocdbt_py.database import Database
from ocdbt_py.engine.engine import Engine
from ocdbt_py.engine.mutations import Mutations
from ocdbt_py.engine.options import Config
from ocdbt_py.engine.tree import Tree
from ocdbt_py.format.btree import InteriorNode
from ocdbt_py.format.datafile import Location


def digest(items: Iterable[tuple[bytes, bytes]]) -> str:
    """SHA-256 over a line for each key: its hex, the length of its value, the value's SHA-256."""
    whole = hashlib.sha256()
    for key, value in items:
        whole.update(f"{key.hex()} {len(value)} {hashlib.sha256(value).hexdigest()}\n".encode())
    return whole.hexdigest()


def engine_of(database: Database) -> Engine:
    return database._engine


def tree_levels(engine: Engine, tree: Tree) -> list[list[tuple[int, bytes, Location]]]:
    """Per level from the root, per node: number of entries, first full key, location."""
    version = tree.version
    if version.root is None:
        return []
    levels = []
    current = [(version.root, b"", b"", None)]
    for height in range(version.root_height, -1, -1):
        row, below = [], []
        for location, prefix, lower, upper in current:
            node = engine.nodes.btree(location, height, prefix, lower, upper)
            row.append((len(node.keys), node.keys[0], location))
            if isinstance(node, InteriorNode):
                ends = [*node.keys[1:], upper]
                for i, (key, end) in enumerate(zip(node.keys, ends, strict=True)):
                    below.append((node.location(i), key[: int(node.subtree_prefix_lengths[i])], key, end))
        levels.append(row)
        current = below  # type: ignore[assignment]
    return levels


def config_of(create_config: Mapping[str, Any]) -> Config:
    """The corpus's ``create_config``, in TensorStore's JSON, as ours."""
    fields = dict(create_config)
    compression = fields.pop("compression", "absent")
    if compression is None:
        fields["compression"] = None
    elif compression != "absent":
        fields["compression"] = f"zstd:{compression.get('level', 0)}"
    return Config(**fields)


def value_of(operation: list[Any]) -> bytes:
    """The value of a put: given in hex, or pseudo-random from a seed."""
    if operation[2] == "hex":
        return bytes.fromhex(operation[3])
    seed, length = operation[3:]
    blocks = (hashlib.sha256(f"{seed}:{i}".encode()).digest() for i in range(-(-length // 32)))
    return b"".join(blocks)[:length]


def mutations_of(batch: Iterable[list[Any]]) -> Mutations:
    """One of the corpus's batches: one commit."""
    mutations = Mutations()
    for operation in batch:
        key = bytes.fromhex(operation[1])
        if operation[0] == "put":
            mutations.put(key, value_of(operation))
        elif operation[0] == "del":
            mutations.delete(key)
        else:
            mutations.delete_range(key, bytes.fromhex(operation[2]) or None)
    return mutations
