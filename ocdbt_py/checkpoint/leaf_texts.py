"""The JSON files with an entry for each leaf, in Orbax's own text: ``_METADATA``, ``_sharding``, ``array_metadatas``.

A tree may have a hundred thousand leaves. So the texts are put together from templates, some leaves at a time: while
the values of these are written by other threads, and with memory that was used for those before.
"""

from __future__ import annotations

import json
from binascii import b2a_base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from json.encoder import encode_basestring_ascii as quote
from typing import Any, NamedTuple

from ocdbt_py.checkpoint.flatten import Key, Path
from ocdbt_py.checkpoint.metadata import ARRAY_METADATAS, METADATA, SHARDING, ValueType

__all__ = [
    "ArrayMetadatasText",
    "Described",
    "LeafTexts",
    "ShardingsText",
    "TreeMetadataText",
]


class Described(NamedTuple):
    """What the files say of leaves that are alike; what is None, they do not say."""

    value_type: str
    write_shape: tuple[int, ...] | None
    """Of JAX arrays, as is what follows."""
    chunk_shape: tuple[int, ...] | None
    sharding: Mapping[str, Any] | None
    random_key_impl: str | None


class LeafTexts:
    """The files of a tree. Leaves that are alike share an object in ``alike``, which is described once.

    ``is_whole``: all of them are wanted, and not only what every process writes.
    """

    def __init__(
        self,
        names: Sequence[str],
        paths: Sequence[Path],
        alike: Sequence[Any],
        describe: Callable[[Any], Described],
        is_whole: bool,
    ) -> None:
        self._names = names
        self._paths = paths
        self._alike = alike
        self._describe = describe
        self._is_whole = is_whole
        self._done = 0
        self._known: dict[int, tuple[Described, str, str | None]] = {}
        self._tree = TreeMetadataText()
        self._arrays = ArrayMetadatasText()
        self._shardings = ShardingsText()
        self._has_jax = False

    def advance(self, stop: int) -> None:
        """Have the entries of leaves before ``stop`` put together; what is known of those does not change any more."""
        if stop == self._done:
            return
        run = slice(self._done, stop)
        self._done = stop
        alike, names = self._alike[run], self._names[run]
        for key, each in dict(zip(map(id, alike), alike, strict=True)).items():
            if key not in self._known:
                self._known[key] = self._told(each)
        known = list(map(self._known.__getitem__, map(id, alike)))
        if self._is_whole:
            self._tree.add(self._paths[run], [ending for _, ending, _ in known])
        if self._has_jax:
            arrays = [(name, ending) for name, (_, _, ending) in zip(names, known, strict=True) if ending is not None]
            self._arrays.add(arrays)
            if self._is_whole:
                self._add_shardings(names, known)

    def _told(self, each: Any) -> tuple[Described, str, str | None]:
        described = self._describe(each)
        value_type, write_shape, chunk_shape, _, random_key_impl = described
        self._has_jax = self._has_jax or value_type == ValueType.JAX_ARRAY
        ending = None
        if write_shape is not None and chunk_shape is not None:
            ending = self._arrays.ending(write_shape, chunk_shape, random_key_impl)
        return described, self._tree.ending(value_type, write_shape), ending

    def _add_shardings(self, names: Sequence[str], known: Sequence[tuple[Described, str, str | None]]) -> None:
        by_sharding: dict[int, tuple[Mapping[str, Any], list[str]]] = {}
        for name, (described, _, _) in zip(names, known, strict=True):
            sharding = described.sharding
            if sharding is not None:
                found = by_sharding.get(id(sharding))
                if found is None:
                    found = by_sharding[id(sharding)] = sharding, []
                found[1].append(name)
        for sharding, some in by_sharding.values():
            self._shardings.add(some, sharding)

    def array_metadatas(self, index: int) -> dict[str, bytes]:
        """The small file that each process writes, all the same but for its name; none where no leaf is a JAX array."""
        self.advance(len(self._names))
        return {f"{ARRAY_METADATAS}/process_{index}": self._arrays.text()} if self._arrays else {}

    def files(self, *, use_zarr3: bool, custom_metadata: Mapping[str, Any] | None) -> dict[str, bytes]:
        """Those that process 0 writes."""
        self.advance(len(self._names))
        files = {SHARDING: self._shardings.text()} if self._has_jax else {}
        files |= self.array_metadatas(0)
        return files | {METADATA: self._tree.text(use_zarr3=use_zarr3, custom_metadata=custom_metadata)}


class _Steps(dict[Key, tuple[str, str]]):
    """A step of a path as it stands in a label and in ``key_metadata``, made once for each key."""

    def __missing__(self, key: Key) -> tuple[str, str]:
        texts = self[key] = quote(repr(key.name))[1:-1], f'{{"key": {quote(key.name)}, "key_type": {int(key.kind)}}}'
        return texts


