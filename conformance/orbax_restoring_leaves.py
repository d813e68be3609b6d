"""Cases of ``PyTreeRestore``: arguments by leaf, and parts of a tree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding

from conformance.orbax_restoring_worlds import (
    MESH,
    OTHER,
    TURNED,
    Model,
    P,
    World,
    case,
    described,
    keys,
    mixed,
    plain,
)

# --- PyTreeRestore


@case("mixed")
def a_pytree_target_says_nothing_of_types(w: World, d: Path) -> Any:
    wanted = mixed() | {"n": jnp.zeros(3), "step": 0.5, "w": np.zeros(2)}
    return w.pytree(d, wanted)


@case("mixed")
def a_pytree_target_of_anything(w: World, d: Path) -> Any:
    return w.pytree(d, jax.tree.map(lambda _: 0, mixed()))


@case("mixed")
def empty_places_stay_as_the_target_has_them(w: World, d: Path) -> Any:
    return w.pytree(d, mixed() | {"empty": {"d": None, "l": {}, "t": optax.EmptyState()}, "w": None, "none": 3})


@case("mixed")
def restore_args_without_a_target(w: World, d: Path) -> Any:
    wanted = jax.tree.map(lambda _: w.leaf(), mixed())
    wanted["list"][2] = list(wanted["list"][2])  # as it is stored
    wanted["pair"] = wanted["pair"]._asdict()
    wanted["empty"] = {"d": {}, "l": [], "t": ()}
    return w.pytree(d, restore_args=wanted)


@case("plain")
def leaves_of_other_types_and_dtypes(w: World, d: Path) -> Any:
    wanted = jax.tree.map(lambda _: w.leaf(), plain())
    wanted["w"] = w.leaf(np.ndarray, np.float16)
    wanted["n"] = w.array(sharding=NamedSharding(OTHER, P(None, "b")), dtype=jnp.bfloat16)
    wanted["step"] = w.leaf(float)
    wanted["rate"] = w.leaf(np.ndarray)
    wanted["inner"]["a"] = w.array(mesh=OTHER, mesh_axes=P("a"))
    wanted["inner"]["b"] = w.leaf(dtype=np.dtype("float32"))
    return w.pytree(d, restore_args=wanted)


@case("plain")
def restore_args_with_a_target(w: World, d: Path) -> Any:
    wanted = plain()
    wanted["inner"]["c"] = tuple(wanted["inner"]["c"])
    return w.pytree(d, wanted, restore_args=w.utils.construct_restore_args(wanted))


@case("plain", ValueError)
def a_jax_array_needs_a_sharding(w: World, d: Path) -> Any:
    wanted = jax.tree.map(lambda _: w.leaf(), plain())
    wanted["n"] = w.array()
    return w.pytree(d, restore_args=wanted)


@case("plain")
def a_jax_array_on_the_saved_sharding(w: World, d: Path) -> Any:
    wanted = jax.tree.map(lambda _: w.leaf(), plain())
    wanted["w"] = w.array(dtype=np.float16)
    return w.pytree(d, restore_args=wanted)


@case("plain", ValueError)
def global_shapes_that_differ(w: World, d: Path) -> Any:
    wanted = jax.tree.map(lambda _: w.leaf(), plain())
    wanted["w"] = w.array(sharding=TURNED, global_shape=(4, 4))
    return w.pytree(d, restore_args=wanted)


@case("plain")
def global_shapes_that_differ_and_may(w: World, d: Path) -> Any:
    wanted = jax.tree.map(lambda _: w.leaf(), plain())
    wanted["w"] = w.array(sharding=TURNED, global_shape=(4, 10), strict=False)
    wanted["n"] = w.array(sharding=TURNED, shape=(2, 6), strict=False)
    return w.pytree(d, restore_args=wanted)


@case("plain", ValueError)
def shape_and_global_shape_that_differ(w: World, d: Path) -> Any:
    return w.array(sharding=TURNED, global_shape=(4, 4), shape=(3, 3))


@case("plain", ValueError)
def a_target_s_shape_counts_for_array_args(w: World, d: Path) -> Any:
    wanted = jax.tree.map(lambda _: w.leaf(), plain())
    wanted["w"] = w.array(sharding=TURNED)
    return w.pytree(d, plain() | {"w": jnp.zeros((4, 4))}, restore_args=wanted)


@case("plain")
def single_replica_args(w: World, d: Path) -> Any:
    wanted = jax.tree.map(lambda _: w.leaf(), plain())
    make = w.ocp.type_handlers.SingleReplicaArrayRestoreArgs
    wanted["w"] = make(sharding=NamedSharding(MESH, P(None, "y")), global_shape=(8, 8), dtype=jnp.float32)
    return w.pytree(d, restore_args=wanted)


@case("plain", ValueError)
def restore_args_of_another_structure(w: World, d: Path) -> Any:
    return w.pytree(d, restore_args={"w": w.leaf()})


@case("plain", ValueError)
def an_array_as_a_string(w: World, d: Path) -> Any:
    wanted = jax.tree.map(lambda _: w.leaf(), plain())
    return w.pytree(d, restore_args=wanted | {"n": w.leaf(complex)})


@case("mixed")
def descriptions_as_a_pytree_target(w: World, d: Path) -> Any:
    return w.pytree(d, w.metadata(d))


@case("mixed")
def descriptions_make_restore_args(w: World, d: Path) -> Any:
    found = w.metadata(d)
    return w.pytree(d, found, restore_args=w.utils.construct_restore_args(found.tree))


@case("keys")
def keys_as_numpy_arrays_by_args(w: World, d: Path) -> Any:
    return w.pytree(d, restore_args=jax.tree.map(lambda _: w.leaf(np.ndarray), keys()))


@case("keys")
def keys_on_other_shardings(w: World, d: Path) -> Any:
    wanted = jax.tree.map(lambda v: w.array(sharding=NamedSharding(OTHER, P())), keys())
    return w.pytree(d, restore_args=wanted)


@case("listed")
def restore_args_for_a_list(w: World, d: Path) -> Any:
    return w.pytree(d, restore_args=[w.leaf(), [w.leaf(float), w.leaf(np.ndarray)]])


# --- parts


@case("plain")
def a_part_of_the_tree(w: World, d: Path) -> Any:
    return w.pytree(d, {"w": 0, "inner": {"b": 0}}, partial_restore=True)


@case("plain")
def a_part_with_args(w: World, d: Path) -> Any:
    wanted = {"w": described(plain()["w"], TURNED), "inner": {"b": np.zeros(3, "int8")}}
    return w.pytree(d, wanted, restore_args=w.utils.construct_restore_args(wanted), partial_restore=True)


@case("plain")
def a_part_and_what_is_not_there(w: World, d: Path) -> Any:
    return w.pytree(d, {"w": 0, "more": 5, "inner": {"x": {"y": 6}}}, partial_restore=True)


@case("plain", ValueError)
def a_part_of_a_list(w: World, d: Path) -> Any:
    return w.pytree(d, {"inner": {"c": [0]}}, partial_restore=True)


@case("plain")
def a_part_with_a_whole_list(w: World, d: Path) -> Any:
    return w.pytree(d, {"inner": {"c": (0, 0)}}, partial_restore=True)


@case("plain", TypeError)
def a_part_that_is_a_leaf_where_a_dict_is(w: World, d: Path) -> Any:
    return w.pytree(d, {"inner": 0}, partial_restore=True)


@case("plain", TypeError)
def a_part_that_is_a_dict_where_a_leaf_is(w: World, d: Path) -> Any:
    return w.pytree(d, {"w": {"x": 0}}, partial_restore=True)


@case("plain", TypeError)
def a_part_that_is_a_list_where_a_dict_is(w: World, d: Path) -> Any:
    return w.pytree(d, {"inner": [0, 0, 0]}, partial_restore=True)


@case("mixed")
def a_part_with_empty_places(w: World, d: Path) -> Any:
    return w.pytree(d, {"step": 0, "none": 1, "empty": {"d": {}, "l": None}, "w": None}, partial_restore=True)


@case("mixed")
def a_part_with_none_for_a_dict(w: World, d: Path) -> Any:
    return w.pytree(d, {"step": 0, "empty": None}, partial_restore=True)


@case("mixed", TypeError)
def a_part_with_an_empty_dict_for_a_dict(w: World, d: Path) -> Any:
    return w.pytree(d, {"step": 0, "empty": {}}, partial_restore=True)


@case("mixed", TypeError)
def a_part_with_none_for_a_list(w: World, d: Path) -> Any:
    return w.pytree(d, {"step": 0, "list": None}, partial_restore=True)


@case("state")
def a_part_of_a_state_with_classes(w: World, d: Path) -> Any:
    return w.pytree(d, {"params": Model(0, 0)}, partial_restore=True)


@case("plain")
def placeholders_are_not_read(w: World, d: Path) -> Any:
    return w.pytree(d, jax.tree.map(lambda _: 0, plain()) | {"w": ..., "step": ...})


@case("plain")
def a_placeholder_for_what_is_not_there(w: World, d: Path) -> Any:
    return w.pytree(d, jax.tree.map(lambda _: 0, plain()) | {"more": ...})


@case("plain", ValueError)
def a_placeholder_for_a_whole_dict(w: World, d: Path) -> Any:
    return w.pytree(d, plain() | {"inner": ...})


@case("plain", ValueError)
def a_placeholder_does_not_excuse_what_is_missing(w: World, d: Path) -> Any:
    wanted = plain() | {"w": ...}
    del wanted["step"]
    return w.pytree(d, wanted)


@case("plain")
def placeholders_with_args(w: World, d: Path) -> Any:
    wanted = plain() | {"w": ...}
    return w.pytree(d, wanted, restore_args=w.utils.construct_restore_args(wanted))


@case("plain")
def placeholders_in_a_part(w: World, d: Path) -> Any:
    return w.pytree(d, {"w": ..., "step": 0}, partial_restore=True)
