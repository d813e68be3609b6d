"""JAX arrays on eight virtual devices: ``python -m conformance.sharded_job DIRECTORY``.

Writes ``DIRECTORY/result.json``: scenario -> what went wrong with it, or "".
"""

from __future__ import annotations

import dataclasses
import json
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding
from numpy.typing import NDArray
from orbax.checkpoint._src.metadata.array_metadata_store import Store

from ocdbt_py.checkpoint import contents
from ocdbt_py.checkpoint.checkpoint import Checkpoint
from ocdbt_py.checkpoint.prepared import prepare
from ocdbt_py.checkpoint.restore import restore
from ocdbt_py.checkpoint.save import save

P: Any = PartitionSpec  # JAX has no types for these two
ShapeDtypeStruct: Any = jax.ShapeDtypeStruct

DEVICES = np.array(jax.devices())
MESH = Mesh(DEVICES.reshape(4, 2), ("x", "y"))
CUBE = Mesh(DEVICES.reshape(2, 2, 2), ("a", "b", "c"))
PART = Mesh(DEVICES[[5, 2, 7]], ("p",))
SPECS = {
    "both": P("x", "y"),
    "turned": P("y", "x"),
    "rows": P("x"),
    "columns": P(None, "y"),
    "joined": P(("x", "y")),
    "all": P(),
}
OTHERS = [
    NamedSharding(MESH, P("y", "x")),
    NamedSharding(CUBE, P(("c", "a"), "b")),
    NamedSharding(CUBE, P(None, "a")),
    NamedSharding(PART, P(None, "p")),
    NamedSharding(PART, P()),
    SingleDeviceSharding(DEVICES[6]),
]

Tree = dict[str, Any]


def arrays(dtype: Any = "float32") -> dict[str, NDArray[Any]]:
    """No two alike."""
    return {name: np.arange(16 * 24).reshape(16, 24).astype(dtype) + np.array(i, dtype) for i, name in enumerate(SPECS)}


def spread(values: dict[str, NDArray[Any]], mesh: Mesh = MESH) -> Tree:
    return {name: jax.device_put(value, NamedSharding(mesh, SPECS[name])) for name, value in values.items()}


def described(array: Any, sharding: Any = None, dtype: Any = None) -> Any:
    return ShapeDtypeStruct(array.shape, dtype or array.dtype, sharding=sharding or array.sharding)


def assert_same(found: Any, expected: Any) -> None:
    """The same leaves on the same devices, bit for bit, in the same containers."""
    structures: list[Any] = [jax.tree.structure(tree) for tree in (found, expected)]
    assert structures[0] == structures[1]
    for (path, value), wanted in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        assert type(value) is type(wanted), path
        assert (value.shape, value.dtype, value.sharding) == (wanted.shape, wanted.dtype, wanted.sharding), path
        for one, other in zip(value.addressable_shards, wanted.addressable_shards, strict=True):
            assert np.asarray(one.data).tobytes() == np.asarray(other.data).tobytes(), (path, one.index)


def by_orbax(path: Path, target: Any = None) -> Any:
    if target is None:
        return ocp.PyTreeCheckpointer().restore(path)
    arguments = ocp.checkpoint_utils.construct_restore_args(target)
    return ocp.PyTreeCheckpointer().restore(path, item=target, restore_args=arguments)


def orbax_saves(path: Path, tree: Any, *, chunk_byte_size: int | None = None, **options: Any) -> None:
    """With each shard written whole, by whoever has replica 0: on one computer there is nothing to share."""
    handler = ocp.type_handlers.ArrayHandler(use_replica_parallel=False, array_metadata_store=Store())
    registry = ocp.type_handlers.create_type_handler_registry(
        (jax.Array, handler), (np.ndarray, ocp.type_handlers.NumpyHandler())
    )
    save_args = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=chunk_byte_size), tree)
    checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler(type_handler_registry=registry, **options))
    checkpointer.save(path, args=ocp.args.PyTreeSave(tree, save_args=save_args))


# --- scenarios


