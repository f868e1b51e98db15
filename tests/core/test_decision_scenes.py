"""Known scenes, and what their records say: who waited for what, and made room for whom."""

from __future__ import annotations

from core_orders import make_order, make_world
from core_policies import Tiered, tiny_model
from core_scenes import step
from core_world import World
from hybrid_scenes import MS, ROUND, S

from engine.core.decision import Decision, DecisionKind, Reason, RequestRecord
from engine.core.decision_log import (
    CROWD_ONE_IN,
    MOST_FOLLOWED,
    MOST_NOTABLE,
    MOST_REFUSED,
    DecisionLog,
)
from engine.core.decision_trace import FIRST_KEPT, MOST_DECISIONS
from engine.core.engine_core import CoreConfig
from engine.core.errors import RefusalReason
from engine.core.latency_model import LatencyModel
from engine.core.policies.hybrid import Hybrid
from engine.core.policies.standing import AGAIN, BOTH_LOST, GIVEN_UP, ON_TIME
from engine.core.policy import StepLimits
from engine.core.request import FinishReason, Request, RequestOrder, Slo, TbtMode
from engine.core.stats import RequestStats

KIND, WHY = DecisionKind, Reason


def free(name: str, prompt: int = 4, *, max_tokens: int = 4, rank: int = 1) -> RequestOrder:
    tier = "premium" if rank == 0 else "free"
    return make_order(name, prompt, max_tokens=max_tokens, slo=Slo(rank=rank), tier=tier)


def story(world: World, name: str) -> RequestRecord:
    record = world.core.explain(name, world.now_ns)
    assert record is not None
    return record


def kinds(record: RequestRecord) -> str:
    return " ".join(decision.kind for decision in record.decisions)


def only(record: RequestRecord, kind: DecisionKind) -> Decision:
    (decision,) = [d for d in record.decisions if d.kind is kind]
    return decision


def test_who_waits_for_a_row_says_so_and_was_never_looked_at() -> None:
    """The rows are full before anybody is looked at: behind them nobody is first in line."""
    world = make_world(max_batch_requests=1)
    world.submit(make_order("a", max_tokens=3))
    world.submit(make_order("b", max_tokens=1))
    world.drain()
    start = only(story(world, "b"), KIND.STARTED)
    assert start.waits == ((WHY.ROWS_FULL, 21),)
    assert start.first_waits == ()
    assert start.step == 4
    assert kinds(story(world, "a")) == "started ran"
    ran = only(story(world, "a"), KIND.RAN)
    assert (ran.step, ran.until_step, ran.num_steps) == (1, 3, 3)
    assert (ran.num_tokens, ran.num_output_tokens, ran.until_ns) == (6, 3, 21)


def test_who_comes_during_a_step_waits_for_its_end() -> None:
    world = make_world()
    world.submit(make_order("a", max_tokens=3))
    world.start()
    world.wait(2)
    world.submit(make_order("b"))
    world.finish()
    world.drain()
    assert only(story(world, "b"), KIND.STARTED).waits == ((WHY.STEP_UNDER_WAY, 7),)


def test_the_first_in_line_waits_for_memory_and_the_next_one_behind_it() -> None:
    """Both waited for memory; only one of them was the one that lacked it."""
    world = make_world(num_blocks=5, enable_prefix_cache=False)
    world.submit(make_order("big", 15, max_tokens=5))
    step(world)
    world.submit(make_order("next", 12, max_tokens=1, arrival_ns=1))
    world.submit(make_order("last", 4, max_tokens=1, arrival_ns=2))
    assert story(world, "next").state == "waiting"
    world.drain()
    first, second = [only(story(world, name), KIND.STARTED) for name in ("next", "last")]
    assert first.waits == second.waits == ((WHY.NO_MEMORY, 28),)
    assert (first.first_waits, second.first_waits) == (first.waits, ())


def test_a_newcomer_ahead_and_its_victim_name_each_other() -> None:
    """The victim's record says for whom it fell, the newcomer's who made room for it."""
    world = make_world(Tiered(), num_blocks=6, enable_prefix_cache=False)
    world.submit(free("f", 16, max_tokens=6))
    step(world)
    world.submit(free("p", 16, max_tokens=2, rank=0))
    step(world)
    fell, came = story(world, "f"), story(world, "p")
    lost = only(fell, KIND.PREEMPTED)
    assert (lost.reason, lost.others) == (WHY.NEWCOMER, (("p", "premium"),))
    assert (lost.num_tokens, lost.step, lost.at_ns) == (16, 2, 7)
    assert only(came, KIND.STARTED).others == (("f", "free"),)
    assert (fell.state, came.state) == ("waiting", "running")
    world.drain()
    assert kinds(story(world, "f")) == "started ran preempted started ran"
    again = story(world, "f").decisions[3]
    assert again.waits == ((WHY.STEP_UNDER_WAY, 7), (WHY.NO_MEMORY, 7))
    assert again.others == ()


