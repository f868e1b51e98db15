"""Lengths of answers are learned from those that ended, by the whole gateway, and nothing else is.

The talking executor goes on with the alphabet where a prompt ends, so a prompt's last letter says
how long its answer is.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
from door_kit import CHAT, TEXT, Door, chat_body, eventually, open_door, text_body

from engine.core.length_predictor import PRIOR_TOKENS
from engine.core.stats import RequestStats
from engine.learning.question import Question
from gateway.history_lengths import HistoryLengths

SHORT, LONG = "Please go on from w", "Please go on from a"  # 5 tokens to the end, and 27
SECRET = "my grandmother's maiden name is Zwiebelfisch, go on from "


def guess(door: Door, tenant: str, text: str = SHORT) -> float:
    """Return what the predictor says now, and leave nothing behind."""
    predictor = door.services.lengths.predictor
    assert predictor is not None
    estimate = predictor.predict("probe", Question(tenant, text, 20, 500))
    predictor.forget("probe")
    assert 1 <= estimate.middle <= estimate.high <= 500
    return estimate.middle


async def tenant_of(door: Door, tier: str) -> str:
    tenants = await door.ledger.repository.list_tenants()
    return next(tenant.id for tenant in tenants if tenant.tier == tier)


async def ask(door: Door, prompt: str, count: int, tier: str = "premium", **fields: Any) -> None:
    for _ in range(count):
        answer = await door.post(TEXT, text_body(prompt, **({"max_tokens": 500} | fields)), tier)
        assert answer.status_code == 200, answer.text


async def learned(door: Door, count: int) -> None:
    await eventually(
        lambda: door.services.lengths.readings()["learned"] == count, f"{count} answers are learned"
    )


def told(door: Door) -> list[RequestStats]:
    """Return a list that fills with the engine's last words."""
    ends: list[RequestStats] = []
    door.services.host.engine.add_finish_listener(ends.append)
    return ends


async def test_a_tenants_guesses_move_to_its_own_lengths(tmp_path: Path) -> None:
    """What premium asks teaches of premium alone, and the engine hears of it with the order."""
    async with open_door(tmp_path) as door:
        ends = told(door)
        premium, free = await tenant_of(door, "premium"), await tenant_of(door, "free")
        first, others = guess(door, premium), guess(door, free)
        await ask(door, SHORT, 60)
        await learned(door, 60)
        assert first > 20
        assert guess(door, premium) < 10
        assert guess(door, free) == others
        await ask(door, SHORT, 1)
        assert ends[0].predicted_tokens == pytest.approx(first)
        assert ends[-1].predicted_tokens < 10
        assert [stats.num_output_tokens for stats in ends] == [5] * 61


async def test_an_operator_may_let_all_teach_all(tmp_path: Path) -> None:
    """With the scope `all` one tenant's answers tell of another's."""
    async with open_door(tmp_path, settings={"learn_scope": "all"}) as door:
        free = await tenant_of(door, "free")
        before = guess(door, free)
        await ask(door, SHORT, 60)
        await learned(door, 60)
        assert guess(door, free) < before / 3


async def test_cut_and_left_answers_do_not_pass_for_short_ones(tmp_path: Path) -> None:
    """max_tokens and a client that leaves say that an answer is longer, or nothing."""
    async with open_door(tmp_path, options={"step_s": 0.002}) as door:
        premium = await tenant_of(door, "premium")
        before = guess(door, premium)
        await ask(door, LONG, 20, max_tokens=3)
        for _ in range(20):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await door.post(TEXT, text_body("Talk", temperature=1, max_tokens=900))
        await door.idle()
        assert guess(door, premium) >= before / 2
        assert door.services.lengths.readings()["open_questions"] == 0


async def test_what_can_only_end_at_its_limit_is_not_guessed(tmp_path: Path) -> None:
    """Without an end token or stop string the limit is the length: there is nothing to learn."""
    async with open_door(tmp_path) as door:
        ends = told(door)
        await ask(door, LONG, 3, ignore_eos=True, max_tokens=7)
        assert [(end.predicted_tokens, end.num_output_tokens) for end in ends] == [(7, 7)] * 3
        assert door.services.lengths.readings()["open_questions"] == 0


