"""The same random operations on two databases, one of ours and one of TensorStore's, against a dict and its history.

After every commit both must hold the model's keys, in the same number of versions, in trees of the same form, and the
version tree must have rolled over alike. Now and then the two engines change places and each goes on in what the other
wrote. In the end each reads every version of the other's database.

The run that is part of the tests is always the same; ``OCDBT_PY_MODEL=deep`` makes a long one, new each time.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

import ocdbt_py
from conformance.engines import (
    ABSENT,
    Contents,
    DeleteRange,
    Engine,
    Operation,
    Ours,
    Part,
    Place,
    Put,
    Theirs,
    without_superseded,
)
from conformance.oracle import Dump, in_one_commit, moment, open_store
from ocdbt_py.engine.manifests import KEPT_NUMBERED
from ocdbt_py.engine.mutations import KeyRange
from ocdbt_py.format.manifest import parse_numbered_manifest_name
from ocdbt_py.storage.location import resolve

# --- the model


def applied(contents: Contents, operations: Sequence[Operation]) -> Contents:
    """The contents after these operations, in this order."""
    now = dict(contents)
    for operation in operations:
        if isinstance(operation, DeleteRange):
            now = {key: value for key, value in now.items() if not operation.holds(key)}
        elif operation.value is None:
            now.pop(operation.key, None)
        else:
            now[operation.key] = operation.value
    return now


def renamed(contents: Contents, prefix: bytes, to: bytes) -> Contents:
    return {to + key[len(prefix) :]: value for key, value in contents.items() if key.startswith(prefix)}


def makes_a_version(contents: Contents, operations: Sequence[Operation]) -> bool:
    """An operation on one key always does, even one that changes nothing; a range only if it takes something away."""
    return any(isinstance(each, Put) or any(map(each.holds, contents)) for each in without_superseded(operations))


# --- what is drawn

PREFIXES = ["a", "ab", "abc/d", "b/", "long/common/prefix/"]
KEYS = st.one_of(
    st.builds(lambda prefix, number: f"{prefix}{number:02}".encode(), st.sampled_from(PREFIXES), st.integers(0, 60)),
    st.lists(st.sampled_from([b"a", b"b", b"\0", b"\xff"]), max_size=4).map(b"".join),
)


def value(seed: int, length: int) -> bytes:
    return (b"%d." % seed * length)[:length]


VALUES = st.builds(value, st.integers(0, 9), st.one_of(st.integers(0, 12), st.sampled_from([0, 99, 100, 101, 2000])))
RANGES = st.builds(
    lambda start, stop: DeleteRange(start, stop if stop is None else max(start, stop)),
    KEYS,
    st.none() | KEYS.filter(bool),
)
OPERATIONS = st.one_of(st.builds(Put, KEYS, VALUES), st.builds(Put, KEYS, st.none()), RANGES)
UNASKED = ocdbt_py.WriteOptions(probe=False)
"""Whether an endpoint honours conditions is another test's question."""

PICKS = st.integers(0, 999)
"""One of however many there will be: the remainder counts."""

CONFIGS = st.builds(
    ocdbt_py.Config,
    manifest_kind=st.sampled_from(["single", "numbered"]),
    max_inline_value_bytes=st.sampled_from([0, 8, 100]),
    max_decoded_node_bytes=st.sampled_from([0, 1, 40, 100, 300, 2000, 8388608]),
    version_tree_arity_log2=st.integers(1, 4),
    compression=st.sampled_from([None, "zstd"]),
)


def numbered_manifests(place: Place) -> set[int]:
    found = resolve(place.url, storage_options=place.storage_options)
    names = [listed.path.rpartition("/")[2] for listed in found.storage.list(f"{found.path}/manifest.")]
    numbers = map(parse_numbered_manifest_name, names)
    return {number for number in numbers if number is not None}


