"""The figures of a report: which numbers of a grid go into which plot; drawing is for `plots`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from html import escape

from engine.core.clock import NS_PER_MS
from engine.sim import plots, scales
from engine.sim.capacity import Capacity
from engine.sim.plots import Bar, Frame, Mark, Reference, Series
from engine.sim.statistics import Histogram, Interval
from engine.sim.tally import ALL, Tallies
from engine.sim.workload import SimTier

RATE_LABEL = "offered requests per second"
ZOOM = 6.0  # the close-up shows the objective's misses this many times over
WORDS = {"p50": "Median", "p95": "95th percentile", "p99": "99th percentile"}
TOKEN_RATES = (("loaded_tokens_per_s", "until the last arrival"), ("tokens_per_s", "to the end"))


def figure(svg: str, title: str, caption: str, classes: str = "") -> str:
    """Return a figure: title and caption in words above the plot."""
    extra = f' class="{classes}"' if classes else ""
    words = f"<figcaption><b>{escape(title)}</b>{escape(caption)}</figcaption>"
    return f"<figure{extra}>{words}{svg}</figure>"


def per_second(rate: float) -> str:
    """Return a rate with its unit."""
    return f"{rate:.4g} req/s"


def plus_minus(found: Interval, text: Callable[[float], str]) -> str:
    """Return a mean with half its interval's width, in the words of `text`."""
    if found.half_width is None:
        return f"{text(found.mean)}, {found.count} seed{'s' * (found.count != 1)}"
    return f"{text(found.mean)} ± {text(found.half_width)}, {found.count} seeds"


def attainment(tallies: Tallies, tier: str, *, zoom: bool) -> str:
    """Plot a tier's attainment against the rate, whole or only around its objective."""
    objective = tallies.objectives[tier]
    low = min(max(0.0, 1 - ZOOM * (1 - objective)), 0.99) if zoom else 0.0
    series = _all_series(tallies, (tier, "attainment"), scales.percent, most=1.0)
    title = f"Attainment, {tier}" + (" (close-up)" if zoom else "")
    frame = Frame(
        id=_id("attainment", tier, "close" if zoom else "whole"),
        title=title,
        desc=_describe(series, scales.percent),
        x_label=RATE_LABEL,
        y_label="attainment",
        x=_rate_axis(tallies),
        y=scales.linear(low, 1.0, *plots.plot_y(), scales.percent),
        references=[Reference(f"objective {scales.percent(objective)}", y=objective)],
    )
    caption = f"Share of all offered {tier} requests that met both targets; band: 95 % interval."
    if zoom:
        caption = "The same, around the objective."
    return figure(plots.line_plot(frame, series), title, caption)


def ttft_against_rate(tallies: Tallies, tier: str, name: str) -> str:
    """Plot a quantile of a tier's TTFT against the rate, on a logarithmic axis."""
    series = _all_series(tallies, (tier, "ttft_ms", name), scales.duration, is_log=True)
    found = scales.extent(m.y for s in series for m in s.marks)
    low, high = found or (100.0, 1000.0)
    title = f"{WORDS[name]} of TTFT, {tier}"
    frame = Frame(
        id=_id("ttft", tier, name),
        title=title,
        desc=_describe(series, scales.duration),
        x_label=RATE_LABEL,
        y_label="time to first token",
        x=_rate_axis(tallies),
        y=scales.logarithmic(max(low, 0.1), max(high, 0.2), *plots.plot_y(), scales.duration),
    )
    caption = "Geometric mean over seeds; a line ends where that many requests got no token."
    return figure(plots.line_plot(frame, series), title, caption)


