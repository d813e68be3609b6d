from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import pytest

from ocdbt_py.backends import MemoryStorage
from ocdbt_py.checkpoint.layout import ItemKind, Kind, identify, is_finished
from ocdbt_py.checkpoint.opening import find_checkpoint, find_item
from ocdbt_py.errors import CorruptDataError, InvalidArgumentError, NotFoundError, PathNotFoundError, UncommittedError
from ocdbt_py.storage.location import Place
from ocdbt_py.storage.protocol import Capabilities, Listed
from ocdbt_py.testing.faulty import FaultyStorage
from tests.checkpoint.places import Bucket, NewPlace


class Unlistable(FaultyStorage):
    """As plain HTTP: known names can be tried, and that is all."""

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(ranges=True)

    def list(self, prefix: str, *, deep: bool = False) -> Iterator[Listed]:
        raise AssertionError("this storage cannot list")


def fill(place: Place, names: Iterable[str], content: bytes = b"{}") -> None:
    for name in names:
        place.storage.write(f"{place.path}/{name}", [content])


PYTREE = ["_METADATA", "manifest.ocdbt", "d/0"]


def below(name: str, files: Iterable[str]) -> list[str]:
    return [f"{name}/{file}" for file in files]


TABLE = [
    (Kind.NOTHING, []),
    (Kind.PYTREE, PYTREE),
    (Kind.PYTREE, [*PYTREE, "_CHECKPOINT_METADATA", "commit_success.txt"]),
    (Kind.PYTREE, ["_METADATA", "checkpoint"]),
    (Kind.OLD_PYTREE, ["checkpoint", "w/.zarray", "w/0"]),
    (Kind.DATABASE, ["manifest.ocdbt", "d/0"]),
    (Kind.DATABASE, ["manifest.0000000000000003"]),
    (Kind.PARTS, ["ocdbt.process_0/manifest.ocdbt", "ocdbt.process_1/manifest.ocdbt"]),
    (Kind.PARTS, ["_CHECKPOINT_METADATA", "ocdbt.process_0/manifest.ocdbt", "array_metadatas/process_0"]),
    (Kind.RANDOM_KEY, ["jax_random_key/_METADATA", "jax_random_key_metadata/metadata"]),
    (Kind.RANDOM_KEY, ["np_random_key/_METADATA", "np_random_key_metadata/metadata", "_CHECKPOINT_METADATA"]),
    (Kind.STEP, ["_CHECKPOINT_METADATA", "np_random_key/_METADATA"]),
    (Kind.ARRAYS, ["checkpoint/.zarray", "checkpoint/0"]),
    (Kind.ARRAYS, ["a/zarr.json", "b/0"]),
    (Kind.ARRAYS, [".zarray", "0"]),
    (Kind.STEP, ["_CHECKPOINT_METADATA", *below("default", PYTREE), "metrics/metrics"]),
    (Kind.STEP, ["_CHECKPOINT_METADATA", "d/0", "manifest.ocdbt"]),
    (Kind.STEP, ["orbax.checkpoint", *below("state", PYTREE)]),
    (Kind.STEP, [*below("default", PYTREE), "metrics/metrics"]),
    (Kind.STEP, [*below("default", ["checkpoint"]), "metrics/metrics"]),
    (Kind.ROOT, [*below("7", ["_CHECKPOINT_METADATA", "default/_METADATA"]), "metadata/_ROOT_METADATA"]),
    (Kind.ROOT, [*below("7", ["default/_METADATA"]), *below("08", ["default/checkpoint"])]),
    (Kind.ROOT, below("step_7", [*PYTREE, "_CHECKPOINT_METADATA"])),
    (Kind.ROOT, below("best", [*PYTREE, "_CHECKPOINT_METADATA"])),
    (Kind.JSON, ["metadata", "commit_success.txt"]),
    (Kind.JSON, ["metrics"]),
    (Kind.OTHER, ["notes.txt"]),
    (Kind.OTHER, ["data/part-0"]),
    (Kind.OTHER, below("7.orbax-checkpoint-tmp", PYTREE)),
]


