"""What commands find out, as values. Both renderings, text and JSON, are made from these and from nothing else.

The fields are also the keys of the JSON documents (:mod:`ocdbt_py.view.documents`), so they are part of what users
rely on: fields may be added, none is renamed or removed. Sizes are bytes; names and keys are spelled as
:func:`ocdbt_py.view.spelling.spelled` does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import numpy as np

TEXT_ONLY = {"text_only": True}
"""Metadata of a field that only says how to print a result, and is no part of its document."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """``command``: the verb. ``url``: the place that was asked about, without credentials."""

    command: ClassVar[str]

    url: str

    @property
    def exit_code(self) -> int:
        """Of the process that shows this."""
        return 0


def type_name(value: Any) -> str:
    """``int``, ``str``, ``None``, ``dict``: the type of a leaf that is no array."""
    return "None" if value is None else type(value).__name__


@dataclass(frozen=True, slots=True)
class Item:
    """A key or a leaf. ``type``: ``value`` for a key of a database; ``array``, or the Python type of another leaf
    (``int``, ``str``, ``None``, ``dict`` for an empty one ...). ``nbytes`` of an array counts it uncompressed."""

    name: str
    type: str
    dtype: str | None = None
    shape: tuple[int, ...] | None = None
    nbytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing(Result):
    """``ls``. ``kind``: ``database`` (items in byte order of their keys) or ``checkpoint`` (in order of the tree).
    ``long``: print more than the names."""

    command = "ls"

    kind: str
    version: int | None
    items: tuple[Item, ...]
    nbytes: int
    long: bool = field(default=False, metadata=TEXT_ONLY)


@dataclass(frozen=True, slots=True)
class TreeNode:
    """One line of a tree. ``depth``: 0 for the topmost names. A container's ``items`` counts the leaves or keys below
    it and ``nbytes`` adds them up; a leaf has ``items`` 0. ``hidden``: its children were left out."""

    depth: int
    name: str
    type: str
    dtype: str | None
    shape: tuple[int, ...] | None
    nbytes: int
    items: int
    hidden: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree(Result):
    """``tree``. ``nodes`` in the order of the lines. ``parameters``: elements of all arrays."""

    command = "tree"

    kind: str
    version: int | None
    nodes: tuple[TreeNode, ...]
    items: int
    arrays: int
    parameters: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class VersionRow:
    """One version of a database: its number, its commit time, its keys, the bytes of its nodes, and of its values
    that are stored outside of them."""

    generation: int
    commit_time: datetime
    num_keys: int
    num_tree_bytes: int
    num_indirect_value_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Log(Result):
    """``log``: the versions, newest first. ``truncated``: there are older ones that were not asked for."""

    command = "log"

    versions: tuple[VersionRow, ...]
    truncated: bool


@dataclass(frozen=True, slots=True)
class DatabaseInfo:
    """``config``: field name to value, as the database stores them. ``version``: the one that was looked at."""

    config: dict[str, Any]
    version: VersionRow
    versions: int


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """``items``: names of the items of a composite checkpoint, empty otherwise. ``nbytes``: arrays, uncompressed."""

    items: tuple[str, ...]
    leaves: int
    arrays: int
    parameters: int
    nbytes: int
    custom_metadata: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Info(Result):
    """``info``. ``layout`` in words. ``files`` and ``stored_bytes``: everything below the URL, None where the storage
    cannot list."""

    command = "info"

    kind: str
    layout: str
    files: int | None
    stored_bytes: int | None
    database: DatabaseInfo | None
    checkpoint: CheckpointInfo | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ArrayValue(Result):
    """``cat`` of an array leaf, or of a part of it. ``full``: print every element."""

    command = "cat"

    name: str
    value: np.ndarray[Any, Any]
    full: bool = field(default=False, metadata=TEXT_ONLY)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainValue(Result):
    """``cat`` of a leaf that is no array: a number, text, None or an empty container."""

    command = "cat"

    name: str
    value: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class RawValue(Result):
    """``cat`` of a database's key, or of bytes of its value."""

    command = "cat"

    name: str
    value: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Written(Result):
    """``get``. ``format``: ``npy``, or ``raw`` for bytes alone. ``note``: what a reader of the file must know."""

    command = "get"

    name: str
    output: str
    format: str
    dtype: str | None
    shape: tuple[int, ...] | None
    nbytes: int
    note: str | None


@dataclass(frozen=True, slots=True)
class Finding:
    """``subject``: a key, a leaf or a file. ``problem``: a sentence."""

    subject: str
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification(Result):
    """``verify``. ``keys`` and ``key_bytes``: how many keys were read, and how long their values are; ``arrays`` and
    ``array_bytes`` the same for a checkpoint's arrays, uncompressed. ``other``: the implementation that was compared
    with, its release included, or None; then ``note`` says why."""

    command = "verify"

    kind: str
    version: int | None
    keys: int
    key_bytes: int
    arrays: int
    array_bytes: int
    other: str | None
    note: str | None
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        return not self.findings

    @property
    def exit_code(self) -> int:
        return 0 if self.ok else 1
