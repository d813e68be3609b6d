"""Helpers of evaluators and of restores: ``ocp.checkpoint_utils``.

Waiting for steps is :mod:`ocdbt_py.manager.watching`'s, with Orbax's arguments and its idea of a step: a finished
directory of the right name, whatever is in it. As in Orbax a step that is given out is copied beside the others first,
and the copy removed when the loop comes back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ocdbt_py.checkpoint.jax_processes import default_processes
from ocdbt_py.checkpoint.layout import child
from ocdbt_py.errors import StructureError
from ocdbt_py.interop.orbax.directories import directory_place
from ocdbt_py.interop.orbax.manager_options import CheckpointManagerOptions, step_names
from ocdbt_py.interop.orbax.matching import is_empty_node, opened
from ocdbt_py.interop.orbax.metadata.tree import TreeMetadata
from ocdbt_py.interop.orbax.target_args import key_data, leaf_restore_args, sharding_or_layout
from ocdbt_py.manager.snapshots import SNAPSHOTS
from ocdbt_py.manager.watching import NO_STEP, Watch, WatchClock

__all__ = ["checkpoints_iterator", "construct_restore_args", "wait_for_new_checkpoint"]


def checkpoints_iterator(
    checkpoint_dir: Any,
    *,
    min_interval_secs: float = 0,
    seconds_to_sleep: float = 1,
    timeout: float | None = None,
    timeout_fn: Callable[[], bool] | None = None,
    step_prefix: str | None = None,
    step_format_fixed_length: int | None = None,
    step_name_format: Any = None,
    snapshot_dir: Any = None,
    set_immutable: bool | None = None,
    ignore_snapshot_errors: bool | None = True,
    clock: WatchClock = time,
    storage_options: Mapping[str, Any] | None = None,
    fs: Any = None,
) -> Iterator[int]:
    """Each newest step below ``checkpoint_dir`` as it comes, at least ``min_interval_secs`` apart.

    Looks every ``seconds_to_sleep``; ends when no step has come for ``timeout`` seconds, and ``timeout_fn()``, if there
    is one, says that none will. A step that is deleted while it is copied to ``snapshot_dir`` (``_SNAPSHOTS`` below the
    directory) is passed over. ``set_immutable`` and ``ignore_snapshot_errors`` do nothing.
    """
    watch = _watch(
        checkpoint_dir,
        CheckpointManagerOptions(
            step_prefix=step_prefix,
            step_format_fixed_length=step_format_fixed_length,
            step_name_format=step_name_format,
        ),
        snapshot_dir,
        storage_options,
        fs,
        pause=seconds_to_sleep,
        timeout=timeout,
        timeout_fn=timeout_fn,
        clock=clock,
    )
    for found in watch.steps(min_interval_secs):
        yield found.step


@contextmanager
def wait_for_new_checkpoint(
    checkpoint_dir: Any,
    *,
    until_step: int | None = None,
    seconds_to_sleep: float = 1,
    timeout: float | None = None,
    timeout_fn: Callable[[], bool] | None = None,
    step_prefix: str | None = None,
    step_format_fixed_length: int | None = None,
    step_name_format: Any = None,
    snapshot_dir: Any = None,
    set_immutable: bool | None = None,
    ignore_snapshot_errors: bool | None = True,
    clock: WatchClock = time,
    storage_options: Mapping[str, Any] | None = None,
    fs: Any = None,
) -> Iterator[int]:
    """Wait for a step of number ``until_step`` or later, or for any: the newest one, or -1 when the time is up.

    Arguments as in :func:`checkpoints_iterator`; the copy lasts as long as the context.
    """
    watch = _watch(
        checkpoint_dir,
        CheckpointManagerOptions(
            step_prefix=step_prefix,
            step_format_fixed_length=step_format_fixed_length,
            step_name_format=step_name_format,
        ),
        snapshot_dir,
        storage_options,
        fs,
        pause=seconds_to_sleep,
        timeout=timeout,
        timeout_fn=timeout_fn,
        clock=clock,
    )
    with watch.held(until_step) as found:
        yield NO_STEP if found is None else found.step


def _watch(
    checkpoint_dir: Any,
    names: CheckpointManagerOptions,
    snapshot_dir: Any,
    storage_options: Mapping[str, Any] | None,
    fs: Any,
    **options: Any,
) -> Watch:
    place = directory_place(checkpoint_dir, storage_options, fs)
    return Watch(
        place,
        step_names(names),
        only_whole=False,
        snapshots=child(place, SNAPSHOTS) if snapshot_dir is None else directory_place(snapshot_dir),
        processes=default_processes(),
        **options,
    )


def construct_restore_args(
    target: Any,
    sharding_tree: Any = None,
    set_global_shape: bool = True,
    support_layout: bool = False,
    strict: bool = True,
) -> Any:
    """A tree of restore arguments that bring each leaf back like its example in ``target``.

    ``sharding_tree`` has the target's structure; without it each leaf's own sharding counts. Leaves that are no
    arrays may have anything there. Raises :class:`InvalidTypeError`, a ``ValueError``, for a leaf that is no example,
    and :class:`StructureError` where the two trees differ.
    """
    if isinstance(target, TreeMetadata):
        shardings = sharding_tree.tree if isinstance(sharding_tree, TreeMetadata) else sharding_tree
        made = construct_restore_args(target.tree, shardings, set_global_shape, support_layout, strict)
        return TreeMetadata(tree=made, custom_metadata=target.custom_metadata)
    flat = opened(target)
    if sharding_tree is None:
        shardings = [sharding_or_layout(key_data(leaf), support_layout) for leaf in flat.leaves]
    else:
        shardings = _beside(flat, sharding_tree)
    leaves = [
        leaf if is_empty_node(leaf) else leaf_restore_args(leaf, its, set_global_shape=set_global_shape, strict=strict)
        for leaf, its in zip(flat.leaves, shardings, strict=True)
    ]
    return flat.rebuild(leaves)


def _beside(flat: Any, sharding_tree: Any) -> list[Any]:
    """The sharding of each leaf."""
    given = opened(sharding_tree)
    found = dict(zip(given.paths, given.leaves, strict=True))
    shardings = []
    for path, leaf in zip(flat.paths, flat.leaves, strict=True):
        if path not in found and not is_empty_node(leaf):
            raise StructureError(f"sharding_tree has nothing for the leaf {'.'.join(key.name for key in path)!r}")
        shardings.append(found.get(path))
    return shardings
