"""Checkpoints on storage servers: ``python -m benchmarks.backends [--server NAME …] [--rounds N] [--json FILE]``.

Every server is a real one (or the strict stand-in for Google's), started here on loopback, so what is measured is the
work of the client and of a server on the same machine, without a network's latency. Three sides take turns:

* ``ocdbt_py``: save and restore with its defaults, to NumPy arrays.
* ``TensorStore``: the same arrays through its own driver for the store (S3 and GCS have one), as Orbax uses it: zarr
  arrays with zstd in the OCDBT database of the process, all of a save in one transaction, up to a hundred arrays on
  their way at once; then that database merged into the checkpoint's by reference.
* ``copy``: fsspec's ``put`` and ``get`` of the files of the same checkpoint, which is what moving the bytes costs.

Workloads: 5,000 arrays of 4 KiB; 50 arrays of 20 MB; and one array of 4 KiB out of 50,000, from opening the checkpoint
to having it. Operations run in fresh processes; restored arrays are compared with the input, outside the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import PrimedMemory, Ratio, Times, machine, print_table, run_child, timed, write_json
from conformance.servers import kinds
from conformance.servers.server import Server

# Read when gcsfs is imported: it would otherwise look for Google's control service on the stand-in, for minutes.
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"

SERVERS = {
    "seaweedfs": kinds.start_seaweedfs,
    "moto": kinds.start_moto,
    "gcs": kinds.start_gcs,
    "azurite": kinds.start_azurite,
    "sftp": kinds.start_sftp,
    "ftp": kinds.start_ftp,
}
CLIENTS = ("fsspec", "s3fs", "gcsfs", "adlfs", "paramiko")
SIDES = ("ocdbt_py", "TensorStore", "copy")
AT_ONCE = 100
PART = "ocdbt.process_0/"


@dataclass(frozen=True, slots=True)
class Workload:
    title: str
    arrays: int
    elements: int
    operations: tuple[str, ...]


def workloads(megabytes: int) -> dict[str, Workload]:
    return {
        "small": Workload("5,000 x 4 KiB", 5000, 1024, ("save", "restore")),
        "large": Workload(f"50 x {megabytes / 50:g} MB", 50, megabytes * 1_000_000 // 200, ("save", "restore")),
        "one": Workload("one of 50,000 x 4 KiB", 50_000, 1024, ("read",)),
    }


# --- the child: one side, one operation


def make_tree(workload: Workload) -> dict[str, np.ndarray[Any, Any]]:
    values = np.random.default_rng(0).standard_normal((workload.arrays, workload.elements), dtype=np.float32)
    return {f"layer_{number:05}.weight": value for number, value in enumerate(values)}


def ours(server: Server, url: str, tree: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    import ocdbt_py
    from ocdbt_py.storage.location import resolve

    # names load on first use, and so do the packages of a store; that is importing, not saving
    save, restore, checkpoint = ocdbt_py.save, ocdbt_py.restore, ocdbt_py.Checkpoint
    options = dict(server.storage_options)
    resolve(url, storage_options=options)
    nested = {name: {"weight": value} for name, value in ((key.partition(".")[0], tree[key]) for key in tree)}
    names = list(tree)

    def read_all() -> dict[str, Any]:
        restored = restore(url, storage_options=options)
        return {f"{name}.weight": below["weight"] for name, below in restored.items()}

    def read_one() -> Any:
        return np.asarray(checkpoint(url, storage_options=options)[names[len(names) // 2]])

    return {"save": lambda: save(url, nested, storage_options=options), "restore": read_all, "read": read_one}


def tensorstores(server: Server, url: str, tree: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    import asyncio

    import tensorstore as ts

    base = server.tensorstore(url)
    names = list(tree)
    context = ts.Context({"cache_pool": {"total_bytes_limit": 0}, "data_copy_concurrency": {"limit": 16}})

    def database(below: str = "") -> dict[str, Any]:
        assert base is not None
        config = {"max_inline_value_bytes": 1024, "max_decoded_node_bytes": 100_000_000}
        return {"driver": "ocdbt", "base": {**base, "path": base["path"] + below}, "config": config}

    def spec(name: str, below: str = "") -> dict[str, Any]:
        kvstore = {**database(below), "path": f"{name}/"}
        return {"driver": "zarr", "kvstore": kvstore, "recheck_cached_metadata": False, "recheck_cached_data": False}

    async def gathered(one: Callable[[str], Any]) -> list[Any]:
        slots = asyncio.Semaphore(AT_ONCE)

        async def bounded(name: str) -> Any:
            async with slots:
                return await one(name)

        return await asyncio.gather(*[bounded(name) for name in names])

    async def save() -> None:
        transaction = ts.Transaction(atomic=True)

        async def one(name: str) -> None:
            value = tree[name]
            metadata = {
                "shape": list(value.shape),
                "chunks": list(value.shape),
                "dtype": value.dtype.str,
                "compressor": {"id": "zstd"},
            }
            opened = await ts.open(
                {**spec(name, PART), "metadata": metadata},
                create=True,
                open=True,
                context=context,
                transaction=transaction,
            )
            await opened.write(value)

        await gathered(one)
        await transaction.commit_async()
        part = await ts.KvStore.open(database(PART), context=context)
        merged = await ts.KvStore.open(database(), context=context)
        transaction = ts.Transaction(atomic=True)
        await part.experimental_copy_range_to(merged.with_transaction(transaction))
        await transaction.commit_async()

    async def load(name: str) -> Any:
        return await (await ts.open(spec(name), open=True, context=context)).read()

    def read_all() -> dict[str, Any]:
        return dict(zip(names, asyncio.run(gathered(load)), strict=True))

    def read_one() -> Any:
        return asyncio.run(load(names[len(names) // 2]))

    return {"save": lambda: asyncio.run(save()), "restore": read_all, "read": read_one}


def copying(server: Server, url: str, files: Path) -> dict[str, Callable[[], Any]]:
    import fsspec
    from fsspec.asyn import AsyncFileSystem

    fs, path = fsspec.core.url_to_fs(url, **server.storage_options)

    def get() -> None:
        fs.get(path, str(copied_back(files)), recursive=True)

    def put() -> None:
        if isinstance(fs, AsyncFileSystem):
            fs.put(str(files), path, recursive=True)
            return
        # not every other filesystem puts directories
        below = [each.relative_to(files) for each in sorted(files.rglob("*"))]
        for each in (Path(), *below):
            if (files / each).is_dir():
                fs.makedirs(f"{path}/{each}".removesuffix("/."), exist_ok=True)
        for each in below:
            if (files / each).is_file():
                fs.put_file(str(files / each), f"{path}/{each}")

    return {"save": put, "restore": get}


def copied_back(files: Path) -> Path:
    """Where the copy of the files on the server goes. It is removed outside the clock: to write where a file was just
    deleted is to get its memory, which the host need not supply.
    """
    return files.parent / "copied back"


def child(side: str, operation: str, workload: Workload, server: Server, url: str, files: Path) -> None:
    tree = make_tree(workload)
    if side == "copy":
        operations = copying(server, url, files)
    else:
        operations = (ours if side == "ocdbt_py" else tensorstores)(server, url, tree)
    seconds, result = timed(operations[operation])
    if side != "copy" and operation == "restore":
        assert result.keys() == tree.keys()
        assert all(np.array_equal(result[name], tree[name]) for name in tree), f"{side} restored other values"
    if operation == "read":
        assert np.array_equal(result, tree[list(tree)[len(tree) // 2]]), f"{side} read another value"
    print(json.dumps({"seconds": seconds}), flush=True)
    os._exit(0)  # the client libraries' own ways to end are not what is measured


# --- the driver


class Bench:
    """One server, and what is measured on it."""

    def __init__(self, server: Server, directory: Path, memory: PrimedMemory, megabytes: int, rounds: int) -> None:
        self._server = server
        self._directory = directory
        self._memory = memory
        self._megabytes = megabytes
        self._rounds = rounds
        self._pickled = directory / "server.pickle"
        self._pickled.write_bytes(pickle.dumps(server))

    def measure(self, name: str, workload: Workload) -> dict[tuple[str, str], Times]:
        """Seconds by operation and side."""
        files = self._directory / name / "files"
        if "save" in workload.operations:
            import ocdbt_py

            files.parent.mkdir()
            ocdbt_py.save(files, make_tree(workload), durable=False)
        sides = [side for side in SIDES if side != "TensorStore" or self._server.driver is not None]
        seconds: dict[tuple[str, str], list[float]] = {}
        urls: dict[str, str] = {}
        if "save" not in workload.operations:
            sides.remove("copy")
            for side in sides:
                urls[side] = self._server.url(f"bench-{name}")
                self._run(side, "save", name, urls[side], files)
        for number in range(self._rounds + 1):  # the first round fills the caches of all sides and does not count
            for side in sides:
                if "save" in workload.operations:
                    urls[side] = self._server.url(f"bench-{name}")
                for operation in workload.operations:
                    taken = self._run(side, operation, name, urls[side], files)
                    if number:
                        seconds.setdefault((operation, side), []).append(taken)
                if "save" in workload.operations:
                    self._remove(urls[side])
                print(f"{self._server.name}, {workload.title}, round {number}: {side}", file=sys.stderr)
        for url in () if "save" in workload.operations else urls.values():
            self._remove(url)
        return {key: Times(tuple(taken)) for key, taken in seconds.items()}

    def _run(self, side: str, operation: str, workload: str, url: str, files: Path) -> float:
        arguments = [side, operation, workload, str(self._megabytes), str(self._pickled), url, str(files)]
        os.sync()  # else the disk is still busy with what the operation before has left it, of which saves leave most
        answer = run_child("benchmarks.backends", ["--child", *arguments], self._memory)
        shutil.rmtree(copied_back(files), ignore_errors=True)
        return float(answer["seconds"])

    def _remove(self, url: str) -> None:
        import fsspec

        fs, path = fsspec.core.url_to_fs(url, **self._server.storage_options)
        fs.rm(path, recursive=True)


def rows_of(server: str, workload: Workload, found: dict[tuple[str, str], Times]) -> list[list[str]]:
    rows = []
    for operation in workload.operations:
        mine = found[operation, "ocdbt_py"]
        for side in SIDES:
            taken = found.get((operation, side))
            if taken is not None:
                ratio = "" if side == "ocdbt_py" else str(Ratio.between(taken, mine))
                rows.append([f"{server}  {workload.title}  {operation:<7}  {side}", str(taken), ratio])
    return rows


def records_of(server: str, workload: str, found: dict[tuple[str, str], Times]) -> list[dict[str, Any]]:
    return [
        {
            "server": server,
            "workload": workload,
            "operation": operation,
            "side": side,
            "seconds": taken.seconds,
            "ratio": asdict(Ratio.between(taken, found[operation, "ocdbt_py"])),
        }
        for (operation, side), taken in found.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--server", choices=tuple(SERVERS), action="append", help="only this one; repeatable")
    parser.add_argument("--workload", choices=tuple(workloads(1)), action="append", help="only this one; repeatable")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--megabytes", type=int, default=1000, help="of the 50 large arrays together")
    parser.add_argument("--directory", help="for the servers' files (default: a temporary directory)")
    parser.add_argument("--prime-mib", type=int, default=1200, metavar="MIB", help="touched memory to give back")
    parser.add_argument("--prime-small-mib", type=int, default=2200, metavar="MIB", help="the same, in small pages")
    parser.add_argument("--json", metavar="FILE", help="write the figures to FILE too")
    parser.add_argument("--child", nargs=7, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        side, operation, workload, megabytes, pickled, url, files = arguments.child
        server: Server = pickle.loads(Path(pickled).read_bytes())
        os.environ.update(server.environ)
        child(side, operation, workloads(int(megabytes))[workload], server, url, Path(files))
        return
    memory = PrimedMemory(arguments.prime_mib, arguments.prime_small_mib)
    rows: list[list[str]] = []
    records: list[dict[str, Any]] = []
    for name in arguments.server or SERVERS:
        with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
            try:
                started = SERVERS[name](Path(directory) / "server")
            except kinds.Absent as error:
                print(f"{name} is left out: {error}", file=sys.stderr)
                continue
            try:
                bench = Bench(started.server, Path(directory), memory, arguments.megabytes, arguments.rounds)
                for key, workload in workloads(arguments.megabytes).items():
                    if arguments.workload and key not in arguments.workload:
                        continue
                    found = bench.measure(key, workload)
                    rows += rows_of(name, workload, found)
                    records += records_of(name, key, found)
            finally:
                started.stop()
    print_table(
        f"Checkpoints on storage servers on loopback, fresh processes in turn, {arguments.rounds} rounds "
        f"({machine()['cpu']}, {machine()['cores']} cores)",
        ["server, arrays, operation, side", "seconds, median [min..max]", "ours is faster [min..max]"],
        rows,
    )
    described = machine()
    described["packages"] |= {name: metadata.version(name) for name in CLIENTS}
    write_json(arguments.json, {"benchmark": "backends", "machine": described, "runs": records})


if __name__ == "__main__":
    main()
