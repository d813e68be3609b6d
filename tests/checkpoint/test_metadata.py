from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocdbt_py.checkpoint.flatten import Key, KeyKind, flatten
from ocdbt_py.checkpoint.leaf_texts import ArrayMetadatasText
from ocdbt_py.checkpoint.metadata import (
    LeafRecord,
    ValueType,
    check_custom_metadata,
    decode_checkpoint_metadata,
    decode_json,
    decode_shardings,
    decode_strings,
    decode_tree_metadata,
    encode_checkpoint_metadata,
    encode_strings,
    look_up_string,
)
from ocdbt_py.errors import CorruptDataError, InvalidTypeError
from tests.checkpoint.whole_texts import encode_shardings, encode_tree_metadata

A, ZERO = Key("a", KeyKind.DICT), Key("0", KeyKind.SEQUENCE)


def test_tree_metadata_is_what_json_dumps_would_give() -> None:
    leaves = [
        LeafRecord((A, ZERO), ValueType.JAX_ARRAY, (2, 3)),
        LeafRecord((A, Key('it\'s "é"\n\\', KeyKind.DICT)), ValueType.NUMPY_ARRAY),
        LeafRecord((A,), ValueType.TUPLE),
        LeafRecord((), ValueType.SCALAR),
    ]
    expected: dict[str, Any] = {
        "tree_metadata": {
            str(tuple(key.name for key in leaf.path)): {
                "key_metadata": [{"key": key.name, "key_type": int(key.kind)} for key in leaf.path],
                "value_metadata": {"value_type": leaf.value_type, "skip_deserialize": leaf.value_type == "Tuple"},
            }
            for leaf in leaves
        },
        "use_ocdbt": True,
        "use_zarr3": False,
        "store_array_data_equal_to_fill_value": True,
        "custom_metadata": None,
    }
    expected["tree_metadata"]["('a', '0')"]["value_metadata"]["write_shape"] = [2, 3]
    assert encode_tree_metadata(leaves).decode() == json.dumps(expected)


PATHS = st.lists(st.builds(Key, st.text(), st.sampled_from(KeyKind)), max_size=5).map(tuple)


@given(st.lists(st.tuples(PATHS, st.sampled_from(["jax.Array", "scalar", "None", "Dict"])), min_size=1))
def test_tree_metadata_comes_back_as_it_was_written(leaves: list[tuple[Any, str]]) -> None:
    unique = {tuple(key.name for key in path): LeafRecord(path, kind) for path, kind in leaves}  # labels are names
    read = decode_tree_metadata(encode_tree_metadata(unique.values()))
    assert list(read.leaves) == list(unique.values())
    assert (read.use_ocdbt, read.use_zarr3, read.missing_chunks_are_fill_values) == (True, False, False)


def test_what_a_release_did_not_write_yet_has_the_reader_s_default() -> None:
    read = decode_tree_metadata(
        b'{"tree_metadata": {"any label": {"key_metadata": [], "value_metadata": {"value_type": "scalar"}, "new": 1}}}'
    )
    assert read.leaves == [LeafRecord((), "scalar")]
    assert (read.use_ocdbt, read.use_zarr3, read.missing_chunks_are_fill_values) == (None, False, True)


def entry(**changes: Any) -> dict[str, Any]:
    return {"key_metadata": [{"key": "a", "key_type": 2}], "value_metadata": {"value_type": "scalar"}} | changes


