"""Checkpoints that we save, restored by the installed Orbax, through each of its loaders, bit for bit."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from numpy.typing import NDArray

from ocdbt_py.checkpoint.restore import restore
from ocdbt_py.checkpoint.save import save
from ocdbt_py.database import open as open_database

pytestmark = [
    # Orbax says so of every JAX array that is restored without a target.
    pytest.mark.filterwarnings("ignore:Sharding info not provided"),
    pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning"),
]

Loader = Callable[..., Any]


def pytree_checkpointer(path: Path, target: Any = None) -> Any:
    if target is None:
        return ocp.PyTreeCheckpointer().restore(path)
    arguments = ocp.checkpoint_utils.construct_restore_args(target)
    return ocp.PyTreeCheckpointer().restore(path, item=target, restore_args=arguments)


def pytree_handler(path: Path, target: Any = None) -> Any:
    checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    if target is None:
        return checkpointer.restore(path, args=ocp.args.PyTreeRestore())
    arguments = ocp.checkpoint_utils.construct_restore_args(target)
    return checkpointer.restore(path, args=ocp.args.PyTreeRestore(item=target, restore_args=arguments))


def standard_checkpointer(path: Path, target: Any = None) -> Any:
    checkpointer = ocp.StandardCheckpointer()
    return checkpointer.restore(path) if target is None else checkpointer.restore(path, target)


def v1_load(path: Path, target: Any = None) -> Any:
    return ocp.v1.load(path, target, checkpointable_name=None)


every_format = pytest.mark.parametrize("zarr_format", [2, 3])

LOADERS = [pytree_checkpointer, pytree_handler, standard_checkpointer, v1_load]
every_loader = pytest.mark.parametrize("load", LOADERS)


def assert_same(found: Any, expected: Any) -> None:
    found_leaves, found_tree = jax.tree_util.tree_flatten_with_path(found, is_leaf=lambda leaf: leaf is None)
    leaves, tree = jax.tree_util.tree_flatten_with_path(expected, is_leaf=lambda leaf: leaf is None)
    assert str(found_tree) == str(tree)
    for (path, value), (_, wanted) in zip(found_leaves, leaves, strict=True):
        assert type(value) is type(wanted), path
        if isinstance(wanted, np.ndarray | jax.Array):
            assert (value.dtype, value.shape) == (wanted.dtype, wanted.shape), path
            if isinstance(wanted.dtype, np.dtype):
                assert np.asarray(value).tobytes() == np.asarray(wanted).tobytes(), path
            else:
                assert jnp.array_equal(jax.random.key_data(value), jax.random.key_data(wanted)), path
        else:
            assert repr(value) == repr(wanted), path


def bits(dtype: Any, shape: tuple[int, ...] = (7, 5)) -> NDArray[Any]:
    """Arbitrary bits of a type, NaNs with payloads and negative zeros among them."""
    dtype = np.dtype(dtype)
    random = np.random.default_rng(3)
    if dtype.kind == "b":
        return random.integers(0, 2, shape).astype(bool)
    if dtype.name in ("int2", "int4"):
        return random.integers(-2, 2, shape).astype(dtype)
    content = bytearray(random.bytes(int(np.prod(shape)) * dtype.itemsize))
    if dtype.name == "float4_e2m1fn":
        content = bytearray(byte & 15 for byte in content)
    return np.frombuffer(content, dtype).reshape(shape)


DTYPES = [
    *(np.dtype(code) for code in "?bBhHiIqQefdFD"),
    *(
        np.dtype(getattr(ml_dtypes, name))
        for name in (
            "bfloat16",
            "float8_e3m4",
            "float8_e4m3b11fnuz",
            "float8_e4m3fn",
            "float8_e4m3fnuz",
            "float8_e5m2",
            "float8_e5m2fnuz",
            "float8_e8m0fnu",
            "float4_e2m1fn",
            "int4",
            "int2",
        )
    ),
]


@every_loader
@every_format
def test_numpy_arrays_of_every_dtype_come_back_bit_for_bit(load: Loader, zarr_format: Any, tmp_path: Path) -> None:
    tree = {dtype.name: {"matrix": bits(dtype), "number": bits(dtype, ())} for dtype in DTYPES}
    save(tmp_path / "checkpoint", tree, zarr_format=zarr_format)
    assert_same(load(tmp_path / "checkpoint"), tree)


@every_loader
@every_format
@pytest.mark.parametrize("with_target", [False, True])
def test_jax_arrays_come_back_on_their_device(
    load: Loader, with_target: bool, zarr_format: Any, tmp_path: Path
) -> None:
    names = ["bool", "int8", "uint16", "int32", "float16", "float32", "complex64", "bfloat16", "float8_e5m2", "int4"]
    tree = {name: jax.device_put(bits(jnp.dtype(name))) for name in names}
    tree["number"] = jax.device_put(bits("float32", ()))
    save(tmp_path / "checkpoint", tree, zarr_format=zarr_format)
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)  # type: ignore[no-untyped-call]
    found = load(tmp_path / "checkpoint", target) if with_target else load(tmp_path / "checkpoint")
    assert_same(found, tree)
    assert all(found[name].sharding == tree[name].sharding for name in tree)


@every_loader
@every_format
def test_typed_prng_keys_come_back_typed(load: Loader, zarr_format: Any, tmp_path: Path) -> None:
    tree = {"key": jax.random.key(5), "keys": jax.random.split(jax.random.key(6, impl="rbg"), 3)}
    save(tmp_path / "checkpoint", tree, zarr_format=zarr_format)
    assert_same(load(tmp_path / "checkpoint"), tree)


@pytest.mark.parametrize("load", [pytree_checkpointer, pytree_handler, v1_load])
def test_numbers_strings_and_empty_values_come_back_as_python_values(load: Loader, tmp_path: Path) -> None:
    tree = {
        "int": 2**63 - 1,
        "negative": -(2**63),
        "float": 0.1,
        "zero": -0.0,
        "infinite": float("-inf"),
        "nan": float("nan"),
        "true": True,
        "false": False,
        "text": 'héllo ☃ "q" \\ /\n\0\x7f',
        "empty_text": "",
        "none": None,
        "dict": {},
        "list": [],
        "tuple": (),
        "nested": [1, ["two", {"three": 3.0}], None, [[]]],
        "a/b": "slash",
        "a/c": np.arange(3),
        "til~0de": "tilde",
        "white space 'and' \"quotes\" %2F ..": 1,
        "ключ": "юникод",
    }
    save(tmp_path / "checkpoint", tree)
    assert_same(load(tmp_path / "checkpoint"), tree)


@pytest.mark.parametrize("load", [pytree_checkpointer, pytree_handler])
def test_numpy_numbers_come_back_as_the_python_number_of_their_kind(load: Loader, tmp_path: Path) -> None:
    numbers = {
        "bool": np.bool_(True),
        "int8": np.int8(-3),
        "uint64": np.uint64(2**64 - 1),
        "half": np.float16(1.5),
        "brain": ml_dtypes.bfloat16(2.5),
        "complex": np.complex64(1 - 2j),
    }
    save(tmp_path / "checkpoint", numbers)
    expected = {"bool": True, "int8": -3, "uint64": 2**64 - 1, "half": 1.5, "brain": 2.5, "complex": 1 - 2j}
    assert_same(load(tmp_path / "checkpoint"), expected)
    assert_same(restore(tmp_path / "checkpoint"), expected)


@every_loader
@pytest.mark.parametrize("tree", [np.arange(4.0), [np.arange(3)], [[], 7]], ids=["array", "list", "number"])
def test_a_tree_need_not_be_a_dict(load: Loader, tree: Any, tmp_path: Path) -> None:
    save(tmp_path / "checkpoint", tree)
    assert_same(load(tmp_path / "checkpoint"), tree)


@every_loader
@every_format
def test_arrays_without_elements_come_back(load: Loader, zarr_format: Any, tmp_path: Path) -> None:
    tree = {"x": np.zeros((0, 3), "float32"), "y": np.zeros((2, 0, 2), "int8"), "z": jnp.zeros((0,)), "w": 1}
    save(tmp_path / "checkpoint", tree, zarr_format=zarr_format)
    assert_same(load(tmp_path / "checkpoint"), tree)


@every_loader
@every_format
@pytest.mark.parametrize("compression", ["auto", "zstd", "zstd:-5", "zstd:19", None])
def test_any_compression_and_chunking_is_restored(
    load: Loader, compression: str | None, zarr_format: Any, tmp_path: Path
) -> None:
    random = np.random.default_rng(1)
    tree = {
        "zeros": np.zeros((64, 96), "float32"),
        "noise": random.normal(size=(63, 95)),
        "small": np.arange(10),
        "fortran": np.asfortranarray(random.normal(size=(16, 24, 16))),
        "strided": random.integers(0, 9, (40, 60))[::2, ::-3],
        "big_endian": np.arange(3000, dtype=">i4"),
    }
    save(tmp_path / "checkpoint", tree, compression=compression, chunk_bytes=2000, zarr_format=zarr_format)
    expected = tree | {"big_endian": np.arange(3000, dtype="<i4")}
    assert_same(load(tmp_path / "checkpoint"), expected)


class Moments(NamedTuple):
    mu: Any
    nu: Any


@flax.struct.dataclass
class Registered:
    weight: Any
    name: str = flax.struct.field(pytree_node=False, default="layer")


def training_state() -> Any:
    params = {"layer": {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.ones(3)}}
    return {
        "params": params,
        "opt_state": optax.adamw(1e-3).init(params),
        "moments": Moments(jnp.zeros(2), (jnp.ones(1), [jnp.zeros(3)])),
        "struct": Registered(jnp.arange(4)),  # type: ignore[call-arg]
        "step": 12,
    }


@every_format
@pytest.mark.parametrize("load", [pytree_checkpointer, pytree_handler, standard_checkpointer])
def test_a_training_state_is_restored_into_its_own_structure(load: Loader, zarr_format: Any, tmp_path: Path) -> None:
    state = training_state()
    save(tmp_path / "checkpoint", state, zarr_format=zarr_format)
    assert_same(load(tmp_path / "checkpoint", state), state)


def test_the_same_state_saved_by_orbax_and_by_us_has_the_same_metadata_files(tmp_path: Path) -> None:
    state = training_state() | {"text": "hi", "numpy": np.arange(3), "none": None, "key": jax.random.key(1)}
    save(tmp_path / "ours", state)
    ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).save(tmp_path / "theirs", args=ocp.args.PyTreeSave(state))
    for name in ("_METADATA", "_strings.json", "array_metadatas/process_0"):
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes(), name
    theirs = (tmp_path / "theirs/_sharding").read_bytes()
    # Orbax takes both spellings of the device for one, but only the older is known to older releases.
    assert (tmp_path / "ours/_sharding").read_bytes().replace(b"TFRT_CPU_0", b"cpu:0") == theirs


@pytest.mark.parametrize("compression", ["zstd", None])
def test_zarr_v3_arrays_are_stored_as_orbax_stores_them(compression: str | None, tmp_path: Path) -> None:
    """Every key, every document byte for byte, and without compression every value."""
    state = training_state() | {dtype.name: {"matrix": bits(dtype), "number": bits(dtype, ())} for dtype in DTYPES}
    save(tmp_path / "ours", state, zarr_format=3, compression=compression)
    handler = ocp.PyTreeCheckpointHandler(use_zarr3=True, use_compression=compression is not None)
    ocp.Checkpointer(handler).save(tmp_path / "theirs", args=ocp.args.PyTreeSave(state))
    assert (tmp_path / "ours/_METADATA").read_bytes() == (tmp_path / "theirs/_METADATA").read_bytes()
    ours, theirs = (dict(open_database(tmp_path / name).items()) for name in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        if compression is None or key.endswith(b"/zarr.json"):
            assert ours[key] == value, key
    assert_same(restore(tmp_path / "theirs", state), restore(tmp_path / "ours", state))


def test_the_state_of_an_nnx_model_goes_both_ways(tmp_path: Path) -> None:
    model = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    state = nnx.state((model, nnx.Optimizer(model, optax.adamw(1e-3), wrt=nnx.Param)))
    save(tmp_path / "ours", state)
    ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).save(tmp_path / "theirs", args=ocp.args.PyTreeSave(state))
    assert (tmp_path / "ours/_METADATA").read_bytes() == (tmp_path / "theirs/_METADATA").read_bytes()
    assert_same(standard_checkpointer(tmp_path / "ours", state), state)
    assert_same(restore(tmp_path / "theirs", state), state)


def test_orbax_reads_the_custom_metadata_and_the_times(tmp_path: Path) -> None:
    custom = {"lang": "en", "nested": {"list": [1, None, 2.5]}}
    save(tmp_path / "checkpoint", {"x": np.arange(3)}, custom_metadata=custom)
    found = ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).metadata(tmp_path / "checkpoint")
    assert found.custom_metadata == custom
    assert found.init_timestamp_nsecs <= found.commit_timestamp_nsecs
    assert found.item_handlers.endswith("PyTreeCheckpointHandler")


# --- steps of a manager


def two_kinds_of_array() -> Any:
    return {"layer": {"w": jnp.arange(6.0).reshape(2, 3), "n": np.arange(4)}, "count": 3}


def described(tree: Any) -> Any:
    """The tree as a target: JAX's arrays by their shapes and shardings."""

    def leaf(value: Any) -> Any:
        if not isinstance(value, jax.Array):
            return value
        return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=value.sharding)  # type: ignore[no-untyped-call]

    return jax.tree.map(leaf, tree)