@pytest.mark.parametrize(("kind", "files"), TABLE, ids=lambda value: str(value)[:60])
def test_a_directory_is_recognised_by_the_names_in_it(kind: Kind, files: list[str], place: Place) -> None:
    fill(place, files)
    assert identify(place).kind is kind


def test_items_of_a_step_are_told_apart_and_unfinished_ones_left_out(place: Place) -> None:
    fill(place, ["_CHECKPOINT_METADATA", *below("b", PYTREE), "a/metadata", "proto/proto.pbtxt", "old/checkpoint"])
    fill(place, [*below("c.orbax-checkpoint-tmp", PYTREE), "v1/data.json", "descriptor/descriptor.pbtxt"])
    fill(place, ["array/checkpoint/.zarray", "key/np_random_key/_METADATA", "key/np_random_key_metadata/metadata"])
    assert identify(place).items == {
        "a": ItemKind.JSON,
        "array": ItemKind.ARRAYS,
        "b": ItemKind.PYTREE,
        "descriptor": ItemKind.OTHER,
        "key": ItemKind.RANDOM_KEY,
        "old": ItemKind.OLD_PYTREE,
        "proto": ItemKind.OTHER,
        "v1": ItemKind.JSON,
    }


def test_an_item_that_is_being_deleted_is_gone(place: Place) -> None:
    fill(place, ["_CHECKPOINT_METADATA", *below("a", PYTREE), "b/array_metadatas/process_0"])
    fill(place, ["_CHECKPOINT_DELETION"], b'{"operation_id": "1", "checkpointable_name": "b"}')
    assert list(find_checkpoint(place).items) == ["a"]
    fill(place, ["_CHECKPOINT_DELETION"], b"[" * 100_000)
    with pytest.raises(CorruptDataError, match="_CHECKPOINT_DELETION"):
        find_checkpoint(place)


def test_steps_are_named_in_the_order_of_their_numbers(place: Place) -> None:
    for name in ("100", "20", "3", "best", "7" * 5000):
        fill(place, below(name, [*PYTREE, "_CHECKPOINT_METADATA"]))
    fill(place, ["notes/x", "30.orbax-checkpoint-tmp/_METADATA"])
    assert identify(place).steps == ("3", "20", "100", "7" * 5000, "best")


def test_a_large_root_is_recognised_without_opening_every_step(new_place: NewPlace) -> None:
    storage = FaultyStorage(MemoryStorage())
    place = new_place(storage)
    for step in range(50):
        fill(place, below(str(step), [*PYTREE, "_CHECKPOINT_METADATA"]))
    assert len(identify(place).steps) == 50
    assert storage.operations["list"] < 5


def test_where_nothing_can_be_listed_known_names_are_tried(new_place: NewPlace) -> None:
    inner = MemoryStorage()
    for kind, files in TABLE[:3] + TABLE[5:6]:
        place = new_place(inner)
        fill(place, files)
        assert identify(replace(place, storage=Unlistable(inner))).kind is kind
    place = new_place(inner)
    fill(place, ["_CHECKPOINT_METADATA"], b'{"item_handlers": {"mine": "x", "../up": "x", "": "x", "a/b": "x"}}')
    fill(place, [*below("mine", PYTREE), *below("default", PYTREE), "../up/_METADATA", "a/b/_METADATA"])
    layout = identify(replace(place, storage=Unlistable(inner)))
    assert (layout.kind, sorted(layout.items)) == (Kind.STEP, ["default", "mine"])


