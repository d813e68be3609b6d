"""``ocp.CheckpointManagerOptions``: Orbax's fields, defaults and reactions, and what they are to our own manager.

The class is changeable and positional as Orbax's is. What a read-only manager would never do is switched off in it, as
there, with a warning in the log. :func:`root_options` then makes the options of :class:`ocdbt_py.manager.root.Root`
of it; what no option of ours stands for is refused there, in words, unless it changes nothing.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from ocdbt_py.checkpoint.processes import WAIT_TIMEOUT
from ocdbt_py.errors import InvalidArgumentError, UnsupportedError
from ocdbt_py.interop.orbax.options import AsyncOptions, AtomicityOptions, FileOptions, MultiprocessingOptions
from ocdbt_py.manager.options import CheckpointManagerOptions as RootOptions
from ocdbt_py.manager.preservation import PreservationPolicy
from ocdbt_py.manager.save_decisions import SaveDecisionPolicy
from ocdbt_py.manager.step_names import NameFormat, StepNames

__all__ = ["CheckpointManagerOptions", "root_options", "step_names"]

_log = logging.getLogger(__name__)

_OFF_WHEN_READ_ONLY = {
    "save_interval_steps": 0,
    "max_to_keep": None,
    "keep_time_interval": None,
    "keep_period": None,
    "create": False,
    "cleanup_tmp_directories": False,
    "save_on_steps": None,
    "todelete_subdir": None,
    "todelete_full_path": None,
    "should_save_fn": None,
}


@dataclass
class CheckpointManagerOptions:
    """When to save, what to keep, how. ``keep_time_interval`` is a ``timedelta``.

    ``save_decision_policy`` replaces all other rules of when to save, ``preservation_policy`` those of what stays.
    Raises :class:`InvalidArgumentError`, a ``ValueError``.
    """

    save_interval_steps: int = 1
    max_to_keep: int | None = None
    keep_time_interval: timedelta | None = None
    keep_period: int | None = None
    best_fn: Callable[[Any], float] | None = None
    best_mode: str = "max"
    keep_checkpoints_without_metrics: bool = True
    step_prefix: str | None = None
    step_format_fixed_length: int | None = None
    step_name_format: Any = None
    create: bool = True
    cleanup_tmp_directories: bool = False
    save_on_steps: Container[int] | None = None
    single_host_load_and_broadcast: bool = False
    todelete_subdir: str | None = None
    todelete_full_path: str | None = None
    enable_background_delete: bool = False
    num_deletion_threads: int | None = None
    read_only: bool = False
    enable_async_checkpointing: bool = True
    async_options: AsyncOptions | None = None
    multiprocessing_options: MultiprocessingOptions = field(default_factory=MultiprocessingOptions)
    should_save_fn: Callable[[int, int | None], bool] | None = None
    file_options: FileOptions = field(default_factory=FileOptions)
    atomicity_options: AtomicityOptions | None = None
    save_root_metadata: bool = True
    temporary_path_class: Any = None
    save_decision_policy: SaveDecisionPolicy | None = None
    preservation_policy: PreservationPolicy | None = None
    prevent_write_metrics: bool = False
    enable_should_save_is_saving_in_progress_check: bool = True
    enable_per_process_directory_creation: bool = False
    lightweight_initialize: bool = False

    def __post_init__(self) -> None:
        its = getattr(self.step_name_format, "single_host_load_and_broadcast", None)
        if self.step_name_format is not None and bool(its) != self.single_host_load_and_broadcast:
            raise InvalidArgumentError(
                "single_host_load_and_broadcast of the options and of step_name_format differ; give both the same"
            )
        if self.best_mode not in ("min", "max"):
            raise InvalidArgumentError(f"best_mode is 'min' or 'max', not {self.best_mode!r}")
        if self.preservation_policy is None and self.max_to_keep is not None and self.max_to_keep < 0:
            raise InvalidArgumentError(f"max_to_keep is None or not negative, not {self.max_to_keep}")
        if self.read_only:
            for name, off in _OFF_WHEN_READ_ONLY.items():
                if getattr(self, name):
                    _log.warning("read_only=True: %s=%r is taken as %r", name, getattr(self, name), off)
                setattr(self, name, off)
        if self.todelete_subdir is not None and self.todelete_full_path is not None:
            raise InvalidArgumentError("Give todelete_subdir or todelete_full_path, not both")
        if self.enable_per_process_directory_creation and self.multiprocessing_options.primary_host is not None:
            raise InvalidArgumentError("enable_per_process_directory_creation needs primary_host=None")
        self.save_on_steps = frozenset(self.save_on_steps or ())  # type: ignore[call-overload]


def root_options(options: CheckpointManagerOptions, *, is_async: bool) -> RootOptions:
    """The options of our own manager that do the same.

    Raises :class:`UnsupportedError` for what cannot be done, :class:`InvalidArgumentError` for what contradicts itself.
    """
    if options.todelete_full_path is not None:
        raise UnsupportedError(
            "todelete_full_path moves steps elsewhere in a bucket, which would copy all their bytes; leave it out "
            "(steps are deleted), or use todelete_subdir on a disk"
        )
    waiting = options.async_options
    return RootOptions(
        save_interval_steps=options.save_interval_steps or None,
        max_to_keep=options.max_to_keep,
        keep_time_interval=options.keep_time_interval,
        keep_period=options.keep_period,
        best_fn=options.best_fn,
        best_mode=options.best_mode,
        keep_checkpoints_without_metrics=options.keep_checkpoints_without_metrics,
        step_name_format=step_names(options),
        create=options.create,
        cleanup_tmp_directories=options.cleanup_tmp_directories,
        save_on_steps=options.save_on_steps,
        todelete_subdir=options.todelete_subdir,
        enable_background_delete=options.enable_background_delete,
        read_only=options.read_only,
        enable_async_checkpointing=is_async,
        should_save_fn=options.should_save_fn,
        save_root_metadata=options.save_root_metadata,
        save_decision_policy=options.save_decision_policy,
        preservation_policy=options.preservation_policy,
        prevent_write_metrics=options.prevent_write_metrics,
        enable_should_save_is_saving_in_progress_check=options.enable_should_save_is_saving_in_progress_check,
        lightweight_initialize=options.lightweight_initialize,
        wait_timeout=WAIT_TIMEOUT if waiting is None else float(waiting.timeout_secs),
    )


def step_names(options: CheckpointManagerOptions) -> NameFormat:
    """How steps are called: by the two simple options, or by an object, of ours or in Orbax's form."""
    given = options.step_name_format
    if given is None:
        return StepNames(options.step_prefix, options.step_format_fixed_length)
    if isinstance(given, NameFormat):
        return given
    if not callable(getattr(given, "build_name", None)):
        raise InvalidArgumentError(f"step_name_format has build_name(step); {given!r} has not")
    return _BuiltNames(given)


class _BuiltNames:
    """The names that ``build_name`` builds. A name is that of the step, among the numbers in it, which builds it."""

    def __init__(self, given: Any) -> None:
        self._given = given

    def name(self, step: int) -> str:
        return str(self._given.build_name(step))

    def step(self, name: str) -> int | None:
        for digits in re.findall(r"[0-9]{1,18}", name):
            if self.name(int(digits)) == name:
                return int(digits)
        return None
