from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import ocdbt_py
from ocdbt_py.transaction import Transaction


@pytest.fixture
def db(tmp_path: Path) -> Iterator[ocdbt_py.Database]:
    # tiny nodes, so that a few keys make a tree
    config = ocdbt_py.Config(max_decoded_node_bytes=120)
    with ocdbt_py.open(tmp_path / "db", "x", config=config, durable=False) as database:
        database.update({f"{i:02}": b"%d" % i for i in range(20)})
        yield database


def test_all_writes_become_one_version_at_the_end(db: ocdbt_py.Database) -> None:
    before = db.version.generation
    with db.transaction() as t:
        t["a"] = b"1"
        t.update({"b": b"2"}, c=b"3")
        del t["00"]
        t.delete_range(prefix="1")
        assert db.version.generation == before
        assert "a" not in db
    assert db.version.generation == before + 1
    assert list(db) == [b"%02d" % i for i in range(1, 10)] + [b"a", b"b", b"c"]


def test_an_exception_aborts_it(db: ocdbt_py.Database) -> None:
    before = db.version
    transaction = db.transaction()

    def work() -> None:
        with transaction as t:
            t["a"] = b"1"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert db.version == before
    with pytest.raises(ocdbt_py.InvalidArgumentError, match="was aborted"):
        transaction["b"] = b"2"


def test_it_reads_its_own_writes_over_the_snapshot(db: ocdbt_py.Database) -> None:
    with db.transaction() as t:
        db["05"] = b"changed outside"
        t["03"] = b"three"
        t["031"] = b"new"
        t["long"] = b"x" * 500
        del t["04"]
        t.delete_range("07", "15")
        t["10"] = b"ten"
        expected = {**{f"{i:02}": b"%d" % i for i in (0, 1, 2, 5, 6, 15, 16, 17, 18, 19)}}
        expected |= {"03": b"three", "031": b"new", "10": b"ten", "long": b"x" * 500}
        assert dict(t.items()) == {key.encode(): value for key, value in expected.items()}
        assert list(t) == sorted(key.encode() for key in expected)
        assert len(t) == len(expected)
        assert t["05"] == b"5"
        assert t.get("04") is None
        assert "08" not in t
        assert t.read("long", -3) == b"xxx"
        assert t.read_many(["03", "05"]) == [b"three", b"5"]
        assert [entry.key for entry in t.scan("03", "06")] == [b"03", b"031", b"05"]
        assert list(t.keys(prefix="1")) == [b"10", b"15", b"16", b"17", b"18", b"19"]
        t.abort()


def test_mutable_buffers_are_copied_as_they_come_in(db: ocdbt_py.Database) -> None:
    value = bytearray(b"before")
    with db.transaction() as t:
        t["k"] = value
        value[:] = b"after!"
    assert db["k"] == b"before"


def test_a_transaction_that_wrote_nothing_makes_no_version(db: ocdbt_py.Database) -> None:
    before = db.version
    with db.transaction() as t:
        assert t["03"] == b"3"
    assert db.version == before


READS: dict[str, Callable[[Transaction], object]] = {
    "a key": lambda t: t["03"],
    "a key and its absence": lambda t: t.get("035"),
    "membership": lambda t: "03" in t,
    "a range": lambda t: list(t.scan("02", "05")),
    "a prefix": lambda t: list(t.keys(prefix="03")),
    "everything": lambda t: list(t.items()),
    "many": lambda t: t.read_many(["03", "04", "035"], default=None),
    "the smallest keys": lambda t: [key for key, _ in zip(t, range(5), strict=False)],
    "the length": lambda t: len(t),
    "statistics of a value": lambda t: t.stat("03"),
}

