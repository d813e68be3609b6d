from __future__ import annotations

import json
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest

from ocdbt_py.array.lazy import LazyArray
from ocdbt_py.backends import MemoryStorage
from ocdbt_py.checkpoint import long_tree, stored
from ocdbt_py.checkpoint.checkpoint import ArrayInfo, Checkpoint, Fetch
from ocdbt_py.checkpoint.metadata import TreeMetadata, decode_tree_metadata
from ocdbt_py.checkpoint.save import save
from ocdbt_py.errors import (
    CorruptDataError,
    InvalidArgumentError,
    KeyNotFoundError,
    PathNotFoundError,
    UncommittedError,
)
from ocdbt_py.testing.faulty import FaultyStorage
from tests.checkpoint.places import NewPlace, save_at

TREE = {
    "params": {"w": np.arange(3000, dtype=np.float32).reshape(100, 30), "b": np.ones(3)},
    "list": [1, "two", None, {}],
    "rate": 0.5,
}


@pytest.fixture(autouse=True, params=["short", "long"])
def length(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of the metadata, as far as it decides whether they are parsed at once."""
    if request.param == "long":
        monkeypatch.setattr(long_tree, "_LONG", 0)
    return str(request.param)


@pytest.fixture
def url(tmp_path: Path) -> Path:
    save(tmp_path / "c", TREE, compression=None, custom_metadata={"lang": "en"})
    return tmp_path / "c"


def test_it_is_a_mapping_of_leaf_names(url: Path) -> None:
    checkpoint = Checkpoint(url)
    assert (
        checkpoint.names()
        == list(checkpoint)
        == [
            "list.0",
            "list.1",
            "list.2",
            "list.3",
            "params.b",
            "params.w",
            "rate",
        ]
    )
    assert len(checkpoint) == 7
    assert "params.w" in checkpoint
    assert "params" not in checkpoint
    assert [checkpoint[f"list.{i}"] for i in range(4)] == [1, "two", None, {}]
    assert checkpoint["rate"] == 0.5
    assert isinstance(checkpoint["params.w"], LazyArray)
    np.testing.assert_equal(checkpoint["params.w"][10:20:3, -1], TREE["params"]["w"][10:20:3, -1])  # type: ignore[index]
    np.testing.assert_equal(np.asarray(checkpoint["params.b"]), np.ones(3))
    assert checkpoint != Checkpoint(url)
    assert checkpoint == checkpoint
    assert hash(checkpoint) != hash(Checkpoint(url))


def test_a_few_leaves_of_many_are_read_before_all_are_parsed(
    url: Path, monkeypatch: pytest.MonkeyPatch, length: str
) -> None:
    parsed = []

    def parse(data: bytes) -> TreeMetadata:
        parsed.append(data)
        return decode_tree_metadata(data)

    for module in (stored, long_tree):
        monkeypatch.setattr(module, "decode_tree_metadata", parse)
    checkpoint = Checkpoint(url)
    for _ in range(3):
        assert checkpoint["list.0"] == 1
        np.testing.assert_equal(checkpoint["params.b"][1:], np.ones(2))
    assert len(checkpoint.explain("params.w", np.s_[:2])) == 1
    assert len(parsed) == (length == "short")
    for _ in range(10):
        assert checkpoint["list.1"] == "two"
    assert len(parsed) == 1  # one search after the other would take longer


def test_a_name_that_is_not_there_is_a_key_error_with_the_nearest(url: Path) -> None:
    checkpoint = Checkpoint(url)
    with pytest.raises(KeyError, match=r"'params\.ww'.*did you mean 'params\.w'"):
        checkpoint["params.ww"]
    with pytest.raises(KeyNotFoundError, match=r"names\(\) lists them"):
        checkpoint["zzzzzz"]
    assert checkpoint.get("zzzzzz") is None


def test_the_tree_has_the_structure_with_what_is_known_of_each_array(url: Path) -> None:
    number = ArrayInfo((), np.dtype(np.float64), 8, ())
    assert Checkpoint(url).tree == {
        "params": {
            "w": ArrayInfo((100, 30), np.dtype(np.float32), 12000, (100, 30)),
            "b": ArrayInfo((3,), np.dtype(np.float64), 24, (3,)),
        },
        "list": [ArrayInfo((), np.dtype(np.int64), 8, ()), "two", None, {}],
        "rate": number,
    }
    assert str(number) == "float64[]"


def test_metadata_and_shardings_are_at_hand(url: Path, tmp_path: Path) -> None:
    import jax.numpy as jnp

    assert Checkpoint(url).custom_metadata == {"lang": "en"}
    assert Checkpoint(url).sharding("params.w") is None
    save(tmp_path / "jax", {"x": jnp.ones(3)})
    sharding = Checkpoint(tmp_path / "jax").sharding("x")
    assert sharding is not None
    assert sharding["sharding_type"] == "SingleDeviceSharding"
    with pytest.raises(KeyNotFoundError):
        Checkpoint(tmp_path / "jax").sharding("y")
    (url / "_CHECKPOINT_METADATA").write_text("[")
    with pytest.raises(CorruptDataError, match="_CHECKPOINT_METADATA"):
        _ = Checkpoint(url).custom_metadata
    (url / "_CHECKPOINT_METADATA").unlink()
    assert Checkpoint(url).custom_metadata == {}


def test_opening_reads_no_array_and_a_slice_reads_only_its_bytes(new_place: NewPlace) -> None:
    storage = FaultyStorage(MemoryStorage())
    place = new_place(storage)
    save_at(place, {f"x{i}": np.arange(10_000.0) for i in range(20)})
    storage.bytes_read.clear()
    checkpoint = Checkpoint._reopen(place, None, False)
    assert len(checkpoint.names()) == 20
    assert checkpoint.tree["x7"].nbytes == 80_000
    opening = sum(storage.bytes_read.values())
    assert opening < 20_000
    assert checkpoint["x7"][5000:5010].tolist() == list(range(5000, 5010))
    assert sum(storage.bytes_read.values()) - opening < 2000


def test_it_is_pinned_to_what_it_opened(url: Path) -> None:
    from ocdbt_py.database import open as open_database

    checkpoint = Checkpoint(url)
    with open_database(url, "r+") as database:
        database[b"params.b/0"] = bytes(24)
    np.testing.assert_equal(checkpoint["params.b"][:], np.ones(3))
    np.testing.assert_equal(Checkpoint(url)["params.b"][:], np.zeros(3))


def test_metadata_that_were_replaced_since_are_not_taken_for_those_that_were_opened(url: Path, length: str) -> None:
    checkpoint = Checkpoint(url)
    data = (url / "_METADATA").read_bytes()
    (url / "_METADATA").unlink()
    if length == "long":
        with pytest.raises(PathNotFoundError, match="is gone"):
            checkpoint["rate"]
    (url / "_METADATA").write_bytes(data + b" ")
    if length == "long":
        with pytest.raises(PathNotFoundError, match="open it again"):
            checkpoint["rate"]
        with pytest.raises(PathNotFoundError, match="open it again"):
            checkpoint.names()
    else:
        assert checkpoint["rate"] == 0.5
    assert Checkpoint(url)["rate"] == 0.5


def test_explain_tells_what_a_slice_will_fetch(url: Path) -> None:
    checkpoint = Checkpoint(url)
    (whole,) = checkpoint.explain("params.w")
    assert whole.file is not None
    assert whole.file.startswith("d/")
    assert (whole.key, whole.length) == (b"params.w/0.0", 12000)
    (row,) = checkpoint.explain("params.w", (slice(10, 12),))
    assert row == Fetch(b"params.w/0.0", whole.file, whole.offset + 10 * 120, 240)
    data = (url / whole.file).read_bytes()
    assert data[row.offset : row.offset + row.length] == TREE["params"]["w"][10:12].tobytes()  # type: ignore[index]
    assert checkpoint.explain("params.b") == [Fetch(b"params.b/0", None, 0, 24)]
    assert checkpoint.explain("params.b", slice(1, 2)) == [Fetch(b"params.b/0", None, 0, 8)]
    assert checkpoint.explain("list.1") == []


def test_it_pickles_and_serves_many_threads(url: Path) -> None:
    checkpoint = Checkpoint(url)
    again = pickle.loads(pickle.dumps(checkpoint))
    assert again.names() == checkpoint.names()
    lazy = pickle.loads(pickle.dumps(checkpoint["params.w"]))
    np.testing.assert_equal(lazy[:], TREE["params"]["w"])  # type: ignore[index]
    errors: list[BaseException] = []

    def read() -> None:
        try:
            for name in again:
                np.asarray(again[name])
            assert again.tree
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def composite(root: Path, *pytrees: str) -> Path:
    root.mkdir()
    for name in pytrees:
        save(root / name, {"which": name, "x": np.arange(3)})
        (root / name / "_CHECKPOINT_METADATA").unlink()
    (root / "cfg").mkdir()
    (root / "cfg" / "metadata").write_text(json.dumps({"layers": 3}))
    (root / "_CHECKPOINT_METADATA").write_text(json.dumps({"custom_metadata": {"step": 7}}))
    return root


def test_a_step_with_one_pytree_is_that_pytree(tmp_path: Path) -> None:
    checkpoint = Checkpoint(composite(tmp_path / "7", "state"))
    assert checkpoint.item_names() == ["cfg", "state"]
    assert checkpoint["which"] == "state"
    assert checkpoint.custom_metadata == {"step": 7}
    assert checkpoint.item("cfg") == {"layers": 3}
    assert pickle.loads(pickle.dumps(checkpoint.item("state")))["which"] == "state"
    assert repr(checkpoint).endswith("7: 2 leaves>")
    assert repr(checkpoint.item("state")).endswith("7 item state: 2 leaves>")


def test_a_step_with_several_pytrees_gives_them_one_by_one(tmp_path: Path) -> None:
    checkpoint = Checkpoint(composite(tmp_path / "7", "a", "b"))
    assert checkpoint.item_names() == ["a", "b", "cfg"]
    assert checkpoint.item("b")["which"] == "b"
    assert repr(checkpoint).endswith("7 items: a, b, cfg>")
    for ask in (lambda: checkpoint["x"], lambda: len(checkpoint), lambda: checkpoint.tree, lambda: list(checkpoint)):
        with pytest.raises(InvalidArgumentError, match="several items: a, b, cfg"):
            ask()


def test_an_unfinished_checkpoint_is_opened_only_when_allowed(url: Path) -> None:
    unfinished = url.rename(url.with_name("c.orbax-checkpoint-tmp"))
    with pytest.raises(UncommittedError):
        Checkpoint(unfinished)
    assert Checkpoint(unfinished, allow_uncommitted=True)["rate"] == 0.5


def test_a_direct_checkpoint_has_no_items(url: Path) -> None:
    assert Checkpoint(url).item_names() == []
    with pytest.raises(InvalidArgumentError, match="not a step"):
        Checkpoint(url).item("default")
    assert repr(Checkpoint(url)) == f"<Checkpoint {Checkpoint(url)._layout.place.url}: 7 leaves>"
