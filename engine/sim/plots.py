"""Plots as inline SVG text: lines with bands, stepped distributions, bars with whiskers.

It knows how to draw and nothing of policies or tiers. Colours are classes (`s0`, `s1`, ...): the
page's style sheet gives each its colour in light and dark. Every mark tells its value on hover.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from engine.sim.scales import Scale

WIDTH, HEIGHT = 560, 340
LEFT, RIGHT, TOP, BOTTOM = 62, 18, 16, 48
BAR_ROW = 34
BAR_LEFT, BAR_RIGHT = 210, 150

NUM_COLOURS = 10
DASHES = ("", "7 4", "2 3")
# Shapes beside colours: a plot must be readable without telling red from green.
MARKERS = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "M-3.6-3.6h7.2v7.2h-7.2z",
    "M0-4.8L4.6 3.6H-4.6z",
    "M0-5.2L5.2 0L0 5.2L-5.2 0z",
    "M0 4.8L4.6-3.6H-4.6z",
    "M-1.5-4.6h3v3.1h3.1v3h-3.1v3.1h-3v-3.1h-3.1v-3h3.1z",
    "M0-5L1.5-1.6L5-1.5L2.3.9L3.2 4.4L0 2.5L-3.2 4.4L-2.3.9L-5-1.5L-1.5-1.6z",
)


@dataclass(frozen=True, slots=True)
class Mark:
    """A point of a line: its place, its interval if it has one, and what it says on hover."""

    x: float
    y: float
    low: float | None
    high: float | None
    tip: str


@dataclass(frozen=True, slots=True)
class Series:
    """One line; `index` chooses colour, shape and dash, so that it is the same in every plot."""

    index: int
    name: str
    marks: Sequence[Mark] = ()
    steps: Sequence[tuple[float, float]] = ()  # a distribution: (value, share at most that)
    tip: str = ""


@dataclass(frozen=True, slots=True)
class Reference:
    """A line that is no series: an objective, a target, a bound."""

    text: str
    y: float | None = None
    x: float | None = None
    diagonal: bool = False  # y = x


@dataclass(frozen=True, slots=True)
class Frame:
    """What surrounds a plot. `id` is unique on the page; `title` and `desc` are for readers who
    do not see it."""

    id: str
    title: str
    desc: str
    x_label: str
    y_label: str
    x: Scale
    y: Scale
    references: Sequence[Reference] = field(default_factory=tuple)


def plot_x() -> tuple[float, float]:
    """Return the first and last pixel of a plot's inside, left to right."""
    return LEFT, WIDTH - RIGHT


def plot_y() -> tuple[float, float]:
    """Return the first and last pixel of a plot's inside, bottom to top."""
    return HEIGHT - BOTTOM, TOP


def line_plot(frame: Frame, series: Sequence[Series]) -> str:
    """Draw lines with bands, or stepped distributions, as one `<svg>`."""
    x0, x1 = plot_x()
    y0, y1 = plot_y()
    clip = (
        f'<clipPath id="{frame.id}-c"><rect x="{x0}" y="{y1 - 7}" width="{x1 - x0 + 7}" '
        f'height="{y0 - y1 + 13}"/></clipPath>'
    )
    inside = "".join(_series(frame, one) for one in series)
    return (
        _open(frame.id, frame.title, frame.desc, WIDTH, HEIGHT)
        + clip
        + _axes(frame)
        + "".join(_reference(frame, one) for one in frame.references)
        + f'<g clip-path="url(#{frame.id}-c)">{inside}</g></svg>'
    )


def _open(name: str, title: str, desc: str, width: float, height: float) -> str:
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-labelledby="{name}-t {name}-d" xmlns="http://www.w3.org/2000/svg">'
        f'<title id="{name}-t">{escape(title)}</title><desc id="{name}-d">{escape(desc)}</desc>'
    )


