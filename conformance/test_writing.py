"""We write what TensorStore writes: the same trees, with names and times of our own, and it reads them all."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import tensorstore as ts

import ocdbt_py
from conformance.corpus import Case, ocdbt_cases
from conformance.observe import config_of, digest, engine_of, mutations_of, tree_levels
from ocdbt_py.database import open_place
from ocdbt_py.storage.location import Settings, resolve

REPLAYED = [case for case in ocdbt_cases() if case.expected.get("batches") is not None]


def replay(case: Case, directory: Path) -> None:
    expected = case.expected
    options = ocdbt_py.WriteOptions(**expected["open_options"])
    place = resolve(directory, settings=Settings(durable=False))
    config = config_of(expected["create_config"])
    with open_place(place, "x", config=config, write_options=options) as db:
        for batch in expected["batches"]:
            engine_of(db).commit(mutations_of(batch))


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
