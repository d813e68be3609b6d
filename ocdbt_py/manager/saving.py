"""The save under way below a root: one, at most.

Its thread tells the list when the step is final, and then, not before, deletes what was given up. A save that fails
calls nobody; that it has is made out by whoever asks next, in :meth:`SaveUnderWay.settle`, and the error is told once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from ocdbt_py.checkpoint.async_saving import AsyncSave, begin_save
from ocdbt_py.checkpoint.collecting import collector_paused
from ocdbt_py.checkpoint.contents import Contents
from ocdbt_py.checkpoint.processes import Processes
from ocdbt_py.checkpoint.save import BegunSave
from ocdbt_py.errors import OcdbtError, StorageError, WaitTimeoutError
from ocdbt_py.manager.options import CheckpointManagerOptions
from ocdbt_py.manager.step_list import Entry, StepList
from ocdbt_py.manager.stopping import SaveRequests
from ocdbt_py.storage.location import Place

__all__ = ["SaveUnderWay"]


class SaveUnderWay:
    """Begins saves, and knows of the last one what came of it. ``delete`` deletes a step that was given up."""

    def __init__(
        self,
        root: Place,
        options: CheckpointManagerOptions,
        processes: Processes,
        steps: StepList,
        requests: SaveRequests,
        delete: Callable[[Entry], None],
    ) -> None:
        self._root = root
        self._how: dict[str, Any] = {
            "checksums": options.checksums,
            "max_memory": options.max_memory,
            "processes": processes,
            "wait_timeout": options.wait_timeout,
            "progress": options.progress,
        }
        self._is_async = options.enable_async_checkpointing
        self._steps = steps
        self._requests = requests
        self._delete = delete
        self._entry: Entry | None = None
        self.handle: AsyncSave | None = None

    def announce(self, entry: Entry, given_up: Collection[int], requested: int) -> None:
        """A save begins, which meets so many requests."""
        self._steps.begin(entry, given_up)
        self._requests.serve(requested, entry.step)
        self._entry = entry

    def begin(self, place: Place, contents: Contents, overwrite: bool) -> Callable[[], None]:
        """Refuse what can be refused; what is returned does what is left to do for the caller."""
        entry = self._entry
        assert entry is not None
        if self._is_async:
            self.handle = begin_save(
                place, contents, overwrite=overwrite, then=lambda: self._published(entry), **self._how
            )
            return lambda: None
        with collector_paused():
            begun = BegunSave(place, contents, overwrite=overwrite, **self._how)

        def write() -> None:
            with collector_paused():
                begun.write()
            self._entry = None
            self._published(entry)

        return write

    def has_failed(self) -> None:
        """What was announced has failed, unless it is saved, and what went wrong came later."""
        entry = self._entry
        if entry is not None and self._steps.fail(entry):
            self._entry = None
            self._requests.take_back()

    def _published(self, entry: Entry) -> None:
        failed: list[str] = []
        first: OcdbtError | None = None
        for each in self._steps.publish(entry):
            try:
                self._delete(each)
            except OcdbtError as error:
                first = first or error
                failed.append(str(each.step))
        if first is not None:
            raise StorageError(
                f"Step {entry.step} of {self._root.url} is saved, but step {', '.join(failed)}, which it replaces, "
                f"could not be deleted: {first}",
                kind="not-deleted",
                url=self._root.url,
            ) from first
        if entry.then is not None:
            entry.then()

    # --- waiting

    @property
    def is_running(self) -> bool:
        """Until the step is final, and what it replaces deleted."""
        return self.handle is not None and not self.handle.done()

    def settle(self) -> None:
        """Make out whether it has failed."""
        if self.handle is not None and self.handle.done():
            self.has_failed()

    def join(self) -> None:
        """Wait for it; its error is for whoever asks."""
        if self.handle is not None:
            self.handle.wait()
        self.settle()

    def wait(self, timeout: float | None = None) -> None:
        """Wait for it, and raise its error, once."""
        handle = self.handle
        if handle is None:
            return
        if not handle.wait(timeout):
            step = "" if self._entry is None else f" of step {self._entry.step}"
            raise WaitTimeoutError(
                f"The save{step} to {self._root.url} has not ended after {timeout} seconds; it goes on",
                url=self._root.url,
            )
        self.settle()
        self.handle = self._entry = None
        handle.result()
