from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocdbt_py.checkpoint import metadata, tree_text
from ocdbt_py.checkpoint.flatten import Key, KeyKind
from ocdbt_py.checkpoint.metadata import LeafRecord, decode_tree_metadata, encode_tree_metadata, find_leaf_metadata
from ocdbt_py.checkpoint.tree_text import read_entries
from ocdbt_py.errors import CorruptDataError

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


@given(st.lists(PATHS, min_size=1, max_size=5), st.sampled_from(["np.ndarray", "scalar", '}}, "']))
def test_what_is_cut_is_what_json_says(paths: list[tuple[Key, ...]], kind: str) -> None:
    text = encode_tree_metadata([LeafRecord(path, kind) for path in paths]).decode()
    with pytest.MonkeyPatch.context() as patch:
        assert decode_tree_metadata(text.encode()) == parsed(text, patch)


def test_the_usual_text_takes_no_parser() -> None:
    paths = [("a", "b"), ("a", "c.d"), ("x",)]
    found = read_entries(text_of(*paths, custom_metadata={"a": {"b": {"c": {}}}}))
    assert found is not None
    entries, rest = found
    assert [tuple(key.name for key in path) for path in entries.paths] == paths
    assert entries.names == ["a.b", "a.c.d", "x"]
    assert entries.value_types == ["np.ndarray"] * 3
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
    ],
)
def test_any_other_text_is_left_to_the_parser(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert text != USUAL
    assert read_entries(text) is None
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


def test_one_leaf_is_found_with_what_is_said_of_all() -> None:
    data = text_of(("a", "b"), ("a", "c.d"), ("c",)).encode()
    found = find_leaf_metadata(data, "a.b")
    assert found is not None
    assert found == metadata.TreeMetadata(
        [LeafRecord((Key("a", KeyKind.DICT), Key("b", KeyKind.DICT)), "np.ndarray")], ["a.b"], True, False, False, None
    )
    last = find_leaf_metadata(data, "c")
    assert last is not None
    assert last.names == ["c"]


@pytest.mark.parametrize("name", ["b", "a", "a.c.d", "", "a.b.c", "'a', 'b'", "\ud800"])
def test_where_it_is_not_certain_that_it_is_that_leaf_none_is_found(name: str) -> None:
    """Whoever asks then parses all; a key with a dot in it is one of these."""
    assert find_leaf_metadata(text_of(("a", "b"), ("a", "c.d")).encode(), name) is None


def test_what_looks_like_a_leaf_in_the_users_metadata_is_none() -> None:
    custom = json.loads(text_of(("x", "y")))
    data = text_of(("a", "b"), custom_metadata=custom).encode()
    assert find_leaf_metadata(data, "x.y") is None
    assert decode_tree_metadata(data).names == ["a.b"]


def test_a_text_that_is_cut_off_is_not_usual() -> None:
    data = USUAL.encode()
    assert tree_text.is_usual_text(data)
    assert not any(tree_text.is_usual_text(data[:stop]) for stop in range(len(data)))