def finish_step(step: Path) -> None:
    """The files of the step itself, which name the handler of each of its items."""
    handler = "orbax.checkpoint._src.handlers.pytree_checkpoint_handler.PyTreeCheckpointHandler"
    now = time.time_ns()
    document = {
        "item_handlers": {path.name: handler for path in step.iterdir()},
        "metrics": {},
        "performance_metrics": {},
        "init_timestamp_nsecs": now,
        "commit_timestamp_nsecs": now,
        "custom_metadata": {"lang": "en"},
    }
    (step / "_CHECKPOINT_METADATA").write_text(json.dumps(document))
    (step / "commit_success.txt").write_text(f"Checkpoint commit was successful to {step}")


def pytree_arguments(target: Any = None) -> Any:
    if target is None:
        return ocp.args.PyTreeRestore()
    return ocp.args.PyTreeRestore(item=target, restore_args=ocp.checkpoint_utils.construct_restore_args(target))


@every_format
@pytest.mark.parametrize("arguments", [pytree_arguments, ocp.args.StandardRestore])
def test_a_manager_restores_a_step_that_we_saved_as_an_item(
    arguments: Callable[..., Any], zarr_format: Any, tmp_path: Path
) -> None:
    tree = two_kinds_of_array()
    save(f"{tmp_path}/7/default", tree, zarr_format=zarr_format)
    for given in ((), (described(tree),)):
        with ocp.CheckpointManager(tmp_path) as manager:
            assert (manager.all_steps(), manager.latest_step()) == ([7], 7)
            assert_same(manager.restore(7, args=arguments(*given)), tree)


