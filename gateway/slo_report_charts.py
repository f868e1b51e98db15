"""Draws a report's charts as SVG: day by day, and how much of the time allowed was used.

Pictures only: the numbers behind them are in the tables and lines of the report. Colours are the
page's variables, so that one drawing serves light, dark and paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from fractions import Fraction

from gateway.slo_report_figures import esc, percent_of
from tenants.slo_report_sums import BARS

WIDTH, LEFT, RIGHT = 760, 58, 12
PLOT = WIDTH - LEFT - RIGHT
_HEIGHTS = (96, 96, 96)
_GAP = 46
_NICE = (1, 2, 5)


def days_chart(
    since: datetime,
    until: datetime,
    days: Mapping[datetime, Mapping[str, int]],
    target: Fraction | None,
    tier: str,
) -> str:
    """Return attainment, budget left and requests by the day; `days` are counts by their start."""
    first = since.replace(hour=0, minute=0)
    num = max(1, -(-(until - first) // timedelta(days=1)))
    starts = [first + i * timedelta(days=1) for i in range(num)]
    found = [days.get(max(start, since), {}) for start in starts]
    counted = [int(day.get("counted_all", 0)) for day in found]
    bad = [int(day.get("bad_all", 0)) for day in found]
    offered = [int(day.get("offered", 0)) for day in found]
    step = PLOT / num
    top = 30
    parts = [_attainment(top, step, counted, bad, target)]
    top += _HEIGHTS[0] + _GAP
    if target is not None and target < 1 and any(counted):
        parts.append(_budget(top, step, counted, bad, target))
        top += _HEIGHTS[1] + _GAP
    parts.append(_requests(top, step, offered, bad))
    top += _HEIGHTS[2]
    parts.append(_dates(top, step, starts))
    label = (
        f"Tier {tier} by the day: share of requests that kept both promises, budget left, requests"
    )
    return _svg(top + 26, label, parts)


def _attainment(
    top: float, step: float, counted: Sequence[int], bad: Sequence[int], target: Fraction | None
) -> str:
    shares = [1 - b / c if c else None for c, b in zip(counted, bad, strict=True)]
    lowest = min([s for s in shares if s is not None] + [float(target or 1)], default=1.0)
    floor = next(f for f in (0.999, 0.99, 0.98, 0.95, 0.9, 0.8, 0.5, 0.0) if f <= lowest)
    height = _HEIGHTS[0]

    def y(share: float) -> float:
        return top + height * (1 - (share - floor) / (1 - floor))

    parts = [_title(top, "Kept both promises, by the day")]
    parts += [_rule(y(share), f"{100 * share:g} %") for share in (floor, (1 + floor) / 2, 1.0)]
    if target is not None:
        at = y(float(target))
        parts.append(
            f'<line class="goal" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
        )
        parts.append(
            f'<text class="goal" x="{WIDTH - RIGHT}" y="{top - 16:.1f}" text-anchor="end">'
            f"- - promised {percent_of(target)} %</text>"
        )
    width = max(1.0, min(step * 0.7, 22))
    for i, share in enumerate(shares):
        if share is None:
            continue
        x = LEFT + (i + 0.5) * step
        name = "good" if target is None or share >= float(target) else "bad"
        parts.append(
            f'<rect class="{name}" x="{x - width / 2:.1f}" y="{y(share):.1f}" width="{width:.1f}" '
            f'height="{max(1.0, top + height - y(share)):.1f}"/>'
        )
    return "".join(parts)


def _budget(
    top: float, step: float, counted: Sequence[int], bad: Sequence[int], target: Fraction
) -> str:
    """Draw what is left of the whole span's budget at the end of each day."""
    allowed = float((1 - target) * sum(counted))
    left, spent = [1.0], 0
    for one in bad:
        spent += one
        left.append(1 - spent / allowed)
    low = min(0.0, *left)
    low = -_nice(-low) if low < 0 else 0.0
    height = _HEIGHTS[1]

    def y(share: float) -> float:
        return top + height * (1 - (share - low) / (1 - low))

    points = " ".join(f"{LEFT + i * step:.1f},{y(share):.1f}" for i, share in enumerate(left))
    zero = y(0)
    area = f"{LEFT:.1f},{zero:.1f} {points} {LEFT + PLOT:.1f},{zero:.1f}"
    parts = [_title(top, "Error budget left of the whole span")]
    parts += [_rule(y(share), f"{100 * share:g} %") for share in sorted({low, 0.0, 1.0})]
    parts.append(f'<polygon class="area" points="{area}"/>')
    parts.append(f'<polyline class="line" points="{points}"/>')
    return "".join(parts)


