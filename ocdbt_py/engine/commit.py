"""The commit protocol: values, then nodes, then the manifest; on conflict, again on top of what the others committed.

    stage the values (long ones go into data files)
    repeat until the time is up:
        queue for the manifest, where the storage can; load it
        rewrite the tree, append the version, close and sync the data files
        replace the manifest if it is still the one loaded

A crash at any point leaves the old version or the new one, whole, and at worst data files that nothing refers to.
Values staged for a failed attempt are used by the next one; its nodes stay behind as garbage.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from ocdbt_py.engine.data_files import DataFiles, NameSource, random_name
from ocdbt_py.engine.manifests import Manifests, Seen
from ocdbt_py.engine.mutations import Mutations, Staged
from ocdbt_py.engine.nodes import Nodes
from ocdbt_py.engine.options import Config, WriteOptions
from ocdbt_py.engine.rewrite import EMPTY, Rewriter, Root
from ocdbt_py.engine.tree import NO_VERSION, Tree
from ocdbt_py.engine.versions import append, root_of
from ocdbt_py.errors import ConflictError
from ocdbt_py.format.config import ManifestKind, StoredConfig
from ocdbt_py.format.manifest import Manifest
from ocdbt_py.format.versions import VersionEntry
from ocdbt_py.storage.protocol import Hold, Storage

Clock = Callable[[], int]
"""Nanoseconds since the Unix epoch."""

_FIRST_PAUSE = 0.002
_LONGEST_PAUSE = 0.25
_DRAIN_BYTES = 1 << 20
"""Values longer than this in all are written before queueing for the manifest, so that nobody waits for them."""


Condition = Callable[[Tree], None]
"""Raises :class:`ConflictError` when a tree is not as a commit needs it."""


@dataclass(frozen=True, slots=True)
class Sources:
    """Where a commit takes time and file names from. A test that replays a database brings its own."""

    clock: Clock = time.time_ns
    names: NameSource = random_name


class Committed(NamedTuple):
    """What is current after a commit, and where its values were put."""

    seen: Seen
    staged: Staged


class Committer:
    """Commits to one database. Safe for threads: commits of one process queue up here, not at the storage."""

    def __init__(
        self,
        storage: Storage,
        base: str,
        manifests: Manifests,
        nodes: Nodes,
        constraints: Config,
        options: WriteOptions,
        sources: Sources,
    ) -> None:
        self._storage = storage
        self._base = base
        self._manifests = manifests
        self._nodes = nodes
        self._constraints = constraints
        self._options = options
        self._sources = sources
        self._lock = threading.Lock()

    def create(self, seen: Seen) -> Seen:
        """Make a database that holds generation 1, empty. :class:`ConflictError` when another writer was faster."""
        config = self.new_config()
        version = self._version(None, EMPTY)
        with self._lock:
            return self._manifests.replace(seen, Manifest(config, (version,), ()))

    def new_config(self) -> StoredConfig:
        """The configuration a database created here gets; the manifest kind follows from what the storage can do."""
        capabilities = self._storage.capabilities
        kind = ManifestKind.NUMBERED if capabilities.create and not capabilities.cas else ManifestKind.SINGLE
        return self._constraints.new(os.urandom(16), kind)

    def commit(self, mutations: Mutations, seen: Seen, condition: Condition | None = None) -> Committed:
        """Apply the mutations in one version, on top of whatever is current; ``seen`` is only where to begin.

        ``condition`` is asked about the tree they will be applied to, and raises :class:`ConflictError` to give up; it
        holds in the version before, with nothing in between. A commit that changes nothing adds no version. After
        ``commit_timeout`` seconds of others being faster: :class:`ConflictError` (kind ``contention``). An error means
        that nothing changed, unless the storage failed in the very act of replacing the manifest.
        """
        deadline = time.monotonic() + self._options.commit_timeout
        config = seen.manifest.config if seen.manifest is not None else self.new_config()
        options = self._options
        data_files = DataFiles(self._storage, self._base, options.target_data_file_size, self._sources.names)
        with self._lock:
            try:
                staged = mutations.stage(config.max_inline_value_bytes, options.value_data_prefix, data_files)
                if data_files.pending_bytes >= _DRAIN_BYTES:
                    data_files.drain()
                seen = self._commit(staged, config, seen, condition, data_files, deadline)
                return Committed(seen, staged)
            except BaseException:
                data_files.abort()
                raise

    def _commit(
        self,
        staged: Staged,
        config: StoredConfig,
        seen: Seen,
        condition: Condition | None,
        data_files: DataFiles,
        deadline: float,
    ) -> Seen:
        assumed = seen.manifest is None
        pause = _FIRST_PAUSE
        while True:
            with self._manifests.hold(max(0.0, deadline - time.monotonic())) as hold:
                seen = self._manifests.load(seen)
                manifest = seen.manifest if seen.manifest is not None else Manifest(config, (), ())
                if assumed and seen.manifest is not None:
                    # the values were staged for a configuration that only now can be compared
                    replace(Config.describe(config), uuid=None).check(seen.manifest.config)
                if condition is not None:
                    condition(Tree(self._nodes, manifest.latest or NO_VERSION))
                try:
                    return self._attempt(staged, manifest, seen, data_files, hold)
                except ConflictError as conflict:
                    if time.monotonic() + pause > deadline:
                        raise ConflictError(
                            f"Other writers kept committing for {self._options.commit_timeout:g} seconds; "
                            "try again, or raise commit_timeout",
                            kind="contention",
                            url=self._storage.describe(self._base),
                        ) from conflict
            time.sleep(pause * random.uniform(0.5, 1.0))  # all losers would otherwise meet again
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _attempt(
        self, staged: Staged, manifest: Manifest, seen: Seen, data_files: DataFiles, hold: Hold | None
    ) -> Seen:
        options = self._options
        old = root_of(manifest.latest)
        prefix = options.btree_node_data_prefix
        new = Rewriter(self._nodes, manifest.config, staged, data_files, prefix).rewrite(old)
        if new is None:
            if manifest.latest is not None:
                data_files.abort()
                return seen
            new = old  # the first commit makes the database, whatever it changes
        version = self._version(manifest.latest, new)
        successor = append(manifest, version, self._nodes, data_files, options.version_tree_node_data_prefix)
        data_files.flush()
        try:
            return self._manifests.replace(seen, successor, hold)
        except ConflictError:
            raise
        except BaseException:
            data_files.keep()  # the manifest may be in place, whatever failed, and then it names these files
            raise

    def _version(self, latest: VersionEntry | None, root: Root) -> VersionEntry:
        now = self._sources.clock()
        return VersionEntry(
            generation=1 if latest is None else latest.generation + 1,
            root_height=root.height,
            root=root.location,
            num_keys=root.num_keys,
            num_tree_bytes=root.num_tree_bytes,
            num_indirect_value_bytes=root.num_indirect_value_bytes,
            commit_time_ns=now if latest is None else max(now, latest.commit_time_ns + 1),
        )
