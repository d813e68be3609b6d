"""Eight processes write one database on a server at once, ours and TensorStore's: nothing acknowledged is lost."""

from __future__ import annotations

import os
import random
import time

import pytest
import tensorstore as ts

import ocdbt_py
from conformance.crew import WRITERS, Crew
from conformance.servers.server import Server

TIMES = 50

SERVERS = ["seaweedfs", "moto", "gcs_server", "azurite", "sftp_server"]
WITH_DRIVER = ["seaweedfs", "gcs_server"]


def pause(began: float) -> None:
    """Whoever was too late waits: the requests of all that try again at once would be most of the traffic."""
    time.sleep(random.uniform(0, WRITERS * (time.monotonic() - began)))


def increment_with_ours(server: Server, url: str) -> int:
    """How often another writer was faster."""
    options = ocdbt_py.WriteOptions(probe=False)  # that the servers honour conditions is what this shows
    conflicts = 0
    with ocdbt_py.open(url, "r+", write_options=options, storage_options=dict(server.storage_options)) as db:
        for _ in range(TIMES):
            while True:
                began = time.monotonic()
                value, entry = db.lookup("n")
                try:
                    db.write("n", b"%d" % (int(value) + 1), if_equal=entry.generation)
                    break
                except ocdbt_py.ConflictError as conflict:
                    if conflict.kind != "condition":
                        raise
                    conflicts += 1
                    pause(began)
    return conflicts


def increment_with_tensorstore(server: Server, url: str) -> int:
    os.environ.update(server.environ)
    store = ts.KvStore.open({"driver": "ocdbt", "base": server.tensorstore(url)}).result()
    conflicts = 0
    for _ in range(TIMES):
        while True:
            began = time.monotonic()
            found = store.read("n").result()
            value = b"%d" % (int(found.value) + 1)
            if store.write("n", value, if_equal=found.stamp.generation).result().generation:
                break
            conflicts += 1
            pause(began)
    return conflicts


def check_increments(server: Server, url: str) -> None:
    """Every version counts one more than the one before, and the database is sound."""
    options = dict(server.storage_options)
    with ocdbt_py.open(url, storage_options=options) as db:
        assert db["n"] == b"%d" % (WRITERS * TIMES)
        assert [version.generation for version in db.versions()] == list(range(2 + WRITERS * TIMES, 0, -1))
        for number in (1, 10, 200, 399):
            assert db.at(number + 2)["n"] == b"%d" % number
    report = ocdbt_py.check(url, storage_options=options)
    assert report.ok, report
    assert report.versions == 2 + WRITERS * TIMES


def create(server: Server, url: str) -> None:
    with ocdbt_py.open(url, "x", storage_options=dict(server.storage_options)) as db:
        db["n"] = b"0"


@pytest.mark.parametrize("fixture", SERVERS)
def test_conditional_increments_by_eight_processes_add_up(
    crew: Crew, fixture: str, request: pytest.FixtureRequest
) -> None:
    server: Server = request.getfixturevalue(fixture)
    url = server.url("increments")
    create(server, url)
    conflicts = crew.run(*[(increment_with_ours, server, url)] * WRITERS)
    assert sum(conflicts) > 0
    check_increments(server, url)


@pytest.mark.parametrize("fixture", WITH_DRIVER)
def test_conditional_increments_by_ours_and_tensorstores_writers_add_up(
    crew: Crew, fixture: str, request: pytest.FixtureRequest
) -> None:
    server: Server = request.getfixturevalue(fixture)
    url = server.url("mixed")
    create(server, url)
    half = WRITERS // 2
    writers = [increment_with_ours] * half + [increment_with_tensorstore] * half
    conflicts = crew.run(*[(writer, server, url) for writer in writers])
    assert sum(conflicts[:half]) > 0
    assert sum(conflicts[half:]) > 0
    check_increments(server, url)
    store = ts.KvStore.open({"driver": "ocdbt", "base": server.tensorstore(url)}).result()
    assert store.read("n").result().value == b"%d" % (WRITERS * TIMES)
