from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ocdbt_py.array.chunks import MERGE_GAP, Piece, piece_count, pieces, select, spans
from ocdbt_py.array.spec import ArraySpec
from ocdbt_py.errors import InvalidTypeError

shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9)


@st.composite
def shape_and_index(draw: st.DrawFn) -> tuple[tuple[int, ...], Any]:
    shape = draw(shapes)
    return shape, draw(hnp.basic_indices(shape, allow_newaxis=True, allow_ellipsis=True))


@given(shape_and_index())
def test_a_selection_is_what_numpy_selects(case: tuple[tuple[int, ...], Any]) -> None:
    shape, index = case
    array = np.arange(int(np.prod(shape))).reshape(shape)
    expected = array[index]
    selection = select(index, shape)
    assert selection.shape == np.shape(expected)
    assert selection.scalar == (not isinstance(expected, np.ndarray))
    box = array[tuple(slice(a.start, a.start + a.size * a.step, a.step) for a in selection.axes)]
    result = np.zeros(selection.shape, array.dtype)
    selection.box(result)[...] = box
    assert np.array_equal(result, expected)


INVALID: list[Any] = [
    *(5, -6, (0, 4), (0, 0, 0), (..., ...), (0, ..., 0, 0), "x", 1.0, (0, "x"), (slice(None), 4), {}, b"a"),
    *(slice(None, None, 0), slice(1.5, None), slice("a", "b")),
    (np.float64(1),),
]


@pytest.mark.parametrize("index", INVALID, ids=str)
def test_an_index_that_numpy_refuses_is_refused_with_numpys_error(index: Any) -> None:
    with pytest.raises((IndexError, TypeError, ValueError)) as expected:
        np.zeros((5, 4))[index]
    with pytest.raises(type(expected.value)) as caught:
        select(index, (5, 4))
    if isinstance(expected.value, IndexError) and "valid indices" not in str(expected.value):
        assert str(caught.value) == str(expected.value)


@pytest.mark.parametrize(
    "index",
    [[0, 1], np.array([0, 1]), np.array([True, False]), True, np.True_, (0, [1]), ((0, 1), 0), range(2)],
    ids=str,
)
def test_fancy_indexes_are_refused_with_what_to_do(index: Any) -> None:
    with pytest.raises(InvalidTypeError, match=r"a\.read\(\)\[index\]"):
        select(index, (2, 2))


def test_whatever_is_an_integer_may_be_an_index() -> None:
    index: Any = (np.int8(-1), np.array(2))
    assert select(index, (3, 4)).axes == ((2, 1, 1), (2, 1, 1))


@given(shape_and_index(), st.data())
def test_pieces_cover_each_selected_position_once(case: tuple[tuple[int, ...], Any], data: st.DataObject) -> None:
    shape, index = case
    chunks = tuple(data.draw(st.integers(1, 11)) for _ in shape)
    selection = select(index, shape)
    array = np.arange(int(np.prod(shape))).reshape(shape)
    found = np.full([axis.size for axis in selection.axes], -1)
    listed = list(pieces(selection, chunks))
    assert len(listed) == piece_count(selection, chunks)
    assert len({piece.chunk for piece in listed}) == len(listed)
    for piece in listed:
        inside = tuple(
            slice(number * chunk + axis.start, number * chunk + axis.start + axis.size * axis.step, axis.step)
            for number, chunk, axis in zip(piece.chunk, chunks, piece.inside, strict=True)
        )
        assert all(a.start + (a.size - 1) * a.step < chunk for a, chunk in zip(piece.inside, chunks, strict=True))
        assert (found[piece.target] == -1).all()
        found[piece.target] = array[inside]
    result = np.empty(selection.shape, found.dtype)
    selection.box(result)[...] = found
    assert np.array_equal(result, array[index])


