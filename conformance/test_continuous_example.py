"""The continuous checkpointing example saves to an object store as it does to a disk."""

from __future__ import annotations

import json

import pytest

from conformance.servers.server import Server
from examples.continuous_checkpointing import main


def test_it_runs_on_an_object_store(seaweedfs: Server, capsys: pytest.CaptureFixture[str]) -> None:
    options = json.dumps(dict(seaweedfs.storage_options))
    assert main([seaweedfs.url("runs"), "--steps", "20", "--interval", "10", "--storage-options", options]) == 0
    assert capsys.readouterr().out.count("restored identical") == 2
