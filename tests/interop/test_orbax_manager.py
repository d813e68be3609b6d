"""Orbax's manager, checkpointers and handlers on our engine. What they share with Orbax's is judged in conformance."""

from __future__ import annotations

import logging
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ocdbt_py
import ocdbt_py.interop.orbax as ocp
from ocdbt_py.errors import InvalidArgumentError, OcdbtError, UnsupportedError
from ocdbt_py.storage.location import Place
from ocdbt_py.testing.faulty import FaultyStorage
from ocdbt_py_backends.memory import MemoryStorage

STATE = {"w": np.arange(6.0).reshape(2, 3), "step": 3}


@pytest.fixture
def manager(tmp_path: Path) -> Any:
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        yield manager


@dataclass
class Words(ocp.args.CheckpointArgs):  # type: ignore[misc]
    words: Any = None


class WordsHandler(ocp.CheckpointHandler):  # type: ignore[misc]
    """A handler of a user's: one word to a line."""

    def save(self, directory: Any, args: Any = None) -> None:
        (directory / "lines").mkdir()
        (directory / "lines" / "words.txt").write_text("\n".join(args.words))

    def restore(self, directory: Any, args: Any = None) -> Any:
        return (directory / "lines" / "words.txt").read_text().split("\n")

    def finalize(self, directory: Any) -> None:
        (directory / "count").write_text(str(len(self.restore(directory))))

    def metadata(self, directory: Any) -> Any:
        return int((directory / "count").read_text())


class LaterWordsHandler(WordsHandler, ocp.AsyncCheckpointHandler):  # type: ignore[misc]
    """One that writes when its futures are asked."""

    async def async_save(self, directory: Any, args: Any = None) -> Any:
        handler = self

        class Later:
            def result(self) -> None:
                WordsHandler.save(handler, directory, args)

        return [Later()]


@dataclass
class LaterWords(ocp.args.CheckpointArgs):  # type: ignore[misc]
    words: Any = None


ocp.args.register_with_handler(WordsHandler, for_save=True, for_restore=True)(Words)
ocp.args.register_with_handler(LaterWordsHandler, for_save=True, for_restore=True)(LaterWords)


@pytest.mark.parametrize("args_cls", [Words, LaterWords])
@pytest.mark.parametrize("url", ["{tmp_path}/run", "memory://{tmp_path}/run"])
def test_a_handler_of_ones_own_writes_and_reads_a_directory_on_any_storage(
    url: str, args_cls: Any, tmp_path: Path
) -> None:
    url = url.format(tmp_path=tmp_path)
    with ocp.CheckpointManager(url) as manager:
        manager.save(1, args=ocp.args.Composite(state=ocp.args.StandardSave(STATE), text=args_cls(["a", "b"])))
    with ocp.CheckpointManager(url) as manager:
        found = manager.restore(1)
        assert found.text == ["a", "b"]
        assert manager.metadata(1).item_metadata.text == 2
    np.testing.assert_array_equal(found.state["w"], STATE["w"])


def test_a_run_in_a_bucket_is_published_by_markers(tmp_path: Path) -> None:
    memory = MemoryStorage()
    bucket = FaultyStorage(memory, capabilities=replace(memory.capabilities, rename=False, hold=False, map=False))
    place = Place(bucket, str(tmp_path), f"bucket:/{tmp_path}")
    options = ocp.CheckpointManagerOptions(max_to_keep=2, best_fn=lambda metrics: metrics["loss"])
    for step in range(4):
        with ocp.CheckpointManager(place, options=options) as manager:
            args = ocp.args.Composite(state=ocp.args.StandardSave(STATE), text=Words(["a", str(step)]))
            assert manager.save(step, args=args, metrics={"loss": -step})
    bucket.write(f"{tmp_path}/9/_CHECKPOINT_METADATA", [b"{}"])
    with ocp.CheckpointManager(place, options=options) as manager:
        assert (manager.all_steps(), manager.best_step()) == ([0, 1], 0)
        found = manager.restore(1)
        assert (found.state["step"], found.text, found.metrics) == (3, ["a", "1"], {"loss": -1})
        with pytest.raises(ValueError, match="never finished"):
            manager.restore(9)


