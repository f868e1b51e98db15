"""The page of a report: one HTML file that carries all it needs; it measures nothing itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from engine.sim import plots, scales
from engine.sim import report_figures as figures
from engine.sim.capacity import Capacity, Criterion
from engine.sim.report_style import style
from engine.sim.statistics import Interval, jain
from engine.sim.tally import ALL, Tallies
from engine.sim.workload import SimTier

FAR = 0.1  # attainment this far below the objective is shown as a plain failure


@dataclass(frozen=True, slots=True)
class Report:
    """All that a page shows. `facts` are (name, value) lines of its head, in order."""

    title: str
    facts: Sequence[tuple[str, str]]
    tiers: Sequence[SimTier]
    tallies: Tallies
    capacities: Sequence[Capacity]
    criterion: Criterion
    capacity_is_searched: bool

    @property
    def by_rank(self) -> list[SimTier]:
        """The tiers, the first served first."""
        return sorted(self.tiers, key=lambda tier: tier.slo.rank)


def page(report: Report) -> str:
    """Return the whole page; equal reports give equal text."""
    tallies = report.tallies
    chosen = knee(report)
    body = [
        f"<h1>{escape(report.title)}</h1>",
        f'<p class="soft">{escape(_subtitle(report))}</p>',
        _facts(report.facts),
        _legend(tallies.labels),
        "<h2>How much each policy can take</h2>",
        f'<div class="plots">{capacity_figure(report)}</div>',
        "<h2>Attainment at every rate</h2>",
        _attainment_note(report),
        _attainment_table(report),
        "<h2>Attainment against rate</h2>",
        '<div class="plots">',
        *[
            figures.attainment(tallies, tier.name, zoom=zoom)
            for tier in report.by_rank
            for zoom in (False, True)
        ],
        "</div><h2>What is achieved</h2>",
        f'<div class="plots">{figures.goodput(tallies)}{figures.token_rate(tallies)}',
        *[
            figures.ttft_against_rate(tallies, tier.name, name)
            for tier in report.by_rank
            for name in ("p50", "p99")
        ],
        "</div><h2>One rate in detail</h2>",
        _rate_choice(tallies.rates, chosen),
    ]
    for index, rate in enumerate(tallies.rates):
        body.append(f'<div class="at-rate rate-{index}">{_at_rate(report, rate)}</div>')
    body.append(_footer())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(report.title)}</title>"
        f"<style>{style(len(tallies.labels), len(tallies.rates))}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def knee(report: Report) -> int:
    """Return the place of the rate to look at first: where policies differ most."""
    tallies = report.tallies
    best, place = -1.0, 0
    for index, rate in enumerate(tallies.rates):
        margins = [
            report.criterion.margin(cell)
            for label in tallies.labels
            if (cell := tallies.cell(label, rate))
        ]
        spread = max(margins) - min(margins)
        if spread > best and max(margins) >= 0:
            best, place = spread, index
    return place


def _subtitle(report: Report) -> str:
    names = [tier.name for tier in report.by_rank]
    counts = (
        _count(len(report.tallies.labels), "policy", "policies"),
        _count(len(report.tallies.rates), "rate", "rates"),
        _count(len(report.tallies.seeds), "seed", "seeds"),
    )
    same = "; every policy met the very same requests" * (len(report.tallies.labels) > 1)
    return f"{', '.join(counts)}, tiers {' and '.join(names)}{same}."


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _facts(facts: Sequence[tuple[str, str]]) -> str:
    rows = []
    for name, value in facts:
        wide = ' class="wide"' if len(value) > 60 else ""
        rows.append(f"<div{wide}><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>")
    return f'<dl class="facts">{"".join(rows)}</dl>'


def _legend(labels: Sequence[str]) -> str:
    chips = "".join(
        f'<label class="chip"><input type="checkbox" id="policy-{i}" checked>'
        f"{plots.swatch(i)}{escape(label)}</label>"
        for i, label in enumerate(labels)
    )
    return f'<fieldset class="legend"><legend>Policies</legend>{chips}</fieldset>'


def _rate_choice(rates: Sequence[float], chosen: int) -> str:
    chips = "".join(
        f'<label class="chip"><input type="radio" name="rate" id="rate-{i}"'
        f"{' checked' * (i == chosen)}>{rate:g}</label>"
        for i, rate in enumerate(rates)
    )
    return (
        f'<fieldset class="rates"><legend>Requests per second</legend>{chips}</fieldset>'
        '<p class="soft">Distributions and numbers at the rate chosen here. '
        "First shown: the rate at which the policies lie farthest apart.</p>"
    )


def capacity_figure(report: Report) -> str:
    """Return the bars of all policies' capacities."""
    how = (
        "found by bisection"
        if report.capacity_is_searched
        else "read off the rates below by straight lines"
    )
    return figures.capacity_bars(report.capacities, report.criterion.text, how)


