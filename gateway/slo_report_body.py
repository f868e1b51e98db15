"""Writes what a report's page shows: sentences and tables, each figure with its line; no style."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gateway.slo_report_charts import days_chart, speed_chart
from gateway.slo_report_figures import esc, figure, shown
from tenants.slo import Objective, Outcome
from tenants.slo_report import FORMAT, Report, request_line
from tenants.slo_report_sums import EASED, SAVED, SPAN, Line

Numbered = tuple[int, Line]
_SENTENCE = 20

OBJECTIVES = {
    "all": "Both promises",
    "ttft": "First token in time",
    "tbt": "Steady tokens",
    "availability": "Answered",
}
# The written rule (docs/slo.md), a line for each way to end.
RULES = {
    Outcome.COMPLETED: (
        "in",
        "The answer came to its end. One of no tokens was promised no time: only “answered”.",
    ),
    Outcome.DISCONNECTED: (
        "in, unless early",
        "The client left, or its key was closed. Before its first token was due, without one: not "
        "counted. Later without one: a miss. With tokens: judged by what it got; not counted for "
        "“answered”.",
    ),
    Outcome.REFUSED: (
        "in",
        "Turned away by us: no place, no hope of being in time, no engine. A miss.",
    ),
    Outcome.FAILED: ("in", "Taken, and not finished by our fault. A miss."),
    Outcome.EXPIRED: ("in", "It took longer than any request may. A miss."),
    Outcome.LIMITED: ("out", "The client’s own limit or budget was used up."),
    Outcome.INVALID: ("out", "The request could not be taken as it was."),
}

_MODES = {"gap": "each", "stream": "overall"}


class Facts:
    """The closing lines of a report, sorted by what they are."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.by_kind: dict[str, list[Numbered]] = {}
        for number, line in self.report.closing:
            self.by_kind.setdefault(str(line["record"]), []).append((number, line))

    def of(self, kind: str, **wanted: str) -> list[Numbered]:
        """Return the lines of a kind whose fields are these."""
        return [
            (number, line)
            for number, line in self.by_kind.get(kind, ())
            if all(line.get(name) == value for name, value in wanted.items())
        ]

    def one(self, kind: str, **wanted: str) -> Numbered:
        """Return the only such line."""
        (found,) = self.of(kind, **wanted)
        return found

    @property
    def tiers(self) -> list[str]:
        """The tiers that requests were served in, or asked for."""
        return [str(line["tier"]) for _, line in self.of("counts", window=SPAN)]