def test_a_manager_restores_several_items_and_goes_on_after_our_step(tmp_path: Path) -> None:
    tree, other = two_kinds_of_array(), {"mean": np.ones(3), "text": "hi"}
    save(tmp_path / "1" / "state", tree)
    save(tmp_path / "1" / "ema", other)
    with ocp.CheckpointManager(tmp_path) as manager:
        found = manager.restore(1, args=ocp.args.Composite(state=pytree_arguments(), ema=pytree_arguments()))
        assert_same([found.state, found.ema], [tree, other])
        manager.save(2, args=ocp.args.Composite(state=ocp.args.PyTreeSave(tree), ema=ocp.args.PyTreeSave(other)))
        manager.wait_until_finished()
        assert manager.all_steps() == [1, 2]
    assert_same(restore(tmp_path / "2", tree, item="state"), tree)
    assert_same(restore(tmp_path / "2", item="ema"), other)


@every_format
def test_with_the_files_of_the_step_a_manager_needs_no_arguments(zarr_format: Any, tmp_path: Path) -> None:
    tree = two_kinds_of_array()
    save(tmp_path / "7" / "default", tree, zarr_format=zarr_format)
    finish_step(tmp_path / "7")
    with ocp.CheckpointManager(tmp_path) as manager:
        assert_same(manager.restore(7), tree)
        assert manager.metadata(7).custom_metadata == {"lang": "en"}
        assert manager.item_metadata(7).tree["layer"]["w"].shape == (2, 3)
    assert_same(restore(tmp_path / "7", tree), tree)


