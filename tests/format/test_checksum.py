"""CRC-32C: the test vectors of RFC 3720, appendix B.4."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ocdbt_py.format import checksum
from ocdbt_py.format.checksum import crc32c


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(reversed(range(32))), 0x113FDB5C),
    ],
)
def test_the_checksum_is_that_of_the_standard(data: bytes, expected: int) -> None:
    assert crc32c(data) == expected
    assert crc32c(memoryview(data)) == expected
    assert crc32c(data[7:], crc32c(data[:7])) == expected


def test_a_package_without_c_code_of_its_own_is_used_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "crc32c"
    package.mkdir()
    (package / "__init__.py").write_text("def crc32c(data, value=0):\n    return 7\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "crc32c", None)  # so that what is there now is there again afterwards
    del sys.modules["crc32c"]
    assert checksum._c_code().crc32c(b"") == 7
