"""One restore in two worlds: Orbax's names and ours, the checkpoints that both restore, and how results are compared.

A case is a function of a world and of the directory of a checkpoint that Orbax saved. In both worlds it must give the
same leaves in the same containers, or raise the same kind of exception.
"""

from __future__ import annotations

import builtins
import dataclasses
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as theirs
from etils import epath
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import ocdbt_py.interop.orbax as ours

P: Any = PartitionSpec  # JAX has no types for these two
ShapeDtypeStruct: Any = jax.ShapeDtypeStruct

DEVICES = np.array(jax.devices())
MESH = Mesh(DEVICES.reshape(4, 2), ("x", "y"))
OTHER = Mesh(DEVICES[[5, 2, 7, 0]].reshape(2, 2), ("a", "b"))
ROWS = NamedSharding(MESH, P("x"))
TURNED = NamedSharding(OTHER, P("b", "a"))


class World(NamedTuple):
    """Orbax's package, or ours, and short names for what the cases use of it."""

    ocp: Any

    @property
    def args(self) -> Any:
        return self.ocp.args

    @property
    def utils(self) -> Any:
        return self.ocp.checkpoint_utils

    @property
    def transforms(self) -> Any:
        return self.ocp.transform_utils

    @property
    def tree(self) -> Any:
        return self.ocp.tree

    @property
    def steps(self) -> Any:
        return self.ocp.path.step

    def restore(self, path: Path, wanted: Any) -> Any:
        is_standard = isinstance(wanted, self.args.StandardRestore)
        handler = self.ocp.StandardCheckpointHandler() if is_standard else self.ocp.PyTreeCheckpointHandler()
        with self.ocp.Checkpointer(handler) as checkpointer:
            return checkpointer.restore(path, args=wanted)

    def metadata(self, path: Path) -> Any:
        return self.ocp.PyTreeCheckpointHandler().metadata(epath.Path(path))

    def standard(self, path: Path, item: Any = None, **options: Any) -> Any:
        return self.restore(path, self.args.StandardRestore(item, **options))

    def pytree(self, path: Path, item: Any = None, **options: Any) -> Any:
        return self.restore(path, self.args.PyTreeRestore(item, **options))

    def array(self, **options: Any) -> Any:
        return self.ocp.ArrayRestoreArgs(**options)

    def leaf(self, restore_type: Any = None, dtype: Any = None) -> Any:
        return self.ocp.RestoreArgs(restore_type, dtype)


ORBAX = World(theirs)
OURS = World(ours)


class Pair(NamedTuple):
    first: Any
    second: Any


@dataclasses.dataclass
class Model:
    """Not known to JAX before it is registered."""

    kernel: Any
    bias: Any


jax.tree_util.register_dataclass(Model, data_fields=["kernel", "bias"], meta_fields=[])


def on_mesh(array: Any, sharding: Any = ROWS) -> Any:
    return jax.device_put(array, sharding)


def mixed() -> Any:
    return {
        "w": on_mesh(jnp.arange(64.0).reshape(8, 8), NamedSharding(MESH, P("x", "y"))),
        "one": jnp.arange(6, dtype=jnp.int32),
        "n": np.arange(12, dtype="int16").reshape(3, 4),
        "zero": np.array(2.5),
        "half": jnp.arange(8.0, dtype=jnp.bfloat16),
        "step": 7,
        "rate": 0.5,
        "flag": True,
        "small": np.float32(1.5),
        "text": "hi",
        "none": None,
        "empty": {"d": {}, "l": [], "t": ()},
        "list": [1, {"deep": on_mesh(jnp.ones((8, 2)))}, (np.ones(2), 3)],
        "pair": Pair(np.zeros(3), 4),
    }


def plain() -> Any:
    return {
        "w": on_mesh(jnp.arange(64.0).reshape(8, 8), NamedSharding(MESH, P("x", "y"))),
        "n": np.arange(12.0).reshape(3, 4),
        "step": 7,
        "rate": 0.5,
        "inner": {"a": on_mesh(jnp.arange(16)), "b": np.arange(3), "c": [np.ones(2), np.zeros(2)]},
    }


def state() -> Any:
    model = Model(on_mesh(jnp.arange(16.0).reshape(8, 2)), jnp.zeros(2))
    return {"params": model, "opt": optax.adam(0.1).init({"k": model.kernel}), "step": jnp.array(3)}


