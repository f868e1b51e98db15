"""The page and the tables say what the tallies say: read back, number for number."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from sample_tallies import OBJECTIVES, make_tally

from engine.sim import plots, report, scales
from engine.sim.capacity import Capacity, EverySlo, capacities_of
from engine.sim.comparison import tier_fields
from engine.sim.report_page import Report, fairness, knee, page
from engine.sim.statistics import interval
from engine.sim.stored import ABOUT, WORKLOAD, StoredError, load_run
from engine.sim.tally import ALL, Tallies, Tally
from engine.sim.tiers import DEFAULT_TIERS

CAPACITIES = {"strong[a=1;b=2]": 1.9, "<weak> & co": 0.9}
RATES = (0.6, 1.0, 1.4, 1.8, 2.2)
SEEDS = (1, 2, 3)
SVG = "{http://www.w3.org/2000/svg}"
VOID = {"meta", "input", "br", "hr", "img", "link"}


def sample_report(rows: list[Tally] | None = None, **changes: object) -> Report:
    if rows is None:
        rows = [
            make_tally(label, rate, seed, at)
            for label, at in CAPACITIES.items()
            for rate in RATES
            for seed in SEEDS
        ]
    tallies = Tallies(rows)
    found = capacities_of(tallies, EverySlo())
    facts = [("trace", "lengths.csv"), ("note", "a < b & c")]
    made = Report("A title", facts, DEFAULT_TIERS, tallies, found, EverySlo(), False)
    return replace(made, **changes)  # type: ignore[arg-type]


def drawings(text: str) -> Iterator[ElementTree.Element]:
    """Parse every plot of a page; a page whose plots are no XML fails here."""
    for found in re.findall(r"<svg viewBox.*?</svg>", text, flags=re.S):
        yield ElementTree.fromstring(found)


class Balance(HTMLParser):
    """Follows tags; remembers ids and what was never closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: Counter[str] = Counter()
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.ids.update(value or "" for name, value in attrs if name == "id")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag


