"""Reads: whole files, ranges, many of them, into buffers and maps; and tokens, which tell contents apart."""

from __future__ import annotations

import pytest

from ocdbt_py.errors import CorruptDataError, PathNotFoundError, UnsupportedError
from ocdbt_py.storage.protocol import UNCHANGED, Read, Storage
from ocdbt_py.testing.files import CONTENT, content, put
from ocdbt_py.testing.storage_suite.empty_place import EmptyPlace

__all__ = ["Reading"]


class Reading(EmptyPlace):
    def test_a_read_gives_bytes_and_size_of_the_file(self, storage: Storage, root: str) -> None:
        put(storage, f"{root}/f", CONTENT)
        found = storage.read(f"{root}/f")
        assert isinstance(found, Read)
        assert (found.data, found.size) == (CONTENT, len(CONTENT))
        assert isinstance(found.data, bytes)

    @pytest.mark.parametrize(
        ("start", "stop"),
        [(0, 0), (0, 1), (5, 5), (100, 300), (10239, 10240), (10000, None), (0, 99999), (10240, None)],
    )
    def test_a_range_is_read_and_cut_at_the_end(
        self, storage: Storage, root: str, start: int, stop: int | None
    ) -> None:
        put(storage, f"{root}/f", CONTENT)
        found = storage.read(f"{root}/f", start, stop)
        assert isinstance(found, Read)
        assert (found.data, found.size) == (CONTENT[start:stop], len(CONTENT))

    def test_a_range_beyond_the_end_is_empty(self, storage: Storage, root: str) -> None:
        put(storage, f"{root}/f", b"abc")
        for start, stop in [(3, 5), (4, 5), (1000, None), (1 << 40, 1 << 41)]:
            found = storage.read(f"{root}/f", start, stop)
            assert isinstance(found, Read)
            assert (found.data, found.size) == (b"", 3)

    def test_an_absent_file_is_not_found(self, storage: Storage, root: str) -> None:
        put(storage, f"{root}/f", b"abc")
        buffer = memoryview(bytearray(1))
        for path in (f"{root}/g", f"{root}/d/g", f"{root}/f/g"):
            for attempt in (
                lambda path=path: storage.read(path),
                lambda path=path: storage.read(path, unless=("no", "token")),
                lambda path=path: storage.read_many_into([(path, 0, buffer)]),
                lambda path=path: storage.read_many([(path, 0, 1)]),
            ):
                with pytest.raises(PathNotFoundError) as caught:
                    attempt()
                assert caught.value.path == path

    def test_the_token_stays_while_the_content_does(self, storage: Storage, root: str) -> None:
        written = storage.write(f"{root}/f", [b"one"])
        first, second = storage.read(f"{root}/f"), storage.read(f"{root}/f", 1, 2)
        assert isinstance(first, Read)
        assert isinstance(second, Read)
        assert written == first.token == second.token
        assert hash(written) == hash(first.token)
        assert storage.read(f"{root}/f", unless=written) is UNCHANGED

    def test_other_content_has_another_token(self, storage: Storage, root: str) -> None:
        tokens = [storage.write(f"{root}/f", [b"%02d" % turn]) for turn in range(2 * self.rounds)]
        assert len(set(tokens)) == len(tokens)
        found = storage.read(f"{root}/f", unless=tokens[-2])
        assert isinstance(found, Read)
        assert found.token == tokens[-1]

    def test_reading_into_a_buffer_fills_it(self, storage: Storage, root: str) -> None:
        put(storage, f"{root}/f", CONTENT)
        target = bytearray(b"-" * 1002)
        storage.read_many_into([(f"{root}/f", 77, memoryview(target)[1:1001])])
        assert target == b"-" + CONTENT[77:1077] + b"-"
        storage.read_many_into([(f"{root}/f", len(CONTENT), memoryview(bytearray()))])
        storage.read_many_into([])

    def test_many_buffers_are_filled_each_with_its_own(self, storage: Storage, root: str) -> None:
        put(storage, f"{root}/f", CONTENT)
        put(storage, f"{root}/d/g", bytes(reversed(CONTENT)))
        wanted = [
            (name, start, length) for start in (9000, 0, 1, 100) for name in ("f", "d/g") for length in (0, 7, 999)
        ]
        buffers = [bytearray(size) for _, _, size in wanted]
        storage.read_many_into(
            [(f"{root}/{name}", start, memoryview(b)) for (name, start, _), b in zip(wanted, buffers, strict=True)]
        )
        files = {"f": CONTENT, "d/g": bytes(reversed(CONTENT))}
        assert buffers == [files[name][start : start + size] for name, start, size in wanted]

    def test_many_ranges_come_in_the_order_asked(self, storage: Storage, root: str) -> None:
        other = bytes(reversed(CONTENT))
        put(storage, f"{root}/f", CONTENT)
        put(storage, f"{root}/d/g", other)
        files = {f"{root}/f": CONTENT, f"{root}/d/g": other}
        ranges = [
            (path, start, start + length)
            for start in (9000, 0, 1, 5000, 100, 10240, 0, 5003)
            for path in files
            for length in (0, 1, 7, 1000)
            if start + length <= len(CONTENT)
        ]
        assert storage.read_many(ranges) == [files[path][start:stop] for path, start, stop in ranges]
        assert storage.read_many([]) == []

    def test_a_file_too_short_is_corrupt(self, storage: Storage, root: str) -> None:
        put(storage, f"{root}/f", b"12345")
        for start, stop in [(0, 6), (5, 6), (4, 7), (6, 7), (1 << 62, (1 << 62) + 3), ((1 << 64) - 2, (1 << 64) + 1)]:
            with pytest.raises(CorruptDataError) as caught:
                storage.read_many([(f"{root}/f", 0, 2), (f"{root}/f", start, stop)])
            assert caught.value.path == f"{root}/f"
            with pytest.raises(CorruptDataError):
                storage.read_many_into([(f"{root}/f", start, memoryview(bytearray(stop - start)))])

    def test_a_map_is_the_files_content_and_private(self, storage: Storage, root: str) -> None:
        put(storage, f"{root}/f", CONTENT)
        put(storage, f"{root}/empty")
        if not storage.capabilities.map:
            with pytest.raises(UnsupportedError):
                storage.map(f"{root}/f")
            return
        mapped = storage.map(f"{root}/f")
        assert bytes(mapped) == CONTENT
        assert (mapped.format, mapped.readonly) == ("B", False)
        mapped[0:3] = b"own"
        assert content(storage, f"{root}/f") == CONTENT
        assert storage.map(f"{root}/f") == CONTENT
        assert len(storage.map(f"{root}/empty")) == 0
        with pytest.raises(PathNotFoundError):
            storage.map(f"{root}/none")
