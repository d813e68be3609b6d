"""A store for arrays that is a dict, and remembers what it was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from ocdbt_py.array.read import Request, Values


class Stored(dict[bytes, Any], Values):
    """Keys and values; ``requests`` is every request ever made, in order, ``calls`` how many came together."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.requests: list[Request] = []
        self.calls: list[int] = []

    def read_many(self, requests: Sequence[Request], default: None) -> list[Any]:
        self.requests += requests
        self.calls.append(len(requests))
        answers = []
        for request in requests:
            key, start, stop = request if isinstance(request, tuple) else (request, 0, None)
            value = self.get(key)
            answers.append(default if value is None else value if (start, stop) == (0, None) else value[start:stop])
        return answers

    @property
    def bytes_read(self) -> int:
        cuts = [request if isinstance(request, tuple) else (request, 0, None) for request in self.requests]
        return sum(len(self[key][start:stop]) for key, start, stop in cuts)


@pytest.fixture(scope="session")
def store() -> type[Stored]:
    return Stored
