from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from mmap import mmap
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest

from ocdbt_py.backends import MemoryStorage
from ocdbt_py.checkpoint.restore import restore, restore_place
from ocdbt_py.checkpoint.save import save
from ocdbt_py.database import open as open_database
from ocdbt_py.errors import (
    CorruptDataError,
    InvalidArgumentError,
    InvalidTypeError,
    NotFoundError,
    OcdbtError,
    StructureError,
    UncommittedError,
    UnsupportedError,
)
from ocdbt_py.testing.faulty import FaultyStorage
from tests.checkpoint.places import NewPlace, save_at

ROOT = Path(__file__).parents[2]


class Moments(NamedTuple):
    mu: Any
    nu: Any


TREE = {
    "params": {"dense": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": np.ones(3, np.float32)}},
    "opt": [Moments(np.zeros(2, np.float16), None), (), {"count": 7}],
    "step": 12,
    "rate": 0.5,
    "flag": True,
    "name": "run",
    "mask": np.array([True, False]),
    "long": np.arange(1000, dtype=np.float32),
}


@pytest.fixture
def url(tmp_path: Path) -> Path:
    save(tmp_path / "c", TREE, compression=None)
    return tmp_path / "c"


def same(found: Any, expected: Any) -> None:
    np.testing.assert_equal(found, expected)
    assert repr(found) == repr(expected)


# --- without a target


def test_arrays_are_writable_and_own_their_memory(url: Path) -> None:
    found = restore(url)
    shutil.rmtree(url)
    for array in (found["long"], found["params"]["dense"]["bias"], found["mask"]):
        array[...] = 0
        assert array.flags.owndata or isinstance(array.base, mmap) or array.base.flags.owndata
    assert found["long"].sum() == 0


def test_mapped_arrays_are_writable_and_never_change_the_file(url: Path) -> None:
    found = restore(url, mmap=True)
    assert not found["long"].flags.owndata
    np.testing.assert_equal(found["long"], TREE["long"])
    found["long"][:] = -1
    np.testing.assert_equal(restore(url)["long"], TREE["long"])
    np.testing.assert_equal(restore(url, mmap=True)["long"], TREE["long"])
    same(restore(url, mmap=True), restore(url))


def test_mapping_falls_back_to_reading_for_what_does_not_lie_as_in_memory(tmp_path: Path) -> None:
    tree = {
        "chunked": np.arange(1000.0),
        "bool": np.ones(5000, bool),
        "int4": np.ones(5000, ml_dtypes.int4),
        "small": np.arange(3),
        "empty": np.zeros((0, 2)),
    }
    save(tmp_path / "c", tree, compression=None, chunk_bytes=1600)
    save(tmp_path / "z", tree, compression="zstd")
    save("memory://restore/mapping", tree, overwrite=True)
    for url in (tmp_path / "c", tmp_path / "z", "memory://restore/mapping"):
        np.testing.assert_equal(restore(url, mmap=True), tree)


def test_bytes_that_are_no_booleans_are_corrupt_and_never_mapped_as_such(tmp_path: Path) -> None:
    save(tmp_path / "c", {"x": np.ones(5000, bool)}, compression=None)
    with open_database(tmp_path / "c", "r+") as database:
        database[b"x/0"] = b"\2" * 5000
    with pytest.raises(CorruptDataError, match="x/0"):
        restore(tmp_path / "c", mmap=True)


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        ("params.**.bias", {"params": {"dense": {"bias": TREE["params"]["dense"]["bias"]}}}),  # type: ignore[index]
        ("opt.1", {"opt": [..., (), ...]}),
        ("opt.*.count", {"opt": [..., ..., {"count": 7}]}),
        ("?ame", {"name": "run"}),
        (re.compile("^(step|rate)$"), {"rate": 0.5, "step": 12}),
        (lambda name, info: info.dtype == np.float16, {"opt": [{"mu": np.zeros(2, np.float16)}, ..., ...]}),
        (lambda name, info: info.nbytes > 3000, {"long": TREE["long"]}),
        (lambda name, info: info.dtype == object, {"name": "run", "opt": [{"nu": None}, (), ...]}),
    ],
)
def test_only_selected_leaves_are_returned(select: Any, expected: Any, url: Path) -> None:
    same(restore(url, select=select), expected)


