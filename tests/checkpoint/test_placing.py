"""Small arrays that lie side by side in a file are read in one piece; which must not be seen, but in speed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from ocdbt_py.array.metadata import encode_metadata
from ocdbt_py.array.spec import ArraySpec, array_key
from ocdbt_py.backends import MemoryStorage
from ocdbt_py.checkpoint.new_database import NewDatabase
from ocdbt_py.checkpoint.placing import gather_arrays
from ocdbt_py.checkpoint.restore import restore_place
from ocdbt_py.database import open_place
from ocdbt_py.engine.data_files import DataFiles
from ocdbt_py.errors import CorruptDataError
from ocdbt_py.format.datafile import DataFileId, Location
from ocdbt_py.format.manifest import MANIFEST_NAME
from ocdbt_py.storage.location import Place
from ocdbt_py.storage.protocol import Read
from tests.checkpoint.places import NewPlace, save_at


def spec_of(array: np.ndarray[Any, Any]) -> ArraySpec:
    return ArraySpec(array.shape, array.shape, array.dtype, compressor=None)


def database_of(
    place: Place, arrays: Mapping[str, np.ndarray[Any, Any]], at: Callable[[str], Location] | None = None
) -> Any:
    """A database of raw arrays, each chunk stored, or said to be stored ``at`` a place."""
    database = NewDatabase(place.storage, place.path)
    for name, array in arrays.items():
        spec = spec_of(array)
        database.put_document(array_key(name, spec.metadata_key), encode_metadata(spec))
        key = array_key(name, spec.chunk_key((0,) * spec.ndim))
        if at is None:
            database.put(key, array.tobytes())
        else:
            database.refer(key, at(name))
    place.storage.write(f"{place.path}/{MANIFEST_NAME}", [database.finish()])
    return open_place(place, max_staleness=math.inf).snapshot()


def test_neighbours_are_read_in_one_piece_and_large_arrays_are_not(new_place: NewPlace) -> None:
    place = new_place(MemoryStorage())
    tree = {f"x{i}": np.arange(100.0) + i for i in range(50)} | {"large": np.arange(9000.0)}
    save_at(place, tree)
    found = restore_place(place)
    np.testing.assert_equal(found, tree)
    assert len({id(found[f"x{i}"].base) for i in range(50)}) == 1
    assert found["large"].base is not found["x0"].base
    found["x1"][:] = 7
    np.testing.assert_equal(found["x0"], tree["x0"])
    np.testing.assert_equal(found["x2"], tree["x2"])


def test_a_piece_of_memory_ends(new_place: NewPlace) -> None:
    place = new_place(MemoryStorage())
    save_at(place, {f"x{i:02}": np.full(60_000, i, np.uint8) for i in range(40)})
    found = restore_place(place)
    assert all((array == i).all() for i, array in enumerate(found.values()))
    pieces = {id(array.base): array.base.nbytes for array in found.values() if array.base is not None}
    assert len(pieces) == 3
    assert max(pieces.values()) <= 1 << 20


def test_arrays_that_refer_to_the_same_bytes_do_not_share_memory(place: Place) -> None:
    files = DataFiles(place.storage, place.path, 0)
    whole = files.append("d/", np.arange(400, dtype=np.uint8).tobytes())
    files.flush()
    parts = {"a": 0, "b": 0, "c": 150, "d": 300}  # of the 300 bytes from there on; c begins within a
    arrays = {name: np.zeros(300 if name != "d" else 100, np.uint8) for name in parts}

    def at(name: str) -> Location:
        return whole._replace(offset=whole.offset + parts[name], length=len(arrays[name]))

    source = database_of(
        place, arrays | {"c": arrays["c"][:250]}, lambda name: at(name) if name != "c" else at("c")._replace(length=250)
    )
    specs = {i: spec_of(array) for i, array in enumerate((arrays | {"c": arrays["c"][:250]}).values())}
    found: dict[int, Any] = {}
    for some in gather_arrays(source, list(parts), specs, 1 << 20):
        found |= some
    stored = np.arange(400, dtype=np.uint8)
    for i, (start, size) in enumerate([(0, 300), (0, 300), (150, 250), (300, 100)]):
        np.testing.assert_equal(found[i], stored[start : start + size])
        found[i][:] = 0


def test_elements_are_aligned_wherever_they_lie_in_the_file(place: Place) -> None:
    files = DataFiles(place.storage, place.path, 0)
    stored = {
        "a": np.arange(301, dtype=np.uint8),
        "b": np.arange(99.0),
        "c": np.arange(3, dtype=np.uint8),
        "d": np.arange(40.0),
    }
    where = {name: files.append("d/", array.tobytes()) for name, array in stored.items()}
    files.flush()
    source = database_of(place, stored, where.__getitem__)
    specs = {i: spec_of(array) for i, array in enumerate(stored.values())}
    found: dict[int, Any] = {}
    for some in gather_arrays(source, list(stored), specs, 1 << 20):
        found |= some
    for i, array in enumerate(stored.values()):
        np.testing.assert_equal(found[i], array)
        assert found[i].flags.aligned


@pytest.mark.parametrize("budget", [1, 1000, 1 << 20])
def test_no_more_is_read_at_a_time_than_the_budget_allows(budget: int, new_place: NewPlace) -> None:
    place = new_place(MemoryStorage())
    arrays = {f"x{i:02}": np.full(50_000, i, np.uint8) for i in range(60)}
    source = database_of(place, arrays)
    specs = {i: spec_of(array) for i, array in enumerate(arrays.values())}
    batches = [
        {id(array.base): array.base.nbytes for array in some.values() if array.base is not None}
        for some in gather_arrays(source, list(arrays), specs, budget)
    ]
    assert all(sum(sizes.values()) <= budget or len(sizes) == 1 for sizes in batches)
    assert sum(sum(sizes.values()) for sizes in batches) >= 60 * 50_000


def test_a_file_that_is_cut_short_names_an_array_that_it_cuts(place: Place) -> None:
    arrays = {f"x{i}": np.arange(100.0) + i for i in range(9)}
    files = DataFiles(place.storage, place.path, 0)
    where = {name: files.append("d/", array.tobytes()) for name, array in arrays.items()}
    files.flush()
    source = database_of(place, arrays, where.__getitem__)
    path = f"{place.path}/{where['x0'].file.path.decode()}"
    whole = place.storage.read(path)
    assert isinstance(whole, Read)
    place.storage.delete(path)
    place.storage.write(path, [whole.data[: where["x7"].offset + 10]])
    specs = {i: spec_of(array) for i, array in enumerate(arrays.values())}
    with pytest.raises(CorruptDataError) as caught:
        list(gather_arrays(source, list(arrays), specs, 1 << 20))
    assert caught.value.key in (b"x7/0", b"x8/0")
    assert caught.value.path == path


def test_a_location_that_nobody_wrote_is_damage(place: Place) -> None:
    arrays = {"a": np.zeros(1000, np.uint8)}
    missing = Location(DataFileId(b"", b"d/" + b"0" * 32), 0, 1000)
    source = database_of(place, arrays, lambda _: missing)
    with pytest.raises(CorruptDataError, match="data file that is not there") as caught:
        list(gather_arrays(source, ["a"], {0: spec_of(arrays["a"])}, 1 << 20))
    assert caught.value.key == b"a/0"
