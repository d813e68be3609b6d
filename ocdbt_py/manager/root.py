"""A directory of steps: which there are, which is saved next, which go. What a step holds is somebody else's business.

A save under way is :mod:`ocdbt_py.manager.saving`'s, and what becomes of the list meanwhile that of
:mod:`ocdbt_py.manager.step_list`. A request to save may come from a signal handler at any moment
(:mod:`ocdbt_py.manager.stopping`).

**Several processes** call the same methods with the same steps in the same order. Process 0 lists, decides and deletes;
the others are told, so that all have one list. What each of them only asks of the list is answered at once.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Protocol, Self

from ocdbt_py.checkpoint.async_saving import AsyncSave
from ocdbt_py.checkpoint.contents import Contents, json_item
from ocdbt_py.checkpoint.jax_processes import default_processes
from ocdbt_py.checkpoint.layout import Kind, child, identify
from ocdbt_py.checkpoint.metadata import JSON_HANDLER, check_custom_metadata
from ocdbt_py.checkpoint.processes import Processes, Steps
from ocdbt_py.errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    PathNotFoundError,
    StorageError,
)
from ocdbt_py.manager.deleting import Deleter, clean
from ocdbt_py.manager.listing import METRICS, SavedStep, decode_steps, encode_steps, find_steps, opens, read_metrics
from ocdbt_py.manager.meeting import of_one_root
from ocdbt_py.manager.options import CheckpointManagerOptions
from ocdbt_py.manager.preservation import PreservationContext
from ocdbt_py.manager.root_metadata import read_root_metadata, write_root_metadata
from ocdbt_py.manager.save_decisions import DecisionContext
from ocdbt_py.manager.saving import SaveUnderWay
from ocdbt_py.manager.step_list import Entry, StepList
from ocdbt_py.manager.step_names import step_number
from ocdbt_py.manager.stopping import SaveRequests, jax_reached_preemption
from ocdbt_py.storage.location import Place

__all__ = ["Clock", "Root", "SavedStep"]

_log = logging.getLogger(__name__)


class Clock(Protocol):
    """Where the time comes from; the module :mod:`time` is one."""

    def time(self) -> float:
        """Seconds since the epoch."""


class Root:
    """The steps below ``place``.

    ``only_whole``: :meth:`latest` and :meth:`best` are steps that are finished and open, a directory that is no
    checkpoint is no step, and nothing that somebody else has saved since is replaced. Without, as Orbax: every finished
    directory with the name of a step is one, the step being saved can be the latest, and a step that is not in the list
    is replaced if it is there. ``clock`` has ``time()``, in seconds since the epoch.
    """

    def __init__(
        self,
        place: Place,
        options: CheckpointManagerOptions | None = None,
        *,
        processes: Processes | None = None,
        metadata: Mapping[str, Any] | None = None,
        clock: Clock = time,
        only_whole: bool = True,
    ) -> None:
        self.place = place
        self.options = options = options or CheckpointManagerOptions()
        self._names = options.names
        self._save_rule = options.save_rule
        self._preservation_rule = options.preservation_rule
        self._processes = of_one_root(default_processes() if processes is None else processes)
        name = place.path.rpartition("/")[2]
        self._together = Steps(self._processes, f"steps of {name}", options.wait_timeout)
        self._given_metadata = metadata
        self._clock = clock
        self._only_whole = only_whole
        self._list = StepList()
        self._requests = SaveRequests()
        self._deleter = Deleter(options.todelete_subdir, options.enable_background_delete)
        self._saving = SaveUnderWay(place, options, self._processes, self._list, self._requests, self._delete)
        self._is_closed = False
        self._load("open", prepare=True, read_metadata=not options.lightweight_initialize)

    # --- what there is

    def steps(self, read: bool = False) -> list[int]:
        """The steps in the manager's order: ascending when they were found, then as they were saved. One that is being
        saved is among them. ``read``: look again, as :meth:`reload` does."""
        if read:
            self.reload()
        return [entry.step for entry in self._listed()]

    def latest(self) -> int | None:
        """The last of :meth:`steps`; with ``only_whole`` the last that is finished and opens. None if there is none."""
        if not self._only_whole:
            listed = self._listed()
            return listed[-1].step if listed else None
        self._saving.settle()
        return self._first_that_opens(lambda: reversed(self._list.finished()))

    def best(self) -> int | None:
        """The best by ``best_fn`` of those with metrics, of equals the later; without ``best_fn`` the latest."""
        if self.options.best_fn is None:
            return self.latest()
        if self._only_whole:
            self._saving.settle()
            return self._first_that_opens(lambda: reversed(self._ranked(self._list.finished())))
        ranked = self._ranked(self._listed())
        return ranked[-1].step if ranked else None

    def info(self, step: int) -> SavedStep:
        """What is known of a step. Raises :class:`NotFoundError` if it is not in the list."""
        return self._known(step).info

    def metrics(self, step: int) -> Any | None:
        """What was given as metrics when it was saved; None if nothing was, or it was not kept."""
        info = self.info(step)
        if info.metrics is None and self.options.lightweight_initialize:
            return read_metrics(child(self.place, info.name))
        return info.metrics

    def place_of(self, step: int) -> Place:
        """The directory of a step, also of one that somebody else has saved since.

        Raises :class:`NotFoundError`, naming the steps that there are.
        """
        number = step_number(step)
        with suppress(PathNotFoundError):
            return child(self.place, self._known(number).info.name)
        place = child(self.place, self._names.name(number))
        if identify(place).kind is Kind.NOTHING:
            raise self._not_found(number)
        return place

    def reload(self) -> None:
        """Look again which steps there are, after a save that is under way has ended."""
        self._load("reload", join=True)

    @property
    def metadata(self) -> dict[str, Any]:
        """What was given as ``metadata`` when the root came into being."""
        found = read_root_metadata(self.place)
        return dict(self._given_metadata or {}) if found is None else found

    # --- deciding

    def should_save(self, step: int) -> bool:
        """Whether :meth:`save` would save this step: it is later than the latest, and the policy or somebody who called
        :meth:`request_save` wants it. With several processes all must ask."""
        number = step_number(step)
        if self.options.read_only:
            return False
        listed = self._listed()
        if listed and listed[-1].step >= number:
            return False

        def decide() -> bytes:
            is_ending = self._requests.are_for(number)
            if not self._together.is_primary:
                return json.dumps([is_ending, False]).encode()
            context = DecisionContext(
                is_saving_in_progress=self.options.enable_should_save_is_saving_in_progress_check
                and self.is_saving_in_progress(),
                reached_preemption=is_ending or jax_reached_preemption(number),
                multiprocessing_options=getattr(self.options, "multiprocessing_options", None),
            )
            asked = SavedStep(number, self._now(), name=self._names.name(number))
            previous = [entry.info for entry in listed]
            is_due = bool(self._save_rule.should_save(asked, previous, context=context))
            return json.dumps([is_ending, is_due]).encode()

        answers = [json.loads(answer) for answer in self._together.take(f"decide {number}", decide)]
        is_ending = any(is_ending for is_ending, _ in answers)
        self._requests.settle(number, is_ending)
        return is_ending or bool(answers[0][1])

    def request_save(self) -> None:
        """Have the next step saved, whatever the policy says. May be called from a signal handler."""
        self._requests.add()

    def reached_preemption(self, step: int) -> bool:
        """Whether this is the step after which the job may end: it is saved, if it is saved at all, because somebody
        called :meth:`request_save`, or JAX's preemption service says so.

        Who asks after :meth:`save` is so told of a request only when it was met. With several processes all must ask.
        """
        number = step_number(step)
        answers = self._together.take(f"ending {number}", lambda: b"1" if self._requests.are_for(number) else b"")
        self._requests.settle(number, any(answers))
        return any(answers) or jax_reached_preemption(number)

    # --- saving

    def save(
        self,
        step: int,
        contents: Callable[[], Contents],
        *,
        metrics: Any = None,
        force: bool = False,
        overwrite: bool = False,
        then: Callable[[], None] | None = None,
    ) -> bool:
        """Save a step, if the policy says so or with ``force``; False if not. ``contents`` is called after a yes.

        Waits for the save before, and raises its error, if it failed: then nothing is saved now. Returns once nothing
        done to the data can change what is written (without ``enable_async_checkpointing``: when it is saved). A step
        in the list is :class:`AlreadyExistsError`, of kind ``step-exists``; ``overwrite`` replaces it. ``then`` is
        called by the thread that wrote, before the save has ended; what it raises is the save's error.
        """
        self._check_open()
        number = step_number(step)
        if self.options.read_only:
            _log.warning("%s was opened with read_only; step %d is not saved", self.place.url, number)
            return False
        if not force and not self.should_save(number):
            return False
        made: list[Contents] = []
        requested = 0

        def get_ready() -> bytes:
            nonlocal requested
            self.wait_until_finished()
            if not overwrite:
                self._refuse_taken(number)
            requested = self._requests.count  # what is asked for later is not served by these contents
            made.append(self._with_metrics(contents(), metrics))
            check_custom_metadata(made[0].custom_metadata)
            if not self._together.is_primary:
                return b""
            now = self._now()
            return json.dumps([now.isoformat(), self._given_up(SavedStep(number, now, metrics))]).encode()

        now, given_up = json.loads(self._together.take(f"save {number}", get_ready)[0])
        custom = dict(made[0].custom_metadata or {})
        name = self._names.name(number)
        info = SavedStep(number, datetime.fromisoformat(now), metrics, custom, is_saving=True, name=name)
        entry = Entry(info, is_doomed=number in given_up, then=then)
        self._saving.announce(entry, given_up, requested)
        try:
            self._write(child(self.place, name), made.pop(), overwrite)
        except BaseException:
            self._saving.has_failed()
            raise
        return True

    def _write(self, place: Place, contents: Contents, overwrite: bool) -> None:
        try:
            write = self._saving.begin(place, contents, overwrite)
        except AlreadyExistsError:
            if overwrite:
                raise
            # a directory that is not in our list: all processes have heard so
            self._together.take(f"taken {place.path.rpartition('/')[2]}", lambda: self._judge_taken(place))
            write = self._saving.begin(place, contents, overwrite=True)
        write()

    def _judge_taken(self, place: Place) -> bytes:
        """What is there and not in the list: leftovers are replaced, and whatever Orbax would replace."""
        if self._together.is_primary and self._only_whole and opens(place):
            raise AlreadyExistsError(
                f"{place.url} was saved by somebody else since the steps were listed; reload() finds it, and save with "
                "overwrite=True replaces it",
                kind="step-exists",
                url=place.url,
            )
        return b""

    def _refuse_taken(self, step: int) -> None:
        if any(entry.step == step for entry in self._listed()):
            raise AlreadyExistsError(
                f"Step {step} of {self.place.url} exists already; save another step, or delete({step}) first",
                kind="step-exists",
                url=self.place.url,
            )

    def _with_metrics(self, contents: Contents, metrics: Any) -> Contents:
        is_kept = (self.options.best_fn is not None or self._only_whole) and not self.options.prevent_write_metrics
        if metrics is None and self.options.best_fn is not None:
            _log.warning("A step of %s is saved without metrics, though best_fn is set", self.place.url)
        if metrics is None or not is_kept:
            return contents
        return replace(contents, items={**contents.items, METRICS: json_item(metrics, JSON_HANDLER, METRICS)})

    def _given_up(self, new: SavedStep) -> list[int]:
        """Steps that the preservation policy does not keep any more, once there is the new one."""
        infos = [entry.info for entry in self._listed() if entry.step != new.step] + [new]
        answer = list(self._preservation_rule.should_preserve(infos, context=PreservationContext(now=new.time)))
        if len(answer) != len(infos):
            raise InvalidArgumentError(
                f"should_preserve() of {self._preservation_rule!r} answered for {len(answer)} of {len(infos)} steps"
            )
        return [info.step for info, stays in zip(infos, answer, strict=True) if not stays]

    # --- the save under way

    def wait_until_finished(self, timeout: float | None = None) -> None:
        """Wait for the save under way, and for what it deletes. Raises its error, once.

        :class:`WaitTimeoutError` after ``timeout`` seconds; the save goes on.
        """
        self._saving.wait(timeout)

    def join(self) -> None:
        """Wait for the save under way; its error is for whoever asks."""
        self._saving.join()

    def check_for_errors(self) -> None:
        """Raise the error of a save that has ended, once. Waits for nothing."""
        if not self._saving.is_running:
            self._saving.wait()

    def is_saving_in_progress(self) -> bool:
        """Whether a save is under way in this process: until it is final, and what it replaces deleted."""
        return self._saving.is_running

    @property
    def save_under_way(self) -> AsyncSave | None:
        """The handle of the save under way, or of one that has ended and nobody has asked for its result."""
        return self._saving.handle

    # --- deleting

    def delete(self, step: int) -> None:
        """Delete a step, after a save under way has ended. Raises :class:`NotFoundError` if it is not in the list."""
        self._check_open()
        number = step_number(step)
        if self.options.read_only:
            _log.warning("%s was opened with read_only; step %d is not deleted", self.place.url, number)
            return
        found: list[Entry] = []

        def work() -> bytes:
            self.join()
            found.append(self._known(number))
            self._list.going(found[0])
            if self._together.is_primary:
                self._delete(found[0])
            return b""

        try:
            self._together.take(f"delete {number}", work)
        except BaseException:
            if found:  # perhaps another process failed
                self._list.stays(found[0])
            raise
        self._list.forget(found[0])

    def _delete(self, entry: Entry) -> None:
        """Process 0 deletes. The step leaves the list as soon as it is none any more; it comes back if it stays one."""
        if self._together.is_primary:
            try:
                remove = self._deleter.retire(child(self.place, entry.info.name), self.place)
            except BaseException:
                self._list.stays(entry)
                raise
            self._list.forget(entry)
            remove()
        else:
            self._list.forget(entry)

    # --- the list

    def _listed(self) -> list[Entry]:
        self._saving.settle()
        return self._list.listed()

    def _ranked(self, entries: Iterable[Entry]) -> list[Entry]:
        best_fn = self.options.best_fn
        assert best_fn is not None
        measured = [entry for entry in entries if entry.info.metrics is not None]
        return sorted(measured, key=lambda each: best_fn(each.info.metrics), reverse=self.options.best_mode == "min")

    def _first_that_opens(self, candidates: Callable[[], Iterable[Entry]]) -> int | None:
        def does_open(entry: Entry) -> bool:
            place = child(self.place, entry.info.name)
            is_open = opens(place)
            if not is_open:
                _log.warning("%s does not open, so it is not counted as a step; it is left alone", place.url)
            return is_open

        found = self._list.first_that_opens(candidates, does_open)
        return None if found is None else found.step

    def _known(self, step: int) -> Entry:
        number = step_number(step)
        self._saving.settle()
        found = self._list.find(number)
        if found is None:
            raise self._not_found(number)
        return found

    def _not_found(self, step: int) -> PathNotFoundError:
        steps = self.steps()
        shown = ", ".join(map(str, steps[-20:]))
        there = f"it has {f'{len(steps)} steps, the last of them ' if len(steps) > 20 else ''}{shown}"
        return PathNotFoundError(
            f"There is no step {step} in {self.place.url}; {there if steps else 'it has no steps'}",
            kind="step-not-found",
            url=self.place.url,
        )

    def _load(self, name: str, *, prepare: bool = False, join: bool = False, read_metadata: bool = True) -> None:
        """Process 0 lists, and tells the others."""

        def look() -> bytes:
            if join:
                self.join()
            if not self._together.is_primary:
                return b""
            if prepare:
                self._prepare()
            found = find_steps(self.place, self._names, only_whole=self._only_whole, read_metadata=read_metadata)
            self._list.set(found)
            if self._only_whole:
                self.latest()
            if self._together.count == 1:
                return b""
            return encode_steps(entry.info for entry in self._listed())

        answers = self._together.take(name, look)
        if not self._together.is_primary:
            self._list.set(decode_steps(answers[0]))

    def _prepare(self) -> None:
        options, place = self.options, self.place
        if options.read_only:
            return
        if options.create and place.url == place.path:  # a local directory
            try:
                os.makedirs(place.path, exist_ok=True)
            except OSError as error:
                raise StorageError(f"{place.url} cannot be made a directory: {error}", url=place.url) from error
        if options.cleanup_tmp_directories:
            clean(place, self._names)
        if options.save_root_metadata and self._given_metadata is not None:
            write_root_metadata(place, self._given_metadata)

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock.time(), UTC)

    # --- the end

    def _check_open(self) -> None:
        if self._is_closed:
            raise InvalidArgumentError(f"The steps of {self.place.url} were closed; open them again to save or delete")

    def close(self) -> None:
        """Wait for all that is under way. Raises what went wrong with the last save, if nobody has been told yet."""
        self._is_closed = True
        try:
            self.wait_until_finished()
        finally:
            self._deleter.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.join()  # that error is the one that matters; another is reported when nobody can ask any more
            self._saving.handle = None
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.place.url}: {len(self._listed())} steps>"
