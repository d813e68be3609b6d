"""Where results go: plain, in colour, as JSON."""

from __future__ import annotations

import io
import json
import re
from typing import Any

import pytest

from ocdbt_py.view.output import JsonOutput, TextOutput
from ocdbt_py.view.results import Finding, Item, Listing, Verification
from ocdbt_py.view.text import lines


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def verification(*findings: Finding) -> Verification:
    return Verification(
        url="u",
        kind="checkpoint",
        version=1,
        keys=2,
        key_bytes=10,
        arrays=1,
        array_bytes=8,
        other="tensorstore 0",
        note=None,
        findings=findings,
    )


LISTING = Listing(
    url="u", kind="checkpoint", version=None, items=(Item("w", "array", "int8", (2,), 2),), nbytes=2, long=True
)


def test_colour_is_for_terminals_and_changes_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal, file = Terminal(), io.StringIO()
    TextOutput(terminal).show(LISTING)
    TextOutput(file).show(LISTING)
    assert file.getvalue() == "int8[2]  2 B  w\n1 leaf, 2 B\n"
    assert "\x1b[" in terminal.getvalue()
    assert re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue()) == file.getvalue()


def test_a_long_name_is_neither_cut_nor_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    name = "a" * 300
    for stream in (Terminal(), io.StringIO()):
        TextOutput(stream).show(Listing(url="u", kind="database", version=1, items=(Item(name, "value"),), nbytes=0))
        assert name in stream.getvalue()


def test_markup_in_a_name_is_only_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    terminal = Terminal()
    TextOutput(terminal).show(
        Listing(url="u", kind="database", version=1, items=(Item("[bold]k[/bold] :smile:", "value"),), nbytes=0)
    )
    assert terminal.getvalue() == "[bold]k[/bold] :smile:\n"


def test_findings_come_first_and_then_what_was_compared() -> None:
    result = verification(Finding("w", "different\x1b[2J"))
    text = ["".join(part for part, _ in line) for line in lines(result, 80)]
    assert text == [
        "w: different\\x1b[2J",
        "read      2 keys of version 1, 10 B",
        "          1 array, 8 B",
        "with      ocdbt_py and tensorstore 0",
        "1 finding",
    ]
    assert (verification().exit_code, result.exit_code) == (0, 1)


def test_a_document_is_one_line_break_after_valid_json() -> None:
    stream = io.StringIO()
    JsonOutput(stream).show(verification(Finding("größe", "x")))
    document: dict[str, Any] = json.loads(stream.getvalue())
    assert stream.getvalue().isascii()
    assert stream.getvalue().endswith("}\n")
    assert document["findings"] == [{"subject": "größe", "problem": "x"}]
    assert document["ok"] is False
