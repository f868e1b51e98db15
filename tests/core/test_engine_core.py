"""How requests come, end and are told of: finish rules, refusals, aborts, faults, the books."""

from __future__ import annotations

import pytest
from core_fakes import expected_output
from core_orders import make_order, make_world
from core_world import STEP_NS, World

from engine.core.batch import SampledToken, StepResult
from engine.core.engine_core import CoreConfig, EngineCore
from engine.core.errors import RefusalReason, RequestRefused
from engine.core.request import FinishReason, RequestOrder
from engine.core.scheduler import MAX_FAULTS
from engine.core.stats import TokenEvent


def run(world: World, order: RequestOrder) -> list[TokenEvent]:
    """Submit one order and return all of its events."""
    assert world.submit(order)
    events = []
    while world.start() is not None:
        events += world.finish()
    return events


def free_blocks(world: World) -> int:
    return world.core.snapshot(world.now_ns).free_blocks


# Ends


def test_max_tokens_ends_with_length() -> None:
    """Exactly that many tokens, and the last event carries reason and stats."""
    events = run(make_world(), make_order("a", max_tokens=5))
    assert len(events) == 5
    assert [e.finish_reason for e in events] == [None] * 4 + [FinishReason.LENGTH]
    assert events[-1].stats is not None
    assert events[-1].stats.num_output_tokens == 5


def test_a_stop_token_ends_the_request_and_is_counted() -> None:
    """Its event carries the id and STOP; usage counts it, the reader leaves it out of the text."""
    order = make_order("a", max_tokens=50, stop_token_ids=(2,))
    expected = expected_output(order)
    assert expected[-1] == 2  # else this seed proves nothing
    assert len(expected) < 50
    events = run(make_world(), order)
    assert events[-1].token_id == 2
    assert events[-1].finish_reason is FinishReason.STOP
    assert events[-1].stats is not None
    assert events[-1].stats.num_output_tokens == len(expected)


def test_a_stop_token_at_the_last_place_is_a_stop() -> None:
    """STOP wins over LENGTH."""
    long = make_order("a", max_tokens=50, stop_token_ids=(2,))
    length = len(expected_output(long))
    order = make_order("a", max_tokens=length, stop_token_ids=(2,))
    assert run(make_world(), order)[-1].finish_reason is FinishReason.STOP


def test_min_tokens_holds_even_if_the_sampler_slips() -> None:
    """The core never stops earlier: a stop token before min_tokens is a token like any other."""
    world = make_world()
    core = world.core
    core.submit(make_order("a", max_tokens=4, stop_token_ids=(7,), min_tokens=2), 0)
    reasons = []
    for now_ns in range(1, 4):
        batch = core.start_step(now_ns)
        if batch is None:
            break
        result = StepResult(batch.step, (SampledToken("a", 7),), 1)
        reasons += [event.finish_reason for event in core.finish_step(batch, result, now_ns)]
    assert reasons == [None, None, FinishReason.STOP]


def test_logprobs_travel_with_their_token() -> None:
    """What the executor reports reaches the event unchanged."""
    core = make_world().core
    core.submit(make_order("a"), 0)
    batch = core.start_step(1)
    assert batch is not None
    token = SampledToken("a", 3, -0.5, ())
    (event,) = core.finish_step(batch, StepResult(batch.step, (token,), 1), 2)
    assert (event.token_id, event.logprob, event.top, event.at_ns) == (3, -0.5, (), 2)


def test_a_stop_string_ends_the_request_with_the_tokens_before_it() -> None:
    """The gateway says how many belong to the answer; more than were made is not believed."""
    for said, counted in [(1, 1), (0, 0), (2, 2), (9, 2), (-1, 0)]:
        world = make_world()
        world.submit(make_order("a", max_tokens=9))
        for _ in range(2):
            world.start()
            world.finish()
        (event,) = world.core.stop("a", said, world.now_ns)
        assert event.token_id is None
        assert event.finish_reason is FinishReason.STOP
        assert event.stats is not None
        assert event.stats.num_output_tokens == counted
        assert free_blocks(world) == 100


def test_a_stop_after_the_end_is_ignored() -> None:
    """The request ended by itself; its stats are told already, once."""
    world = make_world()
    run(world, make_order("a"))
    assert world.stop("a", 1) == []
    assert world.abort("a") == []
    assert len(world.recorder.finished) == 1


def test_an_expired_deadline_is_an_abort_with_its_own_reason() -> None:
    """Law L22: never `length`."""
    world = make_world()
    world.submit(make_order("a"))
    (event,) = world.core.abort("a", 0, FinishReason.EXPIRED)
    assert event.finish_reason is FinishReason.EXPIRED


