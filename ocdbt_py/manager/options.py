"""All that can be chosen about a directory of steps, with Orbax's names, and how what is saved is encoded.

Most options are short for a policy: :attr:`CheckpointManagerOptions.save_rule` and ``preservation_rule`` are what they
amount to. An option that could not have an effect beside another is refused when the options are made.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

from ocdbt_py.checkpoint.encoding import Encoding
from ocdbt_py.checkpoint.processes import WAIT_TIMEOUT
from ocdbt_py.errors import InvalidArgumentError, InvalidTypeError
from ocdbt_py.manager.preservation import (
    AnyPreservationPolicy,
    BestN,
    EveryNSeconds,
    EveryNSteps,
    LatestN,
    PreservationPolicy,
)
from ocdbt_py.manager.save_decisions import (
    AnySavePolicy,
    FixedIntervalPolicy,
    InitialSavePolicy,
    PreemptionCheckpointingPolicy,
    SaveDecisionPolicy,
    ShouldSaveFunction,
    SpecificStepsPolicy,
)
from ocdbt_py.manager.step_names import NameFormat, StepNames

__all__ = ["CheckpointManagerOptions"]


@dataclass(frozen=True, kw_only=True)
class CheckpointManagerOptions:
    """When to save, what to keep, how.

    **When.** Multiples of ``save_interval_steps`` (None: none), the ``save_on_steps``, when the job is about to end,
    and while there is no step yet. ``should_save_fn(step, latest step or None)`` replaces the first two and the last,
    ``save_decision_policy`` all of it. A step that is not later than the latest is saved only with ``force=True``.

    **What stays.** The last ``max_to_keep`` (None: all), or with ``best_fn`` (metrics -> number) the best by
    ``best_mode`` (``"max"``, ``"min"``); steps without metrics stay beside those unless
    ``keep_checkpoints_without_metrics`` is false. Also multiples of ``keep_period``, and steps at least
    ``keep_time_interval`` apart. Or what ``preservation_policy`` says. ``todelete_subdir``: what is given up is moved
    into that directory of the root, not deleted (on storages that rename directories). ``enable_background_delete``:
    a save counts as finished before what it replaces has been deleted.

    **Names.** ``step_prefix``, ``step_format_fixed_length``, or a ``step_name_format``.

    **How.** ``enable_async_checkpointing``: a save returns once nothing done to the data can change what is written.
    ``read_only``: nothing is ever written or deleted. ``create``: make the directory (on storages that have any).
    ``cleanup_tmp_directories``: remove, when opened, what unfinished saves have left; not with others writing there.
    ``lightweight_initialize``: do not read times and metrics of steps that are there. ``save_root_metadata``,
    ``prevent_write_metrics``: whether these files are written. ``enable_should_save_is_saving_in_progress_check``:
    whether policies are told that a save is under way. The rest as in :func:`ocdbt_py.save`.

    Raises :class:`InvalidArgumentError` for what cannot be meant, or not together.
    """

    save_interval_steps: int | None = 1
    max_to_keep: int | None = None
    keep_time_interval: timedelta | None = None
    keep_period: int | None = None
    best_fn: Callable[[Any], float] | None = None
    best_mode: str = "max"
    keep_checkpoints_without_metrics: bool = True
    step_prefix: str | None = None
    step_format_fixed_length: int | None = None
    step_name_format: NameFormat | None = None
    create: bool = True
    cleanup_tmp_directories: bool = False
    save_on_steps: Container[int] | None = None
    todelete_subdir: str | None = None
    enable_background_delete: bool = False
    read_only: bool = False
    enable_async_checkpointing: bool = True
    should_save_fn: Callable[[int, int | None], bool] | None = None
    save_root_metadata: bool = True
    save_decision_policy: SaveDecisionPolicy | None = None
    preservation_policy: PreservationPolicy | None = None
    prevent_write_metrics: bool = False
    enable_should_save_is_saving_in_progress_check: bool = True
    lightweight_initialize: bool = False
    compression: str | None = "auto"
    chunk_bytes: int | None = None
    zarr_format: Literal[2, 3] = 2
    checksums: bool = True
    durable: bool = True
    max_memory: int | None = None
    wait_timeout: float = WAIT_TIMEOUT
    progress: Any = None

    def __post_init__(self) -> None:
        if self.best_mode not in ("max", "min"):
            raise InvalidArgumentError(f"best_mode is 'max' or 'min', not {self.best_mode!r}")
        for name in ("save_interval_steps", "keep_period"):
            value = getattr(self, name)
            if value is not None and value < 1 and not self.read_only:
                raise InvalidArgumentError(f"{name} is a positive number of steps or None, not {value!r}")
        if self.max_to_keep is not None and self.max_to_keep < 0:
            raise InvalidArgumentError(
                f"max_to_keep is a number of checkpoints, or None for all, not {self.max_to_keep}"
            )
        if self.preservation_policy is not None and (self.max_to_keep or self.keep_period or self.keep_time_interval):
            raise InvalidArgumentError(
                "preservation_policy says alone what stays; leave out max_to_keep, keep_period and keep_time_interval, "
                "or put LatestN, EveryNSteps and EveryNSeconds into an AnyPreservationPolicy"
            )
        for name, method in (("save_decision_policy", "should_save"), ("preservation_policy", "should_preserve")):
            policy = getattr(self, name)
            if policy is not None and (isinstance(policy, type) or not callable(getattr(policy, method, None))):
                raise InvalidTypeError(f"{name} is an object with {method}(), not {policy!r}")
        if self.step_name_format is not None and not isinstance(self.step_name_format, NameFormat):
            raise InvalidTypeError(f"step_name_format has name(step) and step(name); {self.step_name_format!r} has not")
        below = (self.todelete_subdir or "x").split("/")
        if not all(part and part.strip(".") for part in below) or "\0" in below[-1]:
            raise InvalidArgumentError(f"todelete_subdir is a path below the root, not {self.todelete_subdir!r}")
        if self.names.step(below[0]) is not None:
            raise InvalidArgumentError(f"todelete_subdir {self.todelete_subdir!r} has the name of a step")
        _ = self.encoding  # judged here, not when a day's training has passed

    @property
    def names(self) -> NameFormat:
        """How steps are called."""
        return self.step_name_format or StepNames(self.step_prefix, self.step_format_fixed_length)

    @property
    def encoding(self) -> Encoding:
        """How arrays are stored."""
        return Encoding(self.compression, self.chunk_bytes, self.zarr_format)

    @property
    def save_rule(self) -> SaveDecisionPolicy:
        """The policy that decides, made of the options if none is given."""
        if self.save_decision_policy is not None:
            return self.save_decision_policy
        if self.should_save_fn is not None:
            return AnySavePolicy([ShouldSaveFunction(self.should_save_fn), PreemptionCheckpointingPolicy()])
        rules: list[SaveDecisionPolicy] = [PreemptionCheckpointingPolicy(), InitialSavePolicy()]
        if self.save_on_steps is not None:
            rules.insert(0, SpecificStepsPolicy(self.save_on_steps))
        if self.save_interval_steps:
            rules.insert(0, FixedIntervalPolicy(self.save_interval_steps))
        return AnySavePolicy(rules)

    @property
    def preservation_rule(self) -> PreservationPolicy:
        """The policy of what stays, made of the options if none is given."""
        if self.preservation_policy is not None:
            return self.preservation_policy
        rules: list[PreservationPolicy] = []
        if self.keep_period is not None:
            rules.append(EveryNSteps(self.keep_period))
        if self.keep_time_interval is not None:
            rules.append(EveryNSeconds(int(self.keep_time_interval.total_seconds())))
        if self.best_fn is not None:
            rules.append(
                BestN(
                    get_metric_fn=self.best_fn,
                    reverse=self.best_mode == "min",
                    n=self.max_to_keep,
                    keep_checkpoints_without_metrics=self.keep_checkpoints_without_metrics,
                )
            )
        else:
            rules.append(LatestN(self.max_to_keep))
        return AnyPreservationPolicy(rules)
