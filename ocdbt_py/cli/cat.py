"""``ocdbt cat URL KEY[slice]``: a leaf, a slice of one, or the value of a key, printed."""

from __future__ import annotations

import argparse

import numpy as np

from ocdbt_py.cli.lookup import look_up
from ocdbt_py.cli.target import add_target_arguments, open_target
from ocdbt_py.view.results import ArrayValue, PlainValue, RawValue, Result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("key", metavar="KEY[SLICE]", help="a name as ls prints it, perhaps with [0:10, ::2] after it")
    parser.add_argument("--full", action="store_true", help="every element of a large array")
    add_target_arguments(parser)


def run(arguments: argparse.Namespace) -> Result:
    target = open_target(arguments)
    name, value = look_up(target, arguments.key)
    if target.checkpoint is None:
        return RawValue(url=target.url, name=name, value=value)
    if isinstance(value, np.ndarray):
        return ArrayValue(url=target.url, name=name, value=value, full=arguments.full)
    return PlainValue(url=target.url, name=name, value=value)
