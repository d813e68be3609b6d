"""``check``: read every structure of a database once, and report all that is wrong.

Checked are the manifests and the version tree, the tree of every version, and that the files hold all that is referred
to. What TensorStore's own checker looks at is included; beyond it, commit times and counts in references are compared
with the nodes, and keys with the upper end of their range. The bytes of values are not read: the format keeps no
checksum of them.
"""

from __future__ import annotations

from typing import Any

from ocdbt_py.care.files import Files
from ocdbt_py.care.history import History
from ocdbt_py.care.report import Finding, Report
from ocdbt_py.care.trees import Trees
from ocdbt_py.database import open_place
from ocdbt_py.engine.manifests import Manifests
from ocdbt_py.engine.nodes import Nodes
from ocdbt_py.engine.options import Config
from ocdbt_py.errors import InvalidArgumentError, NotFoundError
from ocdbt_py.storage.location import Place, resolve

__all__ = ["Finding", "Report", "check"]


_LEADS_ASTRAY = {"manifest", "version-node", "btree-node", "height", "key-range"}
"""Damage that may keep us from what another reference was meant to lead to, and that therefore looks unused."""


def check(url: Any, *, storage_options: dict[str, Any] | None = None, fs: Any = None) -> Report:
    """All that is wrong with the database at ``url``, every version of it. Nothing is changed, no value is read.

    Others may go on writing. Memory grows with the number of nodes, not with that of keys or values. Raises
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
    if complete:
        findings += files.notes(numbered=history.numbered)
    newest = max(history.versions, default=None)
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
