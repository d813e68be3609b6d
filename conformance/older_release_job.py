"""What older_releases.py has an old release of Orbax do, in that release's own environment, which has nothing of ours.

    python conformance/older_release_job.py save DIRECTORY       save the tree of this module in every layout
    python conformance/older_release_job.py restore DIRECTORY    restore every checkpoint below, compare bit for bit

The tree is made anew on either side, so nothing but the checkpoint goes from one to the other.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

NUMPY_TYPES = "bool int8 uint8 int16 uint16 int32 uint32 int64 uint64 float16 float32 float64 complex64 complex128"
JAX_TYPES = "bool int8 uint16 int32 float16 float32 complex64 bfloat16 float8_e4m3fn float8_e5m2"


def tree() -> Any:
    """Everything that all releases since 0.7 have in common."""
    random = np.random.default_rng(11)
    return {
        "numpy": {name: array(np.dtype(name)) for name in NUMPY_TYPES.split()},
        "brain": array(np.dtype(ml_dtypes.bfloat16)),
        "jax": {name: jnp.asarray(array(np.dtype(jnp.dtype(name)))) for name in JAX_TYPES.split()},
        "scalars": [np.array(3.5), jnp.float32(2.25), 7, -1.5],
        "large": random.normal(size=(300, 200)).astype("float32"),
        "zeros": np.zeros((64, 64)),
        "fortran": np.asfortranarray(random.integers(0, 9, (12, 8, 4))),
        "text": "héllo ☃",
        "none": None,
        "empty": [{}, []],
        "weird names": {"a.b/c d": np.arange(3), "ключ": np.arange(4)},
        "deep": {"x": [{"y": ({"z": np.arange(5)},)}]},
    }


def array(dtype: Any) -> Any:
    """Arbitrary bits of ``dtype``, the same at every call."""
    if dtype.kind == "b":
        return np.arange(35).reshape(7, 5) % 3 == 0
    return np.frombuffer(np.random.default_rng(5).bytes(35 * dtype.itemsize), dtype).reshape(7, 5)


def lists(value: Any) -> Any:
    """The tree as it comes back without a target: tuples are lists."""
    if isinstance(value, dict):
        return {name: lists(child) for name, child in value.items()}
    return [lists(child) for child in value] if isinstance(value, list | tuple) else value


def assert_same(found: Any, expected: Any, where: str) -> None:
    """Equal to the last bit, and of the same types; an array of rank 0 may come back as the number in it."""
    if isinstance(expected, dict):
        assert sorted(found) == sorted(expected), where
        for name, child in expected.items():
            assert_same(found[name], child, f"{where}.{name}")
    elif isinstance(expected, list | tuple):
        assert type(found) is type(expected), (where, type(found))
        assert len(found) == len(expected), where
        for index, child in enumerate(expected):
            assert_same(found[index], child, f"{where}.{index}")
    elif isinstance(expected, np.ndarray | jax.Array):
        kind = jax.Array if isinstance(expected, jax.Array) else np.ndarray
        assert isinstance(found, kind), (where, type(found))
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape), (where, found.dtype, found.shape)
        assert np.asarray(found).tobytes() == np.asarray(expected).tobytes(), where
    else:
        assert repr(found) == repr(expected), (where, found)


def save(directory: Path) -> None:
    import orbax.checkpoint as ocp

    for use_ocdbt in (True, False):
        for use_zarr3 in (False, True):
            handler = ocp.PyTreeCheckpointHandler(use_ocdbt=use_ocdbt, use_zarr3=use_zarr3)
            name = f"{'ocdbt' if use_ocdbt else 'directories'}-zarr{3 if use_zarr3 else 2}"
            value = tree() if use_ocdbt else tree() | {"weird names": {}}  # a slash would be a directory of its own
            ocp.Checkpointer(handler).save(directory / name, args=ocp.args.PyTreeSave(value))
    with ocp.CheckpointManager(directory / "managed") as manager:
        manager.save(3, args=ocp.args.PyTreeSave(tree()))


def restore(directory: Path) -> None:
    import orbax.checkpoint as ocp

    for path in sorted(directory.iterdir()):
        if path.name == "managed":
            with ocp.CheckpointManager(path) as manager:
                assert list(manager.all_steps()) == [3]
                assert_same(manager.restore(3, args=ocp.args.PyTreeRestore()), lists(tree()), path.name)
            continue
        assert_same(ocp.PyTreeCheckpointer().restore(path), lists(tree()), path.name)
        arguments = ocp.checkpoint_utils.construct_restore_args(tree())
        found = ocp.PyTreeCheckpointer().restore(path, item=tree(), restore_args=arguments)
        assert_same(found, tree(), f"{path.name} with a target")


if __name__ == "__main__":
    {"save": save, "restore": restore}[sys.argv[1]](Path(sys.argv[2]))
