"""The v1 API without JAX: free functions, contexts, handlers, deletion."""

from __future__ import annotations

import json
import threading
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ocdbt_py.errors import InvalidTypeError, UnsupportedError, WaitTimeoutError
from ocdbt_py.interop.orbax import v1
from ocdbt_py.interop.orbax.v1.errors import (
    DeletionInProgressError,
    DeletionRecoveryError,
    FrozenContextError,
    InvalidLayoutError,
    NoEntryError,
)
from ocdbt_py.interop.orbax.v1.registration import RegisteredTwiceError
from ocdbt_py.interop.orbax.v1.responses import Response


def tree() -> dict[str, Any]:
    return {"w": np.arange(6.0).reshape(2, 3), "n": 3, "rate": 0.5, "on": True, "name": "hi", "none": None, "empty": {}}


def same(found: Any, wanted: Any) -> bool:
    np.testing.assert_equal(found, wanted)
    return True


# --- saving and loading


def test_a_tree_lies_under_the_name_state_as_zarr_v3_beside_the_marker(tmp_path: Path) -> None:
    v1.save(tmp_path / "c", tree(), custom_metadata={"run": 7})
    assert {file.name for file in (tmp_path / "c").iterdir()} == {
        "_CHECKPOINT_METADATA",
        "commit_success.txt",
        "orbax.checkpoint",
        "state",
    }
    assert json.loads((tmp_path / "c/state/_METADATA").read_text())["use_zarr3"] is True
    record = json.loads((tmp_path / "c/_CHECKPOINT_METADATA").read_text())
    assert record["item_handlers"] == {
        "state": "orbax.checkpoint.experimental.v1._src.handlers.pytree_handler.PyTreeHandler"
    }
    assert record["custom_metadata"] == {"run": 7}
    assert same(v1.load(tmp_path / "c"), tree())


@pytest.mark.parametrize("name", ["v1.AUTO", "params"])
def test_a_tree_of_another_name_is_found(tmp_path: Path, name: str) -> None:
    v1.save(tmp_path / "c", tree(), checkpointable_name="params")
    assert same(v1.load(tmp_path / "c", checkpointable_name="AUTO" if name == "v1.AUTO" else name), tree())


def test_any_url_will_do() -> None:
    v1.save("memory://v1-urls/c", tree())
    assert same(v1.load("memory://v1-urls/c"), tree())
    assert v1.is_orbax_checkpoint("memory://v1-urls/c")


def test_what_is_there_is_replaced_only_when_asked(tmp_path: Path) -> None:
    v1.save(tmp_path / "c", {"a": 1})
    with pytest.raises(ValueError, match="exists already") as caught:
        v1.save(tmp_path / "c", {"a": 2})
    assert isinstance(caught.value, FileExistsError)
    v1.save(tmp_path / "c", {"b": 3}, overwrite=True)
    assert v1.load(tmp_path / "c") == {"b": 3}


@pytest.mark.parametrize("state", [{}, None, [], {"a": object()}, {"a": {1, 2}}])
def test_a_tree_that_cannot_be_saved_is_a_value_error_and_writes_nothing(tmp_path: Path, state: Any) -> None:
    with pytest.raises(ValueError, match=r"empty|None|of type"):
        v1.save(tmp_path / "c", state)
    assert not (tmp_path / "c").exists()


def test_an_abstract_tree_says_how_leaves_come_back(tmp_path: Path) -> None:
    v1.save(tmp_path / "c", {"w": np.arange(3), "x": np.ones(2), "i": 3, "f": 1.5, "s": "hi", "skip": np.ones(2)})
    found = v1.load(
        tmp_path / "c", {"w": np.ndarray, "x": np.zeros(2, np.float16), "i": float, "f": 0, "s": str, "skip": ...}
    )
    assert same(found, {"w": np.arange(3), "x": np.ones(2, np.float16), "i": 3.0, "f": 1, "s": "hi", "skip": ...})
    assert found["x"].dtype == np.float16
    assert (type(found["i"]), type(found["f"])) == (float, int)


