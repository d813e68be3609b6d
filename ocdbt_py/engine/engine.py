"""One database at one place: its current manifest, its versions' trees, and commits to it.

This is what :class:`~ocdbt_py.database.Database` wraps for users and what the checkpoint layer builds on. It owns the
node cache and the last manifest seen; it is safe for threads. What commits is loaded only where that is intended, for
most databases are opened to be read.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING

from ocdbt_py.engine.entries import AtTime
from ocdbt_py.engine.manifests import Manifests, Seen
from ocdbt_py.engine.mutations import Mutations, Staged
from ocdbt_py.engine.nodes import Nodes
from ocdbt_py.engine.options import Config, WriteOptions
from ocdbt_py.engine.process_lock import ProcessLock
from ocdbt_py.engine.tree import NO_VERSION, Tree
from ocdbt_py.engine.versions import by_generation, by_time, newest_first
from ocdbt_py.errors import NotFoundError, PathNotFoundError
from ocdbt_py.format.manifest import MANIFEST_NAME, Manifest
from ocdbt_py.format.versions import VersionEntry
from ocdbt_py.storage.protocol import Storage

if TYPE_CHECKING:
    from ocdbt_py.engine.commit import Condition, Sources, Target
    from ocdbt_py.engine.committer import Committer


class Engine:
    """The database at ``base``, a path in ``storage`` without a trailing slash."""

    def __init__(
        self,
        storage: Storage,
        base: str,
        *,
        constraints: Config,
        options: WriteOptions,
        max_staleness: float,
        cache_bytes: int,
        sources: Sources | None,
    ) -> None:
        self.storage = storage
        self.base = base
        self.nodes = Nodes(storage, base, cache_bytes)
        self._manifests = Manifests(storage, base, constraints)
        self._options = options
        self._sources = sources
        self._max_staleness = max_staleness
        self._lock = ProcessLock()
        self._seen = Seen(None, None)
        self._seen_at = -float("inf")

    def current(self, max_staleness: float | None = None) -> Seen:
        """The manifest, re-validated unless that was done within the last ``max_staleness`` seconds."""
        bound = self._max_staleness if max_staleness is None else max_staleness
        with self._lock:
            seen = self._seen
            if seen.manifest is not None and time.monotonic() - self._seen_at < bound:
                return seen
        asked_at = time.monotonic()
        return self._remember(self._manifests.load(seen if seen.manifest is not None else None), asked_at)

    def prepare(self) -> None:
        """Load and make what commits. A thread that did so at its first commit would hold the locks of imports, and a
        child forked meanwhile would wait for them for ever."""
        with self._lock:
            _ = self._committer

    def create(self) -> None:
        """Write generation 1, empty. :class:`~ocdbt_py.errors.ConflictError` when something is there."""
        from ocdbt_py.engine.commit import create

        asked_at = time.monotonic()
        self._remember(create(self._target), asked_at)

    def commit(self, mutations: Mutations, condition: Condition | None = None) -> Staged:
        """One version with all of the mutations, if ``condition`` allows; where values were put, theirs among others.

        What several threads ask for at once may become one version.
        """
        with self._lock:
            seen, committer = self._seen, self._committer
        committed = committer.commit(mutations, seen, condition)
        with self._lock:
            if committed.seen is None:
                self._seen_at = -float("inf")  # there is a newer one, which was never here
            elif _generation(committed.seen) > _generation(self._seen):
                # now, and not the time of the call: a read that was asked since may have seen what was before
                self._seen, self._seen_at = committed.seen, time.monotonic()
        return committed.staged

    def rest(self) -> None:
        """Close what commits keep open for the next one, which will begin another."""
        committer: Committer | None = self.__dict__.get("_committer")  # unless nothing was ever committed
        if committer is not None:
            committer.rest()

    def latest(self) -> Tree:
        """The newest version's tree."""
        seen = self.current()
        if seen.manifest is None and self._manifests.never_seen and self._options.assume_config:
            return Tree(self.nodes, NO_VERSION)  # the first commit is still to make it
        return Tree(self.nodes, self._existing(seen).latest or NO_VERSION)

    def at(self, version: int | AtTime, max_staleness: float | None = None) -> Tree:
        """The tree of one version; :class:`NotFoundError` says which there are."""
        manifest = self._existing(self.current(max_staleness))
        if isinstance(version, AtTime):
            found = by_time(manifest, version.commit_time_ns, self.nodes)
            wanted = "version committed by then"
        else:
            found = by_generation(manifest, version, self.nodes)
            wanted = f"version v{version}"
        if found is None:
            latest = manifest.latest
            have = f"its newest is v{latest.generation}" if latest is not None else "it has none yet"
            raise NotFoundError(
                f"The database has no {wanted}; {have}", kind="version-not-found", url=self.storage.describe(self.base)
            )
        return Tree(self.nodes, found)

    def versions(self) -> Iterator[VersionEntry]:
        """Every version, newest first, as of now."""
        return newest_first(self._existing(), self.nodes)

    @cached_property
    def _target(self) -> Target:
        from ocdbt_py.engine.commit import Sources, Target
        from ocdbt_py.engine.growing_files import GrowingFiles

        sources, growing = self._sources, None
        if sources is None:
            sources = Sources()
            # Whoever names the files wants them as TensorStore has them, one for each commit.
            growing = GrowingFiles(self.storage, self.base) if self.storage.capabilities.grow else None
        return Target(self.storage, self.base, self._manifests, self.nodes, self._options, sources, growing)

    @cached_property
    def _committer(self) -> Committer:
        from ocdbt_py.engine.committer import Committer

        return Committer(self._target)

    def _existing(self, seen: Seen | None = None) -> Manifest:
        manifest = (seen or self.current()).manifest
        if manifest is None:
            raise PathNotFoundError(
                f"There is no OCDBT database here (no {MANIFEST_NAME})", url=self.storage.describe(self.base)
            )
        return manifest

    def _remember(self, seen: Seen, asked_at: float) -> Seen:
        """Keep the newer of two answers: threads may come back out of order."""
        with self._lock:
            if asked_at >= self._seen_at or self._seen.manifest is None:
                self._seen, self._seen_at = seen, asked_at
        return seen


def _generation(seen: Seen) -> int:
    """Of the newest version, 0 if there is none."""
    latest = None if seen.manifest is None else seen.manifest.latest
    return 0 if latest is None else latest.generation
