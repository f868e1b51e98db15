"""SLAI's rules: last schedulable times, the order of a step, what makes room, the variants."""

from __future__ import annotations

import pytest
from core_orders import make_order, make_world
from core_scenes import decoding, find, prefilling, step, view, waiting

from engine.core.policies import make_policy
from engine.core.policies.slai import Slai
from engine.core.request import Request, Slo, Status

STRICT = Slo(rank=0, tbt_ns=100)
RELAXED = Slo(rank=1, tbt_ns=500)


def after_steps(policy: Slai, *elapsed_ns: int) -> Slai:
    """The policy once steps of these lengths are over."""
    for time_ns in elapsed_ns:
        policy.observe([], time_ns, view())
    return policy


def written(policy: Slai, request: Request, elapsed_ns: int, *, free_blocks: int = 1000) -> int:
    """The LST that is written down when a step ends in which the request got its token."""
    policy.observe([request], elapsed_ns, view(free_blocks=free_blocks))
    (lst_ns,) = request.note
    return lst_ns


# Last schedulable times


def test_lst_is_the_end_of_the_step_plus_tbt_less_the_offset() -> None:
    """Equation 8, with the mean of all steps, the one that has just ended included."""
    policy = after_steps(Slai(), 10, 20)
    request = decoding("a", now_ns=1000, slo=RELAXED)
    assert written(policy, request, 30) == 1000 + 500 - 5 * 20


def test_a_decode_is_critical_at_its_lst_and_not_before() -> None:
    """The tie is critical: now >= LST."""
    policy = Slai(dynamic=False)
    request = decoding("a", now_ns=1000, slo=RELAXED)
    lst_ns = written(policy, request, 10)
    assert lst_ns == 1400
    assert not policy.due(request, view(1399))
    assert policy.due(request, view(1400))
    assert policy.due(request, view(1401))


def test_a_request_without_an_lst_cannot_wait() -> None:
    """Nobody is held back for want of a note."""
    assert Slai().due(decoding("a"), view())


def test_lst_stays_while_a_decode_is_held_back() -> None:
    """It is written when the token's step ends; later steps, slower ones too, change nothing."""
    policy = Slai()
    request = decoding("a", now_ns=1000, slo=RELAXED)
    lst_ns = written(policy, request, 10)
    after_steps(policy, 500, 500)
    assert request.note == (lst_ns,)
    assert not policy.due(request, view(lst_ns - 1))


def test_the_first_lst_comes_from_the_step_that_ends_the_prompt() -> None:
    """And a prompt that is not done has none."""
    policy = Slai()
    halfway, done = prefilling("halfway"), decoding("done", now_ns=50, slo=RELAXED)
    policy.observe([halfway, done], 10, view())
    assert halfway.note == ()
    assert done.note == (50 + 500 - 50,)


@pytest.mark.parametrize(
    ("free_blocks", "offset"), [(41, 5), (40, 10), (0, 10)], ids=["below", "at", "full"]
)
def test_the_dynamic_offset_switches_at_96_percent(free_blocks: int, offset: int) -> None:
    """Below the limit 5 mean steps, from it on 10; asked anew for every LST."""
    request = decoding("a", now_ns=1000, slo=RELAXED)
    assert written(Slai(), request, 20, free_blocks=free_blocks) == 1500 - offset * 20


def test_a_fixed_offset_is_ten_whatever_the_memory() -> None:
    """The published variants with a fixed offset; `theta` sets another."""
    for free_blocks in (1000, 0):
        request = decoding("a", now_ns=0, slo=RELAXED)
        fixed = make_policy("slai", [("dynamic", 0)])
        assert isinstance(fixed, Slai)
        assert written(fixed, request, 20, free_blocks=free_blocks) == 300
        other = make_policy("slai", [("dynamic", 0), ("theta", 2)])
        assert isinstance(other, Slai)
        assert written(other, request, 20, free_blocks=free_blocks) == 460


# Prompts


def test_the_variants_order_new_prompts_as_published() -> None:
    """First come; shortest; strict first and then shortest."""
    requests = [
        waiting("long", 90, arrival_ns=1, slo=RELAXED),
        waiting("strict", 50, arrival_ns=2, slo=STRICT),
        waiting("short", 10, arrival_ns=3, slo=RELAXED),
    ]
    expected = {
        (0, 0): ["long", "strict", "short"],
        (1, 0): ["short", "strict", "long"],
        (1, 1): ["strict", "short", "long"],
        (0, 1): ["strict", "long", "short"],
    }
    for (spf, priority), names in expected.items():
        policy = make_policy("slai", [("spf", spf), ("priority", priority)])
        ranked = sorted(requests, key=lambda r: policy.prefill_rank(r, view()))
        assert [r.id for r in ranked] == names


def test_prompts_under_way_go_on_first_begun_first() -> None:
    """Before every new one, strict or short as it may be: prompts are not preempted."""
    second = prefilling("second", 30, started_ns=20)
    first = prefilling("first", 90, started_ns=10)
    newcomer = waiting("new", 5, slo=STRICT)
    ranked = sorted((newcomer, second, first), key=lambda r: Slai().prefill_rank(r, view()))
    assert [r.id for r in ranked] == ["first", "second", "new"]


def test_a_prompt_needs_blocks_for_all_of_it_above_one_percent() -> None:
    """As in Sarathi's block manager."""
    room = Slai().room(waiting("a", 40), view())
    assert (room.claim_tokens, room.spare_blocks) == (40, 10)


# The order of a step


