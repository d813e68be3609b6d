"""``ocdbt log URL``: the versions of a database, or of the one a checkpoint lies in."""

from __future__ import annotations

import argparse
from itertools import islice

from ocdbt_py.cli.target import add_item_argument, open_database, version_row
from ocdbt_py.view.results import Log


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-n", "--limit", type=int, metavar="COUNT", help="only the newest COUNT")
    add_item_argument(parser)


def run(arguments: argparse.Namespace) -> Log:
    target = open_database(arguments)
    versions = target.keys.versions()
    limit = None if arguments.limit is None else max(arguments.limit, 0)
    shown = tuple(map(version_row, islice(versions, limit)))
    return Log(url=target.url, versions=shown, truncated=next(versions, None) is not None)
