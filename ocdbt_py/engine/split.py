"""Which entries go into which node.

TensorStore splits an over-full node from left to right into parts of about equal size. The rule is reproduced exactly:
two engines that write the same keys then build the same tree, and each other's nodes keep their shape when rewritten.

The size of a run of entries is what its node would hold decoded: per entry a fixed overhead, the full key, and the
value or the path of the child's data file, less the prefix that *all* entries of the node being split share, for every
entry but one. It never decreases with the run's length, so each end is found by bisection.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ocdbt_py.format.btree import MAX_ENTRIES

LEAF_MINIMUM = 1
INTERIOR_MINIMUM = 2


def split(sizes: NDArray[np.int64], common_prefix: int, limit: int, minimum: int) -> list[tuple[int, int]]:
    """Cut entries of these decoded sizes (bytes, each with its whole key) into runs ``[start, stop)``.

    ``common_prefix`` is the length all keys share, ``limit`` the configured ``max_decoded_node_bytes`` (0: no limit),
    ``minimum`` the least entries of a node that is not the last.
    """
    count = len(sizes)
    if count <= MAX_ENTRIES and (not limit or int(sizes.sum()) - (count - 1) * common_prefix <= limit):
        return [(0, count)] if count else []
    # size of [start, stop) = weight[stop] - weight[start] + common_prefix, and weight never decreases
    weight = np.zeros(count + 1, np.int64)
    np.cumsum(sizes - common_prefix, out=weight[1:])
    runs: list[tuple[int, int]] = []
    start = 0
    while start < count:
        total = int(weight[count] - weight[start]) + common_prefix
        parts = -(-(count - start) // MAX_ENTRIES)
        if limit:
            parts = max(parts, -(-total // limit))
        target = -(-total // parts)
        # the shortest run that reaches the target and the minimum
        stop = int(np.searchsorted(weight, target + weight[start] - common_prefix, side="left"))
        stop = max(stop, start + minimum)
        if stop - start >= MAX_ENTRIES:
            stop = start + MAX_ENTRIES
        elif stop < count and stop > start + minimum and weight[stop] - weight[start] + common_prefix > limit:
            stop -= 1  # with no limit as well, as TensorStore does
        stop = min(stop, count)
        runs.append((start, stop))
        start = stop
    return runs
