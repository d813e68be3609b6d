from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocdbt_py.checkpoint import leaf_records, metadata, tree_text
from ocdbt_py.checkpoint.flatten import ABSENT, Key, KeyKind, flatten, unflatten_paths
from ocdbt_py.checkpoint.leaf_records import LeafColumns, LeafRecord, value_types
from ocdbt_py.checkpoint.metadata import decode_tree_metadata, find_leaf_metadata
from ocdbt_py.checkpoint.tree_text import UsualText, read_entries
from ocdbt_py.errors import CorruptDataError
from tests.checkpoint.whole_texts import encode_tree_metadata

NAMES = st.one_of(
    st.text("ab._/'\"\\{}[], é", max_size=6), st.sampled_from(["}}", '], "value_metadata": ', "0", "key"])
)
PATHS = st.lists(st.builds(Key, NAMES, st.sampled_from(KeyKind)), max_size=4).map(tuple)


def text_of(*paths: tuple[str, ...], custom_metadata: Any = None) -> str:
    leaves = [LeafRecord(tuple(Key(name, KeyKind.DICT) for name in path), "np.ndarray") for path in paths]
    return encode_tree_metadata(leaves, custom_metadata=custom_metadata).decode()


def parsed(text: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What JSON's own parser makes of it."""
    with monkeypatch.context() as patch:
        patch.setattr(metadata, "read_entries", lambda text: None)
        return decode_tree_metadata(text.encode())


@given(
    st.lists(PATHS, min_size=1, max_size=5),
    st.sampled_from(["np.ndarray", "scalar", '}}, "']),
    st.sampled_from(["}}, ", '}}, "(', "}}}, "]),
    st.sampled_from([200, 400, 64 << 10]),
)
def test_what_is_cut_is_what_json_says(paths: list[tuple[Key, ...]], kind: str, custom: str, window: int) -> None:
    records = [LeafRecord(path, kind) for path in paths]
    text = encode_tree_metadata(records, custom_metadata={custom: {"key": {"(": {}, "(a": custom}}}).decode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree_text, "_TOGETHER", window)
        found, expected = decode_tree_metadata(text.encode()), parsed(text, patch)
    assert found == expected
    if isinstance(found.leaves, LeafColumns):
        leaves = found.leaves
        assert [leaves[i] for i in range(len(leaves))] == leaves[:] == expected.leaves
        assert value_types(leaves) == value_types(expected.leaves)


TREES = st.recursive(
    st.integers(),
    lambda below: st.dictionaries(st.text("ab.0", max_size=3), below, min_size=1) | st.lists(below, min_size=1),
)


@given(TREES, st.one_of(st.none(), st.randoms(use_true_random=False)), st.sampled_from([0, 512]), st.data())
def test_the_tree_of_columns_is_that_of_the_paths(tree: Any, random: Any, many: int, data: st.DataObject) -> None:
    flat = flatten({"top": tree})
    order = list(range(len(flat.paths)))
    if random is not None:
        random.shuffle(order)
    paths = [flat.paths[i] for i in order]
    found = read_entries(encode_tree_metadata([LeafRecord(path, "scalar") for path in paths]))
    assert found is not None
    absent = data.draw(st.sets(st.sampled_from(order)))
    for left_out in (set(), absent):
        leaves = [ABSENT if i in left_out else flat.leaves[i] for i in order]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(leaf_records, "_MANY", many)
            made, expected = found[0].tree(leaves), unflatten_paths(paths, leaves)
        assert repr(made) == repr(expected)  # the order of keys, too


def test_a_text_is_taken_apart_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    text = text_of(*((f"layer{i}", "bias" if i % 3 else "kernel") for i in range(20)))
    repeated = text.replace("layer18", "layer0")
    whole, expected = read_entries(text.encode()), parsed(repeated, monkeypatch)
    for window in range(200, 1000, 50):
        monkeypatch.setattr(tree_text, "_TOGETHER", window)
        found = read_entries(text.encode())
        assert found is not None
        assert found == whole
        assert found[0].names == [record.path[0].name + "." + record.path[1].name for record in found[0]]
        assert read_entries(repeated.encode()) is None  # the labels of two pieces are one
        assert decode_tree_metadata(repeated.encode()) == expected


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([(("a", 2), ("0", 1)), (("a", 2), ("b", 2))], "both dict keys and indices"),
        ([(("a", 2), ("1", 1))], "gaps"),
        ([(("x", 1),)], "decimal digits"),
    ],
)
def test_columns_that_contradict_each_other_are_corrupt(paths: list[Any], message: str) -> None:
    records = [LeafRecord(tuple(Key(name, KeyKind(kind)) for name, kind in path), "scalar") for path in paths]
    found = read_entries(encode_tree_metadata(records))
    assert found is not None
    with pytest.raises(CorruptDataError, match=message):
        found[0].tree([0] * len(records))


@pytest.mark.parametrize("many", [0, 512])
def test_a_container_of_columns_that_was_empty_once_gives_way_to_what_it_holds(
    many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaf_records, "_MANY", many)
    for paths in ([("a",), ("a", "b")], [("a", "b"), ("a",)]):
        found = read_entries(text_of(*paths).encode())
        assert found is not None
        leaves: list[Any] = [{} if path == ("a",) else 1 for path in paths]
        assert found[0].tree(leaves) == {"a": {"b": 1}}


