"""What ocdbt_py is to reach, as ratios of figures of one run, and whether it does.

A record is what a benchmark's document holds of one side: workload, operation, side, and what was measured by round.
Each goal names the records it is about; where one is missing it was not measured, and nothing is said of it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.harness import Ratio, Times
from benchmarks.states import STATES

__all__ = ["GOALS", "AtMost", "Faster", "Key", "Records", "Verdict", "by_key"]

Key = tuple[str, str, str]
"""Workload, operation, side."""

Records = Mapping[Key, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Verdict:
    found: str
    is_reached: bool
    possible: str = ""
    """What would be found if ours took no longer than writing or reading the bytes alone, where that was measured."""


@dataclass(frozen=True, slots=True)
class Faster:
    """The peer's median time is at least so many times ours; with the pass over all bytes, where that is said."""

    group: str
    text: str
    ours: Key
    peer: Key
    at_least: float
    with_pass: bool = False
    has_floor: bool = False
    """Whether raw files, for the same operation, say what is possible at all."""

    @property
    def goal(self) -> str:
        return f"≥ {self.at_least:g}×"

    def judge(self, records: Records) -> Verdict | None:
        if self.ours not in records or self.peer not in records:
            return None
        mine, theirs = (self._times(records[key]) for key in (self.ours, self.peer))
        ratio = Ratio.between(theirs, mine)
        return Verdict(str(ratio), ratio.of_medians >= self.at_least, self._possible(records, theirs))

    def _possible(self, records: Records, theirs: Times) -> str:
        floor = records.get((*self.ours[:2], RAW)) if self.has_floor else None
        return "" if floor is None else f"{theirs.median / statistics.median(floor['seconds']):.3g}×"

    def _times(self, record: Mapping[str, Any]) -> Times:
        seconds: Sequence[float] = record["seconds"]
        if not self.with_pass:
            return Times(tuple(seconds))
        return Times(tuple(a + b for a, b in zip(seconds, record["pass_seconds"], strict=True)))


@dataclass(frozen=True, slots=True)
class AtMost:
    """A median of ours, computed from some records, is no more than a limit."""

    group: str
    text: str
    needs: tuple[Key, ...]
    figure: Callable[..., float]
    limit: float
    unit: str

    @property
    def goal(self) -> str:
        return f"≤ {self.limit:.4g} {self.unit}"

    def judge(self, records: Records) -> Verdict | None:
        if any(key not in records for key in self.needs):
            return None
        found = self.figure(*[records[key] for key in self.needs])
        return Verdict(f"{found:.3g} {self.unit}", found <= self.limit)


def by_key(runs: Sequence[Mapping[str, Any]]) -> dict[Key, Mapping[str, Any]]:
    """Later ones replace earlier ones."""
    return {(run["workload"], run["operation"], run["side"]): run for run in runs}


# --- the goals

JAX, NUMPY, ZSTD = "ocdbt_py", "ocdbt_py-numpy", "ocdbt_py-zstd"
RAW = "raw-files"
MANY = {"10k": ("10,000 leaves", "small-10k", "10k"), "50k": ("50,000 leaves", "small-50k", "50k-orbax")}
LARGE = {"f32": ("GPT-2, float32", "gpt2"), "bf16": ("Llama layer, bfloat16", "llama-wide")}


def _many() -> list[Faster]:
    found = []
    for name, (title, _, with_orbax) in MANY.items():
        orbax = {operation: (with_orbax, operation, "orbax") for operation in ("save", "restore")}
        theirs = {operation: (name, operation, "tensorstore") for operation in ("save", "restore")}
        found += [
            Faster("many leaves", f"{title}: save, Orbax", (with_orbax, "save", JAX), orbax["save"], 100),
            Faster("many leaves", f"{title}: save, TensorStore", (name, "save", NUMPY), theirs["save"], 10),
            Faster("many leaves", f"{title}: to NumPy, Orbax", (with_orbax, "map", NUMPY), orbax["restore"], 300),
            Faster("many leaves", f"{title}: to NumPy, TensorStore", (name, "map", NUMPY), theirs["restore"], 30),
            Faster("many leaves", f"{title}: to JAX, Orbax", (with_orbax, "restore", JAX), orbax["restore"], 25),
        ]
    return found


