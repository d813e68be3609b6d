"""The commit protocol: values, then nodes, then the manifest; on conflict, again on top of what the others committed.

    stage the values (long ones go into data files)
    repeat until the time is up:
        queue for the manifest, where the storage can; load it
        rewrite the tree, append the version, close and sync the data files
        replace the manifest if it is still the one loaded

A crash at any point leaves the old version or the new one, whole, and at worst data files that nothing refers to.
Values staged for a failed attempt are used by the next one; its nodes stay behind as garbage.

A storage may lose the answer to the last step (``StorageError`` of kind ``ambiguous``). Whether it happened shows in
the history, where the version either is or is not ours; while neither is certain, the commit is tried again, and
before each attempt the earlier ones are looked for.
"""

from __future__ import annotations

import os
import random
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
from ocdbt_py.engine.versions import append, by_generation, root_of
from ocdbt_py.errors import ConflictError, NotFoundError, StorageError, WaitTimeoutError
from ocdbt_py.format.config import ManifestKind, StoredConfig
from ocdbt_py.format.manifest import Manifest
from ocdbt_py.format.versions import VersionEntry
from ocdbt_py.storage.protocol import Hold, Storage

Clock = Callable[[], int]
"""Nanoseconds since the Unix epoch."""

Condition = Callable[[Tree], None]
"""Raises :class:`ConflictError` or :class:`NotFoundError` when a tree is not as a commit needs it."""

_FIRST_PAUSE = 0.002
_LONGEST_PAUSE = 0.25
_DRAIN_BYTES = 1 << 20
"""Values longer than this in all are written before queueing for the manifest, so that nobody waits for them."""


@dataclass(frozen=True, slots=True)
class Sources:
    """Where a commit takes time and file names from. A test that replays a database brings its own."""

    clock: Clock = time.time_ns
    names: NameSource = random_name


@dataclass(frozen=True, slots=True)
class Target:
    """The database that is committed to, and how."""

    storage: Storage
    base: str
    manifests: Manifests
    nodes: Nodes
    options: WriteOptions
    sources: Sources

    def new_config(self) -> StoredConfig:
        """The configuration a database created here gets; the manifest kind follows from what the storage can do."""
        capabilities = self.storage.capabilities
        kind = ManifestKind.NUMBERED if capabilities.create and not capabilities.cas else ManifestKind.SINGLE
        return self.manifests.demanded.new(os.urandom(16), kind)

    def next_version(self, latest: VersionEntry | None, root: Root) -> VersionEntry:
        """The version after ``latest``; times only ever grow, whatever the clock does."""
        now = self.sources.clock()
        return VersionEntry(
            generation=1 if latest is None else latest.generation + 1,
            root_height=root.height,
            root=root.location,
            num_keys=root.num_keys,
            num_tree_bytes=root.num_tree_bytes,
            num_indirect_value_bytes=root.num_indirect_value_bytes,
            commit_time_ns=now if latest is None else max(now, latest.commit_time_ns + 1),
        )


class Committed(NamedTuple):
    """What is current after a commit, and where its values were put."""

    seen: Seen
    staged: Staged