def test_metadata_describes_a_tree_and_asks_for_it(tmp_path: Path) -> None:
    v1.save(tmp_path / "c", tree(), custom_metadata={"run": 7})
    metadata = v1.metadata(tmp_path / "c")
    assert metadata.metadata["w"].shape == (2, 3)
    assert metadata.metadata["w"].dtype == np.float64
    assert (metadata.metadata["n"], metadata.metadata["rate"], metadata.metadata["name"]) == (0, 0.0, "string")
    assert metadata.custom_metadata == {"run": 7}
    assert metadata.init_timestamp is not None
    assert metadata.commit_timestamp is not None
    assert metadata.init_timestamp <= metadata.commit_timestamp
    assert same(v1.load(tmp_path / "c", metadata), tree())


def test_a_part_of_a_tree_is_loaded_where_the_context_allows_it(tmp_path: Path) -> None:
    v1.save(tmp_path / "c", tree())
    with pytest.raises(ValueError, match="not in the target"):
        v1.load(tmp_path / "c", {"n": 0})
    context = v1.Context()
    context.pytree.loading.partial_load = True
    with context:
        assert v1.load(tmp_path / "c", {"n": 0}) == {"n": 3}


def test_several_objects_are_saved_and_loaded_by_name(tmp_path: Path) -> None:
    v1.save_checkpointables(tmp_path / "c", {"params": tree(), "config": {"text": "{}"}})
    assert same(v1.load_checkpointables(tmp_path / "c"), {"params": tree(), "config": {"text": "{}"}})
    assert v1.load_checkpointables(tmp_path / "c", {"config": None}) == {"config": {"text": "{}"}}
    assert v1.checkpointables_metadata(tmp_path / "c").metadata.keys() == {"params", "config"}
    with pytest.raises(KeyError, match="no 'other'; it has config, params"):
        v1.load_checkpointables(tmp_path / "c", {"other": None})


def test_an_object_that_is_not_as_asked_is_a_key_error_with_the_reason(tmp_path: Path) -> None:
    v1.save(tmp_path / "c", {"a": 1})
    with pytest.raises(NoEntryError, match="'state'") as caught:
        v1.load_checkpointables(tmp_path / "c", {"state": {"b": 1}})
    assert isinstance(caught.value, KeyError)
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize(
    "names", [{}, {"": {"a": 1}}, {"metrics": {"a": 1}}, {"AUTO": {"a": 1}}, [("a", 1)], {"a": None}]
)
def test_names_that_cannot_be_are_refused(tmp_path: Path, names: Any) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        v1.save_checkpointables(tmp_path / "c", names)
    assert not (tmp_path / "c").exists()


def test_what_is_no_checkpoint_is_said(tmp_path: Path) -> None:
    v1.save(tmp_path / "root/1", {"a": 1})
    for path, reason in (
        (tmp_path / "nothing", "nothing at"),
        (tmp_path / "root", "holds several"),
        (tmp_path / "root/1/state", "one item of the checkpoint"),
    ):
        assert not v1.is_orbax_checkpoint(path)
        with pytest.raises(InvalidLayoutError, match=reason):
            v1.load(path)
    for name in ("other", None):
        with pytest.raises(InvalidLayoutError, match="state"):
            v1.load(tmp_path / "root/1", checkpointable_name=name)


def test_loading_in_the_background_gives_what_loading_does(tmp_path: Path) -> None:
    v1.save_async(tmp_path / "c", {"a": 1}).result()
    assert v1.load_async(tmp_path / "c").result() == {"a": 1}
    assert v1.load_checkpointables_async(tmp_path / "c").result() == {"state": {"a": 1}}


# --- responses


def test_a_response_waits_no_longer_than_asked_and_calls_back_once_it_has_a_result() -> None:
    go, called = threading.Event(), threading.Event()
    seen: list[int] = []

    def work() -> int:
        go.wait()
        return 7

    response = Response(work, "work")
    response.on_complete(lambda result: (seen.append(result), called.set()))  # type: ignore[func-returns-value, arg-type]
    with pytest.raises(WaitTimeoutError):
        response.result(timeout=0)
    assert not response.done()
    go.set()
    assert response.result() == 7
    called.wait()
    response.on_complete(seen.append)
    assert seen == [7, 7]


