"""TensorStore's side of a comparison: a handle on a directory, and what ``ts.ocdbt.dump`` says lies there.

Two databases with the same history never hold the same bytes, because file names are random. What must be equal is
their form: which versions there are, and how each one's tree is built. :class:`Dump` gives both, as TensorStore sees
them, for its own databases and for ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tensorstore as ts

from ocdbt_py.engine.options import UNSET, Config

__all__ = ["Dump", "base_of", "contents_of", "fast_context", "in_one_commit", "json_config", "moment", "open_store"]

Json = dict[str, Any]
Form = list[Any]
"""Nested lists and tuples, only to be compared."""


def base_of(directory: Path | Json) -> Json:
    """TensorStore's spec of a directory: one on the local disk, or, given as that, one anywhere."""
    return {"driver": "file", "path": f"{directory}/"} if isinstance(directory, Path) else directory


def fast_context() -> Any:
    """One context for all handles that are to copy from each other. Nothing is synced: these are throw-away files."""
    return ts.Context({"file_io_sync": False})


def open_store(directory: Path | Json, context: Any = None, **options: Any) -> Any:
    """TensorStore's handle on the database in a directory; ``options`` are members of its spec."""
    spec = {"driver": "ocdbt", "base": base_of(directory), **options}
    return ts.KvStore.open(spec, context=context or fast_context()).result()


def json_config(config: Config) -> Json:
    """Our configuration as a member of TensorStore's spec."""
    names = ("manifest_kind", "max_inline_value_bytes", "max_decoded_node_bytes", "version_tree_arity_log2")
    given = {name: getattr(config, name) for name in names if getattr(config, name) is not None}
    if config.compression is None:
        given["compression"] = None
    elif config.compression is not UNSET:
        given["compression"] = {"id": "zstd", "level": int(config.compression.partition(":")[2] or 0)}
    return given


def in_one_commit(store: Any, values: Mapping[bytes, bytes]) -> None:
    """Put all of a mapping in one version; of nothing, make at least a database."""
    if not values:
        store.delete_range(ts.KvStore.KeyRange()).result()
        return
    transaction = ts.Transaction(atomic=True)
    for key, value in values.items():
        store.with_transaction(transaction)[key] = value
    transaction.commit_sync()


def contents_of(store: Any) -> dict[bytes, bytes]:
    """All keys with their values, in the order of the keys."""
    reads = [(key, store.read(key)) for key in sorted(store.list().result())]
    return {key: read.result().value for key, read in reads}


def moment(nanoseconds: int) -> str:
    """A time since the epoch, as both engines take it for a version."""
    second, fraction = divmod(nanoseconds, 10**9)
    return f"{datetime.fromtimestamp(second, UTC):%Y-%m-%dT%H:%M:%S}.{fraction:09d}Z"


class Dump:
    """``ts.ocdbt.dump`` of the database in a directory. What lies at a location never changes, so it is asked once."""

    def __init__(self, directory: Path | Json) -> None:
        self._base = ts.KvStore.open(base_of(directory)).result()
        self._nodes: dict[str, Any] = {}
        self._sums: dict[str, Json] = {}

    def manifest(self) -> Json:
        """The newest manifest, with what it holds of the history."""
        manifest: Json = ts.ocdbt.dump(self._base).result()
        return manifest

    def at(self, location: str) -> Any:
        """The node or value at a ``location`` that some manifest or node gave."""
        if location not in self._nodes:
            self._nodes[location] = ts.ocdbt.dump(self._base, location).result()
        return self._nodes[location]

    def versions(self, manifest: Json) -> list[Json]:
        """Every version, oldest first."""
        return [*self._versions_below(manifest["version_tree_nodes"]), *manifest["versions"]]

    def _versions_below(self, references: Iterable[Json]) -> Iterator[Json]:
        for reference in references:
            entries = self.at(reference["location"])["entries"]
            yield from entries if reference["height"] == 0 else self._versions_below(entries)

    def history_form(self, manifest: Json) -> Form:
        """How the versions lie in nodes: of every reference, at its place, height, last generation and how many."""
        return [*self._references_form(manifest["version_tree_nodes"]), len(manifest["versions"])]

    def _references_form(self, references: Iterable[Json]) -> Form:
        form = []
        for reference in references:
            node = self.at(reference["location"])
            below = len(node["entries"]) if node["height"] == 0 else self._references_form(node["entries"])
            form.append((reference["height"], reference["generation_number"], reference["num_generations"], below))
        return form

    def tree_form(self, version: Json) -> list[Form]:
        """Per level from the root, each node as its entries, with whole keys.

        An entry of a leaf is its key and the value, or where that is out of line, from which base path and how long;
        one above is its key, the prefix that keys below leave out, and the statistics that do not depend on names.
        """
        levels = []
        current = [(version["root"]["location"], b"")] if "location" in version["root"] else []
        while current:
            level, below = [], []
            for location, prefix in current:
                node: Form = []
                for entry in self.at(location)["entries"]:
                    key = prefix + entry["key"]
                    if "location" in entry:
                        shared, statistics = prefix + entry["subtree_common_prefix"], entry["statistics"]
                        node.append((key, shared, statistics["num_keys"], statistics["num_indirect_value_bytes"]))
                        below.append((entry["location"], shared))
                    elif "inline_value" in entry:
                        node.append((key, entry["inline_value"]))
                    else:
                        _, base, _, _, length = entry["indirect_value"].split(":")
                        node.append((key, base, int(length)))
                level.append(node)
            levels.append(level)
            current = below
        return levels

    def sums(self, location: str) -> Json:
        """The statistics of a B-tree node, added up from what lies below it; what entries state must be equal."""
        if location not in self._sums:
            sums = {"num_indirect_value_bytes": 0, "num_keys": 0, "num_tree_bytes": int(location.rpartition(":")[2])}
            for entry in self.at(location)["entries"]:
                if "location" in entry:
                    below = self.sums(entry["location"])
                    assert entry["statistics"] == below
                else:
                    value = entry.get("indirect_value", "").rpartition(":")[2]
                    below = {"num_indirect_value_bytes": int(value or 0), "num_keys": 1, "num_tree_bytes": 0}
                sums = {name: sums[name] + below[name] for name in sums}
            self._sums[location] = sums
        return self._sums[location]