def test_pieces_come_in_c_order_of_the_grid() -> None:
    listed = [piece.chunk for piece in pieces(select(..., (4, 6)), (2, 3))]
    assert listed == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_the_first_of_2_to_the_100_pieces_costs_no_more_than_the_first() -> None:
    selection = select(np.s_[::-1, :], (2**50, 2**50))
    assert piece_count(selection, (1, 1)) == 2**100
    assert [piece.chunk for piece in islice(pieces(selection, (1, 1)), 2)] == [(0, 0), (0, 1)]


@st.composite
def chunk_parts(draw: st.DrawFn) -> tuple[ArraySpec, Any]:
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, max_side=40))
    order: Any = draw(st.sampled_from("CF"))
    spec = ArraySpec(shape, shape, draw(st.sampled_from([np.dtype("u4"), np.dtype("f8"), np.dtype("f4")])), order)
    return spec, draw(hnp.basic_indices(shape, allow_newaxis=False))


def only_piece(spec: ArraySpec, index: Any) -> Piece | None:
    return next(pieces(select(index, spec.shape), spec.chunks), None)


@given(chunk_parts(), st.sampled_from([0, 64, 1000, MERGE_GAP]))
def test_spans_hold_exactly_the_wanted_elements(case: tuple[ArraySpec, Any], gap: int) -> None:
    spec, index = case
    size = spec.dtype.itemsize
    array = np.arange(spec.size).astype(spec.dtype).reshape(spec.shape)
    data = array.transpose(spec.axes).tobytes()
    piece = only_piece(spec, index)
    if piece is None:
        return
    inside: tuple[Any, ...] = (*(slice(a.start, a.start + a.size * a.step, a.step) for a in piece.inside), ...)
    box = array[inside]
    found = np.full_like(box, 99)
    end = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ocdbt_py.array.chunks.MERGE_GAP", gap)
        for span in spans(piece, spec.chunk_strides, size):
            assert end <= span.start < span.stop <= len(data)
            end = span.stop
            part = data[span.start : span.stop]
            elements = np.ndarray(span.shape, spec.dtype, part, span.offset, span.strides)
            target: tuple[Any, ...] = (*span.target, ...)
            found[target] = elements
            # No byte is fetched before the first wanted one or after the last.
            assert np.frombuffer(part[:size], spec.dtype) == elements.min()
            assert np.frombuffer(part[-size:], spec.dtype) == elements.max()
    assert np.array_equal(found, box)


def ranges(shape: tuple[int, ...], index: Any, order: Any = "C") -> list[tuple[int, int]]:
    spec = ArraySpec(shape, shape, np.dtype("f4"), order)
    piece = only_piece(spec, index)
    assert piece is not None
    return [(span.start, span.stop) for span in spans(piece, spec.chunk_strides, 4)]


def test_rows_are_one_range_and_far_columns_one_each() -> None:
    assert ranges((100, 5000), np.s_[3:7]) == [(60_000, 140_000)]
    assert ranges((3, 5000), np.s_[:, 10]) == [(40, 44), (20_040, 20_044), (40_040, 40_044)]
    assert ranges((5000, 3), np.s_[10, :], "F") == [(40, 44), (20_040, 20_044), (40_040, 40_044)]
    assert ranges((5000, 3), np.s_[:, 1], "F") == [(20_000, 40_000)]
    assert ranges((), np.s_[...]) == [(0, 4)]


def test_ranges_are_merged_over_gaps_up_to_the_bound_and_not_over_larger_ones() -> None:
    row = MERGE_GAP // 4 + 10
    assert ranges((50, row), np.s_[:, :10]) == [(0, 49 * row * 4 + 40)]
    assert len(ranges((50, row), np.s_[:, :9])) == 50
    assert len(ranges((2, 3, 50, row), np.s_[:, 1, :, :9])) == 100


def test_the_first_of_2_to_the_40_ranges_costs_no_more_than_the_first() -> None:
    spec = ArraySpec((2**40, 2**20), (2**40, 2**20), np.dtype("u1"))
    piece = only_piece(spec, np.s_[:, 0])
    assert piece is not None
    first, second = islice(spans(piece, spec.chunk_strides, 1), 2)
    assert (first.start, second.start) == (0, 2**20)
