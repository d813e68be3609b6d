"""The manifest of a database, single or numbered: load it, see cheaply whether it changed, replace it.

*Single*: ``manifest.ocdbt`` holds everything, and each commit replaces it by compare-and-swap. *Numbered*:
``manifest.ocdbt`` holds the configuration alone, and each commit adds ``manifest.<generation>``, which must not be
there yet; the newest is found by listing ("Single and numbered"). Old numbered manifests are only a margin for readers
who are under way; a commit removes those more than 128 generations behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import NamedTuple

from ocdbt_py.engine.options import Config
from ocdbt_py.errors import CorruptDataError, NotFoundError, StorageError
from ocdbt_py.format.config import ManifestKind, StoredConfig
from ocdbt_py.format.manifest import (
    MANIFEST_NAME,
    Manifest,
    decode_manifest,
    encode_manifest,
    numbered_manifest_name,
    parse_numbered_manifest_name,
)
from ocdbt_py.storage.protocol import ABSENT, UNCHANGED, Condition, Hold, Note, Read, Storage, Token

KEPT_NUMBERED = 128
"""Numbered manifests older than the newest by more than this are removed."""

_LIST_AGAIN = 20
"""How often a listing may name a manifest that is gone when read, before that is an error."""


class Seen(NamedTuple):
    """A manifest and the token of the file it came from, which a commit that builds on it must replace.

    ``manifest`` None: there is no database. ``token`` belongs to ``manifest.ocdbt``; ``numbers`` are the generations of
    the numbered manifests that were listed, in no order.
    """

    manifest: Manifest | None
    token: Token | None
    numbers: tuple[int, ...] = ()


class Manifests:
    """The manifest files below ``base`` (a path in ``storage``, without a trailing slash)."""

    def __init__(self, storage: Storage, base: str, constraints: Config) -> None:
        self._storage = storage
        self._base = base
        self._path = f"{base}/{MANIFEST_NAME}"
        self._constraints = constraints
        self._stored: StoredConfig | None = None

    @property
    def demanded(self) -> Config:
        """What the configuration must be. Once one was seen, that one: another one is another database."""
        return self._constraints if self._stored is None else Config.describe(self._stored)

    @property
    def never_seen(self) -> bool:
        """Whether there has been no database here so far."""
        return self._stored is None

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
        self._demand(manifest.config)
        seen = Seen(manifest, found.token)
        return seen if manifest.config.manifest_kind is ManifestKind.SINGLE else self._load_numbered(seen)

    def stored(self) -> Manifest:
        """What ``manifest.ocdbt`` itself holds, for kind *numbered* the configuration alone; else NotFoundError."""
        found = self._storage.read(self._path)
        assert isinstance(found, Read)
        return self._decode(self._path, found.data)

    def begin(self, last: Seen, manifest: Manifest, hold: Hold | None = None) -> Callable[[], Seen]:
        """Begin to make ``manifest`` the current one; it is seen when what is returned has been called.

        That raises :class:`ConflictError`, nothing changed, if ``last``, which the commit was built on, is not current
        any more. With ``hold`` the write goes through the lock already taken.
        """
        if manifest.config.manifest_kind is ManifestKind.NUMBERED:
            return partial(self._add_numbered, last, manifest, hold)
        put_in_place = self._begin(manifest, hold)
        return lambda: Seen(manifest, put_in_place(ABSENT if last.manifest is None else last.token))

    def _begin(self, manifest: Manifest, hold: Hold | None) -> Callable[[Token | Condition], Token]:
        """Begin to replace ``manifest.ocdbt``; with ``hold`` its lock is ours already, and nobody can take it twice."""
        data = [encode_manifest(manifest)]
        write = partial(self._storage.write, self._path, data) if hold is None else hold.begin(data)

        def put_in_place(condition: Token | Condition) -> Token:
            token = write(condition)
            self._demand(manifest.config)
            return token

        return put_in_place

    @contextmanager
    def hold(self, timeout: float, note: Note | None = None) -> Iterator[Hold | None]:
        """Queue for the manifest before building on it, where the storage knows how to; None where it does not."""
        if not self._storage.capabilities.hold:
            yield None
            return
        with self._storage.hold(self._path, timeout, note) as hold:
            yield hold

    def sync(self, seen: Seen) -> None:
        """Make sure that what was seen survives a crash, whoever wrote it."""
        assert seen.manifest is not None
        path, latest = self._path, seen.manifest.latest
        if seen.manifest.config.manifest_kind is ManifestKind.NUMBERED and latest is not None:
            path = self._numbered_path(latest.generation)
        self._storage.sync([path])

    def _numbered_path(self, generation: int) -> str:
        return f"{self._base}/{numbered_manifest_name(generation)}"

    def _load_numbered(self, seen: Seen) -> Seen:
        assert seen.manifest is not None
        for _ in range(_LIST_AGAIN):
            numbers = tuple(self.numbers())
            if not numbers:
                return seen._replace(manifest=Manifest(seen.manifest.config, (), ()), numbers=())
            newest = max(numbers)
            latest = seen.manifest.latest
            if latest is not None and latest.generation == newest:
                return seen._replace(numbers=numbers)
            try:
                return seen._replace(manifest=self.numbered(newest, seen.manifest.config), numbers=numbers)
            except NotFoundError:
                continue  # a writer trimmed it between our list and our read, so there are newer ones
        raise CorruptDataError(
            f"A listing names numbered manifests that are not there, {_LIST_AGAIN} times in a row; "
            "the storage's listing is stale or another program deletes them",
            path=self._path,
        )

    def numbered(self, number: int, config: StoredConfig) -> Manifest:
        """The manifest of this number, in a database with this configuration; :class:`NotFoundError` if absent."""
        path = self._numbered_path(number)
        found = self._storage.read(path)
        assert isinstance(found, Read)
        manifest = self._decode(path, found.data)
        latest = manifest.latest
        if manifest.config.manifest_kind is not ManifestKind.SINGLE or latest is None:
            raise CorruptDataError(
                "A numbered manifest must hold the version tree itself, this one does not", path=path
            )
        if latest.generation != number:
            raise CorruptDataError(f"The manifest's last generation is {latest.generation}, not {number}", path=path)
        stored = manifest.config._replace(manifest_kind=ManifestKind.NUMBERED)
        Config.describe(config).check(stored)
        return manifest._replace(config=stored)

    def _add_numbered(self, last: Seen, manifest: Manifest, hold: Hold | None) -> Seen:
        token, latest = last.token, manifest.latest
        assert latest is not None
        if last.manifest is None:
            token = self._begin(Manifest(manifest.config, (), ()), hold)(ABSENT)
        plain = manifest._replace(config=manifest.config._replace(manifest_kind=ManifestKind.SINGLE))
        path = self._numbered_path(latest.generation)
        self._storage.write(path, [encode_manifest(plain)], ABSENT)
        for number in last.numbers:
            if number < latest.generation - KEPT_NUMBERED:
                with suppress(StorageError):  # the next commit tries again, and this one is done
                    self._storage.delete(self._numbered_path(number))
        return Seen(manifest, token)

    def _demand(self, config: StoredConfig) -> None:
        if config == self._stored:
            return
        self.demanded.check(config)
        self._stored = config

    def numbers(self) -> list[int]:
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