@pytest.mark.parametrize(
    "document",
    [
        [],
        {},
        {"tree_metadata": []},
        {"tree_metadata": {}},
        {"tree_metadata": {"x": None}},
        {"tree_metadata": {"x": "key_metadata"}},
        {"tree_metadata": {"x": entry(key_metadata=None)}},
        {"tree_metadata": {"x": entry(key_metadata={"key": "a"})}},
        {"tree_metadata": {"x": entry(key_metadata="ab")}},
        {"tree_metadata": {"x": entry(key_metadata=[7])}},
        {"tree_metadata": {"x": entry(key_metadata=[{"key": "a"}])}},
        {"tree_metadata": {"x": entry(key_metadata=[{"key": "a", "key_type": 3}])}},
        {"tree_metadata": {"x": entry(key_metadata=[{"key": "a", "key_type": "2"}])}},
        {"tree_metadata": {"x": entry(key_metadata=[{"key": "a", "key_type": [2]}])}},
        {"tree_metadata": {"x": entry(key_metadata=[{"key": 1, "key_type": 2}])}},
        {"tree_metadata": {"x": entry(key_metadata=[{"key": {}, "key_type": 2}])}},
        {"tree_metadata": {"x": entry(key_metadata=[{"key": "\ud800", "key_type": 2}])}},
        {"tree_metadata": {"x": entry(value_metadata=None)}},
        {"tree_metadata": {"x": entry(value_metadata={})}},
        {"tree_metadata": {"x": entry(value_metadata={"value_type": None})}},
    ],
)
def test_tree_metadata_of_other_types_is_corrupt(document: Any) -> None:
    with pytest.raises(CorruptDataError, match="_METADATA"):
        decode_tree_metadata(json.dumps(document).encode())


DECODERS = [
    decode_tree_metadata,
    decode_strings,
    decode_shardings,
    decode_checkpoint_metadata,
]


@pytest.mark.parametrize("decode", DECODERS)
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b"null",
        b'"text"',
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b'{"tree_metadata":' + b"9" * 5000 + b"}",
        b'{"\xed\xa0\x80": 1}',
    ],
    ids=range(9),
)
def test_bytes_that_are_no_such_document_are_corrupt_and_nothing_else(decode: Any, data: bytes) -> None:
    with pytest.raises(CorruptDataError):
        decode(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda below: st.lists(below) | st.dictionaries(st.text(), below),
    max_leaves=10,
)
LIKE_METADATA = st.dictionaries(
    st.sampled_from(
        ["tree_metadata", "item_handlers", "custom", "custom_metadata", "init_timestamp_nsecs", "use_ocdbt"]
    ),
    st.dictionaries(
        st.text(max_size=2),
        st.dictionaries(
            st.sampled_from(["key_metadata", "value_metadata"]),
            JSON
            | st.lists(st.dictionaries(st.sampled_from(["key", "key_type"]), JSON))
            | st.dictionaries(st.just("value_type"), JSON),
        ),
    )
    | JSON,
)


@pytest.mark.parametrize("decode", DECODERS)
@given(document=JSON | LIKE_METADATA)
def test_any_json_is_decoded_or_corrupt(decode: Any, document: Any) -> None:
    with suppress(CorruptDataError):
        decode(json.dumps(document).encode())


def test_strings_are_nested_at_slashes_sorted_and_not_escaped() -> None:
    strings = {"uni": "héllo ☃", "list.3": "two", "a/b/c": "nested", "a/b/~0~1": "tilde", "": "nameless"}
    data = encode_strings(strings)
    assert data.decode() == ('{"":"nameless","a":{"b":{"c":"nested","~/":"tilde"}},"list.3":"two","uni":"héllo ☃"}')
    read = decode_strings(data)
    assert {name: look_up_string(read, name) for name in strings} == strings


@pytest.mark.parametrize("name", ["b", "a/x", "a/b/c", "n"])
def test_a_string_that_is_not_there_or_no_string_is_corrupt(name: str) -> None:
    with pytest.raises(CorruptDataError, match=name):
        look_up_string({"a": {"b": "text"}, "n": 7}, name)


def test_shardings_are_keyed_by_base64_of_the_name() -> None:
    one = {"sharding_type": "SingleDeviceSharding", "device_str": "cpu:0"}
    data = encode_shardings({"w": one, "ö?>": one})
    assert data == (
        rb'{"dw==":"{\"sharding_type\": \"SingleDeviceSharding\", \"device_str\": \"cpu:0\"}",'
        rb'"w7Y_Pg==":"{\"sharding_type\": \"SingleDeviceSharding\", \"device_str\": \"cpu:0\"}"}'
    )
    assert decode_shardings(data) == {"w": one, "ö?>": one}


