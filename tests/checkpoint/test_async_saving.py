"""Saves that go on in the background: what is written, what is told, and what a process that ends does about it."""

from __future__ import annotations

import gc
import inspect
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ocdbt_py
from ocdbt_py.backends import LocalStorage
from ocdbt_py.checkpoint import async_saving
from ocdbt_py.checkpoint.async_saving import AsyncSave, save_async
from ocdbt_py.checkpoint.restore import restore
from ocdbt_py.checkpoint.save import save
from ocdbt_py.errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidArgumentError,
    StorageError,
    UnsupportedError,
    WaitTimeoutError,
)
from ocdbt_py.storage.protocol import Writer

ROOT = Path(__file__).parents[2]


@contextmanager
def stopped(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """No data file is put on a local disk before the event is set; it is, at the end."""
    gate = threading.Event()
    create = LocalStorage.create

    def create_later(self: LocalStorage, path: str) -> Writer:
        gate.wait()
        return create(self, path)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "create", create_later)
        try:
            yield gate
        finally:
            gate.set()


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> None:
    def create(self: LocalStorage, path: str) -> Writer:
        raise StorageError("the disk is gone")

    monkeypatch.setattr(LocalStorage, "create", create)


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The errors that nobody asked for."""
    found: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: found.append(str(args.exc_value)))
    return found


def big(value: float) -> Any:
    return np.full(10_000, float(value))


def run(script: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    paths = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'backends')!r}]\n"
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", paths + script, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, **environment},
    )


def test_it_takes_the_arguments_of_save() -> None:
    assert inspect.signature(save_async).parameters == inspect.signature(save).parameters


def test_what_the_caller_does_to_the_data_does_not_change_what_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = bytearray(big(1).tobytes())
    array, fortran = big(1), np.asfortranarray(np.ones((100, 100)))
    owner = big(1)
    view = owner.view()
    view.flags.writeable = False
    metadata = {"note": ["as it was"]}
    tree: Any = {"a": array, "b": [np.frombuffer(memory)], "c": fortran, "d": view, "e": array[::2], "f": "x"}
    with stopped(monkeypatch) as gate:
        handle = save_async(tmp_path / "c", tree, custom_metadata=metadata)
        array[:] = fortran[:] = owner[:] = 2
        memory[:] = bytes(len(memory))
        tree["b"].append(3)
        tree["f"] = "y"
        metadata["note"].append("changed")
        assert not handle.done()
        gate.set()
        handle.result()
    assert handle.done()
    found = restore(tmp_path / "c")
    np.testing.assert_equal(
        found,
        {"a": big(1), "b": [big(1)], "c": np.ones((100, 100)), "d": big(1), "e": big(1)[::2], "f": "x"},
    )
    assert ocdbt_py.Checkpoint(tmp_path / "c").custom_metadata == {"note": ["as it was"]}


DONATING = """
import threading
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import ocdbt_py
from ocdbt_py.backends import LocalStorage
create, gate = LocalStorage.create, threading.Event()
def create_later(self, path):
    gate.wait()
    return create(self, path)
LocalStorage.create = create_later
on_all = NamedSharding(Mesh(np.array(jax.devices()), ("x",)), PartitionSpec("x"))
assert len(jax.devices()) == 4
sizes = {"small": 2048, "large": 1 << 20}
tree = {
    f"{fate}_{size}_{place}": jax.device_put(jnp.arange(float(sizes[size])), sharding)
    for size in sizes
    for place, sharding in (("here", None), ("sharded", on_all))
    for fate in ("donated", "deleted")
}
before = {name: np.array(array) for name, array in tree.items()}
step = jax.jit(lambda x: x * 2 + 1, donate_argnums=0)
handle = ocdbt_py.save_async(sys.argv[1], tree, compression=None)
after = {}
for name in before:
    state = tree.pop(name)
    if name.startswith("deleted"):
        state.delete()
        after[name] = jnp.full(len(before[name]), -1.0)  # in its memory, if that was given back
        continue
    for _ in range(3):  # so may the next steps be
        state = step(state)
    after[name] = state
jax.block_until_ready(after)
assert not handle.done()
gate.set()
handle.result()
for name, array in after.items():
    np.testing.assert_array_equal(array, before[name] * 8 + 7 if name.startswith("donated") else -1)