class Twins(RuleBasedStateMachine):
    """The two databases and the model; every rule is one step.

    ``new_places`` gives two empty places, ours first. ``manifest_kind``: the only one the storage can have.
    ``everywhere``: both engines can write in both places; else each stays in its own, and ``refresh`` copies the first
    to where TensorStore can read it.
    """

    steps: ClassVar[Counter[str]]
    manifest_kind: ClassVar[str | None] = None
    everywhere: ClassVar[bool] = True

    @classmethod
    def new_places(cls) -> list[Place]:
        raise NotImplementedError

    @classmethod
    def refresh(cls, place: Place) -> None:
        """What TensorStore sees of it is up to date."""

    def __init__(self) -> None:
        super().__init__()
        self.history: list[Contents] = []
        self.tokens: list[tuple[bytes, bytes]] = []
        self.parts = 0
        self.agreed = False

    @property
    def now(self) -> Contents:
        return self.history[-1]

    # --- how a step is taken and what must hold after it

    def commit(self, after: Contents, expected: bool, action: Callable[[Engine], object], versions: int = 1) -> None:
        """Do the same to both; ``expected`` says whether it makes a version, of these contents."""
        self.agreed = False
        for engine in self.engines:
            action(engine)
        if expected:
            self.history += [after] * versions
        self.compare()
        self.agreed = True

    def compare(self) -> None:
        self.refresh(self.places[0])
        forms = []
        self.times = []
        for dump in self.dumps:
            manifest = dump.manifest()
            versions = dump.versions(manifest)
            statistics = [version["root"]["statistics"] for version in versions]
            assert [version["generation_number"] for version in versions] == list(range(1, len(self.history) + 1))
            assert [each["num_keys"] for each in statistics] == list(map(len, self.history))
            root = versions[-1]["root"]
            assert "location" not in root or root["statistics"] == dump.sums(root["location"])
            tree = dump.tree_form(versions[-1])
            leaves = tree[-1] if tree else []
            assert [entry[0] for leaf in leaves for entry in leaf] == sorted(self.now)
            sizes = [each["num_indirect_value_bytes"] for each in statistics]
            forms.append((tree, sizes, dump.history_form(manifest)))
            self.times.append([version["commit_time"] for version in versions])
        assert forms[0] == forms[1]

    def open_both(self, **options: bool) -> None:
        self.engines: list[Engine] = [
            Ours(self.places[0], self.config, **options),
            Theirs(self.places[1], self.config, **options),
        ]

    def a_key(self, pick: int) -> bytes:
        """One that is there, if any is."""
        return sorted(self.now)[pick % len(self.now)] if self.now else b"absent"

    # --- the steps

    @initialize(config=CONFIGS, assumed=st.booleans(), first=st.dictionaries(KEYS, VALUES, max_size=8))
    def create(self, config: ocdbt_py.Config, assumed: bool, first: Contents) -> None:
        """Without ``assume_config`` a database begins with an empty generation 1; with it, by its first commit."""
        self.config = replace(config, manifest_kind=self.manifest_kind or config.manifest_kind)
        self.places = self.new_places()
        self.open_both(assumed=assumed)
        self.dumps = [Dump(dict(place.base)) for place in self.places]
        for engine in self.engines:
            engine.begin(first)
        if not assumed:
            self.history.append({})
        if first or assumed:
            self.history.append(first)
        self.compare()
        self.agreed = True

    @rule(key=KEYS, value=VALUES)
    def put(self, key: bytes, value: bytes) -> None:
        self.steps["put"] += 1
        self.commit(applied(self.now, [Put(key, value)]), True, lambda engine: engine.write(key, value))

    @rule(pick=PICKS, key=st.none() | KEYS)
    def delete(self, pick: int, key: bytes | None) -> None:
        self.steps["delete"] += 1
        target = self.a_key(pick) if key is None else key
        # a version even if the key is absent
        self.commit(applied(self.now, [Put(target, None)]), True, lambda engine: engine.write(target, None))

    @rule(pick=PICKS)
    @precondition(lambda self: self.now)
    def remember(self, pick: int) -> None:
        """Note what the engines call the value that a key has now."""
        self.steps["remember"] += 1
        key = self.a_key(pick)
        self.tokens.append((self.engines[0].token(key), self.engines[1].token(key)))

    @rule(pick=PICKS, key=st.none() | KEYS, value=st.none() | VALUES, token=st.none() | PICKS)
    def write_if(self, pick: int, key: bytes | None, value: bytes | None, token: int | None) -> None:
        """Write or delete if the key is absent, or has a value that some key had once, or has the value it has."""
        target = self.a_key(pick) if key is None else key
        if token is None or not self.tokens:
            conditions = (ABSENT, ABSENT)
        elif target in self.now and token % 2:
            conditions = (self.engines[0].token(target), self.engines[1].token(target))
        else:
            conditions = self.tokens[token % len(self.tokens)]
        self.agreed = False
        met = [
            engine.write(target, value, condition) for engine, condition in zip(self.engines, conditions, strict=True)
        ]
        assert met[0] == met[1]
        self.steps["write_if, met" if met[0] else "write_if, not met"] += 1
        self.commit(applied(self.now, [Put(target, value)]), met[0], lambda _: None)

    @rule(operation=RANGES)
    def delete_range(self, operation: DeleteRange) -> None:
        self.steps["delete_range"] += 1
        expected = makes_a_version(self.now, [operation])
        self.commit(applied(self.now, [operation]), expected, lambda engine: engine.delete_range(operation))

    @rule(prefix=st.sampled_from(PREFIXES) | KEYS.filter(bool))
    def delete_prefix(self, prefix: str | bytes) -> None:
        self.steps["delete_prefix"] += 1
        full = prefix.encode() if isinstance(prefix, str) else prefix
        operation = DeleteRange(*KeyRange.of_prefix(full))
        after = {key: value for key, value in self.now.items() if not key.startswith(full)}

        def remove(engine: Engine) -> None:
            if isinstance(engine, Ours):
                engine.db.delete_range(prefix=prefix)
            else:
                engine.delete_range(operation)

        self.commit(after, after != self.now, remove)

    @rule(operations=st.lists(OPERATIONS, min_size=1, max_size=8))
    def transaction(self, operations: list[Operation]) -> None:
        self.steps["transaction"] += 1
        done: list[Operation] = []
        for operation in operations:  # in a transaction of ours, the deletion of what is absent is an error
            if not (isinstance(operation, Put) and operation.value is None) or operation.key in applied(self.now, done):
                done.append(operation)
        after = applied(self.now, done)
        self.commit(after, makes_a_version(self.now, done), lambda engine: engine.commit(done, after))

    @rule(prefix=st.sampled_from(PREFIXES), first=st.integers(0, 40), count=st.integers(5, 40), value=VALUES)
    def fill(self, prefix: str, first: int, count: int, value: bytes) -> None:
        """Many keys at once, so that trees grow."""
        self.steps["fill"] += 1
        operations = [Put(f"{prefix}{number:02}".encode(), value) for number in range(first, first + count)]
        after = applied(self.now, operations)
        self.commit(after, True, lambda engine: engine.commit(operations, after))

    @rule(key=KEYS, value=VALUES, count=st.integers(2, 9))
    @precondition(lambda self: len(self.history) < 80)
    def burst(self, key: bytes, value: bytes, count: int) -> None:
        """Many versions, so that the version tree grows."""
        self.steps["burst"] += 1
        after = applied(self.now, [Put(key, value)])

        def write(engine: Engine) -> None:
            for _ in range(count):
                engine.write(key, value)

        self.commit(after, True, write, versions=count)

    @rule(
        values=st.lists(st.dictionaries(KEYS, VALUES, max_size=12), min_size=1, max_size=3),
        prefix=st.just("") | st.sampled_from(PREFIXES),
        to=st.just("") | st.sampled_from(PREFIXES),
        by_us=st.booleans(),
    )
    def merge(self, values: list[Contents], prefix: str, to: str, by_us: bool) -> None:
        """Databases below, written by either engine, merged by reference in one version."""
        self.steps["merge"] += 1
        parts, after, copied = [], self.now, False
        for part in values:
            parts.append(Part(f"part_{self.parts:02}", prefix, to))
            self.parts += 1
            moved = renamed(part, prefix.encode(), to.encode())
            after, copied = {**after, **moved}, copied or bool(moved)
            for place in self.places:
                below = place.below(parts[-1].name)
                if by_us or not self.everywhere:
                    config = ocdbt_py.Config(max_inline_value_bytes=10)
                    with below.open("x", config=config, write_options=UNASKED) as db:
                        db.update(part)
                else:
                    child = open_store(dict(below.base), config={"max_inline_value_bytes": 10})
                    in_one_commit(child, part)
        self.commit(after, copied, lambda engine: engine.merge(parts))

    @rule(prefix=st.sampled_from(PREFIXES), to=st.sampled_from(["c", "B", "long/d"]))
    def rename(self, prefix: str, to: str) -> None:
        """Within the database: out-of-line values are then referred to twice."""
        self.steps["rename"] += 1
        moved = renamed(self.now, prefix.encode(), to.encode())
        self.commit({**self.now, **moved}, bool(moved), lambda engine: engine.rename(prefix, to))

    @rule(change_places=st.booleans())
    def reopen(self, change_places: bool) -> None:
        """Perhaps so that each engine goes on in the database of the other."""
        change_places = change_places and self.everywhere
        self.steps["reopen, changing places" if change_places else "reopen"] += 1
        for engine in self.engines:
            engine.close()
        if change_places:
            self.places.reverse()
            self.dumps.reverse()
            self.tokens.clear()
        self.open_both()
        self.compare()

    @rule(pick=PICKS, inside=RANGES, early=st.booleans())
    def look(self, pick: int, inside: DeleteRange, early: bool) -> None:
        """At keys in a range now, and at an old version, by its number and by time: a moment belongs to the last
        version before it, its own included."""
        self.steps["look"] += 1
        at = pick % len(self.history)
        for engine, times in zip(self.engines, self.times, strict=True):
            assert engine.keys(inside) == sorted(filter(inside.holds, self.now))
            assert engine.contents() == self.now
            assert engine.contents(at + 1) == self.history[at]
            asked = moment(times[at] - early)
            if early and at == 0:
                with pytest.raises((ocdbt_py.NotFoundError, ValueError)):
                    engine.contents(asked)
            else:
                assert engine.contents(asked) == self.history[at - early]

    # --- the end

    def check_manifests(self, place: Place) -> None:
        """Of numbered manifests the newest 129 stay; TensorStore may be late in removing the others."""
        numbers = numbered_manifests(place)
        newest = len(self.history)
        numbered = self.config.manifest_kind == "numbered"
        assert numbers >= set(range(max(1, newest - KEPT_NUMBERED), newest + 1) if numbered else [])
        assert not numbers or numbered

    def teardown(self) -> None:
        """Each engine reads every version of the other's database."""
        if not self.agreed:
            return
        for place in self.places:
            self.check_manifests(place)
        others: list[Engine] = [Ours(self.places[1], self.config), Theirs(self.places[0], self.config)]
        for generation, contents in enumerate(self.history, 1):
            for reader in others:
                assert reader.contents(generation) == contents


