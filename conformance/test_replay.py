"""A whole history replayed with TensorStore's file names and times: the same files, byte for byte, as far as can be.

What cannot be: TensorStore writes the nodes of one commit as its asynchronous walk completes them, so where a commit
rewrote several leaves their order, and with it offsets, is chance; and whatever refers to such a file has other bytes
too. ``REPLAY.md`` counts what was compared and names every file that was left out, with the reason; this module holds
the page to what the replay finds, and writes it anew when run as a program.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

import pytest

import ocdbt_py
from conformance.corpus import Case, ocdbt_cases
from conformance.observe import config_of, engine_of, mutations_of, tree_levels
from ocdbt_py.database import Database, open_place
from ocdbt_py.engine.commit import Sources
from ocdbt_py.engine.tree import Tree
from ocdbt_py.format import zstd
from ocdbt_py.format.datafile import Location
from ocdbt_py.storage.location import Settings, resolve

REPLAYED = [case for case in ocdbt_cases() if case.expected.get("batches") is not None]
PAGE = Path(__file__).parent / "REPLAY.md"
SAME_ZSTD = zstd.LIBRARY_VERSION == (1, 5, 7)
"""The release inside the TensorStore that wrote the corpus; another one may compress to other bytes."""

SEVERAL_LEAVES = "its commit rewrote several leaves, whose order in the file is chance"
BUILT_ON = "refers to such a file"


@dataclass
class History:
    """What a database's commits wrote: for each, the data files in the order of their first use, and its leaves."""

    names: list[str] = field(default_factory=list)
    commit_of: dict[str, int] = field(default_factory=dict)
    leaves: dict[int, int] = field(default_factory=dict)


def visit(db: Database, tree: Tree) -> Iterator[tuple[str, bool]]:
    """The data files of a version in the order in which a commit uses them, each with whether a leaf is in it there."""
    for leaf, low, high in tree.scan():
        for i in range(low, high):
            value = leaf.value(i)
            if isinstance(value, Location):
                yield value.file.path.decode(), False
    levels = tree_levels(engine_of(db), tree)
    for level in reversed(levels):
        for _, _, location in level:
            yield location.file.path.decode(), level is levels[-1]


def history_of(case: Case) -> History:
    """Which commit of TensorStore's made which file. Version tree nodes come last in their commit."""
    found = History()
    version_files = {}
    for node in case.expected["version_tree_nodes"]:
        if node["height"] == 0:  # a full leaf is written by the commit that opens the next one
            arity = 1 << case.expected["config"]["version_tree_arity_log2"]
            version_files[node["generation_number"] // arity * arity + 1] = _file(node["location"])
    with ocdbt_py.open(case.db, max_staleness=60) as db:
        for version in reversed(list(db.versions())):
            generation = version.generation
            fresh: dict[str, None] = {}
            for path, is_leaf in visit(db, engine_of(db).at(generation)):
                if path not in found.commit_of or found.commit_of[path] == generation:
                    found.commit_of[path] = generation
                    fresh[path] = None
                    found.leaves[generation] = found.leaves.get(generation, 0) + is_leaf
            last = version_files.get(generation)
            if last is not None and last not in found.commit_of:
                found.commit_of[last] = generation
                fresh[last] = None
            found.names += fresh
    return found


def _file(location: str) -> str:
    """The file in TensorStore's ``versionnode:BASE:PATH:OFFSET:LENGTH``, percent-encoded."""
    return unquote(location.split(":")[2])


def replay(case: Case, directory: Path, history: History) -> None:
    expected = case.expected
    options = ocdbt_py.WriteOptions(**expected["open_options"])
    times = iter([version["commit_time"] for version in expected["versions"]])
    names = iter([name[-32:] for name in history.names])
    sources = Sources(clock=lambda: next(times), names=lambda: next(names))
    place = resolve(directory, settings=Settings(durable=False))
    config = config_of(expected["create_config"])
    with open_place(place, "x", config=config, write_options=options, sources=sources) as db:
        for batch in expected["batches"]:
            engine_of(db).commit(mutations_of(batch))


def files_below(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


@dataclass
class Outcome:
    """Files that are equal, and those that are not, each with its reason."""

    equal: int = 0
    left_out: dict[str, str] = field(default_factory=dict)


def compare(case: Case, directory: Path) -> Outcome:
    history = history_of(case)
    replay(case, directory, history)
    ours, theirs = files_below(directory), files_below(case.db)
    assert ours.keys() == theirs.keys()
    first_by_chance = min(
        (generation for generation, leaves in history.leaves.items() if leaves > 1 and generation > 2),
        default=None,
    )
    outcome = Outcome()
    for name, data in theirs.items():
        if ours[name] == data:
            outcome.equal += 1
            continue
        made_by = history.commit_of.get(name)
        if name.startswith("manifest."):
            number = name.removeprefix("manifest.")
            made_by = int(number, 16) if len(number) == 16 else case.expected["latest_generation"]
        assert made_by is not None, name
        assert first_by_chance is not None, f"{name} differs, though every commit rewrote one leaf"
        assert made_by >= first_by_chance, f"{name} differs, though no commit before it rewrote several leaves"
        several = history.leaves.get(made_by, 0) > 1 and name in history.commit_of
        outcome.left_out[name] = SEVERAL_LEAVES if several else BUILT_ON
    return outcome


def page_of(outcomes: dict[str, Outcome]) -> str:
    """``REPLAY.md``: a line for each case, and one for each file that was left out."""
    lines = [
        "# Histories replayed byte for byte",
        "",
        "Every database of the corpus whose input is known, written again with TensorStore's file names and times.",
        "`python -m conformance.test_replay` writes this page.",
        "",
        "| case | files equal | left out |",
        "|---|---|---|",
    ]
    lines += [f"| `{name}` | {found.equal} | {len(found.left_out)} |" for name, found in outcomes.items()]
    equal = sum(found.equal for found in outcomes.values())
    left_out = sum(len(found.left_out) for found in outcomes.values())
    lines += [f"| **all {len(outcomes)}** | **{equal}** | **{left_out}** |", "", "## Left out", ""]
    lines += ["| case | file | why |", "|---|---|---|"]
    for name, found in outcomes.items():
        lines += [f"| `{name}` | `{path}` | {why} |" for path, why in found.left_out.items()]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("case", REPLAYED, ids=lambda case: case.name)
def test_a_replayed_history_has_the_same_files(case: Case, tmp_path: Path) -> None:
    if case.expected["config"]["compression"] is not None and not SAME_ZSTD:
        pytest.skip("another zstd release than the one inside TensorStore compresses to other bytes")
    outcome = compare(case, tmp_path / "db")
    row = f"| `{case.name}` | {outcome.equal} | {len(outcome.left_out)} |"
    text = PAGE.read_text()
    assert row in text
    for path, why in outcome.left_out.items():
        assert f"| `{case.name}` | `{path}` | {why} |" in text


def test_the_page_speaks_of_all_cases_and_no_first_commit_is_left_out() -> None:
    rows = re.findall(r"^\| `(\w+)` \| \d+ \| (\d+) \|$", PAGE.read_text(), re.MULTILINE)
    assert [name for name, _ in rows] == [case.name for case in REPLAYED]
    left_out = dict(rows)
    first_commits = [case.name for case in REPLAYED if len(case.expected["batches"]) == 1]
    assert (len(REPLAYED), len(first_commits)) == (61, 33)
    assert {left_out[name] for name in first_commits} == {"0"}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        found = {case.name: compare(case, Path(scratch) / case.name) for case in REPLAYED}
    PAGE.write_text(page_of(found))
