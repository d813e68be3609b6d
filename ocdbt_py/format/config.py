"""The configuration of a database, stored in every manifest and never changed after creation.

Format document, "Configuration". Making one checks nothing, so that a wrong configuration can be named and
reported; encoding and decoding check everything.
"""

from __future__ import annotations

import enum
import struct
from typing import Final, NamedTuple

from ocdbt_py.errors import InvalidArgumentError
from ocdbt_py.format import zstd
from ocdbt_py.format.primitives import Reader, encode_varint

__all__ = ["MAX_ARITY_LOG2", "ManifestKind", "StoredConfig", "Zstd", "arity_fault", "decode_config", "encode_config"]

MAX_ARITY_LOG2 = 16


class ManifestKind(enum.IntEnum):
    """Whether commits replace one manifest or write numbered ones (format document, "Single and numbered")."""

    SINGLE = 0
    NUMBERED = 1


_KINDS: Final = {kind.value: kind for kind in ManifestKind}  # an enum takes longer to look for one of its members


class Zstd(NamedTuple):
    """Compression of manifests and nodes. Level 0 is zstd's default."""

    level: int = 0


_DEFAULT_COMPRESSION: Final = Zstd(0)


class StoredConfig(NamedTuple):
    """What the creator of a database decided for all its writers.

    ``uuid`` is 16 bytes. Values longer than ``max_inline_value_bytes`` are stored outside the nodes.
    ``max_decoded_node_bytes`` 0 is unlimited. Version tree nodes hold up to ``2**version_tree_arity_log2`` entries.
    ``compression`` is for writers; each object says itself how it is compressed.
    """

    uuid: bytes
    manifest_kind: ManifestKind = ManifestKind.SINGLE
    max_inline_value_bytes: int = 100
    max_decoded_node_bytes: int = 8388608
    version_tree_arity_log2: int = 4
    compression: Zstd | None = _DEFAULT_COMPRESSION


def arity_fault(arity_log2: int) -> str | None:
    """What is wrong with a version tree arity, if anything."""
    if 1 <= arity_log2 <= MAX_ARITY_LOG2:
        return None
    return f"version_tree_arity_log2 {arity_log2} is outside 1..{MAX_ARITY_LOG2}"


def _level_fault(level: int) -> str | None:
    if zstd.MIN_LEVEL <= level <= zstd.MAX_LEVEL:
        return None
    return f"zstd level {level} is outside {zstd.MIN_LEVEL}..{zstd.MAX_LEVEL}"


def _fault(config: StoredConfig) -> str | None:
    if len(config.uuid) != 16:
        return f"the uuid has {len(config.uuid)} bytes instead of 16"
    for name in ("max_inline_value_bytes", "max_decoded_node_bytes"):
        if not 0 <= (value := getattr(config, name)) < 1 << 32:
            return f"{name} {value} is outside 0..{(1 << 32) - 1}"
    if fault := arity_fault(config.version_tree_arity_log2):
        return fault
    return None if config.compression is None else _level_fault(config.compression.level)


def encode_config(config: StoredConfig) -> bytes:
    """The wire form; ``InvalidArgumentError`` if a field is out of range."""
    if fault := _fault(config):
        raise InvalidArgumentError(f"Configuration: {fault}")
    compression = config.compression
    return b"".join(
        (
            config.uuid,
            bytes((config.manifest_kind,)),
            encode_varint(config.max_inline_value_bytes),
            encode_varint(config.max_decoded_node_bytes),
            bytes((config.version_tree_arity_log2,)),
            b"\0" if compression is None else b"\1" + struct.pack("<i", compression.level),
        )
    )


def decode_config(reader: Reader) -> StoredConfig:
    """The configuration at the reader's position."""
    uuid = reader.take(16, "uuid")
    at = reader.position
    number = reader.byte("manifest_kind")
    kind = _KINDS.get(number)
    if kind is None:
        raise reader.error(f"unknown manifest kind {number}", at)
    inline = reader.varint("max_inline_value_bytes", 32)
    node = reader.varint("max_decoded_node_bytes", 32)
    at = reader.position
    arity_log2 = reader.byte("version_tree_arity_log2")
    if fault := arity_fault(arity_log2):
        raise reader.error(fault, at)
    at = reader.position
    method = reader.varint("compression method", 32)
    if method > 1:
        raise reader.error(f"unknown compression method {method} in the configuration", at)
    compression = None
    if method:
        at = reader.position
        (level,) = struct.unpack("<i", reader.take(4, "zstd level"))
        if fault := _level_fault(level):
            raise reader.error(fault, at)
        compression = Zstd(level)
    return StoredConfig(uuid, kind, inline, node, arity_log2, compression)
