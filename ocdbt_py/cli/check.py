"""``ocdbt check URL``: look for damage in every version of a database, and for bytes that nothing refers to."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ocdbt_py.care.check import Report, check
from ocdbt_py.cli.target import storage_options
from ocdbt_py.view.results import TEXT_ONLY, Result
from ocdbt_py.view.spelling import printable, spelled
from ocdbt_py.view.text import Line, lines


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked(Result):
    """``check``. The fields are those of :class:`ocdbt_py.Report`, keys spelled. ``notes``: print every one of them."""

    command = "check"

    ok: bool
    versions: int
    version_nodes: int
    btree_nodes: int
    keys: int
    files: int
    stored_bytes: int
    complete: bool
    unreadable: list[int]
    findings: list[dict[str, Any]]
    report: Report = field(metadata=TEXT_ONLY)
    notes: bool = field(metadata=TEXT_ONLY)

    @property
    def exit_code(self) -> int:
        return 0 if self.ok else 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--notes", action="store_true", help="name every file that is not used, or not wholly")


def run(arguments: argparse.Namespace) -> Checked:
    report = check(arguments.url, storage_options=storage_options(arguments))
    document = report.document()
    for finding, shown in zip(report.findings, document["findings"], strict=True):
        shown["key"] = None if finding.key is None else spelled(finding.key)
    return Checked(**{**document, "url": spelled(report.url)}, report=report, notes=arguments.notes)


@lines.register
def _(result: Checked, width: int) -> Iterator[Line]:
    for finding in result.report.damage:
        yield ((printable(str(finding)), "bad"),)
    if result.notes:
        for finding in result.report.notes:
            yield ((printable(str(finding)), ""),)
    *told, verdict = result.report.summary()
    for line in told:
        yield ((printable(line), ""),)
    yield ((verdict, "good" if result.ok else "bad"),)
