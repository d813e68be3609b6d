"""The text of ``_METADATA`` as Orbax and we write it, read without making an object of each of its parts.

    {"tree_metadata": {
    "('a', 'b')": {"key_metadata": [{"key": "a", "key_type": 2}, {"key": "b", "key_type": 2}],
                   "value_metadata": {"value_type": "np.ndarray", "skip_deserialize": false}}, …
    }, "use_ocdbt": true, …}

A tree has tens of thousands of entries, alike but for their last keys. JSON's parser makes five dicts and two lists of
each; here the text is cut at what stands between the parts, and parts that were seen before are known. No string can
hold what it is cut at: each cut has a quote in it, which in a string has a backslash before it. Where anything is not
as it should be, the answer is None, and the caller parses the whole as JSON, which has the last word.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from json.encoder import encode_basestring_ascii as quote
from typing import Any, NamedTuple, TypeVar

from ocdbt_py.checkpoint.flatten import Key, KeyKind, Path

__all__ = ["Entries", "as_key", "find_entry", "is_usual_text", "read_entries"]

T = TypeVar("T")

_START = '{"tree_metadata": {"'
_END = '}}}, "use_ocdbt": '
_STEPS = '": {"key_metadata": ['
_VALUE = '], "value_metadata": '
_NEXT = '}}, "'
_KEY = ', {"key": '

_KINDS = {kind.value: kind for kind in KeyKind}


class Entries(NamedTuple):
    """The leaves, in the order of the file: paths and kinds, and the names that the paths make."""

    paths: Sequence[Path]
    names: Sequence[str]
    value_types: Sequence[str]


class _Known(dict[str, T]):
    """What a part of the text means, by the part; made once each."""

    def __init__(self, meaning: Callable[[str], T]) -> None:
        self._meaning = meaning

    def __missing__(self, text: str) -> T:
        found = self[text] = self._meaning(text)
        return found


def read_entries(text: str) -> tuple[Entries, dict[str, Any]] | None:
    """All entries, and the members beside ``tree_metadata``; None where the text is not of this form."""
    end = text.rfind(_END)
    rest = None if "\\" in text else _rest(text, end)
    if rest is None:
        return None
    first, *pieces = text[len(_START) : end].split(_STEPS)
    above, last, kinds = _Known(_above), _Known(_key), _Known(_value_type)
    try:
        cut = [piece.partition(_VALUE) for piece in pieces]
        ends = [value.partition(_NEXT) for _, _, value in cut]
        value_types = [kinds[value] for value, _, _ in ends]
        steps = [(above[parent], last[step]) for parent, _, step in [keys.rpartition(_KEY) for keys, _, _ in cut]]
    except (TypeError, KeyError, ValueError, RecursionError):
        return None
    labels = [first, *[label for _, _, label in ends]]
    # behind the last value comes no label; and of one that comes twice JSON keeps the last entry
    if not pieces or labels.pop() or '"' in "".join(labels) or len(set(labels)) < len(labels):
        return None
    paths = [(*path, key) for (path, _), key in steps]
    names = [name + key[0] for (_, name), key in steps]
    return Entries(paths, names, value_types), rest


def is_usual_text(data: bytes) -> bool:
    """Whether it begins and ends so."""
    return _rest(data, data.rfind(_END.encode())) is not None


def find_entry(data: bytes, name: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The entry of the leaf ``name`` whose keys are the parts between its dots, and the members beside
    ``tree_metadata``; None where there is none, or the text is not of this form.
    """
    end = data.rfind(_END.encode())
    label = quote(repr(tuple(name.split("."))))
    at = data.rfind(f"{label[:-1]}{_STEPS}".encode(), len(_START) - 1, max(end, 0))
    rest = _rest(data, end) if at >= 0 else None
    if rest is None:
        return None
    start = at + len(label) + len(": ")
    stop = data.find(b"}}", start, end + len("}}"))
    try:
        entry = json.loads(data[start : stop + len("}}")])
    except (ValueError, RecursionError):
        return None
    return (entry, rest) if isinstance(entry, dict) else None


def _rest(data: Any, end: int) -> dict[str, Any] | None:
    """The members beside ``tree_metadata``, which ends at ``end`` of the text or of its bytes."""
    start, brace = (_START, "{") if isinstance(data, str) else (_START.encode(), b"{")
    if end < 0 or not data.startswith(start):
        return None
    try:
        rest = json.loads(brace + data[end + len("}}}, ") :])
    except (ValueError, RecursionError):
        return None
    return rest if isinstance(rest, dict) else None


def as_key(name: Any, kind: Any) -> Key:
    """A step of a path as the file says it; ``TypeError`` for what can be none."""
    if type(name) is not str or type(kind) is not int or kind not in _KINDS:
        raise TypeError
    # JSON can spell halves of surrogate pairs, of which no key of a database is made
    if not name.isascii() and any("\ud800" <= character <= "\udfff" for character in name):
        raise TypeError
    return Key(name, _KINDS[kind])


def _above(text: str) -> tuple[Path, str]:
    """The path of a container, and what the names of the leaves in it begin with."""
    path = tuple(_as_key(step) for step in json.loads(f"[{text}]"))
    return path, "".join([key.name + "." for key in path])


def _key(text: str) -> Key:
    return _as_key(json.loads(text if text.startswith("{") else _KEY[2:] + text))


def _as_key(step: Any) -> Key:
    if set(step) != {"key", "key_type"}:
        raise TypeError
    return as_key(step["key"], step["key_type"])


def _value_type(text: str) -> str:
    # the brace at the end went with the cut
    value = json.loads(text + "}")["value_type"]
    if type(value) is not str:
        raise TypeError
    return value
