"""The truth about one request's record, from what was seen from outside: batches, times, ends."""

from __future__ import annotations

from core_fakes import Truth
from core_world import World

from engine.core.decision import DecisionKind, RequestRecord
from engine.core.decision_trace import MOST_DECISIONS, MOST_OTHERS
from engine.core.errors import RefusalReason

STRETCHES = (DecisionKind.RAN, DecisionKind.HELD)
LEAVING = (DecisionKind.PARKED, DecisionKind.PREEMPTED, DecisionKind.FAULT)


def check_record(record: RequestRecord, world: World, truth: Truth) -> None:
    """Assert that a live or ended request's record says what happened, and nothing else."""
    name = truth.order.id
    ran = [b.step for b in world.batches if name in {chunk.request_id for chunk in b.chunks}]
    assert record.num_steps == len(ran), "it ran in other steps"
    assert (record.request_id, record.tier) == (name, truth.order.tier)
    assert record.end == truth.end
    assert (record.state == "finished") == (truth.end is not None)
    assert record.first_token_ns == (truth.token_times[0] if truth.token_times else None)
    check_order(record)
    check_counts(record, truth)
    if not record.num_dropped:
        check_stretches(record, world, ran)
        check_waits(record)
        check_tokens(record, truth)


def check_order(record: RequestRecord) -> None:
    """Times never run back, and what is kept is bounded."""
    assert len(record.decisions) <= MOST_DECISIONS + 2
    times = [record.arrival_ns, record.submitted_ns, *[d.at_ns for d in record.decisions]]
    assert times == sorted(times)
    assert times[-1] <= record.read_ns
    for decision in record.decisions:
        assert len(decision.others) <= MOST_OTHERS
        if decision.kind in STRETCHES:
            assert decision.at_ns <= decision.until_ns <= record.read_ns
            assert decision.step <= decision.until_step


def check_counts(record: RequestRecord, truth: Truth) -> None:
    """Parks and preemptions are those of the stats; late tokens too, and the worst has a size."""
    kinds = [decision.kind for decision in record.decisions]
    assert (record.late_tokens > 0) == (record.worst_late_ns > 0)
    if record.num_dropped:
        return
    assert kinds.count(DecisionKind.PARKED) == truth.num_parks
    assert kinds.count(DecisionKind.RETURNED) <= kinds.count(DecisionKind.RETURNING)
    assert kinds.count(DecisionKind.RETURNING) <= kinds.count(DecisionKind.PARKED)
    if truth.end is not None:
        assert kinds.count(DecisionKind.PREEMPTED) == truth.end.preemptions
        assert record.late_tokens == truth.end.late_tokens
    starts = kinds.count(DecisionKind.STARTED)
    falls = kinds.count(DecisionKind.PREEMPTED) + kinds.count(DecisionKind.FAULT)
    assert falls <= starts <= falls + 1


def check_stretches(record: RequestRecord, world: World, ran: list[int]) -> None:
    """Ran and held follow each other without a gap, and hold the very steps of the batches."""
    began = {stats.step: stats.started_ns for stats in world.recorder.steps}
    covered: list[int] = []
    expected = 0  # the next stretch begins with this step; 0: any
    for decision in record.decisions:
        if decision.kind in STRETCHES:
            assert expected in (0, decision.step), "steps are missing from the story"
            expected = decision.until_step + 1
            within = [n for n in ran if decision.step <= n <= decision.until_step]
            assert decision.at_ns <= began.get(decision.step, decision.at_ns)
            if decision.kind is DecisionKind.HELD:
                assert within == [], "it was held, and ran"
                assert decision.reason is not None, "nobody knows why it was held"
            else:
                assert decision.at_ns == began.get(decision.step, decision.at_ns)
                assert decision.num_steps == len(within)
                assert (within[0], within[-1]) == (decision.step, decision.until_step)
                covered += within
        elif decision.kind in LEAVING:
            assert expected in (0, decision.step, decision.step + 1)
            expected = 0
        elif decision.kind is DecisionKind.STARTED:
            assert decision.at_ns == began.get(decision.step, decision.at_ns)
            expected = decision.step
        elif decision.kind is DecisionKind.RETURNED:
            expected = decision.step + 1
    assert covered == ran, "it ran in other steps"


def check_waits(record: RequestRecord) -> None:
    """What a start had waited for adds up to the time it had waited, first in line or not."""
    since_ns = record.submitted_ns
    for decision in record.decisions:
        if decision.kind is DecisionKind.STARTED:
            assert sum(ns for _, ns in decision.waits) == decision.at_ns - since_ns
            assert all(ns > 0 for _, ns in decision.waits)
            waits = dict(decision.waits)
            assert all(ns <= waits[reason] for reason, ns in decision.first_waits)
        elif decision.kind in (DecisionKind.PREEMPTED, DecisionKind.FAULT):
            since_ns = decision.at_ns


def check_tokens(record: RequestRecord, truth: Truth) -> None:
    """Every token of the answer was made in a stretch."""
    made = [d.num_output_tokens for d in record.decisions if d.kind is DecisionKind.RAN]
    assert sum(made) == len(truth.output)
    assert all(d.num_tokens >= 0 for d in record.decisions)


def check_world(world: World) -> None:
    """Assert all of it of everybody the world knows."""
    for truth in (*world.live.values(), *world.ended):
        record = world.core.explain(truth.order.id, world.now_ns)
        assert record is not None
        check_record(record, world, truth)


def refusals(world: World, names: list[str]) -> list[RefusalReason]:
    """Return why those of these requests were refused that were."""
    records = [world.core.explain(name, world.now_ns) for name in names]
    return [r.refusal for r in records if r is not None and r.refusal is not None]
