"""Directories, which come with their files: listed, deleted and moved."""

from __future__ import annotations

import pytest

from ocdbt_py.errors import AlreadyExistsError, PathNotFoundError, UnsupportedError
from ocdbt_py.storage.protocol import Storage
from ocdbt_py.testing.files import content, put
from ocdbt_py.testing.storage_suite.empty_place import EmptyPlace

__all__ = ["Directories"]


class Directories(EmptyPlace):
    def test_a_listing_goes_by_plain_prefix(self, storage: Storage, root: str) -> None:
        if not storage.capabilities.list:
            with pytest.raises(UnsupportedError):
                list(storage.list(f"{root}/"))
            return
        for name in ("a/b", "a/bc", "a/bd/e", "a/bd/f/g", "ab", "a.b"):
            put(storage, f"{root}/{name}", name.encode())

        def names(prefix: str, deep: bool = False) -> list[tuple[str, int | None]]:
            listed = storage.list(f"{root}/{prefix}", deep=deep)
            return sorted((found.path.removeprefix(f"{root}/"), found.size) for found in listed)

        assert names("") == [("a.b", 3), ("a/", None), ("ab", 2)]
        assert names("a") == [("a.b", 3), ("a/", None), ("ab", 2)]
        assert names("a/") == [("a/b", 3), ("a/bc", 4), ("a/bd/", None)]
        assert names("a/b") == [("a/b", 3), ("a/bc", 4), ("a/bd/", None)]
        assert names("a/bd") == [("a/bd/", None)]
        assert names("a/bd/") == [("a/bd/e", 6), ("a/bd/f/", None)]
        assert names("a/b", deep=True) == [("a/b", 3), ("a/bc", 4), ("a/bd/e", 6), ("a/bd/f/g", 8)]
        assert names("a.", deep=True) == [("a.b", 3)]
        assert len(names("", deep=True)) == 6
        for nothing in ("x", "x/y/", "a/b/", "ab/", "a/b/c/d"):
            assert names(nothing) == names(nothing, deep=True) == []

    def test_a_deleted_file_is_gone_and_may_be_absent(self, storage: Storage, root: str) -> None:
        put(storage, f"{root}/d/f", b"x")
        put(storage, f"{root}/d/ff", b"y")
        storage.delete(f"{root}/d/f")
        with pytest.raises(PathNotFoundError):
            storage.read(f"{root}/d/f")
        assert [found.path for found in storage.list(f"{root}/", deep=True)] == [f"{root}/d/ff"]
        for absent in ("d/f", "e/f", "d/ff/f", "e/", "e/f/"):
            storage.delete(f"{root}/{absent}")
        assert content(storage, f"{root}/d/ff") == b"y"
        assert [found.path for found in storage.list(f"{root}/")] == [f"{root}/d/"]

    def test_a_deleted_directory_goes_with_all_below_it(self, storage: Storage, root: str) -> None:
        for name in ("d/f", "d/e/g", "d/e/h/i", "dd/f"):
            put(storage, f"{root}/{name}", b"x")
        storage.delete(f"{root}/d/")
        assert [found.path for found in storage.list(f"{root}/", deep=True)] == [f"{root}/dd/f"]
        assert [found.path for found in storage.list(f"{root}/")] == [f"{root}/dd/"]

    def test_a_directory_moves_onto_nothing_or_an_empty_one(self, storage: Storage, root: str) -> None:
        for name in ("d/f", "d/e/g", "full/f", "file"):
            put(storage, f"{root}/{name}", name.encode())
        if not storage.capabilities.rename:
            with pytest.raises(UnsupportedError):
                storage.rename(f"{root}/d", f"{root}/new")
            return
        for taken in ("full", "file", "full/"):
            with pytest.raises(AlreadyExistsError):
                storage.rename(f"{root}/d", f"{root}/{taken}")
        with pytest.raises(PathNotFoundError):
            storage.rename(f"{root}/none", f"{root}/new")
        storage.rename(f"{root}/d", f"{root}/new")
        assert content(storage, f"{root}/new/e/g") == b"d/e/g"
        put(storage, f"{root}/empty/f", b"x")
        storage.delete(f"{root}/empty/f")
        storage.rename(f"{root}/new", f"{root}/empty")
        storage.rename(f"{root}/empty/", f"{root}/parents/made/last/")
        assert {found.path for found in storage.list(f"{root}/", deep=True)} == {
            f"{root}/{name}" for name in ("parents/made/last/f", "parents/made/last/e/g", "full/f", "file")
        }
        assert storage.read_many([(f"{root}/parents/made/last/f", 0, 3)]) == [b"d/f"]
