"""``check`` finds what TensorStore cannot read, and nothing where TensorStore wrote.

Of the databases damaged by hand, TensorStore's verdict on listing and reading is recorded. It never looks at the
statistics of a tree, nor compares a reference to a version tree node with its content; ``check`` does, and so finds
more. Most of the hand-made trees that are meant to be legal state made-up sizes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tensorstore as ts

import ocdbt_py
from conformance.corpus import Case, corrupt_cases, ocdbt_cases

MADE_UP_STATISTICS = {
    "int3_bound_between",
    "int3_ok",
    "int_child_stats",
    "int_first_key_smaller",
    "int_full_key_65535",
    "int_key_not_sharing_prefix",
    "int_ok",
    "int_one_child",
    "int_sub_prefix",
    "ver_root_stats_wrong",
}
REFERENCES_THAT_DISAGREE = {
    "vt_leaf_missing_gen_1",
    "vt_node_child_time_off",
    "vt_node_num_generations_1",
    "vt_ref_ngen_1",
    "vt_ref_time_wrong",
}
EMPTY_FOR_TENSORSTORE = {"leaf_indirect_missing_file"}
"""It gives an empty value where the file of a value is missing."""

NO_DATABASE = {"num_without_config"}
"""Numbered manifests without ``manifest.ocdbt``: no database to either of us."""


def refused(answer: Any) -> bool:
    """TensorStore met an error other than a version that is not there."""
    if isinstance(answer, dict) and "error" in answer:
        return not any(absent in answer["message"] for absent in ("not present", "OCDBT manifest not found"))
    return isinstance(answer, dict) and any(map(refused, answer.values()))


def unreadable(case: Case) -> bool:
    """By listing and reading the newest version, and by listing versions 1 and 2."""
    return any(map(refused, case.expected["probe"].values()))


@pytest.mark.parametrize("case", ocdbt_cases(), ids=str)
def test_what_tensorstore_wrote_is_clean(case: Case) -> None:
    report = ocdbt_py.check(case.db)
    assert report.damage == ()
    assert report.complete
    assert report.unreadable == ()
    assert report.versions == len(case.expected["versions"])
    assert report.keys == case.expected["versions"][-1]["num_keys"]
    assert {note.kind for note in report.notes} <= {"unused-bytes", "other-database"}


@pytest.mark.parametrize("case", [case for case in corrupt_cases() if case.name not in NO_DATABASE], ids=str)
def test_what_tensorstore_cannot_read_is_damage_and_little_else(case: Case) -> None:
    report = ocdbt_py.check(case.db)
    assert str(report).count("damage: ") == len(report.damage)
    json.loads(report.to_json())
    kinds = {finding.kind for finding in report.damage}
    if unreadable(case):
        assert kinds
    elif case.name in MADE_UP_STATISTICS:
        assert kinds == {"statistics"}
    elif case.name in REFERENCES_THAT_DISAGREE:
        assert kinds == {"version-node-reference"}
    elif case.name in EMPTY_FOR_TENSORSTORE:
        assert kinds == {"file-missing"}
    else:
        assert kinds == set()


@pytest.mark.parametrize("name", sorted(NO_DATABASE))
def test_without_a_manifest_there_is_no_database(name: str) -> None:
    (case,) = (case for case in corrupt_cases() if case.name == name)
    with pytest.raises(ocdbt_py.NotFoundError):
        ocdbt_py.check(case.db)


def test_what_tensorstore_reads_is_what_the_check_calls_readable(tmp_path: Path) -> None:
    """Every file of a small database is removed, cut and flipped, one at a time, and every version is read whole."""
    config = {"max_decoded_node_bytes": 200, "max_inline_value_bytes": 10, "version_tree_arity_log2": 1}
    spec = {"driver": "ocdbt", "base": f"file://{tmp_path}/db/", "config": {**config, "compression": None}}
    store = ts.KvStore.open(spec).result()
    for i in range(6):
        store[f"{i}"] = b"%d" % i * 30
        store["same"] = b"%d" % i
    db = tmp_path / "db"
    for file in sorted((db / "d").iterdir()):
        good = file.read_bytes()
        for damage in (None, good[: len(good) // 2], bytes([good[0] ^ 255]) + good[1:-5] + b"\xff" + good[-4:]):
            file.unlink()
            if damage is not None:
                file.write_bytes(damage)
            context = ts.Context()
            failed = [v for v in range(13, 0, -1) if not readable({**spec, "version": v}, context)]
            report = ocdbt_py.check(db)
            assert [v for v in failed if v not in report.unreadable] == [v for v in failed if not is_known(db, v)]
            assert not failed or not report.ok
            file.write_bytes(good)
    assert ocdbt_py.check(db).ok


def written_by_tensorstore(db: Path, count: int, **options: Any) -> Any:
    """A database of one commit for each key, and TensorStore's handle on it."""
    store = ts.KvStore.open({"driver": "ocdbt", "base": f"file://{db}/", **options}).result()
    for i in range(count):
        with ts.Transaction(atomic=True) as transaction:
            store.with_transaction(transaction)[f"key{i}"] = b"%d" % i * 20
    return store


