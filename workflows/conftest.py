"""Where the workflows save: a directory of the local disk, and a bucket of a server that runs on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import pytest

from conformance.conftest import pytest_terminal_summary, seaweedfs
from conformance.servers.server import Server

__all__ = ["pytest_terminal_summary", "seaweedfs"]


@dataclass(frozen=True)
class Directory:
    """A directory of steps that nobody has used: its URL, and the environment in which a process reaches it.

    Orbax's signatures have no place for storage options, so a program takes its keys from where all of them do.
    """

    url: str
    environ: Mapping[str, str] = field(default_factory=dict)
    storage_options: Mapping[str, Any] = field(default_factory=dict)

    def names(self) -> set[str]:
        """What is in it, finished or not."""
        filesystem, path = fsspec.url_to_fs(self.url, **self.storage_options)
        filesystem.invalidate_cache()
        return {found.rstrip("/").rpartition("/")[2] for found in filesystem.ls(path, detail=False)}


def on_server(server: Server) -> Directory:
    environ = {**server.environ, "AWS_ENDPOINT_URL": server.endpoint}
    return Directory(server.url("run"), environ, server.storage_options)


@pytest.fixture(params=["local", "s3"])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Directory:
    if request.param == "local":
        return Directory(str(tmp_path / "run"))
    return on_server(request.getfixturevalue("seaweedfs"))


@pytest.fixture
def local(tmp_path: Path) -> Directory:
    return Directory(str(tmp_path / "run"))
