"""``ocp.multihost`` where there is one process."""

from __future__ import annotations

import pytest

from ocdbt_py.errors import UnsupportedError
from ocdbt_py.interop.orbax import multihost


def test_a_process_alone_is_the_first_of_one_and_waits_for_nobody() -> None:
    assert (multihost.process_index(), multihost.process_count()) == (0, 1)
    assert multihost.is_primary_host(0)
    assert multihost.is_primary_host(None)
    assert not multihost.is_primary_host(1)
    assert not multihost.is_jax_distributed_client_initialized()
    multihost.sync_global_processes("a")
    multihost.sync_global_processes("a", timeout=1, processes={0})
    multihost.get_barrier_sync_fn()(key="b", timeout_ms=1)
    assert multihost.broadcast_one_to_all({"a": 1}) == {"a": 1}
    assert not multihost.reached_preemption(3)


def test_waiting_for_some_of_the_processes_is_refused() -> None:
    with pytest.raises(UnsupportedError):
        multihost.sync_global_processes("a", processes={0, 1})
