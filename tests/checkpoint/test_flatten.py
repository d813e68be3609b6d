from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocdbt_py.checkpoint.flatten import ABSENT, Key, KeyKind, flatten, unflatten_paths
from ocdbt_py.errors import CorruptDataError, InvalidArgumentError, InvalidTypeError

ROOT = Path(__file__).parents[2]


class Pair(NamedTuple):
    first: Any
    second: Any


class Nothing(NamedTuple):
    pass


@dataclasses.dataclass(frozen=True)
class Layer:
    weight: Any
    bias: Any


def spelled(tree: Any) -> dict[str, Any]:
    """Leaves by path, indices as [i], to see structure at a glance."""
    flat = flatten(tree)
    return {
        "".join(f"[{key.name}]" if key.kind is KeyKind.SEQUENCE else f".{key.name}" for key in path): leaf
        for path, leaf in zip(flat.paths, flat.leaves, strict=True)
    }


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ({"b": 1, "a": 2}, {".a": 2, ".b": 1}),
        ([1, (2, [3])], {"[0]": 1, "[1][0]": 2, "[1][1][0]": 3}),
        ({2: "x", 10: "y"}, {".2": "x", ".10": "y"}),
        (Pair(1, {"k": 2}), {".first": 1, ".second.k": 2}),
        (Layer(1, [2]), {".weight": 1, ".bias[0]": 2}),
        (OrderedDict(b=1, a=2), {".b": 1, ".a": 2}),
        (defaultdict(int, b=1, a=2), {".a": 2, ".b": 1}),
        (None, {"": None}),
        (7, {"": 7}),
        ({"e": {}, "l": [], "t": (), "n": None, "p": Nothing()}, {".e": {}, ".l": [], ".n": None, ".p": (), ".t": ()}),
        ([[], [[]]], {"[0]": [], "[1][0]": []}),
    ],
)
def test_a_tree_is_taken_apart_in_jax_s_order_with_empty_containers_as_leaves(tree: Any, expected: Any) -> None:
    assert spelled(tree) == expected
    assert list(spelled(tree)) == list(expected)


LEAVES = st.integers() | st.none() | st.text(max_size=2)
TREES = st.recursive(
    LEAVES,
    lambda below: st.one_of(
        st.lists(below, max_size=3),
        st.lists(below, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=3), below, max_size=3),
        st.builds(Pair, below, below),
        st.builds(Layer, below, below),
        st.dictionaries(st.text(max_size=3), below, max_size=3).map(OrderedDict),
    ),
    max_leaves=12,
)


