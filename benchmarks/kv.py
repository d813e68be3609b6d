"""The key-value engine against TensorStore's: ``python -m benchmarks.kv [--quick] [--only NAME …] [--json FILE]``.

Both on a local disk, with fsync, in turn, each operation in a fresh process; keys like those of a checkpoint, values of
32 bytes, one key a write where single commits are meant. Every answer is checked outside the clock, and in the first
round TensorStore lists and reads what ocdbt_py has written. Single commits are made with raw files too: the system
calls that a commit cannot do without, and no format.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.goals import RAW
from benchmarks.harness import ROOT, PrimedMemory, Ratio, Times, machine, print_table, run_child, timed, write_json

SIDES = ("ocdbt_py", "tensorstore")
MANY = 100_000
MILLION = 1_000_000
COMMITS = 1000
POINT_READS = 2000
WRITERS = {"writers_2": 2, "writers_4": 4}
WRITER_COMMITS = 150
RAW_OPERATIONS = ("commits",)
"""What raw files have an answer to."""


def key(number: int) -> bytes:
    return b"block_%d/item_%d/w/%07d" % (number // 1000, number % 1000, number)


def value(number: int) -> bytes:
    return b"v%031d" % number


class Ours:
    """What is measured of ocdbt_py."""

    def __init__(self, path: str) -> None:
        import ocdbt_py

        self.db = ocdbt_py.open(path, "a")

    def put_all(self, count: int) -> Callable[[], Any]:
        content = {key(i): value(i) for i in range(count)}
        return lambda: self.db.update(content)

    def get(self, wanted: bytes) -> bytes:
        return self.db[wanted]

    def put(self, wanted: bytes, content: bytes) -> None:
        self.db[wanted] = content

    def keys(self, prefix: bytes = b"") -> list[bytes]:
        return list(self.db.keys(prefix=prefix))

    def items(self) -> int:
        return sum(len(found) for _, found in self.db.items())

    def delete_range(self, start: bytes, stop: bytes) -> None:
        self.db.delete_range(start, stop)


class TensorStores:
    """The same of TensorStore, with a cache, as Orbax opens it."""

    def __init__(self, path: str) -> None:
        import tensorstore as ts

        self.ts = ts
        context = ts.Context({"cache_pool": {"total_bytes_limit": 100_000_000}})
        spec = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{path}/"}}
        self.kv = ts.KvStore.open(spec, context=context).result()

    def put_all(self, count: int) -> Callable[[], Any]:
        content = [(key(i), value(i)) for i in range(count)]

        def run() -> None:
            transaction = self.ts.Transaction(atomic=True)
            writing = self.kv.with_transaction(transaction)
            for wanted, new in content:
                writing.write(wanted, new)
            transaction.commit_async().result()

        return run

    def get(self, wanted: bytes) -> bytes:
        found: bytes = self.kv.read(wanted).result().value
        return found

    def put(self, wanted: bytes, content: bytes) -> None:
        self.kv.write(wanted, content).result()

    def keys(self, prefix: bytes = b"") -> list[bytes]:
        stop = prefix[:-1] + bytes([prefix[-1] + 1]) if prefix else b""
        found: list[bytes] = self.kv.list(self.ts.KvStore.KeyRange(prefix, stop)).result()
        return found

    def items(self) -> int:
        reads = [self.kv.read(found) for found in self.kv.list().result()]
        return sum(len(read.result().value) for read in reads)

    def delete_range(self, start: bytes, stop: bytes) -> None:
        self.kv.delete_range(self.ts.KvStore.KeyRange(start, stop)).result()


class RawFiles:
    """What single commits write and wait for: bytes at the end of a file, and a manifest put in place of the last one.

    Both become longer as those of ocdbt_py do, and nothing is encoded, locked or read.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        os.makedirs(path)
        self._directory = os.open(path, os.O_RDONLY)
        self._data = os.open(f"{path}/data", os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o666)
        os.fsync(self._data)

    def put_each(self, count: int) -> None:
        for number in range(count):
            os.write(self._data, _RAW_BYTES[: _RAW_ENTRY * (number + 1)])
            os.fdatasync(self._data)
            fd = os.open(f"{self._path}/new", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
            os.write(fd, _RAW_BYTES[:_RAW_MANIFEST])
            os.fsync(fd)
            os.close(fd)
            os.rename(f"{self._path}/new", f"{self._path}/manifest")
            os.fsync(self._directory)


_RAW_ENTRY, _RAW_MANIFEST = 3, 500
"""Bytes, compressed, of an entry of a leaf, and of a manifest, as they are in this benchmark."""

_RAW_BYTES = os.urandom(_RAW_ENTRY * COMMITS)


def measure(side: str, operation: str, path: str) -> float:
    """In the child: prepare, time, check; seconds."""
    engine: Ours | TensorStores
    if side == RAW:
        raw = RawFiles(path)
        seconds, _ = timed(lambda: raw.put_each(COMMITS))
        return seconds
    engine = Ours(path) if side == "ocdbt_py" else TensorStores(path)
    run: Callable[[], Any]
    check: Callable[[Any], bool] = lambda _: True  # noqa: E731
    if operation in ("update_100k", "update_1m"):
        count = MANY if operation == "update_100k" else MILLION
        run = engine.put_all(count)
    elif operation == "cold_point_read":
        run, check = lambda: engine.get(key(70_707)), lambda found: found == value(70_707)
    elif operation == "warm_point_reads":
        wanted = [key(i * 47 % MANY) for i in range(POINT_READS)]
        engine.get(wanted[0])
        run = lambda: [engine.get(each) for each in wanted]  # noqa: E731
        check = lambda found: len(found) == POINT_READS  # noqa: E731
    elif operation in ("list_keys", "list_1m"):
        count = MANY if operation == "list_keys" else MILLION
        run, check = engine.keys, lambda found: len(found) == count
    elif operation == "scan_items":
        run, check = engine.items, lambda found: found == 32 * MANY
    elif operation == "prefix_scan":
        run, check = lambda: engine.keys(b"block_42/"), lambda found: len(found) == 1000
    elif operation == "delete_range":
        run = lambda: engine.delete_range(b"block_20/", b"block_50/")  # noqa: E731
    elif operation == "commits":
        run = lambda: [engine.put(key(i), value(i)) for i in range(COMMITS)]  # noqa: E731
    elif operation == "commits_on_10k":
        run = lambda: [engine.put(key(i * 50), value(i)) for i in range(COMMITS // 5)]  # noqa: E731
    else:
        raise SystemExit(f"unknown operation {operation}")
    seconds, found = timed(run)
    if not check(found):
        raise SystemExit(f"{side} {operation}: wrong answer")
    return seconds


# operation: what it is called, and how many keys are there before
OPERATIONS = {
    "update_100k": ("one transaction of 100,000 keys", 0),
    "update_1m": ("one transaction of 1,000,000 keys", 0),
    "cold_point_read": ("first read of one of 100,000 keys", MANY),
    "warm_point_reads": (f"{POINT_READS} reads, warm, one by one", MANY),
    "list_keys": ("list 100,000 keys, cold", MANY),
    "scan_items": ("read 100,000 keys and values, cold", MANY),
    "prefix_scan": ("list 1,000 keys of a prefix, cold", MANY),
    "delete_range": ("delete a third of 100,000 keys", MANY),
    "commits": (f"{COMMITS} single-key commits", 0),
    "commits_on_10k": (f"{COMMITS // 5} commits into 10,000 keys", 10_000),
    **{name: (f"{count} processes, {WRITER_COMMITS} commits each", 0) for name, count in WRITERS.items()},
    "list_1m": ("list 1,000,000 keys, cold", MILLION),
}
QUICK = ("update_100k", "update_1m", "cold_point_read", "list_1m", "commits", *WRITERS)


def peak_mebibytes() -> float:
    """The most memory this process ever had. Not ``ru_maxrss``, which a child inherits from the driver."""
    status = Path("/proc/self/status").read_text().split()
    return int(status[status.index("VmHWM:") + 1]) / 1024


def prepare(path: str, keys: int) -> None:
    """A database of so many keys, written by TensorStore, for both sides alike."""
    shutil.rmtree(path, ignore_errors=True)
    if keys:
        TensorStores(path).put_all(keys)()


def judge(path: str) -> None:
    """TensorStore finds in the database what we find: the same keys, and every thousandth value."""
    ours, theirs = Ours(path), TensorStores(path)
    keys = sorted(theirs.keys())  # it lists the nodes of a tree as they come
    if keys != ours.keys() or any(theirs.get(each) != ours.get(each) for each in keys[::1000]):
        raise SystemExit("TensorStore finds other entries in the database than ocdbt_py")


def writers(side: str, path: str, count: int) -> float:
    """Several processes commit distinct keys to one database at once; seconds until the last is done.

    Each has made a commit before, to a database of its own: what a first one imports is not counted.
    """
    prepare(path, 0)
    Ours(path)
    arguments = [sys.executable, "-m", "benchmarks.kv", "--writer", side, path]
    children = [
        subprocess.Popen([*arguments, str(i)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for i in range(count)
    ]
    for child in children:
        assert child.stdout is not None
        child.stdout.readline()
    start = time.perf_counter()
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    done = [child.stdout.readline() for child in children if child.stdout]
    seconds = time.perf_counter() - start  # until all have written, not until their interpreters have ended
    if not all(done):
        raise SystemExit("a writer failed; its own message is above")
    for child in children:
        child.communicate()
    if len(Ours(path).keys()) != count * WRITER_COMMITS:
        raise SystemExit(f"{side}: writes were lost")
    return seconds


def write_in_turn(side: str, path: str, number: int) -> None:
    made = Ours if side == "ocdbt_py" else TensorStores
    made(f"{path}-of-{number}").put(b"first", b"")
    engine = made(path)

    def run() -> None:
        for i in range(WRITER_COMMITS):
            engine.put(b"%d/%05d" % (number, i), value(i))

    timed(run)
    print("done", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"one round, and only {', '.join(QUICK)}")
    parser.add_argument("--rounds", type=int, default=5, help="that count, after one that does not")
    parser.add_argument("--only", nargs="+", choices=OPERATIONS)
    parser.add_argument("--json", metavar="FILE", help="write the figures to FILE too")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--writer", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps({"seconds": measure(*options.child), "mebibytes": peak_mebibytes()}))
        return
    if options.writer:
        side, path, number = options.writer
        write_in_turn(side, path, int(number))
        return
    memory = PrimedMemory(1024)
    rows, records = [], []
    rounds = 1 if options.quick else options.rounds
    uncounted = 0 if options.quick else 1  # the first round fills the caches of all sides
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.only or (QUICK if options.quick else OPERATIONS):
            title, before = OPERATIONS[name]
            path = str(Path(scratch) / "db")
            sides = (*SIDES, RAW) if name in RAW_OPERATIONS else SIDES
            seconds: dict[str, list[float]] = {side: [] for side in sides}
            peaks: dict[str, float] = dict.fromkeys(sides, 0.0)
            for number in range(rounds + uncounted):
                for side in sides:
                    if name in WRITERS:
                        taken = writers(side, path, WRITERS[name])
                    else:
                        prepare(path, before)
                        answer = run_child("benchmarks.kv", ["--child", side, name, path], memory)
                        taken = answer["seconds"]
                        peaks[side] = max(peaks[side], answer["mebibytes"])
                    if side == "ocdbt_py" and number == 0:
                        judge(path)
                    if number >= uncounted:
                        seconds[side].append(taken)
            ours, theirs = (Times(tuple(seconds[side])) for side in SIDES)
            ratio = Ratio.between(theirs, ours)
            floor = str(Times(tuple(seconds[RAW]))) if RAW in seconds else ""
            peak = f"{peaks['ocdbt_py']:.0f} / {peaks['tensorstore']:.0f}"
            rows.append([title, str(ours), str(theirs), floor, str(ratio), peak])
            records += [
                {
                    "workload": "kv",
                    "title": "key-value engine, fsync",
                    "operation": name,
                    "what": title,
                    "side": side,
                    "seconds": seconds[side],
                    "peak_mib": peaks[side],
                }
                for side in sides
            ]
            print(f"{title}: {ratio}", file=sys.stderr)
    header = ["", "ocdbt_py s", "TensorStore s", "raw files s", "faster by", "peak MiB"]
    print_table(f"Key-value engine, {machine()['cpu']}, fsync on both sides", header, rows)
    write_json(options.json, {"benchmark": "kv", "runs": records})


if __name__ == "__main__":
    main()
