"""``CHECKLIST.md`` is complete, and every test it names exists."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
ITEMS = range(1, 120)
COOPERATIVE_MODE = {112, 113, 114, 115}
WORDING_AND_HANDLES = {14, 55, 69, 70, 76, 77, 78, 79}
"""Messages to the letter, and properties of TensorStore's own specs and handles."""

_ROW = re.compile(r"\| (\d+) \| (.+) \| (.+) \|")
_TEST = re.compile(r"`([\w/]+\.py)::(test_\w+)`")
_REASON = re.compile(r"does not apply: \S.*")


class Row(NamedTuple):
    item: int
    what: str
    proof: str

    @property
    def tests(self) -> list[tuple[str, str]]:
        return [(path, name) for path, name in _TEST.findall(self.proof)]


def rows() -> list[Row]:
    lines = (Path(__file__).parent / "CHECKLIST.md").read_text().splitlines()
    found = [_ROW.fullmatch(line) for line in lines if line.startswith("| ") and line[2].isdigit()]
    return [Row(int(match[1]), match[2].strip(), match[3].strip()) for match in found if match is not None]


@functools.cache
def names_in(path: str) -> set[str]:
    """The names of test functions that pytest collects from a module, those of its classes too."""
    tree = ast.parse((ROOT / path).read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return {function.name for function in functions if function.name.startswith("test_")}


def test_every_item_has_one_row() -> None:
    assert [row.item for row in rows()] == list(ITEMS)


@pytest.mark.parametrize("row", rows(), ids=lambda row: str(row.item))
def test_an_item_is_proved_by_tests_that_exist_or_does_not_apply(row: Row) -> None:
    assert row.what
    if _REASON.fullmatch(row.proof):
        assert row.item in COOPERATIVE_MODE | WORDING_AND_HANDLES
        return
    assert row.tests
    assert _TEST.sub("", row.proof).replace("<br>", "") == ""
    for path, name in row.tests:
        assert (ROOT / path).is_file(), path
        assert name in names_in(path), name
