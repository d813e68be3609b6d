"""Results as lines of text for a terminal of a given width.

A line is a sequence of spans, each with the name of a style; :mod:`ocdbt_py.view.output` gives the styles their
colours, or leaves them out where nobody would see them. Names are never cut or wrapped: a line that holds a long one
is long.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import singledispatch
from itertools import takewhile, zip_longest
from operator import add

from ocdbt_py.view.results import (
    ArrayValue,
    CheckpointInfo,
    DatabaseInfo,
    Info,
    Item,
    Listing,
    Log,
    PlainValue,
    RawValue,
    Result,
    Tree,
    TreeNode,
    Verification,
    Written,
)
from ocdbt_py.view.spelling import array_type, count, moment, printable, size

Span = tuple[str, str]
"""Text and the name of its style: ``""``, ``name``, ``type``, ``size``, ``faint``, ``good``, ``bad``."""

Line = tuple[Span, ...]

_WIDEST_COLUMN = 48
_METADATA_NAMES = (".zarray", ".zattrs", ".zgroup", "zarr.json")


@singledispatch
def lines(result: Result, width: int) -> Iterator[Line]:
    """The text of a result, for a terminal of ``width`` columns."""
    raise NotImplementedError(f"no text for {type(result).__name__}")


@lines.register
def _(result: Listing, width: int) -> Iterator[Line]:
    if not result.long:
        for item in result.items:
            yield ((item.name, ""),)
        return
    yield from _columns(
        (
            (
                *([] if result.kind == "database" else [(_type(item), "type")]),
                ("" if item.nbytes is None else size(item.nbytes), "size"),
                (item.name, "name"),
            )
            for item in result.items
        ),
        right="r" if result.kind == "database" else "lr",
    )
    yield ((f"{_items(len(result.items), result.kind)}, {size(result.nbytes)}", "faint"),)


@lines.register
def _(result: Tree, width: int) -> Iterator[Line]:
    yield ((result.url, "name"),)
    is_database = result.kind == "database"
    nodes = _folded(result.nodes, "/" if is_database else ".")
    names = [f"{node.name} ({_items(node.items, result.kind)})" if node.hidden else node.name for node in nodes]
    types = ["" if node.items or is_database else _type(node) for node in nodes]
    guides = _guides(nodes)
    first = min(max(map(len, map(add, guides, names)), default=0), _WIDEST_COLUMN)
    second = min(max(map(len, types), default=0), _WIDEST_COLUMN)
    for node, guide, name, kind in zip(nodes, guides, names, types, strict=True):
        nbytes = size(node.nbytes) if node.nbytes or node.items or is_database else ""
        yield (
            (guide, "faint"),
            (name.ljust(first - len(guide)), "name" if node.items else ""),
            ("  " + kind.ljust(second), "type"),
            (nbytes.rjust(10), "faint" if node.items else "size"),
        )
    totals = [_items(result.items, result.kind)]
    if result.arrays:
        totals += [count(result.arrays, "array"), count(result.parameters, "element")]
    yield ((", ".join([*totals, size(result.nbytes)]), "faint"),)


def _folded(nodes: Sequence[TreeNode], separator: str) -> list[TreeNode]:
    """The nodes with every container of a single child on one line with it, as ``kernel.value``."""
    children = [0] * len(nodes)
    above: list[int] = []
    for i, node in enumerate(nodes):
        del above[node.depth :]
        if above:
            children[above[-1]] += 1
        above.append(i)
    folded: list[TreeNode] = []
    above = []
    for i, node in enumerate(nodes):
        del above[node.depth :]
        if children[i] != 1:
            depth = sum(children[j] != 1 for j in above)
            name = node.name
            for j in takewhile(lambda j: children[j] == 1, reversed(above)):
                name = nodes[j].name + separator + name
            folded.append(replace(node, depth=depth, name=name))
        above.append(i)
    return folded


def _guides(nodes: Sequence[TreeNode]) -> list[str]:
    """What is drawn before each name. Walked from the end: a branch is its container's last if none follows it."""
    guides = []
    open_depths: set[int] = set()
    for node in reversed(nodes):
        stem = "".join("│   " if depth in open_depths else "    " for depth in range(node.depth))
        guides.append(stem + ("├── " if node.depth in open_depths else "└── "))
        open_depths = {depth for depth in open_depths if depth < node.depth} | {node.depth}
    guides.reverse()
    return guides


@lines.register
def _(result: Log, width: int) -> Iterator[Line]:
    yield from _columns(
        (
            (
                (f"v{row.generation}", "name"),
                (moment(row.commit_time), ""),
                (count(row.num_keys, "key"), "type"),
                (size(row.num_indirect_value_bytes), "size"),
                (f"+ {size(row.num_tree_bytes)} of nodes", "faint"),
            )
            for row in result.versions
        ),
        right="llrr",
    )
    if result.truncated:
        yield (("… and older ones", "faint"),)


