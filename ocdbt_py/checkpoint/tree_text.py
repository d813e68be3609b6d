"""The text of ``_METADATA`` as Orbax and we write it, read without making an object of each of its parts.

    {"tree_metadata": {
    "('a', 'b')": {"key_metadata": [{"key": "a", "key_type": 2}, {"key": "b", "key_type": 2}],
                   "value_metadata": {"value_type": "np.ndarray", "skip_deserialize": false}}, …
    }, "use_ocdbt": true, …}

A tree has tens of thousands of entries, alike but for their keys. JSON's parser makes five dicts and two lists of each.
Here what stands between two keys of a path is replaced by one character, all over the text, which leaves of each entry
its label, its path, and a value of which there are few different ones; and these three are found by one expression.
Characters for that are at hand, as JSON has no control characters; and no string can hold what is looked for: there is
a quote in it, which in a string has a backslash before it. Where anything is not as it should be, the answer is None,
and the caller parses the whole as JSON, which has the last word.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from json.encoder import encode_basestring_ascii as quote
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdbt_py.checkpoint.flatten import Key, KeyKind
from ocdbt_py.checkpoint.leaf_records import INDEX, PATH, STEP, LeafColumns

__all__ = ["Part", "UsualText", "as_key", "read_entries"]

Part = Callable[[int, int], bytes]
"""Bytes ``[start, stop)`` of a text."""

_FIRST, _WINDOW = 4 << 10, 512 << 10
"""Bytes of a text that are searched at a time: few at first, then twice as many each time, up to a limit."""

_TOGETHER = 64 << 10
"""Bytes of a text that are taken apart at a time: the system then is not asked for memory each time, or for much."""

_USUAL, _LONGEST = 1 << 10, 64 << 10
"""Bytes of an entry that is found alone, at most but for few, and at most."""

_LONGEST_PATH = 4 << 10
"""Bytes of a path in columns. Each container around a leaf is found by its own path, of which those of many nested ones
are too long together."""

_START = b'{"tree_metadata": {"'
_END = b'}}}, "use_ocdbt": '
_BETWEEN = b'}}, "('
_STEPS = '": {"key_metadata": ['

_INDEX_STEP = b'", "key_type": 1}'
_DICT_STEP = b'", "key_type": 2}'
_NEXT_STEP = _DICT_STEP + b', {"key": "'

_ENTRY = re.compile(
    rb"""": \{"key_metadata": \[\{"key": "([^"]*)", "key_type": 2\}\], """
    rb""""value_metadata": (\{"value_type": "[^"]*"[^}]*\})\}(?:, "|\})"""
)
"""All but the label, which comes before; with what follows."""

_STEP, _INDEX, _PATH = STEP.encode(), INDEX.encode(), PATH.encode()

_KINDS = {kind.value: kind for kind in KeyKind}


class _ValueTypes(dict[bytes, str]):
    """What ``value_metadata`` says, by its text; parsed once each. Raises ``TypeError`` or ``ValueError``."""

    def __missing__(self, text: bytes) -> str:
        value_type = json.loads(text)["value_type"]
        if type(value_type) is not str:
            raise TypeError
        self[text] = value_type
        return value_type


def read_entries(data: bytes) -> tuple[LeafColumns, dict[str, Any]] | None:
    """All entries, and the members beside ``tree_metadata``; None where the text is not of this form."""
    if not data.startswith(_START):
        return None
    texts: list[bytes] = []
    values: list[str] = []
    hashes: list[NDArray[np.int64]] = []
    are_distinct = True
    kinds = _ValueTypes()
    start, end = len(_START), b""
    while start < len(data):
        cut = data.rfind(_BETWEEN, start, start + _TOGETHER) if start + _TOGETHER < len(data) else -1
        stop = len(data) if cut < 0 else cut + len(_BETWEEN) - 1
        found = None if end else _split(data[start:stop])
        if found is None:
            return None
        labels, paths, kind_texts, end = found
        if hashes or stop < len(data):
            hashes.append(np.fromiter(map(hash, labels), np.int64, len(labels)))
        else:
            are_distinct = len(set(labels)) == len(labels)
        try:
            texts.append(paths[1:])
            values += map(kinds.__getitem__, kind_texts)
        except (TypeError, KeyError, ValueError, RecursionError):
            return None
        start = stop
    rest = _object(b"{" + end[len(", ") :]) if end.startswith(b", ") else None
    if rest is None or "tree_metadata" in rest or not are_distinct or (hashes and not _are_distinct(hashes)):
        return None
    text = _PATH.join(texts)
    try:
        text.decode()
    except UnicodeDecodeError:
        return None
    return LeafColumns(text, values), rest


def _split(data: bytes) -> tuple[list[bytes], bytes, list[bytes], bytes] | None:
    """The labels of some entries, their paths, their values, and what is behind them; ``data`` begins in a label."""
    if b"\\" in data or np.frombuffer(data, np.uint8).min() < ord(" "):
        return None
    if _INDEX_STEP in data:
        data = data.replace(_INDEX_STEP, _INDEX + _DICT_STEP)
    *pieces, end = _ENTRY.split(data.replace(_NEXT_STEP, _STEP))
    labels, paths = pieces[::3], pieces[1::3]
    # nothing else is between the entries
    if not labels or b'"' in b"".join(labels) or len(max(paths, key=len)) > _LONGEST_PATH:
        return None
    text = _PATH + _PATH.join(paths)
    if _PATH + _STEP in text:
        return None  # an empty key at the top is not told from the top itself
    return labels, text, pieces[2::3], end


def _are_distinct(hashes: list[NDArray[np.int64]]) -> bool:
    """Whether these labels surely are: of an entry that comes twice JSON keeps the last."""
    together = np.sort(np.concatenate(hashes))
    return not (together[1:] == together[:-1]).any()


class UsualText:
    """A text of this form in which single entries are looked for: read in parts, from its end, as far as it takes."""

    def __init__(self, part: Part, end: int, rest: dict[str, Any]) -> None:
        self.part = part
        self.end = end
        self.rest = rest
        """The members beside ``tree_metadata``."""

    @classmethod
    def of(cls, part: Part, size: int) -> UsualText | None:
        """The text of so many bytes; None where it does not begin and end so."""
        behind, tail, end = size, b"", -1
        for window in (_FIRST, _WINDOW):  # the members beside ``tree_metadata`` may be the user's own
            if end < 0 < behind:
                behind = max(0, size - window)
                tail = part(behind, size)
                end = tail.rfind(_END)
        rest = _members(tail, end) if part(0, len(_START)) == _START else None
        return None if rest is None else cls(part, behind + end, rest)

    def find(self, name: str) -> dict[str, Any] | None:
        """The entry of the leaf ``name`` whose keys are the parts between its dots; None where there is none."""
        label = quote(repr(tuple(name.split("."))))
        sought = f"{label[:-1]}{_STEPS}".encode()
        low, stop, window = len(_START) - 1, self.end, _FIRST
        while stop > low:
            start = max(low, stop - window)
            window = min(2 * window, _WINDOW)
            at = self.part(start, min(stop + len(sought) - 1, self.end)).rfind(sought)
            if at >= 0:
                return self._entry(start + at + len(label) + len(": "))
            stop = start
        return None

    def _entry(self, start: int) -> dict[str, Any] | None:
        data, end = b"", -1
        for length in (_USUAL, _LONGEST):
            if end < 0:
                data = self.part(start, min(start + length, self.end + len("}}")))
                end = data.find(b"}}")
        return _object(data[: end + len("}}")])


def _members(data: bytes, end: int) -> dict[str, Any] | None:
    """Those beside ``tree_metadata``, which ends at ``end``; None where it is nowhere."""
    return None if end < 0 else _object(b"{" + data[end + len("}}}, ") :])


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def as_key(name: Any, kind: Any) -> Key:
    """A step of a path as the file says it; ``TypeError`` for what can be none."""
    if type(name) is not str or type(kind) is not int or kind not in _KINDS:
        raise TypeError
    # JSON can spell halves of surrogate pairs, of which no key of a database is made
    if not name.isascii() and any("\ud800" <= character <= "\udfff" for character in name):
        raise TypeError
    return Key(name, _KINDS[kind])
