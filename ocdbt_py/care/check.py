"""``check``: read every structure of a database once, and report all that is wrong.

Checked are the manifests and the version tree, the tree of every version, and that the files hold all that is referred
to. What TensorStore's own checker looks at is included; beyond it, commit times and counts in references are compared
with the nodes, and keys with the upper end of their range. The format keeps no checksum of values, so their bytes are
read only where a checkpoint keeps a table of them (:mod:`ocdbt_py.checkpoint.checksums`).
"""

from __future__ import annotations

from typing import Any

from ocdbt_py.care.files import Files
from ocdbt_py.care.history import History
from ocdbt_py.care.report import Finding, Report
from ocdbt_py.care.trees import Trees
from ocdbt_py.care.values import Values
from ocdbt_py.checkpoint.checksums import CHECKSUMS
from ocdbt_py.checkpoint.metadata import (
    ARRAY_METADATAS,
    CHECKPOINT_METADATA,
    COMMIT_MARKER,
    METADATA,
    SHARDING,
    STRINGS,
)
from ocdbt_py.database import open_place
from ocdbt_py.engine.manifests import Manifests
from ocdbt_py.engine.nodes import Nodes
from ocdbt_py.engine.options import Config
from ocdbt_py.errors import InvalidArgumentError, NotFoundError
from ocdbt_py.storage.location import Place, resolve

__all__ = ["Finding", "Report", "check"]


CHECKPOINT_FILES = (METADATA, CHECKPOINT_METADATA, COMMIT_MARKER, SHARDING, STRINGS, CHECKSUMS, f"{ARRAY_METADATAS}/")
"""What lies beside the database of a checkpoint, and belongs to it."""

_LEADS_ASTRAY = {"manifest", "version-node", "btree-node", "height", "key-range"}
"""Damage that may keep us from what another reference was meant to lead to, and that therefore looks unused."""


def check(url: Any, *, storage_options: dict[str, Any] | None = None, fs: Any = None) -> Report:
    """All that is wrong with the database at ``url``, every version of it, or the checkpoint that lies in one. Nothing
    is changed. Values are read where their checksums are kept, as those of checkpoints that :func:`save` wrote.

    Others may go on writing. Memory grows with the number of nodes and of checksums, not with that of keys. Raises
    :class:`NotFoundError` where there is no database, and :class:`StorageError` where the storage fails; whatever the
    bytes are is a finding, not an error.
    """
    place = resolve(url, storage_options=storage_options, fs=fs)
    if place.version is not None or place.prefix:
        raise InvalidArgumentError(f"A whole database is checked, all versions of it; give {place.url} alone")
    return check_place(place)


def check_place(place: Place) -> Report:
    """:func:`check` for a place that is resolved already."""
    storage, base = place.storage, place.path
    findings: list[Finding] = []
    files = Files(storage, base)
    nodes = Nodes(storage, base, cache_bytes=0)
    trees = Trees(nodes, files, findings.append)
    history = History(Manifests(storage, base, Config()), nodes, files, trees.version, findings.append)
    try:
        history.check()
    except NotFoundError:
        open_place(place).close()  # says what is there instead
        raise
    complete = history.complete and trees.complete and _LEADS_ASTRAY.isdisjoint(finding.kind for finding in findings)
    findings += files.damage()
    newest = max(history.versions, default=None)
    # A tree of n nodes can be made to have 2^n keys, so only one that is sound is walked key by key.
    if complete and newest is not None and history.versions[newest].num_keys <= files.stored_bytes:
        Values(place, files.names, findings.append).check()
    if complete:
        findings += files.notes(numbered=history.numbered, others=CHECKPOINT_FILES)
    return Report(
        url=place.url,
        versions=len(history.versions),
        version_nodes=history.node_count,
        btree_nodes=trees.count,
        keys=0 if newest is None else history.versions[newest].num_keys,
        files=files.count,
        stored_bytes=files.stored_bytes,
        complete=complete,
        unreadable=tuple(sorted(history.unreadable, reverse=True)),
        findings=tuple(findings),
    )