def _attainment_note(report: Report) -> str:
    names = " / ".join(tier.name for tier in report.by_rank)
    goals = " / ".join(scales.percent(tier.objective) for tier in report.by_rank)
    return (
        f'<p class="soft">Per cent of all offered requests of {escape(names)} that met both '
        f"targets, mean over seeds; objectives {goals}. Green with ✓: every tier met its own.</p>"
    )


def _attainment_table(report: Report) -> str:
    tallies = report.tallies
    head = "".join(f'<th scope="col">{rate:g}</th>' for rate in tallies.rates)
    rows = []
    for index, label in enumerate(tallies.labels):
        cells = "".join(_attainment_cell(report, label, rate) for rate in tallies.rates)
        rows.append(f'<tr class="n{index}">{_row_head(index, label)}{cells}</tr>')
    return (
        '<div class="scroll"><table><thead><tr><th class="left">policy</th>'
        f"{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _row_head(index: int, label: str) -> str:
    return f'<th scope="row">{plots.swatch(index)}{escape(label)}</th>'


def _attainment_cell(report: Report, label: str, rate: float) -> str:
    parts, tips, margins = [], [], []
    for tier in report.by_rank:
        mean = report.tallies.interval(label, rate, tier.name, "attainment")
        if mean is None:
            parts.append("–")
            continue
        shown = f"{100 * mean.mean:.1f}"
        parts.append("100" if shown == "100.0" and mean.mean >= 1 else shown)
        tips.append(f"{tier.name} {figures.plus_minus(mean, scales.percent)}")
        margins.append(mean.mean - tier.objective)
    worst = min(margins, default=-1.0)
    kind = "good" if worst >= -1e-6 else "bad far" if worst < -FAR else "bad"
    tick = " ✓" if kind == "good" else ""
    tip = escape("; ".join(tips), quote=True)
    return f'<td class="{kind}" title="{tip}">{"/".join(parts)}{tick}</td>'


def _at_rate(report: Report, rate: float) -> str:
    tallies = report.tallies
    plots_here = "".join(
        draw(tallies, tier, rate)
        for tier in report.by_rank
        for draw in (figures.ttft_distribution, figures.lateness_distribution)
    )
    return (
        f'<div class="plots">{plots_here}</div><h3 style="margin-top:20px">Tiers at {rate:g} '
        f"requests per second</h3>{_tier_table(report, rate)}"
        f'<h3 style="margin-top:20px">The whole load at {rate:g} requests per second</h3>'
        f"{_total_table(report, rate)}"
    )


# (heading, path within a tier, how it is written)
_TIER_COLUMNS = (
    ("TTFT p50", ("ttft_ms", "p50"), scales.duration),
    ("TTFT p95", ("ttft_ms", "p95"), scales.duration),
    ("TTFT p99", ("ttft_ms", "p99"), scales.duration),
    ("token lateness p99", ("lateness_ms", "p99"), scales.duration),
    ("normalised p50", ("normalised_latency_ms", "p50"), scales.duration),
)


def _tier_table(report: Report, rate: float) -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name, _, _ in _TIER_COLUMNS)
    groups = []
    for tier in report.by_rank:
        rows = []
        for index, label in enumerate(report.tallies.labels):
            if not report.tallies.cell(label, rate):
                continue
            mean = report.tallies.interval(label, rate, tier.name, "attainment")
            met = mean is not None and mean.mean >= tier.objective - 1e-6
            cells = [f'<td class="{"good" if met else "bad"}">{_number(mean, scales.percent)}</td>']
            for _, path, text in _TIER_COLUMNS:
                value = report.tallies.interval(label, rate, tier.name, *path)
                cells.append(f"<td>{_number(value, text, unknown='never')}</td>")
            name = f'<td class="left">{escape(tier.name)}</td>'
            rows.append(
                f'<tr class="n{index}">{_row_head(index, label)}{name}{"".join(cells)}</tr>'
            )
        groups.append(f'<tbody class="group">{"".join(rows)}</tbody>')
    return (
        '<div class="scroll"><table><thead><tr><th class="left">policy</th><th class="left">tier'
        f'</th><th scope="col">attainment</th>{head}</tr></thead>{"".join(groups)}</table></div>'
    )


