"""One process of a ``jax.distributed`` job: ``python -m conformance.jax_job INDEX COUNT PORT DIRECTORY``.

All of them run the same scenarios in the same order; each writes ``DIRECTORY/result.INDEX.json``: scenario -> what went
wrong with it, or "". The last scenario kills the last process.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import NDArray

from ocdbt_py.backends import LocalStorage
from ocdbt_py.checkpoint.file_processes import FileProcesses
from ocdbt_py.checkpoint.restore import restore, restore_place
from ocdbt_py.checkpoint.save import save
from ocdbt_py.errors import OcdbtError, StructureError, UnsupportedError, WaitTimeoutError
from ocdbt_py.storage.location import Place, Settings
from ocdbt_py.testing.faulty import FaultyStorage

SHORT_WAIT = 5.0
"""Seconds, where somebody is known to be missing."""

ROWS, COLUMNS = 32, 16384

P: Any = PartitionSpec  # JAX has no types for these two
ShapeDtypeStruct: Any = jax.ShapeDtypeStruct

Arrays = dict[str, NDArray[Any]]
Tree = dict[str, Any]


class Told(Exception):
    """An error of the user's, in one process."""


class At:
    """A progress callback that does something when the first array has been encoded."""

    def __init__(self, act: Callable[[], None]) -> None:
        self._act = act

    def set_size(self, size: int) -> None:
        pass

    def relative_update(self, count: int) -> None:
        self._act()


