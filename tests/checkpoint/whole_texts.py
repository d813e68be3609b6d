"""The files with an entry for each leaf, written in one go."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ocdbt_py.checkpoint.flatten import Path
from ocdbt_py.checkpoint.leaf_texts import ShardingsText, TreeMetadataText


def encode_tree_metadata(
    leaves: Iterable[tuple[Path, str, tuple[int, ...] | None]],
    *,
    use_zarr3: bool = False,
    custom_metadata: Mapping[str, Any] | None = None,
) -> bytes:
    """``_METADATA`` of a whole tree; ``leaves`` are as :class:`LeafRecord` is."""
    text = TreeMetadataText()
    rows = list(leaves)
    text.add([path for path, _, _ in rows], [text.ending(*row[1:]) for row in rows])
    return text.text(use_zarr3=use_zarr3, custom_metadata=custom_metadata)


def encode_shardings(shardings: Mapping[str, Mapping[str, Any]]) -> bytes:
    """``_sharding`` from leaf name -> description."""
    text = ShardingsText()
    for name, sharding in shardings.items():
        text.add([name], sharding)
    return text.text()
