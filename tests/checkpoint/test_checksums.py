"""Checksums of values: what is kept, and what is noticed by it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ocdbt_py
from ocdbt_py.checkpoint.async_saving import save_async
from ocdbt_py.checkpoint.checksums import (
    CHECKSUMS,
    Verified,
    decode_checksums,
    encode_checksums,
    read_table,
    table_of,
)
from ocdbt_py.checkpoint.file_processes import FileProcesses
from ocdbt_py.checkpoint.restore import restore
from ocdbt_py.checkpoint.save import save
from ocdbt_py.database import open as open_database
from ocdbt_py.errors import CorruptDataError, UnsupportedError
from ocdbt_py.format.checksum import crc32c

NOISE = np.random.default_rng(5).integers(0, 255, 3 << 20, np.uint8)
TREE = {
    "raw": NOISE,
    "compressed": np.arange(100_000.0),
    "short": np.arange(3),
    "number": 1.5,
    "cut": np.arange(60_000.0).reshape(300, 200),
    "text": "x",
}


@pytest.fixture(params=[2, 3])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    save(tmp_path / "c", TREE, zarr_format=request.param, chunk_bytes=None)
    return tmp_path / "c"


def flip_a_bit(path: Path, key_begins: bytes) -> str:
    """In the middle of the first long value whose key begins so; the data file."""
    database = open_database(path)
    location = next(e.location for e in database.scan(prefix=key_begins) if e.location is not None)
    file = path / location.file
    data = bytearray(file.read_bytes())
    data[location.offset + location.length // 2] ^= 4
    file.write_bytes(data)
    return location.file


def test_every_value_outside_the_tree_has_its_checksum(path: Path) -> None:
    table = decode_checksums((path / CHECKSUMS).read_bytes(), CHECKSUMS)
    found: dict[str, dict[int, tuple[int, int]]] = {}
    database = open_database(path)
    for entry in database.scan():
        if entry.location is not None:
            file, offset, length = entry.location
            found.setdefault(file, {})[offset] = length, crc32c(database[entry.key])
    assert table == found
    assert sum(map(len, table.values())) >= 3


@pytest.mark.parametrize("mmap", [False, True])
def test_an_intact_checkpoint_is_verified(path: Path, mmap: bool) -> None:
    np.testing.assert_equal(restore(path, verify=True, mmap=mmap), TREE)
    np.testing.assert_equal(restore(path, dict.fromkeys(TREE), verify=True, mmap=mmap), TREE)
    report = ocdbt_py.check(path)
    assert (report.findings, report.ok) == ((), True)


@pytest.mark.parametrize("mmap", [False, True])
def test_one_flipped_bit_is_found_and_named(path: Path, mmap: bool) -> None:
    file = flip_a_bit(path, b"raw/")
    assert not np.array_equal(restore(path)["raw"], NOISE)  # nobody else notices
    with pytest.raises(CorruptDataError, match="The leaf 'raw' is not what was saved") as caught:
        restore(path, verify=True, mmap=mmap)
    assert file in str(caught.value)
    assert (caught.value.kind, caught.value.path, caught.value.url) == ("checksum", file, str(path))
    restored = restore(path, select=lambda name, info: name != "raw", verify=True)
    np.testing.assert_equal(restored["cut"], TREE["cut"])
    (finding,) = ocdbt_py.check(path).findings
    assert (finding.kind, finding.severity, finding.path) == ("value", "damage", file)
    assert finding.key is not None
    assert finding.key.startswith(b"raw/")


def test_damage_to_a_compressed_chunk_is_named_before_it_is_decompressed(path: Path) -> None:
    flip_a_bit(path, b"compressed/")
    with pytest.raises(CorruptDataError, match="The leaf 'compressed' is not what was saved"):
        restore(path, verify=True)


def test_values_longer_than_a_batch_are_checked_in_parts(tmp_path: Path) -> None:
    array = np.random.default_rng(5).integers(0, 255, (20 << 20) + 3, np.uint8)
    save(tmp_path / "c", {"long": array, "other": NOISE})
    assert ocdbt_py.check(tmp_path / "c").findings == ()
    flip_a_bit(tmp_path / "c", b"long/")
    (finding,) = ocdbt_py.check(tmp_path / "c").findings
    assert finding.key == b"long/0"


@pytest.mark.parametrize(
    "remove",
    [
        lambda path: (path / CHECKSUMS).unlink(),
        lambda path: save(path, TREE, overwrite=True, checksums=False),
    ],
)
def test_verify_is_refused_where_there_are_no_checksums(remove: Callable[[Path], Any], path: Path) -> None:
    remove(path)
    assert not (path / CHECKSUMS).exists()
    with pytest.raises(UnsupportedError, match="verify=True needs value checksums"):
        restore(path, verify=True)
    np.testing.assert_equal(restore(path), TREE)
    assert ocdbt_py.check(path).findings == ()


def test_a_tree_whose_values_all_stand_in_its_nodes_needs_no_table(tmp_path: Path) -> None:
    save(tmp_path / "c", {"a": np.arange(5), "b": 1})
    assert not (tmp_path / "c" / CHECKSUMS).exists()
    np.testing.assert_equal(restore(tmp_path / "c", verify=True), {"a": np.arange(5), "b": 1})


def test_a_value_that_another_program_wrote_later_is_not_taken_for_verified(path: Path) -> None:
    database = open_database(path, "r+")
    key = next(entry.key for entry in database.scan(prefix=b"raw/") if entry.location is not None)
    database[key] = bytes(database[key])
    with pytest.raises(UnsupportedError, match="written by another program later"):
        restore(path, verify=True)


def test_a_damaged_table_is_told_from_damaged_values(path: Path) -> None:
    data = bytearray((path / CHECKSUMS).read_bytes())
    data[-7] ^= 1
    (path / CHECKSUMS).write_bytes(data)
    with pytest.raises(CorruptDataError, match=r"not a table of value checksums.*may be intact"):
        restore(path, verify=True)
    (finding,) = ocdbt_py.check(path).findings
    assert finding.kind == "checksums"


# --- the file


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=9),
        st.dictionaries(
            st.integers(0, 2**63), st.tuples(st.integers(0, 2**63), st.integers(0, 2**32 - 1)), min_size=1, max_size=5
        ),
        max_size=5,
    )
)
def test_tables_survive_encoding(table: dict[str, dict[int, tuple[int, int]]]) -> None:
    assert decode_checksums(encode_checksums(table), "x") == table


@given(st.binary(max_size=60), st.integers(0, 60))
def test_any_bytes_are_a_table_or_corrupt(data: bytes, cut: int) -> None:
    whole = encode_checksums({"d/a": {0: (5, 7), 64: (1, 2)}})
    for mangled in (data, whole[:cut] + data, whole[:cut]):
        sealed = mangled + crc32c(mangled).to_bytes(4, "little")
        for candidate in (mangled, sealed):
            if candidate != whole:
                with suppress(CorruptDataError, UnsupportedError):
                    decode_checksums(candidate, "x")


def test_a_table_of_a_newer_form_is_unsupported() -> None:
    data = bytearray(encode_checksums({}))
    data[8] = 2
    with pytest.raises(UnsupportedError, match="newer release"):
        decode_checksums(bytes(data), "x")


def test_each_part_of_a_merged_database_has_its_own_table() -> None:
    assert table_of("d/1f") == (CHECKSUMS, "d/1f")
    assert table_of("ocdbt.process_12/d/1f") == (f"ocdbt.process_12/{CHECKSUMS}", "d/1f")
    assert table_of("ocdbt.process_/d/1f")[0] == CHECKSUMS
    with pytest.raises(UnsupportedError):
        read_table(lambda path: None)


# --- while writing and reading


def test_values_that_come_in_parts_are_compared_when_whole() -> None:
    url = "memory://parts-of-values"
    save(url, {"a": NOISE}, overwrite=True, compression=None)
    database = open_database(url)
    files = {CHECKSUMS: encode_checksums({})}
    location = database.stat("a/0").location
    assert location is not None
    right = encode_checksums({location.file: {location.offset: (location.length, crc32c(NOISE.data))}})
    wrong = encode_checksums({location.file: {location.offset: (location.length, 1)}})
    parts = [(b"a/0", -20, None), (b"a/0", 0, 1 << 20), (b"a/0", 1 << 20, 2 << 20), (b"a/0", 2 << 20, len(NOISE) - 20)]
    for table, is_right in ((right, True), (wrong, False)):
        files[CHECKSUMS] = table
        for order in (parts, [(b"a/0", 0, 5), (b"a/0", 5, len(NOISE))]):
            values = Verified(database, files.get)
            for request in order[:-1]:
                assert values.read_many([request], None)[0]
            if is_right:
                values.read_many([order[-1]], None)
            else:
                with pytest.raises(CorruptDataError, match="'a'"):
                    values.read_many([order[-1]], None)
        Verified(database, files.get).read_many([(b"a/0", 7, 9)], None)  # a part alone cannot be judged


def test_what_several_processes_wrote_is_verified_through_their_own_tables(tmp_path: Path) -> None:
    processes = [FileProcesses(tmp_path / "meeting", index, 2) for index in range(2)]
    handles: list[Any] = []

    def begin(process: Any) -> None:
        handles.append(save_async(tmp_path / "c", {"a": NOISE, "b": 1}, processes=process, wait_timeout=30))

    threads = [threading.Thread(target=begin, args=(process,)) for process in processes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for handle in handles:
        handle.result(30)
    path = tmp_path / "c"
    assert len(handles) == 2
    assert (path / "ocdbt.process_0" / CHECKSUMS).exists()
    np.testing.assert_equal(restore(path, verify=True), {"a": NOISE, "b": 1})
    assert {finding.kind for finding in ocdbt_py.check(path).findings} <= {"other-database"}
    file = flip_a_bit(path, b"a/")
    assert file.startswith("ocdbt.process_0/")
    with pytest.raises(CorruptDataError, match="The leaf 'a' is not what was saved"):
        restore(path, verify=True)
    (finding,) = ocdbt_py.check(path).damage
    assert (finding.kind, finding.path) == ("value", file)
