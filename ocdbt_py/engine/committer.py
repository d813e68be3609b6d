"""Where the threads of one process queue up to commit, so that many writers make few versions."""

from __future__ import annotations

import os
from collections import deque
from copy import copy
from dataclasses import dataclass, field

from ocdbt_py.engine.commit import Committed, Condition, Target, Unmet, commit
from ocdbt_py.engine.manifests import Seen
from ocdbt_py.engine.mutations import Mutations
from ocdbt_py.engine.process_lock import ProcessLock
from ocdbt_py.errors import OcdbtError, StorageError


@dataclass(slots=True, eq=False)
class _Request:
    """What one thread wants committed, and what came of it."""

    mutations: Mutations
    condition: Condition | None
    outcome: Committed | Exception | None = None
    process: int = field(default_factory=os.getpid)

    @property
    def joins(self) -> bool:
        """Whether it may go into a commit begun by another. A condition is about the version before, so only the first
        may have one; and a value yet to be fetched may fail, which must not be the others' failure."""
        return self.condition is None and not self.mutations.deferred

    def withdraw(self) -> None:
        """Ask for nothing any more. In this order, for whoever holds the lock may be reading it."""
        self.mutations = Mutations()
        self.condition = None


class Committer:
    """Commits to one database, for any number of threads: whoever's turn it is takes along what waits behind."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._queue: deque[_Request] = deque()
        self._lock = ProcessLock(on_fork=self._forget_parent)

    def commit(self, mutations: Mutations, seen: Seen, condition: Condition | None = None) -> Committed:
        """As :func:`~ocdbt_py.engine.commit.commit`, perhaps together with others; what a condition raises is raised.

        A condition holds in the version before this one, with nothing in between.
        """
        request = _Request(mutations, condition)
        try:
            self._queue.append(request)
            with self._lock:
                while request.outcome is None:  # else whoever held the lock before has committed it along
                    self._lead(seen)
        except BaseException:
            request.withdraw()  # an interrupted write must not be made later
            raise
        if isinstance(request.outcome, Exception):
            raise request.outcome
        return request.outcome

    def rest(self) -> None:
        """Close what is open from one commit to the next."""
        if self._target.growing is not None:
            with self._lock:
                self._target.growing.close()

    def _forget_parent(self) -> None:
        """In a forked child, what threads of the parent wait for is not ours to do."""
        for _ in range(len(self._queue)):
            request = self._queue.popleft()
            if request.process == os.getpid():
                self._queue.append(request)

    def _lead(self, seen: Seen) -> None:
        """Commit the request at the head of the queue, and those behind it that may join it."""
        batch = [self._queue.popleft()]
        while self._queue and self._queue[0].joins and not batch[0].mutations.deferred:
            batch.append(self._queue.popleft())
        try:
            mutations = batch[0].mutations
            if len(batch) > 1:
                mutations = Mutations()
                for request in batch:
                    mutations.merge(request.mutations)
            committed = commit(self._target, mutations, seen, batch[0].condition)
        except Unmet as unmet:
            batch[0].outcome = unmet.error
            self._queue.extendleft(reversed(batch[1:]))
        except Exception as error:
            for request in batch:
                request.outcome = _own(error)
        except BaseException:
            for request in batch:
                request.outcome = StorageError(
                    "The thread that was committing this along with its own was interrupted; look whether it is there",
                    kind="ambiguous",
                    url=self._target.storage.describe(self._target.base),
                )
            raise
        else:
            for request in batch:
                request.outcome = committed


def _own(error: Exception) -> Exception:
    """The same error for one of several threads, each of which adds a traceback of its own."""
    if not isinstance(error, OcdbtError):
        return error
    duplicate = copy(error)
    duplicate.__cause__ = error.__cause__
    return duplicate
