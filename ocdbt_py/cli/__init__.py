"""The command line: ``ocdbt VERB URL ...``.

Each verb is a module of this package with ``add_arguments(parser)`` and ``run(arguments) -> Result``. Verbs return what
they found out; an :class:`~ocdbt_py.view.output.Output` shows it. Only the verb that was asked for is imported, so that
``ocdbt --help`` costs nothing.

Exit codes: 0 fine, 1 findings (damage, differences), 2 usage or nothing there, 3 storage; 130 and 141 when interrupted
or when nobody reads the output any more, as shells expect; 70 for an error of ours. With ``OCDBT_DEBUG`` set, errors
come with their traceback.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from ocdbt_py.errors import CorruptDataError, OcdbtError, StorageError, WaitTimeoutError
from ocdbt_py.view.output import JsonOutput, Output, TextOutput
from ocdbt_py.view.results import Result
from ocdbt_py.view.spelling import printable

__all__ = ["main"]

VERBS = {
    "ls": "list the leaves of a checkpoint, or the keys of a database",
    "tree": "show a checkpoint's tree with shapes, types and sizes, or a database's keys as a tree",
    "info": "tell what is there: layout, configuration, newest version, sizes, custom metadata",
    "cat": "print a leaf, a slice of one, or the value of a key",
    "get": "write a leaf, a slice of one, or the value of a key to a file",
    "log": "list the versions of a database, newest first",
    "check": "look for damage in every version of a database",
    "repair": "finish a save that its processes wrote whole and did not merge; a dry run without --apply",
    "gc": "remove what an interrupted save left behind; a dry run without --apply",
    "verify": "read everything, with TensorStore too, and compare byte by byte",
}

FINE, FINDINGS, USAGE, STORAGE, OURS, INTERRUPTED, NO_READER = 0, 1, 2, 3, 70, 130, 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code. ``arguments`` are those of the process unless given."""
    try:
        return _run(sys.argv[1:] if arguments is None else arguments)
    except BrokenPipeError:
        # the interpreter flushes stdout once more at exit; let that go nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NO_READER
    except KeyboardInterrupt:
        return INTERRUPTED


def _run(words: Sequence[str]) -> int:
    verb = next((word for word in words if not word.startswith("-")), None)
    arguments = _parser(verb).parse_args(words)
    try:
        result: Result = import_module(f"{__name__}.{arguments.verb}").run(arguments)
        output: Output = JsonOutput(sys.stdout) if arguments.json else TextOutput(sys.stdout)
        output.show(result)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except Exception as error:
        if os.environ.get("OCDBT_DEBUG"):
            raise
        code = _exit_code(error)
        what = f"{type(error).__name__}: {error}; OCDBT_DEBUG=1 shows where" if code == OURS else str(error)
        sys.stderr.write(f"ocdbt {arguments.verb}: {' '.join(printable(what).split())}\n")
        return code
    return result.exit_code


def _exit_code(error: Exception) -> int:
    if isinstance(error, StorageError | WaitTimeoutError):
        return STORAGE
    if isinstance(error, CorruptDataError):
        return FINDINGS
    if isinstance(error, OcdbtError):
        return USAGE
    return STORAGE if isinstance(error, OSError) else OURS


def _parser(asked: str | None) -> argparse.ArgumentParser:
    """The parser, with the arguments of the one verb that is asked for."""
    from ocdbt_py import __version__

    parser = argparse.ArgumentParser(
        prog="ocdbt",
        description="Look into OCDBT databases and Orbax checkpoints.",
        epilog="Exit codes: 0 fine, 1 findings, 2 usage or nothing there, 3 storage.",
    )
    parser.add_argument("--version", action="version", version=f"ocdbt_py {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, summary in VERBS.items():
        verb = verbs.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        if name != asked:
            continue
        verb.add_argument("url", metavar="URL", help="a path, any fsspec URL, or BASE|ocdbt:@v3/prefix")
        import_module(f"{__name__}.{name}").add_arguments(verb)
        verb.add_argument("--json", action="store_true", help="print one JSON document")
        verb.add_argument(
            "--storage-option",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="an option for the storage, handed to fsspec; true, numbers and JSON are understood; repeatable",
        )
    return parser
