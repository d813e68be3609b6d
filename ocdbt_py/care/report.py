"""What a check found: findings, each of a fixed kind, and the report that holds all of them.

A finding is *damage*, which makes :attr:`Report.ok` false, or a *note*: a file or bytes that nothing refers to. The
kind decides which. Kinds are part of what users rely on: some may be added, none is renamed or removed.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

Severity = Literal["damage", "note"]

DAMAGE = {
    "manifest": "a manifest that cannot be read, or is not the one its name or its database says",
    "history": "two manifests that tell different things of one version",
    "version-node": "a version tree node that cannot be read, or is not the one its reference says",
    "version-node-reference": "a reference that states another number of versions or commit time than the node holds",
    "commit-time-order": "a version that was not committed after the one before it",
    "btree-node": "a B-tree node that cannot be read",
    "height": "a B-tree node of another height than its parent says",
    "key-range": "keys outside the range that the parent gives a node, or longer than a key may be",
    "statistics": "a reference that states other statistics than those of the tree below it",
    "file-missing": "a data file that is referred to and not there",
    "file-truncated": "a data file that ends before what is referred to in it",
    "file-path": "a reference to a file that is not below the database",
    "value": "a value whose bytes are not those of which the checksum was kept",
    "checksums": "a table of value checksums that cannot be read",
}
NOTES = {
    "orphan-file": "a data file that no version refers to",
    "unused-bytes": "bytes of a data file that no version refers to",
    "lock-file": "a lock that a writer left behind",
    "other-file": "a file that is not part of the database",
    "other-database": "a database in a directory below this one",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was found.

    ``kind``: one of :data:`DAMAGE` or :data:`NOTES`. ``message``: what, where, and what to do. ``path``: the file,
    below the database's directory; ``offset``: of the structure in it; ``key``: the first that is concerned;
    ``generation``: the newest version that is concerned; ``nbytes``: how many bytes a note is about.
    """

    kind: str
    message: str
    path: str | None = None
    offset: int | None = None
    key: bytes | None = None
    generation: int | None = None
    nbytes: int | None = None

    @property
    def severity(self) -> Severity:
        return "damage" if self.kind in DAMAGE else "note"

    def __str__(self) -> str:
        return f"{self.severity}: {self.kind}: {self.message}"

    def document(self) -> dict[str, Any]:
        """The fields and the severity, for JSON."""
        key = None if self.key is None else self.key.decode("utf-8", "backslashreplace")
        return {"severity": self.severity, **asdict(self), "key": key}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a check of the database at ``url`` found, all of it.

    ``versions``, ``btree_nodes``, ``version_nodes`` and ``keys`` (of the newest version) count what was read;
    ``files`` and ``stored_bytes`` count the data files that are referred to. ``unreadable``: the generations of which
    something cannot be read, newest first. ``complete``: every reference leads where it should; only then are there
    notes.
    """

    url: str
    versions: int
    version_nodes: int
    btree_nodes: int
    keys: int
    files: int
    stored_bytes: int
    complete: bool
    unreadable: tuple[int, ...]
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Nothing is damaged. Bytes that nothing refers to are no damage."""
        return not self.damage

    @property
    def damage(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity == "damage")

    @property
    def notes(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity == "note")

    def __str__(self) -> str:
        """Every damage in a line of its own, notes summed up by kind."""
        return "\n".join(self._lines())

    def to_json(self) -> str:
        """One JSON document: the fields, ``ok``, and the findings. Bytes of a key that are not UTF-8 are ``\\xNN``."""
        return json.dumps(self.document(), indent=2)

    def document(self) -> dict[str, Any]:
        """What :meth:`to_json` writes, as dicts, lists, strings and numbers."""
        findings = [finding.document() for finding in self.findings]
        fields = {name: getattr(self, name) for name in self.__slots__}
        return {"ok": self.ok, **fields, "unreadable": list(self.unreadable), "findings": findings}

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"

    def _lines(self) -> Iterator[str]:
        yield from map(str, self.damage)
        yield from self.summary()

    def summary(self) -> Iterator[str]:
        """Lines that tell what was read, and how many notes there are of each kind."""
        for kind in NOTES:
            notes = [note for note in self.notes if note.kind == kind]
            if notes:
                nbytes = sum(note.nbytes or 0 for note in notes)
                yield f"note: {kind}: {NOTES[kind]}: {len(notes):,}, {_count(nbytes, 'byte')}"
        yield (
            f"{self.url}: {_count(self.versions, 'version')}, {_count(self.btree_nodes, 'B-tree node')}, "
            f"{_count(self.version_nodes, 'version tree node')}, {_count(self.files, 'data file')} of "
            f"{_count(self.stored_bytes, 'byte')}"
        )
        if self.unreadable:
            yield f"versions of which something cannot be read: {_ranges(self.unreadable)}"
        if not self.complete:
            yield "not every reference leads where it should, so unused files and bytes are not told"
        yield "sound" if self.ok else f"damaged: {_count(len(self.damage), 'finding')}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _ranges(generations: tuple[int, ...]) -> str:
    """``(9, 8, 7, 3)`` as ``v7 to v9, v3``."""
    runs: list[list[int]] = []
    for generation in generations:
        if runs and runs[-1][0] - 1 == generation:
            runs[-1][0] = generation
        else:
            runs.append([generation, generation])
    return ", ".join(f"v{low}" if low == high else f"v{low} to v{high}" for low, high in runs)