np.testing.assert_equal(ocdbt_py.restore(sys.argv[1]), before)
"""


def test_jax_arrays_may_be_donated_and_deleted_while_they_are_written(tmp_path: Path) -> None:
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    done = run(DONATING, tmp_path / "c", **flags)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_cannot_change_is_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import jax
    import jax.numpy as jnp

    array = jax.block_until_ready(jnp.ones(8 << 20, np.int8))  # type: ignore[no-untyped-call]
    with stopped(monkeypatch):
        for leaf, least, most in ((array, 0, 1 << 20), (np.ones(8 << 20, np.int8), 8 << 20, 9 << 20)):
            tracemalloc.start()
            try:
                handle = save_async(tmp_path / type(leaf).__name__, {"a": leaf}, compression=None)
                assert least <= tracemalloc.get_traced_memory()[0] <= most
            finally:
                tracemalloc.stop()
            assert not handle.done()


@pytest.mark.parametrize(
    ("tree", "options", "error"),
    [
        ({"a": object()}, {}, UnsupportedError),
        ({"a.b": 1, "a": {"b": 2}}, {}, InvalidArgumentError),
        ({"a": 1}, {"compression": "gzip"}, InvalidArgumentError),
        ({"a": 1}, {"custom_metadata": {"a": {1, 2}}}, InvalidArgumentError),
    ],
)
def test_what_cannot_be_saved_is_refused_before_it_returns(tree: Any, options: Any, error: Any, tmp_path: Path) -> None:
    with pytest.raises(error):
        save_async(tmp_path / "c", tree, **options)
    assert list(tmp_path.iterdir()) == []
    save_async(tmp_path / "c", {"a": 1}).result()  # the place is free again


def test_a_place_that_is_taken_is_refused_before_it_returns(tmp_path: Path) -> None:
    save(tmp_path / "c", {"a": 1})
    with pytest.raises(AlreadyExistsError):
        save_async(tmp_path / "c", {"a": 2})
    save_async(tmp_path / "c", {"a": 3}, overwrite=True).result()
    assert restore(tmp_path / "c") == {"a": 3}


def test_two_saves_to_one_place_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with stopped(monkeypatch) as gate:
        first = save_async(tmp_path / "c", {"a": big(1)})
        with pytest.raises(ConflictError, match="under way"):
            save_async(f"file://{tmp_path}/c", {"a": big(2)}, overwrite=True, durable=False)
        other = save_async(tmp_path / "d", {"a": big(3)})
        gate.set()
        first.result()
        other.result()
    assert restore(tmp_path / "c")["a"][0] == 1
    assert restore(tmp_path / "d")["a"][0] == 3
    for value in range(20):
        save_async(tmp_path / "c", {"a": value}, overwrite=True, durable=False).result()  # free as soon as it ends


def test_a_wait_ends_after_its_time_and_the_save_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with stopped(monkeypatch) as gate:
        handle = save_async(tmp_path / "c", {"a": big(1)})
        with pytest.raises(WaitTimeoutError, match="goes on"):
            handle.result(timeout=0.01)
        assert "under way" in repr(handle)
        gate.set()
        handle.result(timeout=60)
    assert handle.result() is None  # type: ignore[func-returns-value]
    assert restore(tmp_path / "c")["a"][0] == 1


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="signals to a thread")
def test_an_interrupted_wait_leaves_the_save_going(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with stopped(monkeypatch) as gate:
        handle = save_async(tmp_path / "c", {"a": big(1)})
        timer = threading.Timer(0.05, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            handle.result()
        timer.join()
        assert not handle.done()
        gate.set()
        handle.result()
    assert restore(tmp_path / "c")["a"][0] == 1


@pytest.mark.usefixtures("failing")
def test_an_error_is_raised_by_result_and_not_reported_again(tmp_path: Path, reported: list[str]) -> None:
    handle = save_async(tmp_path / "c", {"a": big(1)})
    with pytest.raises(StorageError, match="the disk is gone"):
        handle.result()
    with pytest.raises(StorageError, match="the disk is gone"):
        handle.result()  # never says that a checkpoint is there that is not
    del handle
    gc.collect()
    assert reported == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("failing")
def test_an_error_that_nobody_can_ask_for_any_more_is_reported_once(tmp_path: Path, reported: list[str]) -> None:
    handle = save_async(tmp_path / "c", {"a": big(1)})
    join_saves()
    assert handle.done()
    assert reported == []  # it may still be asked for
    del handle
    gc.collect()
    assert reported == ["the disk is gone"]
    save_async(tmp_path / "d", {"a": big(1)})  # nobody keeps the handle
    join_saves()
    gc.collect()
    assert reported == ["the disk is gone"] * 2


def join_saves() -> None:
    while async_saving._under_way:  # its thread may be about to start
        time.sleep(0.001)
    for thread in threading.enumerate():
        if thread.name == "ocdbt-save":
            thread.join()


@pytest.mark.usefixtures("failing", "reported")
def test_an_error_that_is_kept_does_not_keep_the_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import weakref

    copies = []
    copy = np.array

    def noted(*args: Any, **kwargs: Any) -> Any:
        made = copy(*args, **kwargs)
        copies.append(weakref.ref(made))
        return made

    array = big(1)
    monkeypatch.setattr(np, "array", noted)
    handle = save_async(tmp_path / "c", {"a": array})
    join_saves()
    assert handle.done()
    gc.collect()
    assert copies
    assert [copy() for copy in copies] == [None] * len(copies)


def test_where_no_thread_can_be_had_the_caller_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(async_saving, "start_new_thread", start)
    handle = save_async(tmp_path / "c", {"a": big(1)})
    assert handle.done()
    handle.result()
    assert restore(tmp_path / "c")["a"][0] == 1


SLOW = """
import os, threading, time
import numpy as np
import ocdbt_py
from ocdbt_py.backends import LocalStorage
put = LocalStorage.put
def slowly(self, path, buffers):
    if "/d/" in path:
        time.sleep(0.3)
        {fault}
    put(self, path, buffers)
