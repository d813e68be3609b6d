"""What ``repair`` and ``gc`` say of an interrupted save: what lies there, and what was done or could be done to it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar

from ocdbt_py.checkpoint.finishing import Interrupted
from ocdbt_py.checkpoint.layout import Kind, identify
from ocdbt_py.checkpoint.opening import resolve_checkpoint
from ocdbt_py.cli.target import storage_options
from ocdbt_py.errors import PathNotFoundError
from ocdbt_py.view.results import Result
from ocdbt_py.view.spelling import count, moment, size, spelled
from ocdbt_py.view.text import Line, lines


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftovers(Result):
    """The fields are those of :class:`~ocdbt_py.checkpoint.finishing.Interrupted`, without files where no save was
    interrupted; ``applied``: whether something was changed.
    """

    outcome: ClassVar[tuple[str, str]]
    """How to say that it was done, and that it could be."""

    staged: str | None = None
    begun: datetime | None = None
    processes: int = 0
    files: int = 0
    nbytes: int = 0
    applied: bool = False


def add_apply_argument(parser: argparse.ArgumentParser, does: str) -> None:
    parser.add_argument(
        "--apply", action="store_true", help=f"{does}; nobody may be saving there now. Without it nothing is changed"
    )


def leftovers(kind: type[Leftovers], act: Callable[..., Interrupted], arguments: argparse.Namespace) -> Leftovers:
    """What ``act``, of :mod:`~ocdbt_py.checkpoint.finishing`, found at the URL and, if asked to, did."""
    options = storage_options(arguments)
    try:
        found = act(arguments.url, dry_run=not arguments.apply, storage_options=options)
    except PathNotFoundError:
        place = resolve_checkpoint(arguments.url, options, None)
        if identify(place).kind is Kind.NOTHING:
            raise
        return kind(url=spelled(place.url))
    return kind(
        url=spelled(found.url),
        staged=spelled(found.staged),
        begun=found.begun,
        processes=found.processes,
        files=found.files,
        nbytes=found.nbytes,
        applied=arguments.apply,
    )


@lines.register
def _(result: Leftovers, width: int) -> Iterator[Line]:
    if result.staged is None:
        yield ((f"No save to {result.url} was interrupted; nothing to do", "good"),)
        return
    begun = "" if result.begun is None else f" begun at {moment(result.begun)}"
    parts = f", parts of {count(result.processes, 'process', 'processes')}" if result.processes else ""
    yield ((result.staged, "name"), (f": {count(result.files, 'file')}, {size(result.nbytes)}{parts}", ""))
    done, possible = result.outcome
    if result.applied:
        yield ((f"The save to {result.url}{begun} {done}", "good"),)
    else:
        yield ((f"The save to {result.url}{begun} {possible}; nothing was changed, --apply does it", ""),)
