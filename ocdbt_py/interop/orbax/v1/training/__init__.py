"""``v1.training``: a sequence of checkpoints in a training loop."""

from ocdbt_py.interop.orbax.v1.training import errors, preservation_policies, save_decision_policies
from ocdbt_py.interop.orbax.v1.training.checkpointer import Checkpointer
from ocdbt_py.interop.orbax.v1.training.step_metadata import CheckpointMetadata, RootMetadata

__all__ = [
    "CheckpointMetadata",
    "Checkpointer",
    "RootMetadata",
    "errors",
    "preservation_policies",
    "save_decision_policies",
]
