from __future__ import annotations

import numpy as np
import pytest

from ocdbt_py.array.spec import ArraySpec, SpecColumns, array_key, array_keys
from ocdbt_py.errors import InvalidArgumentError


@pytest.mark.parametrize("names", [[], ["a"], ["a.b", "é", "c d"], ["a", ""], ["a\0b", "c"], ["\0"], ["a", "\udc80"]])
def test_keys_of_many_arrays_are_those_of_each(names: list[str]) -> None:
    assert array_keys(names, ".zarray") == [array_key(name, ".zarray") for name in names]


def test_a_name_that_is_no_text_has_no_key_among_others_either() -> None:
    with pytest.raises(InvalidArgumentError, match="UTF-8"):
        array_keys(["a", "\ud800"], "0")


def test_columns_of_specs_are_a_mapping_in_which_those_alike_are_one() -> None:
    one, other = ArraySpec((4,), (4,), np.dtype("<f4")), ArraySpec((2,), (2,), np.dtype("u1"))
    specs = {3: one, 0: other, 7: one}
    columns = SpecColumns.of(specs)
    assert (list(columns), columns, len(columns)) == ([3, 0, 7], specs, 3)
    assert (columns.distinct, columns.kinds) == ([one, other], [0, 1, 0])
    assert SpecColumns.of(columns) is columns
    assert list(columns.items()) == list(specs.items())
    assert 0 in columns
    assert 1 not in columns