@every_format
@pytest.mark.parametrize("marked", [False, True])
def test_the_v1_loader_restores_a_step_that_we_saved(marked: bool, zarr_format: Any, tmp_path: Path) -> None:
    tree = two_kinds_of_array()
    step = tmp_path / "7"
    save(step / "state", tree, zarr_format=zarr_format)
    finish_step(step)
    if marked:
        (step / "orbax.checkpoint").touch()
    assert_same(ocp.v1.load(step), tree)
    assert_same(ocp.v1.load(step, described(tree)), tree)
    assert_same(ocp.v1.load_checkpointables(step)["state"], tree)
    with ocp.v1.training.Checkpointer(tmp_path) as checkpointer:
        assert [checkpoint.step for checkpoint in checkpointer.checkpoints] == [7]
        assert_same(checkpointer.load(7), tree)
        assert_same(checkpointer.load(7, described(tree)), tree)


def test_deep_and_wide_trees_are_restored(tmp_path: Path) -> None:
    deep: Any = np.arange(3)
    for level in range(120):
        deep = [deep] if level % 3 == 0 else {f"level{level}": deep}
    tree = {"deep": deep, "wide": {f"w{i}": np.full(2, i) for i in range(400)}}
    save(tmp_path / "checkpoint", tree)
    assert_same(pytree_checkpointer(tmp_path / "checkpoint"), tree)
    found = restore(tmp_path / "checkpoint")
    assert_same(found, tree)


@dataclasses.dataclass
class Unregistered:
    field: Any


def test_a_dataclass_nobody_registered_is_a_dict_to_orbax(tmp_path: Path) -> None:
    save(tmp_path / "checkpoint", {"x": Unregistered(np.arange(2))})
    assert_same(pytree_checkpointer(tmp_path / "checkpoint"), {"x": {"field": np.arange(2)}})
