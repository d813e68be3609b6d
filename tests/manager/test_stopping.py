"""A signal asks for one more save."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from ocdbt_py.checkpoint.contents import Contents
from ocdbt_py.errors import InvalidArgumentError
from ocdbt_py.manager.manager import CheckpointManager
from ocdbt_py.manager.options import CheckpointManagerOptions
from ocdbt_py.manager.root import Root
from ocdbt_py.manager.stopping import SaveRequests, StopSignals, jax_reached_preemption
from ocdbt_py.policies import SpecificStepsPolicy
from ocdbt_py.storage.location import Place
from tests.manager.roots import Gate, contents_of, put


def test_a_request_is_met_by_the_next_step_whatever_the_policy_says(place: Place) -> None:
    root = Root(place, CheckpointManagerOptions(save_decision_policy=SpecificStepsPolicy([1])))
    put(root, 1)
    root.request_save()
    assert not root.should_save(1)
    assert (root.should_save(2), root.should_save(2), root.reached_preemption(2)) == (True, True, True)
    put(root, 2)
    assert root.reached_preemption(2)
    assert not root.reached_preemption(3)
    assert not root.should_save(3)


def test_the_end_is_told_only_when_the_request_was_met(place: Place) -> None:
    root = Root(place, CheckpointManagerOptions(save_interval_steps=10))
    put(root, 1)
    assert not root.save(2, contents_of(2))
    root.request_save()  # too late for this step
    assert (root.reached_preemption(2), root.should_save(2)) == (False, False)
    assert (root.reached_preemption(3), root.save(3, contents_of(3)), root.reached_preemption(3)) == (True, True, True)

    def interrupted() -> Contents:
        root.request_save()  # too late: what is saved may have been made before
        return contents_of(10)()

    assert not root.reached_preemption(4)
    assert root.save(10, interrupted)
    assert not root.reached_preemption(10)
    assert root.save(11, contents_of(11))
    assert root.reached_preemption(11)
    root.close()


def test_a_request_in_the_moment_between_decision_and_save_is_met_and_told(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Root(place)
    put(root, 1)
    wait = root.wait_until_finished

    def interrupted() -> None:
        root.request_save()
        wait()

    monkeypatch.setattr(root, "wait_until_finished", interrupted)
    assert root.save(2, contents_of(2))
    monkeypatch.undo()
    assert (root.reached_preemption(2), root.reached_preemption(3)) == (True, False)
    root.close()


def test_a_request_that_comes_while_something_is_saved_is_for_the_next_step(place: Place) -> None:
    root = Root(place, CheckpointManagerOptions(save_interval_steps=10))

    def interrupted() -> Contents:
        made = contents_of(10)()
        root.request_save()
        return made

    assert root.save(10, interrupted)
    assert root.save(11, contents_of(11))
    assert not root.save(12, contents_of(12))
    root.close()


@pytest.mark.parametrize("is_async", [True, False])
def test_a_request_that_a_failed_save_was_to_meet_is_still_open(is_async: bool, place: Place) -> None:
    gate = Gate()
    gate.is_open.set()
    gate.error = InterruptedError("the disk is gone")
    options = CheckpointManagerOptions(save_interval_steps=10, progress=gate, enable_async_checkpointing=is_async)
    root = Root(place, options)
    root.request_save()

    def save() -> None:
        root.save(3, contents_of(3))
        root.wait_until_finished()

    with pytest.raises(InterruptedError):
        save()
    gate.error = None
    put(root, 4)
    assert not root.should_save(5)


def test_requests_are_counted_between_any_two_steps_of_the_one_who_saves() -> None:
    requests = SaveRequests()
    requests.add()
    seen = requests.count
    requests.add()
    requests.serve(seen, 7)
    assert requests.is_pending
    requests.serve(requests.count, 8)
    assert (requests.is_pending, requests.served_at) == (False, 8)
    requests.take_back()
    assert requests.is_pending


def test_a_signal_requests_a_save_once_and_then_does_what_it_did_before(tmp_path: Path) -> None:
    told: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: told.append(number))
    try:
        options = CheckpointManagerOptions(save_interval_steps=10)
        with CheckpointManager(tmp_path, options) as manager, StopSignals(manager, signals=[signal.SIGUSR1]) as stop:
            for step in range(100):
                if step == 3:
                    signal.raise_signal(signal.SIGUSR1)
                manager.save(step, {"step": step})
                if manager.reached_preemption(step):
                    break
            assert stop.received
            signal.raise_signal(signal.SIGUSR1)
        assert (manager.all_steps(), told) == ([0, 3], [signal.SIGUSR1])
        with StopSignals(manager, signals=[signal.SIGUSR1]) as stop:
            assert not stop.received
        signal.raise_signal(signal.SIGUSR1)
        assert told == [signal.SIGUSR1] * 2
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_signals_are_for_the_main_thread() -> None:
    errors: list[Exception] = []

    def enter() -> None:
        try:
            StopSignals().__enter__()
        except InvalidArgumentError as error:
            errors.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert "main thread" in str(errors[0])


def test_the_documented_loop_saves_before_it_ends(tmp_path: Path) -> None:
    program = """
import sys
from ocdbt_py.manager.manager import CheckpointManager
from ocdbt_py.manager.options import CheckpointManagerOptions
from ocdbt_py.manager.stopping import StopSignals
options = CheckpointManagerOptions(save_interval_steps=1_000_000_000)
with CheckpointManager(sys.argv[1], options) as manager, StopSignals(manager):
    for step in range(1, 1_000_000_000):
        manager.save(step, {"step": step})
        if step == 1:
            print("training", flush=True)
        if manager.reached_preemption(step):
            break
print("saved", step)
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "training\n"
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    manager = CheckpointManager(tmp_path)
    step = int(said.split()[1])
    assert manager.all_steps() == [1, step]
    assert manager.restore() == {"step": step}


def test_without_jax_nobody_announces_the_end() -> None:
    assert not jax_reached_preemption(3)


def test_the_announcement_of_jax_is_heard_where_its_service_runs(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def sync_point(step: int) -> bool:
        if step == 5:
            raise RuntimeError("it is switched off")
        return step == 3

    distributed = SimpleNamespace(global_state=SimpleNamespace(client=object(), num_processes=1))
    service = SimpleNamespace(multihost_utils=SimpleNamespace(reached_preemption_sync_point=sync_point))
    for name, module in [
        ("jax", SimpleNamespace()),
        ("jax.experimental", service),
        ("jax._src.distributed", distributed),
    ]:
        monkeypatch.setitem(sys.modules, name, module)
    assert [jax_reached_preemption(step) for step in (2, 3, 5)] == [False, True, False]
    root = Root(place, CheckpointManagerOptions(save_interval_steps=10))
    put(root, 1)
    assert [(root.save(step, contents_of(step)), root.reached_preemption(step)) for step in (2, 3, 4)] == [
        (False, False),
        (True, True),
        (False, False),
    ]
    root.close()
