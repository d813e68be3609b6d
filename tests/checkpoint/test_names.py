from __future__ import annotations

import re
from typing import Any

import pytest

from ocdbt_py.checkpoint.flatten import flatten
from ocdbt_py.checkpoint.names import check_names, check_string_names, compile_selection, leaf_names, nearest
from ocdbt_py.errors import InvalidArgumentError, InvalidTypeError, UnsupportedError


def check(tree: Any) -> None:
    flat = flatten(tree)
    check_names(leaf_names(flat.paths), flat.paths)


def test_a_name_is_the_path_joined_by_dots_with_nothing_escaped() -> None:
    tree = {"a": {"b": [0, 1]}, "fc.w": 2, "": 3, "x/y": 4, "ключ": 5}
    assert leaf_names(flatten(tree).paths) == ["", "a.b.0", "a.b.1", "fc.w", "x/y", "ключ"]
    assert leaf_names(flatten(7).paths) == [""]


@pytest.mark.parametrize(
    ("tree", "paths"),
    [
        ({"a.b": 0, "a": {"b": 1}}, ["('a.b',)", "('a', 'b')"]),
        ({"a": [5], "a.0": 6}, ["('a.0',)", "('a', '0')"]),
        ({"a": 0, "a/0": 1}, ["('a',)", "('a/0',)"]),
        ({"a": 0, "a/3.12": 1}, ["('a',)", "('a/3.12',)"]),
        ({"a": 0, "a/.zarray": 1}, ["('a',)", "('a/.zarray',)"]),
        ({"a": 0, "a/zarr.json": 1}, ["('a',)", "('a/zarr.json',)"]),
        ({"a": 0, "a/c/0/1": 1}, ["('a',)", "('a/c/0/1',)"]),
        ({"x/y": {"z": 0}, "x/y.z/0": 1}, ["('x/y', 'z')", "('x/y.z/0',)"]),
        ({"": 0, ".zarray": 1}, ["('',)", "('.zarray',)"]),
        ({"": 0, "0": 1}, ["('',)", "('0',)"]),
    ],
)
def test_leaves_that_would_collide_are_refused_with_both_paths(tree: Any, paths: list[str]) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        check(tree)
    assert all(path in str(caught.value) for path in paths)


@pytest.mark.parametrize(
    "tree",
    [
        {"a": 0, "a/b": 1, "a/0x": 2, "a/0/x": 3, "b/0": 4, "a/c0": 5, "a/-1": 6},
        {".zarray": 0, "0": 1, "c": 2},
        {"a": 0, "a~0": 1, "..": 2, "a" * 300: 3, "a\n": 4, "a/0\n": 5},
    ],
)
def test_other_names_do_not_collide(tree: Any) -> None:
    check(tree)


def test_a_name_longer_than_a_key_may_be_is_refused() -> None:
    check({"k" * 65000: 0})
    with pytest.raises(InvalidArgumentError, match="65535"):
        check({"k" * 65100: 0})
    with pytest.raises(InvalidArgumentError, match="65535"):
        check({"é" * 33000: 0})


def test_a_name_that_is_not_unicode_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="not Unicode"):
        check({"\ud800": 0})


@pytest.mark.parametrize("name", ["a~", "a~2", "~~0", "x~/y"])
def test_a_string_leaf_whose_name_is_no_json_pointer_is_refused(name: str) -> None:
    with pytest.raises(UnsupportedError, match="JSON pointer"):
        check_string_names([name])


@pytest.mark.parametrize("names", [["a", "a/b"], ["a/b", "a"], ["a/b/c", "x", "a/b"], ["a", "a/b/c"], ["/b", ""]])
def test_string_leaves_that_would_lie_inside_each_other_are_refused(names: list[str]) -> None:
    with pytest.raises(InvalidArgumentError, match="inside the other"):
        check_string_names(names)


def test_string_leaves_side_by_side_are_fine() -> None:
    check_string_names(["a/b", "a/c", "ab", "a.b", "x~0y", "x~1y", "a/bc"])


@pytest.mark.parametrize(
    ("glob", "matching", "others"),
    [
        ("params.*", ["params.w", "params."], ["params.a.b", "params", "xparams.w"]),
        ("params.**", ["params.w", "params.a.b"], ["params", "param.s.w"]),
        ("params.**.kernel", ["params.kernel", "params.a.kernel", "params.a.b.kernel"], ["params.xkernel", "kernel"]),
        ("**.bias", ["bias", "a.bias", "a.b.bias"], ["a.bias.b", "abias"]),
        ("**", ["", "a", "a.b"], []),
        ("*", ["", "a", "a/b"], ["a.b"]),
        ("l.?", ["l.0", "l.x"], ["l.10", "l.", "l.."]),
        ("l.[0-2]", ["l.0", "l.2"], ["l.3", "l.-"]),
        ("l.[!0-2]", ["l.3"], ["l.0"]),
        ("a+(b)", ["a+(b)"], ["aab"]),
        ("a[", ["a["], ["a"]),
        ("a**b", ["a.x.b", "ab"], ["a"]),
        ("w[]x]", ["w]", "wx"], ["w"]),
    ],
)
def test_globs_stop_at_dots_unless_they_have_two_stars(glob: str, matching: list[str], others: list[str]) -> None:
    selection = compile_selection(glob)
    assert selection is not None
    assert selection.by_name
    assert [name for name in matching + others if selection.matches(name, None)] == matching


def test_a_regular_expression_selects_where_it_is_found_and_a_function_is_asked() -> None:
    selection = compile_selection(re.compile(r"w\d$"))
    assert selection is not None
    assert selection.matches("a.w1", None)
    assert not selection.matches("a.w1.x", None)
    asked = compile_selection(lambda name, info: info > 3)
    assert asked is not None
    assert not asked.by_name
    assert asked.matches("", 4)
    assert compile_selection(None) is None


@pytest.mark.parametrize("select", [7, [b"x"], re.compile(b"x")])
def test_what_cannot_select_is_refused(select: Any) -> None:
    with pytest.raises(InvalidTypeError, match="select="):
        compile_selection(select)


def test_a_glob_with_a_set_that_cannot_be_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="not a glob"):
        compile_selection("[z-a]")


def test_the_nearest_name_prefers_the_same_last_step() -> None:
    names = ["params.dense.kernel", "params.dense.bias", "opt.mu.dense.kernel", "step"]
    assert nearest("params.dens.kernel", names) == "params.dense.kernel"
    assert nearest("stp", names) == "step"
    assert nearest("zzzzzz", names) is None
    assert nearest("x", []) is None
