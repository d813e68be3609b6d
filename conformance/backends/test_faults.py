"""Four writers commit through a proxy that delays, refuses, cuts and loses: nothing is lost, and nothing done twice.

A commit may end in an error that says it may have happened; then it is there once or not at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import pytest
import tensorstore as ts

import ocdbt_py
from conformance.crew import PATIENCE, SPAWN
from conformance.oracle import contents_of
from conformance.servers.faulty_proxy import CUT, DELAY, DROP, LOSE, NO_FAULTS, REFUSE, HTTPProxy, Proxy, TCPProxy
from conformance.servers.server import Server
from ocdbt_py.transaction import Transaction

COMMITS = 50
"""Of each of the four writers, two threads and two processes."""

MOST_UNKNOWN = 4
"""A request fails six times in a row once in several 100,000; a commit of which that left nothing known is rare."""

HTTP_SERVERS = ["seaweedfs", "gcs_server", "azurite"]
OPTIONS = ocdbt_py.WriteOptions(probe=False)
PIECE_RATES = {DELAY: 0.02, DROP: 0.004, LOSE: 0.004}
"""A commit over SFTP is some dozens of pieces, and all requests of a connection end with it."""


class Outcome(NamedTuple):
    """The keys a writer was told are committed, and those of commits that ended in an error."""

    acknowledged: list[bytes]
    unknown: list[bytes]


def count_up(db: ocdbt_py.Database, key: bytes) -> None:
    """One commit that reads: gives the key the next number."""

    def step(transaction: Transaction) -> None:
        number = b"%d" % (int(transaction["n"]) + 1)
        transaction["n"] = number
        transaction[key] = number

    db.run(step, timeout=PATIENCE)


def write(server: Server, url: str, name: str) -> Outcome:
    """Every commit brings one key; every fourth one counts too, and the others write a long value in a data file."""
    outcome = Outcome([], [])
    with ocdbt_py.open(url, "r+", write_options=OPTIONS, storage_options=dict(server.storage_options)) as db:
        for turn in range(COMMITS):
            key = f"{name}-{turn:03}".encode()
            try:
                if turn % 4 == 0:
                    count_up(db, key)
                else:
                    db[key] = long_value(key)
                outcome.acknowledged.append(key)
            except ocdbt_py.StorageError:
                outcome.unknown.append(key)
    return outcome


def long_value(key: bytes) -> bytes:
    return key * 100


def commit_from_threads_and_processes(server: Server, url: str) -> Outcome:
    with ThreadPoolExecutor(2) as threads, ProcessPoolExecutor(2, mp_context=SPAWN) as processes:
        pools = [threads, threads, processes, processes]
        jobs = [pool.submit(write, server, url, name) for pool, name in zip(pools, "abcd", strict=True)]
        outcomes = [job.result(PATIENCE) for job in jobs]
    acknowledged, unknown = ([key for keys in lists for key in keys] for lists in zip(*outcomes, strict=True))
    return Outcome(acknowledged, unknown)


def check(server: Server, url: str, outcome: Outcome) -> None:
    options = dict(server.storage_options)
    with ocdbt_py.open(url, storage_options=options) as db:
        contents = dict(db.items())
        added = [version.num_keys for version in db.versions()]
    counted = int(contents.pop(b"n"))
    lost = set(outcome.acknowledged) - set(contents)
    assert not lost
    assert set(contents) <= {*outcome.acknowledged, *outcome.unknown}
    # A version without a key of its own would be a commit made twice. First came the empty one, and the one with n.
    assert added == list(range(len(contents) + 1, -1, -1))
    numbers = sorted(int(value) for key, value in contents.items() if value != long_value(key))
    assert numbers == list(range(1, counted + 1))
    report = ocdbt_py.check(url, storage_options=options)
    assert report.ok, report
    base = server.tensorstore(url)
    if base is not None:
        store = ts.KvStore.open({"driver": "ocdbt", "base": base}).result()
        assert contents_of(store) == {**contents, b"n": b"%d" % counted}


@contextmanager
def storm(server: Server, proxy: Proxy) -> Iterator[None]:
    """Commit through the proxy, and check without it."""
    there = server.at(proxy.endpoint)
    url = there.url("faults")
    rates, proxy.rates = proxy.rates, NO_FAULTS
    with ocdbt_py.open(url, "x", write_options=OPTIONS, storage_options=dict(there.storage_options)) as db:
        db["n"] = b"0"
    proxy.rates = rates
    outcome = commit_from_threads_and_processes(there, url)
    assert len(outcome.acknowledged) + len(outcome.unknown) == 4 * COMMITS
    assert len(outcome.unknown) <= MOST_UNKNOWN
    yield
    check(server, f"{server.root}/{there.below(url)}", outcome)


@pytest.mark.parametrize("fixture", HTTP_SERVERS)
def test_nothing_is_lost_or_done_twice_where_requests_and_answers_are(
    fixture: str, request: pytest.FixtureRequest
) -> None:
    server: Server = request.getfixturevalue(fixture)
    with HTTPProxy(server.endpoint, seed=4) as proxy, storm(server, proxy):
        for fault in (DELAY, REFUSE, DROP, CUT, LOSE):
            assert proxy.counts[fault] > 0
            assert proxy.counts[f"{fault} a write"] > 0


def test_nothing_is_lost_or_done_twice_where_connections_over_sftp_break(sftp_server: Server) -> None:
    proxy = TCPProxy(sftp_server.endpoint, seed=4, rates=PIECE_RATES)
    with proxy, storm(sftp_server, proxy):
        for fault in PIECE_RATES:
            assert proxy.counts[fault] > 0
