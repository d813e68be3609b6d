"""Orbax's ``CheckpointManager``, step for step, on our own directory of steps (:class:`ocdbt_py.manager.root.Root`).

A manager is of one of two kinds, settled by how it is made, or by its first save or restore. With one unnamed item,
``args=StandardSave(…)`` goes into the directory ``default`` of a step and comes back as it is; with several,
``args=Composite(name=…)`` goes into directories by name and comes back as a ``Composite``. Which handler an item has
is :mod:`ocdbt_py.interop.orbax.composite_handler`'s business, and everything about steps is the root's.

Directories are the same as Orbax's: either can go on with the other's run. Where answers differ, it is on purpose:

* ``read_only`` is not overruled by ``force``;
* after a save that failed, the steps that it would have replaced are in the list at once, not only after a reload;
* asking to save a step that exists leaves nothing "being saved";
* a step can be moved to ``todelete_subdir`` a second time;
* ``post_finalization_callback`` is called once a step is there, not right before.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, Self

from ocdbt_py.checkpoint.contents import Contents, Item
from ocdbt_py.checkpoint.layout import child, identify, is_finished, read_file
from ocdbt_py.errors import AlreadyExistsError, InvalidArgumentError, UnsupportedError
from ocdbt_py.interop.orbax import args as ocp_args
from ocdbt_py.interop.orbax.checkpointers import AbstractCheckpointer, AsyncCheckpointer, Checkpointer
from ocdbt_py.interop.orbax.composite import Composite
from ocdbt_py.interop.orbax.composite_handler import CompositeCheckpointHandler
from ocdbt_py.interop.orbax.directories import below, directory_place, exists, path_of
from ocdbt_py.interop.orbax.errors import (
    IncompleteCheckpointError,
    StepAlreadyExistsError,
    StepNotFoundError,
)
from ocdbt_py.interop.orbax.handlers import CheckpointHandler, JsonCheckpointHandler
from ocdbt_py.interop.orbax.manager_options import CheckpointManagerOptions, root_options
from ocdbt_py.interop.orbax.options import check_atomicity, check_options
from ocdbt_py.interop.orbax.registration import CheckpointHandlerRegistry, DefaultCheckpointHandlerRegistry
from ocdbt_py.manager.listing import METRICS, step_directories
from ocdbt_py.manager.root import Root
from ocdbt_py.storage.location import Place

__all__ = ["AbstractCheckpointManager", "CheckpointManager"]

DEFAULT_ITEM = "default"


class AbstractCheckpointManager:
    """What every checkpoint manager is."""


class CheckpointManager(AbstractCheckpointManager):
    """Saves the steps of a run into ``directory``, keeps some, and restores them.

    ``item_handlers``: one handler for the one unnamed item, or handlers by item; ``item_names``: items whose handlers
    the first arguments tell; ``handler_registry`` in place of both; without any, the first call tells.
    ``storage_options`` and ``fs`` are for a directory that is a URL.
    """

    def __init__(
        self,
        directory: Any,
        checkpointers: Any = None,
        options: CheckpointManagerOptions | None = None,
        metadata: Mapping[str, Any] | None = None,
        item_names: Sequence[str] | None = None,
        item_handlers: Any = None,
        logger: Any = None,
        handler_registry: CheckpointHandlerRegistry | None = None,
        *,
        storage_options: Mapping[str, Any] | None = None,
        fs: Any = None,
    ) -> None:
        options = options if options is not None else CheckpointManagerOptions()
        _check_together(checkpointers, item_names, item_handlers, handler_registry)
        self._is_async = options.enable_async_checkpointing
        self._is_default: bool | None = None
        if checkpointers:
            self._handler, self._is_default, self._is_async = _from_checkpointers(checkpointers)
        elif item_names is not None or item_handlers is not None:
            self._is_default = isinstance(item_handlers, CheckpointHandler)
            self._handler = _from_names(item_names, item_handlers)
        else:
            registry = DefaultCheckpointHandlerRegistry(handler_registry)
            for args_cls in (ocp_args.JsonSave, ocp_args.JsonRestore):
                if not registry.has(METRICS, args_cls):
                    registry.add(METRICS, args_cls, JsonCheckpointHandler(METRICS))
            self._handler = CompositeCheckpointHandler(handler_registry=registry)
        waiting = options.async_options
        self._callback = waiting.post_finalization_callback if waiting is not None else None
        if self._callback is not None and not self._is_async:
            raise InvalidArgumentError("post_finalization_callback is called by asynchronous saves only")
        self._options = options
        self._logger = logger
        self._directory = directory
        self._storage_options = storage_options
        self._fs = fs
        self._place = directory_place(directory, storage_options, fs)
        check_options(options.multiprocessing_options, options.file_options, options.temporary_path_class)
        check_atomicity(options.atomicity_options, self._place)
        self._root_options = root_options(options, is_async=self._is_async)
        self._root = Root(self._place, self._root_options, metadata=metadata, only_whole=False)

    @property
    def directory(self) -> Any:
        """The directory of the steps."""
        return path_of(self._directory)

    # --- steps

    def all_steps(self, read: bool = False) -> list[int]:
        """The steps there are, in the manager's order; ``read`` looks again."""
        return list(self._root.steps(read=read))

    def latest_step(self) -> int | None:
        """The last of :meth:`all_steps`; None if there are none."""
        steps = self._root.steps()
        return steps[-1] if steps else None

    def best_step(self) -> int | None:
        """The best step with metrics by ``best_fn``; without that, the latest."""
        return self._root.best()

    def reload(self) -> None:
        """Look again which steps there are."""
        self._root.reload()

    def should_save(self, step: int) -> bool:
        """Whether :meth:`save` would save this step now."""
        return self._root.should_save(step)

    def reached_preemption(self, step: int) -> bool:
        """Whether the job is about to be ended."""
        return self._root.reached_preemption(step)

    def request_save(self) -> None:
        """Have the next step saved, whatever the rules want. For signal handlers too; Orbax has no such call."""
        self._root.request_save()

    # --- saving

    def save(
        self,
        step: int,
        items: Any = None,
        save_kwargs: Any = None,
        metrics: Any = None,
        force: bool | None = False,
        args: Any = None,
        custom_metadata: Mapping[str, Any] | None = None,
    ) -> bool:
        """Save a step, if the rules want it; False if not. ``force``: whatever they want, but not if ``read_only``.

        Waits for the save before. Raises :class:`StepAlreadyExistsError`, a ``ValueError``, and what was wrong with the
        save before.
        """
        begun = time.time()
        if items is None and args is None:
            raise InvalidArgumentError("There is nothing to save; give args=, such as StandardSave(tree)")
        self._settle(not isinstance(args, ocp_args.Composite))
        self._check_kind(items, args)

        def contents() -> Contents:
            given = self._given(items, save_kwargs, args, for_save=True)
            parts: dict[str, Item] = self._handler.contents(given)
            return Contents(parts, custom_metadata)

        try:
            is_saved = self._root.save(step, contents, metrics=metrics, force=bool(force), then=self._callback)
        except AlreadyExistsError as error:
            raise StepAlreadyExistsError(error.message, url=error.url) from error
        if is_saved:
            self._tell("save", step, begun)
        return is_saved

    def wait_until_finished(self) -> None:
        """Wait for the save that is under way; raises what went wrong in it."""
        self._root.wait_until_finished()

    def check_for_errors(self) -> None:
        """Raise what went wrong in a save that has ended, once."""
        self._root.check_for_errors()

    def is_saving_in_progress(self) -> bool:
        """Whether a save is under way; what it replaces is deleted before it has ended."""
        return self._root.is_saving_in_progress()

    def delete(self, step: int) -> None:
        """Delete a step. Raises :class:`StepNotFoundError`, a ``FileNotFoundError``."""
        if self._options.read_only:
            return
        if step not in self.all_steps():
            raise self._missing(step)
        self._root.delete(step)

    # --- restoring

    def restore(
        self,
        step: int | None = None,
        items: Any = None,
        restore_kwargs: Any = None,
        directory: Any = None,
        args: Any = None,
    ) -> Any:
        """What was saved as ``step`` (None: the latest), in the form that ``args`` ask for; without, as it was saved.

        ``directory``: another one than the manager's. Raises :class:`StepNotFoundError`.
        """
        begun = time.time()
        root = self._place if directory is None else directory_place(directory, self._storage_options, self._fs)
        if step is None:
            step = self.latest_step() if directory is None else self._latest_in(root)
            if step is None:
                raise StepNotFoundError(f"There are no steps in {root.url}", url=root.url)
        place = self._step_place(root, step)
        self._settle_by(place)
        self._check_kind(items, args)
        if not exists(place):
            raise self._missing(step, root)
        if not is_finished(identify(place)):
            raise IncompleteCheckpointError(f"Step {step} in {root.url} was never finished", url=place.url)
        given = self._given(items, restore_kwargs, args, for_save=False)
        found = self._of_kind(self._handler.read(place, given))
        self._tell("restore", step, begun)
        return found

    def metrics(self, step: int) -> Any:
        """The metrics that were saved with a step; None if there are none."""
        place = child(self._step_place(self._place, step), METRICS)
        data = read_file(place, METRICS)
        return None if data is None else json.loads(data)

    def item_metadata(self, step: int) -> Any:
        """The metadata of the item, or a ``Composite`` of those of all items, without reading any array."""
        if step is None:
            raise InvalidArgumentError("Give a step: the directory of all steps has no items")
        return self.metadata(step).item_metadata

    def metadata(self, step: int | None = None) -> Any:
        """``StepMetadata`` of a step; without one, ``RootMetadata`` of the directory."""
        from ocdbt_py.interop.orbax import metadata

        if step is None:
            return metadata.RootMetadata(custom_metadata=dict(self._root.metadata or {}))
        place = self._step_place(self._place, step)
        found = self._handler.metadata(place)
        self._settle_by(place)
        found.item_metadata = self._of_kind(found.item_metadata)
        if METRICS in found.item_handlers:
            found.metrics = {**found.metrics, **(self.metrics(step) or {})}
        return found

    # --- of which kind

    def _settle(self, is_default: bool) -> None:
        if self._is_default is None:
            self._is_default = is_default

    def _settle_by(self, place: Place) -> None:
        if self._is_default is None:
            self._is_default = f"{DEFAULT_ITEM}/" in below(place)

    def _check_kind(self, items: Any, args: Any) -> None:
        if isinstance(items, ocp_args.CheckpointArgs):
            raise InvalidArgumentError("Arguments go into args=: save(step, args=…), restore(step, args=…)")
        if args is None:
            return
        if not isinstance(args, ocp_args.CheckpointArgs):
            raise InvalidArgumentError(f"args= is an arguments object, such as StandardSave, not {type(args).__name__}")
        if self._is_default and isinstance(args, ocp_args.Composite):
            raise InvalidArgumentError("Composite is for several items, and this manager is of one unnamed item")
        if not self._is_default and not isinstance(args, ocp_args.Composite):
            raise InvalidArgumentError(
                f"This manager is of several items: give args=Composite(name={type(args).__name__}(…))"
            )

    def _of_kind(self, found: Composite) -> Any:
        if not self._is_default:
            return found
        if DEFAULT_ITEM not in found:
            raise InvalidArgumentError(
                f"This manager is of one unnamed item, and there is no directory {DEFAULT_ITEM!r} but "
                f"{', '.join(found) or 'nothing'}; give args=Composite(…) to a new manager"
            )
        return found[DEFAULT_ITEM]

    def _given(self, items: Any, kwargs: Any, args: Any, *, for_save: bool) -> Mapping[str, Any]:
        """Arguments by item, of the new form or the old one."""
        if args is not None:
            return {DEFAULT_ITEM: args} if self._is_default else dict(args)
        items = {} if items is None else {DEFAULT_ITEM: items} if self._is_default else items
        kwargs = {} if kwargs is None else {DEFAULT_ITEM: kwargs} if self._is_default else kwargs
        given = {}
        for name in items if for_save else {**items, **kwargs}:
            args_cls: Any = self._handler.args_classes(name)[0 if for_save else 1]
            given[name] = args_cls(items.get(name), **(kwargs.get(name) or {}))
        return given

    # --- where

    def _step_place(self, root: Place, step: int) -> Place:
        """Where a step is, or would be."""
        names = self._root_options.names
        if self._options.step_name_format is None:
            return child(root, names.name(step))
        return child(root, step_directories(root, names).get(step, names.name(step)))

    def _latest_in(self, root: Place) -> int | None:
        return max(step_directories(root, self._root_options.names), default=None)

    def _missing(self, step: int, root: Place | None = None) -> StepNotFoundError:
        url = (root or self._place).url
        steps = ", ".join(map(str, self.all_steps()[-20:])) or "none"
        return StepNotFoundError(f"There is no step {step} in {url}; the manager knows of {steps}", url=url)

    def _tell(self, event: str, step: int, begun: float) -> None:
        if self._logger is not None:
            self._logger.log_entry(
                {
                    "event_type": event,
                    "step": step,
                    "directory": str(self._directory),
                    "checkpoint_manager_start_time": begun,
                    "checkpoint_manager_blocking_duration_secs": time.time() - begun,
                }
            )

    # --- the end

    def close(self) -> None:
        """Wait for what is under way, and let go of everything."""
        try:
            self._root.close()
        finally:
            self._handler.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _check_together(checkpointers: Any, names: Any, handlers: Any, registry: Any) -> None:
    given = {
        "checkpointers": checkpointers,
        "item_names": names,
        "item_handlers": handlers,
        "handler_registry": registry,
    }
    exclusive = [
        ("checkpointers", "item_names"),
        ("checkpointers", "item_handlers"),
        ("checkpointers", "handler_registry"),
        ("item_handlers", "handler_registry"),
        ("item_names", "handler_registry"),
    ]
    for one, other in exclusive:
        if given[one] is not None and given[other] is not None:
            raise InvalidArgumentError(f"Give {one} or {other}, not both")
    if names and isinstance(handlers, CheckpointHandler):
        raise InvalidArgumentError("One handler is for the one unnamed item; leave out item_names, or give a dict")


