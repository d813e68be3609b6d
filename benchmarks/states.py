"""What the benchmarks save: the states of models, and trees of many small arrays.

Any process can make any rows of any leaf, so what was loaded is compared bit for bit with what was saved, without
anybody holding it twice. The numbers are normally distributed, as weights are: zstd makes them a tenth smaller in
float32 and a quarter in bfloat16.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["STATES", "State", "Values"]

_PATTERN = 1 << 23


@dataclass(frozen=True, slots=True)
class State:
    """Name -> shape of each leaf; all are of one dtype."""

    leaves: Mapping[str, tuple[int, ...]]
    dtype: str

    @property
    def itemsize(self) -> int:
        return 4 if self.dtype == "float32" else 2

    @property
    def nbytes(self) -> int:
        return self.itemsize * sum(map(math.prod, self.leaves.values()))

    def __str__(self) -> str:
        count = len(self.leaves)
        return f"{count:,} {'leaf' if count == 1 else 'leaves'}, {self.nbytes / 1e6:,.0f} MB of {self.dtype}"


def llama(layers: int, width: int, key_value: int, hidden: int, vocabulary: int) -> State:
    """A decoder of Llama's shape, in bfloat16: 9 leaves a layer, and 3 beside the layers."""
    wide = (width, width)
    layer = {
        "attention.query": wide,
        "attention.key": (key_value, width),
        "attention.value": (key_value, width),
        "attention.out": wide,
        "mlp.gate": (hidden, width),
        "mlp.up": (hidden, width),
        "mlp.down": (width, hidden),
        "norm.before": (width,),
        "norm.after": (width,),
    }
    shapes = {f"layers.{i}.{name}": shape for i in range(layers) for name, shape in layer.items()}
    tables = {"embedding": (vocabulary, width), "head": (vocabulary, width)}
    return State({**tables, **shapes, "norm": (width,)}, "bfloat16")


def gpt2() -> State:
    """The parameters of the smallest GPT-2."""
    block = {
        "attention.in.kernel": (768, 2304),
        "attention.in.bias": (2304,),
        "attention.out.kernel": (768, 768),
        "attention.out.bias": (768,),
        "mlp.in.kernel": (768, 3072),
        "mlp.in.bias": (3072,),
        "mlp.out.kernel": (3072, 768),
        "mlp.out.bias": (768,),
        **{f"norm_{i}.{name}": (768,) for i in (1, 2) for name in ("scale", "bias")},
    }
    shapes = {f"block_{i}.{name}": shape for i in range(12) for name, shape in block.items()}
    tables = {"tokens": (50257, 768), "positions": (1024, 768)}
    return State({**tables, **shapes, "norm.scale": (768,), "norm.bias": (768,)}, "float32")


def many(count: int, dtype: str = "float32") -> State:
    """Arrays of 1 to 4 KiB in float32."""
    sizes = np.random.default_rng(0).choice((256, 384, 512, 768, 1024), count).tolist()
    return State({f"block_{i // 100}.item_{i % 100}.w": (size,) for i, size in enumerate(sizes)}, dtype)


def one(gigabytes: int) -> State:
    return State({"w": (gigabytes << 13, 1 << 15)}, "float32")


STATES = {
    "llama8b-1/16": llama(32, 1024, 256, 3584, 32064),
    "llama8b-1/256": llama(32, 256, 64, 896, 8016),
    "llama8b-1/4096": llama(32, 64, 16, 224, 2000),
    "llama-wide": llama(1, 4096, 4096, 11008, 32000),
    "gpt2": gpt2(),
    "small-10k": many(10_000),
    "small-50k": many(50_000),
    "small-200": many(200),
    **{f"small-3-{dtype}": many(3, dtype) for dtype in ("float32", "bfloat16")},
    "one-1g": one(1),
    "one-4g": one(4),
}
"""The first three: Llama 3.1 8B with every length but the number of layers a fourth, a sixteenth or a 64th of its own.
The fourth: one layer of Llama 2 7B, and its tables."""


@cache
def _pattern(dtype: str) -> NDArray[Any]:
    """Normally distributed numbers as bits; a bfloat16 is the upper half of a float32."""
    normal = np.random.default_rng(0).standard_normal(_PATTERN, dtype=np.float32).view(np.uint32)
    return normal if dtype == "float32" else (normal >> 16).astype(np.uint16)


class Values:
    """The numbers of a state: pieces of one pattern, at another place in it for each leaf."""

    def __init__(self, state: State) -> None:
        self.shapes = state.leaves
        self.bits = np.dtype(f"u{state.itemsize}")
        self._dtype_name = state.dtype
        self._pattern = _pattern(state.dtype)
        self._starts = {name: 7919 * i for i, name in enumerate(self.shapes)}

    @property
    def dtype(self) -> np.dtype[Any]:
        if self._dtype_name == "float32":
            return np.dtype(np.float32)
        import ml_dtypes

        found: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return found

    def rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """The bits of these rows of a leaf."""
        shape = self.shapes[name]
        row = math.prod(shape[1:])
        at = (self._starts[name] + start * row) % _PATTERN
        found = np.empty((stop - start) * row, self.bits)
        done = 0
        while done < len(found):
            part = self._pattern[at : at + len(found) - done]
            found[done : done + len(part)] = part
            done, at = done + len(part), 0
        return found.reshape(-1, *shape[1:])

    def array(self, name: str) -> NDArray[Any]:
        """A whole leaf."""
        return self.rows(name, 0, self.shapes[name][0]).view(self.dtype)
