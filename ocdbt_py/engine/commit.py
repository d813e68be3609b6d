"""The commit protocol: values, then nodes, then the manifest; on conflict, again on top of what the others committed.

    stage the values (long ones go into data files)
    repeat until the time is up:
        queue for the manifest, where the storage can, unless another writer commits ours along with its own; load it
        rewrite the tree, append the version, begin to write the manifest where nobody sees it
        close and sync the data files
        replace the manifest if it is still the one loaded

A crash at any point leaves the old version or the new one, whole, and at worst data files that nothing refers to.
Values staged for a failed attempt are used by the next one; its nodes stay behind as garbage.

A storage may lose the answer to the last step (``StorageError`` of kind ``ambiguous``), and where writers do not queue
even a ``ConflictError`` may be wrong: a client that repeats a request whose answer was lost is told that its condition
does not hold, which its own first request has changed. Whether it happened shows in the history, where the version
either is or is not ours; while neither is certain, the commit is tried again, and before each attempt the earlier ones
are looked for. A manifest that is replaced under a condition settles it for good: once it holds another version of the
same number, ours can never come.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from ocdbt_py.engine.data_files import DataFiles, NameSource, random_name
from ocdbt_py.engine.growing_files import GrowingFiles
from ocdbt_py.engine.manifests import Manifests, Seen
from ocdbt_py.engine.mutations import Mutations, Staged
from ocdbt_py.engine.nodes import Nodes
from ocdbt_py.engine.notes import Company, is_kept, note_of, take_along, travels
from ocdbt_py.engine.options import Config, WriteOptions
from ocdbt_py.engine.rewrite import EMPTY, Rewriter, Root
from ocdbt_py.engine.tree import NO_VERSION, Tree
from ocdbt_py.engine.versions import append, by_generation, root_of
from ocdbt_py.errors import (
    ConfigMismatchError,
    ConflictError,
    NotFoundError,
    OcdbtError,
    StorageError,
    WaitTimeoutError,
)
from ocdbt_py.format.config import ManifestKind, StoredConfig
from ocdbt_py.format.manifest import Manifest
from ocdbt_py.format.versions import VersionEntry
from ocdbt_py.storage.protocol import Hold, Note, Storage

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
    growing: GrowingFiles | None = None
    company: Company = field(default_factory=Company)

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
    """What is current after a commit, None if another process made it along with its own; and where its values were
    put."""

    seen: Seen | None
    staged: Staged


class Unmet(Exception):
    """The condition of a commit does not hold; ``error`` says how."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