@lines.register
def _(result: Info, width: int) -> Iterator[Line]:
    facts: list[tuple[str, str]] = [("url", result.url), ("layout", result.layout)]
    if result.files is not None and result.stored_bytes is not None:
        facts.append(("stored", f"{size(result.stored_bytes)} in {count(result.files, 'file')}"))
    if result.checkpoint is not None:
        facts += _checkpoint_facts(result.checkpoint)
    if result.database is not None:
        facts += _database_facts(result.database)
    first = max(len(name) for name, _ in facts) + 2
    for name, text in facts:
        for label, part in zip_longest([name], printable(text).split("\n"), fillvalue=""):
            yield ((label.ljust(first), "faint"), (part, ""))


def _checkpoint_facts(info: CheckpointInfo) -> Iterator[tuple[str, str]]:
    if info.items:
        yield "items", ", ".join(info.items)
    yield "leaves", f"{info.leaves:,}, of which {count(info.arrays, 'array')}"
    yield "arrays", f"{count(info.parameters, 'element')}, {size(info.nbytes)} uncompressed"
    if info.custom_metadata is not None:
        yield "custom metadata", json.dumps(info.custom_metadata, indent=2, ensure_ascii=False)


def _database_facts(info: DatabaseInfo) -> Iterator[tuple[str, str]]:
    yield "versions", f"{info.versions:,}"
    yield "version", f"v{info.version.generation}, {moment(info.version.commit_time)}"
    yield "keys", f"{info.version.num_keys:,}"
    yield "values", f"{size(info.version.num_indirect_value_bytes)} out of line"
    yield "nodes", size(info.version.num_tree_bytes)
    for name, value in info.config.items():
        yield name, "none" if value is None else str(value)


@lines.register
def _(result: ArrayValue, width: int) -> Iterator[Line]:
    import numpy as np

    yield from _text(np.array2string(result.value, threshold=sys.maxsize) if result.full else str(result.value))


@lines.register
def _(result: PlainValue, width: int) -> Iterator[Line]:
    return _text(str(result.value))


@lines.register
def _(result: RawValue, width: int) -> Iterator[Line]:
    """For a terminal; elsewhere the bytes go out as they are."""
    text = _json_text(result) or _hex_text(result.value, 16 if width >= 78 else 8)
    return _text(text)


def _json_text(result: RawValue) -> str | None:
    """The value of a key that holds an array's metadata, indented; None if it is no JSON after all."""
    if result.name.rpartition("/")[2] not in _METADATA_NAMES:
        return None
    try:
        return json.dumps(json.loads(result.value), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return None


def _hex_text(data: bytes, columns: int) -> str:
    """``hexdump -C``: offset, bytes, and what of them is printable ASCII."""
    rows = []
    for start in range(0, len(data), columns):
        part = data[start : start + columns]
        letters = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        rows.append(f"{start:08x}  {part.hex(' '):<{columns * 3}} {letters}")
    return "\n".join(rows)


@lines.register
def _(result: Written, width: int) -> Iterator[Line]:
    what = "" if result.dtype is None or result.shape is None else f" {array_type(result.dtype, result.shape)}"
    kind = "NumPy file" if result.format == "npy" else "bytes alone"
    yield (
        (result.name, "name"),
        (what, "type"),
        (f" to {printable(result.output)} ({kind}, {size(result.nbytes)})", ""),
    )
    if result.note is not None:
        yield ((result.note, "faint"),)


@lines.register
def _(result: Verification, width: int) -> Iterator[Line]:
    for finding in result.findings:
        yield ((finding.subject, "name"), (": " + printable(finding.problem), "bad"))
    version = "" if result.version is None else f" of version {result.version}"
    yield ((f"read      {count(result.keys, 'key')}{version}, {size(result.key_bytes)}", ""),)
    if result.kind == "checkpoint":
        yield ((f"          {count(result.arrays, 'array')}, {size(result.array_bytes)}", ""),)
    yield ((f"with      ocdbt_py{'' if result.other is None else f' and {result.other}'}", ""),)
    if result.note is not None:
        yield ((result.note, "faint"),)
    if not result.ok:
        yield ((count(len(result.findings), "finding"), "bad"),)
    else:
        yield (("the same, byte for byte" if result.other is not None else "readable", "good"),)


def _text(text: str) -> Iterator[Line]:
    for line in printable(text).split("\n"):
        yield ((line, ""),)


def _type(item: Item | TreeNode) -> str:
    return item.type if item.dtype is None or item.shape is None else array_type(item.dtype, item.shape)


def _items(number: int, kind: str) -> str:
    return count(number, "key") if kind == "database" else count(number, "leaf", "leaves")


def _columns(rows: Iterable[Sequence[Span]], right: str) -> Iterator[Line]:
    """Rows with their columns below each other, ``r`` to the right, ``l`` to the left; the last column is free."""
    table = list(rows)
    widths = [min(max(len(row[i][0]) for row in table), _WIDEST_COLUMN) for i in range(len(right))] if table else []
    for row in table:
        padded = [
            (text.rjust(width) if side == "r" else text.ljust(width), style)
            for (text, style), width, side in zip(row, widths, right, strict=False)
        ]
        yield tuple(span for cell in (*padded, *row[len(right) :]) for span in (cell, ("  ", "")))[:-1]
