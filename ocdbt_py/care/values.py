"""The bytes of values, compared with the checksums that a checkpoint's writer kept beside its database.

Only the newest version is looked at: a checkpoint has no other. Values of which no checksum was kept, and those whose
bytes are not there (which the check of files tells), are passed over. What is held is the table of checksums and a few
megabytes of values.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from functools import partial

from ocdbt_py.care.report import Finding
from ocdbt_py.checkpoint.checksums import CHECKSUMS, Table, read_table, table_of
from ocdbt_py.checkpoint.layout import read_file
from ocdbt_py.database import open_place
from ocdbt_py.engine.entries import Entry, ValueLocation
from ocdbt_py.engine.nodes import file_path
from ocdbt_py.errors import CorruptDataError, NotFoundError
from ocdbt_py.format.checksum import crc32c
from ocdbt_py.format.datafile import DataFileId
from ocdbt_py.storage.location import Place

__all__ = ["Values"]

_BATCH_BYTES = 8 << 20
_BATCH_VALUES = 4096


class Values:
    """The values of the newest version of the database at ``place``."""

    def __init__(self, place: Place, names: Collection[str], report: Callable[[Finding], None]) -> None:
        """``names``: what lies at the place."""
        self._place = place
        self._report = report
        paths = [name for name in names if name.rpartition("/")[2] == CHECKSUMS and name == table_of(name)[0]]
        self._tables = {path: self._table(path) for path in paths}

    def check(self) -> None:
        """Report every value whose bytes are not those of which the checksum was kept."""
        if not any(self._tables.values()):
            return
        batch: list[tuple[Entry, ValueLocation, int]] = []
        held = 0
        for entry, location, checksum in self._known():
            if location.length > _BATCH_BYTES:
                self._compare(entry, location, checksum, self._long(location))
                continue
            if held + location.length > _BATCH_BYTES or len(batch) == _BATCH_VALUES:
                self._check_all(batch)
                batch, held = [], 0
            batch.append((entry, location, checksum))
            held += location.length
        self._check_all(batch)

    def _known(self) -> Iterator[tuple[Entry, ValueLocation, int]]:
        """The values of which a checksum was kept, and that."""
        with open_place(self._place) as database:
            for entry in database.scan():
                location = entry.location
                if location is None or not location.length:
                    continue
                path, name = table_of(location.file)
                length, checksum = self._tables.get(path, {}).get(name, {}).get(location.offset, (None, 0))
                if length == location.length:
                    yield entry, location, checksum

    def _table(self, path: str) -> Table:
        try:
            return read_table(partial(read_file, self._place), path)
        except CorruptDataError as error:
            self._report(Finding(kind="checksums", message=error.message, path=path))
            return {}

    def _check_all(self, batch: list[tuple[Entry, ValueLocation, int]]) -> None:
        try:
            found = self._place.storage.read_many([self._range(location) for _, location, _ in batch])
        except (CorruptDataError, NotFoundError):
            if len(batch) > 1:  # some are not there
                for each in batch:
                    self._check_all([each])
            return
        for (entry, location, checksum), data in zip(batch, found, strict=True):
            self._compare(entry, location, checksum, crc32c(data))

    def _long(self, location: ValueLocation) -> int | None:
        """The checksum of a value that is better not held whole; None if it is not there."""
        checksum = 0
        try:
            for start in range(0, location.length, _BATCH_BYTES):
                stop = min(start + _BATCH_BYTES, location.length)
                (data,) = self._place.storage.read_many([self._range(location, start, stop)])
                checksum = crc32c(data, checksum)
        except (CorruptDataError, NotFoundError):
            return None
        return checksum

    def _range(self, location: ValueLocation, start: int = 0, stop: int | None = None) -> tuple[str, int, int]:
        path = file_path(self._place.path, DataFileId(b"", location.file.encode("utf-8", "surrogateescape")))
        return path, location.offset + start, location.offset + (location.length if stop is None else stop)

    def _compare(self, entry: Entry, location: ValueLocation, kept: int, found: int | None) -> None:
        if found is not None and found != kept:
            self._report(
                Finding(
                    kind="value",
                    message=f"The value of {entry.key!r} is not what was written: its CRC-32C was {kept:08x} and is "
                    f"{found:08x}; some of its {location.length:,} bytes were changed; put the file back from a copy "
                    f"[{location.file} at byte {location.offset:,}]",
                    path=location.file,
                    offset=location.offset,
                    key=entry.key,
                )
            )
