"""Locations to decoded nodes: read, checked against what referred to them, and cached.

Nodes never change, so what is cached is never re-validated; the cache holds a bounded number of decoded bytes and
drops what was used longest ago. The checks are those a reader owes its parent ("Checks when following a reference"):
they end cycles and keep a damaged tree from answering for keys that are not its own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

from ocdbt_py.engine.process_lock import ProcessLock
from ocdbt_py.errors import CorruptDataError, NotFoundError
from ocdbt_py.format.btree import InteriorNode, LeafNode, decode_btree_node
from ocdbt_py.format.datafile import DataFileId, Location
from ocdbt_py.format.key_column import KeyColumn
from ocdbt_py.format.versions import VersionNode, decode_version_node
from ocdbt_py.storage.protocol import Storage

BTreeNode = LeafNode | InteriorNode
T = TypeVar("T", LeafNode, InteriorNode, VersionNode)

# What a decoded entry costs beside its bytes: the key's object, its slot, and eight bytes in each column.
_ENTRY_BYTES = 120
_NODE_BYTES = 1000

_TOGETHER_BYTES = 8 << 20  # of nodes, requested and held at a time as they are stored


def file_path(base: str, file: DataFileId) -> str:
    """The storage path of a data file; a name that leads out of the database is corrupt, as the file driver has it."""
    relative = (file.base_path + file.relative_path).decode("utf-8", "surrogateescape")
    if not relative or relative.startswith("/") or "\0" in relative or ".." in relative.split("/"):
        raise CorruptDataError(
            f"A reference names the file {relative!r}, which is not a path below the database; "
            "nothing outside a database is ever opened"
        )
    return f"{base}/{relative}"


def btree_fault(found: int, first: bytes, last: bytes, height: int, lower: bytes, upper: bytes | None) -> str | None:
    """What is wrong with a node of height ``found`` and keys from ``first`` to ``last``, for a parent that expects
    ``height`` and ``lower <= key < upper``; None if nothing is ("Checks when following a reference")."""
    if found != height:
        return f"expected height {height}, found {found}"
    if first < lower:
        return f"first key {first!r} is less than {lower!r}, where its parent has it begin"
    if upper is not None and last >= upper:
        return f"last key {last!r} is not less than {upper!r}, where its parent has the next node begin"
    return None


def version_node_fault(found: tuple[int, int, int], expected: tuple[int, int, int]) -> str | None:
    """Where a version tree node's height, arity and last generation are not those its reference makes one expect."""
    names = ("height", "version_tree_arity_log2", "last generation")
    for name, is_there, should_be in zip(names, found, expected, strict=True):
        if is_there != should_be:
            return f"expected {name} {should_be}, found {is_there}"
    return None


class Child(NamedTuple):
    """A B-tree node as its parent has it: where it is, how high, what its keys leave out and between which they lie."""

    location: Location
    height: int
    prefix: bytes
    lower: bytes
    upper: bytes | None


