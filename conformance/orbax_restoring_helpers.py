"""Cases of transformations, of descriptions, and of the helpers around a restore."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from conformance.orbax_restoring_worlds import (
    ROWS,
    TURNED,
    Model,
    Pair,
    ShapeDtypeStruct,
    World,
    case,
    keys,
    mixed,
    plain,
)

# --- transformations


def all_of(w: World, wanted: Any) -> Any:
    return jax.tree.map(lambda _: w.leaf(), wanted)


@case("plain")
def leaves_are_renamed(w: World, d: Path) -> Any:
    wanted = {"new": 0, "inner": {"a": 0}}
    transforms = {"new": w.transforms.Transform(original_key="n")}
    return w.pytree(d, wanted, restore_args=all_of(w, wanted), transforms=transforms)


@case("plain")
def leaves_are_renamed_by_patterns(w: World, d: Path) -> Any:
    wanted = {"outer": {"a": 0, "b": 0}, "step": 0}
    transforms = {r"outer/(\w)": w.transforms.Transform(original_key=r"inner/\1")}
    return w.pytree(d, wanted, restore_args=all_of(w, wanted), transforms=transforms)


@case("plain")
def leaves_get_defaults(w: World, d: Path) -> Any:
    wanted = {"w": 5, "more": 6, "step": 7.5}
    transforms = {"w": w.transforms.Transform(use_fallback=True)}
    return w.pytree(d, wanted, restore_args=all_of(w, wanted), transforms=transforms)


@case("plain")
def leaves_default_to_the_target(w: World, d: Path) -> Any:
    wanted = {"n": 5, "more": 6, "step": 7.5}
    transforms = {"n": w.transforms.Transform(use_fallback=True)}
    return w.pytree(
        d, wanted, restore_args=all_of(w, wanted), transforms=transforms, transforms_default_to_original=False
    )


@case("plain")
def leaves_are_computed(w: World, d: Path) -> Any:
    wanted = {"n": 0, "double": 0, "sum": 0}
    transforms = {
        "double": w.transforms.Transform(original_key="rate", value_fn=lambda value: value * 2),
        "sum": w.transforms.RestoreTransform(
            multi_value_fn=lambda key, found, args: (key, found["step"] + found["rate"], args.dtype),
            multi_value_fn_input_args={"step": w.leaf(), "rate": w.leaf(float, np.float32)},
        ),
    }
    return w.pytree(d, wanted, restore_args=all_of(w, wanted), transforms=transforms)


@case("plain")
def renamed_leaves_with_args(w: World, d: Path) -> Any:
    wanted = {"new": jnp.zeros((8, 8))}
    transforms = {"new": w.transforms.Transform(original_key="w")}
    given = {"new": w.array(sharding=TURNED, dtype=jnp.bfloat16)}
    return w.pytree(d, wanted, restore_args=given, transforms=transforms)


@case("plain")
def no_transformations_at_all(w: World, d: Path) -> Any:
    wanted = {"n": 0, "step": 0, "more": 3}
    return w.pytree(d, wanted, restore_args=all_of(w, wanted), transforms={})


@case("plain", ValueError)
def transformations_need_a_target(w: World, d: Path) -> Any:
    return w.pytree(d, transforms={"new": w.transforms.Transform(original_key="n")})


@case("plain", ValueError)
def transformations_need_args(w: World, d: Path) -> Any:
    return w.pytree(d, {"n": 0}, transforms={"n": w.transforms.Transform(value_fn=lambda value: value)})


@case("plain", ValueError)
def a_transformation_of_what_is_not_there(w: World, d: Path) -> Any:
    wanted = {"new": 0}
    transforms = {"new": w.transforms.Transform(original_key="old")}
    return w.pytree(d, wanted, restore_args=all_of(w, wanted), transforms=transforms)


@case("plain", ValueError)
def a_function_of_several_needs_its_inputs(w: World, d: Path) -> Any:
    wanted = {"new": 0}
    transforms = {"new": w.transforms.RestoreTransform(multi_value_fn=lambda *_: 1)}
    return w.pytree(d, wanted, restore_args=all_of(w, wanted), transforms=transforms)


@case("plain", ValueError)
def a_plain_function_of_several(w: World, d: Path) -> Any:
    wanted = {"new": 0}
    transforms = {"new": w.transforms.Transform(multi_value_fn=lambda *_: 1)}
    return w.pytree(d, wanted, restore_args=all_of(w, wanted), transforms=transforms)


@case("state")
def a_state_is_transformed(w: World, d: Path) -> Any:
    wanted = {"model": Model(0, 0), "count": 0}
    transforms = {
        r"model/(.*)": w.transforms.Transform(original_key=r"params/\1"),
        "count": w.transforms.Transform(original_key="opt/0/count"),
    }
    return w.pytree(d, wanted, restore_args=all_of(w, wanted), transforms=transforms)


@case("plain")
def transformations_of_plain_trees(w: World, d: Path) -> Any:
    make = w.transforms.Transform
    old = {"a": 1, "b": {"c": 5, "d": [0, 1, 2]}, "f": 2, "b1": {"c": 2}, "b2": {"c": 3}}
    new = {"a1": ..., "c1": ..., "x": ..., "z": ..., "f": ..., "g": 5, "x1": {"c": 2}, "x2": {"c": 3}}
    how = {
        "a1": make(original_key="a"),
        "c1": make(original_key="b/c", value_fn=lambda v: -v),
        "x": make(multi_value_fn=lambda key, kv: (key, kv["b"]["d"][0])),
        "z": make(multi_value_fn=lambda key, kv: kv["a"] * 2 + sum(kv["b"]["d"])),
        r"x(\d.*)": make(original_key=r"b\1"),
    }
    return [w.transforms.apply_transformations(old, how, new, default) for default in (True, False)]


@case("plain", AssertionError)
def transformations_that_contradict_themselves(w: World, d: Path) -> Any:
    return w.transforms.Transform(original_key="a", use_fallback=True)


@case("plain")
def trees_are_merged_and_intersected(w: World, d: Path) -> Any:
    one, two = {"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"c": 5}, "e": (6, 7)}
    return [
        w.transforms.merge_trees(one, two),
        w.transforms.merge_trees(one, two, target={"b": {"c": 0}, "e": (0, 0)}),
        w.transforms.intersect_trees(one, two),
    ]


# --- descriptions, restore arguments, trees


def described_leaf(leaf: Any) -> Any:
    """What a description says, without whose class it is of."""
    found = [type(leaf).__name__, leaf.name, str(leaf.directory)]
    if hasattr(leaf, "shape"):
        sharding = leaf.sharding
        found += [leaf.shape, str(leaf.dtype), sharding and sharding.to_serialized_string()]
        found.append(sharding and sharding.to_jax_sharding())
        found.append(leaf.storage and (leaf.storage.chunk_shape, leaf.storage.write_shape))
    return tuple(found)


def described_tree(w: World, d: Path) -> Any:
    found = w.metadata(d)
    is_leaf = lambda leaf: hasattr(leaf, "directory")  # noqa: E731
    as_tree = jax.tree.map(lambda leaf: described_leaf(leaf)[1], found).tree
    return [jax.tree.map(described_leaf, found.tree, is_leaf=is_leaf), as_tree, found.custom_metadata, found.use_zarr3]


@case("mixed")
def descriptions_of_all_kinds(w: World, d: Path) -> Any:
    return described_tree(w, d)


@case("nnx")
def descriptions_of_an_nnx_state(w: World, d: Path) -> Any:
    return described_tree(w, d)


@case("keys")
def descriptions_of_keys(w: World, d: Path) -> Any:
    return described_tree(w, d)


@case("lone")
def the_description_of_a_lone_leaf(w: World, d: Path) -> Any:
    return described_tree(w, d)


@case("listed")
def descriptions_in_a_list(w: World, d: Path) -> Any:
    found = w.metadata(d)
    return [described_tree(w, d), len(found), found[0].shape, found.get(7, "absent"), 0 in found]


@case("plain", FileNotFoundError)
def descriptions_of_nothing(w: World, d: Path) -> Any:
    return w.metadata(d / "elsewhere")


def as_fields(made: Any) -> Any:
    def fields(args: Any) -> Any:
        return type(args).__name__, *(str(getattr(args, field.name)) for field in dataclasses.fields(args))

    return jax.tree.map(fields, made, is_leaf=lambda value: hasattr(value, "restore_type"))


@case("mixed")
def restore_args_of_a_tree(w: World, d: Path) -> Any:
    wanted = mixed()
    del wanted["small"]
    return as_fields(w.utils.construct_restore_args(wanted))


@case("mixed", ValueError)
def restore_args_of_a_tree_with_a_numpy_number(w: World, d: Path) -> Any:
    return as_fields(w.utils.construct_restore_args(mixed()))


@case("plain")
def restore_args_with_shardings(w: World, d: Path) -> Any:
    wanted = plain()
    shardings = jax.tree.map(lambda _: ROWS, wanted)
    make = w.utils.construct_restore_args
    return as_fields([make(wanted, shardings), make(wanted, shardings, set_global_shape=False, strict=False)])


@case("plain", ValueError)
def restore_args_of_an_unknown_leaf(w: World, d: Path) -> Any:
    return w.utils.construct_restore_args({"a": object()})


@case("keys")
def restore_args_of_keys(w: World, d: Path) -> Any:
    return as_fields(w.utils.construct_restore_args(keys()))


@case("plain")
def trees_by_path(w: World, d: Path) -> Any:
    value = {"a": [1, (2, Pair(3, None))], "b": {}, "c": {4: 5}, "d": Model(6, {"x": 7})}
    flat = w.tree.to_flat_dict(value)
    return [
        flat,
        w.tree.to_flat_dict(value, sep="/"),
        w.tree.to_flat_dict(value, keep_empty_nodes=True),
        w.tree.to_flat_dict(value, is_leaf=lambda v: isinstance(v, tuple)),
        w.tree.from_flat_dict(flat),
        w.tree.from_flat_dict(flat, target=value),
        w.tree.serialize_tree(value, keep_empty_nodes=True),
        w.tree.deserialize_tree(w.tree.serialize_tree(value, keep_empty_nodes=True), value),
        w.tree.get_param_names(value),
        w.tree.is_flat_dict({"a": 1}),
        w.tree.is_flat_dict(value),
        w.tree.str_keypath(jax.tree_util.tree_flatten_with_path(value)[0][2][0]),
        [w.tree.to_shape_dtype_struct(v) for v in (np.ones(2), plain()["w"], 3, keys()["one"])],
    ]


@case("plain", KeyError)
def a_flat_dict_without_a_leaf_of_the_target(w: World, d: Path) -> Any:
    return w.tree.from_flat_dict({("a",): 1}, target={"a": 0, "b": 0})


@case("plain", ValueError)
def an_empty_tree_has_no_stored_form(w: World, d: Path) -> Any:
    return w.tree.serialize_tree({})


@case("plain")
def msgpack(w: World, d: Path) -> Any:
    value: dict[str, Any] = {
        "b": [1, -70000, 2**40],
        "a": (np.arange(6).reshape(2, 3), "x" * 300, None),
        "c": {"z": 3 + 4j, "y": 1.5},
    }
    value |= {"h": plain()["w"].astype(jnp.bfloat16), "n": np.float32(2), "raw": b"\x00\x01", "t": True}
    data = w.ocp.msgpack_utils.msgpack_serialize(value)
    return [data, w.ocp.msgpack_utils.msgpack_restore(data)]


@case("plain")
def shardings_that_divide_as_far_as_they_can(w: World, d: Path) -> Any:
    shapes = [(), (3,), (8,), (16, 24), (6, 10), (5, 7, 8), (2, 2), (12,), (64, 4)]
    found = w.ocp.arrays.construct_maximal_shardings([ShapeDtypeStruct(shape, jnp.float32) for shape in shapes])
    return [[sharding, str(sharding.mesh), sharding.spec] for sharding in found]
