"""What is known of a step, and of all of them together."""

from __future__ import annotations

import pprint
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from ocdbt_py.interop.orbax.v1 import describing

__all__ = ["CheckpointMetadata", "RootMetadata"]

M = TypeVar("M")


class CheckpointMetadata(describing.CheckpointMetadata[M]):
    """A step. ``metrics``: what was given when it was saved, None if nothing."""

    def __init__(
        self,
        step: int,
        path: Any,
        *,
        metadata: M,
        init_timestamp_nsecs: int | None = None,
        commit_timestamp_nsecs: int | None = None,
        custom_metadata: Any = None,
        metrics: Any = None,
    ) -> None:
        super().__init__(
            path,
            metadata=metadata,
            init_timestamp_nsecs=init_timestamp_nsecs,
            commit_timestamp_nsecs=commit_timestamp_nsecs,
            custom_metadata=custom_metadata,
        )
        self._step = step
        self._metrics = metrics

    @property
    def step(self) -> int:
        return self._step

    @property
    def metrics(self) -> Any:
        return self._metrics

    @property
    def time(self) -> datetime:
        """When it was complete."""
        return datetime.fromtimestamp((self.commit_timestamp_nsecs or 0) / 1e9, tz=UTC)

    def _shown(self) -> dict[str, str]:
        return {"step": str(self.step), **super()._shown(), "metrics": str(self.metrics)}


@dataclass(frozen=True, kw_only=True)
class RootMetadata:
    """The root. ``custom_metadata``: what was given when it came into being."""

    directory: Any
    custom_metadata: Any = None

    def __repr__(self) -> str:
        shown = {"directory": str(self.directory), "custom_metadata": str(self.custom_metadata)}
        return f"RootMetadata({pprint.pformat(shown)})"