def test_a_handler_that_fails_fails_the_save_and_leaves_nothing(manager: Any) -> None:
    with pytest.raises(TypeError):
        manager.save(1, args=ocp.args.Composite(text=Words([1, 2])))
    assert manager.all_steps() == []
    assert list(manager.directory.iterdir()) == []


def test_a_handler_without_registered_arguments_gets_what_was_given(tmp_path: Path) -> None:
    class Plain:
        def save(self, directory: Any, item: Any, end: str = "") -> None:
            (directory / "text").write_text(item + end)

        def restore(self, directory: Any, item: Any = None, begin: str = "") -> str:
            return f"{begin}{(directory / 'text').read_text()}"

    with ocp.CheckpointManager(tmp_path, {"note": ocp.Checkpointer(Plain())}) as manager:
        manager.save(0, {"note": "hello"}, save_kwargs={"note": {"end": "!"}})
        manager.wait_until_finished()
        assert manager.restore(0, restore_kwargs={"note": {"begin": "> "}}).note == "> hello!"


def test_a_name_that_is_not_here_says_so_and_names_the_nearest() -> None:
    with pytest.raises(AttributeError, match="'StandardCheckpointer'"):
        _ = ocp.StandardCheckpontr
    with pytest.raises(AttributeError, match="not all"):
        _ = ocp.pathways


