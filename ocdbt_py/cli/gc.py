"""``ocdbt gc URL [--apply]``: remove what an interrupted save left behind. A finished checkpoint stays.

Nothing is removed from within databases.
"""

from __future__ import annotations

import argparse

from ocdbt_py.checkpoint.finishing import discard_save
from ocdbt_py.cli.leftovers import Leftovers, add_apply_argument, leftovers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_apply_argument(parser, "remove it")


def run(arguments: argparse.Namespace) -> Leftovers:
    return leftovers(Discarded, discard_save, arguments)


class Discarded(Leftovers):
    """``gc``."""

    __slots__ = ()
    command = "gc"
    outcome = ("is removed", "can be removed")
