""":class:`CheckpointManager`: the object that a training loop holds.

    options = CheckpointManagerOptions(max_to_keep=3, save_interval_steps=100)
    with CheckpointManager("gs://bucket/run", options) as manager:
        start = manager.latest_step()
        state = init() if start is None else manager.restore(start, target=state)
        for step in range(0 if start is None else start + 1, steps):
            state = train(state)
            manager.save(step, state, metrics={"loss": loss})

What a step holds is what Orbax's manager writes: the tree is the item ``default``, other pytrees and JSON are items
beside it, metrics are the item ``metrics``. Everything about steps is :class:`~ocdbt_py.manager.root.Root`'s.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from ocdbt_py.checkpoint.checkpoint import Checkpoint
from ocdbt_py.checkpoint.contents import Contents, Item, json_item, pytree_item
from ocdbt_py.checkpoint.flatten import ABSENT
from ocdbt_py.checkpoint.memory import memory_limit
from ocdbt_py.checkpoint.opening import resolve_checkpoint
from ocdbt_py.checkpoint.processes import Processes
from ocdbt_py.checkpoint.restore import restore_place
from ocdbt_py.checkpoint.stored import Reading
from ocdbt_py.errors import InvalidArgumentError, PathNotFoundError
from ocdbt_py.manager.listing import METRICS, SavedStep
from ocdbt_py.manager.options import CheckpointManagerOptions
from ocdbt_py.manager.root import Clock, Root
from ocdbt_py.storage.location import Place, Settings

__all__ = ["DEFAULT_ITEM", "CheckpointManager"]

DEFAULT_ITEM = "default"
"""The item that a tree without a name is."""


class CheckpointManager:
    """The checkpoints of one run, one a step, in the directory ``url``.

    Saves go on in a thread while training does, at most one at a time; a step is deleted only once the next one is
    final. ``metadata``: a dict kept with the run as a whole, of which the first that is given stays. ``processes`` as
    in :func:`ocdbt_py.save`: all of them make the same calls in the same order. Not safe for several threads at once,
    and not for several jobs that save into one directory; evaluators open it with ``read_only``, or use
    :func:`ocdbt_py.checkpoints_iterator`.

    As a context manager, or with :meth:`close`, it waits for the last save and tells what went wrong; a program that
    ends without loses nothing, but what went wrong is only printed.

    >>> with CheckpointManager("memory://run", CheckpointManagerOptions(max_to_keep=2)) as manager:
    ...     for step in range(5):
    ...         _ = manager.save(step, {"rate": 0.5**step})
    ...     manager.wait_until_finished()
    ...     manager.all_steps(), manager.restore()
    ([3, 4], {'rate': 0.0625})
    """

    def __init__(
        self,
        url: Any,
        options: CheckpointManagerOptions | None = None,
        *,
        metadata: Mapping[str, Any] | None = None,
        processes: Processes | None = None,
        clock: Clock = time,
        storage_options: dict[str, Any] | None = None,
        fs: Any = None,
    ) -> None:
        options = options or CheckpointManagerOptions()
        place = resolve_checkpoint(url, storage_options, fs, Settings(durable=options.durable))
        self._root = Root(place, options, processes=processes, metadata=metadata, clock=clock)
        self._encoding = options.encoding

    @property
    def options(self) -> CheckpointManagerOptions:
        return self._root.options

    @property
    def metadata(self) -> dict[str, Any]:
        """The dict kept with the run as a whole."""
        return self._root.metadata

    # --- saving

    def save(
        self,
        step: int,
        tree: Any = ABSENT,
        metrics: Any = None,
        force: bool = False,
        *,
        items: Mapping[str, Any] | None = None,
        json: Mapping[str, Any] | None = None,
        custom_metadata: Mapping[str, Any] | None = None,
    ) -> bool:
        """Save ``tree`` as this step, if the policy says so or with ``force``; whether that was so.

        ``items``: more pytrees, by name; ``json``: values that JSON can hold, by name. ``metrics``: a dict of numbers,
        kept for ``best_fn`` and :meth:`metrics`. ``custom_metadata``: a dict kept with the step.

        Waits for the save before, and returns once nothing done to the data can change what is written. Raises what
        that save raised (then this step is not saved), what :func:`ocdbt_py.save` refuses, and
        :class:`AlreadyExistsError` for a step that there is, also with ``force``.
        """

        def contents() -> Contents:
            trees = dict(items or {})
            if tree is not ABSENT:
                if DEFAULT_ITEM in trees:
                    raise InvalidArgumentError(f"The tree is saved as the item {DEFAULT_ITEM!r}; items= has one too")
                trees[DEFAULT_ITEM] = tree
            found: dict[str, Item] = {name: pytree_item(each, self._encoding) for name, each in trees.items()}
            for name, value in (json or {}).items():
                if name in found:
                    raise InvalidArgumentError(f"Both items= and json= have {name!r}; an item is one or the other")
                found[name] = json_item(value)
            if METRICS in found:
                raise InvalidArgumentError(f"{METRICS!r} is the item that metrics= are saved as; choose another name")
            return Contents(found, custom_metadata)

        return self._root.save(step, contents, metrics=_plain(metrics), force=force)

    def should_save(self, step: int) -> bool:
        """Whether :meth:`save` would save this step."""
        return self._root.should_save(step)

    def request_save(self) -> None:
        """Have the next step saved, whatever the policy says. May be called from a signal handler; see
        :class:`ocdbt_py.StopSignals`."""
        self._root.request_save()

    def reached_preemption(self, step: int) -> bool:
        """Whether this is the step after which the job may end: asked after :meth:`save`, whether a request was met by
        it, or JAX's preemption service says so. With several processes all must ask."""
        return self._root.reached_preemption(step)

    def wait_until_finished(self, timeout: float | None = None) -> None:
        """Wait for the save under way, and what it deletes. Raises its error, once; :class:`WaitTimeoutError` after
        ``timeout`` seconds."""
        self._root.wait_until_finished(timeout)

    def is_saving_in_progress(self) -> bool:
        """Whether a save is under way; it has ended only when what it replaces has been deleted."""
        return self._root.is_saving_in_progress()

    def check_for_errors(self) -> None:
        """Raise the error of a save that has ended, once. Waits for nothing."""
        self._root.check_for_errors()

    # --- restoring

    def restore(
        self,
        step: int | None = None,
        target: Any = None,
        *,
        item: str | None = None,
        select: Any = None,
        strict: bool = True,
        dtype: Any = None,
        mmap: bool = False,
        verify: bool = False,
        max_memory: int | None = None,
        progress: Any = None,
    ) -> Any:
        """The tree of a step, by default of the latest, after a save under way has ended. Arguments as in
        :func:`ocdbt_py.restore`; of several items it is a dict, and ``item`` picks one.

        Raises :class:`NotFoundError` where there is no such step, or none at all.
        """
        return restore_place(
            self._settled(step),
            target,
            item=item,
            select=select,
            strict=strict,
            dtype=dtype,
            reading=Reading(mmap, verify, memory_limit(max_memory), progress),
        )

    def checkpoint(self, step: int | None = None) -> Checkpoint:
        """A step, by default the latest, as a lazy :class:`Checkpoint`."""
        return Checkpoint._reopen(self._settled(step), None, False)

    def _settled(self, step: int | None) -> Place:
        """Where a step lies, which is not being written any more."""
        self._root.join()
        found = self._root.latest() if step is None else step
        if found is None:
            raise PathNotFoundError(
                f"There are no steps in {self._root.place.url} yet; latest_step() is None then",
                kind="step-not-found",
                url=self._root.place.url,
            )
        return self._root.place_of(found)

    # --- the steps

    def all_steps(self, read: bool = False) -> list[int]:
        """The steps, in the order in which they were saved; one that is being saved is among them. ``read``: look
        again, as :meth:`reload` does."""
        return self._root.steps(read)

    def latest_step(self) -> int | None:
        """The last step that is finished and opens; None if there is none."""
        return self._root.latest()

    def best_step(self) -> int | None:
        """The best finished step by ``best_fn`` of those with metrics, of equals the later; without ``best_fn`` the
        latest."""
        return self._root.best()

    def info(self, step: int) -> SavedStep:
        """When a step was saved, its metrics, the metadata that was given with it, whether it is being saved."""
        return self._root.info(step)

    def metrics(self, step: int) -> Any | None:
        """The metrics of a step; None if it has none."""
        return self._root.metrics(step)

    def delete(self, step: int) -> None:
        """Delete a step, after a save under way has ended. Raises :class:`NotFoundError` if there is no such step."""
        self._root.delete(step)

    def reload(self) -> None:
        """Look again which steps there are, where somebody else saves or deletes too."""
        self._root.reload()

    # --- the end

    def close(self) -> None:
        """Wait for all that is under way. Raises what went wrong with the last save, if nobody has been told yet."""
        self._root.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._root.__exit__(kind, error, trace)

    def __repr__(self) -> str:
        steps = self.all_steps()
        return f"<{type(self).__name__} {self._root.place.url}: {len(steps)} steps, the latest {self.latest_step()}>"


def _plain(metrics: Any) -> Any:
    """Metrics with the numbers of NumPy and JAX as Python's, which JSON can hold."""
    if isinstance(metrics, Mapping):
        return {key: _plain(value) for key, value in metrics.items()}
    if isinstance(metrics, list | tuple):
        return [_plain(value) for value in metrics]
    if getattr(metrics, "ndim", None) == 0 and callable(getattr(metrics, "item", None)):
        return metrics.item()
    return metrics