@pytest.mark.parametrize(
    ("files", "content", "finished"),
    [
        ([*PYTREE], b"{}", False),
        ([*PYTREE, "commit_success.txt"], b"{}", True),
        ([*PYTREE, "../commit_success.txt"], b"{}", True),
        ([*PYTREE, "_CHECKPOINT_METADATA"], b'{"commit_timestamp_nsecs": 5}', True),
        ([*PYTREE, "../_CHECKPOINT_METADATA"], b'{"commit_timestamp_nsecs": 5}', True),
        ([*PYTREE, "_CHECKPOINT_METADATA"], b'{"commit_timestamp_nsecs": null}', False),
        ([*PYTREE, "_CHECKPOINT_METADATA"], b"not JSON", False),
    ],
)
def test_without_renaming_marker_or_commit_time_say_finished(
    files: list[str], content: bytes, finished: bool, new_place: NewPlace
) -> None:
    place = new_place(Bucket(MemoryStorage()))
    above = place.path.rpartition("/")[0]
    for file in files:
        path = f"{above}/{file[3:]}" if file.startswith("../") else f"{place.path}/{file}"
        place.storage.write(path, [content])
    assert is_finished(identify(place)) is finished


@pytest.mark.parametrize(
    ("path", "finished"),
    [
        ("/r/7", True),
        ("/r/7.orbax-checkpoint-tmp", False),
        ("/r/7.orbax-checkpoint-tmp-1234", False),
        ("/r/7.orbax-checkpoint-tmp/default", False),
        ("/r.orbax-checkpoint-tmp/7/default", True),
    ],
)
def test_with_renaming_its_own_name_and_its_step_s_say_finished(path: str, finished: bool, place: Place) -> None:
    place = replace(place, path=path)
    fill(place, PYTREE)
    assert is_finished(identify(place)) is finished
    place.storage.delete(path + "/")


def test_each_thing_that_is_no_checkpoint_has_its_own_error(place: Place) -> None:
    with pytest.raises(PathNotFoundError, match="nothing at"):
        find_checkpoint(place)
    fill(place, ["notes.txt", "b"])
    with pytest.raises(NotFoundError, match=r"it holds b, notes\.txt"):
        find_checkpoint(place)
    place.storage.delete(place.path + "/")
    fill(place, ["ocdbt.process_0/manifest.ocdbt"])
    with pytest.raises(UncommittedError, match="never merged"):
        find_checkpoint(place)
    assert find_checkpoint(place, allow_uncommitted=True).kind is Kind.PARTS
    step = replace(place, path=place.path.rpartition("/")[0])
    fill(step, ["_CHECKPOINT_METADATA"])
    with pytest.raises(UncommittedError, match="never merged"):
        find_item(find_checkpoint(step), "7")
    step.storage.delete(step.path + "/")
    fill(place, ["_CHECKPOINT_METADATA", "manifest.ocdbt", "d/0"])
    with pytest.raises(CorruptDataError, match="arrays but no _METADATA"):
        find_checkpoint(place)
    place.storage.delete(place.path + "/")
    for number in range(30):
        fill(place, below(str(number), [*PYTREE, "_CHECKPOINT_METADATA"]))
    with pytest.raises(InvalidArgumentError, match=r"30 in all, of which 10, 11.* 29\. Give .*/29") as caught:
        find_checkpoint(place)
    assert " 9," not in str(caught.value)


def test_a_save_under_way_is_told_by_what_lies_beside(place: Place) -> None:
    beside = replace(place, path=place.path + ".orbax-checkpoint-tmp")
    fill(beside, PYTREE)
    with pytest.raises(UncommittedError, match=r"what there is lies at .*7\.orbax-checkpoint-tmp"):
        find_checkpoint(place)
    with pytest.raises(UncommittedError, match="never finished"):
        find_checkpoint(beside)
    assert find_checkpoint(beside, allow_uncommitted=True).kind is Kind.PYTREE


def test_an_item_that_is_not_there_is_told_with_those_that_are(place: Place) -> None:
    fill(place, ["_CHECKPOINT_METADATA", *below("params", PYTREE), "metrics/metrics"])
    step = find_checkpoint(place)
    assert find_item(step, "params").kind is Kind.PYTREE
    with pytest.raises(NotFoundError, match=r"mean 'params'\? It has metrics, params"):
        find_item(step, "param")
    with pytest.raises(NotFoundError, match=r"no item '\.\./7/params'"):
        find_item(step, "../7/params")
    with pytest.raises(InvalidArgumentError, match="not a step"):
        find_item(find_item(step, "params"), "x")
