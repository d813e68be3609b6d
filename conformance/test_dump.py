"""Node by node, what ``ts.ocdbt.dump`` sees in databases that we wrote is what we decode ourselves.

:class:`OurDump` says in TensorStore's JSON what our decoders find in the bytes; the walk asks both about every node
that any version refers to.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote_to_bytes

import pytest

import ocdbt_py
from conformance.observe import engine_of
from conformance.oracle import Dump, in_one_commit, open_store
from ocdbt_py.format.btree import InteriorNode, decode_btree_node
from ocdbt_py.format.config import StoredConfig
from ocdbt_py.format.datafile import Location
from ocdbt_py.format.versions import VersionEntry, VersionNodeReference, decode_version_node

Json = dict[str, Any]


class OurDump:
    """Our decoders' view of the database in a directory, in the words of ``ts.ocdbt.dump``."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def manifest(self) -> Json:
        with ocdbt_py.open(self._directory) as db:
            manifest = engine_of(db).current().manifest
        assert manifest is not None
        return {
            "config": _config(manifest.config),
            "version_tree_nodes": list(map(_reference, manifest.version_nodes)),
            "versions": list(map(_version, manifest.versions)),
        }

    def at(self, location: str) -> Any:
        kind, base, relative, offset, length = location.split(":")
        base_path = unquote_to_bytes(base)
        path = self._directory / (base_path + unquote_to_bytes(relative)).decode()
        data = path.read_bytes()[int(offset) :][: int(length)]
        if kind == "value":
            return data
        if kind == "versionnode":
            return _version_node(data, base_path)
        return _btree_node(data, base_path)


def _location(kind: str, location: Location) -> str:
    # quote never quotes "~", which TensorStore does
    parts = [quote(part, safe="-_./").replace("~", "%7E") for part in location.file]
    return ":".join([kind, *parts, str(location.offset), str(location.length)])


def _config(config: StoredConfig) -> Json:
    compression: Json | None = None
    if config.compression is not None:
        level = config.compression.level
        compression = {"id": "zstd", "level": level} if level else {"id": "zstd"}
    return {
        "compression": compression,
        "max_decoded_node_bytes": config.max_decoded_node_bytes,
        "max_inline_value_bytes": config.max_inline_value_bytes,
        "uuid": config.uuid.hex(),
        "version_tree_arity_log2": config.version_tree_arity_log2,
    }


def _version(entry: VersionEntry) -> Json:
    root: Json = {"statistics": _statistics(entry.num_keys, entry.num_tree_bytes, entry.num_indirect_value_bytes)}
    if entry.root is not None:
        root["location"] = _location("btreenode", entry.root)
    return {
        "commit_time": entry.commit_time_ns,
        "generation_number": entry.generation,
        "root": root,
        "root_height": entry.root_height,
    }


def _reference(entry: VersionNodeReference) -> Json:
    return {
        "commit_time": entry.commit_time_ns,
        "generation_number": entry.generation,
        "height": entry.height,
        "location": _location("versionnode", entry.location),
        "num_generations": entry.num_generations,
    }


def _version_node(data: bytes, base_path: bytes) -> Json:
    node = decode_version_node(data, base_path=base_path)
    entries = [_version(each) if isinstance(each, VersionEntry) else _reference(each) for each in node.entries]
    return {"entries": entries, "height": node.height, "version_tree_arity_log2": node.version_tree_arity_log2}


def _btree_node(data: bytes, base_path: bytes) -> Json:
    node = decode_btree_node(data, base_path=base_path)  # without a prefix: keys as they are stored
    entries: list[Json] = []
    for i, key in enumerate(node.keys):
        if isinstance(node, InteriorNode):
            numbers = (node.num_keys[i], node.num_tree_bytes[i], node.num_indirect_value_bytes[i])
            entries.append(
                {
                    "key": key,
                    "location": _location("btreenode", node.location(i)),
                    "statistics": _statistics(*map(int, numbers)),
                    "subtree_common_prefix": key[: int(node.subtree_prefix_lengths[i])],
                }
            )
        else:
            value = node.value(i)
            if isinstance(value, Location):
                entries.append({"indirect_value": _location("value", value), "key": key})
            else:
                entries.append({"inline_value": value, "key": key})
    return {"entries": entries, "height": node.height}


def _statistics(num_keys: int, num_tree_bytes: int, num_indirect_value_bytes: int) -> Json:
    return {
        "num_indirect_value_bytes": num_indirect_value_bytes,
        "num_keys": num_keys,
        "num_tree_bytes": num_tree_bytes,
    }


# --- databases that we write


def tree(directory: Path, **config: Any) -> None:
    """Keys with a long common prefix and without, values in line, empty, and out of line; then changes and removals."""
    with ocdbt_py.open(directory, "x", config=ocdbt_py.Config(**config), durable=False) as db:
        db.update({f"common/prefix/{i:03}": b"v%d" % i * (i % 60) for i in range(150)})
        db.update({b"": b"", b"\0\xff": b"1", "é": b"2" * 500, b"\xff" * 300: b"3"})
        db.delete_range("common/prefix/02", "common/prefix/07")
        for i in range(0, 150, 20):
            db[f"common/prefix/{i:03}"] = b"new" * i


def one_node(directory: Path) -> None:
    tree(directory)


