"""Ghosts are judged by what happened to others, agree with known truths, and are bounded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.forecast import Newcomer
from engine.core.prompt_plan import PromptOrder
from engine.core.refusals import MOST_GHOSTS, RefusalLedger, Standing
from engine.core.request import Slo

S = 1_000_000_000
ORDER = PromptOrder.ARRIVAL
FREE = Slo(rank=1, ttft_ns=2 * S, ttft_ns_per_1k_prompt_tokens=0)
PREMIUM = Slo(rank=0, ttft_ns=S, ttft_ns_per_1k_prompt_tokens=0)


def place(
    name: str, arrival_s: float, tokens: int = 100, weight: float = 1.0, slo: Slo = FREE
) -> Standing:
    return Standing(Newcomer(name, "free", slo, tokens), int(arrival_s * S), weight)


def test_a_ghost_that_nobody_behind_overtook_would_have_missed() -> None:
    """Only earlier arrivals were served until its due time: the refusal was justified."""
    ledger = RefusalLedger()
    ledger.refuse(place("ghost", 10), 5 * S)
    ledger.served(place("earlier", 9), 11 * S, PromptOrder.ARRIVAL)
    ledger.settle(13 * S)
    assert (ledger.counts.justified, ledger.counts.false) == (1, 0)


def test_a_ghost_whose_place_another_got_in_time_was_refused_falsely() -> None:
    """A later arrival of as many tokens had its first token in time: so would the ghost."""
    ledger = RefusalLedger()
    ledger.refuse(place("ghost", 10), 5 * S)
    ledger.served(place("later", 10.5), 11 * S, PromptOrder.ARRIVAL)
    assert (ledger.counts.justified, ledger.counts.false) == (0, 1)
    assert ledger.counts.false_share == 1.0


def test_what_was_served_too_late_is_no_place() -> None:
    """A later arrival that was served after the ghost's due time proves nothing."""
    ledger = RefusalLedger()
    ledger.refuse(place("ghost", 10), 5 * S)
    ledger.served(place("later", 10.5), 13 * S, PromptOrder.ARRIVAL)
    assert (ledger.counts.justified, ledger.counts.false) == (1, 0)


def test_several_small_places_make_a_large_one() -> None:
    """The ghost needs as many tokens as its prompt has."""
    ledger = RefusalLedger()
    ledger.refuse(place("ghost", 10, tokens=250), 5 * S)
    for number in range(2):
        ledger.served(place(f"later{number}", 10.5), 11 * S, PromptOrder.ARRIVAL)
    assert ledger.counts.false == 0
    ledger.served(place("later2", 10.5), 11 * S, PromptOrder.ARRIVAL)
    assert ledger.counts.false == 1


def test_an_idle_engine_is_a_place() -> None:
    """Had it been let in, it would have been computed then."""
    ledger = RefusalLedger()
    ledger.refuse(place("ghost", 10), 5 * S)
    ledger.idle(500.0 / S, 10 * S, 11 * S, ORDER)
    assert ledger.counts.false == 1


@pytest.mark.parametrize(
    ("since_s", "until_s", "false"), [(5, 60, 1), (11, 60, 1), (11.6, 60, 0), (5, 10.4, 0)]
)
def test_an_idle_time_is_a_ghosts_from_its_arrival_to_its_due_time(
    since_s: float, until_s: float, false: int
) -> None:
    """100 tokens at 200 a second take half a second, between 10 and 12 s."""
    ledger = RefusalLedger()
    ledger.refuse(place("ghost", 10), 5 * S)
    ledger.idle(200.0 / S, int(since_s * S), int(until_s * S), ORDER)
    ledger.settle(60 * S)
    assert (ledger.counts.justified, ledger.counts.false) == (1 - false, false)


