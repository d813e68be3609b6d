"""Leaf names: the path of a leaf joined by ``.``, as Orbax does, with nothing escaped.

What follows from "nothing escaped" is here: which names collide (Orbax would merge such leaves, or fail), and which a
string leaf may have. So is choosing leaves by name, and guessing which name was meant.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from ocdbt_py.checkpoint.flatten import Path
from ocdbt_py.errors import InvalidArgumentError, InvalidTypeError, UnsupportedError

__all__ = ["Selection", "check_names", "check_string_names", "compile_selection", "leaf_name", "leaf_names", "nearest"]

MAX_KEY_BYTES = 65535
"""Longest key of an OCDBT database ("B-tree node", key length)."""

_LONGEST_SUFFIX = 512
"""Room for ``/`` and a chunk's indices after the name."""

# what an array adds to its name, in zarr v2 and v3
_ARRAY_FILE = r"\.zarray|\.zattrs|\.zgroup|zarr\.json|[0-9]+([.][0-9]+)*|c(/[0-9]+)*"


def leaf_name(path: Path) -> str:
    """The name of the leaf at ``path``; the empty name where the tree is a single leaf."""
    return ".".join(next(zip(*path), ()))  # noqa: B905  (pairs; the names come first)


def leaf_names(paths: Iterable[Path]) -> list[str]:
    return list(map(leaf_name, paths))


def check_names(names: Sequence[str], paths: Sequence[Path]) -> None:
    """Refuse a tree whose leaves could not be told apart once stored: :class:`InvalidArgumentError` with both paths."""
    distinct, text = set(names), "".join(names)
    is_simple = text.isascii() and "/" not in text and "" not in distinct
    if is_simple and len(distinct) == len(names) and len(max(names, key=len)) <= MAX_KEY_BYTES - _LONGEST_SUFFIX:
        return  # as nearly always
    first: dict[str, int] = {}
    for i, name in enumerate(names):
        if (j := first.setdefault(name, i)) != i:
            raise InvalidArgumentError(
                f"Two leaves would have the same name {name!r}: {_show(paths[j])} and {_show(paths[i])}. "
                "Names are paths joined by '.', so rename one of the keys"
            )
        if not name.isascii() or len(name) > MAX_KEY_BYTES - _LONGEST_SUFFIX:
            _check_key(name)
    nameless = "" in first
    for i, name in enumerate(names):
        if "/" in name or (nameless and name):
            for owner, file in _splits(name):
                if owner in first and re.fullmatch(_ARRAY_FILE, file):
                    raise InvalidArgumentError(
                        f"The leaf {_show(paths[i])} has the name {name!r}, which is also a file of the leaf "
                        f"{_show(paths[first[owner]])}; rename one of the keys"
                    )


def _splits(name: str) -> Iterable[tuple[str, str]]:
    """Every (array, file in it) that ``name`` could mean; the array without a name has bare file names."""
    yield "", name
    at = name.find("/")
    while at >= 0:
        yield name[:at], name[at + 1 :]
        at = name.find("/", at + 1)


def _check_key(name: str) -> None:
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        raise InvalidArgumentError(f"The leaf name {name[:80]!r} is not Unicode text; rename the key") from None
    if len(encoded) > MAX_KEY_BYTES - _LONGEST_SUFFIX:
        raise InvalidArgumentError(
            f"The leaf name {name[:80]!r}… has {len(encoded)} bytes; a database key has at most {MAX_KEY_BYTES}, and "
            f"{_LONGEST_SUFFIX} are kept for chunk indices. Use shorter keys"
        )


