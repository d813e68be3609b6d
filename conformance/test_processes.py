"""One checkpoint saved by several processes: those of ``jax.distributed``, and such as share nothing but a directory.

The scenarios of a JAX job are in ``jax_job``; its processes run on this computer, their coordinator on loopback.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import subprocess
import sys
from pathlib import Path

import orbax.checkpoint as ocp
import pytest
import tensorstore as ts

from conformance.meeting_job import COUNT, member_of_a_meeting
from ocdbt_py.checkpoint.restore import restore

ROOT = Path(__file__).parent.parent
SOURCE = (Path(__file__).parent / "jax_job.py").read_text()
SCENARIOS = [line.strip().rstrip(",") for line in SOURCE.split("SCENARIOS = (")[1].split("\n    )")[0].splitlines()[1:]]
KILLED = SCENARIOS[-1]
PATIENCE = 60.0
"""Seconds until a job must be done."""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture(scope="module", params=[2, 4])
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """What each process of a job says of each scenario."""
    count: int = request.param
    directory = tmp_path_factory.mktemp(f"job{count}")
    path = os.pathsep.join([str(ROOT), str(ROOT / "backends"), os.environ.get("PYTHONPATH", "")])
    environment = {
        **os.environ,
        "PYTHONPATH": path,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    port = free_port()
    processes = []
    for index in range(count):
        command = [sys.executable, "-m", "conformance.jax_job", str(index), str(count), str(port), str(directory)]
        with open(directory / f"log.{index}", "wb") as log:
            processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log))
    try:
        codes = [process.wait(PATIENCE) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    logs = "".join((directory / f"log.{index}").read_text()[-2000:] for index in range(count))
    assert codes == [0] * (count - 1) + [9], logs
    return [json.loads((directory / f"result.{index}.json").read_text()) for index in range(count)]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_job_of_jax(scenario: str, results: list[dict[str, str]]) -> None:
    last = len(results) - 1
    for index, result in enumerate(results):
        expected = "killed" if (scenario, index) == (KILLED, last) else ""
        assert result[scenario] == expected, f"process {index}: {result[scenario]}"


# --- without JAX

SPAWN = multiprocessing.get_context("spawn")


def together(directory: Path, run: int, faults: dict[int, str]) -> dict[int, str]:
    """What the processes say that survive."""
    queue, start = SPAWN.Queue(), SPAWN.Barrier(COUNT)
    members = [
        SPAWN.Process(
            target=member_of_a_meeting, args=(str(directory), index, run, faults.get(index, ""), start, queue)
        )
        for index in range(COUNT)
    ]
    for member in members:
        member.start()
    try:
        surviving = [index for index in range(COUNT) if faults.get(index) != "kill"]
        found = [queue.get(timeout=PATIENCE) for _ in surviving]
        for member in members:
            member.join(PATIENCE)
    finally:
        for member in members:
            member.kill()
            member.join()
    assert all(modules == [] for _, _, modules in found)
    return {index: said for index, said, _ in found}


def assert_saved(directory: Path, run: int) -> None:
    for step in range(3):
        found = restore(directory / f"{step}")
        assert (found["x"].tolist(), found["run"], found["mine"]) == ([run] * 5000, run, "0")
    names = {each.name for each in directory.iterdir()}
    assert names <= {"meeting", "0", "1", "2"}  # nothing unfinished is left


def test_processes_that_share_a_directory_save_together_and_outlive_failures(tmp_path: Path) -> None:
    assert together(tmp_path, 1, {}) == dict.fromkeys(range(COUNT), "")
    assert_saved(tmp_path, 1)
    assert {each.name for each in (tmp_path / "0").iterdir()} > {f"ocdbt.process_{index}" for index in range(COUNT)}
    assert list((tmp_path / "meeting").iterdir()) == []
    found = ocp.PyTreeCheckpointer().restore(tmp_path / "0")
    assert (found["x"].tolist(), found["run"], found["mine"]) == ([1] * 5000, 1, "0")
    base = {"driver": "file", "path": f"{tmp_path / '0'}/"}
    spec = {"driver": "zarr", "kvstore": {"driver": "ocdbt", "base": base, "path": "x/"}}
    assert ts.open(spec).result().read().result().tolist() == [1] * 5000

    said = together(tmp_path, 2, {2: "raise"})
    assert "'x'" in said[2]
    assert all(said[index].startswith("UnsupportedError: Process 2 of 4 failed: ") for index in (0, 1, 3)), said
    assert_saved(tmp_path, 1)

    said = together(tmp_path, 3, {3: "kill"})
    assert all(text.startswith("WaitTimeoutError: ") and "for process 3 of 4" in text for text in said.values()), said
    assert_saved(tmp_path, 1)

    # what the dead ones left in the directory confuses nobody
    assert together(tmp_path, 4, {}) == dict.fromkeys(range(COUNT), "")
    assert_saved(tmp_path, 4)
    assert list((tmp_path / "meeting").iterdir()) == []
