"""Bars and lines as SVG, by hand: two plots are no reason for a plotting library. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import log10

WIDTH, ROW, MARGIN, LABELS, VALUES = 720, 26, 12, 190, 110
HEIGHT = 360
COLOURS = ("#2b6cb0", "#c05621", "#2f855a", "#6b46c1")
FONT = 'font-family="sans-serif" font-size="12"'


@dataclass(frozen=True)
class Bar:
    """A value and the range that it was found in."""

    name: str
    value: float
    low: float
    high: float


def bars(title: str, given: Sequence[Bar]) -> str:
    """Lying bars from zero, each with a line from its lowest to its highest."""
    largest = max((bar.high for bar in given), default=0.0) or 1.0
    scale = (WIDTH - LABELS - VALUES) / largest
    parts: list[str] = []
    for number, bar in enumerate(given):
        top = 2 * ROW + number * ROW
        middle, colour = top + ROW / 2 - 3, COLOURS[0 if bar.name.startswith("tailrace") else 1]
        parts += [
            _text(LABELS - 6, middle + 4, bar.name, "end"),
            f'<rect x="{LABELS}" y="{top}" width="{bar.value * scale:.1f}" height="{ROW - 6}"'
            f' fill="{colour}"/>',
            f'<path d="M{LABELS + bar.low * scale:.1f} {middle:.1f}'
            f'H{LABELS + bar.high * scale:.1f}" stroke="black"/>',
            _text(LABELS + bar.high * scale + 6, middle + 4, f"{bar.value:,.4g}"),
        ]
    return _page(title, 2 * ROW + len(given) * ROW + MARGIN, parts)


def lines(title: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """A line for each series of (x, y), x > 0 by its logarithm, y from zero."""
    points = [point for one in series.values() for point in one]
    left, right = (log10(choose(x for x, _ in points)) for choose in (min, max))
    top = max(y for _, y in points) or 1.0
    wide, high = WIDTH - LABELS - VALUES, HEIGHT - 4 * ROW

    def place(x: float, y: float) -> tuple[float, float]:
        share = (log10(x) - left) / (right - left or 1.0)
        return LABELS + share * wide, HEIGHT - 2 * ROW - y / top * high

    parts = [
        f'<path d="M{LABELS} {HEIGHT - 2 * ROW}h{wide}M{LABELS} {HEIGHT - 2 * ROW}v{-high}"'
        ' stroke="black" fill="none"/>'
    ]
    for x in sorted({x for x, _ in points}):
        parts.append(_text(place(x, 0)[0], HEIGHT - ROW, f"{x:,g}", "middle"))
    for colour, (name, one) in zip(COLOURS, series.items(), strict=False):
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in (place(*point) for point in one))
        parts.append(f'<path d="M{path}" stroke="{colour}" stroke-width="2" fill="none"/>')
        for x, y in one:
            parts.append(_text(place(x, y)[0] + 4, place(x, y)[1] - 6, f"{y:,.4g}"))
        parts.append(_text(MARGIN, place(*one[-1])[1], name))
    return _page(title, HEIGHT, parts)


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {FONT}>{escape(text)}</text>'


def _page(title: str, height: float, parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}">'
    ground = f'<rect width="{WIDTH}" height="{height}" fill="white"/>'
    return "\n".join((head, ground, _text(MARGIN, ROW, title), *parts, "</svg>")) + "\n"