def test_a_response_that_failed_raises_and_calls_nobody() -> None:
    def work() -> int:
        raise InvalidTypeError("no")

    response = Response(work, "work")
    with pytest.raises(InvalidTypeError):
        response.result()
    seen: list[int] = []
    response.on_complete(seen.append)
    assert seen == []


def test_a_save_in_the_background_calls_back_when_the_checkpoint_is_there(tmp_path: Path) -> None:
    called = threading.Event()
    response = v1.save_async(tmp_path / "c", {"a": 1})
    response.on_complete(lambda _: called.set())
    called.wait()
    assert v1.load(tmp_path / "c") == {"a": 1}


# --- contexts


def test_options_say_how_a_tree_is_stored(tmp_path: Path) -> None:
    context = v1.Context()
    context.array.saving.use_zarr3 = False
    context.array.saving.storage_options.dtype = np.float32
    with context:
        v1.save(tmp_path / "c", {"w": np.ones(2), "s": "text"})
    assert json.loads((tmp_path / "c/state/_METADATA").read_text())["use_zarr3"] is False
    found = v1.load(tmp_path / "c")
    assert found["w"].dtype == np.float32
    assert found["s"] == "text"


def test_a_context_in_use_does_not_change() -> None:
    context = v1.Context()
    with context:
        with pytest.raises(FrozenContextError):
            context.array.saving.use_zarr3 = False
        with pytest.raises(FrozenContextError):
            context.array.saving.storage_options.chunk_byte_size = 7
        with pytest.raises(RuntimeError):
            context.checkpoint_layout = "auto"
        v1.Context(context).array.saving.use_zarr3 = False
    context.array.saving.use_zarr3 = False


def test_a_context_of_another_begins_with_its_options_and_is_its_own() -> None:
    first = v1.Context()
    first.pytree.loading.partial_load = True
    second = v1.Context(first)
    assert second.pytree.loading.partial_load
    second.pytree.loading.partial_load = False
    assert first.pytree.loading.partial_load
    assert first.pytree_options is first.pytree
    assert first.async_options is first.asynchronous


def test_contexts_nest_and_another_thread_begins_with_the_defaults(tmp_path: Path) -> None:
    outer, inner = v1.Context(), v1.Context()
    outer.array.saving.use_zarr3 = False
    inner.array.saving.use_zarr3 = True
    with outer:
        with inner:
            v1.save(tmp_path / "inner", {"w": np.ones(2)})
        v1.save(tmp_path / "outer", {"w": np.ones(2)})
        thread = threading.Thread(target=v1.save, args=(tmp_path / "thread", {"w": np.ones(2)}))
        thread.start()
        thread.join()
    formats = {
        name: json.loads((tmp_path / name / "state/_METADATA").read_text())["use_zarr3"]
        for name in ("inner", "outer", "thread")
    }
    assert formats == {"inner": True, "outer": False, "thread": True}


@pytest.mark.parametrize(
    ("namespace", "option", "value"),
    [
        ("array.saving", "use_ocdbt", False),
        ("multiprocessing", "primary_host", None),
        ("file", "path_permission_mode", 0o700),
        ("array.saving", "enable_write_sharding_file", False),
    ],
)
def test_an_option_that_cannot_be_had_is_refused(tmp_path: Path, namespace: str, option: str, value: Any) -> None:
    context = v1.Context()
    options: Any = context
    for name in namespace.split("."):
        options = getattr(options, name)
    setattr(options, option, value)
    with context, pytest.raises(UnsupportedError, match=option):
        v1.save(tmp_path / "c", {"a": 1})
    assert not (tmp_path / "c").exists()


def test_no_option_is_made_up() -> None:
    with pytest.raises(AttributeError, match="arrays"):
        _ = v1.Context().arrays
    with pytest.raises(AttributeError, match="use_zarr3"):
        v1.Context().array.saving.use_zarr = False


def test_an_option_of_loading_that_cannot_be_had_is_refused(tmp_path: Path) -> None:
    v1.save(tmp_path / "c", {"a": 1})
    context = v1.Context()
    context.array.loading.raise_array_data_missing_error = False
    with context, pytest.raises(UnsupportedError, match="raise_array_data_missing_error"):
        v1.load(tmp_path / "c")


# --- handlers