def _requests(top: float, step: float, offered: Sequence[int], bad: Sequence[int]) -> str:
    most = _nice(max([*offered, 1]))
    height = _HEIGHTS[2]
    parts = [_title(top, "Requests offered, and among them misses")]
    whole_ones = [int(n) for n in (0, most / 2, most) if n == int(n)]
    parts += [_rule(top + height * (1 - n / most), f"{n:,}") for n in whole_ones]
    width = max(1.0, min(step * 0.7, 22))
    for i, (whole, missed) in enumerate(zip(offered, bad, strict=True)):
        if not whole:
            continue
        x = LEFT + (i + 0.5) * step - width / 2
        tall, small = height * whole / most, height * missed / most
        parts.append(
            f'<rect class="quiet" x="{x:.1f}" y="{top + height - tall:.1f}" width="{width:.1f}" '
            f'height="{tall:.1f}"/>'
        )
        if missed:
            small = max(small, 1.5)
            parts.append(
                f'<rect class="bad" x="{x:.1f}" y="{top + height - small:.1f}" '
                f'width="{width:.1f}" height="{small:.1f}"/>'
            )
    return "".join(parts)


def _dates(top: float, step: float, starts: Sequence[datetime]) -> str:
    every = max(1, -(-len(starts) // 10))
    parts = []
    for i in range(0, len(starts), every):
        x = LEFT + (i + 0.5) * step
        day = starts[i].astimezone(UTC)
        parts.append(
            f'<text x="{x:.1f}" y="{top + 17}" text-anchor="middle">{day:%d}&#160;{day:%b}</text>'
        )
    return "".join(parts)


def speed_chart(bars: Sequence[int], what: str, tier: str) -> str:
    """Return how many requests used how much of the time they were promised; 100 % is the end."""
    most = max([*bars, 1])
    height, top = 110, 34
    step = PLOT / BARS
    parts = [_title(top, what)]
    for i, count in enumerate(bars):
        if not count:
            continue
        tall = max(1.0, height * count / most)
        name = "good" if i < BARS // 2 else "bad"
        parts.append(
            f'<rect class="{name}" x="{LEFT + i * step + 1:.1f}" y="{top + height - tall:.1f}" '
            f'width="{step - 2:.1f}" height="{tall:.1f}"/>'
        )
    base = top + height
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>')
    parts.append(_rule(top, f"{most:,}"))
    middle = LEFT + PLOT / 2
    parts.append(f'<line class="goal" x1="{middle}" x2="{middle}" y1="{top - 8}" y2="{base}"/>')
    for power in range(-5, 6):
        x = middle + 2 * power * step
        share = f"{100 * 2**power:,g} %" if power > -4 else f"{100 * 2**power:.0f} %"
        parts.append(f'<text x="{x:.1f}" y="{base + 17}" text-anchor="middle">{share}</text>')
    label = f"Tier {tier}: {what}; {sum(bars[: BARS // 2])} in time, {sum(bars[BARS // 2 :])} late"
    return _svg(base + 26, label, parts)


def _nice(value: float) -> float:
    """Return the next of 1, 2, 5, 10, 20 ... at or above a value."""
    power = 1.0
    while power * 10 <= value:
        power *= 10
    while power > value and value > 0:
        power /= 10
    return next((n * power for n in _NICE if n * power >= value), 10 * power)


def _title(top: float, text: str) -> str:
    return f'<text class="title" x="0" y="{top - 16:.1f}">{esc(text)}</text>'


def _rule(y: float, text: str) -> str:
    return (
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
    )


def _svg(height: float, label: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{esc(label)}">'
        f"{''.join(parts)}</svg>"
    )
