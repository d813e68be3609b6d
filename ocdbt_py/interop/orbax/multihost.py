"""``ocp.multihost``: which process this is, and waiting for the others.

The processes are those of ``jax.distributed``, where it is initialised; else there is one. Nothing here imports JAX: a
program that has not is alone.
"""

from __future__ import annotations

import sys
from typing import Any, Protocol

from ocdbt_py.checkpoint.jax_processes import default_processes
from ocdbt_py.errors import UnsupportedError
from ocdbt_py.manager.stopping import jax_reached_preemption

__all__ = [
    "BarrierSyncFn",
    "broadcast_one_to_all",
    "get_barrier_sync_fn",
    "is_jax_distributed_client_initialized",
    "is_pathways_backend",
    "is_primary_host",
    "process_count",
    "process_index",
    "reached_preemption",
    "sync_global_processes",
]

_TIMEOUT = 300
"""Seconds; Orbax's."""


class BarrierSyncFn(Protocol):
    """Waits for all processes that call it with the same key."""

    def __call__(self, *, key: str, timeout_ms: int) -> None: ...


def is_jax_distributed_client_initialized() -> bool:
    """Whether ``jax.distributed.initialize`` has been called."""
    jax = sys.modules.get("jax")
    distributed = getattr(jax, "distributed", None)
    if distributed is None:
        return False
    if hasattr(distributed, "is_initialized"):
        return bool(distributed.is_initialized())
    state = getattr(sys.modules.get("jax._src.distributed"), "global_state", None)
    return getattr(state, "client", None) is not None


def process_index() -> int:
    """The number of this process, from 0."""
    return default_processes().index


def process_count() -> int:
    """How many there are."""
    return default_processes().count


def is_primary_host(primary_host: int | None) -> bool:
    """Whether this process is that one; with None every one is."""
    return primary_host is None or primary_host == process_index()


def sync_global_processes(
    name: str, *, timeout: int | None = None, processes: set[int] | None = None, **_: Any
) -> None:
    """Wait until all processes have called this with this name; ``timeout`` in seconds (300).

    Raises :class:`WaitTimeoutError`, naming who is missing, and :class:`UnsupportedError` for some of the processes.
    """
    _refuse_some(processes)
    everybody = default_processes()
    if everybody.count > 1:
        everybody.all_gather(f"sync {name}", b"", _TIMEOUT if timeout is None else timeout)


def get_barrier_sync_fn(*, processes: set[int] | None = None) -> BarrierSyncFn:
    """A function that waits for all processes."""
    _refuse_some(processes)

    def wait(*, key: str, timeout_ms: int) -> None:
        everybody = default_processes()
        if everybody.count > 1:
            everybody.all_gather(f"barrier {key}", b"", timeout_ms / 1000)

    return wait


def broadcast_one_to_all(in_tree: Any, is_source: bool | None = None) -> Any:
    """What process 0, or the one that says so, passed, in all processes; arrays as they are on the host."""
    if default_processes().count == 1:
        return in_tree
    from jax.experimental import multihost_utils

    return multihost_utils.broadcast_one_to_all(in_tree, is_source=is_source)


def reached_preemption(step: int) -> bool:
    """Whether JAX's preemption service says that the job is about to end; it says so to all processes at one step."""
    return jax_reached_preemption(step)


def is_pathways_backend() -> bool:
    """Whether JAX runs on Pathways."""
    jax = sys.modules.get("jax")
    if jax is None:
        return False
    client = jax.devices()[0].client
    return hasattr(client, "pathways") or client.runtime_type in ("pathways", "proxy/pathways")


def _refuse_some(processes: set[int] | None) -> None:
    if processes is not None and len(processes) != process_count():
        raise UnsupportedError("Waiting for some of the processes is not supported here; leave out processes=")