def table(head: Sequence[str], rows: Iterable[Sequence[str]], label: str, left: int = 1) -> str:
    """Return a table; the first `left` columns are text, the others numbers."""
    cells = "".join(
        f'<th scope="col"{"" if i < left else " class=n"}>{name}</th>'
        for i, name in enumerate(head)
    )
    body = []
    for row in rows:
        first = f'<th scope="row">{row[0]}</th>'
        rest = "".join(
            f"<td{_kind(cell, i < left)}>{cell}</td>" for i, cell in enumerate(row[1:], 1)
        )
        body.append(f"<tr>{first}{rest}</tr>")
    return (
        f'<div class="scroll" role="region" aria-label="{esc(label)}" tabindex="0"><table>'
        f"<thead><tr>{cells}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _kind(cell: str, is_text: bool) -> str:
    """Return a cell's class: only sentences are broken into lines."""
    if not is_text:
        return " class=n"
    return " class=w" if len(cell) > _SENTENCE and "<" not in cell else ""


def header(facts: Facts) -> str:
    """Return whose report this is, and of when."""
    number, head = facts.one("report")
    total = facts.one("total")
    owner = (
        f" · organisation {figure(number, head, 'organisation', 'text')}"
        if head["organisation"]
        else ""
    )
    lost = ""
    if total[1]["unrecorded"]:
        lost = (
            f'<p class="warning">{figure(*total, "unrecorded", "count")} billed answers of this '
            "time have no judgement, as those of before judgements were kept: they are not in "
            "here.</p>"
        )
    return (
        f"<header><p class=kind>Service level report</p>"
        f"<h1>{figure(number, head, 'tenant', 'text')}</h1>"
        f"<p class=when>{figure(number, head, 'since', 'minute')} to "
        f"{figure(number, head, 'until', 'minute')} UTC{owner} · "
        f"{figure(*total, 'requests', 'count')} requests</p>{lost}</header>"
    )


def summary(facts: Facts) -> str:
    """Return a sentence and a card for each tier."""
    if not facts.tiers:
        return (
            "<section><p class=lead>No request arrived in this time: there is nothing to judge."
            "</p></section>"
        )
    return "".join(_summary_of(facts, tier) for tier in facts.tiers)


def _summary_of(facts: Facts, tier: str) -> str:
    number, line = facts.one("budget", window=SPAN, tier=tier, objective="all")

    def fig(name: str, form: str) -> str:
        return figure(number, line, name, form)

    if not line["counted"]:
        said = f"No request of tier <strong>{esc(tier)}</strong> counts in this time."
    else:
        said = (
            f"In tier <strong>{esc(tier)}</strong>, {fig('attainment', 'percent')} of the "
            f"{fig('counted', 'count')} requests that count kept both promises"
        )
        if "target" in line:
            said += (
                f"; {fig('target', 'objective')} were promised: <strong class="
                f"{'good' if line['kept'] else 'bad'}>{fig('kept', 'kept')}</strong>."
            )
        else:
            said += ". What was promised is not known any more."
    cards = [
        ("Attainment", fig("attainment", "percent"), f"promised {fig('target', 'objective')}"),
        (
            "Misses",
            fig("bad", "count"),
            f"of {fig('allowed', 'number')} that the promise leaves room for",
        ),
        ("Budget left", fig("left_share", "share"), f"{fig('left', 'number')} requests"),
        ("Burn", fig("burn", "number"), "1.00 spends the budget exactly"),
    ]
    tiles = "".join(
        f"<div class=card><h3>{name}</h3><p class=big>{value}</p><p>{more}</p></div>"
        for name, value, more in cards
    )
    return f"<section><p class=lead>{said}</p><div class=cards>{tiles}</div></section>"


def promises(facts: Facts) -> str:
    """Return what each version of the tiers promised, and when."""
    rows = []
    for n, line in facts.of("tier"):
        rows.append(
            (
                figure(n, line, "tier", "text"),
                figure(n, line, "tier_version", "count"),
                figure(n, line, "changed_at", "minute"),
                figure(n, line, "until", "minute") if line["until"] else "the end",
                f"{figure(n, line, 'ttft_ms', 'ms')} + "
                f"{figure(n, line, 'ttft_ms_per_1k_prompt_tokens', 'ms')} per 1,000 prompt tokens",
                f"{figure(n, line, 'tbt_ms', 'ms')}, {_MODES[str(line['tbt_mode'])]}",
                figure(n, line, "target", "objective"),
            )
        )
    if not rows:
        return ""
    head = ("Tier", "Version", "In force from", "until", "First token within", "Between tokens")
    return (
        "<section><h2>What was promised</h2>"
        + table((*head, "Share of requests"), rows, "What was promised", 6)
        + "<p>A request keeps its promises when its first token is in time and at most 1 of 100 "
        "later tokens is late, by the version of the tier that it was served by. Answers that "
        "are sent whole are timed overall. Times are UTC.</p></section>"
    )


def kept(facts: Facts) -> str:
    """Return attainment and budget of each objective, and the burn of each window."""
    parts = []
    for tier in facts.tiers:
        rows = []
        for objective in Objective:
            n, line = facts.one("budget", window=SPAN, tier=tier, objective=objective.value)
            forms = {"counted": "count", "bad": "count", "attainment": "percent"}
            forms |= {"allowed": "number", "left": "number", "left_share": "share"}
            forms |= {"burn": "number", "kept": "kept"}
            cells = [figure(n, line, name, form) for name, form in forms.items()]
            rows.append((OBJECTIVES[objective.value], *cells))
        head = (
            *("Objective", "Counted", "Missed", "Attainment"),
            *("Misses allowed", "left", "Budget left", "Burn", "Promise"),
        )
        parts.append(
            f"<h3>Tier {esc(tier)}</h3>" + table(head, rows, f"What was kept in tier {tier}")
        )
        parts.append(_windows(facts, tier))
    return f"<section><h2>What was kept</h2>{''.join(parts)}</section>" if parts else ""


def _windows(facts: Facts, tier: str) -> str:
    rows = []
    for n, line in facts.of("budget", tier=tier, objective="all"):
        if line["window"] == SPAN:
            continue
        name = str(line["window"])
        label = name if name in ("week", "month") else f"last {name}"
        cells = [figure(n, line, name, "minute") for name in ("since", "until")]
        forms = {"counted": "count", "bad": "count", "attainment": "percent", "burn": "number"}
        cells += [figure(n, line, field, form) for field, form in forms.items()]
        rows.append((label, *cells))
    if not rows:
        return ""
    head = ("Window", "from", "to", "Counted", "Missed", "Attainment", "Burn")
    return (
        "<p>How fast the budget was being spent at the end, and in each week and month (cut at "
        "the ends of the report). Burn 1.00 spends exactly the budget.</p>"
        + table(head, rows, f"Burn of tier {tier}", 3)
    )


def days(facts: Facts) -> str:
    """Return the charts by the day."""
    sums = facts.report.sums
    parts = []
    for tier in facts.tiers:
        by_day = {
            bounds[1]: counts
            for (bounds, name), counts in sums.counts.items()
            if bounds[0] == "day" and name == tier
        }
        chart = days_chart(sums.since, sums.until, by_day, sums.target(tier), tier)
        parts.append(f"<figure><figcaption>Tier {esc(tier)}</figcaption>{_wide(chart)}</figure>")
    return f"<section><h2>Day by day</h2>{''.join(parts)}</section>" if parts else ""


def speed(facts: Facts) -> str:
    """Return percentiles and how much of the time allowed was used."""
    names = {"ttft": "Time to the first token", "tbt": "Time between tokens"}
    rows, charts = [], []
    for n, line in facts.of("percentiles"):
        forms = {"counted": "count", **dict.fromkeys(("p50", "p90", "p95", "p99", "max"), "ns")}
        cells = [figure(n, line, field, form) for field, form in forms.items()]
        tier, measure = str(line["tier"]), str(line["measure"])
        rows.append((names[measure], esc(tier), *cells))
        what = f"{names[measure]}, as a share of the time promised"
        chart = speed_chart(facts.report.sums.bars[(tier, measure)], what, tier)
        charts.append(f"<figure><figcaption>Tier {esc(tier)}</figcaption>{_wide(chart)}</figure>")
    if not rows:
        return ""
    head = ("Measure", "Tier", "Requests", "p50", "p90", "p95", "p99", "longest")
    return (
        "<section><h2>How fast it was</h2>"
        + table(head, rows, "Percentiles", 2)
        + "<p>Nearest-rank percentiles over every request that counts and got a token: each is a "
        "time that occurred. The time between tokens of a request is the least promise that it "
        "would have kept: at most 1 of its 100 later tokens took longer.</p>"
        + "".join(charts)
        + "</section>"
    )


def outcomes(facts: Facts) -> str:
    """Return how requests ended, and which of them count by the written rule."""
    tiers = [facts.one("counts", window=SPAN, tier=tier) for tier in facts.tiers]
    rows = []
    for outcome, (place, rule) in RULES.items():
        cells = [figure(n, line, outcome.value, "count") for n, line in tiers]
        rows.append((outcome.value, *cells, place, rule))
    for name, label in (("offered", "all offered"), ("counted_all", "counted")):
        if tiers:
            cells = [figure(n, line, name, "count") for n, line in tiers]
            rows.append((label, *cells, "", ""))
    number, head = facts.one("report")
    parts = [
        f"<section><h2>What counts</h2><p>Rule {figure(number, head, 'rule', 'text')}: every "
        "request that was offered counts, but for what the client did itself.</p>",
        table(
            ("Ended", *map(esc, facts.tiers), "Counts", "Rule"), rows, "What counts and what not", 9
        ),
    ]
    reasons = [
        (
            figure(n, line, "reason", "text"),
            figure(n, line, "outcome", "text"),
            figure(n, line, "tier", "text"),
            figure(n, line, "requests", "count"),
        )
        for n, line in facts.of("reason")
    ]
    if reasons:
        parts.append("<h3>Reasons given</h3>")
        parts.append(table(("Reason", "Ended", "Tier", "Requests"), reasons, "Reasons given", 3))
    parts.append(_moved(facts, tiers))
    return "".join(parts) + "</section>"


def _moved(facts: Facts, tiers: Sequence[Numbered]) -> str:
    parts = []
    for n, line in facts.of("downgrade"):
        parts.append(
            f"<li>{figure(n, line, 'requests', 'count')} requests of tier "
            f"{figure(n, line, 'tier_asked', 'text')} were served, and judged, as "
            f"{figure(n, line, 'tier', 'text')}.</li>"
        )
    for n, line in tiers:
        if line.get(EASED):
            parts.append(
                f"<li>{figure(n, line, EASED, 'count')} requests of tier {esc(line['tier'])} were "
                "judged by a later time than the tier’s, because the client asked for that; "
                f"{figure(n, line, SAVED, 'count')} of them kept it and would have missed the "
                "tier’s own promise.</li>"
            )
    return f"<h3>Served otherwise</h3><ul>{''.join(parts)}</ul>" if parts else ""


def worst(facts: Facts) -> str:
    """Return the misses that were furthest from their promise."""
    rows = []
    for place in sorted(facts.report.sums.worst, reverse=True):
        n, line = place.number, request_line(place.record, "")
        rows.append(
            (
                figure(n, line, "id", "text"),
                figure(n, line, "arrival", "when"),
                figure(n, line, "tier", "text"),
                figure(n, line, "outcome", "text"),
                figure(n, line, "ttft_ns", "ns"),
                figure(n, line, "ttft_due_ns", "ns"),
                figure(n, line, "needed_tbt_ns", "ns"),
                figure(n, line, "tbt_ns", "ns"),
                figure(n, line, "total_ns", "ns"),
            )
        )
    if not rows:
        return ""
    head = ("Request", "Arrived", "Tier", "Ended", "First token", "due", "Between tokens")
    return (
        "<section><h2>Worst requests</h2><p>The misses that took, or waited in vain, the most "
        "times what was promised.</p>"
        + table((*head, "promised", "Whole"), rows, "Worst requests", 4)
        + "</section>"
    )


def checking(facts: Facts) -> str:
    """Return how to check all this."""
    _, total = facts.one("total")
    return (
        "<section class=check><h2>How to check this</h2>"
        "<p>This page holds the facts of every request. With the command of any Tiergate, at "
        "yours or at ours, save it as a file and run</p><pre>tiergate slo verify report.html</pre>"
        "<p>It judges each request again from its raw times, adds everything up again, and "
        "compares every figure that is shown here; where it has the ledger, also with that. It "
        "ends with the chain of the last line. Who notes that line knows the whole report by it: "
        f"nothing can be changed, left out, added or moved.</p><p class=chain>{esc(total['chain'])}"
        f"</p><p>Without the command: the facts are between the last two tags of this file, as "
        f"JSON lines, packed by gzip and written as base64 ({esc(FORMAT)}).</p></section>"
    )


def page_title(facts: Facts) -> str:
    """Return the title of the document."""
    _, head = facts.one("report")
    span = f"{shown(str(head['since']), 'day')} to {shown(str(head['until']), 'day')}"
    return f"Service level report: {head['tenant']}, {span}"


def _wide(chart: str) -> str:
    return f'<div class="scroll chart" role="region" aria-label="Chart" tabindex="0">{chart}</div>'