def test_the_usual_text_takes_no_parser() -> None:
    paths = [("a", "b"), ("a", "c.d"), ("x",)]
    found = read_entries(text_of(*paths, custom_metadata={"a": {"b": {"c": {}}}}).encode())
    assert found is not None
    leaves, rest = found
    assert [tuple(key.name for key in record.path) for record in leaves] == paths
    assert leaves.names == ["a.b", "a.c.d", "x"]
    assert leaves.value_types == ["np.ndarray"] * 3
    assert rest["custom_metadata"] == {"a": {"b": {"c": {}}}}


USUAL = text_of(("a", "b"), ("c",))


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(json.loads(USUAL), indent=1),
        json.dumps(json.loads(USUAL), separators=(",", ":")),
        USUAL.replace("\"('c',)\"", "\"('a', 'b')\""),  # JSON keeps the last of two
        USUAL.replace("\"('c',)\"", '"\\u0041"'),
        USUAL.replace('"key_type": 2}]', '"key_type": 2, "more": 0}]'),
        f'{USUAL[:-1]}, "tree_metadata": {{"x": {{"key_metadata": [{{"key_type": 2, "key": "x"}}], '
        '"value_metadata": {"value_type": "np.ndarray"}}}}',
    ],
)
def test_any_other_text_is_left_to_the_parser(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert text != USUAL
    assert read_entries(text.encode()) is None
    assert decode_tree_metadata(text.encode()) == parsed(text, monkeypatch)


@given(st.integers(0, len(USUAL) - 1), st.sampled_from(['"', "{", "}", "[", "]", ",", ":", "\\", "", "x", "\x00"]))
def test_a_damaged_text_is_what_json_says_or_corrupt(at: int, character: str) -> None:
    text = USUAL[:at] + character + USUAL[at + 1 :]
    with pytest.MonkeyPatch.context() as patch:
        try:
            expected = parsed(text, patch)
        except CorruptDataError:
            expected = None
    try:
        found = decode_tree_metadata(text.encode())
    except CorruptDataError:
        assert expected is None
    else:
        # within a label, which nobody looks at, damage may pass
        assert expected is None or found == expected


def test_a_very_long_path_is_left_to_who_parses_all() -> None:
    assert read_entries(text_of(("x",) * 1000).encode()) is not None
    assert read_entries(text_of(("x",) * 3000, ("y",)).encode()) is None


def text_in(data: bytes) -> UsualText | None:
    return UsualText.of(lambda start, stop: data[start:stop], len(data))


def found_in(data: bytes, name: str) -> metadata.TreeMetadata | None:
    text = text_in(data)
    return None if text is None else find_leaf_metadata(text, name)


def test_one_leaf_is_found_with_what_is_said_of_all() -> None:
    data = text_of(("a", "b"), ("a", "c.d"), ("c",)).encode()
    found = found_in(data, "a.b")
    assert found is not None
    assert found == metadata.TreeMetadata(
        [LeafRecord((Key("a", KeyKind.DICT), Key("b", KeyKind.DICT)), "np.ndarray")], ["a.b"], True, False, False, None
    )
    last = found_in(data, "c")
    assert last is not None
    assert last.names == ["c"]


@pytest.mark.parametrize("name", ["b", "a", "a.c.d", "", "a.b.c", "'a', 'b'", "\ud800"])
def test_where_it_is_not_certain_that_it_is_that_leaf_none_is_found(name: str) -> None:
    """Whoever asks then parses all; a key with a dot in it is one of these."""
    assert found_in(text_of(("a", "b"), ("a", "c.d")).encode(), name) is None


def test_what_looks_like_a_leaf_in_the_users_metadata_is_none() -> None:
    custom = json.loads(text_of(("x", "y")))
    data = text_of(("a", "b"), custom_metadata=custom).encode()
    assert found_in(data, "x.y") is None
    assert decode_tree_metadata(data).names == ["a.b"]


def test_a_text_that_is_cut_off_is_not_usual() -> None:
    data = USUAL.encode()
    assert text_in(data) is not None
    assert all(text_in(data[:stop]) is None for stop in range(len(data)))


@pytest.mark.parametrize(("first", "window"), [(60, 60), (64, 64), (100, 100), (60, 333), (4096, 8192)])
def test_leaves_are_found_in_a_text_of_which_parts_are_read(
    first: int, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"layer_{i}.kernel" for i in range(40)]
    data = text_of(*(tuple(name.split(".")) for name in names)).encode()
    text = text_in(data)
    assert text is not None
    monkeypatch.setattr(tree_text, "_FIRST", first)
    monkeypatch.setattr(tree_text, "_WINDOW", window)
    for name in names:
        found = find_leaf_metadata(text, name)
        assert found is not None
        assert found.names == [name]
    assert find_leaf_metadata(text, "layer_40.kernel") is None
    monkeypatch.setattr(tree_text, "_USUAL", 20)
    assert find_leaf_metadata(text, names[0]) is not None
    monkeypatch.setattr(tree_text, "_LONGEST", 20)
    assert find_leaf_metadata(text, names[0]) is None  # so long an entry is left to who parses all
    monkeypatch.setattr(tree_text, "_FIRST", 8)
    monkeypatch.setattr(tree_text, "_WINDOW", 8192)
    assert text_in(data) is not None
