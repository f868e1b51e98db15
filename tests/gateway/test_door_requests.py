"""`/admin/api/requests`: what the door and the engine decided of a request, through real HTTP."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from door_kit import CHAT, TEXT, Door, chat_body, eventually, open_door, text_body
from test_door_aborts import SWAPPING, Stage, displaced

from engine.core.decision import Decision, DecisionKind, Reason, RequestRecord
from engine.core.errors import RefusalReason
from engine.core.request import LengthEstimate, Slo, TbtMode
from gateway.errors import ApiError, Problem
from gateway.request_records import DoorRecord, Journal
from gateway.request_sentences import WORDS, story
from gateway.request_view import engine_fields, request_fields
from gateway.wishes import NO_WISHES

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "http.md").read_text()
SECRET = "Xerxes purrs loudly"
LONG_NUMBERS = ("000000001" + "0" * 5000, "0000000010000000000", "0" * 9 + "1")


def admin(door: Door) -> dict[str, str]:
    return {"authorization": f"Bearer {door.admin_token}"}


async def told(door: Door, name: str) -> Any:
    """Return the story of a request; nothing of its text may be in it."""
    answer = await door.http.get(f"/admin/api/requests/{name}", headers=admin(door))
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    for word in SECRET.split():
        assert word not in answer.text
    return answer.json()


async def test_a_served_request_is_told_from_arrival_to_end(door: Door) -> None:
    """By its own id and by `x-request-id`: what was promised, predicted, decided and delivered."""
    sent = await door.post(CHAT, chat_body(SECRET, max_tokens=6), **{"x-request-id": "mine-1"})
    name = sent.json()["id"]
    found = await told(door, name)
    again = await told(door, "mine-1")
    assert (found["id"], found["request_id"]) == (again["id"], "mine-1") == (name, "mine-1")
    at_door, engine = found["door"], found["engine"][name]
    assert (at_door["tier"], at_door["outcome"], at_door["refusal"]) == ("premium", "ok", None)
    (choice,) = at_door["choices"]
    assert (choice["tokens"], choice["finish_reason"]) == (6, "length")
    assert choice["prompt_tokens"] == engine["prompt_tokens"]
    assert choice["due_ms"] == engine["first_token_due_ms"]
    assert choice["predicted_tokens"] == engine["predicted_tokens"] > 0
    assert [one["kind"] for one in engine["decisions"]] == ["started", "ran"]
    assert (engine["output_tokens"], engine["steps"]) == (6, 6)
    times = [at_door["admitted_ms"], engine["submitted_ms"], engine["first_token_ms"]]
    times += [choice["ttft_ms"], choice["last_ms"], at_door["ended_ms"]]
    assert times == sorted(times)
    (row,) = await door.usage_of(name)
    assert row.ttft_ms == pytest.approx(choice["ttft_ms"], abs=0.01)
    assert (row.slo_met, row.late_tokens) == (choice["met"], choice["late_tokens"])
    lines = " ".join(found["story"])
    for words in ("arrived at the door", "let in", "started in step", "first text handed", "over"):
        assert words in lines
    said = [float(line.split()[0].replace(",", "")) for line in found["story"]]
    assert said == sorted(said)
    assert said[0] == 0


async def test_all_choices_are_told_or_the_one_that_is_named(door: Door) -> None:
    sent = await door.post(CHAT, chat_body("Hi", n=3, max_tokens=2, temperature=1, seed=1))
    name = sent.json()["id"]
    found = await told(door, name)
    ids = [f"{name}-{index}" for index in range(3)]
    assert list(found["engine"]) == [c["id"] for c in found["door"]["choices"]] == ids
    assert all(found["engine"][one]["output_tokens"] == 2 for one in ids)
    one = await told(door, ids[1])
    assert list(one["engine"]) == ids[1:2]
    assert one["id"] == name
    for index in ("3", "99999", "-1", "01", ""):
        answer = await door.http.get(f"/admin/api/requests/{name}-{index}", headers=admin(door))
        assert answer.status_code == 404, index


async def test_a_parked_request_says_why_it_left_and_when_its_next_token_is_due(
    tmp_path: Path,
) -> None:
    """Asked while its copy is under way, between two steps: the story is told up to that moment."""
    options = {"step_s": 0, "num_blocks": 22, "host_blocks": 100, "elapsed_ns": 20_000_000}
    engine = {"prefix_caching": False} | SWAPPING
    async with open_door(tmp_path, engine=engine, options=options) as door:
        stage = Stage(door)
        try:
            await displaced(stage)
            answers = sorted(door.services.live, key=lambda a: a.plan.arrival_ns)
            victim = answers[1].plan.heading.id
            asked = asyncio.create_task(told(door, victim))
            client: Any = door.services.host.engine
            await eventually(lambda: len(client._questions) == 1, "the engine is asked")
            await stage.step()
            found = await asked
            record = found["engine"][victim]
            assert record["state"] == "parked"
            parked = next(d for d in record["decisions"] if d["kind"] == "parked")
            assert parked["reason"] == "policy_wish"
            assert parked["tokens"] > 100
            assert parked["due_ms"] > parked["at_ms"]
            assert any("parked as the policy wished" in line for line in found["story"])
            assert found["door"]["outcome"] == "open"
            assert found["door"]["choices"][0]["met"] is None
        finally:
            await stage.leave()
        last = await told(door, victim)
        assert last["engine"][victim]["end"]["finish_reason"] == "cancelled"
        assert last["engine"][victim]["end"]["parks"] == 1


async def test_a_refused_request_is_told_with_its_reason_and_its_hint(tmp_path: Path) -> None:
    """It never reached the engine; its client knows no other id than `x-request-id`."""
    async with open_door(tmp_path, settings={"max_queue": 1}) as door:
        door.close_gate()
        first = asyncio.create_task(door.post(CHAT, chat_body("Hi", max_tokens=2)))
        await eventually(lambda: door.services.admission.waiting == 1, "one waits")
        headers = {"x-request-id": "turned.away"}
        refused = await door.post(CHAT, chat_body(SECRET, max_tokens=2), **headers)
        assert refused.status_code == 503
        found = await told(door, "turned.away")
        refusal = found["door"]["refusal"]
        assert (refusal["reason"], refusal["status"]) == ("saturated", 503)
        assert refusal["retry_after_ms"] == int(refused.headers["retry-after-ms"])
        assert found["engine"] == {}
        assert (found["door"]["verdict"], found["door"]["forecast"]) == (None, None)
        assert any("turned away: saturated" in line for line in found["story"])
        door.open_gate()
        assert (await first).status_code == 200
        listed = (await door.http.get("/admin/api/requests", headers=admin(door))).json()
        outcomes = [(row["outcome"], row["reason"], row["met"]) for row in listed["requests"]]
        assert outcomes[0] == ("saturated", "saturated", False)
        assert outcomes[1][0] == "ok"
        one = await door.http.get("/admin/api/requests?limit=1", headers=admin(door))
        assert one.json()["requests"] == listed["requests"][:1]


async def test_the_story_needs_the_admin_token_and_a_known_id(door: Door) -> None:
    """No token, an API key, an unknown id, a bad limit: each its own plain refusal."""
    for path in ("/admin/api/requests", "/admin/api/requests/some-id"):
        assert (await door.http.get(path)).status_code == 401
        assert (await door.http.get(path, headers=door.auth())).status_code == 401
    for name in ("some-id", "x" * 1000, "chatcmpl-0-1", "%00", "a-²"):
        answer = await door.http.get(f"/admin/api/requests/{name}", headers=admin(door))
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    for limit in ("0", "501", "-1", "ten", "²", "9" * 40, "", *LONG_NUMBERS):
        path = f"/admin/api/requests?limit={limit}"
        answer = await door.http.get(path, headers=admin(door))
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "limit")


async def test_an_engine_that_is_gone_takes_its_part_of_the_story_along(tmp_path: Path) -> None:
    """What the door knows is told all the same, and why there is no more."""
    async with open_door(tmp_path, process=True, options={"mortal": 1}) as door:
        name = (await door.post(CHAT, chat_body("Hi", max_tokens=2))).json()["id"]
        await door.post(TEXT, text_body([7, 8], max_tokens=2))
        found = await told(door, name)
        assert found["engine"] == {name: None}
        assert found["door"]["outcome"] == "ok"
        await eventually(lambda: door.services.host.engine.ready, "another engine is there")
        found = await told(door, name)
        assert (found["engine"], found["engine_error"]) == ({name: None}, None)


def plan_of(name: str, arrival_ns: int = 0) -> Any:
    """As much of a plan as a record takes."""
    return SimpleNamespace(
        heading=SimpleNamespace(id=name, model="m", service_tier="default"),
        shape=SimpleNamespace(operation="chat"),
        principal=SimpleNamespace(tenant=SimpleNamespace(id="t"), key_id="k"), wishes=NO_WISHES,
        arrival=None, arrival_ns=arrival_ns, stream=True, is_paced=False, slo=Slo(),
        sampling=SimpleNamespace(max_tokens=9), tier=SimpleNamespace(name="free", version=1),
        num_choices=1, prompt_of=lambda index: (1, 2), engine_id=lambda index: name,
        estimate_of=lambda index: None,
    )  # fmt: skip


def test_a_journal_is_bounded_and_refusals_push_nobody_out() -> None:
    """Of thousands the latest are kept, refused or served; ids of those forgotten are forgotten."""
    journal = Journal(most_served=10, most_refused=5)
    for number in range(100):
        record = journal.arrived(plan_of(f"s{number}", number), f"x{number}")
        journal.ended(record, "ok", [(None, "stop", 1)], number)
    for number in range(100):
        record = journal.arrived(plan_of(f"r{number}", 100 + number), "the same for all")
        record.refused(ApiError(Problem.SATURATED, "full", retry_after_ms=5), number)
        journal.ended(record, "saturated", [], number)
    assert len(journal) == 15
    assert [r.id for r in journal.newest()][:6] == ["r99", "r98", "r97", "r96", "r95", "s99"]
    assert journal.find("s89") is journal.find("x89") is None
    for name in ("s90", "x90", "s90-0"):
        assert (found := journal.find(name)) is not None
        assert found.id == "s90"
    assert (latest := journal.find("the same for all")) is not None
    assert latest.id == "r99"
    assert len(journal._ids) == 11


EVERYTHING = RequestRecord(
    "c", "t", "free", 1, 90, 0, 1, 50, 10, TbtMode.GAP, 0, 4, 9, "held", 5.0, 8.0, 60, 3, 1, 7, 4,
    standing="it stands", num_dropped=2, refusal=RefusalReason.QUEUE_FULL,
    decisions=tuple(
        Decision(kind, 2, 3, 4, 5, reason, False, 6, 7, 8, 9, (("d", "premium"),),
                 ((reason, 10),), ((reason, 5),), "words")
        for kind in DecisionKind for reason in Reason
    ),
)  # fmt: skip


def test_every_decision_has_its_sentence() -> None:
    """Whatever kind and reason: one line each, in order of time, and no line says None."""
    assert set(WORDS) == set(Reason)
    live = RequestRecord(**{n: getattr(EVERYTHING, n) for n in RequestRecord.__slots__}
                         | {"refusal": None})  # fmt: skip
    lines = story(None, [live])
    assert len(lines) == len(EVERYTHING.decisions) + 5
    assert not [line for line in lines if "None" in line or "\n" in line]
    assert "refused" in story(None, [EVERYTHING])[0]


def test_every_field_is_documented() -> None:
    """docs/http.md names each field of a story, every kind of decision and every reason."""
    door = DoorRecord(plan_of("c"), "x")
    door.arrival = SimpleNamespace(isoformat=lambda: "now")  # type: ignore[assignment]
    door.forecast = {"ttft_ns": 1, "low_ns": 1, "high_ns": 2}
    door.choices[0].estimate = LengthEstimate(1, 2)
    door.refused(ApiError(Problem.SATURATED, "full"), 1)
    fields = request_fields(door, {}, "") | {"engine": engine_fields(EVERYTHING, 0)}

    def names(value: Any) -> set[str]:
        if isinstance(value, list):
            return set().union(*map(names, value))
        if isinstance(value, dict):
            return set(value).union(*map(names, value.values()))
        return set()

    documented = set(re.findall(r"`([^`\s]+)`", PAGE))
    used = names(fields) | {kind.value for kind in DecisionKind}
    assert sorted(used - documented) == []
    assert json.dumps(fields)