def create(target: Target) -> Seen:
    """Make a database that holds generation 1, empty. :class:`ConflictError` when another writer was faster."""
    config = target.new_config()
    version = target.next_version(None, EMPTY)
    seen = Seen(None, None)
    deadline = time.monotonic() + target.options.commit_timeout
    pause = _FIRST_PAUSE
    while True:
        try:
            return target.manifests.begin(seen, Manifest(config, (version,), ()))()
        except (ConflictError, StorageError) as error:
            if not isinstance(error, ConflictError) and error.kind != "ambiguous":
                raise
            # Perhaps it happened all the same; the configuration has a number of its own, and the version our time.
            try:
                seen = target.manifests.load(None)
            except ConfigMismatchError:
                raise error from None
            if seen.manifest is not None:
                is_ours = seen.manifest.config == config
                if is_ours and by_generation(seen.manifest, 1, target.nodes) == version:
                    return seen
                if not is_ours or seen.manifest.latest is not None:
                    raise ConflictError("Another writer has just created the database", kind="condition") from error
            if time.monotonic() + pause > deadline:
                raise
        sleep_about(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def sleep_about(pause: float) -> None:
    """Sleep for half of ``pause`` or more, up to all of it: losers who slept alike would meet again."""
    time.sleep(pause * (0.5 + os.urandom(1)[0] / 510))


def commit(target: Target, mutations: Mutations, seen: Seen, condition: Condition | None) -> Committed:
    """Apply the mutations in one version, on top of whatever is current; ``seen`` is only where to begin.

    ``condition`` is asked about the tree they will be applied to; :class:`Unmet` if it raises. A commit that changes
    nothing adds no version. After ``commit_timeout`` seconds: :class:`ConflictError` (kind ``contention``). An error
    means that nothing changed, but for :class:`StorageError` from the very act of replacing the manifest: of kind
    ``ambiguous`` where nobody knows, of kind ``not-durable`` where it happened.
    """
    options = target.options
    data_files = DataFiles(
        target.storage,
        target.base,
        options.target_data_file_size,
        target.sources.names,
        growing=target.growing if mutations.are_few else None,
    )
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


class _Uncertain(NamedTuple):
    """An attempt of which nobody knows yet whether it succeeded: its version, and the files that only it names.

    ``settled_by_another``: another version of its number in the history proves that it did not, nor ever will.
    """

    version: VersionEntry
    files: list[str]
    settled_by_another: bool


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
        self._uncertain: list[_Uncertain] = []

    def repeat(self, seen: Seen) -> Seen | None:
        """Attempt until it is done or the time is up; None if another process has done it."""
        timeout = self._target.options.commit_timeout
        deadline = time.monotonic() + timeout
        pause = _FIRST_PAUSE
        while True:
            try:
                note, begun = self._note(), time.monotonic()
                with self._target.manifests.hold(max(0.0, deadline - time.monotonic()), note) as hold:
                    if note is not None and note.done:
                        self._target.company.was_there(note.company, time.monotonic() - begun)
                        return None
                    seen = self._target.manifests.load(seen)
                    if self._is_done(seen) or (note is not None and self._was_done(note, seen)):
                        return seen
                    return self._attempt(seen, hold)
            except (ConflictError, WaitTimeoutError) as error:
                conflict = error
            except OcdbtError as error:
                is_known = isinstance(error, ConfigMismatchError) or error.kind == "not-durable"
                if is_known or not self._uncertain:
                    raise
                raise self._unknown(f"The commit may have happened, and then the storage failed ({error})") from error
            if time.monotonic() + pause > deadline:
                return self._last_look(seen, timeout, conflict)
            sleep_about(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _note(self) -> Note | None:
        """What to leave to others while waiting; nothing that asks for more than they can do."""
        if self._condition is not None or self._assumed or not travels(self._staged):
            return None
        return Note(lambda: note_of(self._staged, self._config), self._target.company.deference)

    def _was_done(self, note: Note, seen: Seen) -> bool:
        """Whether another process did it, and did not come to say so."""
        if not note.promise or seen.manifest is None or not is_kept(note.promise, seen.manifest, self._target.nodes):
            return False
        self._target.manifests.sync(seen)
        return True

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
        prefix = target.options.value_data_prefix
        along = take_along(self._staged, hold, manifest.config, target.company, prefix, data_files)
        prefix = target.options.btree_node_data_prefix
        old = root_of(latest)
        new = Rewriter(target.nodes, manifest.config, along.staged, data_files, prefix).rewrite(old)
        if new is None:
            if latest is not None:
                data_files.abort()
                return seen
            new = old  # the first commit makes the database, whatever it changes
        version = target.next_version(latest, new)
        prefix = target.options.version_tree_node_data_prefix
        successor = append(manifest, version, target.nodes, data_files, prefix)
        data_files.begin_flush()
        put_in_place = target.manifests.begin(seen, successor, hold)
        data_files.flush()
        along.promise(version)
        kept = data_files.keep()  # from here on the manifest may be in place, whatever fails, and name these files
        attempt = _Uncertain(version, kept, successor.config.manifest_kind is ManifestKind.SINGLE)
        try:
            now = put_in_place()
        except ConflictError:
            if hold is not None:  # nobody else was writing, so this is the truth
                data_files.disown(kept)
                raise
            self._uncertain.append(attempt)
            raise
        except StorageError as error:
            if error.kind != "ambiguous":
                raise
            self._uncertain.append(attempt)
            now = seen
        else:
            if attempt.settled_by_another:
                along.done(target.company)
                return now
            self._uncertain.append(attempt)  # a number that was free is no proof that it is the newest
        now = target.manifests.load(now)
        if self._is_done(now):
            along.done(target.company)
            return now
        raise ConflictError(f"Version {version.generation} is not ours, or not there yet")

    def _is_done(self, seen: Seen) -> bool:
        """Whether an earlier attempt succeeded: the history holds its version, whose root lies in a file of ours.

        Attempts that certainly did not are forgotten.
        """
        still_uncertain = []
        for attempt in self._uncertain:
            found = None
            if seen.manifest is not None:
                found = by_generation(seen.manifest, attempt.version.generation, self._target.nodes)
            if found == attempt.version:
                return True
            if found is None:
                still_uncertain.append(attempt)
            elif attempt.settled_by_another:
                self._data_files.disown(attempt.files)
        self._uncertain = still_uncertain
        return False

    def _last_look(self, seen: Seen, timeout: float, conflict: OcdbtError) -> Seen:
        """The time is up: what became of the attempts."""
        if self._uncertain:
            try:
                seen = self._target.manifests.load(seen)
                if self._is_done(seen):
                    return seen
            except OcdbtError as error:
                raise self._unknown(f"The commit may have happened, and the storage failed ({error})") from error
        if self._uncertain:
            message = f"For {timeout:g} seconds the storage did not tell whether the commit happened"
            raise self._unknown(message) from conflict
        raise ConflictError(
            f"Other writers kept committing for {timeout:g} seconds; try again, or raise commit_timeout",
            kind="contention",
            url=self._target.storage.describe(self._target.base),
        ) from conflict

    def _unknown(self, message: str) -> StorageError:
        url = self._target.storage.describe(self._target.base)
        return StorageError(f"{message}; look whether it is there", kind="ambiguous", url=url)
