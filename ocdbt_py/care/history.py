"""Every manifest, every version tree node and every version of a database.

A numbered database keeps up to 129 manifests, and each tells the whole history up to its generation: what two of them
say of one version must be the same. The newest is looked at first. When it cannot be read, readers refuse the database;
the check goes on with those before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ocdbt_py.care.files import Files
from ocdbt_py.care.report import Finding
from ocdbt_py.care.trees import Reporter
from ocdbt_py.engine.manifests import Manifests
from ocdbt_py.engine.nodes import Nodes, version_node_fault
from ocdbt_py.errors import ConfigMismatchError, CorruptDataError, NotFoundError
from ocdbt_py.format.config import ManifestKind
from ocdbt_py.format.datafile import Location
from ocdbt_py.format.manifest import MANIFEST_NAME, Manifest, numbered_manifest_name
from ocdbt_py.format.versions import VersionEntry, VersionNodeReference

CheckTree = Callable[[VersionEntry], bool]


@dataclass(frozen=True, slots=True)
class _Span:
    """The versions below a version tree node, or those of a manifest. ``shape``: height, arity and last generation.

    ``count`` and times are None where that could not be read.
    """

    shape: tuple[int, int, int]
    count: int | None
    first_time: int | None
    last_time: int | None


class History:
    """All versions. ``check_tree`` is called once for each, the newest first as far as manifests can be read."""

    def __init__(
        self, manifests: Manifests, nodes: Nodes, files: Files, check_tree: CheckTree, report: Reporter
    ) -> None:
        self._manifests = manifests
        self._nodes = nodes
        self._files = files
        self._check_tree = check_tree
        self._report = report
        self._known: dict[Location, _Span | None] = {}
        self._arity_log2 = 0
        self._manifest_name = MANIFEST_NAME
        self.versions: dict[int, VersionEntry] = {}
        self.unreadable: list[int] = []
        self.numbered = False

    @property
    def node_count(self) -> int:
        """Version tree nodes that were read."""
        return sum(span is not None for span in self._known.values())

    @property
    def complete(self) -> bool:
        """Every version tree node could be read."""
        return None not in self._known.values()

    def check(self) -> None:
        """Walk everything; :class:`NotFoundError` if there is no ``manifest.ocdbt``."""
        for name, manifest in self._all_manifests():
            self._manifest_name = name
            self._arity_log2 = manifest.config.version_tree_arity_log2
            if not manifest.versions:
                continue
            inline = self._span_of_versions(manifest.versions)
            spans = self._spans(manifest.version_nodes)
            self._check_order([*spans, inline])

    def _all_manifests(self) -> Iterator[tuple[str, Manifest]]:
        """With their names, the newest first."""
        try:
            stored = self._manifests.stored()
        except CorruptDataError as error:
            self._unreadable_manifest(MANIFEST_NAME, error)
            return
        if stored.config.manifest_kind is ManifestKind.SINGLE:
            yield MANIFEST_NAME, stored
            return
        self.numbered = True
        for number in sorted(self._manifests.numbers(), reverse=True):
            name = numbered_manifest_name(number)
            try:
                yield name, self._manifests.numbered(number, stored.config)
            except NotFoundError:
                continue  # a writer has trimmed it by now
            except (CorruptDataError, ConfigMismatchError) as error:
                self._unreadable_manifest(name, error)

    def _unreadable_manifest(self, name: str, error: CorruptDataError | ConfigMismatchError) -> None:
        remedy = (
            "put it back from a copy" if name == MANIFEST_NAME or not self.versions else "newer ones do not need it"
        )
        self._report(
            Finding(kind="manifest", message=f"{error.message} [{name}]; {remedy}", path=name, offset=error.offset)
        )

    def _spans(self, references: Sequence[VersionNodeReference]) -> list[_Span | None]:
        """What is below each reference, in their order; the newest are read first."""
        return [self._reach(reference) for reference in reversed(references)][::-1]

    def _reach(self, reference: VersionNodeReference) -> _Span | None:
        """What is below one reference; None where a reader would refuse it."""
        location = reference.location
        expected = (reference.height, self._arity_log2, reference.generation)
        if location not in self._known:
            if not self._files.node(location, b"", reference.generation):
                self._known[location] = None
                return None
            try:
                node = self._nodes.any_version_node(location)
            except CorruptDataError as error:
                self._known[location] = None
                self._found("version-node", f"{error.message}; put the file back from a copy", reference)
                return None
            shape = (node.height, node.version_tree_arity_log2, node.entries[-1].generation)
            if shape != expected:
                self._found("version-node", f"Version tree node: {version_node_fault(shape, expected)}", reference)
                return None
            self._known[location] = self._span_of(shape, node.entries)
        span = self._known[location]
        if span is None:
            return None
        fault = version_node_fault(span.shape, expected)
        if fault is not None:
            self._found("version-node", f"Version tree node: {fault}", reference)
            return None
        self._compare(reference, span)
        return span

    def _span_of(
        self, shape: tuple[int, int, int], entries: tuple[VersionEntry, ...] | tuple[VersionNodeReference, ...]
    ) -> _Span:
        versions = [entry for entry in entries if isinstance(entry, VersionEntry)]
        if versions:
            return self._span_of_versions(versions, shape)
        references = [entry for entry in entries if isinstance(entry, VersionNodeReference)]
        spans = self._spans(references)
        self._check_order(spans)
        counts = [None if span is None else span.count for span in spans]
        count = None if None in counts else sum(count for count in counts if count is not None)
        first, last = spans[0], spans[-1]
        return _Span(shape, count, first.first_time if first else None, last.last_time if last else None)

    def _span_of_versions(self, versions: Sequence[VersionEntry], shape: tuple[int, int, int] = (0, 0, 0)) -> _Span:
        for version in reversed(versions):
            self._version(version)
        return _Span(shape, len(versions), versions[0].commit_time_ns, versions[-1].commit_time_ns)

    def _version(self, version: VersionEntry) -> None:
        generation = version.generation
        if (before := self.versions.setdefault(generation, version)) is version:
            if not self._check_tree(version):
                self.unreadable.append(generation)
        elif before != version:
            self._report(
                Finding(
                    kind="history",
                    message=f"Version {generation} is another one in {self._manifest_name} than in newer manifests",
                    path=self._manifest_name,
                    generation=generation,
                )
            )

    def _check_order(self, spans: Sequence[_Span | None]) -> None:
        """Times between neighbours; within a node the format demands their order already."""
        for older, newer in pairwise(spans):
            if older is None or newer is None:
                continue
            before, after = older.last_time, newer.first_time
            if before is not None and after is not None and before >= after:
                self._report(
                    Finding(
                        kind="commit-time-order",
                        message=(
                            f"Version {older.shape[2]} was committed at {before} ns, and the one after it at {after} "
                            f"ns: asking for a version by time may give another one [{self._manifest_name}]"
                        ),
                        path=self._manifest_name,
                        generation=older.shape[2],
                    )
                )

    def _compare(self, reference: VersionNodeReference, span: _Span) -> None:
        """What a reference states of a node, with what is in it. Readers go by the reference."""
        stated, held = reference.num_generations, span.count
        if held is not None and stated != held:
            message = f"Version tree node: its reference states {stated} versions, it holds {held}"
            self._found("version-node-reference", message, reference)
        begin = span.first_time
        if begin is not None and reference.commit_time_ns != begin:
            message = (
                f"Version tree node: its reference states a first commit time of {reference.commit_time_ns} ns, it is "
                f"{begin} ns; asking for a version by time may give another one"
            )
            self._found("version-node-reference", message, reference)

    def _found(self, kind: str, message: str, reference: VersionNodeReference) -> None:
        location = reference.location
        path = location.file.path.decode("utf-8", "surrogateescape")
        up_to = reference.generation
        self._report(
            Finding(
                kind=kind,
                message=f"{message} [{path} at byte {location.offset:,}, versions up to {up_to}]",
                path=path,
                offset=location.offset,
                generation=up_to,
            )
        )