def test_what_is_not_selected_is_not_read(new_place: NewPlace) -> None:
    storage = FaultyStorage(MemoryStorage())
    place = new_place(storage)
    save_at(place, TREE)
    storage.bytes_read.clear()
    reads: list[Callable[[], Any]] = [
        lambda: restore_place(place, select="step"),
        lambda: restore_place(place, dict.fromkeys(TREE) | {"long": ...}),
        lambda: restore_place(place, {"step": 0}, strict=False),
    ]
    for read in reads:
        storage.bytes_read.clear()
        read()
        assert 0 < sum(size for path, size in storage.bytes_read.items() if "/d/" in path) < 2000
    restore_place(place)
    assert sum(storage.bytes_read.values()) > 4000


def test_a_selection_that_matches_nothing_is_refused(url: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="none of the"):
        restore(url, select="parms.**")


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", np.float16, np.dtype("float32"), ml_dtypes.bfloat16])
def test_dtype_casts_every_floating_array_and_nothing_else(dtype: Any, url: Path) -> None:
    expected: Any = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    found = restore(url, dtype=dtype)
    assert found["long"].dtype == found["opt"][0]["mu"].dtype == expected
    assert found["mask"].dtype == bool
    assert (type(found["step"]), type(found["rate"])) == (int, float)
    assert restore(url, {"long": np.zeros(1000, np.int32)}, dtype=dtype, strict=False)["long"].dtype == np.int32
    assert restore(url, {"long": np.zeros(1000)}, dtype=dtype, strict=False)["long"].dtype == expected


@pytest.mark.parametrize("dtype", ["int32", bool, np.complex64])
def test_a_dtype_that_is_not_floating_is_refused(dtype: Any, url: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="floating"):
        restore(url, dtype=dtype)
    with pytest.raises(InvalidTypeError, match="floating dtype such as"):
        restore(url, dtype=[("a", 3, 4, 5)])


# --- with a target


def test_a_target_gives_structure_and_dtypes(url: Path) -> None:
    target = {
        "params": {"dense": {"kernel": np.zeros((2, 3)), "bias": np.zeros(3, ml_dtypes.bfloat16)}},
        "opt": (Moments(np.zeros(2, np.float32), None), (), {"count": np.int8(0)}),
        "step": 0.0,
        "rate": 0j,
        "flag": 1,
        "name": "",
        "mask": None,
        "long": ...,
    }
    found = restore(url, target)
    np.testing.assert_equal(found["params"]["dense"]["kernel"], np.arange(6.0).reshape(2, 3))
    assert found["params"]["dense"]["bias"].dtype == ml_dtypes.bfloat16
    assert type(found["opt"]) is tuple
    assert type(found["opt"][0]) is Moments
    assert repr(found["opt"][2]["count"]) == "np.int8(7)"
    assert repr([found["step"], found["rate"], found["flag"], found["name"]]) == "[12.0, (0.5+0j), 1, 'run']"
    assert found["mask"].tolist() == [True, False]
    assert found["long"] is ...


def test_none_and_dots_may_stand_for_a_subtree(url: Path) -> None:
    target = dict.fromkeys(TREE) | {"opt": ...}
    found = restore(url, target)
    assert found["opt"] is ...
    same(found["params"], restore(url)["params"])
    assert found["step"] == 12
    same(restore(url, {"opt": None}, strict=False)["opt"], restore(url)["opt"])


