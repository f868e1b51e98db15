"""Plots of a report as files of their own, to be shown elsewhere: with title, legend and colours.

It knows how a plot's text is built, and nothing of what it shows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from engine.sim import report_figures as figures
from engine.sim.plots import MARKERS, colour_class, dash
from engine.sim.report_page import Report, capacity_figure
from engine.sim.report_style import alone

HEADER, LEGEND_ROW, LETTER = 30, 20, 7.2


def write_plots(folder: Path, report: Report) -> None:
    """Write `capacity.svg`, `goodput.svg` and an `attainment_TIER.svg` for each tier."""
    tallies = report.tallies
    made = {"goodput": figures.goodput(tallies)}
    for tier in report.by_rank:
        made[f"attainment_{slug(tier.name)}"] = figures.attainment(tallies, tier.name, zoom=False)
    texts = {name: plot_file(figure, tallies.labels) for name, figure in made.items()}
    texts["capacity"] = plot_file(capacity_figure(report), ())  # bars carry their names
    for name, text in texts.items():
        (folder / f"{name}.svg").write_text(text, encoding="utf-8")


def slug(name: str) -> str:
    """Return a tier's name as part of a file name."""
    return re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip("-.") or "tier"


def plot_file(figure: str, labels: Sequence[str]) -> str:
    """Return the plot of a figure as a whole SVG file; `labels` are its legend, in their order."""
    found = re.search(
        r'<svg viewBox="0 0 (?P<width>[\d.]+) (?P<height>[\d.]+)"(?P<rest>[^>]*)>'
        r"(?P<words><title.*?</desc>)(?P<inside>.*)</svg>",
        figure,
        flags=re.S,
    )
    assert found is not None, "a figure without a plot"
    width, height = float(found["width"]), float(found["height"])
    title = re.sub(r"<[^>]*>", "", found["words"][: found["words"].index("</title>")])
    legend, rows = _legend(labels, width)
    total = HEADER + height + rows * LEGEND_ROW + 12 * bool(rows)
    # The title is text of the page in a report; hover texts of the whole stay out of the way.
    return alone(
        f'<svg viewBox="0 0 {width:g} {total:g}" width="{width:g}" height="{total:g}"'
        f"{found['rest']}>{found['words']}"
        f'<text class="value" x="16" y="22">{title}</text>'
        f'<g transform="translate(0 {HEADER})">{found["inside"]}</g>'
        f'<g transform="translate(0 {HEADER + height + 6:g})">{legend}</g></svg>'
    )


def _legend(labels: Sequence[str], width: float) -> tuple[str, int]:
    """Return the legend in as many columns as fit, and its number of rows."""
    if not labels:
        return "", 0
    cell = 52 + LETTER * max(map(len, labels))
    columns = max(1, min(len(labels), int((width - 16) / cell)))
    return "".join(_entries(labels, columns, cell)), -(-len(labels) // columns)


def _entries(labels: Sequence[str], columns: int, cell: float) -> Iterator[str]:
    for index, label in enumerate(labels):
        row, column = divmod(index, columns)
        x, y = 16 + column * cell, 8 + row * LEGEND_ROW
        shape = MARKERS[index % len(MARKERS)]
        yield (
            f'<g class="{colour_class(index)}" transform="translate({x:.1f} {y})">'
            f'<path class="line"{dash(index)} d="M0 0H28"/>'
            f'<path class="mark" transform="translate(14 0)" d="{shape}"/>'
            f'<text class="name" x="36" y="4">{escape(label)}</text></g>'
        )
