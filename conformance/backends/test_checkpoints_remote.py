"""Checkpoints on real servers: whole, replaced whole, read with few requests, and readable by TensorStore and Orbax."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore as ts
from numpy.typing import NDArray

import ocdbt_py
from conformance.backends.recorder import Recorder
from conformance.servers.server import Server
from ocdbt_py.checkpoint.metadata import COMMIT_MARKER
from ocdbt_py.errors import AlreadyExistsError, UncommittedError
from ocdbt_py.storage.location import Place, resolve

pytestmark = [
    # Orbax says so of every JAX array that is restored without a target.
    pytest.mark.filterwarnings("ignore:Sharding info not provided"),
    pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning"),
]

EVERY_SERVER = ("moto", "seaweedfs", "gcs_server", "azurite", "sftp_server", "ftp_server", "webdav_server")
LARGE = np.arange(6 << 20, dtype=np.float32).reshape(24, 256, 1024)


def tree() -> dict[str, Any]:
    """What each kind of leaf and file needs."""
    return {
        "params": {"kernel": LARGE[:2], "bias": np.full(1000, -0.5), "half": jnp.arange(7, dtype=jnp.bfloat16)},
        "zeros": np.zeros((300, 1000)),  # compressed
        "step": 7,
        "name": "a string",
        "none": None,
    }


def assert_same(found: Any, expected: Any) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, dict):
            assert_same(found[name], value)
        elif value is None or isinstance(value, str | int):
            assert found[name] == value
        else:
            assert np.asarray(found[name]).dtype == value.dtype
            assert np.array_equal(found[name], value)


@pytest.fixture(params=EVERY_SERVER)
def server(request: pytest.FixtureRequest) -> Server:
    found: Server = request.getfixturevalue(request.param)
    return found


def place_of(server: Server, url: str) -> Place:
    return resolve(url, storage_options=dict(server.storage_options))


def names(place: Place) -> set[str]:
    return {item.path.removeprefix(f"{place.path}/") for item in place.storage.list(f"{place.path}/", deep=True)}


def downloaded(place: Place, directory: Path) -> Path:
    for item in place.storage.list(f"{place.path}/", deep=True):
        target = directory / item.path.removeprefix(f"{place.path}/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(place.storage.read_many([(item.path, 0, item.size or 0)])[0])
    return directory


def uploaded(directory: Path, server: Server, *, leave_out: str = "") -> str:
    """The files of a directory put on a server by fsspec alone."""
    url = server.url("uploaded")
    fs, root = fsspec.core.url_to_fs(url, **server.storage_options)
    for file in sorted(directory.rglob("*")):
        if file.is_file() and file.name != leave_out:
            target = f"{root}/{file.relative_to(directory)}"
            fs.makedirs(target.rpartition("/")[0], exist_ok=True)
            fs.pipe_file(target, file.read_bytes())
    return url


def in_place(server: Server, url: str, name: str) -> NDArray[Any] | None:
    """An array as TensorStore reads it from the server; None where it has no driver for it."""
    base = server.tensorstore(url)
    if base is None:
        return None
    kvstore = {"driver": "ocdbt", "base": base, "path": f"{name}/"}
    found: NDArray[Any] = ts.open({"driver": "zarr", "kvstore": kvstore}, read=True).result().read().result()
    return found


def test_a_checkpoint_is_saved_read_and_replaced(server: Server, tmp_path: Path) -> None:
    url, options = server.url("checkpoint"), dict(server.storage_options)
    ocdbt_py.save(url, tree(), storage_options=options)
    assert_same(ocdbt_py.restore(url, storage_options=options), tree())
    with pytest.raises(AlreadyExistsError, match="overwrite=True"):
        ocdbt_py.save(url, {"x": 1}, storage_options=options)
    checkpoint = ocdbt_py.Checkpoint(url, storage_options=options)
    assert np.array_equal(checkpoint["params.kernel"][1, 5:9, ::3], LARGE[1, 5:9, ::3])
    for name, array in (("params.kernel", LARGE[:2]), ("zeros", np.zeros((300, 1000)))):
        found = in_place(server, url, name)
        assert found is None or np.array_equal(found, array)

    directory = downloaded(place_of(server, url), tmp_path / "copy")
    for checkpointer in (ocp.PyTreeCheckpointer(), ocp.StandardCheckpointer()):
        assert_same(checkpointer.restore(directory), tree())

    new = {"x": np.arange(10.0), "y": {"z": 2}}
    place = place_of(server, url)
    before = names(place)
    ocdbt_py.save(url, new, overwrite=True, storage_options=options)
    assert_same(ocdbt_py.restore(url, storage_options=options), new)
    after = names(place)
    assert {name for name in after & before if "/" in name} == set()
    assert after - before == {name for name in after if name.startswith("d/")}
    assert_same(ocp.PyTreeCheckpointer().restore(downloaded(place, tmp_path / "new")), new)


def test_a_checkpoint_of_orbax_that_fsspec_copied_there_is_restored(server: Server, tmp_path: Path) -> None:
    expected = {"a": np.arange(1000.0), "b": {"c": np.ones((3, 4), np.float32), "n": 3}}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "orbax", expected)
    url = uploaded(tmp_path / "orbax", server)
    assert_same(ocdbt_py.restore(url, storage_options=dict(server.storage_options)), expected)


def test_a_checkpoint_of_ours_counts_where_it_was_copied_with_or_without_its_marker(
    server: Server, tmp_path: Path
) -> None:
    expected = {"a": np.arange(1000.0), "text": "t"}
    ocdbt_py.save(tmp_path / "ours", expected)
    assert (tmp_path / "ours" / COMMIT_MARKER).exists()
    options = dict(server.storage_options)
    for leave_out in ("", COMMIT_MARKER):
        url = uploaded(tmp_path / "ours", server, leave_out=leave_out)
        assert_same(ocdbt_py.restore(url, storage_options=options), expected)
    place = place_of(server, url)
    if not place.storage.capabilities.rename:
        place.storage.delete(f"{place.path}/_CHECKPOINT_METADATA")
        with pytest.raises(UncommittedError):
            ocdbt_py.restore(url, storage_options=options)


def test_a_checkpoint_behind_a_static_http_server_is_read_there(http_server: Server) -> None:
    url = http_server.url("checkpoint")
    ocdbt_py.save(http_server.local(url), tree())
    assert_same(ocdbt_py.restore(url), tree())
    assert np.array_equal(ocdbt_py.Checkpoint(url)["params.kernel"][1, 3], LARGE[1, 3])
    found = in_place(http_server, url, "params.kernel")
    assert found is not None
    assert np.array_equal(found, LARGE[:2])


# --- requests, as an S3 server sees them


@pytest.fixture
def watched(moto: Server) -> Iterator[tuple[Server, Recorder]]:
    with Recorder(moto.endpoint) as witness:
        yield moto.at(witness.endpoint), witness


def of_data(seen: list[tuple[str, str, int]]) -> list[int]:
    return [moved for method, path, moved in seen if method == "GET" and "/d/" in path]


def test_only_the_ranges_that_are_needed_are_read(watched: tuple[Server, Recorder]) -> None:
    server, witness = watched
    url, options = server.url("checkpoint"), dict(server.storage_options)
    ocdbt_py.save(url, {"large": LARGE, "small": np.arange(100.0)}, compression=None, storage_options=options)
    puts = [moved for method, _, moved in witness.moved() if method == "PUT"]
    assert len(puts) == 7  # claim, data, manifest, checksums, _METADATA, commit time, marker
    assert LARGE.nbytes < sum(puts) < LARGE.nbytes + 20_000

    checkpoint = ocdbt_py.Checkpoint(url, storage_options=options)
    seen = witness.moved()
    assert len(seen) == 3  # names, _METADATA, manifest
    assert sum(moved for _, _, moved in seen) < 10_000

    large = checkpoint["large"]
    witness.moved()  # the tree
    for index, least, requests in (
        (np.s_[3], LARGE[3].nbytes, 1),
        (np.s_[20, 100:110], 10 * 4096, 1),
        (np.s_[::8, 0, :10], 3 * 40, 3),
    ):
        assert np.array_equal(large[index], LARGE[index])
        data = of_data(witness.moved())
        assert len(data) == requests
        assert sum(data) == least

    found = ocdbt_py.restore(url, storage_options=options)
    assert np.array_equal(found["large"], LARGE)
    seen = witness.moved()
    assert len(seen) - len(of_data(seen)) == 3
    assert len(of_data(seen)) <= LARGE.nbytes // (4 << 20) + 2
    assert sum(of_data(seen)) < LARGE.nbytes + 20_000


def test_many_small_leaves_take_few_requests(watched: tuple[Server, Recorder]) -> None:
    server, witness = watched
    url, options = server.url("checkpoint"), dict(server.storage_options)
    leaves = {f"leaf_{i:04}": np.full(1024, i, np.float32) for i in range(2000)}
    ocdbt_py.save(url, leaves, compression=None, storage_options=options)
    assert sum(method == "PUT" for method, _, _ in witness.moved()) == 7
    found = ocdbt_py.restore(url, storage_options=options)
    assert all(np.array_equal(found[name], value) for name, value in leaves.items())
    seen = witness.moved()
    assert len(seen) <= 3 + 1 + 2 + 1  # opening; the tree; 8 MB of values
    assert ocdbt_py.Checkpoint(url, storage_options=options)["leaf_1234"][7] == 1234
    seen = witness.moved()
    assert len(seen) == 5
    assert of_data(seen)[-1] == 4
