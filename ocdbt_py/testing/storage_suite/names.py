"""Names of files that mean something elsewhere, to a shell, a URL or a server, and here nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import ClassVar

import pytest

from ocdbt_py.errors import OcdbtError, PathNotFoundError
from ocdbt_py.storage.protocol import UNCHANGED, Listed, Storage
from ocdbt_py.testing.files import put
from ocdbt_py.testing.storage_suite.empty_place import EmptyPlace

__all__ = ["BACKSLASH_NAME", "CONTROL_NAME", "HOSTILE_NAMES", "NOT_UTF8_NAME", "Names"]

CONTROL_NAME = "line\nbreak\ttab\x01\x7f"
BACKSLASH_NAME = "back\\slash"
NOT_UTF8_NAME = "not utf-8 \udcff\udc80"

HOSTILE_NAMES = [
    "with space",
    " leading and trailing ",
    "percent%20encoded%",
    "question?hash#at@colon:",
    "semi;comma,'quote\"backtick`$HOME",
    BACKSLASH_NAME,
    "star*[bracket]{brace}",
    "Größe-雪-\U0001f40d",
    "e\u0301 and \u00e9",
    CONTROL_NAME,
    "-dash",
    "~",
    "...",
    "CON",
    "x" * 200,
    NOT_UTF8_NAME,
]


class Names(EmptyPlace):
    refused_names: ClassVar[Collection[str]] = ()
    """Those of :data:`HOSTILE_NAMES` that the store cannot hold: an error of ours says so, and nothing is stored."""

    altered_names: ClassVar[Collection[str]] = ()
    """Those that a server is known to keep under another name, which a backend cannot see; they are not tried."""

    def test_a_name_is_only_a_name(self, storage: Storage, root: str) -> None:
        for name in HOSTILE_NAMES:
            if name in self.refused_names or name in self.altered_names:
                continue
            for path in (f"{root}/{name}", f"{root}/directory {name}/{name}"):
                put(storage, path, b"created")
                token = storage.write(path, [b"written"])
                assert storage.read(path, unless=token) is UNCHANGED
                assert storage.read_many([(path, 1, 3)]) == [b"ri"]
                storage.sync([path])
                storage.describe(path).encode("utf-8")
            if storage.capabilities.list:
                listed = {found.path for found in storage.list(f"{root}/")}
                assert listed == {f"{root}/{name}", f"{root}/directory {name}/"}
                assert list(storage.list(path)) == [Listed(path, len(b"written"))]
            storage.delete(f"{root}/{name}")
            storage.delete(f"{root}/directory {name}/")
            with pytest.raises(PathNotFoundError):
                storage.read(f"{root}/{name}")

    def test_a_name_that_cannot_be_held_is_refused(self, storage: Storage, root: str) -> None:
        for name in self.refused_names:
            path = f"{root}/{name}"
            attempts: list[Callable[[], object]] = [
                partial(put, storage, path, b"x"),
                partial(storage.put, path, [b"x"]),
                partial(storage.write, path, [b"x"]),
                partial(storage.read, path),
            ]
            for attempt in attempts:
                with pytest.raises(OcdbtError):
                    attempt()
            if storage.capabilities.list:
                assert list(storage.list(f"{root}/", deep=True)) == []