def _axes(frame: Frame) -> str:
    x0, x1 = plot_x()
    y0, y1 = plot_y()
    out = []
    for tick in frame.y.ticks:
        y = frame.y.at(tick.value)
        out.append(f'<path class="grid{" minor" * tick.minor}" d="M{x0} {y:.1f}H{x1}"/>')
        if not tick.minor:
            out.append(f'<text class="tick" x="{x0 - 8}" y="{y + 4:.1f}" text-anchor="end">')
            out.append(f"{escape(tick.text)}</text>")
    for tick in frame.x.ticks:
        x = frame.x.at(tick.value)
        out.append(f'<path class="grid{" minor" * tick.minor}" d="M{x:.1f} {y0}V{y1}"/>')
        if not tick.minor:
            out.append(f'<text class="tick" x="{x:.1f}" y="{y0 + 18}" text-anchor="middle">')
            out.append(f"{escape(tick.text)}</text>")
    middle_x, middle_y = (x0 + x1) / 2, (y0 + y1) / 2
    out.append(f'<path class="axis" d="M{x0} {y1}V{y0}H{x1}"/>')
    out.append(
        f'<text class="label" x="{middle_x}" y="{HEIGHT - 8}" text-anchor="middle">'
        f"{escape(frame.x_label)}</text>"
        f'<text class="label" transform="translate(14 {middle_y}) rotate(-90)" '
        f'text-anchor="middle">{escape(frame.y_label)}</text>'
    )
    return "".join(out)


def _reference(frame: Frame, line: Reference) -> str:
    x0, x1 = plot_x()
    y0, y1 = plot_y()
    text = escape(line.text)
    if line.diagonal:
        end = min(frame.x.high, frame.y.high)
        start = max(frame.x.low, frame.y.low)
        ax, ay, bx, by = frame.x.at(start), frame.y.at(start), frame.x.at(end), frame.y.at(end)
        return (
            f'<path class="ref" d="M{ax:.1f} {ay:.1f}L{bx:.1f} {by:.1f}"/>'
            f'<text class="reftext" x="{x0 + 8}" y="{y1 + 12}">{text}</text>'
        )
    if line.y is not None:
        if not frame.y.holds(line.y):
            return ""
        y = frame.y.at(line.y)
        # At the right, where what is plotted against a rate has mostly fallen; above if it fits.
        base = y - 5 if y - y1 > 18 else y + 13
        return (
            f'<path class="ref" d="M{x0} {y:.1f}H{x1}"/>'
            f'<text class="reftext" x="{x1 - 4}" y="{base:.1f}" text-anchor="end">{text}</text>'
        )
    if line.x is None or not frame.x.holds(line.x):
        return ""
    x = frame.x.at(line.x)
    return (
        f'<path class="ref" d="M{x:.1f} {y0}V{y1}"/>'
        f'<text class="reftext" x="{x + 5:.1f}" y="{y0 - 7}">{text}</text>'
    )


def _series(frame: Frame, series: Series) -> str:
    inner = _steps(frame, series) if series.steps else _marks(frame, series)
    return f'<g class="series {colour_class(series.index)}">{inner}</g>'


def _marks(frame: Frame, series: Series) -> str:
    marks = [m for m in series.marks if m.y == m.y]
    # Lines leave a close-up where they do and are cut there: they do not run along its edge.
    places = [(frame.x.at(m.x), frame.y.at(m.y, beyond=True)) for m in marks]
    out = []
    bounds = [
        (x, frame.y.at(m.low, beyond=True), frame.y.at(m.high, beyond=True))
        for (x, _), m in zip(places, marks, strict=True)
        if m.low is not None and m.high is not None
    ]
    if len(bounds) > 1:
        ring = [(x, high) for x, _, high in bounds] + [(x, low) for x, low, _ in bounds[::-1]]
        out.append(f'<path class="band" d="{_path(ring)}Z"/>')
    elif bounds:
        x, low, high = bounds[0]
        out.append(f'<path class="whisker" d="M{x:.1f} {low:.1f}V{high:.1f}"/>')
    if len(places) > 1:
        out.append(f'<path class="line"{dash(series.index)} d="{_path(places)}"/>')
    shape = MARKERS[series.index % len(MARKERS)]
    for (x, y), mark in zip(places, marks, strict=True):
        if frame.y.holds(mark.y):
            out.append(
                f'<g transform="translate({x:.1f} {y:.1f})"><title>{escape(mark.tip)}</title>'
                f'<circle class="hit" r="9"/><path class="mark" d="{shape}"/></g>'
            )
    return "".join(out)


def _steps(frame: Frame, series: Series) -> str:
    shown = [step for step in series.steps if frame.x.low <= step[0] <= frame.x.high]
    before = [share for value, share in series.steps if value < frame.x.low]
    y = frame.y.at(before[-1] if before else 0.0)
    path = [f"M{frame.x.at(frame.x.low):.1f} {y:.1f}"]
    for value, share in shown:
        path.append(f"H{frame.x.at(value):.1f}V{frame.y.at(share):.1f}")
    path.append(f"H{frame.x.at(frame.x.high):.1f}")
    d = "".join(path)
    return (
        f'<g><title>{escape(series.tip)}</title><path class="hit" d="{d}"/>'
        f'<path class="line"{dash(series.index)} d="{d}"/></g>'
    )