def orbax_restores_ours_onto_the_shardings_it_was_saved_with(here: Path) -> None:
    tree = spread(arrays())
    for zarr_format in (2, 3):
        path = here / f"{zarr_format}"
        save(path, tree, zarr_format=zarr_format)
        assert_same(by_orbax(path), tree)
        assert_same(ocp.StandardCheckpointer().restore(path), tree)
        assert_same(ocp.v1.load(path, checkpointable_name=None), tree)


def orbax_restores_ours_onto_others(here: Path) -> None:
    tree = spread(arrays())
    save(here / "c", tree)
    for sharding in OTHERS:
        wanted = {name: jax.device_put(array, sharding) for name, array in tree.items()}
        assert_same(by_orbax(here / "c", jax.tree.map(described, wanted)), wanted)


def ours_is_restored_onto_any_sharding(here: Path) -> None:
    tree = spread(arrays())
    save(here / "plain", tree)
    save(here / "zstd", tree, compression="zstd", chunk_bytes=100)
    for path in (here / "plain", here / "zstd"):
        for sharding in (None, *OTHERS):
            wanted = {name: jax.device_put(array, sharding or array.sharding) for name, array in tree.items()}
            assert_same(restore(path, jax.tree.map(described, wanted)), wanted)
            assert_same(restore(path, wanted), wanted)
        anywhere = {name: ShapeDtypeStruct(array.shape, array.dtype) for name, array in tree.items()}
        assert_same(restore(path, anywhere), {name: jax.device_put(np.asarray(array)) for name, array in tree.items()})


def what_orbax_saved_is_restored_onto_any_sharding(here: Path) -> None:
    tree = spread(arrays())
    orbax_saves(here / "plain", tree)
    orbax_saves(here / "chunks", tree, chunk_byte_size=100)
    orbax_saves(here / "v3", tree, use_zarr3=True)
    orbax_saves(here / "files", tree, use_ocdbt=False)
    ocp.PyTreeCheckpointer().save(here / "shared", tree)  # replicas share the writing
    for path in (here / "plain", here / "chunks", here / "v3", here / "files", here / "shared"):
        for sharding in (None, *OTHERS):
            wanted = {name: jax.device_put(array, sharding or array.sharding) for name, array in tree.items()}
            assert_same(restore(path, jax.tree.map(described, wanted)), wanted)


def the_small_files_are_those_of_orbax(here: Path) -> None:
    tree = spread(arrays())
    cube = {
        f"cube {name}": jax.device_put(value, sharding) for name, value in arrays().items() for sharding in OTHERS[1:5]
    }
    keys = jax.device_put(jax.random.split(jax.random.key(1), 8), NamedSharding(MESH, P("x")))
    tree |= cube | {"keys": keys, "one": jax.device_put(np.float32(1), NamedSharding(MESH, P()))}
    save(here / "ours", tree)
    orbax_saves(here / "theirs", tree)
    for name in ("_METADATA", "_sharding", "array_metadatas/process_0"):
        assert (here / "ours" / name).read_text() == (here / "theirs" / name).read_text(), name


def each_shard_is_one_chunk_and_written_once(here: Path) -> None:
    value = np.random.default_rng(0).normal(size=(512, 256))
    tree = {name: jax.device_put(value.astype("float32"), NamedSharding(MESH, spec)) for name, spec in SPECS.items()}
    save(here / "c", tree)
    checkpoint = Checkpoint(here / "c")
    for name, array in tree.items():
        assert checkpoint[name].chunks == array.sharding.shard_shape(array.shape), name
    stored = sum(file.stat().st_size for file in (here / "c/d").iterdir())
    assert sum(array.nbytes for array in tree.values()) <= stored < sum(array.nbytes for array in tree.values()) + 8192


def shards_are_written_from_the_memory_of_their_devices(here: Path) -> None:
    tree = spread(arrays())
    prepared = prepare(contents.Tree(tree))
    blocks = {name: array.blocks for name, array in zip(prepared.names, prepared.arrays, strict=True)}
    for name, array in tree.items():
        buffers = {shard.data.unsafe_buffer_pointer() for shard in array.addressable_shards if shard.replica_id == 0}
        assert {block.array.ctypes.data for block in blocks[name]} == buffers, name