def test_each_order_has_its_own_behind() -> None:
    """The dearer gives way, or the longer, or the later, as the plan says; classes first."""
    dear, cheap = place("a", 1, tokens=10, weight=9.0), place("b", 2, tokens=20, weight=1.0)
    assert dear.is_behind(cheap, PromptOrder.DUE)
    assert cheap.is_behind(dear, PromptOrder.SHORTEST)
    assert cheap.is_behind(dear, PromptOrder.ARRIVAL)
    first = place("c", 3, tokens=99, weight=99.0, slo=PREMIUM)
    for order in PromptOrder:
        assert dear.is_behind(first, order)
        assert not first.is_behind(dear, order)


def test_who_missed_checks_the_ledger_in_either_sequence() -> None:
    """A request let in that missed is judged like a ghost, and the ledger must say so."""
    ledger = RefusalLedger()
    ledger.check(place("early-truth", 10))
    ledger.truth("early-truth", is_on_time=False)
    ledger.served(place("later", 10.5), 11 * S, PromptOrder.ARRIVAL)  # judged as on time
    ledger.check(place("late-truth", 20))
    ledger.settle(30 * S)
    ledger.truth("late-truth", is_on_time=False)
    assert (ledger.counts.checked, ledger.counts.agreed) == (2, 1)
    assert ledger.counts.justified == ledger.counts.false == 0


def test_who_was_on_time_checks_nothing() -> None:
    """It took the place that its own ghost would have looked for."""
    ledger = RefusalLedger()
    ledger.check(place("a", 10))
    ledger.truth("a", is_on_time=True)
    ledger.settle(30 * S)
    assert ledger.counts.checked == 0
    assert not ledger._known


def test_its_own_first_token_is_not_its_place() -> None:
    """A checked request must not prove itself."""
    ledger = RefusalLedger()
    mine = place("me", 10)
    ledger.check(mine)
    ledger.served(mine, 11 * S, PromptOrder.ARRIVAL)
    ledger.settle(13 * S)
    ledger.truth("me", is_on_time=False)
    assert (ledger.counts.checked, ledger.counts.agreed) == (1, 1)


def test_returns_come_due_at_the_hinted_time_and_are_followed() -> None:
    """One come back by the hint and let in is judged like a newcomer of that time."""
    ledger = RefusalLedger()
    ledger.refuse(place("ghost", 10), 5 * S)
    assert ledger.due_returns(14 * S) == []
    (back,) = ledger.due_returns(15 * S)
    assert back.arrival_ns == 15 * S
    assert ledger.due_returns(16 * S) == []
    ledger.came_back(back, is_admitted=True)
    ledger.served(place("later", 15.5), 16 * S, PromptOrder.ARRIVAL)
    counts = ledger.counts
    assert (counts.returns, counts.returns_admitted, counts.returns_on_time) == (1, 1, 1)
    assert counts.justified == 1  # the refusal itself: nobody had its place before 12 s


def test_ghosts_and_returns_are_bounded() -> None:
    """A flood of refusals drops the oldest unjudged, and says so."""
    ledger = RefusalLedger()
    for number in range(5 * MOST_GHOSTS):
        ledger.refuse(place(f"g{number}", 10), 60 * S)
        ledger.check(place(f"c{number}", 10))
    assert len(ledger) <= 2 * MOST_GHOSTS
    assert len(ledger._returns) <= MOST_GHOSTS
    assert len(ledger._known) <= MOST_GHOSTS
    assert ledger.counts.dropped > 0
    assert ledger.counts.refused == 5 * MOST_GHOSTS


