"""SLOs over HTTP: 10,000 known requests, and the API, reports, checker and metrics all agree."""

from __future__ import annotations

import json
import re
from collections import Counter
from datetime import datetime, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import slo_ledger_kit as kit
from admin_kit import Office, code_of

from engine.core.clock import utc_now
from gateway.telemetry import AnswerRecord
from tenants.slo_report_sums import digits
from tenants.slo_store import insert_slo
from tenants.slo_verify import verify_report
from tenants.slo_verify_ledger import LedgerCheck

pytestmark = pytest.mark.asyncio(loop_scope="module")

COUNT = 10_000
RATIOS = ("all", "ttft", "tbt", "availability")
BUSY = ("acme", "beta", "premium-tenant")
SERIES = re.compile(r"(tiergate_(?:tier_)?slo_\w+_total)\{(.*?)\} ([0-9.e+]+)")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def slos(office: Office) -> Any:
    """The gateway's ledger with 10,000 requests of the last thirty days, told to its metrics."""
    now = utc_now().replace(second=0, microsecond=0)
    made = kit.Slos(office.door.ledger.database, office.door.ledger.repository, now)
    await made.open("acme", "beta", "doomed", "idle")
    made.tenants["premium-tenant"] = (await office.get("tenants/premium-tenant"))["id"]
    await made.fill(COUNT - 200, days=29.9, names=BUSY, every=6)
    failing = [case for case in kit.CASES if case.outcome == "failed"]
    doomed = [
        await made.record(
            i, failing[i % 2], "doomed", now - timedelta(minutes=1 + i), name="doomed-"
        )
        for i in range(200)
    ]
    await insert_slo(made.database, doomed)
    made.records += doomed
    for record in made.records:
        office.door.services.telemetry.answered(
            AnswerRecord(
                operation=record.operation,
                model=record.model,
                tier=record.tier,
                tenant_id=record.tenant_id,
                outcome=record.outcome.value,
                duration_ns=record.total_ns,
                ttft_ns=record.ttft_ns,
                gaps=record.gaps,
                late_gaps=record.late_gaps,
                verdict=record.verdict,
            )
        )
    return made


def targets(api: Any) -> dict[str, Fraction]:
    return {view["tier"]: Fraction(view["target"]) for view in api["data"]}


def check_window(window: Any, known: Counter[str], target: Fraction) -> None:
    """One window of one tier is what is known by hand."""
    assert window["offered"] == known["offered"]
    assert window["outcomes"] == {name: known[name] for name in window["outcomes"]}
    assert sum(window["outcomes"].values()) == window["offered"]
    for name in ("downgraded", "gaps", "late_gaps"):
        assert window[name] == known[name], name
    for ratio in RATIOS:
        said = window["objectives"][ratio]
        counted, bad = known[f"counted_{ratio}"], known[f"bad_{ratio}"]
        assert (said["counted"], said["bad"]) == (counted, bad), ratio
        allowed = (1 - target) * counted
        assert said["allowed"] == digits(allowed)
        assert said["left"] == digits(allowed - bad)
        if counted:
            assert said["attainment"] == digits(Fraction(counted - bad, counted))
            assert said["burn"] == digits(Fraction(bad, counted) / (1 - target))
            assert said["left_share"] == digits(1 - bad / allowed)
        else:
            assert said["attainment"] is said["burn"] is said["left_share"] is None


@pytest.mark.parametrize("tenant", [None, "acme", "doomed", "idle"])
async def test_the_api_says_what_was_offered(office: Office, slos: Any, tenant: str | None) -> None:
    """Every window, rolling and calendar, of every tier: sums known by hand, exact ratios."""
    api = await office.get("slo" if tenant is None else f"slo?tenant={tenant}")
    assert (api["object"], api["rule"]) == ("slo", 1)
    assert api["tenant"] == (
        None if tenant is None else {"id": slos.tenants[tenant], "name": tenant}
    )
    promised = targets(api)
    assert promised["premium"] == Fraction("0.985")
    windows = 0
    for view in api["data"]:
        for window in view["windows"]:
            since, until = (datetime.fromisoformat(window[name]) for name in ("since", "until"))
            known = slos.known(since, until, tenant).get(view["tier"], Counter())
            check_window(window, known, promised[view["tier"]])
            windows += 1
    assert windows == 11 * len(api["data"])
    if tenant == "doomed":
        for view in api["data"]:
            burns = {w["window"]: w["objectives"]["all"]["burn"] for w in view["windows"]}
            most = digits(1 / (1 - promised[view["tier"]]))
            assert burns["1h"] == burns["30d"] == most, "it burns as fast as can be"
    if tenant == "idle":
        assert [view["tier"] for view in api["data"]] == ["premium"]


async def test_its_short_address_says_the_same(office: Office, slos: Any) -> None:
    for who in ("token", "tenant-viewer"):
        short, long = [await office.get(p, who=who) for p in ("/admin/api/slo", "slo")]
        assert short["tenant"] == long["tenant"]
        assert [view["tier"] for view in short["data"]] == [view["tier"] for view in long["data"]]