def _large() -> list[Faster]:
    found = []
    for name, (title, _) in LARGE.items():
        orbax = (name, "restore", "orbax")
        mapped, copied = (name, "map", NUMPY), (name, "restore", NUMPY)
        quick = f"{name}-nosync"
        found += [
            Faster("large states", f"{title}: save, Orbax", (name, "save", JAX), (name, "save", "orbax"), 1.5),
            Faster(
                "large states",
                f"{title}: save, TensorStore uncompressed",
                (name, "save", NUMPY),
                (name, "save", "tensorstore"),
                1.2,
                has_floor=True,
            ),
            Faster(
                "large states",
                f"{title}: save without fsync, safetensors",
                (quick, "save", NUMPY),
                (quick, "save", "safetensors"),
                2,
                has_floor=True,
            ),
            Faster("large states", f"{title}: map, the call, Orbax", mapped, orbax, 500),
            Faster("large states", f"{title}: map and one pass, Orbax", mapped, orbax, 15, with_pass=True),
            Faster("large states", f"{title}: copy, Orbax", copied, orbax, 4, has_floor=True),
            Faster(
                "large states",
                f"{title}: copy, safetensors",
                copied,
                (name, "restore", "safetensors"),
                1.2,
                has_floor=True,
            ),
            Faster("large states", f"{title}: save zstd, Orbax", (name, "save", ZSTD), (name, "save", "orbax"), 1.1),
            Faster("large states", f"{title}: restore zstd, Orbax", (name, "restore", ZSTD), orbax, 1.3),
        ]
    for name, size in (("one", 4), ("one-1g", 1)):
        text = f"one leaf of {size} GiB: save zstd, Orbax"
        found.append(Faster("large states", text, (name, "save", ZSTD), (name, "save", "orbax"), 1.7))
    return found


def _parts() -> list[Faster | AtMost]:
    ours, theirs = "ocdbt_py from ocdbt_py", "tensorstore from TensorStore"
    slices, one = "64 rows of a tensor of 154 MB", "one array out of 50,000"
    return [
        Faster("parts", f"{slices}: TensorStore", ("slice", "read", ours), ("slice", "read", theirs), 50),
        AtMost(
            "parts",
            f"{slices}: bytes read, of those needed",
            (("slice", "read", ours),),
            lambda run: statistics.median(run["read_bytes"]) / run["needed_bytes"],
            1.1,
            "×",
        ),
        Faster("parts", f"{one}, cold: TensorStore", ("one-of-50k", "read", ours), ("one-of-50k", "read", theirs), 5),
    ]


def _limits() -> list[AtMost]:
    found = []
    states = {name: (title, state) for name, (title, state, _) in MANY.items()} | LARGE
    for name, (title, state) in states.items():
        leaves, payload = len(STATES[state].leaves), STATES[state].nbytes
        found += [
            AtMost(
                "limits",
                f"{title}: async save blocks, of a leaf",
                ((name, "async save returns", JAX),),
                lambda run, leaves=leaves: 1000 * statistics.median(run["seconds"]) / leaves,
                0.02,
                "ms",
            ),
            AtMost(
                "limits",
                f"{title}: memory beyond the arrays, save",
                ((name, "save", NUMPY),),
                lambda run: statistics.median(run["extra_mib"]),
                round(16 + 300 * leaves / (1 << 20), 1),
                "MiB",
            ),
            AtMost(
                "limits",
                f"{title}: memory of a copying restore, of the payload",
                ((name, "restore", NUMPY),),
                lambda run, payload=payload: statistics.median(run["extra_mib"]) * (1 << 20) / payload,
                1.05,
                "×",
            ),
        ]
    for side, text in (("ocdbt_py alone", "import"), ("ocdbt_py", "import, and load open, save and restore")):
        found.append(
            AtMost(
                "limits",
                f"{text}, beyond NumPy's own import",
                (("imports", "import", side), ("imports", "import", "numpy")),
                lambda ours, numpy: 1000 * (statistics.median(ours["seconds"]) - statistics.median(numpy["seconds"])),
                40,
                "ms",
            )
        )
    return found


def _key_value() -> list[Faster]:
    wanted = {
        "update_100k": ("100,000 keys in one transaction", 5.0),
        "update_1m": ("1,000,000 keys in one transaction", 5.0),
        "list_1m": ("list 1,000,000 keys", 1.0),
        "commits": ("single-key commits", 1.3),
        "writers_2": ("2 processes that commit", 3.0),
        "writers_4": ("4 processes that commit", 5.0),
    }
    return [
        Faster(
            "key-value",
            f"{title}, TensorStore",
            ("kv", name, "ocdbt_py"),
            ("kv", name, "tensorstore"),
            at_least,
            has_floor=name == "commits",
        )
        for name, (title, at_least) in wanted.items()
    ]


def _paper() -> list[Faster]:
    return [
        Faster(
            "Orbax's paper",
            f"{processes}: {operation}, torch DCP",
            ("paper", f"{processes}: {operation}", "ocdbt_py"),
            ("paper", f"{processes}: {operation}", "dcp"),
            at_least,
            has_floor=True,
        )
        for processes in ("1 process", "4 processes")
        for operation, at_least in (("save", 3.5), ("load", 2.0))
    ]


GOALS: tuple[Faster | AtMost, ...] = (
    *_many(),
    *_large(),
    *_parts(),
    *_limits(),
    *_key_value(),
    *_paper(),
)
