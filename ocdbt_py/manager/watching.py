"""Wait for new steps, where another job saves them: for evaluators.

    for step in checkpoints_iterator("gs://bucket/run", timeout=3600):
        evaluate(restore(f"gs://bucket/run/{step}"))

What is found is the newest step that is finished and opens; steps that come and go while the loop's body runs are
passed over. A trainer that keeps few steps may delete the one in hand: have it keep more, or take ``snapshots=True``,
which copies the step first (:mod:`ocdbt_py.manager.snapshots`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, Protocol

from ocdbt_py.checkpoint.layout import child
from ocdbt_py.checkpoint.opening import resolve_checkpoint
from ocdbt_py.checkpoint.processes import Alone, Processes, Steps
from ocdbt_py.errors import NotFoundError
from ocdbt_py.manager.listing import is_committed, opens, step_directories
from ocdbt_py.manager.snapshots import SNAPSHOTS, remove_snapshots, snapshot
from ocdbt_py.manager.step_names import NameFormat, StepNames
from ocdbt_py.storage.location import Place

__all__ = ["NewStep", "Watch", "WatchClock", "checkpoints_iterator", "wait_for_new_checkpoint"]

NO_STEP = -1
"""What the functions give in place of a step when the time is up."""

_FOR_EVER = 1e9


class WatchClock(Protocol):
    """Where the time comes from, and how it passes; the module :mod:`time` is one."""

    def time(self) -> float:
        """Seconds since the epoch."""

    def sleep(self, seconds: float, /) -> None:
        """Return so many seconds later."""


class NewStep(NamedTuple):
    """A step that was found, and where to read it: in its snapshot, if there is one."""

    step: int
    place: Place


class Watch:
    """The new steps below ``root``, one after the other.

    ``pause``: seconds between two looks. ``timeout``: seconds to wait for a step; when they have passed, and
    ``timeout_fn`` (if there is one) says that no more will come, the wait is over. ``only_whole``: steps that do not
    open are passed over. ``snapshots``: where to copy steps that are in hand, if anywhere. Of several ``processes``
    process 0 looks, and all get its answer.
    """

    def __init__(
        self,
        root: Place,
        names: NameFormat | None = None,
        *,
        pause: float = 1.0,
        timeout: float | None = None,
        timeout_fn: Callable[[], bool] | None = None,
        only_whole: bool = True,
        snapshots: Place | None = None,
        processes: Processes | None = None,
        clock: WatchClock = time,
    ) -> None:
        self._root = root
        self._names = names or StepNames()
        self._pause = pause
        self._timeout = timeout
        self._timeout_fn = timeout_fn
        self._only_whole = only_whole
        self._snapshots = snapshots
        self._clock = clock
        name = root.path.rpartition("/")[2]
        patience = (_FOR_EVER if timeout is None or timeout_fn is not None else timeout) + _FOR_EVER
        self._together = Steps(processes or Alone(), f"watch {name}", patience)

    @contextmanager
    def held(self, until_step: int | None = None) -> Iterator[NewStep | None]:
        """Wait for the newest step, of number ``until_step`` or later; None when the time is up. A snapshot, if one is
        asked for, lasts as long as the context."""
        with ExitStack() as holding:
            found: list[NewStep | None] = []

            def look() -> bytes:
                if self._together.is_primary:
                    found.append(self._wait(until_step, holding))
                    if found[0] is not None:
                        return f"{found[0].step} {found[0].place.path}".encode("utf-8", "surrogateescape")
                return b""

            answer = self._together.take("new step", look)[0].decode("utf-8", "surrogateescape")
            if found:
                yield found[0]
            elif not answer:
                yield None
            else:
                step, _, path = answer.partition(" ")
                yield NewStep(int(step), _at(self._root, path))

    def steps(self, min_interval: float = 0.0) -> Iterator[NewStep]:
        """Each newest step as it comes, at least ``min_interval`` seconds apart, until the time is up."""
        if self._snapshots is not None and self._together.is_primary:
            remove_snapshots(self._snapshots)
        until: int | None = None
        while True:
            with self.held(until) as found:
                if found is None:
                    return
                began = self._clock.time()
                until = found.step + 1
                yield found
            left = began + min_interval - self._clock.time()
            if left > 0:
                self._clock.sleep(left)

    def _wait(self, until_step: int | None, holding: ExitStack) -> NewStep | None:
        began = self._clock.time()
        while True:
            found = self._newest(until_step)
            if found is not None:
                if self._snapshots is None:
                    return found
                try:
                    return found._replace(place=holding.enter_context(snapshot(found.place, self._snapshots)))
                except NotFoundError:  # deleted meanwhile; perhaps there is a newer one by now
                    pass
            is_over = self._timeout is not None and self._clock.time() + self._pause > began + self._timeout
            if is_over and (self._timeout_fn is None or self._timeout_fn()):
                return None
            self._clock.sleep(self._pause)

    def _newest(self, until_step: int | None) -> NewStep | None:
        directories = step_directories(self._root, self._names)
        for step in sorted(directories, reverse=True):
            if until_step is not None and step < until_step:
                return None
            place = child(self._root, directories[step])
            if is_committed(place) and (not self._only_whole or opens(place)):
                return NewStep(step, place)
        return None


@contextmanager
def wait_for_new_checkpoint(
    url: Any,
    *,
    until_step: int | None = None,
    seconds_to_sleep: float = 1.0,
    timeout: float | None = None,
    timeout_fn: Callable[[], bool] | None = None,
    step_name_format: NameFormat | None = None,
    snapshots: bool = False,
    processes: Processes | None = None,
    clock: WatchClock = time,
    storage_options: Mapping[str, Any] | None = None,
    fs: Any = None,
) -> Iterator[int]:
    """Wait for a step of number ``until_step`` or later below ``url``: the newest one, or -1 when the time is up.

    Looks every ``seconds_to_sleep``. After ``timeout`` seconds it gives up, unless ``timeout_fn()`` is there and says
    false: then it goes on. ``snapshots``: as long as the context lasts there is a copy of the step in
    ``url/_SNAPSHOTS``, which the trainer does not delete. The directory need not be there yet.

    >>> from ocdbt_py import save
    >>> save("memory://watched/7", {"rate": 0.5}, overwrite=True)
    >>> with wait_for_new_checkpoint("memory://watched", until_step=5) as step:
    ...     step
    7
    """
    root = resolve_checkpoint(url, storage_options, fs)
    watch = Watch(
        root,
        step_name_format,
        pause=seconds_to_sleep,
        timeout=timeout,
        timeout_fn=timeout_fn,
        snapshots=child(root, SNAPSHOTS) if snapshots else None,
        processes=processes,
        clock=clock,
    )
    with watch.held(until_step) as found:
        yield NO_STEP if found is None else found.step


def checkpoints_iterator(
    url: Any,
    *,
    min_interval_secs: float = 0.0,
    seconds_to_sleep: float = 1.0,
    timeout: float | None = None,
    timeout_fn: Callable[[], bool] | None = None,
    step_name_format: NameFormat | None = None,
    snapshots: bool = False,
    processes: Processes | None = None,
    clock: WatchClock = time,
    storage_options: Mapping[str, Any] | None = None,
    fs: Any = None,
) -> Iterator[int]:
    """Each newest step below ``url`` as it comes, at least ``min_interval_secs`` apart; steps in between are skipped.

    Ends when none has come for ``timeout`` seconds, and ``timeout_fn()``, if there is one, does not say false.
    Arguments as in :func:`wait_for_new_checkpoint`; a snapshot lasts until the next step is asked for.
    """
    root = resolve_checkpoint(url, storage_options, fs)
    watch = Watch(
        root,
        step_name_format,
        pause=seconds_to_sleep,
        timeout=timeout,
        timeout_fn=timeout_fn,
        snapshots=child(root, SNAPSHOTS) if snapshots else None,
        processes=processes,
        clock=clock,
    )
    for found in watch.steps(min_interval_secs):
        yield found.step


def _at(root: Place, path: str) -> Place:
    return child(root, path.removeprefix(root.path).lstrip("/"))
