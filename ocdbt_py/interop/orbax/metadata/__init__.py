"""What is known of a checkpoint without reading its arrays, in Orbax's classes: ``ocp.metadata``."""

from ocdbt_py.interop.orbax.metadata import tree, value
from ocdbt_py.interop.orbax.metadata.checkpoint import (
    RootMetadata,
    StepMetadata,
    get_step_metadata,
    root_metadata,
    step_metadata,
)
from ocdbt_py.interop.orbax.metadata.reading import item_metadata
from ocdbt_py.interop.orbax.metadata.sharding import (
    NamedShardingMetadata,
    ShardingMetadata,
    SingleDeviceShardingMetadata,
)
from ocdbt_py.interop.orbax.metadata.tree import TreeMetadata
from ocdbt_py.interop.orbax.metadata.value import (
    ArrayMetadata,
    Metadata,
    ScalarMetadata,
    StorageMetadata,
    StringMetadata,
)

__all__ = [
    "ArrayMetadata",
    "Metadata",
    "NamedShardingMetadata",
    "RootMetadata",
    "ScalarMetadata",
    "ShardingMetadata",
    "SingleDeviceShardingMetadata",
    "StepMetadata",
    "StorageMetadata",
    "StringMetadata",
    "TreeMetadata",
    "get_step_metadata",
    "item_metadata",
    "root_metadata",
    "step_metadata",
    "tree",
    "value",
]