def _gigabytes(value: float) -> str:
    return f"{value / 1e9:.3g} GB"


_TOTAL_COLUMNS = (
    ("goodput", "goodput", figures.per_second),
    ("output tokens/s", "tokens_per_s", scales.plain),
    ("longest wait", "longest_wait_ms", scales.duration),
    ("preemptions", "preemptions", scales.plain),
    ("most of one request", "max_preemptions", scales.plain),
    ("parks", "parks", scales.plain),
    ("recomputed", "recompute_share", scales.percent),
    ("swapped", "swap_bytes", _gigabytes),
    ("refused", "refused", scales.plain),
    ("unfinished", "unfinished", scales.plain),
)


def _total_table(report: Report, rate: float) -> str:
    tallies = report.tallies
    columns = [
        column
        for column in _TOTAL_COLUMNS
        if any(row.number(ALL, column[1]) is not None for row in tallies.rows)
    ]
    many_tenants = any(len(row.attainment_by_tenant) > 1 for row in tallies.rows)
    head = "".join(f'<th scope="col">{name}</th>' for name, _, _ in columns)
    if many_tenants:
        head += '<th scope="col">worst tenant</th><th scope="col">Jain\'s index</th>'
    rows = []
    for index, label in enumerate(tallies.labels):
        if not tallies.cell(label, rate):
            continue
        cells = []
        for _, field, text in columns:
            value = tallies.interval(label, rate, ALL, field)
            cells.append(f"<td>{_number(value, text)}</td>")
        if many_tenants:
            worst, index_of_all = fairness(
                [row.attainment_by_tenant for row in tallies.cell(label, rate)]
            )
            cells.append(f"<td>{escape(worst)}</td><td>{index_of_all}</td>")
        rows.append(f'<tr class="n{index}">{_row_head(index, label)}{"".join(cells)}</tr>')
    return (
        '<div class="scroll"><table><thead><tr><th class="left">policy</th>'
        f"{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def fairness(seeds: Sequence[Mapping[str, float]]) -> tuple[str, str]:
    """Return the worst tenant with its attainment, and Jain's index, over the seeds' means."""
    known: dict[str, list[float]] = {}
    for tenants in seeds:
        for name, share in tenants.items():
            known.setdefault(name, []).append(share)
    if not known:
        return "–", "–"
    means = {name: sum(shares) / len(shares) for name, shares in known.items()}
    worst = min(means, key=lambda name: (means[name], name))
    return f"{worst} {scales.percent(means[worst])}", f"{jain(list(means.values())):.3f}"


def _number(found: Interval | None, text: scales.Format, unknown: str = "–") -> str:
    if found is None:
        return unknown
    half = found.half_width
    spread = f" <small>± {escape(text(half))}</small>" if half else ""
    return f"{escape(text(found.mean))}{spread}"


def _footer() -> str:
    return (
        "<footer><p>± and bands are 95 % confidence intervals over seeds (Student's t). Attainment "
        "counts every offered request: refused, failed and unfinished ones are misses. TTFT runs "
        "from arrival to the first token; a token's lateness is the time after its due time, 0 "
        "when early; normalised latency is arrival to end over output tokens.</p><p>Beside this "
        "page: <code>summary.csv</code>, <code>intervals.csv</code>, <code>points.jsonl</code>, "
        "<code>run.json</code>, plots as files in <code>plots/</code> and the requests of every "
        "point in <code>records/</code>.</p></footer>"
    )
