"""What operators and their tools see: health, metrics, models, the admin routes."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from door_kit import CHAT, Door, chat_body, eventually, open_door
from openai import NotFoundError
from prometheus_client.parser import text_string_to_metric_families

from engine.core.clock import utc_now

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def door(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Door]:
    async with open_door(tmp_path_factory.mktemp("door")) as opened:
        yield opened


async def samples(door: Door) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Read /metrics with Prometheus' own parser."""
    response = await door.http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def value(read: dict[Any, float], name: str, **labels: str) -> float:
    """Return the sum of the samples of that name that carry these labels."""
    wanted = {(key.replace("__", "_"), label) for key, label in labels.items()}
    found = [v for (n, have), v in read.items() if n == name and wanted <= have]
    assert found, (name, labels)
    return sum(found)


async def test_health_answers_and_tells_the_truth(door: Door) -> None:
    """Alive and ready, each with its id, and no cache may keep it."""
    for path in ("/livez", "/readyz"):
        response = await door.http.get(path)
        assert response.status_code == 200
        assert response.headers["cache-control"] == "no-store"
    ready = (await door.http.get("/readyz")).json()
    checks = ready.pop("checks")
    assert ready == {"status": "ready", "missing": [], "degraded": []}
    names = ["draining", "engine", "database", "schema", "usage", "limits", "tasks"]
    assert list(checks) == names
    assert {check["state"] for check in checks.values()} == {"ok"}


async def test_models_are_listed_and_retrieved_by_the_sdk(door: Door) -> None:
    """The SDK lists the one model and gets it by its name; another name is not found."""
    async with door.openai("free") as client:
        (listed,) = [model async for model in client.models.list()]
        assert (listed.id, listed.object, listed.owned_by) == ("talker", "model", "tiergate")
        assert (await client.models.retrieve("talker")) == listed
        with pytest.raises(NotFoundError):
            await client.models.retrieve("organisation/other")


async def test_a_model_answers_to_its_aliases(tmp_path: Path) -> None:
    """Programs that name another model can be served unchanged; answers say the true name."""
    async with open_door(tmp_path, settings={"model_aliases": "gpt-4o, other"}) as aliased:
        answer = await aliased.post(CHAT, chat_body(max_tokens=1) | {"model": "gpt-4o"})
        assert answer.json()["model"] == "talker"
        card = await aliased.http.get("/v1/models/other", headers=aliased.auth())
        assert card.json()["id"] == "talker"
        unknown = await aliased.post(CHAT, chat_body() | {"model": "gpt-5"})
        assert unknown.status_code == 404
        issued = await aliased.ledger.repository.create_key(
            "free-tenant", utc_now(), "narrow", models=["gpt-4o"]
        )
        headers = {"authorization": f"Bearer {issued.plaintext}"}
        for name, status in (("gpt-4o", 200), ("talker", 403), ("other", 403)):
            body = chat_body(max_tokens=1) | {"model": name}
            response = await aliased.http.post(CHAT, json=body, headers=headers)
            assert response.status_code == status, name


async def test_an_answer_leaves_its_traces_in_the_metrics(door: Door) -> None:
    """Counts, times, tokens, objectives: each with its tier, and none with a key or an id."""
    before = await samples(door)
    body = chat_body(max_tokens=5)
    for tier in ("premium", "free", "free"):
        assert (await door.post(CHAT, body, tier)).status_code == 200
    read = await samples(door)

    def grown(name: str, **labels: str) -> float:
        try:
            return value(read, name, **labels) - value(before, name, **labels)
        except AssertionError:
            return value(read, name, **labels)

    assert grown("tiergate_requests_total", tiergate_tier="free", tiergate_outcome="ok") == 2
    assert grown("tiergate_tokens_total", tiergate_tier="free", gen_ai_token_type="output") == 10
    assert grown("tiergate_tokens_total", tiergate_tier="free", gen_ai_token_type="input") == 8
    assert grown("tiergate_admission_decisions_total", tiergate_outcome="admitted") == 3
    assert grown("gen_ai_server_time_to_first_token_seconds_count", tiergate_tier="free") == 2
    assert grown("gen_ai_server_request_duration_seconds_count", tiergate_tier="free") == 2
    # At most one for each token after the first: tokens that came together waited once.
    assert 1 <= grown("tiergate_token_gap_seconds_count", tiergate_tier="free") <= 8
    for objective in ("ttft", "tbt", "availability"):
        labels = {"tiergate_tier": "premium", "tiergate_slo_objective": objective}
        assert grown("tiergate_slo_requests_total", **labels) == 1
        assert value(read, "tiergate_slo_violations_total", **labels) >= 0
        assert grown("tiergate_tier_slo_requests_total", **labels) == 1
    assert value(read, "tiergate_engine_up") == 1
    assert value(read, "tiergate_kv_blocks") == 8192
    assert value(read, "vllm:num_requests_waiting") == 0
    text = (await door.http.get("/metrics")).text
    for secret in (*door.keys.values(), door.admin_token, "premium-tenant"):
        assert secret not in text


