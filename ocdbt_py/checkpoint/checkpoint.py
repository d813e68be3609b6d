"""A checkpoint opened for looking into: names, structure and metadata at hand, array bytes when asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple

from ocdbt_py.array.chunks import Index
from ocdbt_py.checkpoint.layout import Kind, read_file
from ocdbt_py.checkpoint.long_tree import LongTree
from ocdbt_py.checkpoint.metadata import CHECKPOINT_METADATA, ValueType, decode_checkpoint_metadata
from ocdbt_py.checkpoint.names import nearest
from ocdbt_py.checkpoint.opening import find_checkpoint, find_item, pytree_items, read_json_item, resolve_checkpoint
from ocdbt_py.checkpoint.stored import ArrayInfo, StoredTree, python_number
from ocdbt_py.errors import CorruptDataError, InvalidArgumentError, KeyNotFoundError
from ocdbt_py.storage.location import Place

__all__ = ["ArrayInfo", "Checkpoint", "Fetch"]


class Fetch(NamedTuple):
    """One piece that reading fetches: bytes ``[offset, offset + length)`` of a data file, or, with ``file`` None, bytes
    that stand in the database's tree and cost nothing more."""

    key: bytes
    file: str | None
    offset: int
    length: int


class Checkpoint(Mapping[str, Any]):
    """A checkpoint as a mapping: leaf name -> :class:`LazyArray`, number, ``str``, None or empty container.

    Pinned to what it opened. Of a step whose only pytree item it is, that item is the mapping; with several, take
    :meth:`item`. Safe for threads; picklable, opened anew on arrival. Equality goes by identity.
    """

    def __init__(
        self,
        url: Any,
        *,
        allow_uncommitted: bool = False,
        storage_options: dict[str, Any] | None = None,
        fs: Any = None,
    ) -> None:
        place = resolve_checkpoint(url, storage_options, fs)
        self._open(place, None, allow_uncommitted)

    def _open(self, place: Place, item: str | None, allow_uncommitted: bool) -> None:
        self._opened: LongTree | StoredTree | None
        self._origin = (place, item, allow_uncommitted)
        self._layout = find_checkpoint(place, allow_uncommitted=allow_uncommitted)
        tree = self._layout
        if item is not None:
            tree = find_item(tree, item)
        elif tree.kind is Kind.STEP:
            names = pytree_items(tree)
            self._opened = LongTree.open(find_item(tree, names[0])) if len(names) == 1 else None
            return
        self._opened = LongTree.open(tree)

    @classmethod
    def _reopen(cls, place: Place, item: str | None, allow_uncommitted: bool) -> Checkpoint:
        made = cls.__new__(cls)
        made._open(place, item, allow_uncommitted)
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return Checkpoint._reopen, self._origin

    # --- the mapping

    def __getitem__(self, name: str) -> Any:
        stored, i = self._leaf(name)
        specs = stored.specs([i])
        if not specs:
            return stored.plain(i)
        array = stored.lazy(i, specs[i])
        is_number = stored.value_types[i] == ValueType.SCALAR and not array.ndim
        return python_number(array.read()) if is_number else array

    def __iter__(self) -> Iterator[str]:
        return iter(self._indices)

    def __len__(self) -> int:
        return len(self._indices)

    def __contains__(self, name: object) -> bool:
        return name in self._indices

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def names(self) -> list[str]:
        """The leaf names, in the order of the tree."""
        return list(self._indices)

    # --- what it is

    @cached_property
    def tree(self) -> Any:
        """The structure, with an :class:`ArrayInfo` for each array and number; strings, None and empty containers as
        they are."""
        stored = self._tree
        infos = stored.infos(range(len(stored.leaves)))
        leaves = [infos[i] if i in infos else stored.plain(i) for i in range(len(stored.leaves))]
        return stored.tree(leaves)

    @cached_property
    def custom_metadata(self) -> dict[str, Any]:
        """What was saved with it: ``custom_metadata=``, or the item's own."""
        item = self._stored.metadata.custom_metadata if self._stored is not None else None
        data = read_file(self._layout.place, CHECKPOINT_METADATA)
        custom: dict[str, Any] = {}
        if data is not None:
            try:
                custom = dict(decode_checkpoint_metadata(data).custom_metadata)
            except CorruptDataError as error:
                raise error.located(url=self._layout.place.url) from None
        return custom or (item if isinstance(item, dict) else {})

    def sharding(self, name: str) -> Mapping[str, Any] | None:
        """How a leaf that was a JAX array was sharded when it was saved, in Orbax's words; None for any other."""
        self._index(name)
        return self._tree.sharding(name)

    def item_names(self) -> list[str]:
        """The items of a step; none where the tree was saved directly."""
        return sorted(self._layout.items)

    def item(self, name: str) -> Any:
        """One item of a step: a :class:`Checkpoint` of a pytree, the value of JSON."""
        found = find_item(self._layout, name)
        if found.kind is Kind.JSON:
            return read_json_item(found.place)
        place, _, allow_uncommitted = self._origin
        return self._reopen(place, name, allow_uncommitted)

    def explain(self, name: str, index: Index = ...) -> list[Fetch]:
        """What reading ``self[name][index]`` fetches, without fetching it."""
        stored, i = self._leaf(name)
        specs, source = stored.specs([i]), stored.source
        if not specs or source is None:
            return []
        fetches = []
        for key, start, stop in stored.lazy(i, specs[i]).plan(index):
            try:
                entry = source.stat(key)
            except KeyNotFoundError:
                if stored.missing == "error":
                    raise
                continue  # it reads as the fill value
            start = entry.size + start if start < 0 else start
            length = (entry.size if stop is None else stop) - start
            at = entry.location
            fetches.append(
                Fetch(key, None, 0, length) if at is None else Fetch(key, at.file, at.offset + start, length)
            )
        return fetches

    def __repr__(self) -> str:
        url = self._layout.place.url
        if self._stored is None:
            return f"<Checkpoint {url} items: {', '.join(self.item_names())}>"
        item = self._origin[1]
        return f"<Checkpoint {url}{'' if item is None else f' item {item}'}: {len(self)} leaves>"

    @property
    def _stored(self) -> StoredTree | None:
        """The tree; None of a step with several."""
        return self._opened.whole if isinstance(self._opened, LongTree) else self._opened

    def _leaf(self, name: str) -> tuple[StoredTree, int]:
        """A tree that has the leaf, and its place in that."""
        alone = self._opened.leaf(name) if isinstance(self._opened, LongTree) and isinstance(name, str) else None
        return (self._tree, self._index(name)) if alone is None else (alone, 0)

    @property
    def _tree(self) -> StoredTree:
        if self._stored is None:
            raise InvalidArgumentError(
                f"{self._layout.place.url} has several items: {', '.join(self.item_names())}. Take one with item(name)"
            )
        return self._stored

    @cached_property
    def _indices(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self._tree.names)}

    def _index(self, name: str) -> int:
        found = self._indices.get(name)
        if found is None:
            guess = nearest(name, list(self._indices)) if isinstance(name, str) else None
            raise KeyNotFoundError(
                f"There is no leaf {name!r} in {self._layout.place.url}; "
                + (f"did you mean {guess!r}?" if guess else "names() lists them"),
                key=name if isinstance(name, str) else None,
                url=self._layout.place.url,
            )
        return found
