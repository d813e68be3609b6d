"""Each kind of finding, provoked in a small database; and what the check must not do."""

from __future__ import annotations

import html
import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ocdbt_py
from ocdbt_py.care.check import check, check_place
from ocdbt_py.care.files import Files
from ocdbt_py.care.report import DAMAGE, NOTES, Finding, Report
from ocdbt_py.engine.columns import Child, interior_of
from ocdbt_py.format.btree import InteriorNode, LeafNode, decode_btree_node, encode_interior_node, encode_leaf_node
from ocdbt_py.format.config import StoredConfig
from ocdbt_py.format.datafile import NO_FILE, DataFileId, Location
from ocdbt_py.format.manifest import Manifest, decode_manifest, encode_manifest
from ocdbt_py.format.versions import VersionEntry, encode_version_node
from ocdbt_py.storage.location import resolve
from ocdbt_py.storage.protocol import Capabilities, Listed
from ocdbt_py.testing.faulty import FaultyStorage

CONFIG = ocdbt_py.Config(
    version_tree_arity_log2=1, max_decoded_node_bytes=150, max_inline_value_bytes=10, compression=None
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Twelve versions, a tree of height 2 or more, version tree nodes of several heights, values out of line."""
    with ocdbt_py.open(tmp_path / "db", "x", config=CONFIG, durable=False) as db:
        db.update({f"{i:02}": b"%02d" % i for i in range(12)})
        for i in range(10):
            db[f"{i:02}"] = b"%d" % i * (1 + 10 * i)
    return tmp_path / "db"


@pytest.fixture
def numbered(tmp_path: Path) -> Path:
    config = replace(CONFIG, manifest_kind="numbered")
    with ocdbt_py.open(tmp_path / "numbered", "x", config=config, durable=False) as db:
        for i in range(6):
            db[f"{i:02}"] = b"%d" % i * 20
    return tmp_path / "numbered"


def damage(path: Path) -> dict[str, Finding]:
    """The first finding of each kind; a report is as its parts say."""
    report = check(path)
    found = {finding.kind: finding for finding in reversed(report.damage)}
    assert report.ok == (not found)
    assert {finding.severity for finding in found.values()} <= {"damage"}
    return found


def manifest_of(path: Path, name: str = "manifest.ocdbt") -> Manifest:
    return decode_manifest((path / name).read_bytes())


def rewrite(path: Path, change: Callable[[Manifest], Manifest], name: str = "manifest.ocdbt") -> None:
    (path / name).write_bytes(encode_manifest(change(manifest_of(path, name))))


def with_versions(change: Callable[[VersionEntry], VersionEntry]) -> Callable[[Manifest], Manifest]:
    return lambda manifest: manifest._replace(versions=tuple(map(change, manifest.versions)))


def overwrite(path: Path, location: Location, data: bytes) -> None:
    """Other bytes in the place of a node."""
    file = path / location.file.path.decode()
    old = file.read_bytes()
    file.write_bytes(old[: location.offset] + data + old[location.offset + len(data) :])


def newest_root(path: Path) -> Location:
    latest = manifest_of(path).latest
    assert latest is not None
    assert latest.root is not None
    return latest.root


# --- sound


def test_a_sound_database_is_clean_and_counted(path: Path) -> None:
    report = check(path)
    assert report.ok
    assert report.damage == ()
    assert report.complete
    assert (report.versions, report.keys, report.unreadable) == (12, 12, ())
    assert report.btree_nodes > 20
    assert report.version_nodes > 3
    assert {note.kind for note in report.notes} == {"unused-bytes"}  # older copies of version tree nodes
    assert str(report).endswith("\nsound")


@pytest.mark.parametrize("kind", ["single", "numbered"])
def test_every_node_is_read_once_and_nothing_is_written(kind: str) -> None:
    place = resolve(f"memory://{uuid.uuid4().hex}/db")
    with ocdbt_py.database.open_place(place, "x", config=replace(CONFIG, manifest_kind=kind)) as db:
        for i in range(40):
            db[f"{i:02}"] = b"%d" % i * 20
    counting = FaultyStorage(place.storage)
    report = check_place(replace(place, storage=counting))
    manifests = 1 if kind == "single" else 1 + 41
    assert counting.operations["read"] == manifests
    assert counting.operations["read_many"] == report.btree_nodes + report.version_nodes
    assert counting.steps == 0


def test_what_there_is_no_database_at_is_not_found(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(FileNotFoundError, match=r"it holds notes\.txt"):
        check(tmp_path)


def test_part_of_a_database_is_not_checked(path: Path) -> None:
    for part in ("@v2/", "prefix/"):
        with pytest.raises(ocdbt_py.InvalidArgumentError, match="whole database"):
            check(f"{path}|ocdbt:{part}")


# --- manifests and versions


def test_a_manifest_that_cannot_be_read(path: Path) -> None:
    whole = (path / "manifest.ocdbt").read_bytes()
    (path / "manifest.ocdbt").write_bytes(whole[:-1])
    found = damage(path)
    assert set(found) == {"manifest"}
    assert found["manifest"].path == "manifest.ocdbt"
    assert not check(path).complete


def test_below_a_newest_manifest_that_cannot_be_read_the_check_goes_on(numbered: Path) -> None:
    newest = max(numbered.glob("manifest.0*"))
    newest.write_bytes(b"")
    report = check(numbered)
    assert [(finding.kind, finding.path) for finding in report.findings] == [("manifest", newest.name)]
    assert report.versions == 6
    with pytest.raises(ocdbt_py.CorruptDataError):
        ocdbt_py.open(numbered)


@pytest.mark.parametrize("damaged", ["a byte", "the name", "the configuration"])
def test_an_older_numbered_manifest_that_is_wrong(numbered: Path, damaged: str) -> None:
    old, other = sorted(numbered.glob("manifest.0*"))[1:3]
    if damaged == "a byte":
        old.write_bytes(old.read_bytes()[:-1] + b"\xff")
    elif damaged == "the name":
        old.write_bytes(other.read_bytes())
    else:
        rewrite(numbered, lambda m: m._replace(config=m.config._replace(max_inline_value_bytes=3)), old.name)
    finding = damage(numbered)["manifest"]
    assert finding.path == old.name
    assert len(ocdbt_py.open(numbered)) == 6


def test_manifests_that_tell_different_things_of_one_version(numbered: Path) -> None:
    old = sorted(numbered.glob("manifest.0*"))[1]
    rewrite(numbered, with_versions(lambda v: v._replace(commit_time_ns=v.commit_time_ns + 1)), old.name)
    assert {(finding.kind, finding.path) for finding in check(numbered).findings} == {("history", old.name)}


def test_a_manifest_that_a_writer_removes_meanwhile_is_passed_over(numbered: Path) -> None:
    place = resolve(numbered)

    class Late(FaultyStorage):
        def list(self, prefix: str, *, deep: bool = False) -> Iterator[Any]:
            yield from super().list(prefix, deep=deep)
            yield Listed(f"{numbered}/manifest.{99:016x}", 0)

    assert check_place(replace(place, storage=Late(place.storage))).ok


def test_a_version_node_that_cannot_be_read(path: Path) -> None:
    location = manifest_of(path).version_nodes[-1].location
    overwrite(path, location, b"junk")
    report = check(path)
    assert [(f.kind, f.offset) for f in report.findings] == [("version-node", location.offset)]
    assert 1 < report.versions < 12
    assert not report.complete


def test_a_version_node_that_is_another_one(path: Path) -> None:
    def swap(manifest: Manifest) -> Manifest:
        first, *rest, last = manifest.version_nodes
        return manifest._replace(
            version_nodes=(first._replace(location=last.location), *rest, last._replace(location=first.location)),
        )

    rewrite(path, swap)
    finding = damage(path)["version-node"]
    assert "expected height" in finding.message
    assert not check(path).complete


def test_one_version_node_with_two_expectations(path: Path) -> None:
    def share(manifest: Manifest) -> Manifest:
        first, *rest, last = manifest.version_nodes
        return manifest._replace(version_nodes=(first._replace(location=last.location), *rest, last))

    rewrite(path, share)
    report = check(path)
    (finding,) = (finding for finding in report.damage if finding.kind == "version-node")
    assert not report.complete
    assert "expected height 2, found 1" in finding.message


def test_a_reference_that_miscounts_the_versions(path: Path) -> None:
    def miscount(manifest: Manifest) -> Manifest:
        first, *rest = manifest.version_nodes
        return manifest._replace(version_nodes=(first._replace(num_generations=first.num_generations - 1), *rest))

    rewrite(path, miscount)
    found = damage(path)
    assert set(found) == {"version-node-reference"}
    assert "states 7 versions, it holds 8" in found["version-node-reference"].message
    assert check(path).unreadable == ()


def test_a_reference_with_another_time_than_its_first_version(path: Path) -> None:
    def earlier(manifest: Manifest) -> Manifest:
        first, *rest = manifest.version_nodes
        return manifest._replace(version_nodes=(first._replace(commit_time_ns=first.commit_time_ns - 1), *rest))

    rewrite(path, earlier)
    found = damage(path)
    assert set(found) == {"version-node-reference"}
    assert "commit time" in found["version-node-reference"].message


def test_a_version_older_than_the_one_before_it(path: Path) -> None:
    def too_early(manifest: Manifest) -> Manifest:
        first = manifest.versions[0]._replace(commit_time_ns=manifest.version_nodes[-1].commit_time_ns + 1)
        return manifest._replace(versions=(first, *manifest.versions[1:]))

    rewrite(path, too_early)
    found = damage(path)
    assert set(found) == {"commit-time-order"}
    assert found["commit-time-order"].generation == 10


def test_a_time_out_of_order_within_the_version_tree(path: Path) -> None:
    """Between two version leaves: each by itself, and the references to them, are in order."""
    with ocdbt_py.open(path) as db:
        nodes = db._engine.nodes
    location = manifest_of(path).version_nodes[0].location
    while (node := nodes.any_version_node(location)).height:
        leaf, location = location, node.entries[0].location  # type: ignore[union-attr]
    parent = nodes.any_version_node(leaf)
    first, second = node.entries
    late = second._replace(commit_time_ns=parent.entries[1].commit_time_ns + 1)
    overwrite(path, location, encode_version_node(node._replace(entries=(first, late)), None))  # type: ignore[arg-type]
    found = damage(path)
    assert set(found) == {"commit-time-order"}
    assert found["commit-time-order"].generation == 2


# --- trees


def leaves(path: Path) -> list[Location]:
    """The leaves of the newest version, in order."""
    with ocdbt_py.open(path) as db:
        tree = db._engine.latest()
    level = [(newest_root(path), b"")]
    for _ in range(tree.version.root_height):
        parents = [(tree.nodes.any_btree(location, prefix)) for location, prefix in level]
        level = [
            (node.location(i), key[: int(node.subtree_prefix_lengths[i])])
            for node in parents
            if isinstance(node, InteriorNode)
            for i, key in enumerate(node.keys)
        ]
    return [location for location, _ in level]


def unreadable_versions(path: Path) -> tuple[int, ...]:
    """By reading all of each."""
    found = []
    with ocdbt_py.open(path) as db:
        for version in db.versions():
            try:
                dict(db.at(version).items())
            except ocdbt_py.CorruptDataError:
                found.append(version.generation)
    return tuple(found)


def test_a_node_that_cannot_be_read_is_told_once_and_the_others_are_checked(path: Path) -> None:
    first, *_, last = leaves(path)
    for location in (first, last):
        overwrite(path, location, b"\xff" * 20)
    report = check(path)
    assert [(finding.kind, finding.offset) for finding in report.findings] == [
        ("btree-node", first.offset),
        ("btree-node", last.offset),
    ]
    assert report.unreadable == unreadable_versions(path)
    assert 2 < len(report.unreadable) < 12
    assert [finding.generation for finding in report.findings] == [12, 12]
    assert not report.complete


def test_a_root_of_another_height(path: Path) -> None:
    rewrite(path, with_versions(lambda v: v._replace(root_height=v.root_height + 1)))
    report = check(path)
    assert [finding.kind for finding in report.damage] == ["height"] * 2
    assert report.unreadable == (12, 11)
    assert not report.complete  # neither root was followed


def test_keys_outside_the_range_their_parent_gives(path: Path) -> None:
    root = newest_root(path)
    file = path / root.file.path.decode()
    data = file.read_bytes()[root.offset : root.offset + root.length]
    node = decode_btree_node(data)
    assert not isinstance(node, LeafNode)
    keys = [*node.keys[:-1], node.keys[-1][:-1] + b"z"]
    overwrite(path, root, encode_interior_node(replace(node, keys=keys), compression=None))
    found = damage(path)
    assert set(found) == {"key-range"}
    assert "is less than" in found["key-range"].message
    assert found["key-range"].key == keys[-1]
    assert check(path).btree_nodes > 20  # what is below is checked all the same


def test_wrong_statistics_of_a_root(path: Path) -> None:
    rewrite(path, with_versions(lambda v: v._replace(num_keys=v.num_keys + 10, num_indirect_value_bytes=0)))
    report = check(path)
    assert [finding.kind for finding in report.damage] == ["statistics"] * 2
    assert "num_keys 22 where the tree has 12" in report.damage[0].message
    assert "num_indirect_value_bytes" in report.damage[0].message
    assert "num_tree_bytes" not in report.damage[0].message
    assert report.unreadable == ()


def test_one_root_with_two_expectations(path: Path) -> None:
    """The older version names the root of the newer one, with other statistics, or another height."""
    for change, kind in (({"num_keys": 22}, "statistics"), ({"root_height": 7}, "height")):

        def share(manifest: Manifest, change: dict[str, Any] = change) -> Manifest:
            older, newer = manifest.versions
            copied = newer._replace(generation=older.generation, commit_time_ns=older.commit_time_ns, **change)
            return manifest._replace(versions=(copied, newer))

        good = (path / "manifest.ocdbt").read_bytes()
        rewrite(path, share)
        report = check(path)
        assert [(finding.kind, finding.generation) for finding in report.damage] == [(kind, 11)]
        (path / "manifest.ocdbt").write_bytes(good)


def test_two_references_that_disagree_about_what_cannot_be_read(path: Path) -> None:
    root = newest_root(path)

    def share(manifest: Manifest) -> Manifest:
        older, newer = manifest.versions
        copied = newer._replace(generation=older.generation, commit_time_ns=older.commit_time_ns, num_keys=99)
        return manifest._replace(versions=(copied, newer))

    rewrite(path, share)
    with ocdbt_py.open(path) as db:
        tree = db._engine.latest()
        node = tree.nodes.any_btree(root, b"")
        child = node.location(0)  # type: ignore[union-attr]
    overwrite(path, child, b"\xff" * 20)
    found = damage(path)
    assert "num_keys 99 where another reference to it states 12" in found["statistics"].message


# --- files


def value_file(path: Path, key: str) -> Path:
    with ocdbt_py.open(path) as db:
        location = db.stat(key).location
    assert location is not None
    return path / location.file


def test_a_file_that_is_not_there_is_told_once(path: Path) -> None:
    gone = value_file(path, "09")
    gone.unlink()
    report = check(path)
    assert [finding.kind for finding in report.damage] == ["file-missing"]
    assert report.damage[0].path == str(gone.relative_to(path))
    assert report.unreadable == (12, 11)
    assert not report.complete  # the older versions were in it too
    assert report.notes == ()


def test_a_file_that_ends_before_its_values_do(tmp_path: Path) -> None:
    options = ocdbt_py.WriteOptions(value_data_prefix="v/")
    with ocdbt_py.open(tmp_path, "x", config=CONFIG, write_options=options) as db:
        db.update({f"{i}": b"%d" % i * 20 for i in range(5)})
    file = value_file(tmp_path, "3")
    file.write_bytes(file.read_bytes()[:70])
    report = check(tmp_path)
    assert [finding.kind for finding in report.damage] == ["file-truncated"]
    finding = report.damage[0]
    assert "70 bytes where 100 are referred to: 2 nodes or values" in finding.message
    assert (finding.key, finding.generation) == (b"3", 2)
    assert report.unreadable == (2,)
    assert report.complete


@pytest.mark.parametrize("name", [b"/etc/passwd", b"d/../../x", b"\0"])
def test_a_file_outside_of_the_database_is_not_opened(path: Path, name: bytes) -> None:
    def elsewhere(version: VersionEntry) -> VersionEntry:
        assert version.root is not None
        return version._replace(root=version.root._replace(file=DataFileId(b"", name)))

    rewrite(path, with_versions(elsewhere))
    found = damage(path)
    assert set(found) == {"file-path"}
    assert found["file-path"].path == name.decode()


def test_files_that_nothing_refers_to_are_notes(path: Path) -> None:
    orphan = path / "d" / ("0" * 32)
    orphan.write_bytes(b"x" * 1000)
    (path / "notes.txt").write_bytes(b"hello")
    (path / "manifest.0000000000000007").write_bytes(b"a single manifest hides it")
    ocdbt_py.open(path / "below" / "it", "x").close()
    before = sum(note.nbytes or 0 for note in check(path).notes if note.kind == "unused-bytes")
    (unused := value_file(path, "08")).write_bytes(unused.read_bytes() + b"x" * 7)
    report = check(path)
    assert report.ok
    found = {note.kind: note for note in report.notes}
    assert (found["orphan-file"].path, found["orphan-file"].nbytes) == (f"d/{'0' * 32}", 1000)
    assert {note.path for note in report.notes if note.kind == "other-file"} == {
        "notes.txt",
        "manifest.0000000000000007",
    }
    assert found["other-database"].path == "below/it"
    assert sum(note.nbytes or 0 for note in report.notes if note.kind == "unused-bytes") == before + 7
    assert "note: orphan-file: a data file that no version refers to: 1, 1,000 bytes" in str(report)


def test_a_lock_that_the_storage_lists_is_a_note() -> None:
    place = resolve(f"memory://{uuid.uuid4().hex}/db")
    ocdbt_py.database.open_place(place, "x").close()
    place.storage.write(f"{place.path}/manifest.ocdbt.__lock", [b""])
    assert [note.kind for note in check_place(place).findings] == ["lock-file"]


def test_the_end_of_a_small_file_is_no_padding(tmp_path: Path) -> None:
    with ocdbt_py.open(tmp_path, "x", durable=False) as db:
        db["k"] = bytes(1000)
    file = value_file(tmp_path, "k")
    used = file.stat().st_size
    file.write_bytes(file.read_bytes().ljust(4096, b"\0"))
    assert [(note.kind, note.nbytes) for note in check(tmp_path).findings] == [("unused-bytes", 4096 - used)]


def test_padding_is_used(tmp_path: Path) -> None:
    with ocdbt_py.open(tmp_path, "x", durable=False) as db:
        db["k"] = bytes((4 << 20) + 5)
    assert value_file(tmp_path, "k").stat().st_size % 4096 == 0
    assert check(tmp_path).findings == ()


def test_while_references_are_unknown_nothing_is_called_unused(path: Path) -> None:
    assert check(path).notes
    overwrite(path, newest_root(path), b"\xff" * 20)
    report = check(path)
    assert report.notes == ()
    assert "unused files and bytes are not told" in str(report)


class Unlisted(FaultyStorage):
    @property
    def capabilities(self) -> Capabilities:
        return replace(super().capabilities, list=False)

    def list(self, prefix: str, *, deep: bool = False) -> Iterator[Any]:
        raise AssertionError("cannot list")


def test_where_nothing_can_be_listed_references_are_checked_all_the_same(path: Path) -> None:
    place = resolve(path)
    unlisted = replace(place, storage=Unlisted(place.storage))
    assert check_place(unlisted).ok
    value_file(path, "09").unlink()
    assert [finding.kind for finding in check_place(unlisted).damage] == ["file-missing"]


@given(st.lists(st.lists(st.tuples(st.integers(0, 300), st.integers(1, 30)), min_size=1, max_size=30), max_size=8))
def test_ranges_in_any_order_are_the_bytes_they_cover(batches: list[list[tuple[int, int]]]) -> None:
    place = resolve("memory://ranges/db")
    files = Files(place.storage, place.path)
    covered = set()
    for batch in batches:
        offsets, lengths = np.array(batch, np.int64).T
        columns = {"file_ids": np.zeros(len(batch), np.int64), "inline": b"", "files": (DataFileId(b"", b"f"),)}
        keys = [b"%d" % i for i in range(len(batch))]
        files.values(LeafNode(keys=keys, offsets=offsets, lengths=lengths, **columns), 1)  # type: ignore[arg-type]
        covered |= {byte for offset, length in batch for byte in range(offset, offset + length)}
    for file in files._files.values():
        starts, stops = file.merged().tolist()
        assert [byte for start, stop in zip(starts, stops, strict=True) for byte in range(start, stop)] == sorted(
            covered
        )
        assert all(stop < start for stop, start in zip(stops, starts[1:], strict=False))


def test_memory_does_not_grow_with_the_number_of_values() -> None:
    place = resolve("memory://ranges/db")
    files = Files(place.storage, place.path)
    count = 50_000
    for first in range(0, 20 * count, count):
        leaf = LeafNode(
            keys=[b""] * count,
            lengths=np.full(count, 3),
            file_ids=np.zeros(count, np.int64),
            offsets=np.arange(first, first + count) * 3,
            inline=b"",
            files=(DataFileId(b"", b"f"),),
        )
        files.values(leaf, 1)
    (file,) = files._files.values()
    assert sum(part.nbytes for part in file.ranges) < 4 << 20
    assert file.merged().tolist() == [[0], [60 * count]]


# --- hostile


class Forge:
    """A database put together node by node, in one data file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = b""
        self.file = DataFileId(b"", b"d/" + b"0" * 32)

    def append(self, data: bytes) -> Location:
        location = Location(self.file, len(self.data), len(data))
        self.data += data
        return location

    def leaf(self, keys: list[bytes], excluded: int = 0) -> Location:
        zeros = np.zeros(len(keys), np.int64)
        node = LeafNode(keys=keys, lengths=zeros, file_ids=zeros - 1, offsets=zeros, inline=b"", files=())
        return self.append(encode_leaf_node(node, excluded=excluded, compression=None))

    def interior(self, children: list[Child], height: int) -> Location:
        return self.append(encode_interior_node(interior_of(children, height), compression=None))

    def finish(self, root: Location, height: int, statistics: tuple[int, int, int]) -> Path:
        version = VersionEntry(1, height, root, *statistics, 1)
        (self.path / "d").mkdir(parents=True)
        (self.path / "d" / ("0" * 32)).write_bytes(self.data)
        manifest = Manifest(StoredConfig(bytes(16), compression=None), (version,), ())
        (self.path / "manifest.ocdbt").write_bytes(encode_manifest(manifest))
        return self.path


def test_a_node_below_several_prefixes_is_read_once_however_many_keys_that_makes(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "db")
    location = forge.leaf([b""])
    statistics = (1, location.length, 0)
    for height in range(1, 80):
        statistics_of_child = statistics
        children = [Child(prefix, 1, location, *statistics_of_child) for prefix in (b"a", b"b")]
        location = forge.interior(children, height)
        keys, tree_bytes, _ = statistics
        statistics = (min(2 * keys, 2**64 - 1), min(2 * tree_bytes + location.length, 2**64 - 1), 0)
    report = check(forge.finish(location, 79, statistics))
    assert report.damage == ()
    assert report.btree_nodes == 80


def test_below_a_longer_prefix_keys_may_be_too_long(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "db")
    long = b"k" * 40_000
    leaf = forge.leaf([long])
    middle = forge.interior([Child(b"", 0, leaf, 1, leaf.length, 0)], 1)
    total = leaf.length + middle.length
    children = [Child(b"a", 1, middle, 1, total, 0), Child(b"b" * 30_000, 30_000, middle, 1, total, 0)]
    root = forge.interior(children, 2)
    found = damage(forge.finish(root, 2, (2, 2 * total + root.length, 0)))
    assert "70000 bytes, more than 65535" in found["key-range"].message


def test_below_another_prefix_deep_keys_may_leave_the_range(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "db")
    leaf = forge.leaf([b"", b"y"])
    middle = forge.interior([Child(b"", 0, leaf, 2, leaf.length, 0)], 1)
    other = forge.leaf([b"bm"])
    above = forge.interior([Child(b"bm", 0, other, 1, other.length, 0)], 1)
    total = leaf.length + middle.length
    children = [
        Child(b"a", 1, middle, 2, total, 0),  # a, ay
        Child(b"b", 1, middle, 2, total, 0),  # b, by, which is beyond bm
        Child(b"bm", 0, above, 1, other.length + above.length, 0),
    ]
    root = forge.interior(children, 2)
    report = check(forge.finish(root, 2, (5, 2 * total + other.length + above.length + root.length, 0)))
    assert [(finding.kind, finding.key) for finding in report.damage] == [("key-range", b"b")]
    assert "b'by' is not less than b'bm'" in report.damage[0].message


def test_a_node_outside_its_range_is_told_once_and_not_again_for_what_is_below(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "db")
    leaf, other = forge.leaf([b"a", b"x"]), forge.leaf([b"m"])
    children = [Child(b"a", 0, leaf, 2, leaf.length, 0), Child(b"y", 0, forge.leaf([b"y"]), 1, leaf.length, 0)]
    middle = forge.interior(children, 1)
    above = forge.interior([Child(b"m", 0, other, 1, other.length, 0)], 1)
    root = forge.interior([Child(b"a", 0, middle, 3, 0, 0), Child(b"m", 0, above, 1, 0, 0)], 2)
    report = check(forge.finish(root, 2, (4, 0, 0)))
    ranges = [finding for finding in report.damage if finding.kind == "key-range"]
    assert [(finding.offset, finding.key) for finding in ranges] == [(middle.offset, b"a")]


def test_a_node_of_the_wrong_height_is_read_once_however_many_refer_to_it(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "db")
    leaf = forge.leaf([b""])
    children = [Child(b"%02d" % i, 2, leaf, 1, leaf.length, 0) for i in range(50)]
    place = resolve(forge.finish(forge.interior(children, 2), 2, (50, 0, 0)))
    counting = FaultyStorage(place.storage)
    report = check_place(replace(place, storage=counting))
    assert [finding.kind for finding in report.damage] == ["height"] * 50
    assert counting.operations["read_many"] == 2  # the root, the leaf


def test_an_empty_value_needs_no_file(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "db")
    zeros = np.zeros(1, np.int64)
    node = LeafNode(keys=[b"k"], lengths=zeros, file_ids=zeros, offsets=zeros, inline=b"", files=(NO_FILE,))
    leaf = forge.append(encode_leaf_node(node, compression=None))
    assert check(forge.finish(leaf, 0, (1, leaf.length, 0))).findings == ()


def test_trees_are_followed_to_any_height(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "db")
    location = forge.leaf([b"k"])
    total = location.length
    for height in range(1, 256):
        location = forge.interior([Child(b"k", 0, location, 1, total, 0)], height)
        total += location.length
    report = check(forge.finish(location, 255, (1, total, 0)))
    assert report.findings == ()
    assert report.btree_nodes == 256


# --- the report


def test_every_kind_has_one_severity_and_a_sentence() -> None:
    assert not set(DAMAGE) & set(NOTES)
    for kinds, severity in ((DAMAGE, "damage"), (NOTES, "note")):
        for kind, sentence in kinds.items():
            assert Finding(kind=kind, message="").severity == severity
            assert len(sentence) > 20


def example() -> Report:
    return Report(
        url="/db<b>",
        versions=9,
        version_nodes=1,
        btree_nodes=12,
        keys=1,
        files=2,
        stored_bytes=12345,
        complete=True,
        unreadable=(9, 8, 7, 3),
        findings=(
            Finding(kind="btree-node", message="It is broken.", path="d/1", offset=5, key=b"\xffk", generation=9),
            Finding(kind="orphan-file", message="Nobody needs it.", path="d/2", nbytes=1),
            Finding(kind="orphan-file", message="Nobody needs it.", path="d/3", nbytes=10),
        ),
    )


def test_a_report_shows_all_damage_and_sums_up_the_rest() -> None:
    assert str(example()).splitlines() == [
        "damage: btree-node: It is broken.",
        "note: orphan-file: a data file that no version refers to: 2, 11 bytes",
        "/db<b>: 9 versions, 12 B-tree nodes, 1 version tree node, 2 data files of 12,345 bytes",
        "versions of which something cannot be read: v7 to v9, v3",
        "damaged: 1 finding",
    ]
    assert html.escape(str(example())) in example()._repr_html_()


def test_a_report_is_a_document() -> None:
    document = json.loads(example().to_json())
    assert document["ok"] is False
    assert document["unreadable"] == [9, 8, 7, 3]
    assert document["stored_bytes"] == 12345
    assert document["findings"][0] == {
        "severity": "damage",
        "kind": "btree-node",
        "message": "It is broken.",
        "path": "d/1",
        "offset": 5,
        "key": "\\xffk",
        "generation": 9,
        "nbytes": None,
    }


def test_it_is_public() -> None:
    assert ocdbt_py.check is check
    assert ocdbt_py.Report is Report


def test_a_place_may_come_with_its_filesystem(path: Path) -> None:
    assert ocdbt_py.check(path, fs=fsspec.filesystem("file")).versions == 12
    with pytest.raises(ocdbt_py.InvalidArgumentError, match="not both"):
        ocdbt_py.check(path, fs=fsspec.filesystem("file"), storage_options={"a": 1})
