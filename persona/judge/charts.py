"""Charts of a report as inline SVG, without script or files, in colours that work on light and dark pages.

360 units wide, so that text stays readable on a phone. Texts from outside are escaped by Markup.format.
`Axis` is the scale of every chart; share/loss_plot.py draws the PNG of a model card with it.
"""

import itertools
import math
from collections.abc import Sequence

from markupsafe import Markup

from persona.judge.report_model import Interval

WIDTH, LEFT, RIGHT = 360, 84, 14
ROW = 34
BARS = 12  # of a histogram, about
BASE, ADAPTER, PAIRS = "#8b8680", "#059669", "#b7791f"
_TEXT = Markup(
    '<text x="{}" y="{}" font-size="12" font-family="system-ui, sans-serif" fill="currentColor" '
    'text-anchor="{}" opacity="{}">{}</text>'
)


def _text(x: float, y: float, text: str, anchor: str = "start", opacity: float = 1.0) -> Markup:
    return _TEXT.format(round(x, 1), round(y, 1), anchor, opacity, text)


def _svg(height: float, title: str, parts: Sequence[Markup]) -> Markup:
    return Markup(
        '<svg viewBox="0 0 {} {}" role="img" aria-label="{}" style="width:100%;max-width:560px;display:block" '
        'xmlns="http://www.w3.org/2000/svg">{}</svg>'
    ).format(WIDTH, round(height, 1), title, Markup("").join(parts))


def _rect(x: float, y: float, w: float, h: float, fill: str, opacity: float = 1.0) -> Markup:
    return Markup('<rect x="{}" y="{}" width="{}" height="{}" rx="2" fill="{}" opacity="{}"/>').format(
        round(x, 1), round(y, 1), round(max(w, 0.5), 1), round(max(h, 0.5), 1), fill, opacity
    )


def _line(x1: float, y1: float, x2: float, y2: float, stroke: str = "currentColor", width: float = 1.0,
          opacity: float = 1.0) -> Markup:  # fmt: skip
    return Markup('<line x1="{}" y1="{}" x2="{}" y2="{}" stroke="{}" stroke-width="{}" opacity="{}"/>').format(
        *(round(v, 1) for v in (x1, y1, x2, y2)), stroke, width, opacity
    )


def axis_ticks(low: float, high: float, intervals: int = 4) -> list[float]:
    """Round numbers (1, 2 or 5 × 10ⁿ apart) from at most `low` to at least `high` (Heckbert 1990).

    intervals: how many between `low` and `high` at most.
    """
    high = high if high > low else low + 1.0  # all values are equal
    span = high - low
    size = 10 ** math.floor(math.log10(span / intervals))
    step = next(size * m for m in (1, 2, 5, 10) if size * m * intervals >= span)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * n, 10) for n in range(first, last + 1)]


class Axis:
    """A linear scale with round ticks: the first tick lies at `start`, the last at `end`, in units of the drawing."""

    def __init__(self, ticks: list[float], start: float, end: float):
        self.ticks, self.start, self.end = ticks, start, end

    def position(self, value: float) -> float:
        """Where a value lies in the drawing."""
        low, high = self.ticks[0], self.ticks[-1]
        return self.start + (self.end - self.start) * (value - low) / (high - low)


class _XAxis(Axis):
    """The horizontal axis of a chart, between its labels and its right edge."""

    def __init__(self, low: float, high: float):
        super().__init__(axis_ticks(low, high), LEFT, WIDTH - RIGHT)

    x = Axis.position

    def draw(self, bottom: float) -> list[Markup]:
        """Its grid lines down to `bottom`, and the numbers below."""
        parts = [_line(self.x(t), 0, self.x(t), bottom, opacity=0.15) for t in self.ticks]
        return parts + [_text(self.x(t), bottom + 14, f"{t:g}", "middle", 0.7) for t in self.ticks]


