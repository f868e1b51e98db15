"""OpenSLO documents: they are what the format asks for, and say what the tiers promise."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from openslo_checks import DNS_LABEL, check_documents
from prometheus_kit import OPTIONS, ROOT, a_tier

from gateway.slo_rules_openslo import dns_label, left_out, openslo_documents, openslo_text

PREMIUM, FREE = a_tier("premium", "0.99"), a_tier("free", "0.95", 1)
ODD = [PREMIUM, FREE, a_tier("A_tier.of-" + "long" * 13, "0.5", 2), a_tier("a-tier", "0.999", 3)]


def read(text: str) -> list[Any]:
    return list(yaml.safe_load_all(text))


@pytest.mark.parametrize("tiers", [[PREMIUM, FREE], ODD], ids=["seeded", "odd"])
def test_documents_are_openslo_v1(tiers: Any) -> None:
    documents = read(openslo_text(tiers, OPTIONS))
    check_documents(documents)
    kinds = Counter(document["kind"] for document in documents)
    assert kinds["SLO"] == 4 * len(tiers)
    assert kinds["AlertPolicy"] == 4 * kinds["SLO"]
    assert documents == openslo_documents(tiers, OPTIONS)


def test_targets_factors_and_queries_are_the_tiers() -> None:
    documents = {
        (document["kind"], document["metadata"]["name"]): document["spec"]
        for document in read(openslo_text([PREMIUM, FREE], OPTIONS))
    }
    slo = documents["SLO", "free-ttft"]
    assert slo["objectives"][0]["target"] == 0.95
    assert slo["indicator"]["spec"]["ratioMetric"]["bad"]["metricSource"]["spec"]["query"] == (
        'sum(tiergate_tier_slo_violations_total{job="tiergate",'
        'tiergate_slo_objective="ttft",tiergate_tier="free"})'
    )
    burn = documents["AlertPolicy", "free-ttft-page-1h"]["conditions"][0]["spec"]["condition"]
    assert (burn["threshold"], burn["lookbackWindow"]) == (5, "1h")
    burn = documents["AlertPolicy", "premium-ttft-page-1h"]["conditions"][0]["spec"]["condition"]
    assert burn["threshold"] == 14.4


def test_a_promise_of_everything_cannot_be_said_and_is_named() -> None:
    perfect = a_tier("perfect", "1", 2)
    documents = openslo_documents([PREMIUM, perfect], OPTIONS)
    check_documents(documents)
    assert not [d for d in documents if "perfect" in d["metadata"]["name"]]
    assert left_out([PREMIUM, perfect]) == ["perfect"]


def test_the_file_that_ships_is_that_of_the_seeded_tiers() -> None:
    shipped = read((ROOT / "dashboards" / "openslo" / "tiergate.openslo.yml").read_text())
    check_documents(shipped)
    targets = {
        document["metadata"]["name"]: document["spec"]["objectives"][0]["target"]
        for document in shipped
        if document["kind"] == "SLO"
    }
    names = ("all", "ttft", "tbt", "availability")
    assert targets == {f"premium-{n}": 0.99 for n in names} | {f"free-{n}": 0.95 for n in names}


NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)


@given(NAMES, NAMES)
def test_any_name_of_a_tier_becomes_a_label_of_its_own(one: str, other: str) -> None:
    made = [dns_label(f"{name}-availability-ticket-3d") for name in (one, other)]
    assert all(DNS_LABEL.fullmatch(name) for name in made)
    assert (made[0] == made[1]) == (one == other)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("metadata", "name"), "Not_a_label"),
        (("spec", "objectives", 0, "target"), 1.0),
        (("spec", "objectives", 0, "op"), "lt"),
        (("spec", "timeWindow", 0, "duration"), "30 days"),
        (("spec", "indicator", "spec", "ratioMetric", "good"), {}),
        (("spec", "alertPolicies", 0, "alertPolicyRef"), "unknown"),
        (("spec", "service"), "unknown"),
        (("apiVersion",), "openslo/v2"),
    ],
    ids=str,
)
def test_the_checks_find_what_is_wrong(path: tuple[Any, ...], value: Any) -> None:
    """Or that they are silent would mean nothing."""
    documents = copy.deepcopy(openslo_documents([PREMIUM], OPTIONS))
    inner: Any = next(document for document in documents if document["kind"] == "SLO")
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    with pytest.raises(AssertionError):
        check_documents(documents)
