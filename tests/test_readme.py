"""What the README shows is true: its Python runs, its commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ocdbt_py.cli import VERBS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_first_block_has_twelve_lines_and_does_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert len([line for line in BLOCKS[0].splitlines() if line]) == 12
    exec(BLOCKS[0], {})
    assert capsys.readouterr().out.splitlines() == [
        "['params.b', 'params.w', 'step']",
        "[[0. 1. 2.]",
        " [3. 4. 5.]]",
        "float32 7",
        "[b'run/1', b'run/2']",
    ]


@pytest.mark.parametrize("block", BLOCKS[1:], ids=range(1, len(BLOCKS)))
def test_every_other_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: str) -> None:
    monkeypatch.chdir(tmp_path)
    exec(block, {})


def test_every_command_is_listed_and_every_listed_command_exists() -> None:
    assert list(dict.fromkeys(re.findall(r"^\| `ocdbt (\w+)", README, re.MULTILINE))) == list(VERBS)


def test_the_targets_of_make_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"\bmake (\w+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