async def test_reports_and_their_checker_agree_with_the_api(
    office: Office, slos: Any, tmp_path: Path
) -> None:
    """The windows of the API are in the report of the same span, in all three forms."""
    for tenant in ("acme", "doomed", "idle"):
        api = await office.get(f"slo?tenant={tenant}")
        longest = next(w for w in api["data"][0]["windows"] if w["window"] == "30d")
        query = f"tenant={tenant}&from={longest['since']}&to={longest['until']}"
        chains = set()
        for form, media in (
            ("html", "text/html; charset=utf-8"),
            ("csv", "text/csv; charset=utf-8"),
            ("json", "application/json"),
        ):
            answer = await office.ask("GET", f"slo/report?{query}&format={form}")
            assert answer.status_code == 200, answer.text
            assert answer.headers["content-type"] == media
            assert answer.headers["cache-control"] == "no-store"
            assert answer.headers["content-disposition"].endswith(f'.{form}"')
            file = tmp_path / f"{tenant}.{form}"
            file.write_bytes(answer.content)
            check = LedgerCheck(slos.database, utc_now())
            chains.add((await verify_report(file, check)).chain)
            chains.add((await verify_report(file)).chain)
        assert len(chains) == 1
        lines = json.loads((tmp_path / f"{tenant}.json").read_text())["lines"]
        compare(api, lines, 0 if tenant == "idle" else 8)


def compare(api: Any, lines: list[dict[str, Any]], least: int) -> None:
    """What the API and the lines of a report say of one window is the same, digit by digit."""
    compared = 0
    of_api = {(view["tier"], w["window"]): w for view in api["data"] for w in view["windows"]}
    for line in lines:
        window = of_api.get((line.get("tier", ""), line.get("window", "")))
        if window is None or line["since"][:16] != window["since"][:16]:
            continue
        assert line["until"][:16] == window["until"][:16]
        if line["record"] == "counts":
            said = {**window["outcomes"], **{n: window[n] for n in ("offered", "gaps")}}
            assert {name: line[name] for name in said} == said
        if line["record"] == "budget":
            said = window["objectives"][line["objective"]]
            assert {name: line.get(name) for name in said} == said
            compared += 1
    assert compared >= least * 4


async def test_the_metrics_count_the_same(office: Office, slos: Any) -> None:
    """Each counter of tiers and of tenants is what the API says of the thirty days."""
    told: Counter[tuple[str, ...]] = Counter()
    for name, labels, value in SERIES.findall((await office.door.http.get("/metrics")).text):
        found = dict(re.findall(r'tiergate_(\w+)="([^"]*)"', labels))
        key = (name, found["tier"], found.get("slo_objective", ""), found.get("tenant_id", ""))
        told[key] = int(float(value))
    compared = 0
    for tenant in (None, *BUSY, "doomed", "idle"):
        api = await office.get("slo" if tenant is None else f"slo?tenant={tenant}")
        prefix = "tiergate_tier_slo" if tenant is None else "tiergate_slo"
        whose = "" if tenant is None else slos.tenants[tenant]
        for view in api["data"]:
            (month,) = (w for w in view["windows"] if w["window"] == "30d")
            for ratio, said in month["objectives"].items():
                counted = told[f"{prefix}_requests_total", view["tier"], ratio, whose]
                bad = told[f"{prefix}_violations_total", view["tier"], ratio, whose]
                assert (counted, bad) == (said["counted"], said["bad"]), (tenant, view["tier"])
                if counted:
                    burn = Fraction(bad, counted) / (1 - Fraction(view["target"]))
                    assert digits(burn) == said["burn"]
                    compared += 1
            if tenant is not None:
                for name, field in (("gaps", "gaps"), ("gap_violations", "late_gaps")):
                    assert told[f"{prefix}_{name}_total", view["tier"], "", whose] == month[field]
    assert compared == 4 * 2 * 5
    assert sum(c for k, c in told.items() if k[0] == "tiergate_tier_slo_requests_total") > COUNT


async def test_a_tenants_viewer_sees_its_own_only(office: Office, slos: Any) -> None:
    """Numbers and report are its own without asking; others are as unknown as none."""
    mine = await office.get("slo", who="tenant-viewer")
    assert mine["tenant"]["name"] == "premium-tenant"
    assert mine["data"] == (await office.get("slo?tenant=premium-tenant"))["data"]
    for path in ("slo?tenant=acme", "slo?tenant=nobody", "slo/report?tenant=acme"):
        assert code_of(await office.ask("GET", path, who="tenant-viewer")) == "not_found"
    answer = await office.ask("GET", "slo/report?format=json", who="tenant-viewer")
    lines = answer.json()["lines"]
    assert lines[0]["tenant_id"] == slos.tenants["premium-tenant"]
    assert lines[-1]["requests"] > 1000
    for who in ("viewer", "operator", "owner"):
        assert (await office.get("slo?tenant=acme", who=who))["tenant"]["name"] == "acme"
    assert (await office.ask("GET", "slo", who="nobody")).status_code == 401
    (entry,) = (await office.get("audit?action=slo.export&limit=1"))["data"]
    assert (entry["actor"], entry["tenant_id"]) == ("tenant-viewer", lines[0]["tenant_id"])
    assert entry["after"] == {"format": "json"}


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("", "'tenant' is needed"),
        ("tenant=acme&format=pdf", "'format' must be one of: html, csv, json."),
        ("tenant=acme&from=yesterday", "'from' must be a moment"),
        ("tenant=acme&from=2026-01-01T00:00:01Z", "'from' must be a whole minute."),
        ("tenant=acme&from=2024-01-01&to=2026-01-01", "'from' must be at most 400 days"),
        ("tenant=acme&from=2026-02-01&to=2026-01-01", "'from' must be at most 400 days"),
        ("tenant=acme&until=2026-01-01", "a parameter that is not known"),
    ],
)
async def test_a_report_that_cannot_be_is_refused_in_one_sentence(
    office: Office, slos: Any, query: str, said: str
) -> None:
    answer = await office.ask("GET", f"slo/report?{query}")
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]