def test_a_decode_that_needs_a_block_takes_it_for_its_growth() -> None:
    world = make_world(Tiered(), num_blocks=4, enable_prefix_cache=False)
    world.submit(make_order("a", 7, max_tokens=6, arrival_ns=0))
    world.wait(1)
    world.submit(make_order("b", 7, max_tokens=6, arrival_ns=1))
    world.drain()
    lost = only(story(world, "b"), KIND.PREEMPTED)
    assert (lost.reason, lost.others) == (WHY.GROWTH, (("a", ""),))


def test_a_parked_request_tells_why_how_long_and_its_bank() -> None:
    """Parked and brought back by the policy; the token that was due next tells what it had left."""
    policy = Tiered()
    world = make_world(policy, model=tiny_model(), num_host_blocks=20)
    slo = Slo(rank=1, tbt_ns=50, tbt_mode=TbtMode.STREAM)
    world.submit(make_order("f", 8, max_tokens=6, slo=slo))
    world.submit(make_order("g", 4, max_tokens=30))
    step(world)
    policy.park = ("f",)
    step(world)
    policy.park = ()
    step(world)
    assert story(world, "f").state == "parked"
    policy.back = ("f",)
    step(world)
    step(world)
    record = story(world, "f")
    assert kinds(record) == "started ran parked returning returned ran"
    parked = only(record, KIND.PARKED)
    assert (parked.reason, parked.num_tokens, parked.at_ns) == (WHY.POLICY_WISH, 8, 7)
    assert parked.due_ns == 7 + 50
    assert only(record, KIND.RETURNING).at_ns == 21
    assert only(record, KIND.RETURNED).at_ns == 28
    world.drain()
    assert story(world, "f").end is not None


def test_a_decode_left_out_for_want_of_time_says_whether_it_was_due() -> None:
    """A pause of a few steps, over before its token is due, is folded into the steps it ran in."""
    limits = StepLimits(max_step_ns=9)
    policy = Tiered(limits=limits)
    world = make_world(policy, model=tiny_model(), max_batch_tokens=64)
    world.submit(make_order("patient", 4, max_tokens=6, slo=Slo(tbt_ns=10**6)))
    step(world)
    policy.not_due = ("patient",)
    world.submit(make_order("long", 40, max_tokens=1))
    while "patient" not in [name for name, _ in step(world)]:
        assert story(world, "patient").state == "held"
        held = only(story(world, "patient"), KIND.HELD)
        assert (held.reason, held.is_due) == (WHY.TIME_FULL, False)
    record = story(world, "patient")
    assert kinds(record) == "started ran"
    ran = only(record, KIND.RAN)
    assert ran.num_steps < ran.until_step - ran.step + 1
    world.drain()


def test_a_fault_is_told_and_what_follows_it() -> None:
    world = make_world()
    world.submit(make_order("a", max_tokens=2))
    world.start()
    world.fault()
    world.drain()
    record = story(world, "a")
    assert kinds(record) == "started ran fault started ran"
    assert only(record, KIND.FAULT).detail == "device memory ran out"
    assert record.num_steps == 3


def test_a_refused_request_is_told_and_a_double_leaves_the_first_alone() -> None:
    world = make_world(config=CoreConfig(max_waiting_requests=1))
    world.submit(make_order("a"))
    world.submit(make_order("b"))
    world.submit(make_order("a"))
    assert story(world, "b").refusal is RefusalReason.QUEUE_FULL
    assert (story(world, "a").state, story(world, "a").refusal) == ("waiting", None)
    world.drain()
    assert world.core.explain("nobody", world.now_ns) is None
    world.submit(make_order("b", max_tokens=1))
    world.drain()
    assert story(world, "b").state == "finished", "an id belongs to its latest bearer"


def test_the_hybrid_tells_how_a_prompt_stands() -> None:
    """On time, given up for a while, due again, lost: each change is told once, in its words."""
    policy = Hybrid(LatencyModel(ROUND))
    world = make_world(policy, num_blocks=1000, max_model_len=3000, max_batch_tokens=64)
    slo = Slo(rank=1, ttft_ns=2 * S, ttft_ns_per_1k_prompt_tokens=0, tbt_ns=500 * MS)
    for name in "abcde":
        world.submit(make_order(name, 900, max_tokens=1, slo=slo))
    step(world)
    standing = {name: story(world, name).standing for name in "abcde"}
    assert sorted(standing.values()) == [GIVEN_UP] * 3 + [ON_TIME] * 2
    world.wait(3 * S)
    step(world)
    world.wait(60 * S)
    step(world)
    told = [d.detail for n in "abcde" for d in story(world, n).decisions if d.kind is KIND.POLICY]
    assert {GIVEN_UP, AGAIN, BOTH_LOST} == set(told)
    assert BOTH_LOST in [story(world, name).standing for name in "abcde"]
    world.drain()
    words = [story(world, name).decisions[-2].detail for name in "abcde"]
    assert BOTH_LOST in words, "a start says in which state it was started"