def nodes_of_one_entry(directory: Path) -> None:
    tree(directory, max_decoded_node_bytes=1, max_inline_value_bytes=0)


def small_nodes_uncompressed(directory: Path) -> None:
    tree(directory, max_decoded_node_bytes=600, compression=None)


def another_level_of_zstd(directory: Path) -> None:
    tree(directory, max_decoded_node_bytes=1500, compression="zstd:7", max_inline_value_bytes=20)


def numbered(directory: Path) -> None:
    tree(directory, max_decoded_node_bytes=600, manifest_kind="numbered", version_tree_arity_log2=1)


def emptied(directory: Path) -> None:
    tree(directory, max_decoded_node_bytes=100)
    with ocdbt_py.open(directory, "r+", durable=False) as db:
        db.clear()


def many_versions(directory: Path) -> None:
    """Version tree nodes of heights 0 to 4."""
    config = ocdbt_py.Config(version_tree_arity_log2=1, max_decoded_node_bytes=100)
    with ocdbt_py.open(directory, "x", config=config, durable=False) as db:
        for i in range(50):
            db[f"{i:02}"] = b"%d" % i


def odd_file_names(directory: Path) -> None:
    """Everything that a location spells with a percent sign; and one prefix for each kind of data."""
    options = ocdbt_py.WriteOptions(
        value_data_prefix="values ä:~%/",
        btree_node_data_prefix="nodes+(1)/",
        version_tree_node_data_prefix="v=1&2/",
        target_data_file_size=1000,
    )
    config = ocdbt_py.Config(max_decoded_node_bytes=300, version_tree_arity_log2=1)
    with ocdbt_py.open(directory, "x", config=config, write_options=options, durable=False) as db:
        for i in range(6):
            db.update({f"{i}{j}": b"%d" % j * 200 for j in range(10)})


def chain_of_merges(directory: Path) -> None:
    """Three databases, each below the next, the lowest written by TensorStore."""
    part, whole = directory / "ocdbt.process_0", directory
    below = part / "deep er/down"
    in_one_commit(open_store(below), {b"%02d" % i: b"%d" % i * 70 for i in range(40)})
    config = ocdbt_py.Config(max_decoded_node_bytes=400)
    for place, source, to in ((part, below, "x/"), (whole, part, "y/")):
        with ocdbt_py.open(place, "x", config=config, durable=False) as db, ocdbt_py.open(source) as lower:
            db[to + "own"] = b"own" * 100
            db.copy_from(lower, to=to)


SHAPES = [
    one_node,
    nodes_of_one_entry,
    small_nodes_uncompressed,
    another_level_of_zstd,
    numbered,
    emptied,
    many_versions,
    odd_file_names,
    chain_of_merges,
]


@pytest.fixture(params=SHAPES, ids=lambda shape: shape.__name__)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    write: Callable[[Path], None] = request.param
    write(tmp_path / "db")
    return tmp_path / "db"


# --- the walk


def locations_in(found: Any) -> Iterator[str]:
    """Every location that a dumped manifest or node names."""
    if isinstance(found, list):
        for each in found:
            yield from locations_in(each)
    elif isinstance(found, dict):
        for name, inner in found.items():
            if name in ("location", "indirect_value"):
                yield inner
            else:
                yield from locations_in(inner)


def walked(directory: Path) -> dict[str, Any]:
    """What both dumps say, equally, of the manifest and all that can be reached from it, by location."""
    ours, theirs = OurDump(directory), Dump(directory)
    manifest = ours.manifest()
    assert manifest == theirs.manifest()
    seen: dict[str, Any] = {"manifest": manifest}
    pending = list(locations_in(manifest))
    while pending:
        location = pending.pop()
        if location not in seen:
            seen[location] = ours.at(location)
            assert seen[location] == theirs.at(location)
            pending += locations_in(seen[location])
    return seen


def test_every_node_and_value_is_dumped_as_we_decode_it(database: Path) -> None:
    walked(database)


def test_the_databases_hold_what_the_walk_is_about(tmp_path: Path) -> None:
    kinds: Counter[str] = Counter()
    for write in SHAPES:
        write(tmp_path / write.__name__)
        for location, found in walked(tmp_path / write.__name__).items():
            kind, _, path = location.partition(":")
            if kind in ("btreenode", "versionnode"):
                kind += f" of height {found['height']}"
            kinds[kind] += 1
            base = path.partition(":")[0]
            if base:
                kinds[f"base path {base}"] += 1
        shutil.rmtree(tmp_path / write.__name__)
    assert {f"btreenode of height {height}" for height in range(8)} <= set(kinds)
    assert {f"versionnode of height {height}" for height in range(5)} <= set(kinds)
    assert {"base path ocdbt.process_0/", "base path ocdbt.process_0/deep%20er/down/"} <= set(kinds)
    assert kinds["manifest"] == len(SHAPES)
    assert kinds["value"] > 100


def test_all_statistics_are_the_sums_of_what_lies_below(database: Path) -> None:
    dump = Dump(database)
    for version in dump.versions(dump.manifest()):
        root = version["root"]
        nothing = {"num_indirect_value_bytes": 0, "num_keys": 0, "num_tree_bytes": 0}
        assert root["statistics"] == (dump.sums(root["location"]) if "location" in root else nothing)
