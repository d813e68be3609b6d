"""``v1.load`` and its kin: a tree, or several objects by name, from a checkpoint of any release."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ocdbt_py.errors import InvalidArgumentError, InvalidTypeError, StructureError
from ocdbt_py.interop.orbax.matching import opened as opened_tree
from ocdbt_py.interop.orbax.v1.abstract_leaves import is_abstract
from ocdbt_py.interop.orbax.v1.context import Context, current_context
from ocdbt_py.interop.orbax.v1.describing import CheckpointMetadata
from ocdbt_py.interop.orbax.v1.errors import InvalidLayoutError, NoEntryError
from ocdbt_py.interop.orbax.v1.handlers import PyTreeHandler
from ocdbt_py.interop.orbax.v1.handling import read_item
from ocdbt_py.interop.orbax.v1.names import AUTO, RESERVED, STATE
from ocdbt_py.interop.orbax.v1.opening import Opened, open_checkpoint
from ocdbt_py.interop.orbax.v1.options import check_loading
from ocdbt_py.interop.orbax.v1.resolution import handler_for_load
from ocdbt_py.interop.orbax.v1.responses import Response

__all__ = [
    "PLACEHOLDER",
    "load",
    "load_async",
    "load_checkpointables",
    "load_checkpointables_async",
    "load_items",
    "load_pytree",
    "load_pytree_async",
]

PLACEHOLDER = ...
"""Stands for a leaf that is not to be read."""


def load(
    path: Any,
    abstract_state: Any = None,
    *,
    checkpointable_name: str | None = AUTO,
    storage_options: Mapping[str, Any] | None = None,
    fs: Any = None,
) -> Any:
    """The tree saved at ``path``, as it was saved or as ``abstract_state`` says, leaf by leaf.

    ``checkpointable_name``: ``AUTO`` takes the tree ``state``, or the first there is; None the one whose files lie in
    ``path`` itself. Raises :class:`InvalidLayoutError` (no checkpoint, no such tree) and :class:`StructureError` (it is
    not what the abstract tree says), each a ``ValueError``.
    """
    context = current_context()
    check_loading(context)
    abstract = _abstract_of(abstract_state)
    check_abstract_state(abstract)
    opened = open_checkpoint(path, storage_options, fs)
    name = opened.tree_name(checkpointable_name)
    handler: Any = PyTreeHandler()
    if name is not None:
        registry = context.checkpointables.registry
        handler = handler_for_load(registry, abstract, name, opened.handler_of(name), opened.place_of(name))
    return read_item(handler, opened.place_of(name), abstract, context)


def load_async(
    path: Any,
    abstract_state: Any = None,
    *,
    checkpointable_name: str | None = STATE,
    storage_options: Mapping[str, Any] | None = None,
    fs: Any = None,
) -> Response[Any]:
    """:func:`load`, in the background, with the options of now."""
    context = Context(current_context())

    def work() -> Any:
        with context:
            return load(
                path,
                abstract_state,
                checkpointable_name=checkpointable_name,
                storage_options=storage_options,
                fs=fs,
            )

    return Response(work, "ocdbt-load")


def load_checkpointables(
    path: Any,
    abstract_checkpointables: Any = None,
    *,
    storage_options: Mapping[str, Any] | None = None,
    fs: Any = None,
) -> dict[str, Any]:
    """The objects saved at ``path``, by name: all, or those in ``abstract_checkpointables``, each as its value says.

    None as a value: as it was saved. Raises :class:`InvalidLayoutError`, and ``KeyError``: an object that is not there
    (:class:`ItemNotFoundError`), or is not what was asked for (:class:`NoEntryError`, with the reason as its cause).
    """
    abstract = _abstract_of(abstract_checkpointables)
    check_abstract_checkpointables(abstract)
    return load_items(open_checkpoint(path, storage_options, fs), abstract, current_context())


def load_items(opened: Opened, abstract: Mapping[str, Any] | None, context: Context) -> dict[str, Any]:
    """:func:`load_checkpointables` from a checkpoint that is open."""
    check_loading(context)
    if opened.is_direct:
        raise InvalidLayoutError(
            f"{opened.place.url} is a tree without a name, and has no checkpointables; load it with load()",
            url=opened.place.url,
        )
    wanted = abstract or dict.fromkeys(opened.names)
    opened.need(wanted)
    registry = context.checkpointables.registry
    found = {}
    for name, each in wanted.items():
        place = opened.place_of(name)
        handler = handler_for_load(registry, each, name, opened.handler_of(name), place)
        try:
            found[name] = read_item(handler, place, each, context)
        except (StructureError, InvalidArgumentError) as error:
            raise NoEntryError(
                f"{name!r} of {opened.place.url} cannot be loaded so by {type(handler).__name__}: {error.message}",
                url=opened.place.url,
            ) from error
    return found


def load_checkpointables_async(
    path: Any,
    abstract_checkpointables: Any = None,
    *,
    storage_options: Mapping[str, Any] | None = None,
    fs: Any = None,
) -> Response[dict[str, Any]]:
    """:func:`load_checkpointables`, in the background, with the options of now."""
    context = Context(current_context())

    def work() -> dict[str, Any]:
        with context:
            return load_checkpointables(path, abstract_checkpointables, storage_options=storage_options, fs=fs)

    return Response(work, "ocdbt-load")


def _abstract_of(abstract: Any) -> Any:
    """What was given, or the metadata in what ``metadata()`` gave."""
    return abstract.metadata if isinstance(abstract, CheckpointMetadata) else abstract


def check_abstract_state(abstract: Any) -> None:
    """Raise :class:`InvalidTypeError` for a leaf that says nothing."""
    for leaf in () if abstract is None else opened_tree(abstract).leaves:
        if not is_abstract(leaf):
            raise InvalidTypeError(
                f"A leaf of the abstract tree is of type {type(leaf).__name__}, which says neither shape nor type; use "
                "jax.ShapeDtypeStruct, an array, a number, a str, a class of these, or ..."
            )


def check_abstract_checkpointables(abstract: Any) -> None:
    """Raise :class:`InvalidArgumentError` unless these are names that can be."""
    if abstract is None:
        return
    if not isinstance(abstract, dict):
        raise InvalidTypeError(f"abstract_checkpointables is a dict by name, not {type(abstract).__name__}")
    wrong = sorted((RESERVED | {""}) & abstract.keys())
    if wrong:
        raise InvalidArgumentError(f"No checkpointable can be called {' or '.join(map(repr, wrong))}: reserved names")


load_pytree = load
"""Orbax's older name of :func:`load`."""

load_pytree_async = load_async
