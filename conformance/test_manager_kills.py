"""Training loops are killed at random moments, and go on: nothing that was acknowledged is lost.

Acknowledged is a step once ``wait_until_finished`` or a later ``save`` has returned.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conformance.kill_job import place_of, tree_of
from ocdbt_py.checkpoint.restore import restore_place
from ocdbt_py.manager.listing import step_directories
from ocdbt_py.manager.options import CheckpointManagerOptions
from ocdbt_py.manager.root import Root
from ocdbt_py.manager.step_names import StepNames

ROOT = Path(__file__).parent.parent
RUNS = 10
MOST_STEPS = 5
LONGEST = 0.02
"""A loop is killed after so many steps, at most, and so many seconds more; it saves a step in a few milliseconds."""


@pytest.fixture(scope="module")
def job() -> Iterator[subprocess.Popen[bytes]]:
    paths = [str(ROOT), str(ROOT / "backends")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "conformance.kill_job"]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


class Loop:
    """One run of a loop, until it is killed."""

    def __init__(self, job: subprocess.Popen[bytes], given: dict[str, Any]) -> None:
        assert job.stdin is not None
        assert job.stdout is not None
        self._out = job.stdout
        self._text = b""
        job.stdin.write(json.dumps(given).encode() + b"\n")
        while b"pid" not in self._text or not self._text.endswith(b"\n"):
            self._read()
        self.pid = int(self._text.partition(b"pid ")[2].split()[0])

    def _read(self) -> None:
        data = os.read(self._out.fileno(), 65536)
        assert data
        self._text += data

    def kill_after(self, steps: int, seconds: float) -> list[int]:
        """The steps that it knew to be saved."""
        while self._text.count(b"saved") < steps and b"failed" not in self._text:
            self._read()
        select.select([], [], [], seconds)
        os.kill(self.pid, signal.SIGKILL)
        while b"ended\n" not in self._text:
            self._read()
        lines = self._text.decode().splitlines()
        assert not [line for line in lines if line.startswith("failed")]
        return [int(line.split()[1]) for line in lines if line.startswith("saved")]


@pytest.mark.parametrize(
    "given",
    [
        {"is_async": True, "keep": 1},
        {"is_async": False, "keep": 3},
        {"is_async": True, "keep": 2, "is_best": True},
        {"is_async": True, "keep": 2, "todelete": "old"},
        {"is_async": True, "keep": 2, "is_bucket": True},
    ],
    ids=["one", "three, saved at once", "the best", "moved away", "a bucket"],
)
def test_after_each_kill_the_last_acknowledged_step_is_there(
    given: dict[str, Any], job: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    chance = random.Random(repr(given))
    rest: dict[str, Any] = {"directory": str(tmp_path / "run"), "is_best": False, "todelete": None, "is_bucket": False}
    given = rest | given
    place = place_of(given["directory"], given["is_bucket"])
    mine = {"2024/notes.txt": b"mine", "ckpt_3/x": b"mine", "readme": b"mine", "x.orbax-checkpoint-tmp/y": b"mine"}
    for name, data in mine.items():
        place.storage.write(f"{place.path}/{name}", [data])
    acknowledged = -1
    for _ in range(RUNS):
        saved = Loop(job, given).kill_after(chance.randint(0, MOST_STEPS), chance.uniform(0, LONGEST))
        acknowledged = max([acknowledged, *saved])
        root = Root(place, CheckpointManagerOptions(read_only=True))
        latest = root.latest()
        assert (latest is None and acknowledged < 0) or (latest is not None and latest >= acknowledged)
        for step in root.steps():
            np.testing.assert_equal(restore_place(root.place_of(step), item="default"), tree_of(step))
        for name, data in mine.items():
            assert (tmp_path / "run" / name).read_bytes() == data
    assert acknowledged > 0
    with Root(place, CheckpointManagerOptions(cleanup_tmp_directories=True, max_to_keep=given["keep"])) as root:
        assert unfinished(place) == []
        assert root.latest() is not None


def unfinished(place: Any) -> list[str]:
    """What saves and deletions that did not end have left."""
    start = len(place.path) + 1
    names = [item.path[start:-1] for item in place.storage.list(f"{place.path}/") if item.path.endswith("/")]
    if place.storage.capabilities.rename:
        return [name for name in names if ".orbax-checkpoint-tmp" in name and name[0].isdigit()]
    steps = set(Root(place, CheckpointManagerOptions(read_only=True)).steps())
    names = [name for step, name in step_directories(place, StepNames()).items() if step not in steps | {2024}]
    # a bucket has no empty directories; the disk that stands for one here has those of writes that had just begun
    return [name for name in names if any(place.storage.list(f"{place.path}/{name}/", deep=True))]