def _from_checkpointers(checkpointers: Any) -> tuple[CompositeCheckpointHandler, bool, bool]:
    """Handler, whether there is one unnamed item, whether saves are asynchronous: from the old form."""
    if isinstance(checkpointers, AbstractCheckpointer):
        by_name: Mapping[str, Any] = {DEFAULT_ITEM: checkpointers}
    elif isinstance(checkpointers, dict):
        by_name = checkpointers
    else:
        raise InvalidArgumentError(f"checkpointers is a Checkpointer or a dict of them, not {checkpointers!r}")
    for name, each in by_name.items():
        if not isinstance(each, Checkpointer):
            raise InvalidArgumentError(f"The checkpointer of {name!r} is no Checkpointer but {type(each).__name__}")
    handlers = {name: each.handler for name, each in by_name.items()}
    is_async = any(isinstance(each, AsyncCheckpointer) for each in by_name.values())
    return _from_names(None, handlers), isinstance(checkpointers, AbstractCheckpointer), is_async


def _from_names(names: Sequence[str] | None, handlers: Any) -> CompositeCheckpointHandler:
    if isinstance(handlers, CheckpointHandler):
        by_name: dict[str, Any] = {DEFAULT_ITEM: handlers}
    elif handlers is None or isinstance(handlers, Mapping):
        by_name = {**dict.fromkeys(names or ()), **(handlers or {})}
    else:
        raise UnsupportedError(f"item_handlers is a CheckpointHandler or a dict of them, not {type(handlers).__name__}")
    by_name[METRICS] = JsonCheckpointHandler(METRICS)
    return CompositeCheckpointHandler(**by_name)