class Job:
    def __init__(self, index: int, count: int, directory: Path) -> None:
        self.index, self.count, self.directory = index, count, directory
        devices = np.array(jax.devices())
        self.mesh = Mesh(devices.reshape(count, -1), ("x", "y"))  # a row of it for each process
        self.turned = Mesh(devices.reshape(count, -1).T, ("y", "x"))
        random = np.random.default_rng(7)
        self.arrays: Arrays = {
            name: random.integers(0, 1 << 30, (ROWS, COLUMNS)).astype(dtype)
            for name, dtype in (("xy", "int32"), ("rows", "float32"), ("columns", "float32"), ("all", "float32"))
        } | {"bias": random.normal(size=6).astype("float32"), "step": np.array(12, "int32")}
        self.specs = {
            "xy": P("x", "y"),
            "rows": P("x"),  # replicated within each process
            "columns": P(None, "y"),  # replicated over the processes, and long enough to share the writing
            "all": P(),
            "bias": P(),  # replicated over the processes, and short
            "step": P(),
        }

    def tree(self) -> Tree:
        """Arrays that lie in all processes, and leaves that each has for itself: those of process 0 count."""
        spread = {
            name: self.spread(value, NamedSharding(self.mesh, self.specs[name])) for name, value in self.arrays.items()
        }
        return {**spread, "numpy": np.arange(5) + self.index, "number": 1.5 + self.index, "text": f"from {self.index}"}

    def spread(self, value: NDArray[Any], sharding: Any) -> Any:
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    def targets(self) -> list[Tree]:
        """The shardings it was saved with, and others."""
        others = {
            "xy": NamedSharding(self.turned, P("x", "y")),
            "rows": NamedSharding(self.mesh, P("y", "x")),
            "columns": NamedSharding(self.mesh, P(None, ("x", "y"))),
            "all": NamedSharding(self.turned, P("y")),
            "bias": NamedSharding(self.mesh, P()),
            "step": NamedSharding(self.turned, P()),
        }
        same = {name: NamedSharding(self.mesh, spec) for name, spec in self.specs.items()}
        return [
            {
                name: ShapeDtypeStruct(value.shape, value.dtype, sharding=shardings[name])
                for name, value in self.arrays.items()
            }
            for shardings in (same, others)
        ]

    def assert_right(self, found: Tree, target: Tree) -> None:
        for name, wanted in target.items():
            array, value = found[name], self.arrays[name]
            assert array.sharding == wanted.sharding, name
            assert (array.shape, array.dtype) == (value.shape, value.dtype), name
            assert len(array.addressable_shards) == jax.local_device_count(), name
            for shard in array.addressable_shards:
                assert np.asarray(shard.data).tobytes() == value[shard.index].tobytes(), (name, shard.index)

    def assert_intact(self) -> None:
        """What ``saved`` holds is what was saved there first."""
        found = restore(self.directory / "ours")
        assert set(found) == {*self.arrays, "numpy", "number", "text"}
        for name, value in self.arrays.items():
            assert found[name].tobytes() == value.tobytes(), name
        assert (found["numpy"].tolist(), found["number"], found["text"]) == ([0, 1, 2, 3, 4], 1.5, "from 0")

    # --- scenarios, in this order

    def all_save_and_each_writes_its_own(self) -> None:
        path = self.directory / "ours"
        save(path, self.tree(), compression=None)
        self.assert_intact()
        assert {f"ocdbt.process_{index}" for index in range(self.count)} < {each.name for each in path.iterdir()}
        assert len(list((path / "array_metadatas").iterdir())) == self.count
        whole = self.keys(path)
        parts = [self.keys(path / f"ocdbt.process_{index}") for index in range(self.count)]
        assert sorted(key for part in parts for key in part) == whole  # none twice
        assert not any(key.endswith(b".zarray") for part in parts[1:] for key in part)
        size = sum(value.nbytes for value in self.arrays.values())
        mine = sum(each.stat().st_size for each in (path / f"ocdbt.process_{self.index}" / "d").iterdir())
        assert mine < 1.01 * size / self.count + 10_000, mine  # of arrays that are in every process, too

    def keys(self, path: Path) -> list[bytes]:
        store = ts.KvStore.open({"driver": "ocdbt", "base": {"driver": "file", "path": f"{path}/"}}).result()
        return sorted(store.list().result())

    def tensorstore_reads_the_merged_arrays(self) -> None:
        for name, value in self.arrays.items():
            base = {"driver": "file", "path": f"{self.directory / 'ours'}/"}
            spec = {"driver": "zarr", "kvstore": {"driver": "ocdbt", "base": base, "path": f"{name}/"}}
            assert ts.open(spec).result().read().result().tobytes() == value.tobytes(), name

    def orbax_restores_it_on_the_same_shardings_and_on_others(self) -> None:
        own = {"numpy": np.zeros(5, int), "number": 0.0, "text": ""}
        for target in self.targets():
            arguments = ocp.checkpoint_utils.construct_restore_args(target | own)
            found = ocp.PyTreeCheckpointer().restore(self.directory / "ours", item=target | own, restore_args=arguments)
            self.assert_right(found, target)
            assert (found["numpy"].tolist(), found["number"], found["text"]) == ([0, 1, 2, 3, 4], 1.5, "from 0")

    def each_process_reads_its_own_shards_alone(self) -> None:
        path = str(self.directory / "ours")
        for target in self.targets():
            storage = FaultyStorage(LocalStorage(Settings()))
            found = restore_place(Place(storage, path, path), target, strict=False)
            self.assert_right(found, target)
            parts = {
                (name, str(shard.index)): shard.data.nbytes
                for name, array in found.items()
                for shard in array.addressable_shards
            }
            data = sum(size for file, size in storage.bytes_read.items() if "/ocdbt.process_" in file)
            assert data <= sum(parts.values()), (data, parts)  # short values stand in the tree

    def what_orbax_saved_is_restored(self) -> None:
        path = self.directory / "theirs"
        tree = {name: value for name, value in self.tree().items() if name not in ("text", "number")}
        ocp.PyTreeCheckpointer().save(path, tree)
        for target in self.targets():
            self.assert_right(restore(path, {**target, "numpy": ...}), target)
        found = restore(path)
        assert all(found[name].tobytes() == value.tobytes() for name, value in self.arrays.items())

    def a_dtype_is_cast_and_keys_stay_keys(self) -> None:
        sharding = NamedSharding(self.mesh, P("x"))
        keys = jax.random.split(jax.random.key(5), 8)
        data = np.asarray(jax.random.key_data(keys))
        spread = jax.random.wrap_key_data(self.spread(data, sharding))
        rows = self.spread(self.arrays["rows"], sharding)
        save(self.directory / "keys", {"keys": spread, "rows": rows}, zarr_format=3)
        wanted = ShapeDtypeStruct(rows.shape, "bfloat16", sharding=NamedSharding(self.turned, P("x")))
        found = restore(self.directory / "keys", {"keys": spread, "rows": wanted})
        for shard in jax.random.key_data(found["keys"]).addressable_shards:
            assert np.array_equal(np.asarray(shard.data), data[shard.index])
        assert found["keys"].dtype == keys.dtype
        for shard in found["rows"].addressable_shards:
            assert np.array_equal(np.asarray(shard.data), self.arrays["rows"][shard.index].astype(wanted.dtype))

    def compression_is_decided_once_for_all(self) -> None:
        # noise in the rows of process 0, zeros elsewhere: each for itself would decide otherwise
        value = np.zeros((ROWS, COLUMNS), "float32")
        value[: ROWS // self.count] = self.arrays["rows"][: ROWS // self.count]
        for name, turned in (("noise first", value), ("zeros first", value[::-1].copy())):
            array = self.spread(turned, NamedSharding(self.mesh, P("x")))
            save(self.directory / name, {"x": array})
            found = restore(self.directory / name, {"x": array})["x"]
            for shard in found.addressable_shards:
                assert np.array_equal(np.asarray(shard.data), turned[shard.index])

    def a_shared_directory_serves_as_well(self) -> None:
        path = self.directory / "by files"
        with FileProcesses(self.directory / "meeting", self.index, self.count) as processes:
            save(path, self.tree(), processes=processes)
            save(path, self.tree(), processes=processes, overwrite=True)
        target = self.targets()[1]
        self.assert_right(restore(path, target, strict=False), target)

    def a_checkpoint_is_replaced_by_all_together(self) -> None:
        path = self.directory / "replaced"
        save(path, self.tree(), overwrite=True)
        save(path, {"x": self.tree()["xy"], "new": np.arange(3)}, overwrite=True)
        found = restore(path)
        assert set(found) == {"x", "new"}
        assert found["x"].tobytes() == self.arrays["xy"].tobytes()

    def the_failure_of_one_is_everybodys_at_once(self) -> None:
        def fail() -> None:
            if self.index == 1:
                raise Told("the disk of this one is full")

        tree = self.tree()
        if self.index == 1:
            self.assert_raises(Told, lambda: save(self.directory / "ours", tree, overwrite=True, progress=At(fail)))
        else:
            error = self.assert_raises(OcdbtError, lambda: save(self.directory / "ours", tree, overwrite=True))
            said = f"Process 1 of {self.count} failed: Told: the disk of this one is full"
            assert str(error) == said, error
        self.assert_intact()
        bad = tree | {"numpy": np.array(["no numbers"])} if self.index == 1 else tree
        error = self.assert_raises(UnsupportedError, lambda: save(self.directory / "ours", bad, overwrite=True))
        assert "'numpy'" in str(error)
        assert ("Process 1" in str(error)) == (self.index != 1)
        self.assert_intact()

    def trees_that_differ_are_refused_by_name(self) -> None:
        tree = self.tree()
        if self.index == 1:
            tree["only here"] = 1
        error = self.assert_raises(StructureError, lambda: save(self.directory / "ours", tree, overwrite=True))
        assert "process 1, not 0: 'only here': scalar" in str(error), error
        self.assert_intact()

    def a_killed_process_is_named_and_the_old_checkpoint_stays(self) -> None:
        last = self.count - 1
        if self.index == last:
            self.report("killed")

        def die() -> None:
            if self.index == last:
                os._exit(9)

        tree = self.tree()
        error = self.assert_raises(
            WaitTimeoutError,
            lambda: save(self.directory / "ours", tree, overwrite=True, wait_timeout=SHORT_WAIT, progress=At(die)),
        )
        assert f"process {last} of {self.count}" in str(error), error
        self.assert_intact()

    SCENARIOS = (
        all_save_and_each_writes_its_own,
        tensorstore_reads_the_merged_arrays,
        orbax_restores_it_on_the_same_shardings_and_on_others,
        each_process_reads_its_own_shards_alone,
        what_orbax_saved_is_restored,
        a_dtype_is_cast_and_keys_stay_keys,
        compression_is_decided_once_for_all,
        a_shared_directory_serves_as_well,
        a_checkpoint_is_replaced_by_all_together,
        the_failure_of_one_is_everybodys_at_once,
        trees_that_differ_are_refused_by_name,
        a_killed_process_is_named_and_the_old_checkpoint_stays,
    )

    # --- running them

    def assert_raises(self, kind: type[BaseException], work: Callable[[], None]) -> BaseException:
        try:
            work()
        except kind as error:
            return error
        raise AssertionError(f"no {kind.__name__} was raised")

    def run(self) -> None:
        self.results: dict[str, str] = {}
        for scenario in self.SCENARIOS:
            try:
                scenario(self)
                self.results[scenario.__name__] = ""
            except BaseException:
                self.results[scenario.__name__] = traceback.format_exc()
        self.report("")

    def report(self, last: str) -> None:
        names = [scenario.__name__ for scenario in self.SCENARIOS]
        results = {name: self.results.get(name, last) for name in names}
        (self.directory / f"result.{self.index}.json").write_text(json.dumps(results))


def main() -> None:
    index, count, port = map(int, sys.argv[1:4])
    warnings.simplefilter("ignore")
    jax.distributed.initialize(f"127.0.0.1:{port}", count, index, initialization_timeout=60)
    Job(index, count, Path(sys.argv[4])).run()
    os._exit(0)  # JAX would wait at exit for the process that was killed


if __name__ == "__main__":
    main()
