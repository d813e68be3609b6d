"""``ocdbt verify`` against TensorStore itself: it accepts what is whole and finds what is not."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore

import ocdbt_py
from ocdbt_py.cli import main

TREE = {
    "w": np.tile(np.arange(1000, dtype=np.float32), (8, 1)),
    "h": np.arange(7).astype(ml_dtypes.bfloat16),
    "q": np.arange(-8, 8).astype(ml_dtypes.int4),
    "flags": np.array([True, False]),
    "step": 3,
    "name": "text",
}


def verify(path: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, dict[str, Any]]:
    code = main(["verify", str(path), "--json", *options])
    return code, json.loads(capsys.readouterr().out)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    ocdbt_py.save(tmp_path / "c", TREE, compression="zstd", durable=False)
    return tmp_path / "c"


def test_a_good_checkpoint_of_ours_is_accepted(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, document = verify(checkpoint, capsys)
    assert (code, document["ok"], document["findings"]) == (0, True, [])
    assert document["other"].startswith("tensorstore 0.")
    assert (document["keys"], document["arrays"]) == (10, 5)
    assert document["array_bytes"] == 32_000 + 14 + 16 + 2 + 8


def test_a_good_checkpoint_of_orbax_is_accepted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(tmp_path / "c", args=ocp.args.PyTreeSave({"a": TREE["w"], "n": {"step": 3}}))
    code, document = verify(tmp_path / "c", capsys)
    assert (code, document["findings"]) == (0, [])
    assert document["arrays"] == 2


def test_a_good_database_of_tensorstore_is_accepted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database = tensorstore.KvStore.open(f"file://{tmp_path}/db/|ocdbt:").result()
    for i in range(40):
        database[f"key {i}"] = b"v" * i * 10
    database[b"\xff\0"] = b""
    code, document = verify(tmp_path / "db", capsys)
    assert (code, document["keys"], document["version"]) == (0, 41, 42)
    assert document["key_bytes"] == sum(i * 10 for i in range(40))
    code, document = verify(tmp_path / "db", capsys, "--version", "v11")
    assert (code, document["keys"], document["version"]) == (0, 10, 11)


def test_a_database_without_a_version_is_accepted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensorstore.KvStore.open(
        {"driver": "ocdbt", "base": f"file://{tmp_path}/db/", "config": {"manifest_kind": "numbered"}}
    ).result()["a"] = b"1"
    for file in (tmp_path / "db").glob("manifest.0*"):
        file.unlink()
    code, document = verify(tmp_path / "db", capsys)
    assert (code, document["keys"], document["version"]) == (0, 0, 0)


def test_a_flipped_byte_in_the_value_of_an_array_is_found(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ocdbt_py.open(checkpoint) as database:
        location = database.stat("w/0.0").location
    assert location is not None
    file = checkpoint / location.file
    data = bytearray(file.read_bytes())
    data[location.offset + 1] ^= 1
    file.write_bytes(data)
    code, document = verify(checkpoint, capsys)
    assert code == 1
    assert [finding["subject"] for finding in document["findings"]] == ["w"]


def test_a_flipped_byte_in_the_tree_is_found(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (file,) = (checkpoint / "d").iterdir()
    data = bytearray(file.read_bytes())
    data[-20] ^= 1
    file.write_bytes(data)
    code, document = verify(checkpoint, capsys)
    assert code == 1
    assert [finding["subject"] for finding in document["findings"]] == ["the keys", "the leaves"]


@contextmanager
def lying(monkeypatch: pytest.MonkeyPatch, what: str) -> Iterator[None]:
    """This library with one wrong answer: it flips the first byte of a value ("values"), or hides the last key
    ("keys")."""
    scan = ocdbt_py.Database.scan
    read_many, read_many_into = ocdbt_py.Database.read_many, ocdbt_py.Database.read_many_into

    def without_the_last(self: ocdbt_py.Database, *arguments: Any, **options: Any) -> Any:
        return iter(list(scan(self, *arguments, **options))[:-1])

    def flipped(self: ocdbt_py.Database, requests: Sequence[Any], *default: Any) -> Any:
        answers = read_many(self, requests, *default)
        return [_flipped(value) if _is_chunk(key) else value for key, value in zip(requests, answers, strict=True)]

    def flipped_into(self: ocdbt_py.Database, requests: Sequence[Any], place: Any) -> Any:
        buffers: list[memoryview | None] = []

        def noted(sizes: Sequence[int | None]) -> Sequence[memoryview | None]:
            buffers.extend(place(sizes))
            return buffers

        answers = read_many_into(self, requests, noted)
        for key, buffer in zip(requests, buffers, strict=True):
            if buffer is not None and _is_chunk(key):
                buffer[0] ^= 1
        return answers

    with monkeypatch.context() as patch:
        if what == "keys":
            patch.setattr(ocdbt_py.Database, "scan", without_the_last)
        else:
            patch.setattr(ocdbt_py.Database, "read_many", flipped)
            patch.setattr(ocdbt_py.Database, "read_many_into", flipped_into)
        yield


def _is_chunk(request: Any) -> bool:
    return (request if isinstance(request, bytes) else request[0]) == b"h/0"


def _flipped(value: bytes) -> bytes:
    return bytes([value[0] ^ 1]) + value[1:]


def test_a_value_that_only_we_read_otherwise_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ocdbt_py.save(tmp_path / "c", TREE, compression=None, durable=False)
    with lying(monkeypatch, "values"):
        code, document = verify(tmp_path / "c", capsys)
    assert code == 1
    assert document["findings"] == [
        {"subject": "h/0", "problem": "ocdbt_py and TensorStore disagree: values of 14 and 14 bytes"},
        {"subject": "h", "problem": "ocdbt_py and TensorStore disagree: 1 byte of 14"},
    ]


def test_a_key_that_we_do_not_list_is_found(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with lying(monkeypatch, "keys"):
        code, document = verify(checkpoint, capsys)
    assert code == 1
    assert document["findings"] == [{"subject": "w/0.0", "problem": "only TensorStore lists this key"}]