def shards_are_cut_as_orbax_cuts_them(here: Path) -> None:
    value = np.arange(64 * 96, dtype="float32").reshape(64, 96)
    for number, (spec, size) in enumerate([(P("x", "y"), 512), (P("y", None), 512), (P("x"), 100), (P(None, "y"), 40)]):
        tree = {"w": jax.device_put(value, NamedSharding(MESH, spec))}
        save(here / f"ours{number}", tree, chunk_bytes=size)
        orbax_saves(here / f"theirs{number}", tree, chunk_byte_size=size)
        ours, theirs = Checkpoint(here / f"ours{number}"), Checkpoint(here / f"theirs{number}")
        assert ours["w"].chunks == theirs["w"].chunks, (spec, size, ours["w"].chunks, theirs["w"].chunks)
        assert_same(by_orbax(here / f"ours{number}"), tree)


def every_dtype_survives(here: Path) -> None:
    names = ["bool", "int8", "uint16", "int32", "float16", "float32", "complex64", "bfloat16", "float8_e5m2", "int4"]
    random = np.random.default_rng(3)
    tree = {}
    for name in names:
        dtype = jnp.dtype(name)
        if name in ("bool", "int4"):
            value = random.integers(0, 2, (8, 6)).astype(dtype)
        else:
            value = np.frombuffer(random.bytes(48 * dtype.itemsize), dtype).reshape(8, 6)
        tree[name] = jax.device_put(value, NamedSharding(MESH, P("x", "y")))
    save(here / "c", tree)
    assert_same(by_orbax(here / "c"), tree)
    assert_same(restore(here / "c", tree), tree)


def shapes_that_replicas_do_not_divide(here: Path) -> None:
    shapes = [(5, 7), (1,), (3,), (), (7, 1, 5)]
    tree = {
        str(shape): jax.device_put(np.random.default_rng(1).normal(size=shape), NamedSharding(MESH, P()))
        for shape in shapes
    }
    tree["uneven"] = jax.device_put(np.arange(12.0).reshape(12, 1), NamedSharding(MESH, P("x")))
    save(here / "c", tree)
    assert_same(by_orbax(here / "c"), tree)
    assert_same(restore(here / "c", tree), tree)
    # shards of the one sharding end inside those of the other
    wanted = {"uneven": described(tree["uneven"], NamedSharding(PART, P("p")))}
    found = restore(here / "c", wanted, strict=False)["uneven"]
    assert [shard.data.shape for shard in found.addressable_shards] == [(4, 1)] * 3
    assert np.array_equal(found, tree["uneven"])


def typed_keys_on_several_devices(here: Path) -> None:
    keys = jax.device_put(jax.random.split(jax.random.key(3), 8), NamedSharding(MESH, P("x")))
    save(here / "c", {"keys": keys})
    for found in (by_orbax(here / "c")["keys"], restore(here / "c", {"keys": keys})["keys"]):
        assert found.dtype == keys.dtype
        assert np.array_equal(jax.random.key_data(found), jax.random.key_data(keys))
    assert restore(here / "c", {"keys": keys})["keys"].sharding == keys.sharding


class Moments(NamedTuple):
    mu: Any
    nu: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    weight: Any
    bias: Any


@jax.tree_util.register_pytree_with_keys_class
class Custom:
    def __init__(self, left: Any, right: Any) -> None:
        self.left, self.right = left, right

    def tree_flatten_with_keys(self) -> Any:
        key = jax.tree_util.GetAttrKey
        return ((key("left"), self.left), (key("right"), self.right)), None

    @classmethod
    def tree_unflatten(cls, _: Any, children: Any) -> Custom:
        return cls(*children)