def test_a_run_with_numpy_loads_neither_jax_nor_orbax_nor_tensorstore(tmp_path: Path) -> None:
    program = f"""
import sys
import numpy as np
import ocdbt_py.interop.orbax as ocp
with ocp.CheckpointManager({str(tmp_path)!r}, options=ocp.CheckpointManagerOptions(max_to_keep=2)) as manager:
    for step in range(4):
        manager.save(step, args=ocp.args.StandardSave({{"w": np.arange(3), "step": step}}))
    manager.wait_until_finished()
    assert manager.all_steps() == [2, 3]
    assert manager.restore(None, args=ocp.args.StandardRestore({{"w": np.zeros(3), "step": 0}}))["step"] == 3
    assert manager.restore(2)["step"] == 2
    assert manager.item_metadata(2)["w"].shape == (3,)
print([name for name in ("jax", "orbax", "tensorstore") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_read_only_writes_nothing_even_by_force(tmp_path: Path) -> None:
    options = ocp.CheckpointManagerOptions(read_only=True)
    with ocp.CheckpointManager(tmp_path / "absent", options=options) as manager:
        assert manager.save(0, args=ocp.args.StandardSave(STATE), force=True) is False
        manager.delete(0)
        assert manager.latest_step() is None
    assert not (tmp_path / "absent").exists()


def test_read_only_tells_which_options_it_leaves_out(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        options = ocp.CheckpointManagerOptions(read_only=True, max_to_keep=3)
    assert options.max_to_keep is None
    assert any("max_to_keep=3" in message for message in caplog.messages)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"todelete_full_path": "trash"}, "todelete_subdir"),
        ({"temporary_path_class": object}, "temporary_path_class"),
        ({"file_options": ocp.options.FileOptions(path_permission_mode=0o750)}, "umask"),
        ({"atomicity_options": ocp.options.AtomicityOptions(mode=ocp.options.AtomicityMode.COMMIT_FILE)}, "RENAME"),
    ],
)
def test_an_option_that_cannot_be_had_is_refused_with_the_way_out(
    options: dict[str, Any], why: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedError, match=why):
        ocp.CheckpointManager(tmp_path, options=ocp.CheckpointManagerOptions(**options))


def test_directories_of_arrays_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="use_ocdbt"):
        ocp.PyTreeCheckpointer(use_ocdbt=False)


def test_the_way_to_publish_that_the_storage_has_may_be_named(tmp_path: Path) -> None:
    rename = ocp.options.AtomicityOptions(mode=ocp.options.AtomicityMode.ATOMIC_RENAME)
    with ocp.CheckpointManager(tmp_path, options=ocp.CheckpointManagerOptions(atomicity_options=rename)) as manager:
        assert manager.save(0, args=ocp.args.StandardSave(STATE))


class EpochNames:
    """Orbax's form of a format of one's own: only names can be built."""

    def build_name(self, step: int) -> str:
        return f"epoch-{step:02}-of-10"


def test_names_of_ones_own_are_found_again(tmp_path: Path) -> None:
    options = ocp.CheckpointManagerOptions(step_name_format=EpochNames(), max_to_keep=2)
    for step in range(1, 4):
        with ocp.CheckpointManager(tmp_path, options=options) as manager:
            manager.save(step, args=ocp.args.JsonSave({"step": step}))
    (tmp_path / "epoch-7-of-10").mkdir()
    with ocp.CheckpointManager(tmp_path, options=options) as manager:
        assert manager.all_steps() == [2, 3]
        assert manager.restore(3) == {"step": 3}
    assert (tmp_path / "epoch-03-of-10").is_dir()


def test_an_earlier_name_format_is_read_where_several_are(tmp_path: Path) -> None:
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(1, args=ocp.args.JsonSave({"step": 1}))
    step = ocp.step
    new = step.standard_name_format(step_prefix="ckpt")
    both = step.composite_name_format(new, [new, step.standard_name_format()])
    with ocp.CheckpointManager(tmp_path, options=ocp.CheckpointManagerOptions(step_name_format=both)) as manager:
        assert manager.all_steps() == [1]
        assert manager.restore(1) == {"step": 1}
        manager.save(2, args=ocp.args.JsonSave({"step": 2}))
        manager.wait_until_finished()
        assert manager.restore(2) == {"step": 2}
    assert (tmp_path / "ckpt_2").is_dir()


def test_steps_of_another_directory_are_restored(manager: Any, tmp_path: Path) -> None:
    manager.save(5, args=ocp.args.JsonSave({"step": 5}))
    manager.wait_until_finished()
    with ocp.CheckpointManager(tmp_path / "other") as other:
        other.save(0, args=ocp.args.JsonSave({"step": 0}))
        other.wait_until_finished()
        assert other.restore(None, directory=tmp_path / "run") == {"step": 5}
        with pytest.raises(FileNotFoundError, match="step 0"):
            other.restore(0, directory=tmp_path / "run")
        with pytest.raises(FileNotFoundError, match="no steps"):
            other.restore(None, directory=tmp_path / "nowhere")


def test_the_callback_is_called_when_the_step_is_there(tmp_path: Path) -> None:
    seen: list[list[str]] = []

    def look() -> None:
        seen.append(sorted(path.name for path in tmp_path.iterdir()))

    waiting = ocp.AsyncOptions(post_finalization_callback=look)
    with ocp.CheckpointManager(tmp_path, options=ocp.CheckpointManagerOptions(async_options=waiting)) as manager:
        manager.save(0, args=ocp.args.JsonSave({}))
        manager.wait_until_finished()
    assert seen == [["0"]]
    with pytest.raises(ValueError, match="asynchronous"):
        ocp.CheckpointManager(
            tmp_path,
            options=ocp.CheckpointManagerOptions(async_options=waiting, enable_async_checkpointing=False),
        )


def test_a_step_that_was_asked_for_is_saved_whatever_the_rules_want(tmp_path: Path) -> None:
    options = ocp.CheckpointManagerOptions(save_interval_steps=100)
    with ocp.CheckpointManager(tmp_path, options=options) as manager:
        manager.save(0, args=ocp.args.JsonSave({}))
        assert not manager.save(1, args=ocp.args.JsonSave({}))
        manager.request_save()
        assert manager.reached_preemption(2)
        assert manager.save(2, args=ocp.args.JsonSave({}))
        assert not manager.save(3, args=ocp.args.JsonSave({}))
        assert manager.all_steps() == [0, 2]


def test_a_logger_is_told_of_saves_and_restores(tmp_path: Path) -> None:
    class Logger:
        def __init__(self) -> None:
            self.entries: list[Any] = []

        def log_entry(self, entry: Any) -> None:
            self.entries.append(entry)

    logger = Logger()
    with ocp.CheckpointManager(tmp_path, logger=logger) as manager:
        manager.save(0, args=ocp.args.JsonSave({}))
        manager.wait_until_finished()
        manager.restore(0)
    assert [(entry["event_type"], entry["step"]) for entry in logger.entries] == [("save", 0), ("restore", 0)]


# --- leaves


def test_save_args_convert_and_cut(tmp_path: Path) -> None:
    tree = {"a": np.arange(64, dtype=np.float64), "b": [1, np.ones(4)]}
    half, small = ocp.SaveArgs(dtype=np.dtype(np.float16)), ocp.SaveArgs(chunk_byte_size=128)
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "c", tree, save_args={"a": small, "b": [half, None]})
        found = checkpointer.restore(tmp_path / "c")
    assert found["b"][0] == 1.0
    np.testing.assert_array_equal(found["a"], tree["a"])
    assert ocdbt_py.Checkpoint(tmp_path / "c")["a"].chunks == (16,)


def test_save_args_of_another_structure_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="structure"):
        ocp.PyTreeCheckpointer().save(tmp_path / "c", {"a": [1, 2]}, save_args={"a": [None]})


@pytest.mark.parametrize("tree", [None, {}, [], 3, np.float64(1)])
def test_nothing_and_single_numbers_are_no_trees(tree: Any, manager: Any) -> None:
    with pytest.raises(ValueError, match="save"):
        manager.save(0, args=ocp.args.StandardSave(tree))


def test_what_metadata_gave_is_a_target_but_no_value(manager: Any) -> None:
    manager.save(0, args=ocp.args.PyTreeSave(STATE))
    manager.wait_until_finished()
    metadata = manager.item_metadata(0)
    assert manager.restore(0, args=ocp.args.PyTreeRestore(metadata))["step"] == 3
    with pytest.raises(ValueError, match="TreeMetadata"):
        ocp.args.StandardSave(metadata)


# --- checkpointers


def test_a_checkpointer_saves_over_only_by_force(tmp_path: Path) -> None:
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "c", STATE)
        with pytest.raises(ValueError, match="already"):
            checkpointer.save(tmp_path / "c", {"x": 1})
        checkpointer.save(tmp_path / "c", {"x": 1}, force=True, custom_metadata={"try": 2})
        checkpointer.wait_until_finished()
        assert checkpointer.restore(tmp_path / "c") == {"x": 1}
        assert checkpointer.metadata(tmp_path / "c").custom_metadata == {"try": 2}
        with pytest.raises(FileNotFoundError):
            checkpointer.restore(tmp_path / "d")


def test_an_unfinished_checkpoint_is_not_restored(tmp_path: Path) -> None:
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "c", STATE)
        checkpointer.wait_until_finished()
        (tmp_path / "c").rename(tmp_path / "c.orbax-checkpoint-tmp")
        with pytest.raises(ValueError, match="never finished"):
            checkpointer.restore(tmp_path / "c.orbax-checkpoint-tmp")


def test_several_items_without_steps(tmp_path: Path) -> None:
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(
            tmp_path / "c", args=ocp.args.Composite(a=ocp.args.StandardSave(STATE), b=ocp.args.JsonSave(1))
        )
        assert checkpointer.restore(tmp_path / "c").b == 1
        assert set(checkpointer.metadata(tmp_path / "c").item_handlers) == {"a", "b"}
        with pytest.raises(KeyError):
            checkpointer.restore(tmp_path / "c", args=ocp.args.Composite(z=ocp.args.JsonRestore()))


def test_an_error_of_the_background_is_told_once(tmp_path: Path) -> None:
    def fail() -> None:
        raise RuntimeError("the callback failed")

    waiting = ocp.AsyncOptions(post_finalization_callback=fail)
    checkpointer = ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler(), async_options=waiting)
    checkpointer.save(tmp_path / "c", args=ocp.args.StandardSave(STATE))
    with pytest.raises(RuntimeError, match="the callback failed"):
        checkpointer.wait_until_finished()
    checkpointer.wait_until_finished()
    checkpointer.check_for_errors()
    checkpointer.close()


def test_errors_are_ours_and_python_s() -> None:
    from ocdbt_py.interop.orbax import errors

    for name in errors.__all__:
        assert issubclass(getattr(errors, name), OcdbtError)
    assert issubclass(ocp.StepAlreadyExistsError, ValueError)
    assert issubclass(errors.StepNotFoundError, FileNotFoundError)


# --- composites


def test_a_composite_is_a_mapping_that_does_not_change() -> None:
    both = ocp.args.Composite(a=1) | ocp.args.Composite(b=2, keys=3)
    assert (both.a, both["keys"], both.get("z", 0), len(both)) == (1, 3, 0, 3)
    assert dict(both & {"a": None}) == {"a": 1}
    with pytest.raises(InvalidArgumentError):
        both.a = 2
    with pytest.raises(InvalidArgumentError):
        ocp.args.Composite(__a=1)
    with pytest.raises(KeyError):
        _ = both.z
