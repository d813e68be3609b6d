"""``ocdbt cat``."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import ocdbt_py
from ocdbt_py.cli import main
from ocdbt_py.view.output import TextOutput
from ocdbt_py.view.results import RawValue

Run = Callable[..., Any]


def test_an_array_is_printed_as_numpy_prints_it(run: Run, checkpoint: Path) -> None:
    expected = np.arange(600, dtype=np.float64).reshape(20, 30)
    assert run("cat", checkpoint, "params.w[0:2, ::7]").out == f"{expected[0:2, ::7]}\n"
    assert run("cat", checkpoint, "params.w[-1, ...]").out == f"{expected[-1]}\n"
    assert run("cat", checkpoint, "params.w").out == f"{expected}\n"


def test_a_large_array_is_shortened_unless_all_of_it_is_asked_for(run: Run, tmp_path: Path) -> None:
    ocdbt_py.save(tmp_path / "c", {"a": np.arange(2000)}, durable=False)
    assert "..." in run("cat", tmp_path / "c", "a").out
    full = run("cat", tmp_path / "c", "a", "--full").out
    assert [int(number) for number in full.strip("[]\n").split()] == list(range(2000))


def test_other_leaves_are_printed_as_they_are(run: Run, checkpoint: Path) -> None:
    assert run("cat", checkpoint, "name").out == "hello\n"
    assert run("cat", checkpoint, "step").out == "7\n"
    assert run("cat", checkpoint, "opt.2").out == "None\n"
    assert run("cat", checkpoint, "opt.1").out == "()\n"


def test_the_value_of_a_key_goes_out_byte_for_byte(database: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["cat", str(database), r"z\x1b[1m\\\xff"]) == 0
    assert capfdbinary.readouterr().out == b"\0\xff"
    assert main(["cat", str(database), "a/long[:3]"]) == 0
    assert capfdbinary.readouterr().out == b"xxx"
    assert main(["cat", str(database), "a/short[-1:]"]) == 0
    assert capfdbinary.readouterr().out == b"2"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_a_terminal(name: str, value: bytes, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    terminal = Terminal()
    TextOutput(terminal).show(RawValue(url="u", name=name, value=value))
    return terminal.getvalue()


def test_on_a_terminal_bytes_are_shown_in_hexadecimal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert on_a_terminal("k", b"\x1b[31m" + bytes(range(65, 85)), monkeypatch).splitlines() == [
        "00000000  1b 5b 33 31 6d 41 42 43 44 45 46 47 48 49 4a 4b  .[31mABCDEFGHIJK",
        "00000010  4c 4d 4e 4f 50 51 52 53 54                       LMNOPQRST",
    ]


def test_on_a_terminal_the_metadata_of_an_array_is_indented_json(monkeypatch: pytest.MonkeyPatch) -> None:
    assert on_a_terminal("w/.zarray", b'{"shape":[2]}', monkeypatch) == '{\n  "shape": [\n    2\n  ]\n}\n'
    assert on_a_terminal("w/.zarray", b"{", monkeypatch).startswith("00000000  7b")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("params.b", {"type": "array", "dtype": "float32", "shape": [2], "value": [0.0, "NaN"]}),
        ("params.w[1, 2]", {"type": "array", "dtype": "float64", "shape": [], "value": 32.0}),
        ("step", {"type": "int", "value": 7}),
        ("name", {"type": "str", "value": "hello"}),
        ("opt.1", {"type": "tuple", "value": []}),
        ("opt.2", {"type": "None", "value": None}),
    ],
)
def test_the_document_of_a_leaf(run: Run, checkpoint: Path, key: str, value: dict[str, Any]) -> None:
    document = run("cat", checkpoint, key, "--json").document
    assert document == {"command": "cat", "url": str(checkpoint), "name": key, **value}


def test_the_document_of_numbers_that_json_does_not_have(run: Run, tmp_path: Path) -> None:
    tree = {
        "c": np.array([1 + 2j], np.complex64),
        "h": np.array([0.5], ml_dtypes.bfloat16),
        "i": np.array([-np.inf, np.inf]),
        "q": np.array([-8, 7], ml_dtypes.int4),
    }
    ocdbt_py.save(tmp_path / "c", tree, durable=False)
    values = {name: run("cat", tmp_path / "c", name, "--json").document["value"] for name in tree}
    assert values == {"c": ["1+2j"], "h": [0.5], "i": ["-Infinity", "Infinity"], "q": [-8, 7]}


def test_the_document_of_a_value(run: Run, database: Path) -> None:
    document = run("cat", database, "a/short", "--json").document
    encoded = base64.b64encode(b"12").decode()
    assert document == {
        "command": "cat",
        "url": str(database),
        "name": "a/short",
        "type": "bytes",
        "nbytes": 2,
        "base64": encoded,
    }


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("parms.w", 'There is no leaf "parms.w" in URL; did you mean "params.w"?'),
        ("parms.w[0]", 'There is no leaf "parms.w" in URL; did you mean "params.w"?'),
        ("zzzzzz", 'There is no leaf "zzzzzz" in URL'),
        ("params.w[20]", "params.w has the shape (20, 30): index 20 is out of bounds for axis 0 with size 20"),
        ("params.w[a]", '"a" is no index: write integers, slices like 0:10 or ::2, "..." or newaxis, '
                        "separated by commas"),
        ("name[0]", "name is no array, so nothing can be selected of it"),
    ],
)  # fmt: skip
def test_a_wrong_name_or_selection_is_one_helpful_line(run: Run, checkpoint: Path, key: str, message: str) -> None:
    done = run("cat", checkpoint, key)
    assert (done.code, done.out) == (2, "")
    assert done.err == f"ocdbt cat: {message}\n".replace("URL", str(checkpoint))


def test_a_wrong_key_or_range_is_one_helpful_line(run: Run, database: Path) -> None:
    assert run("cat", database, "a/shrt").err.endswith('did you mean "a/short"?\n')
    assert run("cat", database, "a/short[5:9]").code == 2
    assert run("cat", database, "a/short[0]").code == 2


def test_a_name_with_brackets_is_found(run: Run, tmp_path: Path) -> None:
    ocdbt_py.save(tmp_path / "c", {"a[0]": np.arange(3), "a": np.arange(5)}, durable=False)
    assert run("cat", tmp_path / "c", "a[0]").out == "[0 1 2]\n"
    assert run("cat", tmp_path / "c", "a[0][1:]").out == "[1 2]\n"
    assert run("cat", tmp_path / "c", "a[1]").out == "1\n"