def test_the_page_is_whole_and_stands_alone() -> None:
    """Tags balance, ids are unique, nothing is fetched or run, and names cannot become tags."""
    text = page(sample_report())
    balance = Balance()
    balance.feed(text)
    assert balance.open == []
    assert [name for name, count in balance.ids.items() if count > 1] == []
    assert balance.tags.isdisjoint({"script", "link", "img", "iframe", "weak"})
    without_names = text.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|url\((?!#)|@import|\bsrc=", without_names)
    assert "&lt;weak&gt; &amp; co" in text


def test_every_plot_can_be_heard_and_lies_in_its_frame() -> None:
    """Title and description for readers who do not see it; no coordinate outside of the picture."""
    count = 0
    for svg in drawings(page(sample_report())):
        _, _, width, height = map(float, svg.attrib["viewBox"].split())
        if svg.attrib.get("aria-hidden"):
            continue
        count += 1
        names = svg.attrib["aria-labelledby"].split()
        said = [svg.find(f"{SVG}{tag}") for tag in ("title", "desc")]
        assert [node.attrib["id"] for node in said if node is not None] == names
        assert all(node is not None and (node.text or "").strip() for node in said)
        for text in svg.iter(f"{SVG}text"):
            if "x" in text.attrib:
                assert 0 <= float(text.attrib["x"]) <= width
                assert 0 <= float(text.attrib["y"]) <= height
        for mark in svg.iter(f"{SVG}g"):
            found = re.fullmatch(r"translate\((.*) (.*)\)", mark.attrib.get("transform", ""))
            if found is not None:
                assert 0 <= float(found[1]) <= width
                assert 0 <= float(found[2]) <= height
    assert count == 1 + 4 + 2 + 4 + 4 * len(RATES)


def test_the_points_of_a_line_lie_where_their_values_are() -> None:
    """Read back from the pixels: the mean attainment over the seeds, at each rate."""
    made = sample_report()
    svg = next(s for s in drawings(page(made)) if "Attainment, free" in (s[0].text or ""))
    x0, x1 = plots.plot_x()
    y0, y1 = plots.plot_y()
    pad = (RATES[-1] - RATES[0]) * 0.03
    for index, label in enumerate(made.tallies.labels):
        group = next(g for g in svg.iter(f"{SVG}g") if f"n{index}" in g.get("class", "").split())
        places = [
            tuple(map(float, re.findall(r"-?[\d.]+", g.attrib["transform"])))
            for g in group.iter(f"{SVG}g")
            if "transform" in g.attrib
        ]
        rates = [
            RATES[0] - pad + (x - x0) / (x1 - x0) * (RATES[-1] - RATES[0] + 2 * pad)
            for x, _ in places
        ]
        assert rates == pytest.approx(RATES, abs=0.002)
        shares = [(y - y0) / (y1 - y0) for _, y in places]
        expected = [
            interval(row.tier("free")["attainment"] for row in made.tallies.cell(label, rate)).mean
            for rate in RATES
        ]
        assert shares == pytest.approx(expected, abs=0.002)


def test_a_distribution_is_drawn_as_it_is() -> None:
    """The step line ends at the share that got a token, and passes one half at the median."""
    rows = [make_tally("a", 1.0, 1, 2.0)]
    half = rows[0].ttft["free"]
    lost = replace(half, offered=2 * half.offered)  # half of the requests never got a token
    rows[0] = replace(rows[0], ttft={**rows[0].ttft, "free": lost})
    text = page(sample_report(rows))
    svg = next(s for s in drawings(text) if "Time to first token, free" in (s[0].text or ""))
    line = next(p for p in svg.iter(f"{SVG}path") if p.get("class") == "line")
    last_y = float(re.findall(r"V([\d.]+)", line.attrib["d"])[-1])
    y0, y1 = plots.plot_y()
    assert (last_y - y0) / (y1 - y0) == pytest.approx(0.5, abs=0.002)
    assert "99% never reached" in text


def test_bars_end_at_the_capacity_and_whiskers_at_the_interval() -> None:
    found = Capacity("a", 1.5, False, {1: 1.4, 2: 1.6}, interval([1.4, 1.6]))
    rows = [make_tally("a", rate, seed, 1.5) for rate in RATES for seed in (1, 2)]
    svg = next(drawings(page(sample_report(rows, capacities=[found]))))
    assert found.interval.high is not None
    x = scales.linear(0.0, found.interval.high * 1.02, *plots.bar_x(), scales.plain)
    rect = next(svg.iter(f"{SVG}rect"))
    end = float(rect.attrib["x"]) + float(rect.attrib["width"])
    assert end == pytest.approx(x.at(1.5), abs=0.2)
    runs = [float(c.attrib["cx"]) for c in svg.iter(f"{SVG}circle")]
    assert runs == pytest.approx([x.at(1.4), x.at(1.6)], abs=0.1)
    assert "1.50 (0.23 to 2.77)" in ElementTree.tostring(svg, encoding="unicode")


def test_policies_can_be_told_apart_without_colour() -> None:
    """Thirty policies: no two have the same colour, shape and dash."""
    looks = {
        (index % plots.NUM_COLOURS, index % len(plots.MARKERS), plots.dash(index))
        for index in range(30)
    }
    assert len(looks) == 30


@pytest.mark.parametrize("lost", [False, True])
def test_the_poorest_comparison_still_has_a_page(lost: bool) -> None:
    """One policy, one rate, one seed; and even where nobody ever got a token."""
    row = make_tally("only", 1.0, 1, 1.0)
    if lost:
        for fields in row.point["tiers"].values():
            fields["attainment"] = 0.0
            for name in ("ttft_ms", "normalised_latency_ms"):
                fields[name] = dict.fromkeys(fields[name])
        none = {tier: replace(h, bins=()) for tier, h in row.ttft.items()}
        row = replace(row, ttft=none, lateness=none, ttft_p50_ms=float("inf"))
    text = page(sample_report([row]))
    assert len(list(drawings(text))) > 10
    assert not re.search(r"\bnan\b|\binf\b", text)
    assert (">never<" in text) is lost


def test_the_rate_shown_first_is_where_policies_differ_most() -> None:
    made = sample_report()
    assert RATES[knee(made)] in (1.4, 1.8)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_tables_hold_every_number(tmp_path: Path) -> None:
    made = sample_report()
    report.write_report(tmp_path, made, {"requests": 5})
    rows = read(tmp_path / "summary.csv")
    assert len(rows) == len(made.tallies.rows) * (len(OBJECTIVES) + 1)
    for row, tally in zip(rows[1::3], made.tallies.rows, strict=True):
        key = (tally.label, f"{tally.rate:g}", str(tally.seed), "free")
        assert (row["policy"], row["rate"], row["seed"], row["tier"]) == key
        free = tally.tier("free")
        assert float(row["attainment"]) == pytest.approx(free["attainment"], abs=1e-6)
        assert float(row["ttft_ms_p95"]) == pytest.approx(free["ttft_ms"]["p95"], abs=1e-6)
        assert row["normalised_latency_ms_p99"] == ""  # null: infinite
        assert row["goodput"] == ""  # of the whole point, not of a tier
    whole = rows[2]
    assert whole["tier"] == ALL
    assert float(whole["goodput"]) == pytest.approx(made.tallies.rows[0].point["goodput"])
    assert (whole["worst_tenant"], whole["worst_tenant_attainment"]) == ("<bob>", "0.5")
    assert float(whole["jain_index"]) == pytest.approx(0.9)
    points = (tmp_path / "points.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in points] == [row.point for row in made.tallies.rows]


def test_a_point_ends_where_its_line_does(tmp_path: Path) -> None:
    """JSON may hold U+2028 as it is: what is missing of this point is its records, nothing else."""
    about: dict[str, object] = dict.fromkeys((*WORKLOAD, *ABOUT), "")
    about |= {"format": report.FORMAT, "tiers": [tier_fields(tier) for tier in DEFAULT_TIERS]}
    (tmp_path / "run.json").write_text(json.dumps(about))
    point = {"policy": "a\u2028b", "rate": 1.0, "seed": 1, "requests": 9}
    (tmp_path / "points.jsonl").write_text(json.dumps(point, ensure_ascii=False) + "\n", "utf-8")
    with pytest.raises(StoredError, match=r"records/.*No such file"):
        load_run(tmp_path)


def test_intervals_are_those_over_the_seeds(tmp_path: Path) -> None:
    made = sample_report()
    report.write_report(tmp_path, made, {})
    for row in read(tmp_path / "intervals.csv"):
        if (row["tier"], row["metric"]) == ("premium", "ttft_ms_p50"):
            cell = made.tallies.cell(row["policy"], float(row["rate"]))
            expected = interval(tally.tier("premium")["ttft_ms"]["p50"] for tally in cell)
            assert float(row["mean"]) == pytest.approx(expected.mean, abs=1e-5)
            assert float(row["low"]) == pytest.approx(expected.low, abs=1e-5)
            assert row["seeds"] == "3"


def test_equal_runs_give_equal_bytes(tmp_path: Path) -> None:
    """No time of day, no set in an order of its own."""
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        report.write_report(folder, sample_report(), {"requests": 5})
    names = sorted(p.relative_to(folders[0]).as_posix() for p in folders[0].rglob("*.*"))
    assert names == [
        "intervals.csv",
        "plots/attainment_free.svg",
        "plots/attainment_premium.svg",
        "plots/capacity.svg",
        "plots/goodput.svg",
        "points.jsonl",
        "report.html",
        "run.json",
        "summary.csv",
    ]
    for name in names:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


def test_plots_stand_alone_as_files(tmp_path: Path) -> None:
    """With title, legend, their own colours for light and dark, and a text to be heard."""
    report.write_report(tmp_path, sample_report(), {})
    svg = ElementTree.parse(tmp_path / "plots" / "attainment_free.svg").getroot()
    assert svg.attrib["viewBox"] == f"0 0 {svg.attrib['width']} {svg.attrib['height']}"
    texts = [text.text for text in svg.iter(f"{SVG}text")]
    assert texts[0] == "Attainment, free"
    assert texts[-2:] == list(CAPACITIES)
    style = next(svg.iter(f"{SVG}style")).text or ""
    assert "prefers-color-scheme:dark" in style
    used = {name for node in svg.iter() for name in node.get("class", "").split()}
    assert {name for name in used if re.fullmatch(r"s\d+", name)} == {"s0", "s1"}
    assert all(f".{name}" in style for name in ("line", "mark", "band", "grid", "s0", "s1"))


def test_the_worst_tenant_stands_beside_jains_index() -> None:
    worst, index = fairness([{"a": 1.0, "b": 0.0}, {"a": 1.0, "b": 0.5}])
    assert worst.split() == ["b", "25", "%"]
    assert float(index) == pytest.approx(1.25**2 / (2 * (1 + 0.0625)), abs=1e-3)
    assert fairness([]) == ("–", "–")
