"""Makes OpenSLO v1 documents of the tiers' promises, for tools that read them; it measures nothing.

Facts of the format: the specification of OpenSLO v1 and the checks of its Go SDK. Names there are
DNS labels, and a target is below 1: a tier whose objective is 1 cannot be said and is left out.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any

from gateway.slo_rules import (
    PERIOD,
    SERVICE,
    WINDOWS,
    BurnWindow,
    RuleOptions,
    Slo,
    factors,
    quoted,
    slos_of,
)
from gateway.slo_rules_text import as_yaml, header
from tenants.slo import Objective
from tenants.values import TierRecord

VERSION = "openslo/v1"
SOURCE = "tiergate-prometheus"
MOST_NAME = 63


def openslo_text(tiers: Sequence[TierRecord], options: RuleOptions) -> str:
    """Return the documents as one file."""
    documents = openslo_documents(tiers, options)
    return header("OpenSLO v1", "slo openslo", tiers) + "".join(
        "---\n" + as_yaml(document) for document in documents
    )


def left_out(tiers: Sequence[TierRecord]) -> list[str]:
    """Return the names of the tiers that OpenSLO has no number for."""
    return [tier.name for tier in tiers if tier.objective >= 1]


def openslo_documents(tiers: Sequence[TierRecord], options: RuleOptions) -> list[dict[str, Any]]:
    """Return a Service, a DataSource, an AlertNotificationTarget, and policies and SLOs by tier."""
    made: list[dict[str, Any]] = [
        _document("Service", SERVICE, "Tiergate", {"description": "Answers of the gateway."}),
        _document(
            "DataSource",
            SOURCE,
            "Prometheus",
            {"type": "Prometheus", "connectionDetails": {"url": "http://prometheus:9090"}},
        ),
        *(
            _document("AlertNotificationTarget", severity, severity, {"target": severity})
            for severity in ("page", "ticket")
        ),
    ]
    promised = {tier.name: tier for tier in tiers}
    for slo in slos_of(tiers):
        if slo.budget:
            policies = [
                _policy(slo, window, float(factor))
                for window, factor in zip(WINDOWS, factors(slo.target), strict=True)
            ]
            made += [*policies, _slo(slo, promised[slo.tier], policies, options)]
    return made


def _document(kind: str, name: str, shown: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": VERSION,
        "kind": kind,
        "metadata": {"name": name, "displayName": shown},
        "spec": spec,
    }


def _policy(slo: Slo, window: BurnWindow, factor: float) -> dict[str, Any]:
    name = dns_label(f"{slo.name}-{window.severity}-{window.long}")
    condition = {
        "kind": "AlertCondition",
        "metadata": {"name": name, "displayName": f"burn over {window.long} and {window.short}"},
        "spec": {
            "description": f"Also over {window.short}, and at least ten bad requests: the format"
            " has no words for that.",
            "severity": window.severity,
            "condition": {
                "kind": "burnrate",
                "op": "gt",
                "threshold": factor,
                "lookbackWindow": window.long,
            },
        },
    }
    spec = {
        "alertWhenBreaching": True,
        "alertWhenResolved": True,
        "alertWhenNoData": False,
        "conditions": [condition],
        "notificationTargets": [{"targetRef": window.severity}],
    }
    return _document("AlertPolicy", name, f"{slo.name}: {window.severity} at {factor:g}", spec)


def _slo(
    slo: Slo, tier: TierRecord, policies: Sequence[dict[str, Any]], options: RuleOptions
) -> dict[str, Any]:
    name = dns_label(slo.name)
    ratio = {"counter": True, "bad": _metric(slo, "violations", options)}
    ratio["total"] = _metric(slo, "requests", options)
    spec = {
        "description": f"{_meaning(slo.objective, tier)} Tier {tier.name}, version {tier.version}.",
        "service": SERVICE,
        "indicator": {"metadata": {"name": name}, "spec": {"ratioMetric": ratio}},
        "timeWindow": [{"duration": PERIOD, "isRolling": True}],
        "budgetingMethod": "Occurrences",
        "objectives": [{"displayName": _words(slo.objective), "target": float(slo.target)}],
        "alertPolicies": [{"alertPolicyRef": policy["metadata"]["name"]} for policy in policies],
    }
    return _document("SLO", name, f"{tier.name}: {_words(slo.objective)}", spec)


def _metric(slo: Slo, kind: str, options: RuleOptions) -> dict[str, Any]:
    labels = (
        f"{options.selector},tiergate_slo_objective={quoted(slo.objective.value)},"
        f"tiergate_tier={quoted(slo.tier)}"
    )
    query = f"sum(tiergate_tier_slo_{kind}_total{{{labels}}})"
    return {"metricSource": {"metricSourceRef": SOURCE, "spec": {"query": query}}}


def _words(objective: Objective) -> str:
    return {
        Objective.ALL: "all promises kept",
        Objective.TTFT: "first token in time",
        Objective.TBT: "tokens in time",
        Objective.AVAILABILITY: "answered",
    }[objective]


def _meaning(objective: Objective, tier: TierRecord) -> str:
    per_1k = tier.ttft_ms_per_1k_prompt_tokens
    more = f" and {per_1k} ms for each 1,000 prompt tokens" if per_1k else ""
    first = f"The first token comes within {tier.ttft_ms} ms{more}."
    gaps = f"At most one later token in a hundred misses {tier.tbt_ms} ms ({tier.tbt_mode})."
    return {
        Objective.ALL: f"{first} {gaps} The answer comes to its end.",
        Objective.TTFT: first,
        Objective.TBT: gaps,
        Objective.AVAILABILITY: "The request is answered to its end.",
    }[objective]


def dns_label(name: str) -> str:
    """Return a name as RFC 1123 allows it; what had to be changed ends with a digest of itself."""
    plain = re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-")
    if plain == name and len(name) <= MOST_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{plain[: MOST_NAME - 9].strip('-')}-{digest}".lstrip("-")
