"""New files: made of any buffers, seen when they are whole, and never in place of another."""

from __future__ import annotations

import pytest

from ocdbt_py.errors import AlreadyExistsError, PathNotFoundError
from ocdbt_py.storage.protocol import Listed, Storage
from ocdbt_py.testing.files import CONTENT, content, put
from ocdbt_py.testing.storage_suite.empty_place import EmptyPlace

__all__ = ["NewFiles"]


class NewFiles(EmptyPlace):
    def test_any_buffers_make_up_a_file(self, storage: Storage, root: str) -> None:
        values = bytearray(b"bytearray"), memoryview(b"--memoryview--")[2:-2], b"", memoryview(b""), bytearray()
        writer = storage.create(f"{root}/f")
        writer.write([])
        writer.write([b"bytes", *values, b"."])
        writer.write([b""])
        writer.write([memoryview(bytearray(b"more"))])
        writer.close()
        assert content(storage, f"{root}/f") == b"bytesbytearraymemoryview.more"
        storage.write(f"{root}/g", [b"bytes", *values, b"."])
        assert content(storage, f"{root}/g") == b"bytesbytearraymemoryview."
        put(storage, f"{root}/empty")
        storage.write(f"{root}/also empty", [])
        assert content(storage, f"{root}/empty") == content(storage, f"{root}/also empty") == b""

    def test_more_buffers_than_a_system_call_takes(self, storage: Storage, root: str) -> None:
        parts = [b"%d," % n for n in range(5000)]
        put(storage, f"{root}/f", *parts)
        storage.write(f"{root}/g", parts)
        assert content(storage, f"{root}/f") == content(storage, f"{root}/g") == b"".join(parts)

    def test_nothing_of_a_buffer_is_needed_after_the_write(self, storage: Storage, root: str) -> None:
        buffer = bytearray(b"first")
        writer = storage.create(f"{root}/f")
        writer.write([buffer])
        buffer[:] = b"other"
        writer.close()
        buffer.clear()
        assert content(storage, f"{root}/f") == b"first"

    def test_a_file_is_put_at_once(self, storage: Storage, root: str) -> None:
        storage.put(f"{root}/d/f", [CONTENT, memoryview(CONTENT)[5:10], bytearray(b"x")])
        assert content(storage, f"{root}/d/f") == CONTENT + CONTENT[5:10] + b"x"
        storage.put(f"{root}/empty", [])
        assert content(storage, f"{root}/empty") == b""
        with pytest.raises(AlreadyExistsError) as caught:
            storage.put(f"{root}/d/f", [b"another"])
        assert caught.value.path == f"{root}/d/f"
        assert content(storage, f"{root}/d/f").startswith(CONTENT)

    def test_a_new_file_is_seen_only_when_it_is_closed(self, storage: Storage, root: str) -> None:
        writer = storage.create(f"{root}/d/f")
        writer.write([CONTENT])
        assert list(storage.list(f"{root}/", deep=True)) == []
        with pytest.raises(PathNotFoundError):
            storage.read(f"{root}/d/f")
        writer.close()
        assert list(storage.list(f"{root}/", deep=True)) == [Listed(f"{root}/d/f", len(CONTENT))]
        writer.abort()
        assert content(storage, f"{root}/d/f") == CONTENT

    def test_an_aborted_file_leaves_nothing(self, storage: Storage, root: str) -> None:
        put(storage, f"{root}/d/other", b"stays")
        writer = storage.create(f"{root}/d/f")
        writer.write([CONTENT])
        writer.abort()
        writer.abort()
        assert [found.path for found in storage.list(f"{root}/", deep=True)] == [f"{root}/d/other"]
        put(storage, f"{root}/d/f", b"free again")

    def test_a_name_already_taken_is_not_replaced(self, storage: Storage, root: str) -> None:
        put(storage, f"{root}/f", b"first")
        with pytest.raises(AlreadyExistsError) as caught:
            put(storage, f"{root}/f", b"second")
        assert caught.value.path == f"{root}/f"
        assert content(storage, f"{root}/f") == b"first"
        assert list(storage.list(f"{root}/")) == [Listed(f"{root}/f", 5)]