def test_a_story_is_bounded_and_keeps_its_beginning_and_its_end() -> None:
    policy = Tiered()
    world = make_world(policy, model=tiny_model(), num_host_blocks=40)
    world.submit(free("f", 8, max_tokens=50))
    world.submit(make_order("g", 4, max_tokens=150))
    step(world)
    policy.park = policy.back = ("f",)
    world.drain()
    record = story(world, "f")
    assert record.end is not None
    assert record.end.parks > MOST_DECISIONS // 4
    assert len(record.decisions) == MOST_DECISIONS
    assert record.num_dropped > 0
    assert record.decisions[0].kind is KIND.STARTED
    assert record.decisions[-1].until_ns == record.end.finished_ns
    gap = record.decisions[FIRST_KEPT].step - record.decisions[FIRST_KEPT - 1].step
    assert gap > 2, "what is missing is missing from the middle"
    ran = [b.step for b in world.batches if "f" in {c.request_id for c in b.chunks}]
    assert record.num_steps == len(ran), "all of its steps are counted"


def test_steps_of_some_may_be_followed_and_all_else_is_kept_of_everybody() -> None:
    """Followed or not is a matter of the id alone; starts, waits and ends are told of everybody."""
    counts = {}
    for one_in in (0, 1, 4):
        world = make_world(config=CoreConfig(follow_one_in=one_in))
        for number in range(100):
            world.submit(make_order(f"r{number}", max_tokens=3))
        world.drain()
        records = [story(world, f"r{number}") for number in range(100)]
        assert all(r.decisions[0].kind is KIND.STARTED and r.end for r in records)
        assert all((r.num_steps > 0) is r.is_followed for r in records)
        counts[one_in] = sum(r.is_followed for r in records)
    assert (counts[0], counts[1]) == (0, 100)
    assert 10 < counts[4] < 40


def test_in_a_crowd_steps_are_followed_of_fewer() -> None:
    """Everybody's while they are few; one in eight of those who come to a crowd."""
    log = DecisionLog()
    names = [f"r{number}" for number in range(10 * MOST_FOLLOWED)]
    for name in names:
        log.submitted(Request(make_order(name), 0), 0)
    followed = [name for name in names if (r := log.read(name, 0)) and r.is_followed]
    assert followed[:MOST_FOLLOWED] == names[:MOST_FOLLOWED]
    share = (len(followed) - MOST_FOLLOWED) / (len(names) - MOST_FOLLOWED)
    assert 0.8 < share * CROWD_ONE_IN < 1.2
    for name in names:
        log.ended(ended(name))
    log.submitted(Request(make_order("later"), 0), 0)
    assert (later := log.read("later", 0)) is not None
    assert later.is_followed, "the crowd is gone"


def ended(name: str, **fields: object) -> RequestStats:
    values: dict[str, object] = {
        "request_id": name, "tenant": "", "tier": "", "finish_reason": FinishReason.STOP,
        "arrival_ns": 0, "finished_ns": 9, "first_scheduled_ns": 1, "first_token_ns": 5,
        "last_token_ns": 8, "num_prompt_tokens": 4, "num_cached_tokens": 0,
        "num_output_tokens": 3, "preemptions": 0,
    }  # fmt: skip
    return RequestStats(**values | fields)  # type: ignore[arg-type]


def test_what_is_kept_is_bounded_and_what_went_wrong_is_kept_longer() -> None:
    """Thousands come and go: the latest are known, and of the others those that missed or fell."""
    log = DecisionLog(most_ended=50)
    for number in range(5 * MOST_NOTABLE):
        name = f"r{number}"
        log.submitted(Request(make_order(name), 0), 0)
        log.begin(0)
        is_odd = number % 10 == 0
        log.ended(ended(name, preemptions=int(is_odd)))
        log.refused(make_order(f"no{number}"), RefusalReason.QUEUE_FULL, 0)
    assert len(log) <= 50 + MOST_NOTABLE + MOST_REFUSED
    last = 5 * MOST_NOTABLE - 1
    assert log.read(f"r{last}", 9) is not None
    assert log.read(f"r{last - 100}", 9) is None
    assert log.read(f"r{last // 10 * 10 - 1000}", 9) is not None, "it was preempted"
    assert log.read(f"no{last}", 9) is not None
    assert log.read(f"no{last - MOST_REFUSED}", 9) is None
