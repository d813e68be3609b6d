from __future__ import annotations

import pytest

from ocdbt_py.array.spec import array_key, array_keys
from ocdbt_py.errors import InvalidArgumentError


@pytest.mark.parametrize("names", [[], ["a"], ["a.b", "é", "c d"], ["a", ""], ["a\0b", "c"], ["\0"], ["a", "\udc80"]])
def test_keys_of_many_arrays_are_those_of_each(names: list[str]) -> None:
    assert array_keys(names, ".zarray") == [array_key(name, ".zarray") for name in names]


def test_a_name_that_is_no_text_has_no_key_among_others_either() -> None:
    with pytest.raises(InvalidArgumentError, match="UTF-8"):
        array_keys(["a", "\ud800"], "0")
