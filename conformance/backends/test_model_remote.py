"""The machine of :mod:`conformance.test_model`, on every server that a database can be shared on.

Where TensorStore has a driver, or sees the server's files on the local disk, both engines work on the server and change
places there. On Azure ours works, TensorStore keeps to the local disk, and reads a copy of what ours wrote.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from conformance.engines import Place
from conformance.oracle import base_of
from conformance.servers.server import Server
from conformance.test_model import Twins
from ocdbt_py.storage.location import resolve
from ocdbt_py.storage.protocol import Read

STEPS = 10
EXAMPLES = {"seaweedfs": 5, "gcs_server": 8, "azurite": 8, "sftp_server": 6}
"""So many that none of them takes long. The first few repeat one kind of step; fewer than five prove little."""


class OnServer(Twins):
    """Both places are on the server."""

    server: ClassVar[Server]
    steps: ClassVar[Counter[str]]

    @classmethod
    def new_place(cls) -> Place:
        url = cls.server.url("twin")
        base = cls.server.tensorstore(url)
        return Place(url, base or base_of(cls.server.local(url)), cls.server.storage_options)

    @classmethod
    def new_places(cls) -> list[Place]:
        return [cls.new_place(), cls.new_place()]


class OnServerAlone(OnServer):
    """Only ours is on the server, and copied to ``directory``."""

    directory: ClassVar[Path]
    everywhere = False
    copied: ClassVar[set[str]]

    @classmethod
    def new_places(cls) -> list[Place]:
        cls.copied = set()
        url = cls.server.url("twin")
        copy, theirs = (cls.directory / f"{cls.server.below(url)}-{name}" for name in ("copy", "theirs"))
        return [Place(url, base_of(copy), cls.server.storage_options), Place.local(theirs)]

    @classmethod
    def refresh(cls, place: Place) -> None:
        """Data files never change once they are there, manifests do."""
        found = resolve(place.url, storage_options=place.storage_options)
        for listed in found.storage.list(f"{found.path}/", deep=True):
            name = listed.path.removeprefix(f"{found.path}/")
            if name in cls.copied:
                continue
            content = found.storage.read(listed.path)
            assert isinstance(content, Read)
            target = Path(place.base["path"], name)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content.data)
            if "manifest." not in name:
                cls.copied.add(name)


def run(machine: type[Twins], examples: int) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            derandomize=True,
            max_examples=examples,
            stateful_step_count=STEPS,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert machine.steps.total() >= examples * STEPS / 2
    assert len(machine.steps) >= 8  # kinds of steps


@pytest.mark.parametrize("fixture", ["seaweedfs", "gcs_server"])
def test_whatever_is_done_to_both_on_a_server_they_stay_the_same(fixture: str, request: pytest.FixtureRequest) -> None:
    class Run(OnServer):
        server = request.getfixturevalue(fixture)
        steps: ClassVar[Counter[str]] = Counter()

    run(Run, EXAMPLES[fixture])


def test_whatever_is_done_over_sftp_and_by_tensorstore_in_the_same_directory_it_stays_the_same(
    sftp_server: Server,
) -> None:
    class Run(OnServer):
        server = sftp_server
        steps: ClassVar[Counter[str]] = Counter()
        manifest_kind = "numbered"

    run(Run, EXAMPLES["sftp_server"])


def test_whatever_is_done_on_azure_and_by_tensorstore_on_the_local_disk_they_stay_the_same(
    azurite: Server, tmp_path: Path
) -> None:
    class Run(OnServerAlone):
        server = azurite
        directory = tmp_path
        steps: ClassVar[Counter[str]] = Counter()

    run(Run, EXAMPLES["azurite"])
