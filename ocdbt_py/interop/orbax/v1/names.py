"""Names of files and directories that mean something in a checkpoint of the v1 API."""

from __future__ import annotations

__all__ = ["AUTO", "DELETION", "METRICS", "RESERVED", "STATE", "V1_MARKER"]

STATE = "state"
"""The checkpointable that a lone tree is."""

AUTO = "AUTO"
"""Stands for the name of whichever tree there is."""

METRICS = "metrics"
"""The checkpointable that the metrics of a step are."""

DELETION = "_CHECKPOINT_DELETION"
"""Says which checkpointable is being deleted, while it is."""

RESERVED = frozenset({METRICS, AUTO, DELETION})
"""No checkpointable of the user's can be called so."""

V1_MARKER = "orbax.checkpoint"
"""An empty file that tells checkpoints of the v1 API's free functions from others."""