def test_without_strict_what_does_not_fit_is_taken_as_it_is(url: Path) -> None:
    target = {"params": {"dense": {"kernel": np.zeros((9, 9))}}, "name": 3, "new": np.full(2, 5.0), "step": 0}
    found = restore(url, target, strict=False)
    np.testing.assert_equal(found["params"]["dense"]["kernel"], np.arange(6, dtype=np.float32).reshape(2, 3))
    assert found["name"] == "run"
    assert found["new"] is target["new"]
    assert found["step"] == 12


def test_every_difference_is_in_one_error_in_three_columns_with_nearest_names(url: Path) -> None:
    target = {
        "params": {"dense": {"kernal": np.zeros((2, 3), np.float32), "bias": np.zeros(4, np.float32)}},
        "opt": [Moments(np.zeros(2), None), (), {"count": "seven"}],
        "step": "12",
        "rate": 1,
        "flag": True,
        "name": np.zeros(1),
        "mask": {},
        "long": None,
        "nothing alike": 0,
    }
    with pytest.raises(StructureError) as caught:
        restore(url, target)
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("differ in 9 leaves:")
    rows = {tuple(re.split(r"\s{2,}", line.strip())) for line in lines[1:-1]}
    assert rows == {
        ("leaf", "in the checkpoint", "in the target"),
        ("params.dense.kernal", "-", "float32[2,3]", "nearest name: params.dense.kernel"),
        ("params.dense.kernel", "float32[2,3]", "-"),
        ("params.dense.bias", "float32[3]", "float32[4]"),
        ("opt.2.count", "int64[]", "str"),
        ("step", "int64[]", "str"),
        ("rate", "float64[]", "int"),
        ("name", "str", "float64[1]"),
        ("mask", "bool[2]", "{}"),
        ("nothing alike", "-", "int"),
    }
    assert isinstance(caught.value, ValueError)


def test_nothing_is_read_before_the_structure_is_settled(url: Path) -> None:
    for file in (url / "d").iterdir():
        data = file.read_bytes()
        file.write_bytes(bytes(4000) + data[4000:])
    with pytest.raises(StructureError):
        restore(url, {"long": np.zeros(3)})


@pytest.mark.parametrize("leaf", [object(), b"x", {1, 2}, len])
def test_a_target_leaf_that_says_nothing_is_refused(leaf: Any, url: Path) -> None:
    with pytest.raises(InvalidTypeError, match="'long' of the target"):
        restore(url, {"long": leaf}, strict=False)


def test_complex_leaves_are_not_cut_to_real_ones(tmp_path: Path) -> None:
    save(tmp_path / "c", {"x": np.array([1j]), "y": np.complex64(1)})
    for target in ({"x": np.zeros(1)}, {"y": 1.0}):
        with pytest.raises(StructureError, match="complex"):
            restore(tmp_path / "c", target | {next(iter({"x", "y"} - set(target))): None})


def test_a_selection_leaves_dots_in_a_target(url: Path) -> None:
    target = restore(url) | {"long": np.zeros(1000)}
    found = restore(url, target, select="step")
    assert found["step"] == 12
    assert found["long"] is found["name"] is found["opt"][2]["count"] is ...
    same(restore(url, {"opt": None}, select="opt.2.*", strict=False), {"opt": [..., ..., {"count": 7}]})
    assert restore(url, {"opt": None, "step": None}, select="step", strict=False)["opt"] is ...


def test_jax_targets_give_jax_arrays_on_their_shardings(url: Path) -> None:
    import jax
    import jax.numpy as jnp

    device = jax.devices()[0]
    sharding = jax.sharding.SingleDeviceSharding(device)
    target = {
        "long": jax.ShapeDtypeStruct((1000,), jnp.bfloat16, sharding=sharding),  # type: ignore[no-untyped-call]
        "mask": jax.ShapeDtypeStruct((2,), jnp.bool_),  # type: ignore[no-untyped-call]
        "step": jnp.zeros((), jnp.int32),
    }
    found = restore(url, target, strict=False)
    shutil.rmtree(url)
    assert all(isinstance(array, jax.Array) for array in found.values())
    assert found["long"].dtype == jnp.bfloat16
    assert found["long"].sharding == sharding
    assert found["long"][:4].tolist() == [0, 1, 2, 3]
    assert found["mask"].tolist() == [True, False]
    assert (int(found["step"]), found["step"].dtype) == (12, jnp.int32)


