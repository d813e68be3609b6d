"""Keys that are found in a column at a glance are where they are found one by one."""

from __future__ import annotations

from bisect import bisect_left

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocdbt_py.format.joined_texts import JoinedKeys, JoinedTexts, rows_beside, rows_of
from ocdbt_py.format.key_column import KeyColumn

NAMES = st.lists(st.text("ab.0/é", max_size=20).map(str.encode), min_size=1, max_size=12, unique=True).map(sorted)
ENDINGS = st.sampled_from([b"/.zarray", b"/zarr.json", b"/0", b"/0.0", b"/c/0/0"])


def joined(names: list[bytes]) -> JoinedTexts:
    return JoinedTexts(b"\2".join(names), b"\2")


def rows_one_by_one(column: KeyColumn, keys: list[bytes]) -> list[int]:
    everything = list(column)
    return [everything.index(key) if key in everything else -1 for key in keys]


@given(NAMES | st.lists(st.binary(max_size=30).map(lambda text: text.translate(None, b"\2")), min_size=1))
def test_texts_share_what_they_begin_with(names: list[bytes]) -> None:
    texts = joined(names)
    assert [texts[i] for i in range(len(texts))] == names
    for before, here, shared in zip(names, names[1:], texts.shared.tolist()[1:], strict=False):
        assert before[:shared] == here[:shared]
        assert shared == min(len(before), len(here)) or before[shared] != here[shared]


@given(NAMES)
def test_texts_that_increase_are_told_from_others(names: list[bytes]) -> None:
    assert joined(names).are_increasing().all()
    assert not joined([*names, names[0]]).are_increasing().all()
    assert not joined([*names, names[-1]]).are_increasing().all()
    other = joined(names).replaced(b"b", b"B")
    assert other.joined == b"\2".join(names).replace(b"b", b"B")
    assert other[0] == names[0].replace(b"b", b"B")
    assert (other.shared == joined(names).shared).all()


@given(NAMES, ENDINGS, st.lists(st.sampled_from([b"/0", b"/1", b"/.zattrs", b"/c/0", b"/x"]), unique=True), st.data())
def test_keys_are_found_where_they_are_or_not_at_all(
    names: list[bytes], ending: bytes, others: list[bytes], data: st.DataObject
) -> None:
    column = KeyColumn.of(sorted({name + each for name in names for each in [ending, *others]}))
    asked = data.draw(st.lists(st.sampled_from([*names, b"c"]), min_size=1, unique=True))
    asked = data.draw(st.sampled_from([names, sorted(asked), asked]))
    low = data.draw(st.integers(0, len(asked) - 1))
    keys = JoinedKeys(joined(asked), ending)[low:]
    assert isinstance(keys, JoinedKeys)
    assert list(keys) == [name + ending for name in asked[low:]] == [keys[i] for i in range(len(keys))]
    found = rows_of(column, keys)
    assert found is None or found.tolist() == rows_one_by_one(column, list(keys))


@pytest.mark.parametrize("ending", [b"/.zarray", b"/zarr.json"])
def test_the_documents_of_arrays_are_found_among_their_chunks(ending: bytes) -> None:
    names = [b"layer_%d.%s.kernel" % (i, part) for i in range(10, 40) for part in (b"in", b"out")]
    chunks = [b"/0.0", b"/0.1", b"/c/0/0"]
    column = KeyColumn.of(sorted(name + each for name in names for each in [ending, *chunks[: 1 + len(name) % 3]]))
    for low, high in ((0, 60), (7, 60), (0, 1), (20, 21), (3, 33)):
        found = rows_of(column, JoinedKeys(joined(names), ending, low, high))
        assert found is not None
        assert [column[row] for row in found.tolist()] == [name + ending for name in names[low:high]]
    for wrong in (b"layer_10.in.kernek", b"layer_10.in.kernels", b"layer_10.in.kerne", b"m", b"a"):
        for at in (0, 30, 59):
            assert rows_of(column, JoinedKeys(joined([*names[:at], wrong, *names[at + 1 :]]), ending)) is None


@pytest.mark.parametrize("at", range(0, 30, 3))
def test_a_key_that_differs_in_one_byte_is_another(at: int) -> None:
    names = [b"block_%02d.some_longer_name.w%d" % (i // 4, i % 4) for i in range(80)]
    column = KeyColumn.of([name + b"/.zarray" for name in names])
    assert rows_of(column, JoinedKeys(joined(names), b"/.zarray")) is not None
    for i in (0, 1, 37, 79):
        changed = bytearray(names[i])
        changed[at % len(changed)] ^= 1
        assert rows_of(column, JoinedKeys(joined([*names[:i], bytes(changed), *names[i + 1 :]]), b"/.zarray")) is None


@given(NAMES, st.lists(st.sampled_from([b"0", b"1", b"0.0", b"c/0", b".zattrs", b"0/1"]), unique=True), st.data())
def test_what_is_beside_a_document_is_its_chunk(names: list[bytes], files: list[bytes], data: st.DataObject) -> None:
    for document in (b".zarray", b"zarr.json"):
        every = sorted({name + b"/" + file for name in names for file in [document, *files]})
        column = KeyColumn.of(every)
        rows = np.array([bisect_left(every, name + b"/" + document) for name in names], np.intp)
        others = [b"0", b"0.0", b"c/0", b"", b"0/1"]
        kinds = [data.draw(st.integers(0, len(others) - 1)) for _ in names]
        found = rows_beside(column, rows, document, others, np.array(kinds, np.int64)).tolist()
        for name, kind, row, place in zip(names, kinds, rows.tolist(), found, strict=True):
            key = name + b"/" + others[kind]
            assert place == -1 or every[place] == key
            if others[kind] and row + 1 < len(every) and every[row + 1] == key:
                assert place == row + 1
