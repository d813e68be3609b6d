"""The configuration: every field written and read, and every range held in both directions."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocdbt_py.errors import CorruptDataError, InvalidArgumentError
from ocdbt_py.format.config import ManifestKind, StoredConfig, Zstd, decode_config, encode_config
from ocdbt_py.format.primitives import Reader

UUID = bytes(range(16))
PLAIN = StoredConfig(UUID, compression=None)

FIELDS = {
    "uuid": "000102030405060708090a0b0c0d0e0f",
    "manifest_kind": "00",
    "max_inline_value_bytes": "64",
    "max_decoded_node_bytes": "80808004",
    "version_tree_arity_log2": "04",
    "method": "00",
    "level": "",
}


def config_bytes(**changes: str) -> bytes:
    return bytes.fromhex("".join((FIELDS | changes).values()))


def decode(data: bytes) -> StoredConfig:
    reader = Reader(data, "Manifest")
    config = decode_config(reader)
    reader.finish()
    return config


@pytest.mark.parametrize(
    ("config", "data"),
    [
        (PLAIN, config_bytes()),
        (StoredConfig(UUID), config_bytes(method="01", level="00000000")),
        (PLAIN._replace(manifest_kind=ManifestKind.NUMBERED), config_bytes(manifest_kind="01")),
        (PLAIN._replace(max_inline_value_bytes=0), config_bytes(max_inline_value_bytes="00")),
        (PLAIN._replace(max_inline_value_bytes=1048577), config_bytes(max_inline_value_bytes="818040")),
        (PLAIN._replace(max_inline_value_bytes=2**32 - 1), config_bytes(max_inline_value_bytes="ffffffff0f")),
        (PLAIN._replace(max_decoded_node_bytes=2**32 - 1), config_bytes(max_decoded_node_bytes="ffffffff0f")),
        (PLAIN._replace(max_decoded_node_bytes=0), config_bytes(max_decoded_node_bytes="00")),
        (PLAIN._replace(version_tree_arity_log2=1), config_bytes(version_tree_arity_log2="01")),
        (PLAIN._replace(version_tree_arity_log2=16), config_bytes(version_tree_arity_log2="10")),
        (PLAIN._replace(compression=Zstd(22)), config_bytes(method="01", level="16000000")),
        (PLAIN._replace(compression=Zstd(-131072)), config_bytes(method="01", level="0000feff")),
    ],
)
def test_a_configuration_is_written_and_read(config: StoredConfig, data: bytes) -> None:
    assert encode_config(config) == data
    assert decode(data) == config


def test_a_longer_spelling_of_a_number_is_read() -> None:
    assert decode(config_bytes(max_inline_value_bytes="e48000")) == PLAIN


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"manifest_kind": "02"}, r"unknown manifest kind 2 \(at byte 30\)"),
        ({"max_inline_value_bytes": "8080808010"}, "max_inline_value_bytes: 4294967296 does not fit 32 bits"),
        ({"max_decoded_node_bytes": "8080808010"}, "max_decoded_node_bytes: 4294967296 does not fit 32 bits"),
        ({"version_tree_arity_log2": "00"}, r"version_tree_arity_log2 0 is outside 1..16 \(at byte 36\)"),
        ({"version_tree_arity_log2": "11"}, "version_tree_arity_log2 17 is outside 1..16"),
        ({"method": "02"}, r"unknown compression method 2 in the configuration \(at byte 37\)"),
        ({"method": "01", "level": "17000000"}, "zstd level 23 is outside -131072..22"),
        ({"method": "01", "level": "fffffdff"}, "zstd level -131073 is outside -131072..22"),
        ({"method": "01", "level": "000000"}, "zstd level: 4 bytes announced, 3 left"),
        ({"uuid": "", "manifest_kind": ""}, "uuid: 16 bytes announced"),
    ],
)
def test_a_stored_configuration_out_of_range_is_refused(changes: dict[str, str], message: str) -> None:
    with pytest.raises(CorruptDataError, match=message):
        decode(config_bytes(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"uuid": b"short"}, "uuid has 5 bytes"),
        ({"max_inline_value_bytes": 2**32}, "max_inline_value_bytes 4294967296 is outside"),
        ({"max_decoded_node_bytes": -1}, "max_decoded_node_bytes -1 is outside"),
        ({"version_tree_arity_log2": 0}, "version_tree_arity_log2 0 is outside"),
        ({"version_tree_arity_log2": 17}, "version_tree_arity_log2 17 is outside"),
        ({"compression": Zstd(23)}, "zstd level 23 is outside"),
        ({"compression": Zstd(-131073)}, "zstd level -131073 is outside"),
    ],
)
def test_a_configuration_out_of_range_is_not_written(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        encode_config(PLAIN._replace(**changes))


@given(
    st.builds(
        StoredConfig,
        uuid=st.binary(min_size=16, max_size=16),
        manifest_kind=st.sampled_from(ManifestKind),
        max_inline_value_bytes=st.integers(0, 2**32 - 1),
        max_decoded_node_bytes=st.integers(0, 2**32 - 1),
        version_tree_arity_log2=st.integers(1, 16),
        compression=st.none() | st.builds(Zstd, st.integers(-131072, 22)),
    )
)
def test_a_configuration_survives_the_round_trip(config: StoredConfig) -> None:
    assert decode(encode_config(config)) == config