# Refusals


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "fits"),
    [(30, 10, True), (30, 11, False), (39, 1, True), (40, 1, False), (1, 39, True), (0, 4, False)],
)
@pytest.mark.parametrize("bound", ["max_model_len", "num_blocks"])
def test_what_can_never_fit_is_refused_at_once(
    bound: str, prompt: int, max_tokens: int, fits: bool
) -> None:
    """Law L13, to the token: the context window and the pool; what fits is served to its end."""
    world = make_world(**{bound: 40 if bound == "max_model_len" else 10})
    order = make_order("a", prompt, max_tokens=max_tokens)
    assert world.submit(order) == fits
    if not fits:
        assert world.refused == ["never_fits" if prompt else "empty_prompt"]
    world.drain()
    assert len(world.ended) == fits


def test_an_order_for_no_tokens_is_refused() -> None:
    """There would be no event to end it with."""
    world = make_world()
    assert not world.submit(make_order("a", max_tokens=0))


def test_an_id_is_free_again_after_the_end_and_not_before() -> None:
    """Two live requests never share a name."""
    world = make_world()
    assert world.submit(make_order("a"))
    assert not world.submit(make_order("a"))
    world.drain()
    assert world.submit(make_order("a"))
    world.drain()
    assert world.refused == [RefusalReason.DUPLICATE_ID]


def test_a_draining_engine_serves_whom_it_took() -> None:
    """New ones are refused with a reason of their own."""
    world = make_world()
    world.submit(make_order("a"))
    world.core.drain()
    with pytest.raises(RequestRefused) as refusal:
        world.core.submit(make_order("b"), world.now_ns)
    assert refusal.value.reason is RefusalReason.DRAINING
    world.drain()
    assert len(world.ended) == 1


def test_a_queue_that_holds_nobody_is_no_configuration() -> None:
    """One clear error instead of an engine that refuses everyone."""
    for config in ({"max_waiting_requests": 0}, {"max_waiting_prompt_tokens": 0}):
        with pytest.raises(ValueError, match="at least one"):
            CoreConfig(**config)


# Aborts


def test_an_abort_in_any_state_gives_everything_back() -> None:
    """Law L7: queued, cut prompt, decoding, each also with the step out, and after the last."""
    for steps in range(9):
        for during in (False, True):
            world = make_world(max_batch_tokens=4, enable_prefix_cache=False)
            world.submit(make_order("a", 11, max_tokens=4))
            for _ in range(steps):
                if world.start() is not None:
                    world.finish()
            held = free_blocks(world)
            if during:
                during = world.start() is not None
                held = free_blocks(world)
            world.abort("a")
            if during:
                assert free_blocks(world) == held, "law L5: freed under a dispatched step"
                assert world.finish() == [], "a token for somebody who left"
            assert free_blocks(world) == 100
            world.drain()


def test_an_abort_of_one_not_in_the_step_frees_at_once() -> None:
    """The fence is for blocks that the dispatched step uses, not for others."""
    world = make_world(max_batch_tokens=2, enable_prefix_cache=False)
    world.wait(5)
    world.submit(make_order("a", 1, max_tokens=9, arrival_ns=1))
    world.submit(make_order("idle", 9, arrival_ns=5))
    world.start()
    world.finish()
    world.submit(make_order("b", 1, max_tokens=9, arrival_ns=2))
    world.start()
    world.finish()
    batch = world.start()
    assert batch is not None
    assert [chunk.request_id for chunk in batch.chunks] == ["a", "b"]
    held = free_blocks(world)
    world.abort("idle")
    assert free_blocks(world) == held + 1
    world.drain()


def test_a_name_used_again_while_its_last_bearer_is_in_the_step() -> None:
    """The late token belongs to the one who left, and is dropped."""
    world = make_world()
    world.submit(make_order("a", 4, seed=1))
    world.start()
    world.abort("a")
    assert world.submit(make_order("a", 9, seed=2))
    assert world.finish() == []
    world.drain()
    assert [t.end.finish_reason for t in world.ended if t.end] == ["cancelled", "length"]


def test_a_failed_row_of_a_name_used_again_harms_nobody() -> None:
    """The same for a row that failed."""
    world = make_world()
    world.submit(make_order("a", 4, seed=1))
    world.start()
    world.abort("a")
    world.submit(make_order("a", 9, seed=2))
    assert world.finish(failed=["a"]) == []
    world.drain()
    assert [t.end.finish_reason for t in world.ended if t.end] == ["cancelled", "length"]


# Faults


def test_a_request_survives_two_faults_and_fails_with_the_third() -> None:
    """Its answer is right after two; with the third it ends with the executor's words."""
    for faults, reason in [(MAX_FAULTS, "length"), (MAX_FAULTS + 1, "failed")]:
        world = make_world()
        world.submit(make_order("a", max_tokens=6))
        world.start()
        world.finish()
        for _ in range(faults):
            world.start()
            world.fault()
        world.drain()
        (truth,) = world.ended
        assert truth.end is not None
        assert truth.end.finish_reason == reason
        assert truth.end.detail == ("device memory ran out" if reason == "failed" else "")


def test_a_failed_row_ends_one_request_and_no_other() -> None:
    """Computing it again would give the same numbers again, so it ends at once."""
    world = make_world()
    world.submit(make_order("a", seed=1))
    world.submit(make_order("b", seed=2))
    world.start()
    events = world.finish(failed=["a"])
    assert [(e.request_id, e.finish_reason) for e in events] == [
        ("a", FinishReason.FAILED),
        ("b", None),
    ]
    assert events[0].stats is not None
    assert events[0].stats.detail
    world.drain()


