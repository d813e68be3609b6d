"""We write what TensorStore writes: the same trees, for a first commit the same bytes, and it reads them all."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import tensorstore as ts
import zstandard

import ocdbt_py
from conformance.corpus import Case, ocdbt_cases
from conformance.observe import config_of, digest, engine_of, mutations_of, tree_levels
from ocdbt_py.database import open_place
from ocdbt_py.engine.commit import Sources
from ocdbt_py.format.datafile import Location
from ocdbt_py.storage.location import Settings, resolve

REPLAYED = [case for case in ocdbt_cases() if case.expected.get("batches") is not None]
SINGLE = [case for case in REPLAYED if len(case.expected["batches"]) == 1]
SAME_ZSTD = zstandard.ZSTD_VERSION == (1, 5, 7)
"""The release inside the TensorStore that wrote the corpus; another one may compress to other bytes."""


def replay(case: Case, directory: Path, sources: Sources | None = None) -> None:
    expected = case.expected
    options = ocdbt_py.WriteOptions(**expected["open_options"])
    place = resolve(directory, settings=Settings(durable=False))
    config = config_of(expected["create_config"])
    with open_place(place, "x", config=config, write_options=options, sources=sources) as db:
        for batch in expected["batches"]:
            engine_of(db).commit(mutations_of(batch))


def files_of(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def names_in_order_of_use(case: Case) -> list[str]:
    """The data files of a first commit: values in key order, leaves from left to right, each higher level."""
    with ocdbt_py.open(case.db) as db:
        engine = engine_of(db)
        tree = engine.latest()
        locations: list[Location] = []
        for leaf, low, high in tree.scan():
            values = (leaf.value(i) for i in range(low, high))
            locations += [value for value in values if isinstance(value, Location)]
        for level in reversed(tree_levels(engine, tree)):
            locations += [location for _, _, location in level]
    return [name[-32:] for name in dict.fromkeys(location.file.path.decode() for location in locations)]


@pytest.mark.parametrize("case", REPLAYED, ids=lambda case: case.name)
def test_the_same_batches_give_the_same_trees_and_contents(case: Case, tmp_path: Path) -> None:
    replay(case, tmp_path / "db")
    with ocdbt_py.open(tmp_path / "db") as db:
        engine = engine_of(db)
        levels = tree_levels(engine, engine.latest())
        found = [[[entries, key.hex()] for entries, key, _ in level] for level in levels]
        assert found == [[[entries, key] for entries, key, _ in level] for level in case.expected["tree_levels"]]
        expected = case.expected["versions"]
        assert [v.generation for v in db.versions()] == [v["generation"] for v in reversed(expected)]
        for version in expected:
            old = db.at(version["generation"])
            assert old.version.num_keys == version["num_keys"]
            assert old.version.num_indirect_value_bytes == version["num_indirect_value_bytes"]
            if "contents_digest" in version:
                assert digest(old.items()) == version["contents_digest"]
        references = [
            (r["height"], r["generation_number"], r["num_generations"])
            for r in case.expected["manifest_version_tree_nodes"]
        ]
        manifest = engine.current().manifest
        assert manifest is not None
        assert [(r.height, r.generation, r.num_generations) for r in manifest.version_nodes] == references


@pytest.mark.parametrize("case", SINGLE, ids=lambda case: case.name)
def test_a_first_commit_is_byte_identical_given_the_same_names_and_times(case: Case, tmp_path: Path) -> None:
    if case.expected["config"]["compression"] is not None and not SAME_ZSTD:
        pytest.skip("another zstd release than the one inside TensorStore compresses to other bytes")
    times = iter([version["commit_time"] for version in case.expected["versions"]])
    names = iter(names_in_order_of_use(case))
    replay(case, tmp_path / "db", Sources(clock=lambda: next(times), names=lambda: next(names)))
    assert files_of(tmp_path / "db") == files_of(case.db)


def test_the_corpus_holds_33_first_commits() -> None:
    assert len(SINGLE) == 33


@pytest.mark.parametrize("case", REPLAYED, ids=lambda case: case.name)
def test_tensorstore_reads_every_version_that_we_wrote(case: Case, tmp_path: Path) -> None:
    replay(case, tmp_path / "db")
    base = {"driver": "file", "path": f"{tmp_path / 'db'}/"}
    context = ts.Context()
    versions = case.expected["versions"]
    checked = [v for v in versions if "contents_digest" in v]
    for version in itertools.islice(checked, max(0, len(checked) - 12), None):
        spec = {"driver": "ocdbt", "base": base, "version": version["generation"]}
        store = ts.KvStore.open(spec, context=context).result()
        keys = sorted(store.list().result())
        values = [store.read(key) for key in keys]
        pairs = ((key, value.result().value) for key, value in zip(keys, values, strict=True))
        assert digest(pairs) == version["contents_digest"]
