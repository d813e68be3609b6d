"""Where results go: one :class:`Output` for people, one for programs. Commands themselves print nothing."""

from __future__ import annotations

import shutil
from io import TextIOWrapper
from typing import TYPE_CHECKING, Protocol, TextIO

from ocdbt_py.view.results import RawValue, Result

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ocdbt_py.view.text import Line

_COLOURS = {
    "name": "bold",
    "type": "cyan",
    "size": "green",
    "faint": "dim",
    "good": "bold green",
    "bad": "bold red",
}


class Output(Protocol):
    """Shows a result."""

    def show(self, result: Result) -> None: ...


class JsonOutput:
    """One JSON document."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def show(self, result: Result) -> None:
        from ocdbt_py.view.documents import as_json

        self._stream.write(as_json(result) + "\n")


class TextOutput:
    """Lines of text, in colour on a terminal. The bytes of a value go out as they are unless to a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._terminal = stream.isatty()

    def show(self, result: Result) -> None:
        if isinstance(result, RawValue) and not self._terminal:
            self._stream.flush()
            self._stream.buffer.write(result.value)
            return
        from ocdbt_py.view.text import lines

        shown = lines(result, shutil.get_terminal_size().columns)
        if self._terminal:
            self._in_colour(shown)
        else:
            self._plain(shown)

    def _plain(self, shown: Iterable[Line]) -> None:
        if isinstance(self._stream, TextIOWrapper):  # names need UTF-8, whatever the locale says
            self._stream.reconfigure(encoding="utf-8")
        for line in shown:
            self._stream.write("".join(text for text, _ in line).rstrip() + "\n")

    def _in_colour(self, shown: Iterable[Line]) -> None:
        from rich.console import Console
        from rich.text import Text
        from rich.theme import Theme

        theme = Theme({f"ocdbt.{name}": style for name, style in _COLOURS.items()})
        console = Console(file=self._stream, theme=theme, highlight=False)
        for line in shown:
            text = Text.assemble(*((part, f"ocdbt.{style}" if style else "") for part, style in line))
            text.rstrip()
            console.print(text, soft_wrap=True)