SHARDED = """
import sys, jax, numpy as np, ocdbt_py
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("x", "y"))
value = np.arange(48.0, dtype="float32").reshape(8, 6)
ocdbt_py.save(sys.argv[1], {"w": jax.device_put(value, NamedSharding(mesh, P("x", "y")))})
assert ocdbt_py.Checkpoint(sys.argv[1]).sharding("w")["partition_spec"] == ["x", "y"]
for spec in (P("y", None), P(None, ("x", "y")), P()):
    wanted = NamedSharding(mesh, spec)
    if spec == P(None, ("x", "y")):
        wanted = NamedSharding(Mesh(np.array(jax.devices()[:2]), ("x",)), P(None, "x"))
    found = ocdbt_py.restore(sys.argv[1], {"w": jax.ShapeDtypeStruct((8, 6), "float32", sharding=wanted)})["w"]
    assert found.sharding == wanted
    assert (np.asarray(found) == value).all()
"""


def test_an_array_sharded_over_one_host_is_restored_on_any_other_sharding(tmp_path: Path) -> None:
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'backends'}",
    }
    subprocess.run([sys.executable, "-c", SHARDED, str(tmp_path / "c")], env=environment, check=True)


def test_typed_keys_come_back_typed_with_a_target_and_as_key_data_without(tmp_path: Path) -> None:
    import jax

    keys = jax.random.split(jax.random.key(3, impl="rbg"), 2)
    save(tmp_path / "c", {"keys": keys})
    data = restore(tmp_path / "c")["keys"]
    np.testing.assert_equal(data, np.asarray(jax.random.key_data(keys)))
    for target in (keys, jax.ShapeDtypeStruct(keys.shape, keys.dtype)):  # type: ignore[no-untyped-call]
        found = restore(tmp_path / "c", {"keys": target})["keys"]
        assert found.dtype == keys.dtype
        np.testing.assert_equal(np.asarray(jax.random.key_data(found)), data)
    with pytest.raises(StructureError, match=r"uint32\[2,4\]"):
        restore(tmp_path / "c", {"keys": keys[0]})


def test_leaves_are_paired_by_name_however_the_target_spells_the_path(url: Path) -> None:
    target = {"params.dense.bias": np.zeros(3, np.float64), "opt.2": {"count": None}, "params": {"dense.kernel": None}}
    found = restore(url, target, strict=False)
    assert found["params.dense.bias"].tolist() == [1, 1, 1]
    assert found["opt.2"] == {"count": 7}
    assert found["params"]["dense.kernel"].shape == (2, 3)


# --- what is at the place


def test_a_step_of_json_items_only_is_a_dict_of_them(tmp_path: Path) -> None:
    (tmp_path / "_CHECKPOINT_METADATA").write_text("{}")
    for name, file in (("a", "metadata"), ("b", "data.json"), ("c", "metrics")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(json.dumps({"from": file}))
    assert restore(tmp_path) == {
        name: {"from": file} for name, file in zip("abc", ("metadata", "data.json", "metrics"), strict=True)
    }
    assert restore(tmp_path, item="b") == {"from": "data.json"}
    with pytest.raises(InvalidArgumentError, match="say with item="):
        restore(tmp_path, {"x": 1})


def test_an_item_of_another_kind_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "_CHECKPOINT_METADATA").write_text("{}")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.proto").write_text("x")
    with pytest.raises(UnsupportedError, match=r"model\.proto"):
        restore(tmp_path)