def nnx_state() -> Any:
    class Net(nnx.Module):  # type: ignore[misc]
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.layers = nnx.List([nnx.Linear(2, 3, rngs=rngs), nnx.Linear(3, 1, rngs=rngs)])
            self.dropout = nnx.Dropout(0.1, rngs=rngs)

    return nnx.state(Net(nnx.Rngs(0)))


def keys() -> Any:
    return {
        "one": jax.random.key(3),
        "many": on_mesh(jax.random.split(jax.random.key(1), 8), NamedSharding(MESH, P("x"))),
        "rbg": jax.random.key(5, impl="rbg"),
        "old": jax.random.PRNGKey(9),
        "a": jnp.ones(3),
    }


CHECKPOINTS: dict[str, Callable[[], Any]] = {
    "mixed": mixed,
    "plain": plain,
    "state": state,
    "nnx": nnx_state,
    "keys": keys,
    "lone": lambda: jnp.arange(8.0),
    "listed": lambda: [np.arange(3), (1, on_mesh(jnp.ones(8)))],
}


def described(value: Any, sharding: Any = "its own", dtype: Any = None) -> Any:
    return ShapeDtypeStruct(
        value.shape, dtype or value.dtype, sharding=value.sharding if sharding == "its own" else sharding
    )


def target(value: Any) -> Any:
    return described(value) if isinstance(value, jax.Array) else value


class Case(NamedTuple):
    """``raises``: the built-in exception that Orbax's is, where it raises one."""

    checkpoint: str
    function: Callable[[World, Path], Any]
    raises: type[Exception] | None


CASES: dict[str, Case] = {}


def case(
    checkpoint: str, raises: type[Exception] | None = None
) -> Callable[[Callable[[World, Path], Any]], Callable[[World, Path], Any]]:
    def register(function: Callable[[World, Path], Any]) -> Callable[[World, Path], Any]:
        CASES[function.__name__] = Case(checkpoint, function, raises)
        return function

    return register


# --- the comparison


class Outcome(NamedTuple):
    value: Any
    error: BaseException | None


def outcome(world: World, function: Callable[[World, Path], Any], directory: Path) -> Outcome:
    try:
        return Outcome(function(world, directory), None)
    except Exception as error:
        return Outcome(None, error)


def builtin_kind(error: BaseException) -> type:
    """The built-in exception that an error is."""
    return next(kind for kind in type(error).__mro__ if kind.__module__ == builtins.__name__)


def unexpected(their: Outcome, raises: type[Exception] | None) -> str:
    """What is wrong with a case itself: both worlds may fail alike, but not by accident."""
    kind = None if their.error is None else builtin_kind(their.error)
    return "" if kind is raises else f"Orbax should raise {raises}, but: {their.error!r}, {their.value!r}"


def difference(their: Outcome, our: Outcome) -> str:
    if their.error is not None or our.error is not None:
        if our.error is None:
            return f"Orbax raised {their.error!r}, and we gave {our.value!r}"
        shown = "".join(traceback.format_exception(our.error))
        if their.error is None:
            return f"Orbax gave {their.value!r}, and we raised\n{shown}"
        kind = builtin_kind(their.error)
        return "" if isinstance(our.error, kind) else f"Orbax raised {their.error!r}, and we\n{shown}"
    return compared(their.value, our.value)


def compared(their: Any, our: Any) -> str:
    structures: list[Any] = [jax.tree.structure(value) for value in (their, our)]
    if structures[0] != structures[1]:
        return f"Structures differ:\n{structures[0]}\n{structures[1]}"
    for (path, one), other in zip(jax.tree_util.tree_leaves_with_path(their), jax.tree.leaves(our), strict=True):
        where = jax.tree_util.keystr(path)
        if type(one) is not type(other):
            return f"{where}: {one!r} and {other!r}"
        if isinstance(one, jax.Array | np.ndarray | np.generic):
            said = [(value.shape, value.dtype, getattr(value, "sharding", None)) for value in (one, other)]
            if said[0] != said[1]:
                return f"{where}: {said[0]} and {said[1]}"
            if isinstance(one, jax.Array) and jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
                one, other = jax.random.key_data(one), jax.random.key_data(other)
            elif isinstance(one, jax.Array) and _layout(one) != _layout(other):
                return f"{where}: {_layout(one)} and {_layout(other)}"
            if np.asarray(one).tobytes() != np.asarray(other).tobytes():
                return f"{where}: {one} and {other}"
        elif one != other:
            return f"{where}: {one!r} and {other!r}"
    return ""


def _layout(array: Any) -> Any:
    """Where an array lies, and in which order its elements do."""
    return array.format