def interval_bars(rows: Sequence[tuple[str, Interval]], title: str) -> Markup:
    """A horizontal bar for each row, with its 95 % confidence interval where there is one: not of one value."""
    axis = _XAxis(0.0, max(i.high for _, i in rows))
    bottom = ROW * len(rows)
    parts = axis.draw(bottom)
    for n, (name, i) in enumerate(rows):
        y, colour = ROW * n + 7, (BASE, ADAPTER)[n % 2]
        parts += [_text(0, y + 14, name), _rect(axis.x(0), y, axis.x(i.value) - axis.x(0), 20, colour, 0.75)]
        if i.low < i.high:
            parts += [_line(axis.x(i.low), y + 10, axis.x(i.high), y + 10, width=2)]
            parts += [_line(axis.x(v), y + 5, axis.x(v), y + 15, width=2) for v in (i.low, i.high)]
        parts += [_text(axis.x(0) + 5, y + 14, f"{i.value:.2f}")]
    return _svg(bottom + 20, title, parts)


def histogram(values: Sequence[float], title: str, unit: str) -> Markup:
    """A histogram; bars above zero have the adapter's colour. unit: what is counted."""
    axis = _XAxis(min(0.0, *values), max(0.0, *values))
    low, high = axis.ticks[0], axis.ticks[-1]
    bars_per_tick = max(1, round(BARS / (len(axis.ticks) - 1)))  # a whole number, so that zero is an edge
    each = (axis.ticks[1] - low) / bars_per_tick
    counts = [0] * round((high - low) / each)
    for value in values:
        counts[min(len(counts) - 1, int((value - low) / each))] += 1
    height = 110.0
    parts = axis.draw(height)
    for n, count in enumerate(counts):
        start = low + n * each
        bar_height, colour = (height - 16) * count / max(counts), ADAPTER if start > -1e-9 else BASE
        width = axis.x(start + each) - axis.x(start) - 1.5
        if count:
            parts += [_rect(axis.x(start), height - bar_height, width, bar_height, colour, 0.85)]
            parts += [_text(axis.x(start) + width / 2, height - bar_height - 3, str(count), "middle", 0.8)]
    parts += [_line(axis.x(0), 0, axis.x(0), height, width=1.5), _text(0, height / 2, unit, opacity=0.7)]
    return _svg(height + 20, title, parts)


def lines_by_turn(series: Sequence[tuple[str, Sequence[float | None]]], title: str) -> Markup:
    """A line for each series of shares (0 … 1), one value a turn from 1 on; None: not measured at that turn."""
    height, turns = 120.0, max(len(values) for _, values in series)
    left, right = 40.0, WIDTH - RIGHT
    x = Axis([1.0, float(max(2, turns))], left, right).position
    y = Axis([0.0, 1.0], height, 6.0).position
    parts = [_line(left, y(v), right, y(v), opacity=0.15) for v in (0.0, 0.5, 1.0)]
    parts += [_text(left - 6, y(v) + 4, f"{v:.0%}", "end", 0.7) for v in (0.0, 0.5, 1.0)]
    parts += [_text(x(n), height + 15, str(n), "middle", 0.7) for n in range(1, turns + 1)]
    for n, (name, values) in enumerate(series):
        colour = (ADAPTER, PAIRS, BASE)[n % 3]
        points = [(x(turn), y(v)) for turn, v in enumerate(values, 1) if v is not None]
        parts += [_line(*a, *b, colour, 2) for a, b in itertools.pairwise(points)]
        parts += [_rect(px - 2.5, py - 2.5, 5, 5, colour) for px, py in points]
        parts += [_rect(left, height + 26 + 16 * n, 10, 10, colour), _text(left + 16, height + 35 + 16 * n, name)]
    return _svg(height + 30 + 16 * len(series), title, parts)


def box_plot(rows: Sequence[tuple[str, Sequence[float]]], title: str) -> Markup:
    """A horizontal box plot. rows: name, and the 5, 25, 50, 75 and 95 % quantiles."""
    axis = _XAxis(0.0, max(max(v) for _, v in rows) or 1.0)
    bottom = ROW * len(rows)
    parts = axis.draw(bottom)
    for n, (name, (least, q1, middle, q3, most)) in enumerate(rows):
        y, colour = ROW * n + 7, (BASE, ADAPTER, PAIRS)[n % 3]
        parts += [_text(0, y + 14, name), _line(axis.x(least), y + 10, axis.x(most), y + 10, colour, 2)]
        parts += [_rect(axis.x(q1), y, axis.x(q3) - axis.x(q1), 20, colour, 0.75)]
        parts += [_line(axis.x(middle), y - 2, axis.x(middle), y + 22, width=2)]
    return _svg(bottom + 20, title, parts)
