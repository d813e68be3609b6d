"""Of the databases damaged by hand: the structures TensorStore cannot decode, we cannot, and the others we can.

Its messages name the structure. Faults that lie between structures (a wrong height, keys outside the parent's bounds,
a file that is not there) are the engine's to find.
"""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from conformance.corpus import Case, corrupt_cases
from conformance.structures import Walk

CASES = corrupt_cases()
ACCEPTED = [case for case in CASES if case.expected["oracle_accepts_everything"]]

MESSAGE = re.compile(
    r'(?:Byte range \[(?P<start>\d+), (?P<stop>\d+)\) of )?local file "<DB>/(?P<path>[^"]+)":'
    r" Error decoding (?:manifest|b-tree node|version tree node)"
)


def structures_tensorstore_refused(probe: Any) -> set[tuple[str, int]]:
    """Path and offset of each."""
    found = MESSAGE.finditer(json.dumps(probe, ensure_ascii=False).replace('\\"', '"'))
    return {(match["path"], int(match["start"] or 0)) for match in found}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_tensorstore_cannot_decode_is_refused(case: Case) -> None:
    faults = {(path, offset) for path, offset, _ in Walk(case.db).faults}
    assert structures_tensorstore_refused(case.expected["probe"]) <= faults


@pytest.mark.parametrize("case", ACCEPTED, ids=str)
def test_what_tensorstore_accepts_is_decoded(case: Case) -> None:
    walk = Walk(case.db)
    assert walk.versions
    assert not walk.faults


def test_most_of_the_damage_is_in_single_structures() -> None:
    assert sum(bool(structures_tensorstore_refused(case.expected["probe"])) for case in CASES) > len(CASES) / 2
