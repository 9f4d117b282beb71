"""Line art of a page as numbers for its templates: where lines, bars and ticks stand in an SVG.

Colours are CSS variables of templates/style.css, so that a chart follows the page from light to dark. Sizes are in the units of
the SVG's viewBox, about a pixel each.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ptmrun.reports import phrases

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 460, 260, 54, 14, 12, 42
MOST = 240  # points of a line; of more, the lowest and the highest of each part are drawn
PALETTE = ("blue", "orange", "green", "purple", "red", "teal", "brown", "gray")
Points = list[tuple[float, float]]


class Mark(NamedTuple):
    """Something that happened at a place of the horizontal axis."""

    at: float
    text: str
    color: str = "var(--red)"


@dataclass(frozen=True)
class Series:
    """A line, or dots alone. spread: for each point how far a band reaches below and above it; texts: what each point is, where
    its two numbers do not say it; legend: what it is called there, where several share an entry."""

    name: str
    points: Points
    color: str = "var(--blue)"
    dots: bool = False
    line: bool = True
    hollow: bool = False
    spread: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    legend: str = ""


@dataclass(frozen=True)
class Dot:
    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Line:
    """A series where it is drawn."""

    name: str
    color: str
    path: str
    band: str
    dots: list[Dot]
    hollow: bool
    legend: str


@dataclass(frozen=True)
class Chart:
    """What templates/charts.html draws as lines. hover: for the script, {name, color, points: [x, y, text of x, text of y]}."""

    title: str
    alt: str
    x_title: str
    y_title: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    lines: list[Line]
    marks: list[tuple[float, str, str]]  # x, text, colour
    levels: list[tuple[float, str]]  # y, text
    hover: list[dict[str, Any]]


class Scale(NamedTuple):
    """From values to places."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        share = (value - low) / (high - low) if high > low else 0.5
        return round(self.start + share * (self.end - self.start), 1)