def check_string_names(names: Iterable[str]) -> None:
    """Refuse string leaves that ``_strings.json`` cannot hold, where names are JSON pointers."""
    taken: dict[tuple[str, ...], str] = {}
    inner: dict[tuple[str, ...], str] = {}
    for name in names:
        if "~" in name and re.search("~(?![01])", name):
            raise UnsupportedError(
                f"The string leaf {name!r} cannot be stored: Orbax takes its name for a JSON pointer, in which '~' "
                "must be followed by 0 or 1. Rename the key"
            )
        if "/" not in name and not inner:
            taken[(name,)] = name
            continue
        tokens = tuple(name.split("/"))
        above = [tokens[:i] for i in range(1, len(tokens))]
        clash = inner.get(tokens) or next((taken[part] for part in above if part in taken), None)
        if clash is not None:
            raise InvalidArgumentError(
                f"The string leaves {clash!r} and {name!r} cannot be stored together: Orbax nests names at '/', so "
                "that one would lie inside the other. Rename one of the keys"
            )
        taken[tokens] = name
        inner.update(dict.fromkeys(above, name))


def _show(path: Path) -> str:
    return repr(tuple(key.name for key in path))


class Selection(NamedTuple):
    """Which leaves are wanted: a predicate of (name, ArrayInfo), and whether it looks at the second."""

    matches: Callable[[str, Any], bool]
    by_name: bool


def compile_selection(select: Any) -> Selection | None:
    """A selection from what ``select=`` may be; None selects all.

    A string is a glob over the whole name: ``*`` and ``?`` stop at ``.``, ``**`` does not and stands for any number of
    steps, none included (``a.**.b`` matches ``a.b``), ``[abc]`` and ``[!abc]`` are sets. A compiled regular expression
    selects the names in which it is found (``search``). Anything callable is the predicate.
    """
    if select is None:
        return None
    if isinstance(select, str):
        try:
            matches = re.compile(_glob_pattern(select)).fullmatch
        except re.error as error:
            raise InvalidArgumentError(f"select={select!r} is not a glob: {error}") from None
        return Selection(lambda name, _info: matches(name) is not None, by_name=True)
    if isinstance(select, re.Pattern):
        if not isinstance(select.pattern, str):
            raise InvalidTypeError("select= is a regular expression over bytes; leaf names are str")
        found = select.search
        return Selection(lambda name, _info: found(name) is not None, by_name=True)
    if callable(select):
        return Selection(select, by_name=False)
    raise InvalidTypeError(
        "select= is a glob, a compiled regular expression or a function of (name, ArrayInfo), "
        f"not {type(select).__name__}"
    )


_GLOB = r"""(?P<steps>(?<=\.)\*\*(?:\.|$)|^\*\*\.)|(?P<any>\*\*+)|(?P<name>\*)|(?P<one>\?)
    |\[(?P<not>!?)(?P<set>\]?[^\]]*)\]|(?P<text>.)"""


def _glob_pattern(glob: str) -> str:
    parts = []
    for match in re.finditer(_GLOB, glob, re.VERBOSE | re.DOTALL):
        if match["steps"] is not None:
            parts.append(r"(?:.*\.)?" if match["steps"].endswith(".") else ".*")
        elif match["any"]:
            parts.append(".*")
        elif match["name"]:
            parts.append(r"[^.]*")
        elif match["one"]:
            parts.append(r"[^.]")
        elif match["set"] is not None:
            members = re.sub(r"([\\\[\]^&~|])", r"\\\1", match["set"])
            parts.append(f"[{'^' if match['not'] else ''}{members}]")
        else:
            parts.append(re.escape(match["text"]))
    return "(?s:" + "".join(parts) + ")"


def nearest(name: str, candidates: Sequence[str]) -> str | None:
    """The candidate that ``name`` was most probably meant to be, if any is near."""
    from difflib import get_close_matches

    last = name.rpartition(".")[2]
    alike = [candidate for candidate in candidates if candidate.rpartition(".")[2] == last]
    for pool in (alike, candidates):
        found = get_close_matches(name, pool[:_COMPARED], n=1, cutoff=0.6)
        if found:
            return found[0]
    return None


_COMPARED = 2000
"""Comparing costs some microseconds a name."""