class Counter:
    """Saves itself, and loads into itself."""

    def __init__(self, count: int) -> None:
        self.count = count

    async def save(self, directory: Any) -> Awaitable[None]:
        count = self.count

        async def write() -> None:
            path = await directory.await_creation()
            (path / "below").mkdir()
            (path / "below" / "count").write_text(str(count))

        return write()

    async def load(self, directory: Any) -> Awaitable[None]:
        async def read() -> None:
            self.count = int((directory / "below" / "count").read_text())

        return read()


@pytest.mark.parametrize("url", ["c", "memory://v1-stateful/c"])
def test_an_object_that_saves_itself_loads_into_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.chdir(tmp_path)
    v1.save_checkpointables(url, {"counter": Counter(7), "tree": {"a": 1}}, overwrite=True)
    counter = Counter(0)
    assert v1.load_checkpointables(url, {"counter": counter})["counter"] is counter
    assert counter.count == 7
    assert v1.checkpointables_metadata(url).metadata["counter"] is None
    with pytest.raises(NoEntryError, match="loads into itself"):
        v1.load_checkpointables(url, {"counter": None})


class Reversed(v1.CheckpointableHandler):
    """Stores a str backwards."""

    async def save(self, directory: Any, checkpointable: str) -> Awaitable[None]:
        async def write() -> None:
            ((await directory.await_creation()) / "text").write_text(checkpointable[::-1])

        return write()

    async def load(self, directory: Any, abstract_checkpointable: Any = None) -> Awaitable[str]:
        async def read() -> str:
            return str((directory / "text").read_text()[::-1])

        return read()

    async def metadata(self, directory: Any) -> str:
        return "a text"

    def is_handleable(self, checkpointable: Any) -> bool:
        return isinstance(checkpointable, str)

    def is_abstract_handleable(self, abstract_checkpointable: Any) -> bool | None:
        return isinstance(abstract_checkpointable, str)


def test_a_handler_of_a_context_saves_what_it_can(tmp_path: Path) -> None:
    context = v1.Context()
    context.checkpointables.registry = v1.handlers.local_registry().add(Reversed)
    with context:
        v1.save_checkpointables(tmp_path / "c", {"text": "abc", "tree": {"a": "abc"}})
        assert (tmp_path / "c/text/text").read_text() == "cba"
        assert v1.load_checkpointables(tmp_path / "c") == {"text": "abc", "tree": {"a": "abc"}}
        assert v1.checkpointables_metadata(tmp_path / "c").metadata["text"] == "a text"
    handlers = json.loads((tmp_path / "c/_CHECKPOINT_METADATA").read_text())["item_handlers"]
    assert handlers["text"].endswith("test_orbax_v1.Reversed")


def test_a_handler_of_one_name_is_taken_for_that_name(tmp_path: Path) -> None:
    registry = v1.handlers.local_registry().add(v1.handlers.JsonHandler, checkpointable_name="config")
    with pytest.raises(RegisteredTwiceError):
        registry.add(Reversed, checkpointable_name="config")
    context = v1.Context()
    context.checkpointables.registry = registry
    with context:
        v1.save_checkpointables(tmp_path / "c", {"config": {"layers": [1, 2]}, "tree": {"layers": [1, 2]}})
    assert json.loads((tmp_path / "c/config/data.json").read_text()) == {"layers": [1, 2]}
    assert v1.load_checkpointables(tmp_path / "c") == {"config": {"layers": [1, 2]}, "tree": {"layers": [1, 2]}}


def test_an_object_that_nobody_can_save_is_a_key_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="No handler can save 'thing'"):
        v1.save_checkpointables(tmp_path / "c", {"thing": object()})


def test_the_registry_that_contexts_begin_with_is_not_changed_through_them() -> None:
    with pytest.raises(UnsupportedError, match="local_registry"):
        v1.Context().checkpointables.registry.add(Reversed)


def test_our_handlers_write_and_read_directories_for_those_who_call_them(tmp_path: Path) -> None:
    import asyncio

    async def both(handler: Any, value: Any) -> Any:
        directory = tmp_path / type(handler).__name__
        await (await handler.save(v1.path.PathAwaitingCreation(directory), value))
        return await (await handler.load(directory)), await handler.metadata(directory)

    assert asyncio.run(both(v1.handlers.JsonHandler(), {"a": [1]})) == ({"a": [1]}, None)
    found, described = asyncio.run(both(v1.handlers.PyTreeHandler(), {"a": np.ones(2), "b": 1}))
    assert same(found, {"a": np.ones(2), "b": 1})
    assert described["a"].shape == (2,)


