"""Cases of restores without a target, and with the targets of ``StandardRestore``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Format, Layout
from jax.sharding import NamedSharding, SingleDeviceSharding

from conformance.orbax_restoring_worlds import (
    DEVICES,
    MESH,
    OTHER,
    ROWS,
    TURNED,
    P,
    Pair,
    ShapeDtypeStruct,
    World,
    case,
    described,
    keys,
    mixed,
    nnx_state,
    plain,
    state,
    target,
)

# --- no target


@case("mixed")
def everything_comes_back_as_it_was_saved(w: World, d: Path) -> Any:
    return w.pytree(d)


@case("mixed")
def standard_without_a_target(w: World, d: Path) -> Any:
    return w.standard(d)


@case("plain")
def standard_without_a_target_of_arrays_and_numbers(w: World, d: Path) -> Any:
    return w.standard(d)


@case("state")
def nodes_of_classes_are_dicts_without_a_target(w: World, d: Path) -> Any:
    return w.pytree(d)


@case("nnx")
def an_nnx_state_without_a_target(w: World, d: Path) -> Any:
    return w.standard(d)


@case("keys")
def typed_keys_without_a_target(w: World, d: Path) -> Any:
    return w.pytree(d)


@case("keys")
def typed_keys_without_a_target_by_standard(w: World, d: Path) -> Any:
    return w.standard(d)


@case("lone")
def a_lone_leaf(w: World, d: Path) -> Any:
    return w.pytree(d)


@case("listed")
def a_list_without_a_target(w: World, d: Path) -> Any:
    return w.pytree(d)


@case("plain", FileNotFoundError)
def a_directory_that_is_not_there(w: World, d: Path) -> Any:
    return w.pytree(d / "elsewhere")


@case("plain", FileNotFoundError)
def a_directory_that_is_not_there_by_standard(w: World, d: Path) -> Any:
    return w.standard(d / "elsewhere")


@case("plain", FileNotFoundError)
def an_empty_directory(w: World, d: Path) -> Any:
    (d.parent / "empty").mkdir(exist_ok=True)
    return w.pytree(d.parent / "empty")


@case("plain", FileNotFoundError)
def an_empty_directory_with_a_target(w: World, d: Path) -> Any:
    (d.parent / "empty").mkdir(exist_ok=True)
    return w.pytree(d.parent / "empty", {"a": 1})


# --- targets of StandardRestore


@case("plain")
def a_target_of_real_values(w: World, d: Path) -> Any:
    return w.standard(d, plain())


@case("plain")
def a_target_of_descriptions(w: World, d: Path) -> Any:
    return w.standard(d, jax.tree.map(target, plain()))


@case("plain")
def descriptions_without_sharding_take_the_saved_one(w: World, d: Path) -> Any:
    return w.standard(d, jax.tree.map(lambda v: described(v, None) if hasattr(v, "dtype") else v, plain()))


@case("plain")
def other_shardings(w: World, d: Path) -> Any:
    wanted = plain()
    wanted["w"] = described(wanted["w"], TURNED)
    wanted["n"] = described(wanted["n"], SingleDeviceSharding(DEVICES[3]))
    wanted["inner"]["a"] = described(wanted["inner"]["a"], NamedSharding(OTHER, P(("a", "b"))))
    wanted["inner"]["b"] = described(wanted["inner"]["b"], NamedSharding(OTHER, P()))
    return w.standard(d, wanted)


@case("plain")
def other_dtypes(w: World, d: Path) -> Any:
    wanted = plain()
    wanted["w"] = described(wanted["w"], TURNED, jnp.bfloat16)
    wanted["n"] = wanted["n"].astype("int32")
    wanted["inner"]["a"] = wanted["inner"]["a"].astype("float32")
    wanted["inner"]["b"] = described(wanted["inner"]["b"], None, np.float16)
    wanted["step"] = 0.0
    wanted["rate"] = 0
    return w.standard(d, wanted)


@case("plain")
def numbers_as_bools_and_arrays_as_numbers_of_rank_0(w: World, d: Path) -> Any:
    wanted = plain()
    wanted["step"] = np.zeros((), "int8")
    wanted["rate"] = jnp.zeros(())
    return w.standard(d, wanted)


@case("plain", ValueError)
def an_array_is_no_number(w: World, d: Path) -> Any:
    return w.standard(d, plain() | {"w": 3})


@case("plain", ValueError)
def a_string_in_a_standard_target(w: World, d: Path) -> Any:
    return w.standard(d, plain() | {"w": "text"})


@case("plain", ValueError)
def a_numpy_number_in_a_standard_target(w: World, d: Path) -> Any:
    return w.standard(d, plain() | {"step": np.int32(3)})


@case("plain", ValueError)
def a_placeholder_in_a_standard_target(w: World, d: Path) -> Any:
    return w.standard(d, plain() | {"w": ...})


@case("plain")
def none_in_a_standard_target(w: World, d: Path) -> Any:
    return w.standard(d, plain() | {"w": None})


@case("mixed", ValueError)
def strings_among_the_leaves_of_a_standard_target(w: World, d: Path) -> Any:
    return w.standard(d, mixed())


@case("plain", ValueError)
def a_missing_key(w: World, d: Path) -> Any:
    wanted = plain()
    del wanted["inner"]["a"]
    return w.standard(d, wanted)


@case("plain", ValueError)
def a_key_too_many(w: World, d: Path) -> Any:
    return w.standard(d, plain() | {"more": 1})


@case("plain", ValueError)
def a_described_key_too_many(w: World, d: Path) -> Any:
    return w.standard(d, plain() | {"more": ShapeDtypeStruct((3,), jnp.float32)})


@case("plain", ValueError)
def a_dict_where_a_leaf_is(w: World, d: Path) -> Any:
    return w.standard(d, plain() | {"w": {"x": 1}})


@case("plain", ValueError)
def a_leaf_where_a_dict_is(w: World, d: Path) -> Any:
    return w.standard(d, plain() | {"inner": 1})


@case("plain", ValueError)
def a_list_that_is_too_short(w: World, d: Path) -> Any:
    wanted = plain()
    wanted["inner"]["c"] = wanted["inner"]["c"][:1]
    return w.standard(d, wanted)


@case("plain")
def a_tuple_where_a_list_was(w: World, d: Path) -> Any:
    wanted = plain()
    wanted["inner"]["c"] = tuple(wanted["inner"]["c"])
    return w.standard(d, wanted)


@case("plain", ValueError)
def a_named_tuple_where_a_list_was(w: World, d: Path) -> Any:
    wanted = plain()
    wanted["inner"]["c"] = Pair(*wanted["inner"]["c"])
    return w.standard(d, wanted)


@case("plain", ValueError)
def another_shape(w: World, d: Path) -> Any:
    return w.standard(d, plain() | {"w": jnp.zeros((8, 4))})


@case("plain")
def another_shape_of_a_numpy_array(w: World, d: Path) -> Any:
    return w.standard(d, plain() | {"n": np.zeros((2, 2))})


@case("plain", ValueError)
def another_rank(w: World, d: Path) -> Any:
    return w.standard(d, plain() | {"w": jnp.zeros(64)}, strict=False)


@case("plain")
def arrays_are_cut_and_padded(w: World, d: Path) -> Any:
    wanted = plain()
    wanted["w"] = ShapeDtypeStruct((4, 12), jnp.float32, sharding=NamedSharding(MESH, P("x", "y")))
    wanted["inner"]["a"] = ShapeDtypeStruct((24,), jnp.float32, sharding=ROWS)
    wanted["n"] = jnp.zeros((5, 2))
    return w.standard(d, wanted, strict=False)


@case("plain")
def numpy_arrays_are_not_cut(w: World, d: Path) -> Any:
    return w.standard(d, plain() | {"n": np.zeros((2, 2))}, strict=False)


@case("plain", ValueError)
def a_sharding_that_does_not_divide(w: World, d: Path) -> Any:
    return w.standard(d, plain() | {"n": ShapeDtypeStruct((3, 4), np.float32, sharding=NamedSharding(OTHER, P("a")))})


@case("plain")
def layouts_are_given_when_asked_for(w: World, d: Path) -> Any:
    layout = Format(Layout((0, 1)), NamedSharding(OTHER, P("a", "b")))
    return w.standard(d, plain() | {"w": jax.device_put(np.asarray(plain()["w"]), layout)}, support_layout=True)


@case("state")
def a_training_state(w: World, d: Path) -> Any:
    return w.standard(d, state())


@case("state")
def a_described_training_state(w: World, d: Path) -> Any:
    return w.standard(d, jax.tree.map(lambda v: described(v, None), state()))


@case("state")
def a_training_state_on_other_shardings(w: World, d: Path) -> Any:
    return w.standard(d, jax.tree.map(lambda v: described(v, NamedSharding(OTHER, P())), state()))


@case("nnx")
def an_nnx_state(w: World, d: Path) -> Any:
    return w.standard(d, nnx_state())


@case("nnx")
def a_described_nnx_state(w: World, d: Path) -> Any:
    return w.standard(d, jax.tree.map(lambda v: described(v, None), nnx_state()))


@case("keys")
def typed_keys_in_a_target(w: World, d: Path) -> Any:
    return w.standard(d, keys())


@case("keys")
def described_keys_in_a_target(w: World, d: Path) -> Any:
    return w.standard(d, jax.tree.map(described, keys()))


@case("keys")
def described_keys_without_sharding(w: World, d: Path) -> Any:
    return w.standard(d, jax.tree.map(lambda v: described(v, None), keys()))


@case("keys")
def typed_keys_as_numpy_arrays(w: World, d: Path) -> Any:
    return w.standard(d, jax.tree.map(lambda v: np.zeros(jnp.shape(v), "uint32"), keys()))


@case("lone")
def a_lone_leaf_with_a_target(w: World, d: Path) -> Any:
    return w.standard(d, jnp.zeros(8))


@case("listed")
def a_list_as_a_tuple(w: World, d: Path) -> Any:
    return w.standard(d, (np.zeros(3), [1, jnp.zeros(8)]))


@case("plain", ValueError)
def the_metadata_as_a_standard_target(w: World, d: Path) -> Any:
    return w.standard(d, w.metadata(d))
