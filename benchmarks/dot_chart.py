"""Ratios as SVG: a row for each thing measured, a dot for each peer, on a logarithmic axis with 1 in plain sight."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

__all__ = ["Row", "as_svg"]

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 980, 330, 24, 74, 30
ROW, HEADING, RADIUS = 20, 26, 5
COLORS = ("#d62728", "#ff9896", "#1f77b4", "#2ca02c", "#98df8a", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22")


@dataclass(frozen=True, slots=True)
class Row:
    """What was measured, below which heading, and how many times faster ours is than each peer."""

    heading: str
    label: str
    ratios: Mapping[str, float]


def as_svg(title: str, rows: Sequence[Row]) -> str:
    """A document with all of them; peers have their colours in the order in which they first come."""
    peers = list(dict.fromkeys(peer for row in rows for peer in row.ratios))
    colors = {peer: COLORS[i % len(COLORS)] for i, peer in enumerate(peers)}
    values = [value for row in rows for value in row.ratios.values()] or [1.0]
    first, last = min(math.floor(math.log10(min(values))), -1), max(math.ceil(math.log10(max(values))), 1)

    def across(value: float) -> float:
        return LEFT + (math.log10(value) - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    marks: list[str] = []
    y, heading = float(TOP), None
    for row in rows:
        if row.heading != heading:
            heading = row.heading
            y += HEADING
            marks.append(_text(12, y, heading, "bold"))
        y += ROW
        marks.append(_text(LEFT - 12, y + 4, row.label, "end"))
        marks.append(f'<path class="row" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        for peer, value in row.ratios.items():
            tip = escape(f"{row.label}: {value:.3g} times faster than {peer}")
            marks.append(
                f'<circle cx="{across(value):.1f}" cy="{y:.1f}" r="{RADIUS}" fill="{colors[peer]}">'
                f"<title>{tip}</title></circle>"
            )
    floor = y + ROW
    grid = [
        part
        for power in range(first, last + 1)
        for part in (
            f'<path class="{"one" if power == 0 else "grid"}" d="M{across(10.0**power):.1f} {TOP}V{floor:.1f}"/>',
            _text(across(10.0**power), floor + 16, f"{10.0**power:g}×", "middle"),
        )
    ]
    legend, x = [], 12.0
    for peer in peers:
        legend.append(f'<circle cx="{x + RADIUS:.1f}" cy="58" r="{RADIUS}" fill="{colors[peer]}"/>')
        legend.append(_text(x + 3 * RADIUS, 62, peer, "start"))
        x += 3 * RADIUS + 7 * len(peer) + 12
    style = (
        "text{font:12px sans-serif;fill:#333}.bold{font-weight:bold}.middle{text-anchor:middle}.end{text-anchor:end}"
        ".grid{stroke:#ddd}.one{stroke:#333}.row{stroke:#eee}"
    )
    height = floor + BOTTOM
    width = max(WIDTH, x)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}"><style>{style}</style><rect width="100%" height="100%" fill="white"/>'
    )
    heads = [
        _text(12, 20, title, "bold"),
        _text(12, 38, "How many times faster ocdbt_py is; left of the dark line it is slower", "start"),
    ]
    return "\n".join([head, *heads, *legend, *grid, *marks, "</svg>\n"])


def _text(x: float, y: float, content: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(content)}</text>'
