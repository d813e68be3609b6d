"""``v1.multihost``: which process this is, and waiting for the others."""

from ocdbt_py.interop.orbax.multihost import (
    is_pathways_backend,
    is_primary_host,
    process_count,
    process_index,
    sync_global_processes,
)

__all__ = ["is_pathways_backend", "is_primary_host", "process_count", "process_index", "sync_global_processes"]
