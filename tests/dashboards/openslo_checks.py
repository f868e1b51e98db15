"""What OpenSLO v1 asks of documents: its specification, and the checks of its Go SDK, in Python.

Only the kinds that Tiergate writes. A check that does not hold is an AssertionError.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

DNS_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
DURATION = re.compile(r"[1-9][0-9]*[mhdwMQY]")
MOST_DESCRIPTION = 1050


def check_documents(documents: list[Any]) -> None:
    """Check each document, and that what one refers to is among them."""
    for document in documents:
        only(document, {"apiVersion", "kind", "metadata", "spec"}, set())
        assert document["apiVersion"] == "openslo/v1"
        metadata(document["metadata"])
        assert len(document["spec"].get("description", "")) <= MOST_DESCRIPTION
        KINDS[document["kind"]](document["spec"])
    names = [(document["kind"], document["metadata"]["name"]) for document in documents]
    assert len(names) == len(set(names)), "two of a kind have one name"
    for kind, name in references(documents):
        assert (kind, name) in names, f"there is no {kind} {name}"


def references(value: Any) -> list[tuple[str, str]]:
    """Return (kind, name) of all that is referred to."""
    words = {
        "alertPolicyRef": "AlertPolicy",
        "targetRef": "AlertNotificationTarget",
        "metricSourceRef": "DataSource",
        "service": "Service",
    }
    if isinstance(value, list):
        return [found for item in value for found in references(item)]
    if not isinstance(value, dict):
        return []
    found = [(words[key], name) for key, name in value.items() if key in words]
    return found + [pair for inner in value.values() for pair in references(inner)]


def only(value: Mapping[str, Any], needed: set[str], allowed: set[str]) -> None:
    assert isinstance(value, dict), value
    assert needed <= set(value) <= needed | allowed, sorted(value)


def metadata(value: Any) -> None:
    only(value, {"name"}, {"displayName", "labels", "annotations"})
    assert DNS_LABEL.fullmatch(value["name"]), value["name"]
    assert value.get("displayName", "x")


def service(spec: Any) -> None:
    only(spec, set(), {"description"})


def data_source(spec: Any) -> None:
    only(spec, {"type", "connectionDetails"}, {"description"})
    assert spec["type"]


def target(spec: Any) -> None:
    only(spec, {"target"}, {"description"})
    assert spec["target"]


def alert_policy(spec: Any) -> None:
    only(
        spec,
        {"conditions", "notificationTargets"},
        {"description", "alertWhenNoData", "alertWhenBreaching", "alertWhenResolved"},
    )
    for flag in ("alertWhenNoData", "alertWhenBreaching", "alertWhenResolved"):
        assert isinstance(spec.get(flag, False), bool)
    assert len(spec["conditions"]) == 1, "the format allows exactly one"
    for inline in spec["conditions"]:
        only(inline, {"kind", "metadata", "spec"}, set())
        assert inline["kind"] == "AlertCondition"
        metadata(inline["metadata"])
        condition(inline["spec"])
    assert spec["notificationTargets"]
    for reference in spec["notificationTargets"]:
        only(reference, {"targetRef"}, set())


def condition(spec: Any) -> None:
    only(spec, {"severity", "condition"}, {"description"})
    assert spec["severity"]
    burn = spec["condition"]
    only(burn, {"kind", "op", "threshold", "lookbackWindow"}, {"alertAfter"})
    assert burn["kind"] == "burnrate"
    assert burn["op"] in ("lte", "gte", "lt", "gt")
    assert isinstance(burn["threshold"], int | float)
    assert not isinstance(burn["threshold"], bool)
    assert DURATION.fullmatch(burn["lookbackWindow"])
    assert DURATION.fullmatch(burn.get("alertAfter", "1m"))


def slo(spec: Any) -> None:
    only(
        spec,
        {"service", "indicator", "budgetingMethod", "objectives"},
        {"description", "timeWindow", "alertPolicies"},
    )
    assert spec["budgetingMethod"] == "Occurrences"
    metadata(spec["indicator"]["metadata"])
    only(spec["indicator"], {"metadata", "spec"}, set())
    indicator(spec["indicator"]["spec"])
    assert len(spec["timeWindow"]) == 1
    for window in spec["timeWindow"]:
        only(window, {"duration", "isRolling"}, set())
        assert DURATION.fullmatch(window["duration"])
        assert window["isRolling"] is True
    assert spec["objectives"]
    for objective in spec["objectives"]:
        # `op` and `value` are forbidden beside a ratio.
        only(objective, {"target"}, {"displayName"})
        assert 0 <= objective["target"] < 1
    for reference in spec["alertPolicies"]:
        only(reference, {"alertPolicyRef"}, set())


def indicator(spec: Any) -> None:
    only(spec, {"ratioMetric"}, {"description"})
    ratio = spec["ratioMetric"]
    only(ratio, {"counter", "total"}, {"good", "bad"})
    assert isinstance(ratio["counter"], bool)
    assert ("good" in ratio) != ("bad" in ratio), "one of them"
    for part in ("good", "bad", "total"):
        if part in ratio:
            source = ratio[part]["metricSource"]
            only(source, {"spec"}, {"metricSourceRef", "type"})
            assert source["spec"]
            assert DNS_LABEL.fullmatch(source["metricSourceRef"])


KINDS: Mapping[str, Callable[[Any], None]] = MappingProxyType(
    {
        "Service": service,
        "DataSource": data_source,
        "AlertNotificationTarget": target,
        "AlertPolicy": alert_policy,
        "SLO": slo,
    }
)