CHANGES: dict[str, tuple[Callable[[ocdbt_py.Database], object], set[str]]] = {
    "03 changed": (
        lambda db: db.write("03", b"other"),
        set(READS) - {"a key and its absence", "the length"},
    ),
    "03 removed": (lambda db: db.delete("03"), set(READS) - {"a key and its absence"}),
    "035 appeared": (
        lambda db: db.write("035", b"new"),
        set(READS) - {"a key", "membership", "statistics of a value"},
    ),
    "18 changed": (lambda db: db.write("18", b"other"), {"everything"}),
    "nothing in the end": (lambda db: [db.write("03", b"other"), db.write("03", b"3")], set()),
}


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("change", CHANGES)
def test_whatever_was_read_must_still_hold_at_the_commit(db: ocdbt_py.Database, read: str, change: str) -> None:
    apply, conflicting = CHANGES[change]
    with db.transaction() as t:
        READS[read](t)
        t["out"] = b"1"
        apply(db)
        before = db.version
        if read in conflicting:
            with pytest.raises(ocdbt_py.ConflictError, match="number of keys" if read == "the length" else change[:2]):
                t.commit()
            assert db.version == before
        else:
            t.commit()
            assert db["out"] == b"1"


def test_what_was_only_written_is_not_compared(db: ocdbt_py.Database) -> None:
    with db.transaction() as t:
        t["03"] = b"mine"
        t.delete_range("10", "12")
        db["03"] = b"theirs"
        db["11"] = b"theirs"
    assert db["03"] == b"mine"
    assert "11" not in db


def test_run_starts_over_until_nothing_interferes(db: ocdbt_py.Database) -> None:
    attempts: list[bytes] = []

    def work(t: Transaction) -> bytes:
        found = t["03"]
        if len(attempts) < 2:
            db["03"] = found + b"!"
        attempts.append(found)
        t["seen"] = found
        return found

    assert db.run(work) == b"3!!"
    assert attempts == [b"3", b"3!", b"3!!"]
    assert db["seen"] == b"3!!"

    def hopeless(t: Transaction) -> None:
        t["x"] = t["03"]
        db["03"] = t["03"] + b"!"

    with pytest.raises(ocdbt_py.ConflictError):
        db.run(hopeless, timeout=0)


def test_transfers_between_keys_keep_their_sum(db: ocdbt_py.Database, tmp_path: Path) -> None:
    db.update({f"account/{i}": b"100" for i in range(4)})

    def transfer(source: int, target: int) -> None:
        def work(t: Transaction) -> None:
            t[f"account/{source}"] = b"%d" % (int(t[f"account/{source}"]) - 1)
            t[f"account/{target}"] = b"%d" % (int(t[f"account/{target}"]) + 1)

        with ocdbt_py.open(tmp_path / "db", "r+", durable=False) as mine:
            for _ in range(10):
                mine.run(work)

    threads = [threading.Thread(target=transfer, args=(i, (i + 1) % 4)) for i in range(4)]
    threads += [threading.Thread(target=transfer, args=(i, (i + 2) % 4)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    balances = [int(value) for value in db.values(prefix="account/")]
    assert sum(balances) == 400
    assert balances == [90, 90, 110, 110]


def test_within_a_prefix_it_sees_and_removes_only_what_is_below(db: ocdbt_py.Database, tmp_path: Path) -> None:
    with ocdbt_py.open(f"{tmp_path / 'db'}|ocdbt:1", "r+") as part, part.transaction() as t:
        assert len(t) == 10
        t.clear()
        t["x"] = b"1"
        assert dict(t.items()) == {b"x": b"1"}
    assert list(db.keys(prefix="1")) == [b"1x"]
    assert len(db) == 11


def test_a_transaction_cannot_be_pickled_or_used_after_its_end(db: ocdbt_py.Database) -> None:
    with db.transaction() as t, pytest.raises(ocdbt_py.UnsupportedError, match="pickle the database"):
        pickle.dumps(t)
    for call in (lambda: t["03"], lambda: t.update(a=b""), lambda: len(t), lambda: list(t), t.clear, t.commit):
        with pytest.raises(ocdbt_py.InvalidArgumentError, match="has ended"):
            call()
    with ocdbt_py.open(db._url) as reader, pytest.raises(ocdbt_py.InvalidArgumentError, match="read only"):
        reader.transaction()