# --- deleting


def test_a_checkpoint_is_deleted_and_nothing_else_is(tmp_path: Path) -> None:
    v1.save(tmp_path / "root/1", {"a": 1})
    with pytest.raises(InvalidLayoutError, match="left alone"):
        v1.delete(tmp_path / "root")
    with pytest.raises(InvalidLayoutError, match="one item"):
        v1.delete(tmp_path / "root/1/state")
    assert v1.delete(tmp_path / "root/1")
    assert list((tmp_path / "root").iterdir()) == []
    with pytest.raises(FileNotFoundError):
        v1.delete(tmp_path / "root/1")
    assert not v1.delete(tmp_path / "root/1", missing_ok=True)


@pytest.mark.parametrize("url", ["c", "memory://v1-deletion/c"])
def test_an_item_is_deleted_unless_it_is_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.chdir(tmp_path)
    v1.save_checkpointables(url, {"a": {"x": 1}, "b": {"x": 2}}, overwrite=True)
    assert v1.delete_async(url, checkpointable_name="a").result()
    assert v1.load_checkpointables(url) == {"b": {"x": 2}}
    with pytest.raises(FileNotFoundError, match="no 'a'"):
        v1.delete(url, checkpointable_name="a")
    assert not v1.delete(url, checkpointable_name="a", missing_ok=True)
    with pytest.raises(ValueError, match="all there is"):
        v1.delete(url, checkpointable_name="b")


def test_a_deletion_that_was_interrupted_hides_the_item_and_is_ended_by_the_next(tmp_path: Path) -> None:
    v1.save_checkpointables(tmp_path / "c", {"a": {"x": 1}, "b": {"x": 2}, "d": {"x": 3}})
    original = json.loads((tmp_path / "c/_CHECKPOINT_METADATA").read_text())
    handlers = {name: typestr for name, typestr in original["item_handlers"].items() if name != "a"}
    record = {
        "operation_id": "0" * 32,
        "checkpointable_name": "a",
        "destination": None,
        "original_metadata": original,
        "updated_metadata": {**original, "item_handlers": handlers},
    }
    (tmp_path / "c/_CHECKPOINT_DELETION").write_text(json.dumps(record))
    assert v1.load_checkpointables(tmp_path / "c").keys() == {"b", "d"}
    for load in (
        lambda: v1.load_checkpointables(tmp_path / "c", {"a": None}),
        lambda: v1.load(tmp_path / "c", checkpointable_name="a"),
    ):
        with pytest.raises(DeletionInProgressError):
            load()
    with pytest.raises(DeletionRecoveryError):
        v1.delete(tmp_path / "c", checkpointable_name="b")
    assert v1.delete(tmp_path / "c", checkpointable_name="a")
    assert {file.name for file in (tmp_path / "c").iterdir()} >= {"b", "d", "orbax.checkpoint"}
    assert not (tmp_path / "c/a").exists()
    assert not (tmp_path / "c/_CHECKPOINT_DELETION").exists()


# --- trees and names


def test_trees_are_merged() -> None:
    assert v1.tree.merge({"a": {"x": 1}}, {"a": {"y": 2}, "b": [3]}) == {"a": {"x": 1, "y": 2}, "b": [3]}
    assert v1.tree.merge({"a": 1, "b": [1, 2]}, {"a": 3, "b": [None, 4]}, overwrite=True) == {"a": 3, "b": [1, 4]}
    assert v1.tree.merge() == {}
    for other in ({"a": 2}, {"a": {"x": 1}}):
        with pytest.raises(ValueError, match=r"\ba\b"):
            v1.tree.merge({"a": 1}, other)


def test_a_name_that_is_not_there_is_an_error_that_says_so() -> None:
    with pytest.raises(AttributeError, match="the nearest it has is 'save_pytree'"):
        _ = v1.save_pytre
    assert set(v1.__all__) <= set(dir(v1))
