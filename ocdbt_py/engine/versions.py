"""The version tree: find a version, walk all of them, append one.

The manifest holds the newest versions inline, up to the next multiple of the tree's arity; older ones lie in version
tree nodes, one reference per height ("Version tree"). Nothing here reads more than one node per height to find a
version, or rewrites more than one per height to append one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

from ocdbt_py.engine.data_files import DataFiles
from ocdbt_py.engine.nodes import Nodes
from ocdbt_py.engine.rewrite import EMPTY, Root
from ocdbt_py.errors import InvalidArgumentError
from ocdbt_py.format.manifest import Manifest
from ocdbt_py.format.versions import (
    VersionEntry,
    VersionNode,
    VersionNodeReference,
    encode_version_node,
    reference_ranges,
)

MAX_GENERATION = (1 << 64) - 2


def root_of(version: VersionEntry | None) -> Root:
    """The tree a version names; of no version, the empty one."""
    if version is None or version.root is None:
        return EMPTY
    return Root(
        version.root_height,
        version.root,
        version.num_keys,
        version.num_tree_bytes,
        version.num_indirect_value_bytes,
    )


def by_generation(manifest: Manifest, generation: int, nodes: Nodes) -> VersionEntry | None:
    """The version of this number, or None."""
    arity_log2 = manifest.config.version_tree_arity_log2
    entries: tuple[VersionEntry, ...] | tuple[VersionNodeReference, ...] = manifest.versions
    if not entries:
        return None
    if generation < entries[0].generation:
        entries = manifest.version_nodes
    while entries and not isinstance(entries[0], VersionEntry):
        reference = next((entry for entry in entries if entry.generation >= generation), None)
        if reference is None or not isinstance(reference, VersionNodeReference):
            return None
        stride_log2 = arity_log2 * (reference.height + 1)
        if generation <= (reference.generation - 1) >> stride_log2 << stride_log2:
            return None  # before the block of generations that this node can hold
        entries = _entries(reference, arity_log2, nodes)
    for entry in entries:
        if entry.generation == generation and isinstance(entry, VersionEntry):
            return entry
    return None


def by_time(manifest: Manifest, commit_time_ns: int, nodes: Nodes) -> VersionEntry | None:
    """The newest version committed at or before this time (nanoseconds since the epoch), or None."""
    entries: tuple[VersionEntry, ...] | tuple[VersionNodeReference, ...] = manifest.versions
    if not entries:
        return None
    if commit_time_ns < entries[0].commit_time_ns:
        entries = manifest.version_nodes
    while entries:
        # references carry the earliest time of their subtree, so the last that began in time holds the answer
        at = bisect_right([entry.commit_time_ns for entry in entries], commit_time_ns) - 1
        if at < 0:
            return None
        entry = entries[at]
        if isinstance(entry, VersionEntry):
            return entry
        entries = _entries(entry, manifest.config.version_tree_arity_log2, nodes)
    return None


def newest_first(manifest: Manifest, nodes: Nodes) -> Iterator[VersionEntry]:
    """Every version, newest first; a version tree node is read when its turn comes."""
    yield from reversed(manifest.versions)
    # the last is the newest; a node's entries go on the stack in order, so that the newest is taken first
    pending = list(manifest.version_nodes)
    while pending:
        for entry in (entries := _entries(pending.pop(), manifest.config.version_tree_arity_log2, nodes)):
            if isinstance(entry, VersionNodeReference):
                pending.append(entry)
        if isinstance(entries[0], VersionEntry):
            yield from reversed(entries)


def append(manifest: Manifest, version: VersionEntry, nodes: Nodes, data_files: DataFiles, prefix: str) -> Manifest:
    """The manifest with one more version; full blocks of versions move to nodes behind ``prefix``."""
    config = manifest.config
    arity_log2 = config.version_tree_arity_log2
    if version.generation > MAX_GENERATION:
        raise InvalidArgumentError(f"The database has used up its generation numbers at {version.generation}")
    latest = manifest.latest
    if latest is None or (latest.generation - 1) >> arity_log2 == (version.generation - 1) >> arity_log2:
        return Manifest(config, (*manifest.versions, version), manifest.version_nodes)

    def write(
        height: int, entries: tuple[VersionEntry, ...] | tuple[VersionNodeReference, ...]
    ) -> VersionNodeReference:
        node = VersionNode(arity_log2, height, entries)
        location = data_files.append(prefix, encode_version_node(node, config.compression))
        generations = sum(entry.num_generations if isinstance(entry, VersionNodeReference) else 1 for entry in entries)
        return VersionNodeReference(entries[-1].generation, location, generations, entries[0].commit_time_ns, height)

    before = {reference.height: reference for reference in manifest.version_nodes}
    references: dict[int, VersionNodeReference] = {}
    beginning: list[tuple[int, VersionNodeReference]] = []
    growing: list[tuple[VersionNodeReference, VersionNodeReference]] = []
    outgrown: VersionNodeReference | None = write(0, manifest.versions)
    for low, high, height in reference_ranges(version.generation, arity_log2):
        kept = before.get(height)
        if kept is not None and not low <= kept.generation <= high:
            kept = None
        child = outgrown if outgrown is not None and low <= outgrown.generation <= high else None
        if child is not None and kept is not None:
            growing.append((kept, child))
        elif child is not None:
            beginning.append((height, child))
        elif kept is not None:
            references[height] = kept
        outgrown = before.get(height)
    # in the order in which TensorStore's files hold them: from the top, and last the one whose node must be read first
    for height, child in reversed(beginning):
        references[height] = write(height, (child,))
    for kept, child in growing:
        siblings = _entries(kept, arity_log2, nodes)
        references[kept.height] = write(kept.height, (*siblings, child))
    newest_last = tuple(references[height] for height in sorted(references, reverse=True))
    return Manifest(config, (version,), newest_last)


def _entries(
    reference: VersionNodeReference, arity_log2: int, nodes: Nodes
) -> tuple[VersionEntry, ...] | tuple[VersionNodeReference, ...]:
    return nodes.version_node(reference.location, reference.height, arity_log2, reference.generation).entries