class Nodes:
    """The nodes and values of the database at ``base`` (a path in ``storage``, without a trailing slash)."""

    def __init__(self, storage: Storage, base: str, cache_bytes: int) -> None:
        self._storage = storage
        self._base = base
        self._cache: OrderedDict[tuple[Location, bytes], tuple[BTreeNode | VersionNode, int]] = OrderedDict()
        self._limit = cache_bytes
        self._held = 0
        self._lock = ProcessLock(on_fork=self._start_anew)

    def btree(self, location: Location, height: int, prefix: bytes, lower: bytes, upper: bytes | None) -> BTreeNode:
        """The node at ``location``, with full keys; ``prefix`` is what its parent's entry leaves out of them.

        ``height`` is what the parent says, ``lower <= key < upper`` what it allows.
        """
        return self.btrees([Child(location, height, prefix, lower, upper)])[0]

    def btrees(self, wanted: Sequence[Child]) -> list[BTreeNode]:
        """The nodes, each compared with what its parent expects; those not at hand are requested together."""
        nodes = [self._cached(each.location, each.prefix) for each in wanted]
        missing = [i for i, node in enumerate(nodes) if node is None]
        for i, data in zip(missing, self._read_all([wanted[i].location for i in missing]), strict=True):
            nodes[i] = self._decoded(data, wanted[i].location, wanted[i].prefix)
        found: list[BTreeNode] = []
        for node, (location, height, _, lower, upper) in zip(nodes, wanted, strict=True):
            assert isinstance(node, LeafNode | InteriorNode)
            fault = btree_fault(node.height, node.keys[0], node.keys[-1], height, lower, upper)
            if fault is not None:
                raise self._at(CorruptDataError(f"B-tree node: {fault}"), location)
            found.append(node)
        return found

    def any_btree(self, location: Location, prefix: bytes) -> BTreeNode:
        """The node at ``location``, not compared with what its parent expects."""
        node = self._cached(location, prefix)
        if node is None:
            node = self._decoded(self._read(location, "B-tree node"), location, prefix)
        assert not isinstance(node, VersionNode)
        return node

    def _decoded(self, data: bytes, location: Location, prefix: bytes) -> BTreeNode:
        try:
            node = decode_btree_node(data, base_path=location.file.base_path, prefix=prefix)
        except CorruptDataError as error:
            raise self._at(error, location) from None
        self.keep(location, prefix, node)
        return node

    def _read_all(self, locations: Sequence[Location]) -> Iterator[bytes]:
        """What is stored of each node, many in a request."""
        start = 0
        while start < len(locations):
            stop, size = start, 0
            while stop < len(locations) and (stop == start or size + locations[stop].length <= _TOGETHER_BYTES):
                size += locations[stop].length
                stop += 1
            if stop == start + 1:
                yield self._read(locations[start], "B-tree node")
            else:
                ranges = [
                    (file_path(self._base, at.file), at.offset, at.offset + at.length) for at in locations[start:stop]
                ]
                try:
                    yield from self._storage.read_many(ranges)
                except (NotFoundError, CorruptDataError):
                    # one by one, to say which
                    yield from (self._read(at, "B-tree node") for at in locations[start:stop])
            start = stop

    def keep(self, location: Location, prefix: bytes, node: BTreeNode) -> None:
        """Remember a node, read or just written, as far as there is room."""
        nbytes = int(node.keys.lengths.sum()) if type(node.keys) is KeyColumn else sum(map(len, node.keys))
        size = len(node.keys) * _ENTRY_BYTES + nbytes + _NODE_BYTES
        size += len(node.inline) if isinstance(node, LeafNode) else 0
        self._keep(location, prefix, node, size)

    def forget(self, location: Location, prefix: bytes) -> None:
        """Do not remember a node any more: a commit has just put another one in its place.

        Few ask for it again, and a writer that kept them all would fill the memory with them, each in new pages.
        """
        with self._lock:
            _, size = self._cache.pop((location, prefix), (None, 0))
            self._held -= size

    def version_node(self, location: Location, height: int, arity_log2: int, generation: int) -> VersionNode:
        """The version tree node at ``location``, which must have this height, arity and last generation."""
        node = self.any_version_node(location)
        found = (node.height, node.version_tree_arity_log2, node.entries[-1].generation)
        fault = version_node_fault(found, (height, arity_log2, generation))
        if fault is not None:
            raise self._at(CorruptDataError(f"Version tree node: {fault}"), location)
        return node

    def any_version_node(self, location: Location) -> VersionNode:
        """The version tree node at ``location``, not compared with what is expected of it."""
        node = self._cached(location, b"")
        if node is None:
            data = self._read(location, "Version tree node")
            try:
                node = decode_version_node(data, base_path=location.file.base_path)
            except CorruptDataError as error:
                raise self._at(error, location) from None
            self._keep(location, b"", node, _NODE_BYTES + len(node.entries) * 4 * _ENTRY_BYTES)
        assert isinstance(node, VersionNode)
        return node

    def values(self, ranges: Sequence[tuple[Location, int, int]]) -> list[bytes]:
        """Bytes ``[start, stop)`` of each stored value, requested together."""
        if not ranges:
            return []
        requests = [
            (file_path(self._base, where.file), where.offset + start, where.offset + stop)
            for where, start, stop in ranges
        ]
        try:
            return self._storage.read_many(requests)
        except NotFoundError as error:
            raise self._missing(error, "A value", error.path) from error

    def fill(self, fillings: Sequence[tuple[Location, int, memoryview]]) -> None:
        """As :meth:`values`, from ``start`` on into each buffer."""
        if not fillings:
            return
        try:
            self._storage.read_many_into(
                [(file_path(self._base, where.file), where.offset + start, buffer) for where, start, buffer in fillings]
            )
        except NotFoundError as error:
            raise self._missing(error, "A value", error.path) from error

    def _read(self, location: Location, what: str) -> bytes:
        path = file_path(self._base, location.file)
        try:
            return self._storage.read_many([(path, location.offset, location.offset + location.length)])[0]
        except NotFoundError as error:
            raise self._missing(error, what, path) from error
        except CorruptDataError as error:
            raise CorruptDataError(
                f"{what}: {location.length} bytes expected, but the file is cut short or another database's "
                f"({error.message})",
                path=path,
                offset=location.offset,
            ) from error

    def _missing(self, error: NotFoundError, what: str, path: str | None) -> CorruptDataError:
        return CorruptDataError(
            f"{what} lies in a data file that is not there; the directory was copied without it, or it was deleted",
            path=path or error.path,
            url=self._storage.describe(self._base),
        )

    def _at(self, error: CorruptDataError, location: Location) -> CorruptDataError:
        path = file_path(self._base, location.file)
        return CorruptDataError(
            error.message,
            path=path,
            offset=location.offset + (error.offset or 0),
            url=self._storage.describe(self._base),
        )

    def _start_anew(self) -> None:
        self._cache.clear()
        self._held = 0

    def _cached(self, location: Location, prefix: bytes) -> BTreeNode | VersionNode | None:
        with self._lock:
            found = self._cache.get((location, prefix))
            if found is None:
                return None
            self._cache.move_to_end((location, prefix))
            return found[0]

    def _keep(self, location: Location, prefix: bytes, node: BTreeNode | VersionNode, size: int) -> None:
        if size > self._limit:
            return
        with self._lock:
            if (location, prefix) in self._cache:
                return
            self._cache[location, prefix] = (node, size)
            self._held += size
            while self._held > self._limit:
                _, (_, dropped) = self._cache.popitem(last=False)
                self._held -= dropped