def test_a_step_holds_critical_decodes_then_prompts_then_the_others() -> None:
    """Prompts take the budget that decodes with slack leave; nothing idles when they end."""
    world = make_world(
        Slai(token_budget=8, max_running=8), enable_prefix_cache=False, max_batch_tokens=64
    )
    calm, hurried = Slo(tbt_ns=10_000), Slo(tbt_ns=1)
    world.submit(make_order("calm", 4, max_tokens=10, slo=calm))
    world.submit(make_order("hurried", 4, max_tokens=10, slo=hurried))
    assert step(world) == [("calm", 4), ("hurried", 4)]
    world.submit(make_order("new", 18, max_tokens=3, slo=calm))
    assert step(world) == [("hurried", 1), ("new", 7)]
    assert step(world) == [("hurried", 1), ("new", 7)]
    assert step(world) == [("hurried", 1), ("calm", 1), ("new", 4)]
    assert step(world) == [("hurried", 1), ("calm", 1), ("new", 1)]
    world.drain()


def test_decodes_with_slack_take_the_seats_left_over_by_lst() -> None:
    """Where the budget is short the one that must run soonest runs first."""
    world = make_world(
        Slai(token_budget=9, max_running=8), enable_prefix_cache=False, max_batch_tokens=64
    )
    for name, tbt_ns in (("a", 30_000), ("b", 10_000), ("c", 20_000)):
        world.submit(make_order(name, 3, max_tokens=10, slo=Slo(tbt_ns=tbt_ns)))
    assert step(world) == [("a", 3), ("b", 3), ("c", 3)]
    world.submit(make_order("new", 16, max_tokens=2, slo=Slo(tbt_ns=9)))
    assert step(world) == [("new", 9)]
    assert step(world) == [("b", 1), ("c", 1), ("new", 7)]


def test_a_held_decode_runs_once_its_time_has_come() -> None:
    """However many prompts arrive: at its LST it goes before them."""
    world = make_world(
        Slai(token_budget=8, max_running=16, dynamic=False, offset_high=0.0),
        enable_prefix_cache=False,
    )
    world.submit(make_order("calm", 4, max_tokens=3, slo=Slo(tbt_ns=30)))
    step(world)
    gaps = []
    for number in range(12):
        world.submit(make_order(f"p{number}", 8, max_tokens=1))
        world.submit(make_order(f"q{number}", 8, max_tokens=1))
        gaps.append("calm" in dict(step(world)))
    # Steps last 7: its LST is 30 after the last token, so it runs in every sixth step.
    assert [index for index, ran in enumerate(gaps) if ran] == [5, 11]


# Memory


def test_a_critical_decode_evicts_the_prompt_begun_last() -> None:
    """And no decode, however much later it is due."""
    policy = Slai(max_running=8)
    keep = [
        waiting("newcomer"),
        prefilling("second", started_ns=9),
        prefilling("first", started_ns=3),
        decoding("later", now_ns=0),
        decoding("soon", now_ns=0),
    ]
    keep[3].note, keep[4].note = (90,), (10,)
    ranked = sorted(keep, key=lambda r: policy.keep_rank(r, view()))
    assert [r.id for r in ranked] == ["soon", "later", "first", "second", "newcomer"]


def test_a_decode_out_of_blocks_takes_them_from_a_prompt_under_way() -> None:
    """The evicted prompt starts over; the decodes lose nothing."""
    world = make_world(
        Slai(token_budget=3, max_running=8), enable_prefix_cache=False, num_blocks=12
    )
    hurried = Slo(tbt_ns=1)
    world.submit(make_order("a", 8, max_tokens=30, slo=hurried))
    while len(find(world, "a").output) < 5:
        step(world)
    world.submit(make_order("p", 28, max_tokens=2))  # 7 blocks, 4 are a's: 1 is left
    while find(world, "p").preemption_count == 0 and not find(world, "p").output:
        before = len(find(world, "a").output)
        step(world)
        assert len(find(world, "a").output) == before + 1
    assert find(world, "p").preemption_count == 1
    assert find(world, "p").status is Status.WAITING
    world.drain()


def test_among_decodes_only_those_that_lack_a_block_fall() -> None:
    """The latest LST among them, never one whose next token has its place already."""
    policy = Slai()
    requests = [
        decoding("full-late", 20, generated=1),
        decoding("full-soon", 40, generated=1),
        decoding("roomy", 21, generated=1),
    ]
    for request, lst_ns in zip(requests, (90, 10, 500), strict=True):
        request.note = (lst_ns,)
    short = view(free_blocks=2, decoding=requests)
    ranked = sorted(requests, key=lambda r: policy.keep_rank(r, short))
    assert [r.id for r in ranked] == ["roomy", "full-soon", "full-late"]
    ample = view(free_blocks=3, decoding=requests)
    ranked = sorted(requests, key=lambda r: policy.keep_rank(r, ample))
    assert [r.id for r in ranked] == ["full-soon", "full-late", "roomy"]


# Options


def test_options_reach_slai_and_bad_ones_are_named() -> None:
    """One line for whoever wrote the setting."""
    policy = make_policy("slai", [("token_budget", 256), ("max_running", 4), ("decode_limit", 3)])
    limits = policy.limits(view())
    assert (limits.max_tokens, limits.max_running, limits.max_decodes) == (256, 4, 3)
    with pytest.raises(ValueError, match="option 'spf' must be 0 or 1, not 2"):
        make_policy("slai", [("spf", 2)])
    with pytest.raises(ValueError, match="option 'theta' must be"):
        make_policy("slai", [("theta", -1)])
    with pytest.raises(ValueError, match="option 'decode_limit' must be a whole number"):
        make_policy("slai", [("decode_limit", 1.5)])