class Unmet(Exception):
    """The condition of a commit does not hold; ``error`` says how."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


def create(target: Target) -> Seen:
    """Make a database that holds generation 1, empty. :class:`ConflictError` when another writer was faster."""
    manifest = Manifest(target.new_config(), (target.next_version(None, EMPTY),), ())
    return target.manifests.replace(Seen(None, None), manifest)


def commit(target: Target, mutations: Mutations, seen: Seen, condition: Condition | None) -> Committed:
    """Apply the mutations in one version, on top of whatever is current; ``seen`` is only where to begin.

    ``condition`` is asked about the tree they will be applied to; :class:`Unmet` if it raises. A commit that changes
    nothing adds no version. After ``commit_timeout`` seconds: :class:`ConflictError` (kind ``contention``). An error
    means that nothing changed, unless the storage failed in the very act of replacing the manifest.
    """
    options = target.options
    data_files = DataFiles(target.storage, target.base, options.target_data_file_size, target.sources.names)
    config = seen.manifest.config if seen.manifest is not None else target.new_config()
    try:
        staged = mutations.stage(config.max_inline_value_bytes, options.value_data_prefix, data_files)
        if data_files.pending_bytes >= _DRAIN_BYTES:
            data_files.drain()
        under_way = _Commit(target, staged, config, condition, data_files, assumed=seen.manifest is None)
        return Committed(under_way.repeat(seen), staged)
    except BaseException:
        data_files.abort()
        raise


class _Commit:
    """One commit, from staged values to its place in the history."""

    def __init__(
        self,
        target: Target,
        staged: Staged,
        config: StoredConfig,
        condition: Condition | None,
        data_files: DataFiles,
        *,
        assumed: bool,
    ) -> None:
        self._target = target
        self._staged = staged
        self._config = config
        self._condition = condition
        self._data_files = data_files
        self._assumed = assumed
        self._uncertain: list[VersionEntry] = []

    def repeat(self, seen: Seen) -> Seen:
        """Attempt until it is done or the time is up."""
        timeout = self._target.options.commit_timeout
        deadline = time.monotonic() + timeout
        pause = _FIRST_PAUSE
        while True:
            try:
                with self._target.manifests.hold(max(0.0, deadline - time.monotonic())) as hold:
                    seen = self._target.manifests.load(seen)
                    if any(self._is_there(version, seen) for version in self._uncertain):
                        return seen
                    return self._attempt(seen, hold)
            except (ConflictError, WaitTimeoutError) as conflict:
                if time.monotonic() + pause > deadline:
                    raise self._given_up(timeout) from conflict
            time.sleep(pause * random.uniform(0.5, 1.0))  # all losers would otherwise meet again
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _attempt(self, seen: Seen, hold: Hold | None) -> Seen:
        target, data_files = self._target, self._data_files
        if self._assumed and seen.manifest is not None:
            # the values were staged for a configuration that only now can be compared
            replace(Config.describe(self._config), uuid=None).check(seen.manifest.config)
        manifest = seen.manifest if seen.manifest is not None else Manifest(self._config, (), ())
        latest = manifest.latest
        if self._condition is not None:
            try:
                self._condition(Tree(target.nodes, latest or NO_VERSION))
            except (ConflictError, NotFoundError) as error:
                raise Unmet(error) from None
        prefix = target.options.btree_node_data_prefix
        old = root_of(latest)
        new = Rewriter(target.nodes, manifest.config, self._staged, data_files, prefix).rewrite(old)
        if new is None:
            if latest is not None:
                data_files.abort()
                return seen
            new = old  # the first commit makes the database, whatever it changes
        version = target.next_version(latest, new)
        prefix = target.options.version_tree_node_data_prefix
        successor = append(manifest, version, target.nodes, data_files, prefix)
        data_files.flush()
        kept = data_files.keep()  # from here on the manifest may be in place, whatever fails, and name these files
        try:
            return self._replace(seen, successor, version, hold)
        except ConflictError:
            if version not in self._uncertain:
                data_files.disown(kept)
            raise

    def _replace(self, seen: Seen, successor: Manifest, version: VersionEntry, hold: Hold | None) -> Seen:
        """Put the manifest in place, and where that alone proves nothing, look whether the version came to stay."""
        manifests = self._target.manifests
        try:
            now = manifests.replace(seen, successor, hold)
            if successor.config.manifest_kind is ManifestKind.SINGLE:
                return now
        except StorageError as error:
            if error.kind != "ambiguous":
                raise
            self._uncertain.append(version)
            now = seen
        now = manifests.load(now)
        if not self._is_there(version, now):
            raise ConflictError(f"Version {version.generation} is not ours, or not there yet")
        return now

    def _is_there(self, version: VersionEntry, seen: Seen) -> bool:
        """Whether the history holds exactly this version: its root lies in a file of ours, its time is ours."""
        if seen.manifest is None:
            return False
        return by_generation(seen.manifest, version.generation, self._target.nodes) == version

    def _given_up(self, timeout: float) -> ConflictError | StorageError:
        url = self._target.storage.describe(self._target.base)
        if self._uncertain:
            return StorageError(
                f"For {timeout:g} seconds the storage did not tell whether the commit happened; look for it",
                kind="ambiguous",
                url=url,
            )
        return ConflictError(
            f"Other writers kept committing for {timeout:g} seconds; try again, or raise commit_timeout",
            kind="contention",
            url=url,
        )
