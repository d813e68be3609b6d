"""An endpoint that ignores the conditions of writes is found out before a commit relies on them."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import Any

import pytest

import ocdbt_py
from ocdbt_py.backends import MemoryStorage
from ocdbt_py.database import open_place
from ocdbt_py.errors import ConflictError, StorageError, UnsupportedError
from ocdbt_py.storage.location import Place
from ocdbt_py.storage.protocol import ABSENT, ANY, Token
from ocdbt_py.testing.faulty import FaultyStorage


class Endpoint(FaultyStorage):
    """``ignores``: a condition or both that it takes and does not keep. ``loses``: how the answer to a write that
    happened is lost."""

    def __init__(self, ignores: str = "", loses: Exception | None = None, *, cas: bool = True) -> None:
        capabilities = replace(MemoryStorage().capabilities, hold=False, cas=cas, conditions_unproven=True)
        super().__init__(MemoryStorage(), capabilities=capabilities)
        self.ignores = ignores
        self.loses = loses
        self.probes: list[str] = []

    def write(self, path: str, buffers: Any, if_version: Any = ANY) -> Token:
        if "/probe-" not in path:
            return super().write(path, buffers, if_version)
        self.probes.append(path)
        ignored = "create" if if_version is ABSENT else "replace"
        token = super().write(path, buffers, ANY if ignored in self.ignores else if_version)
        if self.loses is not None:
            raise self.loses
        return token


def place_on(storage: Endpoint) -> Place:
    path = f"/{uuid.uuid4().hex}/db"
    return Place(storage, path, storage.describe(path))


@pytest.mark.parametrize(
    "loses", [None, ConflictError("repeated", kind="condition"), StorageError("lost", kind="ambiguous")]
)
@pytest.mark.parametrize("cas", [True, False])
def test_an_endpoint_that_keeps_conditions_is_written_and_nothing_of_the_probe_is_left(
    loses: Exception | None, cas: bool
) -> None:
    storage = Endpoint(loses=loses, cas=cas)
    place = place_on(storage)
    with open_place(place, "a") as db:
        db["k"] = b"v"
    assert len(storage.probes) == (4 if cas else 2)
    assert len(set(storage.probes)) == 1
    assert not list(storage.list(f"{place.path}/probe-"))


@pytest.mark.parametrize("loses", [None, StorageError("lost", kind="ambiguous")])
@pytest.mark.parametrize("ignores", ["create", "replace", "create replace"])
def test_an_endpoint_that_ignores_a_condition_is_refused_before_anything_is_written(
    ignores: str, loses: Exception | None
) -> None:
    storage = Endpoint(ignores, loses)
    place = place_on(storage)
    with pytest.raises(UnsupportedError, match="single_writer=True") as caught:
        open_place(place, "a")
    assert caught.value.kind == "conditions-ignored"
    assert place.url in str(caught.value)
    assert not list(storage.list(f"{place.path}/", deep=True))


def test_what_does_not_rely_on_conditions_is_not_probed() -> None:
    storage = Endpoint("create replace")
    place = place_on(storage)
    with pytest.raises(ocdbt_py.NotFoundError):
        open_place(place, "r+")
    with open_place(place, "a", single_writer=True) as db:
        db["k"] = b"v"
    with open_place(place) as db:
        assert db["k"] == b"v"
    with pytest.raises(ocdbt_py.AlreadyExistsError):
        open_place(place, "x")
    open_place(place, "r+", write_options=ocdbt_py.WriteOptions(probe=False)).close()
    assert not storage.probes
    with pytest.raises(UnsupportedError):
        open_place(place, "r+")