def _path(places: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)


def colour_class(index: int) -> str:
    """Return the classes of the series of that place: its colour, and itself for the legend."""
    return f"s{index % NUM_COLOURS} n{index}"


def dash(index: int) -> str:
    """Return the dash attribute of a series: a pattern once the colours are used up."""
    pattern = DASHES[index // NUM_COLOURS % len(DASHES)]
    return f' stroke-dasharray="{pattern}"' if pattern else ""


def swatch(index: int) -> str:
    """Return the sample of a series for a legend: its line and its shape."""
    shape = MARKERS[index % len(MARKERS)]
    return (
        f'<svg class="swatch {colour_class(index)}" viewBox="0 0 30 14" aria-hidden="true">'
        f'<path class="line"{dash(index)} d="M1 7H29"/>'
        f'<path class="mark" transform="translate(15 7)" d="{shape}"/></svg>'
    )


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: its mean, its interval, the single runs; `open_end` where it may reach further."""

    index: int
    name: str
    mean: float
    low: float | None
    high: float | None
    runs: Sequence[float]
    text: str
    tip: str
    open_end: bool = False


def bars_height(count: int) -> float:
    """Return the height of a plot of that many bars."""
    return TOP + count * BAR_ROW + BOTTOM


def bar_x() -> tuple[float, float]:
    """Return the first and last pixel of the bars' inside; bar plots take the page's width."""
    return BAR_LEFT, 2 * WIDTH - BAR_RIGHT


def bar_plot(name: str, title: str, desc: str, x_label: str, x: Scale, bars: Sequence[Bar]) -> str:
    """Draw horizontal bars with whiskers and a dot for each run, as one `<svg>`."""
    height = bars_height(len(bars))
    x0, x1 = bar_x()
    bottom = height - BOTTOM
    out = [_open(name, title, desc, 2 * WIDTH, height)]
    for tick in x.ticks:
        place = x.at(tick.value)
        out.append(f'<path class="grid" d="M{place:.1f} {TOP}V{bottom}"/>')
        out.append(f'<text class="tick" x="{place:.1f}" y="{bottom + 18}" text-anchor="middle">')
        out.append(f"{escape(tick.text)}</text>")
    for row, bar in enumerate(bars):
        out.append(_bar(x, bar, TOP + (row + 0.5) * BAR_ROW))
    out.append(f'<path class="axis" d="M{x0} {TOP}V{bottom}H{x1}"/>')
    out.append(
        f'<text class="label" x="{(x0 + x1) / 2}" y="{height - 8}" text-anchor="middle">'
        f"{escape(x_label)}</text></svg>"
    )
    return "".join(out)


def _bar(x: Scale, bar: Bar, y: float) -> str:
    start, end = x.at(0.0), x.at(bar.mean)
    half = BAR_ROW * 0.3
    edge = end
    kind = "bar open" if bar.open_end else "bar"
    out = [
        f'<g class="series {colour_class(bar.index)}"><title>{escape(bar.tip)}</title>'
        f'<text class="name" x="{BAR_LEFT - 12}" y="{y + 4:.1f}" text-anchor="end">'
        f"{escape(shortened(bar.name))}</text>"
        f'<rect class="{kind}" x="{start:.1f}" y="{y - half:.1f}" rx="2" '
        f'width="{max(end - start, 0):.1f}" height="{2 * half:.1f}"/>'
    ]
    for i, run in enumerate(sorted(bar.runs)):
        # Dots of equal runs would hide each other: they take turns above and below the middle.
        out.append(
            f'<circle class="run" cx="{x.at(run):.1f}" cy="{y + 5 - 5 * (i % 3):.1f}" r="2"/>'
        )
        edge = max(edge, x.at(run))
    if bar.low is not None and bar.high is not None:
        low, high = x.at(max(bar.low, x.low)), x.at(bar.high)
        edge = max(edge, high)
        out.append(
            f'<path class="whisker" d="M{low:.1f} {y:.1f}H{high:.1f}M{low:.1f} {y - 5:.1f}v10'
            f'M{high:.1f} {y - 5:.1f}v10"/>'
        )
    out.append(
        f'<text class="value" x="{edge + 9:.1f}" y="{y + 4:.1f}">{escape(bar.text)}</text></g>'
    )
    return "".join(out)


def shortened(name: str, most: int = 30) -> str:
    """Return a name that fits beside a bar; the hover text has it whole."""
    return name if len(name) <= most else name[: most - 1] + "…"