@pytest.mark.parametrize(
    "document", [{"é": "{}"}, {"d": "{}"}, {"dw==": {}}, {"dw==": "[]"}, {"dw==": "{"}, {"//8=": "{}"}]
)
def test_shardings_of_other_types_are_corrupt(document: Any) -> None:
    with pytest.raises(CorruptDataError, match="_sharding"):
        decode_shardings(json.dumps(document).encode())


def test_array_metadatas_are_what_json_dumps_would_give() -> None:
    arrays = [("a.w", (2, 3), (2, 1), None), ('"k"', (2,), (2,), "threefry2x32")]
    expected = {
        "array_metadatas": [
            {
                "array_metadata": {
                    "param_name": name,
                    "write_shape": list(write_shape),
                    "chunk_shape": list(chunk_shape),
                    "ext_metadata": None if impl is None else {"random_key_impl": impl},
                }
            }
            for name, write_shape, chunk_shape, impl in arrays
        ]
    }
    text = ArrayMetadatasText()
    for name, write_shape, chunk_shape, impl in arrays:
        text.add([(name, text.ending(write_shape, chunk_shape, impl))])
    assert text.text().decode() == json.dumps(expected)


def test_checkpoint_metadata_comes_back() -> None:
    read = decode_checkpoint_metadata(encode_checkpoint_metadata(5, 7, {"lang": "en"}))
    assert (read.init_time_ns, read.commit_time_ns, read.custom_metadata) == (5, 7, {"lang": "en"})
    assert isinstance(read.item_handlers, str)
    assert read.item_handlers.endswith("PyTreeCheckpointHandler")
    assert decode_checkpoint_metadata(encode_checkpoint_metadata(5, None, {})).commit_time_ns is None


@pytest.mark.parametrize(
    ("document", "custom"),
    [
        ({"custom": {"a": 1}}, {"a": 1}),
        ({"custom_metadata": {"a": 1}, "metrics": {"loss": 1}}, {"a": 1}),
        ({"custom_metadata": None, "own": [2]}, {"own": [2]}),
        ({"init_timestamp_nsecs": 3}, {}),
    ],
)
def test_custom_metadata_is_found_where_each_release_put_it(document: Any, custom: Any) -> None:
    assert decode_checkpoint_metadata(json.dumps(document).encode()).custom_metadata == custom


def test_times_that_are_no_integers_count_as_unknown() -> None:
    read = decode_checkpoint_metadata(
        b'{"init_timestamp_nsecs": "1", "commit_timestamp_nsecs": true, "item_handlers": 4}'
    )
    assert (read.init_time_ns, read.commit_time_ns, read.item_handlers) == (None, None, None)


@pytest.mark.parametrize("custom", [7, "text", [1], {"x": object()}, {"x": {1, 2}}, {(1, 2): 3}])
def test_custom_metadata_that_json_cannot_hold_is_refused(custom: Any) -> None:
    with pytest.raises(InvalidTypeError, match="custom_metadata"):
        check_custom_metadata(custom)


def test_custom_metadata_that_contains_itself_is_refused() -> None:
    custom: dict[str, Any] = {}
    custom["x"] = custom
    with pytest.raises(InvalidTypeError, match="custom_metadata"):
        check_custom_metadata(custom)


def test_json_may_hold_the_numbers_that_python_writes() -> None:
    assert decode_json(b'{"x": [NaN, Infinity]}', "f")["x"][1] == float("inf")


def test_the_label_of_an_entry_is_the_repr_of_the_names() -> None:
    flat = flatten({"a": [1, {"it's": 2}]})
    data = encode_tree_metadata(LeafRecord(path, "scalar") for path in flat.paths)
    assert list(json.loads(data)["tree_metadata"]) == ["('a', '0')", "('a', '1', \"it's\")"]
