"""``v1.training.Checkpointer``: the steps of a training loop, saved when a policy says so.

It is :class:`ocdbt_py.manager.root.Root` by the names of the v1 API. The differences to Orbax's: a step that is
overwritten stays until the new one is complete, and is then replaced whatever the policy says, where Orbax deletes it
first and then asks; and a deletion has ended when ``delete_async`` returns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from ocdbt_py.checkpoint.async_saving import AsyncSave
from ocdbt_py.checkpoint.layout import child
from ocdbt_py.errors import InvalidArgumentError, InvalidTypeError, NotFoundError
from ocdbt_py.interop.orbax import manager_options
from ocdbt_py.interop.orbax.directories import directory_place, path_of
from ocdbt_py.interop.orbax.errors import StepAlreadyExistsError, StepNotFoundError
from ocdbt_py.interop.orbax.v1.context import Context, current_context
from ocdbt_py.interop.orbax.v1.deletion import check_item_name, delete_item
from ocdbt_py.interop.orbax.v1.describing import item_descriptions
from ocdbt_py.interop.orbax.v1.handlers import PyTreeHandler
from ocdbt_py.interop.orbax.v1.loading import check_abstract_checkpointables, check_abstract_state, load_items
from ocdbt_py.interop.orbax.v1.names import AUTO, STATE
from ocdbt_py.interop.orbax.v1.opening import Opened, open_checkpoint
from ocdbt_py.interop.orbax.v1.responses import Response, SaveResponse
from ocdbt_py.interop.orbax.v1.saving import check_checkpointables, check_state, checkpoint_contents
from ocdbt_py.interop.orbax.v1.training.step_metadata import CheckpointMetadata, RootMetadata
from ocdbt_py.manager.options import CheckpointManagerOptions
from ocdbt_py.manager.preservation import PreserveAll
from ocdbt_py.manager.root import Root
from ocdbt_py.manager.save_decisions import (
    AnySavePolicy,
    ContinuousCheckpointingPolicy,
    InitialSavePolicy,
    PreemptionCheckpointingPolicy,
)
from ocdbt_py.storage.location import Place

__all__ = ["Checkpointer"]

Step = int | CheckpointMetadata[Any]


class Checkpointer:
    """The checkpoints below ``directory``, which is made if it is not there; any URL will do.

    ``context``: the options for all that this does, where no ``with`` block has others. Without
    ``save_decision_policy`` a step is saved whenever no save is under way, and when the job is about to end; without
    ``preservation_policy`` all stay. ``cleanup_tmp_directories``: remove what unfinished saves have left.
    ``lightweight_initialize``: do not read times and metrics of the steps that are there.

    >>> with Checkpointer("memory://v1-example") as checkpointer:
    ...     checkpointer.save(1, {"rate": 0.5}), checkpointer.latest.step, checkpointer.load()
    (True, 1, {'rate': 0.5})
    """

    def __init__(
        self,
        directory: Any,
        *,
        context: Context | None = None,
        save_decision_policy: Any = None,
        preservation_policy: Any = None,
        step_name_format: Any = None,
        custom_metadata: Mapping[str, Any] | None = None,
        cleanup_tmp_directories: bool = False,
        lightweight_initialize: bool = False,
        logger: Any = None,
        storage_options: Mapping[str, Any] | None = None,
        fs: Any = None,
    ) -> None:
        self._context = Context(context or current_context())
        default = AnySavePolicy([InitialSavePolicy(), ContinuousCheckpointingPolicy(), PreemptionCheckpointingPolicy()])
        options = CheckpointManagerOptions(
            save_decision_policy=save_decision_policy or default,
            preservation_policy=preservation_policy or PreserveAll(),
            step_name_format=manager_options.step_names(
                manager_options.CheckpointManagerOptions(step_name_format=step_name_format)
            ),
            cleanup_tmp_directories=cleanup_tmp_directories,
            lightweight_initialize=lightweight_initialize,
            prevent_write_metrics=True,  # they are an item of the v1 API's own
            max_memory=self._context.memory.write_concurrent_bytes,
            wait_timeout=self._context.asynchronous.timeout_secs,
        )
        place = directory_place(directory, storage_options, fs)
        self._root = Root(place, options, metadata=custom_metadata, only_whole=False)

    # --- what there is

    @property
    def directory(self) -> Any:
        """The root of the steps."""
        return path_of(self._root.place.url)

    @property
    def latest(self) -> CheckpointMetadata[None] | None:
        """The step with the highest number; None if there is none."""
        found = self.checkpoints
        return found[-1] if found else None

    @property
    def checkpoints(self) -> Sequence[CheckpointMetadata[None]]:
        """All steps, ascending, with what is known without looking: times and metrics, no metadata of trees.

        Steps that another process saved appear after :meth:`reload`.
        """
        return [self._known(step) for step in sorted(self._root.steps())]

    def _known(self, step: int) -> CheckpointMetadata[None]:
        info = self._root.info(step)
        place = child(self._root.place, info.name)
        commit_time = int(info.time.timestamp() * 1e9)
        return CheckpointMetadata(
            step, path_of(place.url), metadata=None, commit_timestamp_nsecs=commit_time, metrics=info.metrics
        )

    def _existing(self, step: Step | None) -> CheckpointMetadata[None]:
        """A step that there is; None: the latest. Raises :class:`StepNotFoundError`."""
        if step is None:
            latest = self.latest
            if latest is None:
                raise StepNotFoundError(f"There are no steps in {self._root.place.url}", url=self._root.place.url)
            return latest
        number = _number(step)
        if number not in self._root.steps():
            steps = ", ".join(map(str, sorted(self._root.steps())[-20:]))
            raise StepNotFoundError(
                f"There is no step {number} in {self._root.place.url}; it has {steps or 'none'}",
                url=self._root.place.url,
            )
        return self._known(number)

    def _place(self, step: int) -> Place:
        return child(self._root.place, self._root.info(step).name)

    def reload(self) -> None:
        """Look again which steps there are."""
        self._root.reload()

    def should_save(self, step: Step) -> bool:
        """Whether :meth:`save` would save this step."""
        return self._root.should_save(_number(step))

    # --- saving

    def save(
        self,
        step: int,
        state: Any,
        *,
        checkpointable_name: str = STATE,
        force: bool = False,
        overwrite: bool = False,
        metrics: Any = None,
        custom_metadata: Mapping[str, Any] | None = None,
    ) -> bool:
        """Save a tree as ``step``, if the policy says so, or with ``force``; False if not.

        Waits for a save under way, and until this one is complete. :class:`StepAlreadyExistsError` for a step that
        there is, unless ``overwrite`` replaces it.
        """
        response = self.save_async(
            step,
            state,
            checkpointable_name=checkpointable_name,
            force=force,
            overwrite=overwrite,
            metrics=metrics,
            custom_metadata=custom_metadata,
        )
        return response is not None and response.result()

    def save_checkpointables(
        self,
        step: int,
        checkpointables: dict[str, Any],
        *,
        force: bool = False,
        overwrite: bool = False,
        metrics: Any = None,
        custom_metadata: Mapping[str, Any] | None = None,
    ) -> bool:
        """:meth:`save` of several objects, by name."""
        response = self.save_checkpointables_async(
            step,
            checkpointables,
            force=force,
            overwrite=overwrite,
            metrics=metrics,
            custom_metadata=custom_metadata,
        )
        return response is not None and response.result()

    def save_async(
        self,
        step: int,
        state: Any,
        *,
        checkpointable_name: str = STATE,
        force: bool = False,
        overwrite: bool = False,
        metrics: Any = None,
        custom_metadata: Mapping[str, Any] | None = None,
    ) -> _StepResponse | None:
        """:meth:`save`, returning once nothing done to the tree can change what is written; None if it is not saved."""
        check_state(state)
        return self.save_checkpointables_async(
            step,
            {checkpointable_name: state},
            force=force,
            overwrite=overwrite,
            metrics=metrics,
            custom_metadata=custom_metadata,
        )

    def save_checkpointables_async(
        self,
        step: int,
        checkpointables: dict[str, Any],
        *,
        force: bool = False,
        overwrite: bool = False,
        metrics: Any = None,
        custom_metadata: Mapping[str, Any] | None = None,
    ) -> _StepResponse | None:
        """:meth:`save_checkpointables`, in the background; None if it is not saved."""
        context = current_context(self._context)
        check_checkpointables(checkpointables)
        number = _number(step)
        is_there = number in self._root.steps()
        if is_there and not overwrite:
            raise StepAlreadyExistsError(
                f"Step {number} of {self._root.place.url} exists already; overwrite=True replaces it",
                url=self._root.place.url,
            )
        is_saved = self._root.save(
            number,
            lambda: checkpoint_contents(checkpointables, context, custom_metadata, metrics=metrics),
            metrics=metrics,
            force=force or is_there,
            overwrite=overwrite,
            then=context.asynchronous.post_finalization_callback,
        )
        save = self._root.save_under_way
        return None if not is_saved or save is None else _StepResponse(self._root, save)

    # --- loading

    def load(self, step: Step | None = None, abstract_state: Any = None, *, checkpointable_name: str = STATE) -> Any:
        """The tree of a step, None is the latest; as it was saved, or as the abstract tree says.

        Raises :class:`StepNotFoundError`, and what ``v1.load_checkpointables`` does.
        """
        check_abstract_state(abstract_state)
        return self.load_checkpointables(step, {checkpointable_name: abstract_state})[checkpointable_name]

    def load_checkpointables(
        self, step: Step | None = None, abstract_checkpointables: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """The objects of a step by name: all, or those that are given, each as its value says (None: as saved)."""
        check_abstract_checkpointables(abstract_checkpointables)
        context = current_context(self._context)
        return load_items(self._open(self._existing(step)), abstract_checkpointables, context)

    def _open(self, found: CheckpointMetadata[None]) -> Opened:
        return open_checkpoint(self._place(found.step))

    # --- metadata

    def metadata(self, step: Step | None = None) -> CheckpointMetadata[Any]:
        """The tree of a step, described."""
        found = self._existing(step)
        opened = self._open(found)
        return _described(found, opened, PyTreeHandler().describe(opened.place_of(opened.tree_name(AUTO))))

    def checkpointables_metadata(self, step: Step | None = None) -> CheckpointMetadata[dict[str, Any]]:
        """All objects of a step, described, by name."""
        found = self._existing(step)
        opened = self._open(found)
        return _described(found, opened, item_descriptions(opened, current_context(self._context)))

    def root_metadata(self) -> RootMetadata:
        """What was given as ``custom_metadata`` when the root came into being."""
        return RootMetadata(directory=self.directory, custom_metadata=self._root.metadata)

    # --- deleting

    def delete(self, step: Step, *, checkpointable_name: str | None = None, missing_ok: bool = False) -> bool:
        """Delete a step, or one object of it. Whether there was anything.

        Raises :class:`StepNotFoundError`, ``FileNotFoundError`` for an object that is not there, and ``ValueError`` for
        the only one that is.
        """
        number = _number(step)
        if checkpointable_name is not None:
            check_item_name(checkpointable_name)
        self._root.wait_until_finished()
        try:
            if checkpointable_name is not None:
                return delete_item(self._place(number), checkpointable_name, missing_ok=missing_ok)
            self._root.delete(number)
        except NotFoundError as error:
            if missing_ok:
                return False
            if error.kind != "step-not-found":
                raise
            raise StepNotFoundError(error.message, url=error.url) from None
        return True

    def delete_async(
        self, step: Step, *, checkpointable_name: str | None = None, missing_ok: bool = False
    ) -> Response[bool]:
        """:meth:`delete`; it has ended when this returns."""
        is_deleted = self.delete(step, checkpointable_name=checkpointable_name, missing_ok=missing_ok)
        return Response(lambda: is_deleted, "ocdbt-delete")

    # --- the end

    def is_saving_in_progress(self) -> bool:
        """Whether a save is under way."""
        return self._root.is_saving_in_progress()

    def wait(self) -> None:
        """Wait for the save under way. Raises its error, once."""
        self._root.wait_until_finished()

    def close(self) -> None:
        """Wait for the save under way. What is saved after that is saved all the same, as with Orbax."""
        self._root.wait_until_finished()

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Orbax's older names
    save_pytree = save
    save_pytree_async = save_async
    load_pytree = load
    pytree_metadata = metadata


class _StepResponse:
    """The save of a step that is under way; its result is True."""

    def __init__(self, root: Root, save: AsyncSave) -> None:
        self._root = root
        self._save = save
        self._watched = SaveResponse(save, True)

    def result(self, timeout: float | None = None) -> bool:
        """Wait until the step is there, and what it replaces deleted. Raises what the save raised."""
        if self._root.save_under_way is self._save:
            self._root.wait_until_finished(timeout)  # so that nobody is told of an error twice
        return self._watched.result(timeout)

    def on_complete(self, callback: Callable[[bool], None]) -> None:
        """Call ``callback(True)`` once the step is there, from another thread."""
        self._watched.on_complete(callback)


def _number(step: Any) -> int:
    if isinstance(step, CheckpointMetadata):
        return step.step
    if isinstance(step, bool):
        raise InvalidTypeError("A step is a whole number, not a bool")
    try:
        number = step.__index__()
    except AttributeError:
        raise InvalidTypeError(f"A step is a whole number, not {type(step).__name__}") from None
    if number < 0:
        raise InvalidArgumentError(f"Steps count from 0, and {number} is below")
    return int(number)


def _described(found: CheckpointMetadata[None], opened: Opened, metadata: Any) -> CheckpointMetadata[Any]:
    record = opened.record
    return CheckpointMetadata(
        found.step,
        found.path,
        metadata=metadata,
        init_timestamp_nsecs=record.init_time_ns,
        commit_timestamp_nsecs=record.commit_time_ns,
        custom_metadata=record.custom_metadata,
        metrics=found.metrics,
    )
