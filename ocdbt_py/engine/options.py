"""What a caller demands of a database's configuration, and how the caller wants it written.

The configuration is stored in the manifest when a database is created and never changes. :class:`Config` names the
fields a caller cares about; the rest takes the format's defaults in a new database and constrains nothing in an
existing one. :class:`WriteOptions` is not stored.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, fields
from typing import Literal

from ocdbt_py.errors import ConfigMismatchError, InvalidArgumentError
from ocdbt_py.format.btree import MAX_INLINE_LENGTH
from ocdbt_py.format.config import ManifestKind, StoredConfig, Zstd


class Unset(enum.Enum):
    """Says nothing, where None says something."""

    UNSET = "unset"

    def __repr__(self) -> str:
        return "UNSET"


UNSET: Literal[Unset.UNSET] = Unset.UNSET


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Constraints on, or a description of, a database's configuration. Fields left out say nothing.

    ``uuid``: 32 hex digits. ``manifest_kind``: ``"single"`` or ``"numbered"`` (default: what the storage can do).
    ``max_inline_value_bytes``: 0..2**20, longer values go to data files (default 100).
    ``max_decoded_node_bytes``: soft limit of a B-tree node, 0 = none (default 8388608).
    ``version_tree_arity_log2``: 1..16 (default 4). ``compression``: None (uncompressed), ``"zstd"`` or ``"zstd:LEVEL"``
    with a level in -131072..22, for nodes and manifests (default ``"zstd"``, which is level 0).
    """

    uuid: str | None = None
    manifest_kind: str | None = None
    max_inline_value_bytes: int | None = None
    max_decoded_node_bytes: int | None = None
    version_tree_arity_log2: int | None = None
    compression: str | Literal[Unset.UNSET] | None = UNSET

    def __post_init__(self) -> None:
        if self.uuid is not None:
            from uuid import UUID

            try:
                canonical = UUID(self.uuid).hex
            except (ValueError, AttributeError, TypeError):
                raise InvalidArgumentError(f"Config.uuid must be 32 hex digits, not {self.uuid!r}") from None
            object.__setattr__(self, "uuid", canonical)
        if self.manifest_kind not in (None, "single", "numbered"):
            raise InvalidArgumentError(f'Config.manifest_kind is "single" or "numbered", not {self.manifest_kind!r}')
        for name, low, high in (
            ("max_inline_value_bytes", 0, MAX_INLINE_LENGTH),
            ("max_decoded_node_bytes", 0, (1 << 32) - 1),
            ("version_tree_arity_log2", 1, 16),
        ):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or not low <= value <= high):
                raise InvalidArgumentError(f"Config.{name} must be an int in {low}..{high}, not {value!r}")
        if self.compression is not UNSET and self.compression is not None:
            level = _zstd(self.compression).level
            object.__setattr__(self, "compression", f"zstd:{level}" if level else "zstd")

    @classmethod
    def describe(cls, stored: StoredConfig) -> Config:
        """The configuration of a database, every field given."""
        level = stored.compression.level if stored.compression is not None else 0
        made = cls()
        # not through __init__: a file may state values beyond what may be asked for
        for name, value in (
            ("uuid", stored.uuid.hex()),
            ("manifest_kind", stored.manifest_kind.name.lower()),
            ("max_inline_value_bytes", stored.max_inline_value_bytes),
            ("max_decoded_node_bytes", stored.max_decoded_node_bytes),
            ("version_tree_arity_log2", stored.version_tree_arity_log2),
            ("compression", None if stored.compression is None else f"zstd:{level}" if level else "zstd"),
        ):
            object.__setattr__(made, name, value)
        return made

    def new(self, uuid: bytes, kind: ManifestKind) -> StoredConfig:
        """The configuration of a new database: what is demanded here, and defaults; uuid and kind unless given."""
        default = StoredConfig(uuid=uuid)
        compression = default.compression
        if self.compression is not UNSET:
            compression = None if self.compression is None else _zstd(self.compression)

        def chosen(mine: int | None, otherwise: int) -> int:
            return otherwise if mine is None else mine

        return StoredConfig(
            uuid=uuid if self.uuid is None else bytes.fromhex(self.uuid),
            manifest_kind=kind if self.manifest_kind is None else ManifestKind[self.manifest_kind.upper()],
            max_inline_value_bytes=chosen(self.max_inline_value_bytes, default.max_inline_value_bytes),
            max_decoded_node_bytes=chosen(self.max_decoded_node_bytes, default.max_decoded_node_bytes),
            version_tree_arity_log2=chosen(self.version_tree_arity_log2, default.version_tree_arity_log2),
            compression=compression,
        )

    def check(self, stored: StoredConfig) -> None:
        """Raise :class:`ConfigMismatchError`, naming the field, where a database is not as demanded."""
        if self == ANY_CONFIG:
            return
        actual = Config.describe(stored)
        for field in fields(self):
            wanted = getattr(self, field.name)
            if wanted is UNSET or (wanted is None and field.name != "compression"):
                continue
            found = getattr(actual, field.name)
            if wanted != found:
                raise ConfigMismatchError(
                    f"Configuration mismatch on {field.name}: expected {wanted!r}, but the database has {found!r}; "
                    f"leave {field.name} out to take the database as it is"
                )


ANY_CONFIG = Config()
"""Demands nothing."""


def _zstd(text: str) -> Zstd:
    name, _, level = str(text).partition(":")
    try:
        zstd = Zstd(int(level) if level else 0)
    except ValueError:
        zstd = Zstd(1 << 30)
    if name != "zstd" or not -131072 <= zstd.level <= 22:
        raise InvalidArgumentError(
            f'compression is None, "zstd" or "zstd:LEVEL" with LEVEL in -131072..22, not {text!r}'
        )
    return zstd


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteOptions:
    """How to write; nothing of it is stored.

    ``assume_config``: values may be written before any manifest is read, nothing is written at open, and the first
    commit is generation 1. ``target_data_file_size``: bytes after which another data file is begun, 0 = never. The
    three prefixes begin the names of data files; kinds with the same prefix share files. ``commit_timeout``: seconds.
    ``locking``: how local manifests are guarded (``"os"``, ``"lockfile"``, ``"none"``). ``probe``: test once per open
    whether a remote endpoint honours conditions.
    """

    assume_config: bool = False
    target_data_file_size: int = 1 << 31
    value_data_prefix: str = "d/"
    btree_node_data_prefix: str = "d/"
    version_tree_node_data_prefix: str = "d/"
    commit_timeout: float = 120
    locking: str = "os"
    probe: bool = True

    def __post_init__(self) -> None:
        if self.target_data_file_size < 0:
            raise InvalidArgumentError(
                f"WriteOptions.target_data_file_size must not be negative, is {self.target_data_file_size}"
            )
        if self.locking not in ("os", "lockfile", "none"):
            raise InvalidArgumentError(f'WriteOptions.locking is "os", "lockfile" or "none", not {self.locking!r}')
        for name in ("value_data_prefix", "btree_node_data_prefix", "version_tree_node_data_prefix"):
            prefix = getattr(self, name)
            if prefix.startswith("/") or ".." in prefix.split("/"):
                raise InvalidArgumentError(f"WriteOptions.{name} must stay below the database, is {prefix!r}")


USUAL_OPTIONS = WriteOptions()
"""What nobody said otherwise."""
