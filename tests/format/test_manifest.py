"""Manifests: the worked example of the format document, the names of the files, every rule of the reference list."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocdbt_py.errors import CorruptDataError, InvalidArgumentError
from ocdbt_py.format.config import ManifestKind, StoredConfig, Zstd, encode_config
from ocdbt_py.format.datafile import DataFileId, Location, _table_row
from ocdbt_py.format.envelope import MANIFEST_MAGIC, decode_envelope, encode_envelope
from ocdbt_py.format.manifest import (
    Manifest,
    decode_manifest,
    encode_manifest,
    numbered_manifest_name,
    parse_numbered_manifest_name,
)
from ocdbt_py.format.primitives import encode_varint
from ocdbt_py.format.versions import VersionEntry, VersionNodeReference, _reference_row, _version_row

UUID = bytes(range(16))
FILE = DataFileId(b"", b"d/76f5c7f4809113f5b3cd7447122c81ed")

MANIFEST = Manifest(
    config=StoredConfig(
        uuid=UUID,
        max_inline_value_bytes=4,
        max_decoded_node_bytes=70,
        version_tree_arity_log2=1,
        compression=None,
    ),
    versions=(VersionEntry(5, 2, Location(FILE, 103, 114), 5, 382, 6, 1795230060704426856),),
    version_nodes=(VersionNodeReference(4, Location(FILE, 344, 121), 4, 1795230060682910077, 1),),
)
MANIFEST_BYTES = bytes.fromhex(
    "0cdb3a2a"  # magic
    "6e00000000000000"  # length = 110
    "00"  # format version
    "00"  # compression method
    "000102030405060708090a0b0c0d0e0f"  # uuid
    "00"  # manifest_kind = single
    "04"  # max_inline_value_bytes
    "46"  # max_decoded_node_bytes
    "01"  # version_tree_arity_log2
    "00"  # compression method of the configuration
    "01"  # table: num_files
    "22"  # path_suffix_length
    "00"  # base_path_length
    "642f3736663563376634383039313133663562336364373434373132326338316564"  # path_suffix
    "01"  # num_versions
    "05"  # generation_number
    "02"  # root_height
    "00"  # root file id
    "67"  # root offset
    "72"  # root length
    "05"  # num_keys
    "fe02"  # num_tree_bytes
    "06"  # num_indirect_value_bytes
    "68eb638a3af0e918"  # commit_time
    "01"  # num_children
    "04"  # generation_number
    "00"  # child file id
    "d802"  # child offset
    "79"  # child length
    "04"  # num_generations
    "7d991b893af0e918"  # commit_time, earliest in the child
    "01"  # entry_height
    "bc68f252"  # CRC-32C
)

CONFIG_ONLY = Manifest(MANIFEST.config._replace(manifest_kind=ManifestKind.NUMBERED), (), ())


def test_the_worked_example_is_written_and_read() -> None:
    assert encode_manifest(MANIFEST) == MANIFEST_BYTES
    assert decode_manifest(MANIFEST_BYTES) == MANIFEST
    assert decode_manifest(memoryview(MANIFEST_BYTES)).latest == MANIFEST.versions[0]


def test_the_manifest_of_a_numbered_database_is_its_configuration() -> None:
    data = encode_envelope(MANIFEST_MAGIC, encode_config(CONFIG_ONLY.config), None)
    assert encode_manifest(CONFIG_ONLY) == data
    assert decode_manifest(data) == CONFIG_ONLY
    assert CONFIG_ONLY.latest is None


def test_it_is_compressed_as_its_configuration_says() -> None:
    manifest = MANIFEST._replace(config=MANIFEST.config._replace(compression=Zstd(5)))
    data = encode_manifest(manifest)
    body = decode_envelope(MANIFEST_MAGIC, data)
    assert data == encode_envelope(MANIFEST_MAGIC, body, Zstd(5))
    assert decode_manifest(data) == manifest


@pytest.mark.parametrize("compression", [None, Zstd(0), Zstd(19)])
def test_it_is_read_however_it_is_compressed(compression: Zstd | None) -> None:
    body = decode_envelope(MANIFEST_MAGIC, MANIFEST_BYTES)
    assert decode_manifest(encode_envelope(MANIFEST_MAGIC, body, compression)) == MANIFEST


# Names


@pytest.mark.parametrize(
    ("name", "generation"),
    [
        ("manifest.0000000000000001", 1),
        ("manifest.00000000000000ff", 255),
        ("manifest.9fffffffffffffff", 0x9FFFFFFFFFFFFFFF),
    ],
)
def test_a_numbered_manifest_is_named_by_its_generation(name: str, generation: int) -> None:
    assert numbered_manifest_name(generation) == name
    assert parse_numbered_manifest_name(name) == generation


@pytest.mark.parametrize(
    "name",
    [
        "manifest.ocdbt",
        "manifest.0000000000000000",
        "manifest.00000000000000FF",
        "manifest.a000000000000000",  # the reference lists no further than "manifest.:"
        "manifest.000000000000001",
        "manifest.00000000000000001",
        "manifest.000000000000001g",
        "manifest.0000000000000001\n",
        "manifest.0000000000000001.__lock",
        "manifest.\u0660000000000000001",
        "xmanifest.0000000000000001",
        "",
    ],
)
def test_other_names_are_no_numbered_manifests(name: str) -> None:
    assert parse_numbered_manifest_name(name) is None


# Rules of the reference list, held in both directions: what is refused here is what the encoder refuses to write, and
# the same list, put together by hand, the decoder refuses to read.


def version(generation: int, time: int = 1000) -> VersionEntry:
    return VersionEntry(generation, 0, None, 0, 0, 0, time)


def reference(
    generation: int, height: int, *, num_generations: int = 1, time: int | None = None, offset: int = 0, length: int = 9
) -> VersionNodeReference:
    time = generation if time is None else time
    return VersionNodeReference(generation, Location(FILE, offset, length), num_generations, time, height)


def manifest(latest: int, *references: VersionNodeReference, arity_log2: int = 1) -> Manifest:
    return Manifest(MANIFEST.config._replace(version_tree_arity_log2=arity_log2), (version(latest),), references)


@pytest.mark.parametrize(
    "good",
    [
        manifest(3, reference(2, 1)),
        manifest(3, reference(2, 1, num_generations=2)),
        manifest(9),  # history that was lost
        manifest(9, reference(4, 2, num_generations=4), reference(8, 1)),
        manifest(9, reference(8, 1, num_generations=4)),
        manifest(17, reference(8, 3), reference(12, 2), reference(16, 1)),
        manifest(17, reference(8, 3), reference(16, 1)),
        manifest(17, reference(4, 1, num_generations=4), arity_log2=2),
        manifest(30, reference(16, 2, num_generations=16), reference(28, 1, num_generations=12), arity_log2=2),
        manifest(3, reference(2, 1, offset=2**63 - 10)),
    ],
)
def test_a_manifest_within_the_rules_is_read_and_written_again(good: Manifest) -> None:
    assert decode_manifest(encode_manifest(good)) == good


def encode_unchecked(bad: Manifest, monkeypatch: pytest.MonkeyPatch) -> bytes:
    with monkeypatch.context() as patched:
        patched.setattr("ocdbt_py.format.manifest.manifest_references_fault", lambda *_: None)
        return encode_manifest(bad)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (manifest(3, reference(2, 0)), "height 0 and generation 2 is not expected"),
        (manifest(3, reference(2, 63)), "height 63 and generation 2 is not expected"),
        (manifest(3, reference(0, 1)), "generation 0"),
        (manifest(3, reference(1, 1)), "generation 1 of a version tree node does not fit its height 1"),
        (manifest(3, reference(3, 1)), "height 1 and generation 3 is not expected"),
        (manifest(3, reference(2, 2)), "height 2 and generation 2 is not expected"),
        (manifest(9, reference(8, 3)), "height 3 and generation 8 is not expected"),
        (manifest(17, reference(8, 3), reference(8, 1)), "generation 8 does not follow generation 8"),
        (manifest(17, reference(12, 2), reference(8, 3)), "generation 8 does not follow generation 12"),
        (manifest(17, reference(8, 1), reference(12, 2)), "height 2 after one of height 1"),
        (manifest(17, reference(14, 1), reference(16, 1)), "height 1 after one of height 1"),
        (manifest(3, reference(2, 1, num_generations=0)), "0 generations, not 1..2"),
        (manifest(3, reference(2, 1, num_generations=3)), "3 generations, not 1..2"),
        (manifest(5, reference(4, 1, num_generations=5), arity_log2=2), "5 generations, not 1..4"),
        (manifest(3, reference(2, 1, time=1000)), "not older than the first inline version"),
        (manifest(3, reference(2, 1, time=1001)), "not older than the first inline version"),
        (manifest(17, reference(8, 3, time=5), reference(12, 2, time=5)), "commit time 5 is not after 5"),
        (manifest(17, reference(8, 3, time=5), reference(12, 2, time=4)), "commit time 4 is not after 5"),
        (manifest(3, reference(2, 1, offset=2**64 - 1, length=2**64 - 1)), "exceed 9223372036854775807"),
        (manifest(3, reference(2, 1, offset=2**63 - 9)), "exceed 9223372036854775807"),
        (manifest(3, *(reference(2, 1) for _ in range(63))), "63 version tree nodes, more than"),
    ],
)
def test_a_broken_rule_is_named(bad: Manifest, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidArgumentError, match=f"Manifest: .*{message}"):
        encode_manifest(bad)
    data = encode_unchecked(bad, monkeypatch)
    with pytest.raises(CorruptDataError, match=f"Manifest: .*{message}") as caught:
        decode_manifest(data)
    assert caught.value.offset is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"versions": ()}, "0 entries, outside 1..2"),
        ({"versions": (version(1, 1), version(2, 2), version(3, 3))}, "3 entries, outside 1..2"),
        ({"versions": (version(2, 1), version(3, 2))}, "different leaves"),
        ({"config": CONFIG_ONLY.config}, "kind numbered holds a configuration only"),
    ],
)
def test_what_would_not_be_read_is_not_written(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"Manifest: .*{message}"):
        encode_manifest(MANIFEST._replace(**changes))


@pytest.mark.parametrize(
    "body",
    [
        decode_envelope(MANIFEST_MAGIC, MANIFEST_BYTES) + b"\0",
        encode_config(CONFIG_ONLY.config) + b"\0",
        encode_config(CONFIG_ONLY.config) + decode_envelope(MANIFEST_MAGIC, MANIFEST_BYTES)[21:],
    ],
)
def test_nothing_may_follow(body: bytes) -> None:
    with pytest.raises(CorruptDataError, match=r"Manifest: .* bytes after the end of the data"):
        decode_manifest(encode_envelope(MANIFEST_MAGIC, body, None))


def test_a_manifest_cut_anywhere_is_refused() -> None:
    body = decode_envelope(MANIFEST_MAGIC, MANIFEST_BYTES)
    for length in range(len(body)):
        with pytest.raises(CorruptDataError):
            decode_manifest(encode_envelope(MANIFEST_MAGIC, body[:length], None))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"", b"a/", b"b/"]),
            st.binary(min_size=1, max_size=6),
            st.integers(0, 2**62),
            st.integers(0, 2**64 - 1),
            st.booleans(),
        ),
        min_size=1,
        max_size=16,
    )
)
def test_a_manifest_after_many_others_is_encoded_as_if_it_were_the_first(
    commits: list[tuple[bytes, bytes, int, int, bool]],
) -> None:
    config = MANIFEST.config._replace(version_tree_arity_log2=4)
    entries: tuple[VersionEntry, ...] = ()
    grown = b""
    for number, (base, name, offset, size, is_empty) in enumerate(commits, 17):
        root = None if is_empty else Location(DataFileId(base, name), offset, size >> 3)
        statistics = (0, 0, 0) if is_empty else (size, offset, number)
        entries += (VersionEntry(number, 0, root, *statistics, 1000 + number),)
        older = VersionNodeReference(16, Location(DataFileId(b"", b"old"), offset, number), 16, 5, 1)
        grown = encode_manifest(Manifest(config, entries, (older,)))
        assert decode_manifest(grown) == Manifest(config, entries, (older,))
    for remembered in (_version_row, _reference_row, _table_row, encode_varint):
        remembered.cache_clear()
    assert encode_manifest(Manifest(config, entries, (older,))) == grown
