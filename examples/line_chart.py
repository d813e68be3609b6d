"""A line chart as SVG, in as few lines as that takes: axes with round ticks, lines, a legend."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

__all__ = ["Chart", "Line", "as_svg"]

WIDTH, HEIGHT = 900, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 44, 44
TICKS = 6


@dataclass(frozen=True, slots=True)
class Line:
    """Points to be joined, in the units of the axes."""

    label: str
    color: str
    points: Sequence[tuple[float, float]]
    is_dashed: bool = False


@dataclass(frozen=True, slots=True)
class Chart:
    """Lines that share two axes, which begin at 0."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]

    def elements(self, top: float) -> list[str]:
        """The chart as parts of an SVG, ``top`` pixels below its upper edge."""
        x_end, y_end = (max((p[i] for line in self.lines for p in line.points), default=1.0) for i in (0, 1))
        x_ticks, y_ticks = ticks(x_end), ticks(y_end)
        across, down = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        x_scale, y_scale = across / (x_end or 1), down / (y_ticks[-1] or 1)
        floor = top + HEIGHT - BOTTOM
        parts = [text(LEFT, top + 18, self.title, "title")]
        for tick in y_ticks:
            y = floor - tick * y_scale
            parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
            parts.append(text(LEFT - 6, y + 4, f"{tick:g}", "end"))
        for tick in (tick for tick in x_ticks if tick <= x_end):
            parts.append(text(LEFT + tick * x_scale, floor + 16, f"{tick:g}", "middle"))
        parts.append(text(LEFT + across / 2, floor + 34, self.x_label, "middle"))
        parts.append(text(LEFT, top + 36, self.y_label, "start"))
        legend: float = WIDTH - RIGHT
        for line in reversed(self.lines):
            points = " ".join(f"{LEFT + x * x_scale:.1f},{floor - y * y_scale:.1f}" for x, y in line.points)
            dashes = ' stroke-dasharray="4 3"' if line.is_dashed else ""
            parts.append(f'<polyline points="{points}" stroke="{line.color}"{dashes}/>')
            parts.append(text(legend, top + 18, line.label, "end", line.color))
            legend -= 7 * len(line.label) + 18
        return parts


def ticks(end: float) -> list[float]:
    """Round numbers from 0 to ``end`` or just beyond.

    >>> ticks(134)
    [0.0, 50.0, 100.0, 150.0]
    """
    if end <= 0:
        return [0.0, 1.0]
    magnitude = 10.0 ** math.floor(math.log10(end / TICKS))
    step = next(factor * magnitude for factor in (1, 2, 5, 10, 20) if end / (factor * magnitude) <= TICKS)
    return [i * step for i in range(math.ceil(end / step - 1e-9) + 1)]


def text(x: float, y: float, content: str, kind: str, color: str = "#333") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" fill="{color}">{escape(content)}</text>'


def as_svg(charts: Sequence[Chart]) -> str:
    """The charts below each other, as a document."""
    height = HEIGHT * len(charts)
    style = (
        "text{font:12px sans-serif}.title{font-weight:bold}.middle{text-anchor:middle}.end{text-anchor:end}"
        ".grid{stroke:#ddd}polyline{fill:none;stroke-width:1.5}"
    )
    parts = [part for i, chart in enumerate(charts) for part in chart.elements(i * HEIGHT)]
    size = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{style}</style>'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>\n"])