async def test_objectives_are_borders_of_the_histograms(door: Door) -> None:
    """The share of requests within a tier's objective can be read off exactly."""
    await door.post(CHAT, chat_body(max_tokens=3))
    text = (await door.http.get("/metrics")).text

    def borders(name: str) -> set[float]:
        found = re.findall(rf'{name}_bucket{{[^}}]*le="([0-9.]+)"', text)
        return {float(border) for border in found}

    assert {0.5, 2.0} <= borders("gen_ai_server_time_to_first_token_seconds")
    assert {0.1, 0.5} <= borders("tiergate_token_gap_seconds")
    assert 'tiergate_slo_threshold_seconds{tiergate_slo_objective="ttft",' in text


async def test_refusals_are_counted_by_their_cause(door: Door) -> None:
    """An error is a request too, under the name of its cause; a stranger's has no tier."""
    refused = await door.post(CHAT, chat_body() | {"model": "other"})
    assert refused.status_code == 404
    unknown = await door.http.post(CHAT, json=chat_body(), headers={"authorization": "Bearer x"})
    assert unknown.status_code == 401
    read = await samples(door)
    assert value(read, "tiergate_requests_total", tiergate_outcome="not_found") >= 1
    stranger = {"tiergate_outcome": "unauthenticated", "tiergate_tier": "none"}
    assert value(read, "tiergate_requests_total", **stranger) >= 1


async def test_admin_routes_need_the_admin_token(door: Door) -> None:
    """Nobody else gets in: not without a token, not with a wrong one, not with an API key."""
    wrong: list[Any] = [
        {}, {"authorization": "Bearer tga_wrong"}, door.auth(),
        {"authorization": "Basic !!!"}, {"authorization": b"Basic \xe9"},
        {"authorization": f"Token {door.admin_token}"},
    ]  # fmt: skip
    for path in ("/admin", "/admin/api/engine"):
        for headers in wrong:
            response = await door.http.get(path, headers=headers)
            if path == "/admin":
                assert response.status_code == 303
                assert response.headers["location"] == "/admin/login?next=/admin"
                continue
            assert response.status_code == 401
            assert response.headers["www-authenticate"].startswith("Basic ")
        bearer = {"authorization": f"Bearer {door.admin_token}"}
        assert (await door.http.get(path, headers=bearer)).status_code == 200
        basic = httpx.BasicAuth("anyone", door.admin_token)
        assert (await door.http.get(path, auth=basic)).status_code == 200
    with_key = await door.http.get(
        "/v1/models", headers={"authorization": f"Bearer {door.admin_token}"}
    )
    assert with_key.status_code == 401


async def test_the_engine_state_is_complete(door: Door) -> None:
    """The JSON has what the engine said of itself, its snapshot and the door's own counts."""
    await door.post(CHAT, chat_body(max_tokens=2))
    await door.idle()
    headers = {"authorization": f"Bearer {door.admin_token}"}
    state = (await door.http.get("/admin/api/engine", headers=headers)).json()
    assert state["ready"] is True
    assert state["info"]["model"] == "talker"
    assert state["info"]["policy"] == "fcfs"
    assert state["snapshot"]["running"] == 0
    assert state["snapshot"]["output_tokens_total"] > 0
    assert state["door"]["waiting"] == 0
    assert state["usage"]["lost"] == 0


async def test_the_first_page_shows_state_and_promises_and_no_secret(door: Door) -> None:
    """A person sees the engine and the promises; its scripts are files, and its policy strict."""
    page = await door.http.get("/admin", auth=httpx.BasicAuth("x", door.admin_token))
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "unsafe" not in page.headers["content-security-policy"]
    text = page.text.replace("\N{NO-BREAK SPACE}", " ")
    for shown in ("Ready to serve", "talker", "premium", "free", "500 ms", "99.0 %"):
        assert shown in text
    assert set(re.findall(r"<script[^>]*>", text)) == set(re.findall(r"<script src=[^>]*>", text))
    assert not re.findall(r"\sstyle=|\son[a-z]+=|javascript:", text)
    for secret in (*door.keys.values(), door.admin_token):
        assert secret not in page.text


async def test_the_schema_is_published_and_complete(door: Door) -> None:
    """/openapi.json names every route and describes the two bodies."""
    schema = (await door.http.get("/openapi.json")).json()
    assert {CHAT, "/v1/completions", "/v1/models", "/livez", "/readyz", "/metrics"} <= set(
        schema["paths"]
    )
    body = schema["paths"][CHAT]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"messages", "max_completion_tokens", "service_tier"} <= set(body["properties"])
    refs = re.findall(r'"\$ref": ?"#/components/schemas/(\w+)"', str(schema).replace("'", '"'))
    assert set(refs) <= set(schema.get("components", {}).get("schemas", {}))


async def test_the_door_counts_what_waits(door: Door) -> None:
    """While a request waits it can be seen, by tier, in the metrics and in the state."""
    door.close_gate()
    task = asyncio.create_task(door.post(CHAT, chat_body(), "free"))
    await eventually(lambda: door.services.admission.waiting == 1, "one waits")
    read = await samples(door)
    assert value(read, "tiergate_queue_depth", tiergate_tier="free") == 1
    assert value(read, "tiergate_answers_open") == 1
    door.open_gate()
    assert (await task).status_code == 200