def test_fail_all_ends_everyone_and_leaves_a_clean_house() -> None:
    """Waiting, running and in the step: one event each, and the core could go on."""
    world = make_world(max_batch_requests=1)
    for name in "abc":
        world.submit(make_order(name))
    world.start()
    assert len(world.fail_all()) == 3
    assert not world.core.has_work
    assert free_blocks(world) == 100
    run(world, make_order("d"))


# The seam's promises


def test_a_result_that_does_not_fit_the_batch_is_a_programming_error() -> None:
    """Wrong step, wrong request, missing or surplus tokens: stopped before anything changes."""
    world = make_world()
    world.submit(make_order("a"))
    batch = world.start()
    assert batch is not None
    token = SampledToken("a", 1)
    before = world.core.snapshot(world.now_ns)
    for result in [
        StepResult(batch.step + 1, (token,), 1),
        StepResult(batch.step, (), 1),
        StepResult(batch.step, (token, token), 1),
        StepResult(batch.step, (SampledToken("b", 1),), 1),
        StepResult(batch.step, (token,), 1, failed=("a",)),
    ]:
        with pytest.raises(AssertionError):
            world.core.finish_step(batch, result, world.now_ns)
        assert world.core.snapshot(world.now_ns) == before
    world.drain()


def test_only_one_step_is_out_at_a_time() -> None:
    """Starting twice, or finishing what was not started, is a programming error."""
    world = make_world()
    world.submit(make_order("a"))
    batch = world.start()
    assert batch is not None
    with pytest.raises(AssertionError, match="still out"):
        world.core.start_step(world.now_ns)
    world.finish()
    with pytest.raises(AssertionError, match="no step is out"):
        world.core.fail_step(batch, world.now_ns, "again")


def test_time_never_runs_back() -> None:
    """Law L36, for every command; and nobody arrives in the future."""
    core: EngineCore = make_world().core
    core.submit(make_order("a", arrival_ns=5), 5)
    with pytest.raises(AssertionError, match="time ran back"):
        core.start_step(4)
    with pytest.raises(AssertionError, match="future"):
        core.submit(make_order("b", arrival_ns=7), 6)


def test_the_snapshot_counts_by_tier() -> None:
    """Who waits and who runs, tier by tier, and nobody once they are gone."""
    world = make_world(max_batch_requests=2)
    for name, tier in [("a", "free"), ("b", "premium"), ("c", "free"), ("d", "free")]:
        world.submit(make_order(name, tier=tier))
    world.start()
    snapshot = world.core.snapshot(world.now_ns)
    assert snapshot.running_by_tier == (("free", 1), ("premium", 1))
    assert snapshot.waiting_by_tier == (("free", 2),)
    assert (snapshot.running, snapshot.waiting, snapshot.waiting_prompt_tokens) == (2, 2, 8)
    assert snapshot.prompt_tokens_total == 8
    world.drain()


def test_a_step_is_told_as_it_happened() -> None:
    """Decodes and prompt tokens apart, the executor's own time, the state after the step."""
    world = make_world(enable_prefix_cache=False)
    world.submit(make_order("a", 4))
    world.start()
    world.finish()
    world.submit(make_order("b", 9))
    world.submit(make_order("c", 5))
    world.start()
    world.finish()
    stats = world.recorder.steps[-1]
    assert (stats.step, stats.started_ns, stats.elapsed_ns) == (2, STEP_NS, STEP_NS)
    assert (stats.num_decodes, stats.num_prefill_tokens) == (1, 14)
    assert (stats.num_running, stats.num_waiting, stats.num_preempted) == (3, 0, 0)
    assert stats.free_blocks == 100 - 2 - 3 - 2
    world.drain()


def test_the_first_token_keeps_its_time_through_a_preemption() -> None:
    """Law L38; and the stats of the whole story are in order (law L36)."""
    world = make_world(num_blocks=5, enable_prefix_cache=False)
    world.wait(2)
    world.submit(make_order("old", 4, max_tokens=14, arrival_ns=1))
    world.submit(make_order("new", 4, max_tokens=12, arrival_ns=2))
    world.start()
    world.finish()
    first = world.live["new"].token_times[0]
    world.drain()
    stats = world.ended[-1].end
    assert stats is not None
    assert (stats.request_id, stats.first_token_ns) == ("new", first)
    assert stats.preemptions > 0


def test_the_next_turn_of_a_conversation_finds_the_last_one() -> None:
    """Prompt and answer of turn one are the prefix of turn two, but for what was never computed."""
    world = make_world()
    first = make_order("a", 9, max_tokens=8)
    run(world, first)
    history = (*first.prompt, *expected_output(first))
    run(world, make_order("b", (*history, 1, 2, 3)))
    stats = world.ended[-1].end
    assert stats is not None
    assert stats.num_cached_tokens == 16
