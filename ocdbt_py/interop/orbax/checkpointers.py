"""Saving and restoring one checkpoint, without steps: Orbax's checkpointers.

What is saved is published whole or not at all, with any handler (:mod:`ocdbt_py.checkpoint.save`). The asynchronous
ones return once everything is judged and copied; their next save, :meth:`~AsyncCheckpointer.wait_until_finished` and
:meth:`~AsyncCheckpointer.close` wait for it and raise what went wrong, once. The interpreter does not exit before it is
done.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from ocdbt_py.checkpoint.async_saving import AsyncSave, begin_save
from ocdbt_py.checkpoint.contents import DIRECT, Contents
from ocdbt_py.checkpoint.layout import identify, is_finished
from ocdbt_py.checkpoint.save import BegunSave
from ocdbt_py.errors import AlreadyExistsError, InvalidArgumentError
from ocdbt_py.interop.orbax import args as ocp_args
from ocdbt_py.interop.orbax.composite_handler import CompositeCheckpointHandler, with_registered_args
from ocdbt_py.interop.orbax.directories import directory_place, exists
from ocdbt_py.interop.orbax.errors import (
    DestinationExistsError,
    IncompleteCheckpointError,
    MissingDirectoryError,
)
from ocdbt_py.interop.orbax.handlers import PyTreeCheckpointHandler, StandardCheckpointHandler
from ocdbt_py.interop.orbax.item_handler import arguments, contents_of, described, restored
from ocdbt_py.interop.orbax.options import (
    AsyncOptions,
    AtomicityOptions,
    FileOptions,
    MultiprocessingOptions,
    check_atomicity,
    check_options,
)
from ocdbt_py.storage.location import Place

__all__ = [
    "AbstractCheckpointer",
    "AsyncCheckpointer",
    "Checkpointer",
    "PyTreeCheckpointer",
    "StandardCheckpointer",
]


class AbstractCheckpointer:
    """What every checkpointer is."""


class Checkpointer(AbstractCheckpointer):
    """Saves with one handler, and returns when the checkpoint is there.

    ``storage_options`` and ``fs`` are for directories that are URLs.
    """

    def __init__(
        self,
        handler: Any,
        *,
        multiprocessing_options: MultiprocessingOptions | None = None,
        file_options: FileOptions | None = None,
        atomicity_options: AtomicityOptions | None = None,
        checkpoint_metadata_store: Any = None,
        temporary_path_class: Any = None,
        storage_options: Mapping[str, Any] | None = None,
        fs: Any = None,
    ) -> None:
        check_options(multiprocessing_options, file_options, temporary_path_class)
        self._atomicity = atomicity_options
        self._handler = handler
        self._registered = handler if isinstance(handler, CompositeCheckpointHandler) else with_registered_args(handler)
        self._storage_options = storage_options
        self._fs = fs

    @property
    def handler(self) -> Any:
        """The handler that was given."""
        return self._handler

    def save(
        self,
        directory: Any,
        *args: Any,
        force: bool = False,
        custom_metadata: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Save what ``args=`` (or the handler's own arguments) describe as the checkpoint at ``directory``.

        ``force`` replaces a checkpoint. Raises :class:`DestinationExistsError`, a ``ValueError``.
        """
        place = self._place(directory)
        check_atomicity(self._atomicity, place)
        contents = self._contents(args, kwargs, custom_metadata)
        try:
            self._write(place, contents, force)
        except AlreadyExistsError as error:
            raise DestinationExistsError(error.message, url=error.url) from error

    def _write(self, place: Place, contents: Contents, overwrite: bool) -> None:
        BegunSave(place, contents, overwrite=overwrite).write()

    def _contents(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], custom_metadata: Mapping[str, Any] | None
    ) -> Contents:
        given = arguments(self._registered, args, kwargs, for_save=True)
        if isinstance(self._handler, CompositeCheckpointHandler):
            if not isinstance(given, ocp_args.Composite):
                raise InvalidArgumentError("Several items are saved with args=Composite(name=…)")
            return Contents(self._handler.contents(given), custom_metadata)
        return Contents({DIRECT: contents_of(self._registered, given)}, custom_metadata)

    def restore(self, directory: Any, *args: Any, **kwargs: Any) -> Any:
        """What was saved at ``directory``, in the form that the arguments ask for.

        Raises :class:`MissingDirectoryError`, a ``FileNotFoundError``, and :class:`IncompleteCheckpointError`, a
        ``ValueError``.
        """
        place = self._place(directory)
        if not exists(place):
            raise MissingDirectoryError(f"There is no checkpoint at {place.url}; check the path", url=place.url)
        if not is_finished(identify(place)):
            raise IncompleteCheckpointError(
                f"The checkpoint at {place.url} was never finished, or is still being written", url=place.url
            )
        given = arguments(self._registered, args, kwargs, for_save=False)
        if isinstance(self._handler, CompositeCheckpointHandler):
            return self._handler.read(place, given if isinstance(given, ocp_args.Composite) else None)
        return restored(self._registered, place, given)

    def metadata(self, directory: Any) -> Any:
        """``StepMetadata`` of the checkpoint at ``directory``."""
        from ocdbt_py.interop.orbax import metadata

        place = self._place(directory)
        if isinstance(self._handler, CompositeCheckpointHandler):
            return self._handler.metadata(place)
        step = metadata.step_metadata(place)
        step.item_metadata = described(self._registered, place)
        return step

    def _place(self, directory: Any) -> Place:
        return directory_place(directory, self._storage_options, self._fs)

    def close(self) -> None:
        """Let go of the handler."""
        if hasattr(self._handler, "close"):
            self._handler.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncCheckpointer(Checkpointer):
    """Saves with one handler, and returns when everything is copied. ``timeout_secs`` bounds waiting for processes."""

    def __init__(
        self,
        handler: Any,
        timeout_secs: int | None = None,
        *,
        async_options: AsyncOptions | None = None,
        multiprocessing_options: MultiprocessingOptions | None = None,
        file_options: FileOptions | None = None,
        atomicity_options: AtomicityOptions | None = None,
        checkpoint_metadata_store: Any = None,
        temporary_path_class: Any = None,
        storage_options: Mapping[str, Any] | None = None,
        fs: Any = None,
    ) -> None:
        super().__init__(
            handler,
            multiprocessing_options=multiprocessing_options,
            file_options=file_options,
            atomicity_options=atomicity_options,
            checkpoint_metadata_store=checkpoint_metadata_store,
            temporary_path_class=temporary_path_class,
            storage_options=storage_options,
            fs=fs,
        )
        options = async_options or AsyncOptions()
        self._timeout = float(timeout_secs or options.timeout_secs)
        if self._timeout <= 0:
            raise InvalidArgumentError(f"timeout_secs is a positive number of seconds, not {self._timeout}")
        self._callback = options.post_finalization_callback
        self._under_way: AsyncSave | None = None

    def save(
        self,
        directory: Any,
        *args: Any,
        force: bool = False,
        custom_metadata: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Begin to save, once the save before has ended. See :meth:`Checkpointer.save`."""
        self.wait_until_finished()
        super().save(directory, *args, force=force, custom_metadata=custom_metadata, **kwargs)

    def _write(self, place: Place, contents: Contents, overwrite: bool) -> None:
        self._under_way = begin_save(
            place, contents, overwrite=overwrite, wait_timeout=self._timeout, then=self._callback
        )

    def wait_until_finished(self) -> None:
        """Wait for the save that is under way; raises what went wrong in it, once."""
        handle, self._under_way = self._under_way, None
        if handle is not None:
            handle.result()

    def check_for_errors(self) -> None:
        """Raise what went wrong in a save that has ended, once."""
        if self._under_way is not None and self._under_way.done():
            self.wait_until_finished()

    def close(self) -> None:
        """Wait for the save that is under way, and let go of the handler."""
        try:
            self.wait_until_finished()
        finally:
            super().close()


class StandardCheckpointer(AsyncCheckpointer):
    """Saves trees of arrays and numbers, asynchronously."""

    def __init__(
        self,
        *,
        async_options: AsyncOptions | None = None,
        multiprocessing_options: MultiprocessingOptions | None = None,
        file_options: FileOptions | None = None,
        atomicity_options: AtomicityOptions | None = None,
        checkpoint_metadata_store: Any = None,
        temporary_path_class: Any = None,
        storage_options: Mapping[str, Any] | None = None,
        fs: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            StandardCheckpointHandler(multiprocessing_options=multiprocessing_options, **kwargs),
            async_options=async_options,
            multiprocessing_options=multiprocessing_options,
            file_options=file_options,
            atomicity_options=atomicity_options,
            temporary_path_class=temporary_path_class,
            storage_options=storage_options,
            fs=fs,
        )

    def save(  # type: ignore[override]
        self,
        directory: Any,
        state: Any,
        *,
        save_args: Any = None,
        force: bool = False,
        custom_metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Begin to save the tree ``state``."""
        args = state if isinstance(state, ocp_args.CheckpointArgs) else ocp_args.StandardSave(state, save_args)
        super().save(directory, args=args, force=force, custom_metadata=custom_metadata)

    def restore(self, directory: Any, target: Any = None, *, strict: bool = True) -> Any:
        """The tree, in the form of ``target``; ``strict=False`` cuts or pads arrays of other shapes."""
        args = target
        if not isinstance(target, ocp_args.CheckpointArgs):
            args = ocp_args.StandardRestore(target, strict=strict)
        return super().restore(directory, args=args)


class PyTreeCheckpointer(Checkpointer):
    """Saves trees of arrays, numbers and strings, and returns when the checkpoint is there."""

    def __init__(
        self,
        primary_host: int | None = 0,
        use_ocdbt: bool = True,
        use_zarr3: bool = False,
        use_compression: bool = True,
        *,
        storage_options: Mapping[str, Any] | None = None,
        fs: Any = None,
    ) -> None:
        super().__init__(
            PyTreeCheckpointHandler(use_ocdbt=use_ocdbt, use_zarr3=use_zarr3, use_compression=use_compression),
            multiprocessing_options=MultiprocessingOptions(primary_host=primary_host),
            storage_options=storage_options,
            fs=fs,
        )