def goodput(tallies: Tallies) -> str:
    """Plot requests in time per second against requests offered per second."""
    series = _all_series(tallies, (ALL, "goodput"), per_second)
    highest = max([tallies.rates[-1], *[m.y for s in series for m in s.marks]])
    frame = Frame(
        id="goodput",
        title="Goodput",
        desc=_describe(series, per_second),
        x_label=RATE_LABEL,
        y_label="requests in time per second",
        x=_rate_axis(tallies),
        y=scales.linear(0.0, scales.up_to(highest), *plots.plot_y(), scales.plain),
        references=[Reference("all of them in time", diagonal=True)],
    )
    caption = "Requests per second that met both targets of their tier."
    return figure(plots.line_plot(frame, series), "Goodput", caption)


def token_rate(tallies: Tallies) -> str:
    """Plot output tokens per second against the rate."""
    field, when = next(
        (
            (field, when)
            for field, when in TOKEN_RATES
            if all(row.number(ALL, field) is not None for row in tallies.rows)
        ),
        TOKEN_RATES[-1],
    )
    series = _all_series(tallies, (ALL, field), _tokens)
    highest = max([m.y for s in series for m in s.marks], default=1.0)
    frame = Frame(
        id="tokens",
        title="Output tokens",
        desc=_describe(series, _tokens),
        x_label=RATE_LABEL,
        y_label="tokens per second",
        x=_rate_axis(tallies),
        y=scales.linear(0.0, scales.up_to(highest), *plots.plot_y(), scales.plain),
    )
    caption = f"Output tokens per second, in time or not, {when}."
    return figure(plots.line_plot(frame, series), "Output tokens", caption)


def _tokens(value: float) -> str:
    return f"{value:.4g} tokens/s"


def ttft_distribution(tallies: Tallies, tier: SimTier, rate: float) -> str:
    """Plot the distribution of a tier's TTFT at one rate, all seeds together."""
    slo = tier.slo
    target = "target" if not slo.ttft_ns_per_1k_prompt_tokens else "target, shortest prompts"
    caption = "All seeds together; what is missing at the right never got a token."
    return _distribution(
        tallies,
        tier.name,
        rate,
        ("ttft", "Time to first token", "at most this long", caption),
        [Reference(target, x=slo.ttft_ns / NS_PER_MS)],
    )


def lateness_distribution(tallies: Tallies, tier: SimTier, rate: float) -> str:
    """Plot the distribution of each request's worst token lateness at one rate."""
    caption = "Each request counts with its latest token; at the left edge those never late."
    words = ("lateness", "Worst token lateness", "at most this late", caption)
    return _distribution(tallies, tier.name, rate, words, [])


def _distribution(
    tallies: Tallies,
    tier: str,
    rate: float,
    words: tuple[str, str, str, str],
    references: Sequence[Reference],
) -> str:
    which, what, x_label, caption = words
    series = []
    for index, label in enumerate(tallies.labels):
        if cell := tallies.cell(label, rate):
            pooled = Histogram.total([getattr(row, which)[tier] for row in cell])
            steps = pooled.cumulative()
            series.append(Series(index, label, steps=steps, tip=_in_words(label, steps)))
    # One axis for all rates: choosing another rate must not move the ground.
    ends = [
        end
        for row in tallies.rows
        if (steps := getattr(row, which)[tier].cumulative())
        for end in (steps[0][0], steps[-1][0])
    ]
    low, high = scales.extent(ends) or (1.0, 1000.0)
    title = f"{what}, {tier}"
    frame = Frame(
        id=_id(which, tier, f"{rate:g}"),
        title=f"{title} at {per_second(rate)}",
        desc=" ".join(one.tip for one in series),
        x_label=x_label,
        y_label="share of offered requests",
        x=scales.logarithmic(low, max(high, 2 * low), *plots.plot_x(), scales.duration),
        y=scales.linear(0.0, 1.0, *plots.plot_y(), scales.percent),
        references=references,
    )
    return figure(plots.line_plot(frame, series), title, caption)


def _in_words(label: str, steps: Sequence[tuple[float, float]]) -> str:
    """Return a distribution in a sentence: where it passes one half, 95 and 99 per cent."""
    parts = []
    for share in (0.5, 0.95, 0.99):
        at = next((value for value, reached in steps if reached >= share), None)
        parts.append(
            f"{share:.0%} within {scales.duration(at)}"
            if at is not None
            else f"{share:.0%} never reached"
        )
    return f"{label}: {', '.join(parts)}."