DEEP = os.environ.get("OCDBT_PY_MODEL") == "deep"
SETTINGS = settings(
    derandomize=not DEEP,
    max_examples=2000 if DEEP else 72,
    stateful_step_count=100 if DEEP else 40,
    database=None,
    deadline=None,
    print_blob=DEEP,
    suppress_health_check=list(HealthCheck),
)


def test_whatever_is_done_to_both_they_stay_the_same(tmp_path: Path) -> None:
    class Run(Twins):
        steps: ClassVar[Counter[str]] = Counter()

        @classmethod
        def new_places(cls) -> list[Place]:
            shutil.rmtree(tmp_path / "twins", ignore_errors=True)
            return [Place.local(tmp_path / "twins" / name) for name in ("first", "second")]

    run_state_machine_as_test(Run, settings=SETTINGS)
    assert Run.steps.total() >= 2000
    assert min(Run.steps.values()) >= 20  # of every kind


def test_both_engines_in_turn_on_one_database_keep_its_newest_numbered_manifests(tmp_path: Path) -> None:
    config = ocdbt_py.Config(manifest_kind="numbered", max_decoded_node_bytes=40, version_tree_arity_log2=2)
    place = Place.local(tmp_path)
    ours = Ours(place, config)
    engines: list[Engine] = [Theirs(place, config), ours]
    for i in range(140):
        assert engines[i % 2].write(b"%02d" % (i % 20), b"%d" % i)
    last = ours.db.version.generation
    assert last == 141
    assert numbered_manifests(place) == set(range(last - KEPT_NUMBERED, last + 1))
    for engine in engines:
        assert engine.contents() == {b"%02d" % (i % 20): b"%d" % i for i in range(120, 140)}
        assert engine.contents(21) == {b"%02d" % i: b"%d" % i for i in range(20)}
