"""The JSON files beside a checkpoint's database: what Orbax writes into them, and reading what anybody wrote.

    _METADATA                       the tree: each leaf's path and kind
    _strings.json                   the string leaves
    _sharding                       where the leaves that were JAX arrays lay
    array_metadatas/process_N       how they were written
    _CHECKPOINT_METADATA            handler, times and the user's metadata, once a checkpoint
    commit_success.txt              a line of text, the last file written

Writers give Orbax's own text; of files with an entry for each leaf they are in :mod:`ocdbt_py.checkpoint.leaf_texts`.
Readers take any bytes: keys they do not know are passed over, and whatever cannot be meant is
:class:`CorruptDataError`, never another exception.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ocdbt_py.checkpoint.leaf_records import LeafRecord
from ocdbt_py.checkpoint.names import leaf_name, leaf_names
from ocdbt_py.checkpoint.tree_text import UsualText, as_key, read_entries
from ocdbt_py.errors import CorruptDataError, InvalidTypeError, UnsupportedError

__all__ = [
    "AGGREGATE",
    "ARRAY_METADATAS",
    "CHECKPOINT_METADATA",
    "COMMIT_MARKER",
    "JSON_HANDLER",
    "METADATA",
    "PYTREE_HANDLER",
    "SHARDING",
    "STRINGS",
    "CheckpointMetadata",
    "LeafRecord",
    "TreeMetadata",
    "ValueType",
    "check_custom_metadata",
    "commit_text",
    "decode_checkpoint_metadata",
    "decode_json",
    "decode_shardings",
    "decode_strings",
    "decode_tree_metadata",
    "encode_checkpoint_metadata",
    "encode_strings",
    "find_leaf_metadata",
    "look_up_string",
]

METADATA = "_METADATA"
AGGREGATE = "checkpoint"
"""The tree of releases up to 0.3, and beside ``_METADATA`` up to 0.5: :mod:`ocdbt_py.checkpoint.aggregate`."""
STRINGS = "_strings.json"
SHARDING = "_sharding"
ARRAY_METADATAS = "array_metadatas"
CHECKPOINT_METADATA = "_CHECKPOINT_METADATA"
COMMIT_MARKER = "commit_success.txt"

_HANDLERS = "orbax.checkpoint._src.handlers"
PYTREE_HANDLER = f"{_HANDLERS}.pytree_checkpoint_handler.PyTreeCheckpointHandler"
JSON_HANDLER = f"{_HANDLERS}.json_checkpoint_handler.JsonCheckpointHandler"


class ValueType:
    """What ``value_type`` may say of a leaf."""

    JAX_ARRAY = "jax.Array"
    NUMPY_ARRAY = "np.ndarray"
    SCALAR = "scalar"
    STRING = "string"
    NONE = "None"
    DICT = "Dict"
    LIST = "List"
    TUPLE = "Tuple"
    NAMED_TUPLE = "NamedTuple"

    ARRAYS = frozenset({JAX_ARRAY, NUMPY_ARRAY, SCALAR})
    """Stored as a zarr array."""
    EMPTY = frozenset({NONE, DICT, LIST, TUPLE, NAMED_TUPLE})
    """Stored nowhere but here."""


class TreeMetadata(NamedTuple):
    """``_METADATA`` as it was read. ``use_ocdbt`` is None where the writer did not say."""

    leaves: Sequence[LeafRecord]
    names: Sequence[str]
    use_ocdbt: bool | None
    use_zarr3: bool
    missing_chunks_are_fill_values: bool
    custom_metadata: Any


class CheckpointMetadata(NamedTuple):
    """``_CHECKPOINT_METADATA`` as it was read; times in nanoseconds since the epoch."""

    item_handlers: dict[str, Any] | str | None = None
    init_time_ns: int | None = None
    commit_time_ns: int | None = None
    custom_metadata: Mapping[str, Any] = {}


# --- writing


def encode_strings(strings: Mapping[str, str]) -> bytes:
    """``_strings.json``. A name is a JSON pointer: ``/`` in it nests objects."""
    root: dict[str, Any] = {}
    for name, text in strings.items():
        *above, last = _pointer(name)
        level = root
        for token in above:
            level = level.setdefault(token, {})
        level[last] = text
    try:
        text = json.dumps(root, separators=(",", ":"), sort_keys=True, ensure_ascii=False)
    except RecursionError:
        raise UnsupportedError("The name of a string leaf has too many '/' for Orbax's JSON; rename the key") from None
    return text.encode()


def encode_checkpoint_metadata(
    init_time_ns: int,
    commit_time_ns: int | None,
    custom_metadata: Mapping[str, Any],
    item_handlers: Mapping[str, str | None] | str | None = PYTREE_HANDLER,
) -> bytes:
    """``_CHECKPOINT_METADATA``; ``item_handlers`` is one where the directory itself is the item.

    ``commit_time_ns`` is None until it is complete.
    """
    return json.dumps(
        {
            "item_handlers": item_handlers,
            "metrics": {},
            "performance_metrics": {},
            "init_timestamp_nsecs": init_time_ns,
            "commit_timestamp_nsecs": commit_time_ns,
            "custom_metadata": custom_metadata,
        }
    ).encode()


def commit_text(url: str) -> bytes:
    """``commit_success.txt``; the text is for people, nobody parses it."""
    return f"Checkpoint commit was successful to {url}".encode(errors="surrogateescape")


def check_custom_metadata(custom_metadata: Any) -> dict[str, Any]:
    """A dict that JSON can hold, None standing for an empty one; anything else is :class:`InvalidTypeError`."""
    if custom_metadata is None:
        return {}
    if not isinstance(custom_metadata, Mapping):
        raise InvalidTypeError(f"custom_metadata is a dict, not {type(custom_metadata).__name__}")
    plain = dict(custom_metadata)
    try:
        # as it will be read back: keys are str by then
        read_back = json.loads(json.dumps(plain))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidTypeError(f"custom_metadata must be what JSON can hold: {error}") from None
    assert isinstance(read_back, dict)
    return read_back


# --- reading


def decode_json(data: bytes, path: str) -> Any:
    """JSON, however deep, long or broken."""
    try:
        return json.loads(str(data, "utf-8"))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and too long a number are ValueErrors
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
        raise CorruptDataError(f"{path} is not JSON: {reason}", path=path) from None


def decode_tree_metadata(data: bytes, path: str = METADATA) -> TreeMetadata:
    """``_METADATA`` of any release. Labels are not looked at: each entry says its own path."""
    found = read_entries(data)
    if found is not None:
        columns, rest = found
        return _tree_metadata(rest, columns, columns.names)
    document = _object(decode_json(data, path), path, "the file")
    entries = _object(document.get("tree_metadata"), path, "tree_metadata")
    if not entries:
        raise CorruptDataError(f"tree_metadata in {path} has no entries", path=path)
    leaves = []
    for label, entry in entries.items():
        try:
            leaves.append(_record(entry))
        except (TypeError, KeyError):
            raise CorruptDataError(
                f"The entry {label[:200]!r} of tree_metadata in {path} has no valid key_metadata and value_metadata",
                path=path,
            ) from None
    return _tree_metadata(document, leaves, leaf_names(record.path for record in leaves))


def find_leaf_metadata(text: UsualText, name: str) -> TreeMetadata | None:
    """Of ``_METADATA`` the leaf ``name`` alone, as if there were no other; None where only reading all of it can tell.

    Not looked at is what else may be wrong with the file.
    """
    entry = text.find(name)
    if entry is None:
        return None
    try:
        record = _record(entry)
    except (TypeError, KeyError):
        return None
    return _tree_metadata(text.rest, [record], [name]) if leaf_name(record.path) == name else None


def _tree_metadata(document: Mapping[str, Any], leaves: Sequence[LeafRecord], names: Sequence[str]) -> TreeMetadata:
    use_ocdbt = document.get("use_ocdbt")
    return TreeMetadata(
        leaves=leaves,
        names=names,
        use_ocdbt=None if use_ocdbt is None else bool(use_ocdbt),
        use_zarr3=bool(document.get("use_zarr3")),
        missing_chunks_are_fill_values=not document.get("store_array_data_equal_to_fill_value"),
        custom_metadata=document.get("custom_metadata"),
    )


def _record(entry: Any) -> LeafRecord:
    """``TypeError`` or ``KeyError`` where it is not an entry."""
    steps, value_type = entry["key_metadata"], entry["value_metadata"]["value_type"]
    if type(steps) is not list or type(value_type) is not str:
        raise TypeError
    return LeafRecord(tuple([as_key(step["key"], step["key_type"]) for step in steps]), value_type)


def decode_strings(data: bytes, path: str = STRINGS) -> dict[str, Any]:
    """``_strings.json``, for :func:`look_up_string`."""
    return _object(decode_json(data, path), path, "the file")


def look_up_string(strings: Mapping[str, Any], name: str, path: str = STRINGS) -> str:
    """The string leaf called ``name``."""
    found: Any = strings
    for token in _pointer(name):
        found = found.get(token) if isinstance(found, dict) else None
    if not isinstance(found, str):
        raise CorruptDataError(f"{path} has no string for the leaf {name!r}", path=path)
    return found


def decode_shardings(data: bytes, path: str = SHARDING) -> dict[str, dict[str, Any]]:
    """``_sharding``: leaf name -> description, as Orbax spells it."""
    from base64 import b64decode

    shardings = {}
    for key, text in _object(decode_json(data, path), path, "the file").items():
        try:
            name = b64decode(key.encode(), altchars=b"-_", validate=True).decode()
        except ValueError:
            raise CorruptDataError(f"{key[:80]!r} in {path} is not the base64 of a leaf name", path=path) from None
        if not isinstance(text, str):
            raise CorruptDataError(f"The sharding of {name!r} in {path} is not a string", path=path)
        shardings[name] = _object(decode_json(text.encode(errors="surrogatepass"), path), path, repr(name))
    return shardings


def decode_checkpoint_metadata(data: bytes, path: str = CHECKPOINT_METADATA) -> CheckpointMetadata:
    """``_CHECKPOINT_METADATA`` of any release. Keys of one's own at the top count as custom metadata, as in Orbax."""
    document = dict(_object(decode_json(data, path), path, "the file"))
    handlers = document.pop("item_handlers", None)
    times = [document.pop(f"{which}_timestamp_nsecs", None) for which in ("init", "commit")]
    custom: dict[str, Any] = {}
    for name in ("custom", "custom_metadata"):  # 0.10.0 to 0.11.6 wrote the first
        given = document.pop(name, None)
        custom |= {} if given is None else _object(given, path, name)
    for name in ("metrics", "performance_metrics"):
        document.pop(name, None)
    init_time, commit_time = (time if type(time) is int else None for time in times)
    return CheckpointMetadata(
        item_handlers=handlers if isinstance(handlers, dict | str) else None,
        init_time_ns=init_time,
        commit_time_ns=commit_time,
        custom_metadata=document | custom,
    )


def _object(value: Any, path: str, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise CorruptDataError(f"{path}: {what} is not a JSON object", path=path)
    return value


def _pointer(name: str) -> list[str]:
    return [token.replace("~1", "/").replace("~0", "~") for token in name.split("/")]