def test_transactions_in_a_tree_of_single_keys_are_clean(tmp_path: Path) -> None:
    written_by_tensorstore(tmp_path, 5, config={"version_tree_arity_log2": 1, "max_decoded_node_bytes": 1})
    report = ocdbt_py.check(tmp_path)
    assert report.damage == ()
    assert (report.versions, report.keys) == (6, 5)


def test_junk_is_found_wherever_it_is(tmp_path: Path) -> None:
    with pytest.raises(ocdbt_py.NotFoundError):
        ocdbt_py.check(tmp_path)
    written_by_tensorstore(tmp_path, 1)
    (file,) = (tmp_path / "d").iterdir()
    for damaged, kind in ((file, "btree-node"), (tmp_path / "manifest.ocdbt", "manifest")):
        good = damaged.read_bytes()
        damaged.write_bytes((b"junk" * len(good))[: len(good)])
        assert [finding.kind for finding in ocdbt_py.check(tmp_path).damage] == [kind]
        damaged.write_bytes(b"invalid data")
        (finding,) = ocdbt_py.check(tmp_path).damage
        assert finding.kind == ("manifest" if kind == "manifest" else "file-truncated")
        damaged.write_bytes(good)


def test_an_emptied_file_of_values_is_too_short(tmp_path: Path) -> None:
    config = {"max_inline_value_bytes": 0}
    store = written_by_tensorstore(tmp_path, 1, config=config, target_data_file_size=10)
    dumped = ts.ocdbt.dump(store.base).result()
    leaf = ts.ocdbt.dump(store.base, dumped["versions"][-1]["root"]["location"]).result()
    name = leaf["entries"][0]["indirect_value"].split(":")[2]
    (tmp_path / name).write_bytes(b"")
    (finding,) = ocdbt_py.check(tmp_path).damage
    assert (finding.kind, finding.path, finding.key) == ("file-truncated", name, b"key0")


def test_what_only_versions_that_are_gone_refer_to_is_unused(tmp_path: Path) -> None:
    store = written_by_tensorstore(tmp_path, 2, config={"max_inline_value_bytes": 0})
    store["key0"] = b"new" * 10
    assert ocdbt_py.check(tmp_path).notes == ()
    dumped = ts.ocdbt.dump(store.base).result()
    dumped["versions"] = dumped["versions"][-1:]
    (tmp_path / "manifest.ocdbt").write_bytes(ts.ocdbt.undump_manifest(dumped))
    report = ocdbt_py.check(tmp_path)
    assert report.ok
    assert {note.kind for note in report.notes} == {"orphan-file", "unused-bytes"}
    stored = sum(file.stat().st_size for file in (tmp_path / "d").iterdir())
    (version,) = ocdbt_py.open(tmp_path).versions()
    unused = sum(note.nbytes or 0 for note in report.notes)
    assert stored - unused == version.num_tree_bytes + version.num_indirect_value_bytes


def is_known(db: Path, generation: int) -> bool:
    """Whether the version tree still leads to a version."""
    try:
        ocdbt_py.open(db, version=generation)
    except ocdbt_py.CorruptDataError:
        return False
    return True


def readable(spec: dict[str, Any], context: ts.Context) -> bool:
    """To TensorStore; an empty value is one whose file is missing, since none was written."""
    try:
        store = ts.KvStore.open(spec, context=context).result()
        values = [store.read(key) for key in store.list().result()]
        return all(value.result().value for value in values)
    except ValueError:
        return False
