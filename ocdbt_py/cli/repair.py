"""``ocdbt repair URL [--apply]``: finish a save by several processes that all wrote their part and nobody merged.

Databases are not repaired.
"""

from __future__ import annotations

import argparse

from ocdbt_py.checkpoint.finishing import finish_save
from ocdbt_py.cli.leftovers import Leftovers, add_apply_argument, leftovers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_apply_argument(parser, "merge the parts, and put the checkpoint where it belongs")


def run(arguments: argparse.Namespace) -> Leftovers:
    return leftovers(Finished, finish_save, arguments)


class Finished(Leftovers):
    """``repair``."""

    __slots__ = ()
    command = "repair"
    outcome = ("is finished", "can be finished")
