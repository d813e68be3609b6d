"""How the benchmarks measure: sides take turns, each operation in a fresh process, and ratios of medians count.

On a shared machine speed drifts by the minute, so sides never run one after the other in blocks but A B A B, and what
is reported is the ratio of medians, with the smallest and largest ratio of a single round beside it.

An operation runs in a process of its own that imports and builds its input, says ``READY``, waits for a line, times the
operation alone and answers with one line of JSON. Before that line the driver gives back memory that it had touched:
in a virtual machine a page that the host must supply first costs ten times as much as the operation under test, and
which side is hit would be chance.
"""

from __future__ import annotations

import json
import mmap
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
READY = "READY"

_POPULATE_WRITE = 23
"""``MADV_POPULATE_WRITE`` of Linux 5.14, which ``mmap`` has no name for."""


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of one side's runs, in the order of the rounds."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def __str__(self) -> str:
        return f"{self.median:.3f} [{min(self.seconds):.3f}..{max(self.seconds):.3f}]"


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times faster one side is: ratio of medians, and the range of the rounds' own ratios."""

    of_medians: float
    lowest: float
    highest: float

    @classmethod
    def between(cls, slower: Times, faster: Times) -> Ratio:
        """Without a range where the two were measured in different numbers of rounds, and none belong together."""
        of_medians = slower.median / faster.median
        if len(slower.seconds) != len(faster.seconds):
            return cls(of_medians, of_medians, of_medians)
        rounds = [a / b for a, b in zip(slower.seconds, faster.seconds, strict=True)]
        return cls(of_medians, min(rounds), max(rounds))

    def __str__(self) -> str:
        return with_range(self.of_medians, (self.lowest, self.highest), "×")


def with_range(median: float, values: Sequence[float], unit: str) -> str:
    """``2.5 s [2..3]``: how reports show a figure, with its smallest and largest value where they differ."""
    shown = f" [{min(values):.3g}..{max(values):.3g}]" if min(values) < max(values) else ""
    return f"{median:.3g}{unit}{shown}"


def take_turns(sides: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, Times]:
    """Run every side once a round, in turn, after one round that does not count (it fills the caches of all sides)."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, run in sides.items():
            taken = run()
            if number:
                seconds[name].append(taken)
    return {name: Times(tuple(taken)) for name, taken in seconds.items()}


class PrimedMemory:
    """Memory touched by the driver, given back to the kernel just before a child allocates.

    In pages of 2 MiB, where there are such: those that go back in small pages are not the ones handed out next, and a
    copy into new memory or a new file then ran six times slower here, as if nothing had been primed.

    Whoever takes memory in small pages, as a new file does, gets what lies free in pieces first, and of that the host
    has taken the most away: ``small`` MiB more are primed in such pages, enough to use up the pieces. Without them a
    save of 500 MB took between one and three times as long, by chance.
    """

    def __init__(self, mebibytes: int, small: int = 0) -> None:
        self._size = mebibytes << 20
        self._small = small << 20
        self._held: list[mmap.mmap] = []

    def up_to(self, mebibytes: int) -> PrimedMemory:
        """As much as an operation can take, if that is less, and three times that in small pages."""
        return PrimedMemory(min(mebibytes, self._size >> 20), min(3 * mebibytes, self._small >> 20))

    def hold(self) -> None:
        if self._held:
            return
        for size, huge in ((self._small, False), (self._size, True)):
            if not size:
                continue
            held = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            if huge and hasattr(mmap, "MADV_HUGEPAGE"):
                held.madvise(mmap.MADV_HUGEPAGE)
            _touch(held)
            self._held.append(held)

    def give_back(self) -> None:
        while self._held:
            self._held.pop().close()


def _touch(memory: mmap.mmap) -> None:
    """Every page of it."""
    try:
        memory.madvise(_POPULATE_WRITE)
    except (AttributeError, OSError, ValueError):  # another system, or an older Linux
        page = b"\1" * (1 << 20)
        for start in range(0, len(memory), len(page)):
            memory[start : start + len(page)] = page


def read_all(directory: Path) -> None:
    """Every file below, so that the system has them in memory.

    A host that takes memory back takes what was not used of late, and files that were saved a minute ago are on the
    disk alone by then: half of one was gone after 30 s here, with most of the memory free.
    """
    buffer = bytearray(4 << 20)
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass


def run_child(module: str, arguments: Sequence[str], memory: PrimedMemory, files: Path | None = None) -> dict[str, Any]:
    """Run ``python -m module arguments`` through the READY protocol; what it answered."""
    return run_children(module, [arguments], memory, files)[0]


def run_children(
    module: str, arguments: Sequence[Sequence[str]], memory: PrimedMemory, files: Path | None = None
) -> list[dict[str, Any]]:
    """The same for several processes that work together: they start when all are ready.

    ``files``: a directory of what they will read, which is in memory when they start.
    """
    memory.hold()
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3", "ABSL_MIN_LOG_LEVEL": "3"}
    with ExitStack() as stack:
        children = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", module, *each],
                    cwd=ROOT,
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for each in arguments
        ]
        answers: list[dict[str, Any]] = []
        if all(_is_ready(child) for child in children):
            if files is not None:
                read_all(files)
            memory.give_back()
            for child in children:
                assert child.stdin is not None
                child.stdin.write("go\n")
                child.stdin.flush()
            lines = [_line(child) for child in children]
            for child in children:
                assert child.stdin is not None
                child.stdin.close()
            statuses = [child.wait() for child in children]
            if not any(statuses):
                answers = [json.loads(line) for line in lines]
        if not answers:
            for child in children:  # the others would wait for the one that failed
                child.kill()
    if answers:
        return answers
    raise SystemExit(f"{module} {' '.join(arguments[0])} failed; its own message is above")


def _is_ready(child: subprocess.Popen[str]) -> bool:
    """Once it says so; if it does not, it has ended, and its message is out."""
    is_ready = _line(child).strip() == READY
    if not is_ready:
        child.wait()
    return is_ready


def _line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline()


def timed(operation: Callable[[], Any]) -> tuple[float, Any]:
    """In a child: wait for the driver, then seconds the operation took, and its result."""
    print(READY, flush=True)
    sys.stdin.readline()
    start = time.perf_counter()
    result = operation()
    return time.perf_counter() - start, result


class ExtraMemory:
    """In a child: MiB that an operation takes at its peak, beyond what the process has when the operation begins."""

    def __init__(self) -> None:
        with suppress(OSError):  # without it the peak is that of the process's whole life: too little is measured
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        self._before = _status("VmRSS")

    def peak(self) -> float:
        return max(0.0, _status("VmHWM") - self._before)


def _status(name: str) -> float:
    """MiB. Not ``ru_maxrss``, which a child inherits from the driver."""
    file = Path("/proc/self/status")
    if not file.exists():
        return 0.0
    words = file.read_text().split()
    return int(words[words.index(f"{name}:") + 1]) / 1024


PACKAGES = ("numpy", "jax", "orbax-checkpoint", "tensorstore", "torch", "safetensors", "zstandard")


def machine() -> dict[str, Any]:
    """What the figures were taken on, and with what."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    versions = {}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": versions,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """The title, then columns two spaces apart, the first to the left and the rest to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    print(title)
    for row in [header, *rows]:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        print("  ".join(cells).rstrip())


def write_json(path: str | None, document: Mapping[str, Any]) -> None:
    """The figures and the machine, where ``--json FILE`` was given."""
    if path is not None:
        Path(path).write_text(json.dumps({"machine": machine(), **document}, indent=2) + "\n")
