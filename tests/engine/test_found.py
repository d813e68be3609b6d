"""Answers in columns say what the same answers as objects say."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ocdbt_py
from ocdbt_py.database import Database
from ocdbt_py.engine import found as found_module
from ocdbt_py.engine.found import Found, FoundColumns
from ocdbt_py.format.datafile import DataFileId, Location

FILES = [DataFileId(b"", b"d/%d" % i) for i in range(3)]
ANSWERS: list[Found] = [
    b"short",
    Location(FILES[0], 0, 7),
    None,
    Location(FILES[2], 64, 0),
    b"",
    b"short",
    Location(FILES[0], 7, 1),
]


def test_columns_hold_the_answers_they_were_made_of() -> None:
    columns = FoundColumns.of_each(ANSWERS)
    assert list(columns) == [columns[i] for i in range(len(ANSWERS))] == ANSWERS
    assert columns == ANSWERS
    assert columns[2:5] == ANSWERS[2:5]
    assert FoundColumns.of_each([]) == []


def test_columns_are_joined_and_put_in_another_order() -> None:
    joined = FoundColumns.joined([FoundColumns.of_each(ANSWERS), FoundColumns.of_each(ANSWERS[1:])])
    assert joined == ANSWERS + ANSWERS[1:]
    assert sum(isinstance(source, DataFileId) for source in joined.sources) == 2  # each file once
    order = np.array([3, 0, 0, 12])
    assert joined.take(order) == [joined[i] for i in order.tolist()]
    assert joined.take(order[:0]) == []


def values_alike(values: list[Any]) -> list[bytes] | None:
    """All of them, from those that are different and their numbers."""
    alike = FoundColumns.of_each(values).alike()
    return None if alike is None else [alike[0][number] for number in alike[1].tolist()]


def test_inline_values_alike_are_numbered() -> None:
    values = [b"one document", b"another", b"one document", b"", b"a third", b"another"]
    assert values_alike(values) == values
    assert len((FoundColumns.of_each(values).alike() or ([],))[0]) == 4
    assert values_alike([b"one document", ANSWERS[1]]) is None
    assert values_alike([b"one document", None]) is None


@given(st.lists(st.sampled_from([b"", b"[1]", b"[2]", b"[22]", b"{12345678, 1}", b"{87654321, 2}", b"{87654321, 1}"])))
@pytest.mark.parametrize(("together", "many"), [(1, 0), (40, 0), (1000, 0), (1000, 512)])
def test_values_of_a_node_are_told_apart_however_little_they_differ(
    together: int, many: int, values: list[bytes]
) -> None:
    lengths = np.array(list(map(len, values)), np.int64)
    zeros = np.zeros(len(values), np.int64)
    found = FoundColumns([b"".join(values)], zeros, lengths.cumsum() - lengths, lengths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(found_module, "_TOGETHER", together)
        patch.setattr(found_module, "_MANY", many)
        alike = found.alike()
    assert alike is not None
    assert [alike[0][number] for number in alike[1].tolist()] == values
    assert sorted(alike[0]) == sorted(set(values))


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Database:
    path: Path = tmp_path_factory.mktemp("found") / "db"
    config = ocdbt_py.Config(max_decoded_node_bytes=4000, max_inline_value_bytes=20)
    with ocdbt_py.open(path, "x", config=config, durable=False) as db:
        db.update({f"{i:03}": b"%d" % i * (i % 12) for i in range(0, 600, 2)})
    return ocdbt_py.open(path)


@pytest.mark.parametrize("step", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("is_shuffled", [False, True])
def test_many_keys_are_found_as_each_of_them_is(database: Database, step: int, is_shuffled: bool) -> None:
    keys = [b"%03d" % i for i in range(0, 620, step)]
    if is_shuffled:
        random.Random(step).shuffle(keys)
    assert list(database.find([*keys, keys[0]])) == [database.find([key])[0] for key in [*keys, keys[0]]]


def test_keys_before_and_behind_all_others_are_not_found(database: Database) -> None:
    keys = [b"\0", *(b"%03d" % i for i in range(0, 600, 2)), b"a"]
    found = list(database.find(keys))
    assert [i for i, value in enumerate(found) if value is None] == [0, len(keys) - 1]
    assert database.find(keys[1:-1]) == found[1:-1]