def a_training_state_of_many_kinds_of_nodes_is_restored_sharded(here: Path) -> None:
    def put(value: Any) -> Any:
        spec = P(*("x", "y")[: value.ndim]) if value.ndim == 2 else P()
        return jax.device_put(value, NamedSharding(MESH, spec))

    model = nnx.Linear(8, 4, rngs=nnx.Rngs(0))
    params = {"kernel": jnp.arange(32.0).reshape(8, 4), "bias": jnp.ones(4)}
    state = {
        "model": nnx.state((model, nnx.Optimizer(model, optax.adamw(1e-3), wrt=nnx.Param))),
        "opt": optax.adamw(1e-3).init(params),
        "pair": Moments(jnp.zeros((4, 2)), (jnp.ones((8, 2)), [jnp.zeros(3)])),
        "layer": Layer(jnp.full((4, 6), 2.0), jnp.zeros(6)),
        "custom": Custom(jnp.full((4, 2), 3.0), Moments(jnp.zeros(1), jnp.ones(1))),
    }
    state = jax.tree.map(put, state)
    save(here / "ours", state)
    ocp.PyTreeCheckpointer().save(here / "theirs", state)
    for path in (here / "ours", here / "theirs"):
        assert_same(restore(path, state), state)
        assert_same(restore(path, jax.tree.map(described, state)), state)
    assert_same(by_orbax(here / "ours", state), state)


def leaves_are_cast_or_left_out_on_the_way(here: Path) -> None:
    tree = spread(arrays()) | {"steps": jax.device_put(np.arange(8), NamedSharding(MESH, P("x")))}
    save(here / "c", tree)
    sharding = OTHERS[1]
    wanted: Tree = dict.fromkeys(tree, ...)
    wanted |= {
        "both": described(tree["both"], sharding, jnp.bfloat16),
        "steps": described(tree["steps"], dtype="float32"),
    }
    found = restore(here / "c", wanted)
    assert all(found[name] is ... for name in tree if name not in ("both", "steps"))
    assert_same(found["both"], jax.device_put(tree["both"], sharding).astype(jnp.bfloat16))
    assert_same(found["steps"], tree["steps"].astype("float32"))
    halves = restore(here / "c", tree, dtype="float16")
    assert all(halves[name].dtype == (jnp.float16 if name != "steps" else tree[name].dtype) for name in tree)
    assert all(halves[name].sharding == tree[name].sharding for name in tree)


def numpy_arrays_become_sharded_ones_and_sharded_ones_numpy(here: Path) -> None:
    values = arrays()
    save(here / "numpy", values)
    assert_same(restore(here / "numpy", jax.tree.map(described, spread(values))), spread(values))
    save(here / "sharded", spread(values))
    for found in (restore(here / "sharded"), restore(here / "sharded", values)):
        for name, value in values.items():
            assert type(found[name]) is np.ndarray
            assert found[name].tobytes() == value.tobytes()


SCENARIOS: tuple[Callable[[Path], None], ...] = (
    orbax_restores_ours_onto_the_shardings_it_was_saved_with,
    orbax_restores_ours_onto_others,
    ours_is_restored_onto_any_sharding,
    what_orbax_saved_is_restored_onto_any_sharding,
    the_small_files_are_those_of_orbax,
    each_shard_is_one_chunk_and_written_once,
    shards_are_written_from_the_memory_of_their_devices,
    shards_are_cut_as_orbax_cuts_them,
    every_dtype_survives,
    shapes_that_replicas_do_not_divide,
    typed_keys_on_several_devices,
    a_training_state_of_many_kinds_of_nodes_is_restored_sharded,
    leaves_are_cast_or_left_out_on_the_way,
    numpy_arrays_become_sharded_ones_and_sharded_ones_numpy,
)


def main() -> None:
    warnings.simplefilter("ignore")
    directory = Path(sys.argv[1])
    results = {}
    for scenario in SCENARIOS:
        here = directory / scenario.__name__
        here.mkdir()
        try:
            scenario(here)
            results[scenario.__name__] = ""
        except BaseException:
            results[scenario.__name__] = traceback.format_exc()
    (directory / "result.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
