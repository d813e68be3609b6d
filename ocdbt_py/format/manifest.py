"""The manifest: configuration, newest versions, and references to the nodes that hold the older ones.

A database of kind *single* has one, ``manifest.ocdbt``, replaced by each commit. One of kind *numbered* has only its
configuration there, and each commit adds ``manifest.XXXXXXXXXXXXXXXX``, named by its latest generation, whose own kind
is *single* (format document, "Single and numbered").
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from ocdbt_py.errors import InvalidArgumentError
from ocdbt_py.format.config import ManifestKind, StoredConfig, decode_config, encode_config
from ocdbt_py.format.datafile import decode_file_table, encode_file_table
from ocdbt_py.format.envelope import DEFAULT_LIMIT, MANIFEST_MAGIC, decode_envelope, encode_envelope
from ocdbt_py.format.primitives import Reader
from ocdbt_py.format.versions import (
    VersionEntry,
    VersionNodeReference,
    decode_references,
    decode_versions,
    encode_references,
    encode_versions,
    files_of,
    manifest_references_fault,
    max_height,
    versions_fault,
)

__all__ = [
    "MANIFEST_NAME",
    "Manifest",
    "decode_manifest",
    "encode_manifest",
    "numbered_manifest_name",
    "parse_numbered_manifest_name",
]

MANIFEST_NAME: Final = "manifest.ocdbt"

# Lower case only, and never above 9...: the reference lists the keys from "manifest.0" up to "manifest.:".
_NUMBERED = re.compile(r"manifest\.([0-9][0-9a-f]{15})", re.ASCII)


class Manifest(NamedTuple):
    """``versions`` oldest first, all of the newest leaf; ``version_nodes`` highest first. Both empty: only a config."""

    config: StoredConfig
    versions: tuple[VersionEntry, ...]
    version_nodes: tuple[VersionNodeReference, ...]

    @property
    def latest(self) -> VersionEntry | None:
        """The newest version; None if the versions are in numbered manifests."""
        return self.versions[-1] if self.versions else None


def numbered_manifest_name(generation: int) -> str:
    """The file that a commit of this generation adds.

    >>> numbered_manifest_name(255)
    'manifest.00000000000000ff'
    """
    return f"manifest.{generation:016x}"


def parse_numbered_manifest_name(name: str) -> int | None:
    """The generation in the name of a numbered manifest; None for any other name, which readers ignore."""
    match = _NUMBERED.fullmatch(name)
    return int(match[1], 16) or None if match else None


def encode_manifest(manifest: Manifest) -> bytes:
    """The object TensorStore would write, compressed as the configuration says.

    ``InvalidArgumentError`` if a rule is broken, or if versions come with a configuration of kind *numbered*: the
    files that hold them are of kind *single*.
    """
    config, versions, references = manifest.config, manifest.versions, manifest.version_nodes
    body = encode_config(config)
    if config.manifest_kind is ManifestKind.NUMBERED:
        fault = "kind numbered holds a configuration only" if versions or references else None
    else:
        arity_log2 = config.version_tree_arity_log2
        fault = versions_fault(versions, arity_log2) or manifest_references_fault(references, versions, arity_log2)
        if fault is None:
            table, file_numbers = encode_file_table(files_of(versions, references))
            body += table + encode_versions(versions, file_numbers)
            body += encode_references(references, file_numbers, heights=True)
    if fault:
        raise InvalidArgumentError(f"Manifest: {fault}")
    return encode_envelope(MANIFEST_MAGIC, body, config.compression)


def decode_manifest(data: bytes | memoryview, *, limit: int = DEFAULT_LIMIT) -> Manifest:
    """The manifest ``data`` holds, all rules checked."""
    body = decode_envelope(MANIFEST_MAGIC, data, limit=limit)
    reader = Reader(body, "Manifest", budget=limit)
    config = decode_config(reader)
    if config.manifest_kind is ManifestKind.NUMBERED:
        reader.finish()
        return Manifest(config, (), ())
    arity_log2 = config.version_tree_arity_log2
    files = decode_file_table(reader, b"")
    versions = decode_versions(reader, files, arity_log2)
    at = reader.position
    references = decode_references(reader, files, max_height(arity_log2), None)
    reader.finish()
    if fault := manifest_references_fault(references, versions, arity_log2):
        raise reader.error(fault, at)
    return Manifest(config, versions, references)
