"""Writes the tables of docs/telemetry.md from the code and from a running gateway's instruments.

Run from the repository's root: python tests/gateway/otel/telemetry_page.py
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "gateway")]

from door_kit import open_door  # noqa: E402

from gateway import metric_names as names  # noqa: E402
from gateway.instruments import Instruments  # noqa: E402
from gateway.otel import span_names as say  # noqa: E402
from gateway.prometheus_text import prometheus_name  # noqa: E402

PAGE = ROOT / "docs" / "telemetry.md"
# Of readings that a gateway without traffic does not have: their labels.
LATER = {
    names.FORECAST_ERROR: (names.TIER, names.QUANTILE),
    names.FORECAST_COVERAGE: (names.TIER,),
    names.STEP_ERROR: (names.QUANTILE,),
    names.TELEMETRY_OVERFLOWS: (names.METRIC,),
}


def metric_rows(made: Instruments) -> list[str]:
    rows = ["| in OTLP | kind | scraped as | labels | what it is |", "|---|---|---|---|---|"]
    for name, text in names.DESCRIPTIONS.items():
        labels = set(LATER.get(name, ()))
        scraped = prometheus_name(name)
        if name in made.kept:
            kind = "histogram"
            labels |= set(made.kept[name].histogram.series.labels)
            scraped += "_bucket, _count, _sum"
        else:
            one = made.observed[name]
            kind = "counter" if one.is_counter else "gauge"
            scraped += "_total" if one.is_counter else ""
            labels |= {label for _, attributes in one.read() for label in attributes}
            labels |= set(made.labels_of(name))
        unit = names.UNITS.get(name, "")
        shown = ", ".join(f"`{label}`" for label in sorted(labels))
        pushed = "" if ":" in name else f"`{name}`" + (f" ({unit})" if unit else "")
        rows.append(f"| {pushed} | {kind} | `{scraped}` | {shown} | {text} |")
    return rows


def listed(title: str, table: dict[str, str]) -> list[str]:
    return [f"| {title} | what it is |", "|---|---|"] + [
        f"| `{name}` | {text} |" for name, text in table.items()
    ]


def log_rows() -> list[str]:
    rows = ["| in JSON | in OTLP | what it is |", "|---|---|---|"]
    return rows + [
        f"| `{field}` | `{attribute}` | {text} |"
        for field, (attribute, text) in say.LOG_FIELDS.items()
    ]


def with_tables(page: str, made: Instruments) -> str:
    """Return the page with every table as it ought to be."""
    tables = {
        "metrics": metric_rows(made),
        "spans": listed("span", dict(say.SPANS)),
        "events": listed("event", dict(say.EVENTS)),
        "attributes": listed("attribute", dict(say.ATTRIBUTES)),
        "logs": log_rows(),
    }
    for name, rows in tables.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, _, rest = page.partition(begin)
        after = rest.partition(end)[2]
        assert rest, f"the page has no place for {name}"
        page = before + begin + "\n".join(rows) + "\n" + end + after
    return page


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        settings = {"otlp_endpoint": "http://127.0.0.1:9"}
        async with open_door(Path(folder), settings=settings) as door:
            made = door.services.telemetry.instruments
            PAGE.write_text(with_tables(PAGE.read_text(), made))


if __name__ == "__main__":
    asyncio.run(main())
