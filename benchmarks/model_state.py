"""The state of a decoder of Llama's shape, in bfloat16, for benchmarks.

Any process can make any rows of any leaf, so what was loaded is compared bit for bit with what was saved, without
anybody holding it twice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["MODELS", "Model", "Values"]

_PATTERN = 1 << 23


@dataclass(frozen=True, slots=True)
class Model:
    """A decoder's sizes; 9 leaves a layer, and 3 beside the layers."""

    layers: int
    width: int
    key_value: int
    hidden: int
    vocabulary: int

    def leaves(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape."""
        wide = (self.width, self.width)
        layer = {
            "attention.query": wide,
            "attention.key": (self.key_value, self.width),
            "attention.value": (self.key_value, self.width),
            "attention.out": wide,
            "mlp.gate": (self.hidden, self.width),
            "mlp.up": (self.hidden, self.width),
            "mlp.down": (self.width, self.hidden),
            "norm.before": (self.width,),
            "norm.after": (self.width,),
        }
        shapes = {f"layers.{i}.{name}": shape for i in range(self.layers) for name, shape in layer.items()}
        tables = {"embedding": (self.vocabulary, self.width), "head": (self.vocabulary, self.width)}
        return {**tables, **shapes, "norm": (self.width,)}

    @property
    def nbytes(self) -> int:
        return 2 * sum(map(math.prod, self.leaves().values()))


MODELS = {
    "llama8b-1/16": Model(32, 1024, 256, 3584, 32064),
    "llama8b-1/256": Model(32, 256, 64, 896, 8016),
    "llama8b-1/4096": Model(32, 64, 16, 224, 2000),
}
"""Llama 3.1 8B with every length but the number of layers a fourth, a sixteenth or a 64th of its own."""


@cache
def _pattern() -> NDArray[np.uint16]:
    """Normally distributed numbers; a bfloat16 is the upper half of a float32."""
    normal = np.random.default_rng(0).standard_normal(_PATTERN, dtype=np.float32)
    return (normal.view(np.uint32) >> 16).astype(np.uint16)


class Values:
    """The numbers of a state: pieces of one pattern, at another place in it for each leaf."""

    def __init__(self, model: Model) -> None:
        self._pattern = _pattern()
        self.shapes = model.leaves()
        self._starts = {name: 7919 * i for i, name in enumerate(self.shapes)}

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.uint16]:
        """The bits of these rows of a leaf."""
        shape = self.shapes[name]
        row = math.prod(shape[1:])
        at = (self._starts[name] + start * row) % _PATTERN
        found = np.empty((stop - start) * row, np.uint16)
        done = 0
        while done < len(found):
            part = self._pattern[at : at + len(found) - done]
            found[done : done + len(part)] = part
            done, at = done + len(part), 0
        return found.reshape(-1, *shape[1:])