LocalStorage.put = slowly
"""


def test_a_script_that_ends_right_after_the_call_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    script = SLOW.format(fault="") + "ocdbt_py.save_async(sys.argv[1], {'a': np.full(10_000, 7.0)})"
    done = run(script, tmp_path / "c")
    assert (done.returncode, done.stderr) == (0, "")
    assert restore(tmp_path / "c")["a"].tolist() == [7.0] * 10_000
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_pools_are_open_until_the_last_save_has_ended(tmp_path: Path) -> None:
    """Clients of network storages look up hosts in one."""
    fault = "concurrent.futures.ThreadPoolExecutor(1).submit(print, 'looked up').result()"
    script = SLOW.format(fault=fault) + "ocdbt_py.save_async(sys.argv[1], {'a': np.full(10_000, 7.0)})"
    done = run("import concurrent.futures\n" + script, tmp_path / "c")
    assert (done.returncode, done.stdout, done.stderr) == (0, "looked up\n", "")
    assert restore(tmp_path / "c")["a"][0] == 7


def test_a_save_begun_at_exit_is_finished(tmp_path: Path) -> None:
    script = SLOW.format(fault="") + (
        "import atexit\n"
        "import ocdbt_py.checkpoint.async_saving\n"
        "atexit.register(lambda: ocdbt_py.save_async(sys.argv[1], {'a': np.full(10_000, 7.0)}))\n"
    )
    done = run(script, tmp_path / "c")
    assert (done.returncode, done.stderr) == (0, "")
    assert restore(tmp_path / "c")["a"][0] == 7


@pytest.mark.parametrize("keep", ["handle = ", ""])
def test_an_error_that_nobody_asked_for_is_reported_at_exit_once(keep: str, tmp_path: Path) -> None:
    script = SLOW.format(fault="raise OSError('no such disk')") + (
        keep + "ocdbt_py.save_async(sys.argv[1], {'a': np.full(10_000, 7.0)})"
    )
    done = run(script, tmp_path / "c")
    assert done.stderr.count("OSError: no such disk") == 1
    assert "ocdbt-save" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_fork_in_between_does_nothing_to_the_save(tmp_path: Path) -> None:
    script = (
        SLOW.format(fault="")
        + """
handle = ocdbt_py.save_async(sys.argv[1] + "/c", {"a": np.full(10_000, 7.0)})
if os.fork() == 0:
    assert handle.done()
    try:
        handle.result()
    except ocdbt_py.UnsupportedError as error:
        assert "goes on in the process that began it" in str(error)
        ocdbt_py.save_async(sys.argv[1] + "/of-the-child", {"a": np.full(10_000, 8.0)})
        sys.exit()
    os._exit(1)
assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
handle.result()
"""
    )
    done = run(script, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert restore(tmp_path / "c")["a"][0] == 7
    assert restore(tmp_path / "of-the-child")["a"][0] == 8
    assert {path.name for path in tmp_path.iterdir()} == {"c", "of-the-child"}


def test_the_handle_is_public() -> None:
    assert ocdbt_py.AsyncSave is AsyncSave
