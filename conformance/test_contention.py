"""Many processes write one database at once, ours and TensorStore's: nothing acknowledged is lost, nothing is torn."""

from __future__ import annotations

import itertools
import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest
import tensorstore as ts

import ocdbt_py
from conformance.crew import PATIENCE, SPAWN, WRITERS, Crew
from conformance.observe import engine_of, tree_levels

TIMES = 100
CONFIG = {"max_decoded_node_bytes": 2000, "version_tree_arity_log2": 2}
"""Small nodes and few versions a node, so that many commits rewrite trees of several levels."""

KINDS = ["single", "numbered"]
MIXTURES = [0, WRITERS // 2]
"""How many of the writers are TensorStore's."""

ACCOUNTS = [b"account-%d" % number for number in range(4)]
SUM = 1000


@pytest.fixture
def url(tmp_path: Path) -> str:
    return str(tmp_path / "db")


# --- writers


def ours(url: str) -> ocdbt_py.Database:
    return ocdbt_py.open(url, "r+", durable=False)


def tensorstores(url: str) -> ts.KvStore:
    base = {"driver": "file", "path": f"{url}/"}
    context = ts.Context({"file_io_sync": False})
    return ts.KvStore.open({"driver": "ocdbt", "base": base}, context=context).result()


def increment_with_ours(url: str) -> int:
    """How often another writer was faster."""
    conflicts = 0
    with ours(url) as db:
        for _ in range(TIMES):
            while True:
                value, entry = db.lookup("n")
                try:
                    db.write("n", b"%d" % (int(value) + 1), if_equal=entry.generation)
                    break
                except ocdbt_py.ConflictError as conflict:
                    if conflict.kind != "condition":
                        raise
                    conflicts += 1
    return conflicts


def increment_with_tensorstore(url: str) -> int:
    store = tensorstores(url)
    conflicts = 0
    for _ in range(TIMES):
        while True:
            found = store.read("n").result()
            value = b"%d" % (int(found.value) + 1)
            if store.write("n", value, if_equal=found.stamp.generation).result().generation:
                break
            conflicts += 1
    return conflicts


def value_of(key: str, number: int) -> bytes:
    """Every fifth lies in a data file."""
    return key.encode() * (30 if number % 5 == 0 else 1)


def write_keys_with_ours(url: str, name: str) -> None:
    with ours(url) as db:
        for number in range(TIMES):
            key = f"{name}-{number:03}"
            db[key] = value_of(key, number)


def write_keys_with_tensorstore(url: str, name: str) -> None:
    store = tensorstores(url)
    for number in range(TIMES):
        key = f"{name}-{number:03}"
        store.write(key, value_of(key, number)).result()


# --- what must hold afterwards


def create(url: str, kind: str, values: dict[str, bytes]) -> None:
    with ocdbt_py.open(url, "x", config=ocdbt_py.Config(manifest_kind=kind, **CONFIG)) as db:  # type: ignore[arg-type]
        db.update(values)


def check_history(db: ocdbt_py.Database, generations: int, least: int | None = None) -> None:
    """So many versions, or down to the ``least`` where writers who wait have theirs committed along with another's;
    without gaps, each later than the one before; the statistics of the newest are right."""
    versions = list(db.versions())
    assert (generations if least is None else least) <= len(versions) <= generations
    assert [version.generation for version in versions] == list(range(len(versions), 0, -1))
    assert all(earlier.commit_time_ns < later.commit_time_ns for later, earlier in itertools.pairwise(versions))
    entries = list(db.scan())
    locations = [location for level in tree_levels(engine_of(db), engine_of(db).latest()) for _, _, location in level]
    assert len(db) == db.version.num_keys == len(entries)
    assert db.version.num_tree_bytes == sum(location.length for location in locations)
    assert db.version.num_indirect_value_bytes == sum(entry.size for entry in entries if entry.location is not None)


def check_directory(url: str) -> None:
    names = {path.relative_to(url).parts[0] for path in Path(url).rglob("*")}
    assert {name for name in names if not name.startswith("manifest.0")} == {"d", "manifest.ocdbt"}
    assert not list(Path(url).rglob("*.__lock"))


# --- counters and keys


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("theirs", MIXTURES, ids=["ours alone", "half of them TensorStore's"])
def test_conditional_increments_by_eight_processes_add_up(crew: Crew, url: str, kind: str, theirs: int) -> None:
    create(url, kind, {"n": b"0"})
    writers = [increment_with_tensorstore] * theirs + [increment_with_ours] * (WRITERS - theirs)
    conflicts = crew.run(*[(writer, url) for writer in writers])
    assert sum(conflicts[:theirs]) > 0 or not theirs
    assert sum(conflicts[theirs:]) > 0
    with ocdbt_py.open(url) as db:
        assert db["n"] == b"%d" % (WRITERS * TIMES)
        for number in (1, 10, 400, 799):  # every version counts one more
            assert db.at(number + 2)["n"] == b"%d" % number
        check_history(db, 2 + WRITERS * TIMES)
    assert tensorstores(url).read("n").result().value == b"%d" % (WRITERS * TIMES)
    check_directory(url)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("theirs", MIXTURES, ids=["ours alone", "half of them TensorStore's"])
def test_every_key_that_eight_processes_wrote_is_there(crew: Crew, url: str, kind: str, theirs: int) -> None:
    create(url, kind, {})
    writers = [write_keys_with_tensorstore] * theirs + [write_keys_with_ours] * (WRITERS - theirs)
    names = "abcdefgh"
    crew.run(*[(writer, url, name) for writer, name in zip(writers, names, strict=True)])
    keys = [(f"{name}-{number:03}", number) for name in names for number in range(TIMES)]
    expected = {key.encode(): value_of(key, number) for key, number in keys}
    with ocdbt_py.open(url) as db:
        assert dict(db.items()) == expected
        check_history(db, 1 + WRITERS * TIMES, least=1 + TIMES)
        numbers = [version.num_keys for version in db.versions()]
        assert numbers[0] == WRITERS * TIMES
        assert numbers[-1] == 0
        assert all(1 <= later - earlier <= WRITERS for later, earlier in itertools.pairwise(numbers))
        for version in list(db.versions())[::25]:  # none of a writer's keys is there before those it wrote earlier
            there = list(db.at(version))
            for name in names:
                mine = [key for key in there if key.startswith(name.encode())]
                assert mine == [f"{name}-{number:03}".encode() for number in range(len(mine))]
    store = tensorstores(url)
    assert sorted(store.list().result()) == sorted(expected)
    reads = {key: store.read(key) for key in expected}
    assert {key: read.result().value for key, read in reads.items()} == expected
    check_directory(url)


def commit_without_pause(url: str, name: str, until: Path) -> None:
    with ours(url) as db:
        for number in itertools.count():
            if until.exists():
                return
            db[f"{name}-{number:06}"] = b"x"


def test_a_writer_of_tensorstores_gets_its_turn_among_ours(crew: Crew, url: str, tmp_path: Path) -> None:
    create(url, "single", {})
    until = tmp_path / "done"
    names = "abc"
    ended = crew.begin(
        (write_keys_with_tensorstore, url, "t"), *[(commit_without_pause, url, name, until) for name in names]
    )
    try:
        ended[0].get(PATIENCE)
    finally:
        until.touch()
    for writer in ended[1 : 1 + len(names)]:
        writer.get(PATIENCE)
    with ocdbt_py.open(url) as db:
        assert len(db.keys("t-")) == TIMES
        assert all(len(db.keys(f"{name}-")) > 0 for name in names)
    check_directory(url)


# --- transactions and readers


def transfer(url: str, seed: int) -> int:
    """Twice twenty transfers by two threads; how many attempts they took."""
    attempts = itertools.count()
    failures: list[BaseException] = []

    def work(generator: random.Random) -> None:
        def move(t: ocdbt_py.Transaction) -> None:
            next(attempts)
            amount = min(generator.randrange(1, 50), int(t[source]))
            t[target] = b"%d" % (int(t[target]) + amount)
            t[source] = b"%d" % (int(t[source]) - amount)

        try:
            for _ in range(20):
                source, target = generator.sample(ACCOUNTS, 2)
                db.run(move, timeout=PATIENCE)
        except BaseException as failure:
            failures.append(failure)

    with ours(url) as db:
        threads = [threading.Thread(target=work, args=(random.Random(2 * seed + i),)) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]
    return next(attempts)


@pytest.mark.parametrize("kind", KINDS)
def test_transfers_by_threads_of_four_processes_keep_the_sum_in_every_version(crew: Crew, url: str, kind: str) -> None:
    create(url, kind, {account.decode(): b"%d" % (SUM // len(ACCOUNTS)) for account in ACCOUNTS})
    attempts = crew.run(*[(transfer, url, seed) for seed in range(4)])
    transfers = 4 * 2 * 20
    assert sum(attempts) > transfers
    with ocdbt_py.open(url) as db:
        check_history(db, 2 + transfers)
        for version in list(db.versions())[:-1]:
            assert sum(map(int, db.at(version).values())) == SUM
    check_directory(url)


COLUMN = [f"{row:02}" for row in range(40)]


def text_of(number: int) -> bytes:
    return b"%d " % number * 50


def rewrite_with_ours(url: str, first: int) -> None:
    with ours(url) as db:
        for number in range(first, first + TIMES):
            db.update(dict.fromkeys(COLUMN, text_of(number)))


def rewrite_with_tensorstore(url: str, first: int) -> None:
    store = tensorstores(url)
    for number in range(first, first + TIMES):
        with ts.Transaction(atomic=True) as transaction:
            for key in COLUMN:
                store.with_transaction(transaction)[key] = text_of(number)


def read_all_along(url: str, until: Path) -> set[int]:
    """The numbers seen, one in each pass."""
    seen = set()
    with ocdbt_py.open(url) as db:
        while not until.exists():
            passed = list(db.items())
            assert [key.decode() for key, _ in passed] == COLUMN
            (value,) = {value for _, value in passed}
            seen.add(int(value.split()[0]))
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_every_pass_of_a_reader_sees_one_version(crew: Crew, url: str, kind: str, tmp_path: Path) -> None:
    create(url, kind, dict.fromkeys(COLUMN, text_of(1000)))
    until = tmp_path / "done"
    ended = crew.begin(
        (rewrite_with_ours, url, 2000),
        (rewrite_with_ours, url, 3000),
        (rewrite_with_tensorstore, url, 4000),
        (read_all_along, url, until),
        (read_all_along, url, until),
    )
    try:
        for writer in ended[:3]:
            writer.get(PATIENCE)
    finally:
        until.touch()
    for reader in ended[3:5]:
        assert len(reader.get(PATIENCE)) > 1
    with ocdbt_py.open(url) as db:
        check_history(db, 2 + 3 * TIMES)
    check_directory(url)


# --- handles that travel


def write_through(db: ocdbt_py.Database, name: str) -> None:
    for number in range(TIMES):
        db[f"{name}-{number:03}"] = value_of(name, number)


def test_pickled_handles_commit_in_the_processes_where_they_arrive(crew: Crew, url: str) -> None:
    create(url, "single", {})
    with ours(url) as db:
        crew.run(*[(write_through, db, name) for name in "abcd"])
        assert list(db) == [f"{name}-{number:03}".encode() for name in "abcd" for number in range(TIMES)]
        check_history(db, 1 + 4 * TIMES, least=1 + TIMES)


def fork_four_times(url: str) -> None:
    """Children commit through the handle of a parent that has read through it, and goes on to read and to write."""
    stop = threading.Event()
    with ours(url) as db:
        warm = dict(db.items())

        def read() -> None:
            while not stop.is_set():
                assert warm.items() <= dict(db.items()).items()

        def write() -> None:
            for number in itertools.count():
                db[f"parent-{number:03}"] = b"x"
                if stop.is_set():
                    return

        threads = [threading.Thread(target=read), threading.Thread(target=write)]
        for thread in threads:
            thread.start()
        children = {}
        for name in "abcd":
            time.sleep(0.02)  # each at another point of what the threads do
            child = os.fork()
            if not child:
                status = 1
                try:
                    for number in range(25):
                        db[f"{name}-{number:03}"] = value_of(name, number)
                        assert warm.items() <= dict(db.items()).items()
                    status = 0
                finally:
                    os._exit(status)
            children[child] = name
        deadline = time.monotonic() + PATIENCE / 2
        while children and time.monotonic() < deadline:
            child, status = os.waitpid(-1, os.WNOHANG)
            if child:
                assert status == 0, children[child]
                del children[child]
            time.sleep(0.005)
        stop.set()
        for thread in threads:
            thread.join()
        for child in children:
            os.kill(child, signal.SIGKILL)
        assert not children, "a child hangs"


@pytest.mark.parametrize("kind", KINDS)
def test_forked_children_commit_through_the_handle_they_inherit(url: str, kind: str) -> None:
    warm = {f"warm-{number:03}": value_of("warm", number) for number in range(TIMES)}
    create(url, kind, warm)
    process = SPAWN.Process(target=fork_four_times, args=(url,))
    process.start()
    process.join()
    assert process.exitcode == 0
    with ocdbt_py.open(url) as db:
        for name in "abcd":
            assert dict(db.items(f"{name}-")) == {
                f"{name}-{number:03}".encode(): value_of(name, number) for number in range(25)
            }
        parents = len(db.keys("parent-"))
        assert list(db.keys("parent-")) == [b"parent-%03d" % number for number in range(parents)]
        assert len(db) == TIMES + 4 * 25 + parents
        check_history(db, 2 + 4 * 25 + parents, least=2 + parents)
    check_directory(url)
