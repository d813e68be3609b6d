"""``ocdbt ls URL [PREFIX]``: leaves or keys, one a line."""

from __future__ import annotations

import argparse

from ocdbt_py.cli.leaves import leaves
from ocdbt_py.cli.target import add_target_arguments, open_target
from ocdbt_py.view.results import Item, Listing
from ocdbt_py.view.spelling import spelled, unspelled


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prefix", nargs="?", default="", metavar="PREFIX", help="only names that start with this")
    parser.add_argument("-l", "--long", action="store_true", help="types and sizes too")
    add_target_arguments(parser)


def run(arguments: argparse.Namespace) -> Listing:
    target = open_target(arguments)
    prefix = unspelled(arguments.prefix)
    if target.checkpoint is not None:
        shown = spelled(prefix)
        items = [leaf.item for leaf in leaves(target.checkpoint) if leaf.item.name.startswith(shown)]
    else:
        items = [Item(spelled(entry.key), "value", nbytes=entry.size) for entry in target.keys.scan(prefix=prefix)]
    return Listing(
        url=target.url,
        kind=target.kind,
        version=target.generation,
        items=tuple(items),
        nbytes=sum(item.nbytes or 0 for item in items),
        long=arguments.long,
    )
