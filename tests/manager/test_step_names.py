from __future__ import annotations

import numpy as np
import pytest

from ocdbt_py.errors import InvalidArgumentError
from ocdbt_py.manager.step_names import CompositeNames, NameFormat, StepNames, step_number


@pytest.mark.parametrize(
    ("names", "step", "name"),
    [
        (StepNames(), 23, "23"),
        (StepNames(), 0, "0"),
        (StepNames(fixed_length=4), 23, "0023"),
        (StepNames(fixed_length=4), 12345, "12345"),
        (StepNames("step"), 23, "step_23"),
        (StepNames("step", 4), 23, "step_0023"),
        (StepNames("step_"), 23, "step__23"),
        (StepNames("a.b*"), 23, "a.b*_23"),
        (StepNames(""), 23, "_23"),
    ],
)
def test_a_name_and_its_step_lead_to_each_other(names: StepNames, step: int, name: str) -> None:
    assert names.name(step) == name
    assert names.step(name) == step


@pytest.mark.parametrize(
    ("names", "name"),
    [
        (StepNames(), "08"),
        (StepNames(), "foo_9"),
        (StepNames(), "9\n"),
        (StepNames(), "٣"),
        (StepNames(), ""),
        (StepNames(), "-1"),
        (StepNames(), "7.orbax-checkpoint-tmp"),
        (StepNames(), "9" * 5000),
        (StepNames(fixed_length=4), "23"),
        (StepNames(fixed_length=4), "012345"),
        (StepNames("step"), "step23"),
        (StepNames("step"), "23"),
        (StepNames("a.b"), "axb_23"),
    ],
)
def test_other_names_are_no_steps(names: StepNames, name: str) -> None:
    assert names.step(name) is None


def test_a_composite_writes_one_format_and_reads_several() -> None:
    names = CompositeNames(StepNames("new"), [StepNames("new"), StepNames()])
    assert isinstance(names, NameFormat)
    assert (names.name(7), names.step("new_7"), names.step("7"), names.step("old_7")) == ("new_7", 7, 7, None)
    with pytest.raises(InvalidArgumentError, match="among those"):
        CompositeNames(StepNames("new"), [StepNames()])


@pytest.mark.parametrize("step", [np.int64(3), np.array(3), 3, True])
def test_a_step_is_any_whole_number(step: object) -> None:
    assert type(step_number(step)) is int


@pytest.mark.parametrize("step", [-1, 2.0, "3", None])
def test_anything_else_is_refused(step: object) -> None:
    with pytest.raises(InvalidArgumentError):
        step_number(step)


@pytest.mark.parametrize("bad", [{"prefix": "a/b"}, {"prefix": "x.orbax-checkpoint-tmp"}, {"fixed_length": -1}])
def test_names_that_cannot_be_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(InvalidArgumentError):
        StepNames(**bad)  # type: ignore[arg-type]