def test_every_ghost_ends_once() -> None:
    """Refused = justified + false + dropped, once all their times are over."""
    ledger = RefusalLedger()
    for number in range(300):
        ledger.refuse(place(f"g{number}", 10 + number / 10), S)
        if number % 3 == 0:
            ledger.served(place(f"m{number}", 10.05 + number / 10), (11 + number // 10) * S, ORDER)
    ledger.settle(1000 * S)
    counts = ledger.counts
    assert counts.refused == counts.justified + counts.false + counts.dropped == 300


def test_one_place_is_one_ghosts_only() -> None:
    """Of a hundred who were refused the first in order had the place, and the rest missed."""
    ledger = RefusalLedger()
    for number in range(100):
        ledger.refuse(place(f"ghost{number}", 10 + number / 1000), 60 * S)
    ledger.served(place("later", 10.5), 11 * S, ORDER)
    assert (ledger.counts.justified, ledger.counts.false) == (0, 1)
    assert ledger._ghosts[0].place.id == "ghost1"
    ledger.settle(20 * S)
    assert (ledger.counts.justified, ledger.counts.false) == (99, 1)


def test_places_go_to_whom_the_order_would_have_served() -> None:
    """What one leaves over is the next one's; an idle engine is shared as well."""
    ledger = RefusalLedger()
    for name, tokens in (("long", 300), ("short", 100), ("middle", 200)):
        ledger.refuse(place(name, 10, tokens=tokens), 60 * S)
    ledger.idle(250.0 / S, 10 * S, 11 * S, PromptOrder.SHORTEST)
    assert [(g.place.id, g.found) for g in ledger._ghosts] == [("long", 0.0), ("middle", 150.0)]
    ledger.served(place("later", 10.5, tokens=400), 11 * S, PromptOrder.SHORTEST)
    assert (ledger.counts.false, len(ledger)) == (3, 0)


GHOST = st.tuples(st.floats(0, 20), st.integers(1, 300), st.floats(0, 9), st.sampled_from([0, 1]))
EVENT = st.tuples(st.booleans(), GHOST)


@pytest.mark.parametrize("order", PromptOrder)
@given(st.lists(GHOST, max_size=40), st.lists(EVENT, max_size=40))
def test_no_more_tokens_are_given_than_were_served(
    order: PromptOrder,
    ghosts: list[tuple[float, int, float, int]],
    events: list[tuple[bool, tuple[float, int, float, int]]],
) -> None:
    """Whatever the order, those falsely refused need no more in sum than others really got."""
    ledger, slos = RefusalLedger(), (PREMIUM, FREE)
    for number, (at_s, tokens, weight, rank) in enumerate(ghosts):
        ledger.refuse(place(f"g{number}", at_s, tokens, weight, slos[rank]), 60 * S)
    judged, served = 0.0, 0.0
    for number, (is_idle, (at_s, tokens, weight, rank)) in enumerate(events):
        before = {ghost.place.id: ghost for ghost in ledger._ghosts}
        if is_idle:
            ledger.idle(tokens / S, int(at_s * S), int(at_s * S) + S, order)
        else:
            mate = place(f"m{number}", at_s, tokens, weight, slos[rank])
            ledger.served(mate, int((at_s + 1) * S), order)
        served += tokens
        left = {ghost.place.id for ghost in ledger._ghosts}
        judged += sum(ghost.found for name, ghost in before.items() if name not in left)
        given = judged + sum(ghost.found for ghost in ledger._ghosts)
        assert given <= served + 1e-6


def test_what_became_of_those_in_doubt_is_counted_either_way() -> None:
    """On time, missed, gone after its time; who left before tells nothing. Once each."""
    ledger = RefusalLedger()
    for name in ("timely", "late", "lost", "gone"):
        ledger.doubt(place(name, 10))
    ledger.check(place("sure", 10))
    ledger.refuse(place("sent away", 10), 60 * S)
    for _ in range(2):
        ledger.truth("timely", is_on_time=True)
        ledger.truth("late", is_on_time=False)
        ledger.truth("sure", is_on_time=True)
        ledger.gave_up("lost")
        for name in ("lost", "gone"):
            ledger.forget(name)
    ledger.truth("gone", is_on_time=True)
    counts = ledger.counts
    assert (counts.would_refuse, counts.would_on_time, counts.would_missed) == (5, 1, 2)
    assert counts.refused == 1
    assert not ledger._doubted