def test_a_database_without_metadata_is_a_flat_dict(tmp_path: Path) -> None:
    save(tmp_path / "c", {"a": {"b": np.arange(3)}, "w/x": np.ones(2), "n": 5})
    database = open_database(tmp_path / "bare", "x")
    database.update(open_database(tmp_path / "c").items())
    same(restore(tmp_path / "bare"), {"a.b": np.arange(3), "n": np.array(5), "w/x": np.ones(2)})
    empty = open_database(tmp_path / "empty", "x")
    empty[b"key"] = b"value"
    with pytest.raises(NotFoundError, match="without arrays"):
        restore(tmp_path / "empty")


# --- damage


def drop_key(key: bytes) -> Callable[[Path], None]:
    def damage(url: Path) -> None:
        with open_database(url, "r+") as database:
            del database[key]

    return damage


def replace_value(key: bytes, value: bytes) -> Callable[[Path], None]:
    def damage(url: Path) -> None:
        with open_database(url, "r+") as database:
            database[key] = value

    return damage


def data_file_of(url: Path, key: bytes) -> Path:
    location = open_database(url).stat(key).location
    assert location is not None
    return url / location.file


def cut_data_file(url: Path) -> None:
    # the tree lies behind the values, so it moves to a file of its own first
    replace_value(b"zzz", b"")(url)
    file = data_file_of(url, b"long/0")
    file.write_bytes(file.read_bytes()[:3000])


def remove_data_file(url: Path) -> None:
    replace_value(b"zzz", b"")(url)
    data_file_of(url, b"long/0").unlink()


def edit_metadata(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def damage(url: Path) -> None:
        document = json.loads((url / "_METADATA").read_bytes())
        change(document)
        (url / "_METADATA").write_text(json.dumps(document))

    return damage


def rename_leaf(document: Any) -> None:
    document["tree_metadata"]["('long',)"]["key_metadata"][0]["key"] = "other"


def claim_zarray(**changes: Any) -> Callable[[Path], None]:
    def damage(url: Path) -> None:
        document = json.loads(open_database(url)[b"long/.zarray"]) | changes
        replace_value(b"long/.zarray", json.dumps(document).encode())(url)

    return damage


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing chunk": (drop_key(b"long/0"), "long/0"),
    "missing array document": (drop_key(b"long/.zarray"), "'long'"),
    "unknown leaf": (edit_metadata(rename_leaf), "'other'"),
    "short chunk": (replace_value(b"long/0", b"short"), "long/0"),
    "long chunk": (replace_value(b"long/0", bytes(4004)), "long/0"),
    "array document no JSON": (replace_value(b"long/.zarray", b"["), "long/.zarray"),
    "array document deep": (replace_value(b"long/.zarray", b'{"a":' * 9000), "long/.zarray"),
    "larger shape": (claim_zarray(shape=[10**12], chunks=[10**12]), "long"),
    "more chunks": (claim_zarray(shape=[10**15]), "long"),
    "missing data file": (remove_data_file, "d/"),
    "cut data file": (cut_data_file, "d/"),
    "missing manifest": (lambda url: (url / "manifest.ocdbt").unlink(), "manifest.ocdbt"),
    "damaged manifest": (lambda url: (url / "manifest.ocdbt").write_bytes(b"\x0c\xdb" + bytes(99)), "manifest.ocdbt"),
    "missing strings": (lambda url: (url / "_strings.json").unlink(), "_strings.json"),
    "other strings": (lambda url: (url / "_strings.json").write_text('{"x":"y"}'), "'name'"),
    "string is a number": (lambda url: (url / "_strings.json").write_text('{"name":7}'), "'name'"),
    "metadata is deep": (lambda url: (url / "_METADATA").write_bytes(b"[" * 10**6), "_METADATA"),
    "metadata is empty": (lambda url: (url / "_METADATA").write_bytes(b""), "_METADATA"),
    "metadata without tree": (edit_metadata(lambda document: document.pop("tree_metadata")), "tree_metadata"),
}


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_corrupt_data_and_says_where(name: str, mmap: bool, url: Path) -> None:
    damage, where = DAMAGE[name]
    damage(url)
    with pytest.raises(CorruptDataError, match=re.escape(where)):
        restore(url, mmap=mmap)


