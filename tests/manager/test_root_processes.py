"""Several processes and one list of steps; here each process is a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ocdbt_py.checkpoint.contents import Contents, pytree_item
from ocdbt_py.checkpoint.file_processes import FileProcesses
from ocdbt_py.checkpoint.opening import resolve_checkpoint
from ocdbt_py.errors import OcdbtError, StorageError, StructureError
from ocdbt_py.manager.meeting import of_one_root
from ocdbt_py.manager.options import CheckpointManagerOptions
from ocdbt_py.manager.root import Root
from ocdbt_py.policies import LatestN
from ocdbt_py.storage.location import Place
from tests.manager.roots import contents_of, whole

COUNT = 3


@pytest.fixture
def processes(tmp_path: Path) -> list[FileProcesses]:
    return [FileProcesses(tmp_path / "meeting", index, COUNT) for index in range(COUNT)]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return resolve_checkpoint(tmp_path / "run", None, None)


def all_do(processes: list[FileProcesses], work: Callable[[FileProcesses], Any]) -> list[Any]:
    """What comes of it in each, an error included."""
    found: list[Any] = [None] * len(processes)

    def do(index: int) -> None:
        try:
            found[index] = work(processes[index])
        except BaseException as error:
            found[index] = error

    threads = [threading.Thread(target=do, args=(index,)) for index in range(len(processes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def options(**given: Any) -> CheckpointManagerOptions:
    return CheckpointManagerOptions(wait_timeout=60, **given)


def test_process_0_decides_and_deletes_and_all_have_one_list(processes: list[FileProcesses], place: Place) -> None:
    asked: list[int] = []

    class Mine:
        """Its answers would differ from process to process."""

        def __init__(self, index: int) -> None:
            self.index = index

        def should_save(self, step: Any, previous: Any, *, context: Any) -> bool:
            asked.append(self.index)
            return self.index == 0 and step.step != 2

        def should_preserve(self, checkpoints: Any, *, context: Any) -> Any:
            asked.append(self.index)
            return LatestN(2).should_preserve(checkpoints, context=context)

    def train(process: FileProcesses) -> Any:
        mine = Mine(process.index)
        how = options(save_decision_policy=mine, preservation_policy=mine)
        root = Root(place, how, processes=process, metadata={"run": 1})
        saved = [root.save(step, contents_of(step)) for step in range(5)]
        root.close()
        return saved, root.steps(), root.latest(), root.metadata

    expected = ([True, True, False, True, True], [3, 4], 4, {"run": 1})
    assert all_do(processes, train) == [expected] * COUNT
    assert set(asked) == {0}
    assert whole(place, 6) == {3, 4}

    def resume(process: FileProcesses) -> Any:
        root = Root(place, options(), processes=process)
        found = root.steps(), root.latest(), root.info(4).custom_metadata
        root.delete(3)
        root.reload()
        return found, root.steps()

    assert all_do(processes, resume) == [(([3, 4], 4, {"of": 4}), [4])] * COUNT


def test_a_request_that_one_process_gets_is_served_by_all(processes: list[FileProcesses], place: Place) -> None:
    def train(process: FileProcesses) -> Any:
        root = Root(place, options(save_interval_steps=10), processes=process)
        saved = [root.save(0, contents_of(0)), root.save(1, contents_of(1))]
        if process.index == 1:
            root.request_save()
        saved += [root.save(2, contents_of(2)), root.reached_preemption(2)]
        saved += [root.save(3, contents_of(3)), root.reached_preemption(3)]
        root.close()
        return saved

    assert all_do(processes, train) == [[True, False, True, True, False, False]] * COUNT
    assert whole(place, 6) == {0, 2}


def test_the_failure_of_one_is_told_to_all_and_nothing_is_deleted(processes: list[FileProcesses], place: Place) -> None:
    def train(process: FileProcesses) -> Any:
        root = Root(place, options(max_to_keep=1), processes=process)
        root.save(1, contents_of(1))
        told: list[type] = []

        def broken() -> Contents:
            if process.index == 1:
                raise KeyError("no data")
            return contents_of(2)()

        def differing() -> Contents:
            return Contents({"default": pytree_item({f"w{process.index}": np.zeros(3)})})

        for contents in (broken, differing):
            try:
                root.save(2, contents)
            except (OcdbtError, KeyError) as error:
                told.append(type(error))
        found = told, root.steps()
        root.save(3, contents_of(3))
        root.close()
        return found, root.steps()

    found = all_do(processes, train)
    assert found == [(([KeyError if i == 1 else StorageError, StructureError], [1]), [3]) for i in range(COUNT)]
    assert whole(place, 6) == {3}


def test_two_roots_save_steps_of_one_number_at_the_same_time(processes: list[FileProcesses], tmp_path: Path) -> None:
    places = [resolve_checkpoint(tmp_path / name / "run", None, None) for name in ("params", "average")]

    def train(process: FileProcesses) -> Any:
        roots = [Root(place, options(max_to_keep=1), processes=process) for place in places]
        for step in range(4):
            for root in roots:
                root.save(step, contents_of(step))
        for root in roots:
            root.close()
        return [root.steps() for root in roots]

    assert all_do(processes, train) == [[[3], [3]]] * COUNT
    assert [whole(place, 6) for place in places] == [{3}, {3}]


def test_a_step_that_somebody_else_has_saved_is_refused_in_all(processes: list[FileProcesses], place: Place) -> None:
    def train(process: FileProcesses) -> Any:
        root = Root(place, options(), processes=process)
        process.all_gather("listed", b"", 60)
        if process.index == 0:
            with Root(place) as other:
                other.save(5, contents_of(5))
        process.all_gather("saved", b"", 60)
        try:
            root.save(5, contents_of(5))
        except OcdbtError as error:
            return error.kind
        return None

    assert all_do(processes, train) == ["step-exists"] * COUNT


def test_the_roots_of_a_process_meet_under_names_of_their_own() -> None:
    class Two:
        index, count = 0, 2

        def __init__(self) -> None:
            self.names: list[str] = []

        def all_gather(self, name: str, data: bytes, timeout: float) -> list[bytes]:
            self.names.append(name)
            return [data, data]

    told = []
    for process in (Two(), Two()):
        for each in (of_one_root(process), of_one_root(process)):
            assert each.all_gather("save 7/write", b"x", 1) == [b"x", b"x"]
        told.append(process.names)
    assert told[0] == told[1]
    assert len(set(told[0])) == 2
