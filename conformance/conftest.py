"""The storage servers of the tests: each is started when the first test asks for it, once in a run, and always stopped.

A server that is not installed skips its tests, and the last lines of the run say so; with
``OCDBT_PY_REQUIRE_SERVERS=1`` it fails them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conformance.crew import Crew
from conformance.servers import kinds
from conformance.servers.server import Server

# Read when gcsfs is imported: it would otherwise look for Google's control service on every emulator, for minutes.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
# Whoever finds no credentials for S3 would otherwise ask the metadata service of a machine in the cloud.
os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")

absent: dict[str, str] = {}
"""Why a fixture has no server."""


def serve(fixture: str, start: Callable[[Path], kinds.Started], factory: pytest.TempPathFactory) -> Iterator[Server]:
    try:
        started = start(factory.mktemp(fixture) / "server")
    except kinds.Absent as error:
        if os.environ.get("OCDBT_PY_REQUIRE_SERVERS") == "1":
            pytest.fail(f"{error} (OCDBT_PY_REQUIRE_SERVERS is set)", pytrace=False)
        absent[fixture] = str(error)
        pytest.skip(str(error))
    try:
        with pytest.MonkeyPatch.context() as patch:
            # TensorStore's drivers take these from nowhere else; spawned processes inherit them.
            for name, value in started.server.environ.items():
                patch.setenv(name, value)
            yield started.server
    finally:
        started.stop()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if absent:
        terminalreporter.write_line(f"Servers not tested against: {'; '.join(absent.values())}", yellow=True)


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """S3, a real server."""
    yield from serve("seaweedfs", kinds.start_seaweedfs, tmp_path_factory)


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """S3, in the words of AWS."""
    yield from serve("moto", kinds.start_moto, tmp_path_factory)


@pytest.fixture(scope="session")
def gcs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from serve("gcs_server", kinds.start_gcs, tmp_path_factory)


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from serve("azurite", kinds.start_azurite, tmp_path_factory)


@pytest.fixture(scope="session")
def sftp_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """OpenSSH."""
    yield from serve("sftp_server", kinds.start_sftp, tmp_path_factory)


@pytest.fixture(scope="session")
def ftp_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from serve("ftp_server", kinds.start_ftp, tmp_path_factory)


@pytest.fixture(scope="session")
def webdav_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from serve("webdav_server", kinds.start_webdav, tmp_path_factory)


@pytest.fixture(scope="session")
def http_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Serves files; nothing can be written through it, tests put them into its directory."""
    yield from serve("http_server", kinds.start_http, tmp_path_factory)


@pytest.fixture(scope="module")
def crew() -> Iterator[Crew]:
    with Crew.gathered() as crew:
        yield crew