@pytest.mark.parametrize(
    "claim",
    [
        {"compressor": {"id": "pickle"}},
        {"compressor": {"id": "os.system"}},
        {"dtype": "|O"},
        {"dtype": [["a", "<f4"]]},
        {"filters": [{"id": "pickle"}]},
    ],
    ids=str,
)
def test_what_nobody_may_run_or_decode_is_refused_by_leaf_and_file(claim: dict[str, Any], url: Path) -> None:
    claim_zarray(**claim)(url)
    with pytest.raises(UnsupportedError, match=r"long/\.zarray"):
        restore(url)
    assert restore(url, select="step") == {"step": 12}


@pytest.mark.parametrize("chunks", [[2**60], [1]])
def test_an_array_without_chunks_is_not_allocated_whatever_its_shape(chunks: list[int], url: Path) -> None:
    claim_zarray(shape=[2**60], chunks=chunks)(url)
    drop_key(b"long/0")(url)
    with pytest.raises(CorruptDataError, match=r"'long'.*b'long/0' is missing"):
        restore(url)


def test_class_names_of_rich_types_are_data(url: Path) -> None:
    def change(document: Any) -> None:
        leaf = {"category": "custom", "clazz": "ValueMetadataEntry", "data": {"value_type": "None"}}
        entries = [{"key": "x", "value": leaf}]
        tree = {"category": "namedtuple", "module": "antigravity", "clazz": "os.system", "entries": entries}
        document["value_metadata_tree"] = json.dumps(tree)

    edit_metadata(change)(url)
    assert restore(url, select="step") == {"step": 12}
    assert "antigravity" not in sys.modules


def test_a_path_of_a_hundred_thousand_steps_is_read(url: Path) -> None:
    def change(document: Any) -> None:
        step = {"key": "x", "key_type": 2}
        document["tree_metadata"]["deep"] = {
            "key_metadata": [step] * 100_000,
            "value_metadata": {"value_type": "None", "skip_deserialize": True},
        }

    edit_metadata(change)(url)
    tree = restore(url)["x"]
    depth = 1
    while tree is not None:
        tree, depth = tree["x"], depth + 1
    assert depth == 100_000


def test_a_missing_chunk_is_zeros_where_the_writer_left_such_out(url: Path) -> None:
    def change(document: Any) -> None:
        document["store_array_data_equal_to_fill_value"] = False

    edit_metadata(change)(url)
    drop_key(b"long/0")(url)
    assert restore(url)["long"].tolist() == [0.0] * 1000


def test_an_unknown_kind_of_leaf_is_refused_by_name_and_can_be_left_out(url: Path) -> None:
    def change(document: Any) -> None:
        document["tree_metadata"]["('step',)"]["value_metadata"]["value_type"] = "mine.Special"

    edit_metadata(change)(url)
    with pytest.raises(UnsupportedError, match=r"'step'.*mine\.Special"):
        restore(url)
    assert restore(url, select="rate") == {"rate": 0.5}


def test_any_changed_byte_of_the_json_files_gives_a_tree_or_an_error_of_ours(url: Path) -> None:
    choose = random.Random(1)
    for name in ("_METADATA", "_strings.json", "_CHECKPOINT_METADATA"):
        data = (url / name).read_bytes()
        for _ in range(60):
            changed = bytearray(data)
            for _ in range(choose.randint(1, 3)):
                changed[choose.randrange(len(changed))] = choose.choice(b'"{}[],:0129\\aeu \xff')
            (url / name).write_bytes(changed)
            with suppress(OcdbtError):
                restore(url)
        (url / name).write_bytes(data)


def test_an_unfinished_checkpoint_is_told_and_read_only_when_allowed(url: Path) -> None:
    unfinished = url.with_name("c.orbax-checkpoint-tmp")
    url.rename(unfinished)
    for asked in (url, unfinished):
        with pytest.raises(UncommittedError):
            restore(asked)
    assert restore(unfinished, allow_uncommitted=True)["step"] == 12