def types_of(tree: Any) -> Any:
    """The types of containers and leaves; dicts may come in another order."""
    if isinstance(tree, dict):
        return type(tree), {key: types_of(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree), [types_of(child) for child in tree]
    if isinstance(tree, Layer):
        return Layer, types_of(tree.weight), types_of(tree.bias)
    return type(tree)


@given(TREES)
def test_rebuilding_with_the_same_leaves_gives_an_equal_tree_of_the_same_types(tree: Any) -> None:
    flat = flatten(tree)
    again = flat.rebuild(flat.leaves)
    assert again == tree
    assert types_of(again) == types_of(tree)


def test_rebuilding_puts_other_leaves_in_their_places() -> None:
    flat = flatten({"x": [1, Pair(2, None)], "y": Layer(3, ())})
    assert flat.rebuild([f"leaf {leaf}" for leaf in flat.leaves]) == {
        "x": ["leaf 1", Pair("leaf 2", "leaf None")],
        "y": Layer("leaf 3", "leaf ()"),
    }


def test_registered_nodes_are_taken_apart_as_jax_does_and_made_again() -> None:
    import jax

    @jax.tree_util.register_pytree_with_keys_class
    class Box:
        def __init__(self, inside: Any, label: str) -> None:
            self.inside, self.label = inside, label

        def tree_flatten_with_keys(self) -> Any:
            return [(jax.tree_util.GetAttrKey("inside"), self.inside)], self.label

        @classmethod
        def tree_unflatten(cls, label: str, children: Any) -> Any:
            return cls(children[0], label)

    class Keyless:
        def __init__(self, *children: Any) -> None:
            self.children = children

    jax.tree_util.register_pytree_node(Keyless, lambda node: (node.children, None), lambda _, below: Keyless(*below))
    tree = {"box": Box([1, {"k": 2}], "mine"), "keyless": Keyless(3, [4]), "empty": Keyless()}
    flat = flatten(tree)
    assert list(spelled(tree))[:2] == [".box.inside[0]", ".box.inside[1].k"]
    assert list(spelled(tree))[2:] == [".empty", ".keyless[0]", ".keyless[1][0]"]
    again = flat.rebuild(flat.leaves)
    assert (again["box"].inside, again["box"].label) == ([1, {"k": 2}], "mine")
    assert again["keyless"].children == (3, [4])


def test_flattening_agrees_with_jax_on_its_own_containers() -> None:
    import jax

    tree = {"a": [1, (2, 3)], "c": Pair(4, {"z": 5, "y": 6}), "b": OrderedDict(q=7, p=8), "d": defaultdict(int, n=9)}
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    expected = {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
    flat = flatten(tree)
    ours = {".".join(key.name for key in path): leaf for path, leaf in zip(flat.paths, flat.leaves, strict=True)}
    assert ours == expected
    assert list(ours) == list(expected)


CONTAINERS = """
import collections, dataclasses, sys
from typing import NamedTuple
from ocdbt_py.checkpoint.flatten import flatten
class Pair(NamedTuple):
    first: object
    second: object
class Nothing(NamedTuple): pass
@dataclasses.dataclass
class Layer:
    weight: object
@dataclasses.dataclass
class Bare: pass
flat = flatten({
    "named": Pair(1, [2]), "nothing": Nothing(), "ordered": collections.OrderedDict(b=3, a=4), "layer": Layer((5,)),
    "default": collections.defaultdict(list, y=6, x=7), "empty": collections.OrderedDict(),
})
again = flat.rebuild(flat.leaves)
print([[tuple(key) for key in path] for path in flat.paths], flat.leaves, again)
"""


def test_with_and_without_jax_the_same_leaves_are_found_and_jax_is_not_imported_for_it() -> None:
    def printed(program: str) -> bytes:
        return subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True).stdout

    without = printed(CONTAINERS + "assert 'jax' not in sys.modules")
    assert without
    assert without == printed("import jax" + CONTAINERS)


def test_keys_that_cannot_be_sorted_are_refused_with_their_types() -> None:
    with pytest.raises(InvalidTypeError, match="some are int and some str"):
        flatten({"x": {1: 0, "a": 0}})


def test_a_tree_that_contains_itself_is_refused() -> None:
    tree: dict[str, Any] = {"below": []}
    tree["below"].append(tree)
    with pytest.raises(InvalidArgumentError, match="a cycle"):
        flatten(tree)


def test_a_tree_deeper_than_python_can_recurse_goes_both_ways() -> None:
    tree: Any = "bottom"
    for level in range(5000):
        tree = [tree] if level % 2 else {"k": tree}
    flat = flatten(tree)
    assert len(flat.paths[0]) == 5000
    for again in (flat.rebuild(["bottom"]), unflatten_paths(flat.paths, flat.leaves)):
        for level in reversed(range(5000)):
            again = again[0] if level % 2 else again["k"]
        assert again == "bottom"


# --- from paths


def path(text: str) -> tuple[Key, ...]:
    """``a.0.b``: digits are indices, everything else dict keys."""
    steps = text.split(".") if text else []
    return tuple(Key(step, KeyKind.SEQUENCE if step.isdigit() else KeyKind.DICT) for step in steps)


def made(*leaves: tuple[str, Any]) -> Any:
    return unflatten_paths([path(name) for name, _ in leaves], [value for _, value in leaves])


@given(TREES)
def test_paths_alone_give_dicts_and_lists_of_the_same_leaves(tree: Any) -> None:
    def plain(node: Any) -> Any:
        if isinstance(node, dict) and node:
            return {key: plain(node[key]) for key in sorted(node)}
        if isinstance(node, Pair):
            return {"first": plain(node.first), "second": plain(node.second)}
        if isinstance(node, Layer):
            return {"weight": plain(node.weight), "bias": plain(node.bias)}
        if isinstance(node, list | tuple) and node:
            return [plain(child) for child in node]
        return node

    flat = flatten(tree)
    assert unflatten_paths(flat.paths, flat.leaves) == plain(tree)


def test_dict_keys_come_out_sorted_and_indices_in_order_whatever_the_order_of_the_entries() -> None:
    tree = made(("l.10", 10), *((f"l.{i}", i) for i in reversed(range(10))), ("b", 1), ("a", 2))
    assert list(tree) == ["a", "b", "l"]
    assert tree["l"] == list(range(11))


def test_an_empty_container_that_was_filled_later_gives_way_to_what_it_holds() -> None:
    assert made(("a", {}), ("a.b", 1)) == {"a": {"b": 1}}
    assert made(("a.b", 1), ("a", {})) == {"a": {"b": 1}}
    assert made(("", {}), ("a", 1)) == {"a": 1}


def test_absent_leaves_vanish_from_dicts_and_leave_dots_in_lists() -> None:
    assert made(("a", 1), ("b", ABSENT), ("c.x", ABSENT)) == {"a": 1}
    assert made(("l.0", ABSENT), ("l.1", 2), ("l.2.x", ABSENT), ("m.0", ABSENT)) == {"l": [..., 2, ...]}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([("a.0", 1), ("a.b", 2)], "both dict keys and indices"),
        ([("a", 1), ("a", 2)], "two leaves"),
        ([("a.1", 1)], "gaps"),
        ([("a.0", 1), ("a.2", 2)], "gaps"),
        ([("a.0", 1), ("a.00", 2)], "gaps"),
        ([], "no leaves"),
    ],
)
def test_paths_that_contradict_each_other_are_corrupt(entries: list[tuple[str, Any]], message: str) -> None:
    with pytest.raises(CorruptDataError, match=message):
        made(*entries)


@pytest.mark.parametrize("index", ["-1", "+1", "1_0", "٣", "", "9" * 5000, "0x1"])
def test_an_index_that_is_not_decimal_digits_is_corrupt(index: str) -> None:
    with pytest.raises(CorruptDataError, match=r"decimal digits"):
        unflatten_paths([(Key(index, KeyKind.SEQUENCE),)], [0])