def capacity_bars(capacities: Sequence[Capacity], criterion: str, how: str) -> str:
    """Draw each policy's capacity with the interval over seeds and a dot for each seed."""
    ends = [c.rate for c in capacities]
    for one in capacities:
        ends += [*one.by_seed.values(), one.interval.high or 0.0]
    bars = [
        Bar(
            index,
            one.label,
            one.rate,
            one.interval.low,
            one.interval.high,
            list(one.by_seed.values()),
            capacity_text(one),
            f"{one.label}: {capacity_text(one)} req/s; single seeds "
            + ", ".join(f"{rate:.3g}" for rate in one.by_seed.values()),
            open_end=one.at_least,
        )
        for index, one in enumerate(capacities)
    ]
    x = scales.linear(0.0, max(ends) * 1.02 or 1.0, *plots.bar_x(), scales.plain)
    desc = "; ".join(f"{one.label} {capacity_text(one)} requests per second" for one in capacities)
    svg = plots.bar_plot("capacity", f"Capacity: {criterion}", desc, "requests per second", x, bars)
    caption = (
        f"The largest rate at which {criterion}, {how}. Bar: mean attainment of all seeds; "
        "whisker: 95 % interval over the capacities of single seeds (dots)."
    )
    return figure(svg, "Capacity", caption, "wide")


def capacity_text(one: Capacity) -> str:
    """Return a capacity in short: `1.52 (1.48 to 1.55)`, with a sign where it may be more."""
    digits = 2 if one.rate >= 0.1 or not one.rate else 4
    text = f"{'≥ ' * one.at_least}{one.rate:.{digits}f}"
    low, high = one.interval.low, one.interval.high
    if low is None or high is None:
        return text
    return f"{text} ({max(low, 0.0):.{digits}f} to {high:.{digits}f})"


def _all_series(
    tallies: Tallies,
    path: tuple[str, ...],
    text: Callable[[float], str],
    most: float = math.inf,
    *,
    is_log: bool = False,
) -> list[Series]:
    """Return a line for each policy: the mean over seeds of the number at `path`, by rate.

    On logarithmic axes mean and interval are those of the logarithms: they look as they are.
    """
    found = []
    for index, label in enumerate(tallies.labels):
        marks = []
        for rate in tallies.rates:
            mean = tallies.interval(label, rate, *path, is_log=is_log)
            if mean is None:
                continue
            low, high = mean.low, mean.high
            if low is None or high is None:
                words = f"{text(mean.mean)}, 1 seed"
            else:
                low, high = max(low, 0.0), min(high, most)
                words = f"{text(mean.mean)}, 95 % interval {text(low)} to {text(high)}"
            tip = f"{label} at {per_second(rate)}: {words}"
            marks.append(Mark(rate, mean.mean, low, high, tip))
        found.append(Series(index, label, marks))
    return found


def _rate_axis(tallies: Tallies) -> scales.Scale:
    low, high = tallies.rates[0], tallies.rates[-1]
    pad = (high - low) * 0.03 or high * 0.1
    return scales.linear(max(0.0, low - pad), high + pad, *plots.plot_x(), scales.plain)


def _describe(series: Sequence[Series], text: Callable[[float], str]) -> str:
    """Say in words what the lines show: their values from the lowest rate to the highest."""
    parts = []
    for one in series:
        values = ", ".join(f"{text(m.y)} at {m.x:g}" for m in one.marks)
        parts.append(f"{one.name}: {values or 'no value'}.")
    return " ".join(parts)


def _id(*parts: str) -> str:
    """Return an identifier for the page: tiers may have any name."""
    return "-".join(
        re.sub(r"[^A-Za-z0-9]", lambda found: f"_{ord(found[0]):x}", part) for part in parts
    )