async def test_every_choice_has_its_prompts_guess_and_one_of_them_teaches(tmp_path: Path) -> None:
    """Choices of a prompt are alike: they share its guess, and count once."""
    async with open_door(tmp_path) as door:
        ends = told(door)
        answer = await door.post(TEXT, text_body([SHORT, LONG], n=3, max_tokens=500))
        assert answer.status_code == 200
        await learned(door, 2)
        assert sorted(stats.num_output_tokens for stats in ends) == [5] * 3 + [27] * 3
        guesses = [
            len({e.predicted_tokens for e in ends if e.num_output_tokens == n}) for n in (5, 27)
        ]
        assert guesses == [1, 1]
        assert door.services.lengths.readings()["open_questions"] == 0


async def test_a_restart_keeps_what_was_learned(tmp_path: Path) -> None:
    """The next gateway on the same data directory begins where the last one ended."""
    async with open_door(tmp_path) as door:
        premium = await tenant_of(door, "premium")
        await ask(door, SHORT, 60)
        await learned(door, 60)
        assert guess(door, premium) < 10
    other = {"database_url": f"sqlite:///{tmp_path / 'other.db'}"}
    async with open_door(tmp_path, settings=other) as door:
        # What was still to be fitted when the first one ended was fitted then.
        assert guess(door, premium) < 10
        assert guess(door, await tenant_of(door, "premium")) > 20


async def test_another_model_begins_with_nothing(tmp_path: Path) -> None:
    """What one model answered says nothing of another, and is there again when the first is."""
    async with open_door(tmp_path) as door:
        premium = await tenant_of(door, "premium")
        await ask(door, SHORT, 60)
        await learned(door, 60)
    other = {"database_url": f"sqlite:///{tmp_path / 'other.db'}"}
    async with open_door(tmp_path, settings=other, engine={"served_name": "else"}) as door:
        assert guess(door, premium) > 20
    third = {"database_url": f"sqlite:///{tmp_path / 'third.db'}"}
    async with open_door(tmp_path, settings=third) as door:
        assert guess(door, premium) < 10


async def test_a_bad_file_is_kept_aside_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever is on disk, the gateway starts; what it cannot read stays under another name."""
    async with open_door(tmp_path) as door:
        await ask(door, SHORT, 60)
        await learned(door, 60)
    (state,) = (tmp_path / "data" / "learning").iterdir()
    spoilt = bytearray(state.read_bytes())
    spoilt[len(spoilt) // 2] ^= 255
    state.write_bytes(bytes(spoilt))
    other = {"database_url": f"sqlite:///{tmp_path / 'other.db'}"}
    with caplog.at_level(logging.WARNING):
        async with open_door(tmp_path, settings=other) as door:
            assert guess(door, "anybody") > 20
            assert [r.levelname for r in caplog.records if "cannot be used" in r.message] == [
                "WARNING"
            ]
            aside = [p for p in state.parent.iterdir() if p.read_bytes() == bytes(spoilt)]
            assert len(aside) == 1
            assert aside != [state]


async def test_no_prompt_and_no_answer_is_written_or_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of all that is left on disk and in the log nothing holds a word of what was asked."""
    with caplog.at_level(logging.DEBUG):
        async with open_door(tmp_path) as door:
            for letter in "abcdefgh":
                await ask(door, SECRET + letter, 8)
            await door.post(CHAT, chat_body(SECRET))
            await learned(door, 65)
    files = [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    assert any(path.parent.name == "learning" for path in files)
    for path in files:
        content = path.read_bytes().lower()
        assert b"zwiebelfisch" not in content, path
        assert b"grandmother" not in content, path
    assert "zwiebelfisch" not in caplog.text.lower()


async def test_learning_can_be_switched_off(tmp_path: Path) -> None:
    """Then nobody is asked and nothing is kept; the engine guesses for itself, as it can."""
    async with open_door(tmp_path, settings={"learn": False}) as door:
        ends = told(door)
        await ask(door, SHORT, 2)
        assert ends[0].predicted_tokens == pytest.approx(PRIOR_TOKENS)
        assert door.services.lengths.readings() == {}
    assert not (tmp_path / "data" / "learning").exists()


async def test_a_gateway_without_the_packages_guesses_from_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It starts, says so in one line, and a tenant's usual length is still learned."""
    monkeypatch.setitem(sys.modules, "engine.learning.predictor", None)
    with caplog.at_level(logging.INFO):
        async with open_door(tmp_path) as door:
            assert isinstance(door.services.lengths.predictor, HistoryLengths)
            assert caplog.text.count("usual one") == 1
            premium = await tenant_of(door, "premium")
            await ask(door, SHORT, 60)
            await learned(door, 60)
            assert guess(door, premium) < 10
