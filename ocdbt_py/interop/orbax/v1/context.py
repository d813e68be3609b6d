"""``v1.Context``: the options of what is called within its ``with`` block.

A context is a namespace of options that can be set until it is in use. Which one is in use is the thread's own business
(a context variable): a thread that is started within the block begins with the defaults again.
"""

from __future__ import annotations

import contextvars
import copy
from types import TracebackType
from typing import Any, NamedTuple

from ocdbt_py.interop.orbax.v1 import options as kinds
from ocdbt_py.interop.orbax.v1.errors import FrozenContextError
from ocdbt_py.interop.orbax.v1.options import FROZEN, CheckpointLayout, identities

__all__ = ["Context", "current_context"]

_KINDS: dict[str, Any] = {
    "pytree": kinds.PyTreeOptions,
    "array": kinds.ArrayOptions,
    "asynchronous": kinds.AsyncOptions,
    "multiprocessing": kinds.MultiprocessingOptions,
    "file": kinds.FileOptions,
    "checkpointables": kinds.CheckpointablesOptions,
    "pathways": kinds.PathwaysOptions,
    "deletion": kinds.DeletionOptions,
    "memory": kinds.MemoryOptions,
    "safetensors": kinds.SafetensorsOptions,
    "atomicity": kinds.AtomicityOptions,
}


class Context:
    """Options for saving and loading. ``Context(other)`` begins with the options of ``other``, and is its own.

    Keyword arguments replace whole namespaces; Orbax deprecates them in favour of setting options one by one.

    >>> context = Context()
    >>> context.array.saving.use_zarr3 = False
    >>> with context:
    ...     pass  # save
    """

    pytree: kinds.PyTreeOptions
    array: kinds.ArrayOptions
    asynchronous: kinds.AsyncOptions
    multiprocessing: kinds.MultiprocessingOptions
    file: kinds.FileOptions
    checkpointables: kinds.CheckpointablesOptions
    pathways: kinds.PathwaysOptions
    deletion: kinds.DeletionOptions
    memory: kinds.MemoryOptions
    safetensors: kinds.SafetensorsOptions
    atomicity: kinds.AtomicityOptions

    def __init__(
        self,
        context: Context | None = None,
        *,
        pytree_options: kinds.PyTreeOptions | None = None,
        array_options: kinds.ArrayOptions | None = None,
        async_options: kinds.AsyncOptions | None = None,
        multiprocessing_options: kinds.MultiprocessingOptions | None = None,
        file_options: kinds.FileOptions | None = None,
        checkpointables_options: kinds.CheckpointablesOptions | None = None,
        pathways_options: kinds.PathwaysOptions | None = None,
        checkpoint_layout: CheckpointLayout | str | None = None,
        deletion_options: kinds.DeletionOptions | None = None,
        memory_options: kinds.MemoryOptions | None = None,
        safetensors_options: kinds.SafetensorsOptions | None = None,
        atomicity_options: kinds.AtomicityOptions | None = None,
    ) -> None:
        given: dict[str, Any] = {
            "pytree": pytree_options,
            "array": array_options,
            "asynchronous": async_options,
            "multiprocessing": multiprocessing_options,
            "file": file_options,
            "checkpointables": checkpointables_options,
            "pathways": pathways_options,
            "deletion": deletion_options,
            "memory": memory_options,
            "safetensors": safetensors_options,
            "atomicity": atomicity_options,
        }
        for name, kind in _KINDS.items():
            options = given[name] if given[name] is not None else getattr(context, name, None)
            # copies, so that nothing that is done to the one changes the other
            object.__setattr__(self, name, kind() if options is None else _copied(options))
        layout = checkpoint_layout or (context.checkpoint_layout if context is not None else CheckpointLayout.ORBAX)
        self._layout = CheckpointLayout(layout)

    def __setattr__(self, name: str, value: Any) -> None:
        if id(self) in FROZEN.get() and not name.startswith("_"):
            raise FrozenContextError(f"The context is in use; set its {name} before the with block")
        if name in _KINDS:
            raise FrozenContextError(f"Set the options in {name} one by one, such as context.{name}.… = …")
        object.__setattr__(self, name, value)

    @property
    def checkpoint_layout(self) -> CheckpointLayout:
        """Whose format is read and written."""
        return self._layout

    @checkpoint_layout.setter
    def checkpoint_layout(self, layout: CheckpointLayout | str) -> None:
        self._layout = CheckpointLayout(layout)

    def __getattr__(self, name: str) -> Any:
        # array_options, and so on: what the namespaces were called before
        namespace = {"async_options": "asynchronous"}.get(name, name.removesuffix("_options"))
        if name.endswith("_options") and namespace in _KINDS:
            return getattr(self, namespace)
        raise AttributeError(f"Context has no option {name!r}; it has {', '.join(_KINDS)} and checkpoint_layout")

    def __enter__(self) -> Context:
        before = _in_use.get()
        frozen = frozenset() if before is None else before.frozen
        frozen |= identities(getattr(self, name) for name in _KINDS) | {id(self)}
        _in_use.set(_Use(self, frozen, before))
        FROZEN.set(frozen)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        use = _in_use.get()
        before = None if use is None else use.before
        _in_use.set(before)
        FROZEN.set(frozenset() if before is None else before.frozen)


class _Use(NamedTuple):
    """One with block of a thread, and the one around it. A context may be in use in several threads at once."""

    context: Context
    frozen: frozenset[int]
    before: _Use | None


_in_use: contextvars.ContextVar[_Use | None] = contextvars.ContextVar("ocdbt_orbax_context", default=None)


def current_context(default: Context | None = None) -> Context:
    """The context in use; outside of any, ``default`` or a new one."""
    use = _in_use.get()
    return use.context if use is not None else default or Context()


def _copied(options: Any) -> Any:
    """The same options, their own from now on; registries and functions stay the ones they are."""
    made = copy.copy(options)
    for name, value in vars(options).items():
        if isinstance(value, kinds._Options):
            object.__setattr__(made, name, _copied(value))
    return made
