"""Several values by name, to be had as attributes or by key: what is saved or restored together.

Arguments of several items go into :class:`Composite`, and what comes back is one as well, so that the same names are
used on both sides: ``manager.restore(7).train_state``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ocdbt_py.errors import InvalidArgumentError

__all__ = ["Composite"]


class Composite(Mapping[str, Any]):
    """An immutable mapping whose values are attributes too, where no method has the name.

    >>> items = Composite(state=1, metadata={"epoch": 2})
    >>> items.state, items["metadata"], "state" in items
    (1, {'epoch': 2}, True)
    """

    _items: dict[str, Any]

    def __init__(self, **items: Any) -> None:
        for name in items:
            if name.startswith("__"):
                raise InvalidArgumentError(f"The name of an item cannot start with two underscores: {name!r}")
        object.__setattr__(self, "_items", items)

    def __getitem__(self, name: str) -> Any:
        items = object.__getattribute__(self, "__dict__").get("_items", {})
        if name not in items:
            raise KeyError(f"There is no item {name!r}; there are {', '.join(items) or 'none'}")
        return items[name]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked for by copy, pickle and the like, which expect this error
            raise AttributeError(name)
        return self[name]

    def __setattr__(self, name: str, value: Any) -> None:
        raise InvalidArgumentError(f"A Composite cannot be changed; make another with {name}=…")

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __and__(self, other: Mapping[str, Any]) -> Composite:
        return Composite(**{name: value for name, value in self._items.items() if name in other})

    def __or__(self, other: Mapping[str, Any]) -> Composite:
        return Composite(**{**self._items, **other})

    def __reduce__(self) -> tuple[Any, ...]:
        return _composite, (self._items,)

    def __repr__(self) -> str:
        return f"Composite({self._items!r})"


def _composite(items: dict[str, Any]) -> Composite:
    return Composite(**items)