class TreeMetadataText:
    """``_METADATA`` of a tree stored in a database, every chunk written: put together some leaves at a time."""

    def __init__(self) -> None:
        self._steps = _Steps()
        self._pieces: list[bytes] = []

    @staticmethod
    def ending(value_type: str, write_shape: tuple[int, ...] | None) -> str:
        """What follows a leaf's path."""
        value: dict[str, Any] = {"value_type": value_type, "skip_deserialize": value_type in ValueType.EMPTY}
        if write_shape is not None:
            value["write_shape"] = write_shape
        return f'], "value_metadata": {json.dumps(value)}}}'

    def add(self, paths: Iterable[Path], endings: Iterable[str]) -> None:
        """The next leaves."""
        steps = self._steps
        above: Path | None = None  # all of the path before but its last two steps; neighbours mostly have it in common
        label = metadata = ""
        entries = []
        for path, ending in zip(paths, endings, strict=True):
            if len(path) < 2:  # a label is the repr of a tuple, which of such is another
                text = ", ".join([steps[key][1] for key in path])
                entries.append(f'{quote(repr(tuple([key.name for key in path])))}: {{"key_metadata": [{text}{ending}')
                continue
            if path[:-2] != above:
                above = path[:-2]
                found = [steps[key] for key in above]
                label = "".join([f"{text}, " for text, _ in found])
                metadata = "".join([f"{text}, " for _, text in found])
            (label_1, key_1), (label_2, key_2) = steps[path[-2]], steps[path[-1]]
            entries.append(f'"({label}{label_1}, {label_2})": {{"key_metadata": [{metadata}{key_1}, {key_2}{ending}')
        self._pieces += [b", ", ", ".join(entries).encode()]

    def text(self, *, use_zarr3: bool = False, custom_metadata: Mapping[str, Any] | None = None) -> bytes:
        rest = {
            "use_ocdbt": True,
            "use_zarr3": use_zarr3,
            "store_array_data_equal_to_fill_value": True,
            "custom_metadata": custom_metadata or None,
        }
        end = f"}}, {json.dumps(rest)[1:]}"
        return b"".join([b'{"tree_metadata": {', *self._pieces[1:], end.encode()])


class ShardingsText:
    """``_sharding``, put together some leaves at a time."""

    def __init__(self) -> None:
        self._keys: list[str] = []
        self._runs: list[tuple[int, str]] = []
        """How many leaves have which text, one after the other."""

    def add(self, names: Sequence[str], sharding: Mapping[str, Any]) -> None:
        """Leaves that have this description; names in no order."""
        found = b" ".join([b2a_base64(name.encode(), newline=False) for name in names])
        self._keys += found.translate(_URL_SAFE).decode().split(" ")
        self._runs.append((len(names), quote(json.dumps(sharding))))

    def text(self) -> bytes:
        texts = {text for _, text in self._runs}
        if len(texts) == 1:
            text = f'":{texts.pop()}'
            keys = f'{text},"'.join(sorted(self._keys))
            return f'{{"{keys}{text}}}'.encode()
        each = [text for count, text in self._runs for _ in range(count)]
        entries = [f'"{key}":{text}' for key, text in sorted(zip(self._keys, each, strict=True))]
        return f"{{{','.join(entries)}}}".encode()


_URL_SAFE = bytes.maketrans(b"+/", b"-_")


class ArrayMetadatasText:
    """``array_metadatas/process_N`` of the leaves that were JAX arrays, put together some at a time."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    @staticmethod
    def ending(write_shape: tuple[int, ...], chunk_shape: tuple[int, ...], random_key_impl: str | None) -> str:
        """What follows a leaf's name: the shape that one writer writes at a time, that of a chunk, and which random
        generator it is a key of, if it is one."""
        extra = None if random_key_impl is None else {"random_key_impl": random_key_impl}
        rest = {"write_shape": write_shape, "chunk_shape": chunk_shape, "ext_metadata": extra}
        return json.dumps(rest)[1:]

    def add(self, arrays: Iterable[tuple[str, str]]) -> None:
        """The next leaves: names, and what follows them."""
        entries = [f'{{"array_metadata": {{"param_name": {quote(name)}, {ending}}}' for name, ending in arrays]
        if entries:
            self._pieces += [b", ", ", ".join(entries).encode()]

    def __bool__(self) -> bool:
        return bool(self._pieces)

    def text(self) -> bytes:
        return b"".join([b'{"array_metadatas": [', *self._pieces[1:], b"]}"])
