"""The manifest of a database, single or numbered: load it, see cheaply whether it changed, replace it.

*Single*: ``manifest.ocdbt`` holds everything, and each commit replaces it by compare-and-swap. *Numbered*:
``manifest.ocdbt`` holds the configuration alone, and each commit adds ``manifest.<generation>``, which must not be
there yet; the newest is found by listing ("Single and numbered"). Old numbered manifests are only a margin for readers
who are under way; a commit removes those more than 128 generations behind it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from ocdbt_py.engine.options import Config
from ocdbt_py.errors import ConflictError, CorruptDataError, NotFoundError
from ocdbt_py.format.config import ManifestKind
from ocdbt_py.format.manifest import (
    MANIFEST_NAME,
    Manifest,
    decode_manifest,
    encode_manifest,
    numbered_manifest_name,
    parse_numbered_manifest_name,
)
from ocdbt_py.storage.protocol import ABSENT, UNCHANGED, Condition, Hold, Read, Storage, Token

KEPT_NUMBERED = 128
"""Numbered manifests older than the newest by more than this are removed."""

_LIST_AGAIN = 20
"""How often a listing may name a manifest that is gone when read, before that is an error."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A manifest and the token of the file it came from, which a commit that builds on it must replace.

    ``manifest`` None: there is no database. ``token`` belongs to ``manifest.ocdbt``.
    """

    manifest: Manifest | None
    token: Token | None


class Manifests:
    """The manifest files below ``base`` (a path in ``storage``, without a trailing slash)."""

    def __init__(self, storage: Storage, base: str, constraints: Config) -> None:
        self._storage = storage
        self._base = base
        self._path = f"{base}/{MANIFEST_NAME}"
        self._constraints = constraints

    def load(self, last: Seen | None) -> Seen:
        """The current manifest; ``last`` itself when nothing changed since, which moves no body."""
        known = last.token if last is not None else None
        try:
            found = self._storage.read(self._path, unless=known)
        except NotFoundError:
            return Seen(None, None)
        if found is UNCHANGED:
            assert last is not None
            assert last.manifest is not None
            if last.manifest.config.manifest_kind is ManifestKind.SINGLE:
                return last
            return self._load_numbered(last)
        assert isinstance(found, Read)
        manifest = self._decode(self._path, found.data)
        if last is None or last.manifest is None:
            self._constraints.check(manifest.config)
        else:
            # once seen, the configuration is itself demanded: another one is another database
            Config.describe(last.manifest.config).check(manifest.config)
        seen = Seen(manifest, found.token)
        return seen if manifest.config.manifest_kind is ManifestKind.SINGLE else self._load_numbered(seen)

    def replace(self, last: Seen, manifest: Manifest, hold: Hold | None = None) -> Seen:
        """Make ``manifest`` the current one, if ``last`` still is; else :class:`ConflictError`, nothing changed.

        ``last`` is what the commit was built on. With ``hold`` the write goes through the lock already taken.
        """
        if manifest.config.manifest_kind is ManifestKind.NUMBERED:
            return self._add_numbered(last, manifest)
        condition: Token | Condition = ABSENT if last.manifest is None else last.token
        data = [encode_manifest(manifest)]
        token = hold.write(data, condition) if hold is not None else self._storage.write(self._path, data, condition)
        return Seen(manifest, token)

    @contextmanager
    def hold(self, timeout: float) -> Iterator[Hold | None]:
        """Queue for the manifest before building on it, where the storage knows how to; None where it does not."""
        if not self._storage.capabilities.hold:
            yield None
            return
        with self._storage.hold(self._path, timeout) as hold:
            yield hold

    def _load_numbered(self, seen: Seen) -> Seen:
        assert seen.manifest is not None
        for _ in range(_LIST_AGAIN):
            numbers = self._numbers()
            if not numbers:
                return replace(seen, manifest=Manifest(seen.manifest.config, (), ()))
            newest = max(numbers)
            latest = seen.manifest.latest
            if latest is not None and latest.generation == newest:
                return seen
            path = f"{self._base}/{numbered_manifest_name(newest)}"
            try:
                found = self._storage.read(path)
            except NotFoundError:
                continue  # a writer trimmed it between our list and our read, so there are newer ones
            assert isinstance(found, Read)
            return replace(seen, manifest=self._checked_numbered(path, found.data, newest, seen.manifest))
        raise CorruptDataError(
            f"A listing names numbered manifests that are not there, {_LIST_AGAIN} times in a row; "
            "the storage's listing is stale or another program deletes them",
            path=self._path,
        )

    def _checked_numbered(self, path: str, data: bytes, number: int, seen: Manifest) -> Manifest:
        manifest = self._decode(path, data)
        latest = manifest.latest
        if manifest.config.manifest_kind is not ManifestKind.SINGLE or latest is None:
            raise CorruptDataError(
                "A numbered manifest must hold the version tree itself, this one does not", path=path
            )
        if latest.generation != number:
            raise CorruptDataError(f"The manifest's last generation is {latest.generation}, not {number}", path=path)
        config = replace(manifest.config, manifest_kind=ManifestKind.NUMBERED)
        Config.describe(seen.config).check(config)
        return replace(manifest, config=config)

    def _add_numbered(self, last: Seen, manifest: Manifest) -> Seen:
        token, latest = last.token, manifest.latest
        assert latest is not None
        if last.manifest is None:
            token = self._storage.write(self._path, [encode_manifest(Manifest(manifest.config, (), ()))], ABSENT)
        numbers = self._numbers()
        if numbers and max(numbers) >= latest.generation:
            raise ConflictError(f"Generation {max(numbers)} was committed by another writer")
        plain = replace(manifest, config=replace(manifest.config, manifest_kind=ManifestKind.SINGLE))
        path = f"{self._base}/{numbered_manifest_name(latest.generation)}"
        self._storage.write(path, [encode_manifest(plain)], ABSENT)
        for number in numbers:
            if number < latest.generation - KEPT_NUMBERED:
                self._storage.delete(f"{self._base}/{numbered_manifest_name(number)}")
        return Seen(manifest, token)

    def _numbers(self) -> list[int]:
        """Generations of the numbered manifests there are, in no order."""
        start = len(self._base) + 1
        listed = self._storage.list(f"{self._base}/manifest.")
        found = (parse_numbered_manifest_name(item.path[start:]) for item in listed)
        return [number for number in found if number is not None]

    def _decode(self, path: str, data: bytes) -> Manifest:
        try:
            return decode_manifest(data)
        except CorruptDataError as error:
            raise error.located(path=path, url=self._storage.describe(self._base)) from None