def number(value: Any) -> float | None:
    """What can be drawn, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e30:
        return None
    return float(value)


def short(value: float) -> str:
    """4 digits, in thousands where it is a large whole number."""
    return f"{value:,.0f}" if abs(value) >= 1000 and value == round(value) and abs(value) < 1e9 else f"{value:.4g}"


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """At most `most` + 1 round numbers from low to high."""
    if not high - low > 1e-290:
        return [low]
    rough = (high - low) / most
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(m * size for m in (1, 2, 5, 10) if m * size >= rough * 0.999)
    return [n * step for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float, most: int = 4) -> list[float]:
    """Powers of ten, with what lies between them where there are few."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for between in ((1, 2, 5), (1, 3), (1,)):
        places = [m * 10.0**n for n in decades for m in between if low <= m * 10.0**n <= high]
        if len(places) <= most:
            return places
    return places[:: -(-len(places) // most)]


def thinned(points: Points, most: int = MOST) -> Points:
    """At most about `most` points, in which the peaks are those of all."""
    if len(points) <= most:
        return points
    size = -(-2 * len(points) // most)
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    left = [p for part in parts for p in sorted({min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])})]
    return [points[0], *(p for p in left if points[0][0] < p[0] < points[-1][0]), points[-1]]


def lines(
    title: str,
    series: list[Series],
    x_title: str,
    y_title: str,
    *,
    marks: Iterable[Mark] = (),
    levels: Iterable[tuple[float, str]] = (),
    log_x: bool = False,
    x_text: Callable[[float], str] = short,
) -> Chart | None:
    """A chart of lines; None without a point, or with one that cannot be drawn. levels: dotted horizontal lines, and what they
    are."""
    series = [s for s in series if s.points]
    values = [v for s in series for point in s.points for v in point] + [v for s in series for v in s.spread]
    if not series or any(number(v) is None for v in values):
        return None
    marks, levels = list(marks), list(levels)
    xs = [x for s in series for x, _ in s.points]
    spread = [(y - d, y + d) for s in series for (_, y), d in zip(s.points, s.spread or [0.0] * len(s.points), strict=True)]
    ys = [*(y for pair in spread for y in pair), *(y for y, _ in levels)]
    room = 0.06 * (max(ys) - min(ys)) or 0.05 * abs(ys[0]) or 1.0
    edges = (min(xs) / 1.3, max(xs) * 1.3) if log_x else (min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1)
    across = Scale(*edges, LEFT, WIDTH - RIGHT, log_x)
    up = Scale(min(ys) - room, max(ys) + room, HEIGHT - BOTTOM, TOP)
    places = log_ticks(*edges) if log_x else ticks(*edges)
    drawn = [line_of(s, across, up, x_title, x_text) for s in series]
    return Chart(
        title=title,
        alt=f"{title}. " + "; ".join(map(in_words, series)),
        x_title=x_title,
        y_title=y_title,
        x_ticks=[(across(v), x_text(v)) for v in places],
        y_ticks=[(up(v), f"{v:.6g}") for v in ticks(up.low, up.high)],
        lines=drawn,
        marks=[(across(min(max(m.at, edges[0]), edges[1])), m.text, m.color) for m in marks],
        levels=[(up(y), text) for y, text in levels],
        hover=[hover_of(s, across, up, x_title, x_text) for s in series],
    )


def line_of(series: Series, across: Scale, up: Scale, x_title: str, x_text: Callable[[float], str]) -> Line:
    points = thinned(series.points)
    path = " ".join(f"{across(x)},{up(y)}" for x, y in points) if series.line and len(points) > 1 else ""
    band = ""
    if any(series.spread):
        pairs = list(zip(series.points, series.spread, strict=True))
        edge = [(x, y + d) for (x, y), d in pairs] + [(x, y - d) for (x, y), d in reversed(pairs)]
        band = " ".join(f"{across(x)},{up(y)}" for x, y in edge)
    dots = []
    if series.dots or not path:
        shown = series.points if series.texts else points
        known = series.texts or [f"{series.name}, {x_title} {x_text(x)}: {short(y)}" for x, y in shown]
        dots = [Dot(across(x), up(y), text) for (x, y), text in zip(shown, known, strict=True)]
    return Line(series.name, series.color, path, band, dots, series.hollow, series.legend or series.name)


def hover_of(series: Series, across: Scale, up: Scale, x_title: str, x_text: Callable[[float], str]) -> dict[str, Any]:
    points = [[across(x), up(y), f"{x_title} {x_text(x)}", short(y)] for x, y in thinned(series.points)]
    return {"name": series.name, "points": points}


def in_words(series: Series) -> str:
    """A series for those who do not see it."""
    (_, first), (_, last) = series.points[0], series.points[-1]
    return f"{series.name}: {short(last)}" if len(series.points) == 1 else f"{series.name}: from {short(first)} to {short(last)}"


class Bar(NamedTuple):
    name: str
    value: float
    sd: float | None = None
    chosen: bool = False


@dataclass(frozen=True)
class Bars:
    """What templates/charts.html draws as bars: for each its name, place, the two ends of its spread, its text; a dot where it
    has no width."""

    title: str
    alt: str
    height: int
    rows: list[dict[str, Any]]
    ticks: list[tuple[float, str]]


def bars(title: str, entries: list[Bar], from_zero: bool = True) -> Bars:
    """A bar for each entry, from 0 and where all are at most 1 up to 1, and a line of one standard deviation; else, where
    differences are small, dots between the lowest and the highest."""
    longest = max(len(e.name) for e in entries)
    ends = [v for e in entries for v in (e.value - (e.sd or 0.0), e.value + (e.sd or 0.0))]
    room = 0.1 * (max(ends) - min(ends)) or 0.01
    edges = (min(0.0, *(e.value for e in entries)), max(1.0, *ends)) if from_zero else (min(ends) - room, max(ends) + room)
    left = min(170.0, 7.2 * longest + 14)
    along = Scale(*edges, left, WIDTH - 54)
    rows = []
    for place, e in enumerate(entries):
        begin, end = along(0.0) if from_zero else along(e.value), along(e.value)
        spread = (along(e.value - e.sd), along(e.value + e.sd)) if e.sd else None
        text = f"{e.value:.3f}" + (f" ± {e.sd:.3f}" if e.sd is not None else "")
        row = {"name": e.name, "y": 8 + 24 * place, "x": min(begin, end), "width": abs(end - begin), "left": left - 8}
        beside = max(begin, end, spread[1] if spread else 0.0) + 6
        rows.append({**row, "ends": spread, "beside": beside, "text": text, "mean": f"{e.value:.3f}", "chosen": e.chosen})
    alt = f"{title}. " + "; ".join(f"{r['name']}: {r['text']}" for r in rows)
    return Bars(title, alt, 24 * len(rows) + 34, rows, [(along(v), f"{v:.6g}") for v in ticks(along.low, along.high)])


@dataclass(frozen=True)
class Grid:
    """A matrix of counts as templates/charts.html draws it: cells {x, y, share, text, title}, and where names stand."""

    title: str
    alt: str
    side: int
    left: int
    top: int
    width: int
    height: int
    cells: list[dict[str, Any]]
    names: list[tuple[int, str]]  # place of the middle, name


def confusion(matrix: list[list[int]], classes: list[str], numbers: int = 15) -> Grid:
    """Rows: true classes, as shares of the row; with numbers up to so many classes."""
    side = 30 if len(classes) <= numbers else 18
    names = [name if len(name) <= 14 else f"{name[:13]}…" for name in classes]
    edge = 26 + min(110, int(7.2 * max(map(len, names))) + 8)
    cells = []
    for i, row in enumerate(matrix):
        whole = max(sum(row), 1)
        for j, n in enumerate(row):
            if n:
                title = f"{classes[i]} taken for {classes[j]}: {n:,} of {sum(row):,} ({n / whole:.0%})"
                text = phrases.few_digits(n) if len(classes) <= numbers else ""
                place = {"x": edge + side * j, "y": edge + side * i}
                cells.append({**place, "share": round(n / whole, 3), "text": text, "title": title})
    right, total = sum(row[i] for i, row in enumerate(matrix)), sum(map(sum, matrix))
    alt = f"Confusion matrix of {len(classes)} classes: {right:,} of {total:,} on the diagonal"
    size = edge + side * len(classes) + 4
    places = [(edge + side * i + side // 2, name) for i, name in enumerate(names)]
    return Grid("Which classes are taken for which", alt, side, edge, edge, size, size, cells, places)
